"""``lrmil predict``: slide + model -> prediction, attention table, overlays."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from lrmil_cli.commands import options
from lrmil_cli.commands.batch import Outcome, SlideInput, expand_slides, planned, run_batch
from lrmil_cli.commands.export_geojson import ImageSize, Origin
from lrmil_cli.commands.report import Report
from lrmil_cli.errors import UsageError

if TYPE_CHECKING:
    from lrmil_cli.distill.model import Model, Prediction
    from lrmil_cli.slides.slide import Slide


def predict(
    slides: options.Slides,
    model: Annotated[str, typer.Option("-m", "--model", metavar="MODEL.safetensors", help="Model made by distill-student.", show_default=False)],
    output: Annotated[str, typer.Option("-o", "--output", metavar="DIR|-", help="Folder for <slide>.prediction.json and <slide>.attention.csv, or - for the attention table of one slide on stdout.", show_default=False)],
    overlay: Annotated[Optional[str], typer.Option("--overlay", metavar="FILE.png|DIR", help="Also write a picture of the attention.", show_default=False)] = None,
    geojson: Annotated[Optional[str], typer.Option("--geojson", metavar="FILE.geojson[.gz]|DIR", help="Also write the attention for QuPath.", show_default=False)] = None,
    origin: Origin = "auto",
    image_size: ImageSize = None,
    slide_mpp: options.SlideMpp = None,
    allow_upsample: Annotated[bool, typer.Option("--allow-upsample", help="Enlarge pixels where the slide is coarser than the model wants.")] = False,
    batch_size: options.BatchSize = 16,
    device: options.Device = "auto",
    json: options.Json = False,
    overwrite: options.Overwrite = False,
    fail_fast: options.FailFast = False,
    dry_run: options.DryRun = False,
) -> None:
    """Classify slides from their LR tiles alone.

    Writes the prediction and the attention of every tile; --geojson and --overlay show where the model looked.
    """
    from dataclasses import replace

    from lrmil_cli.device import device_label, pick_device
    from lrmil_cli.distill.model import load_model, plan_slide, predict_slide
    from lrmil_cli.files.header import digest, last_digest, step, up_to_date
    from lrmil_cli.files.tables import read_table, read_table_header, write_table
    from lrmil_cli.qupath.geojson import check_name, heatmap, parse_image_size, write_geojson
    from lrmil_cli.slides.slide import open_slide

    report = Report(json)
    inputs = expand_slides(slides)
    many = len(inputs) > 1
    if output == "-" and (many or json):
        raise UsageError("-o - streams the attention table of one slide, without --json; give a folder")
    if output != "-" and Path(output).exists() and not Path(output).is_dir():
        raise UsageError(f"-o {output} is a file; give a folder, or - for the attention table on stdout")
    size = parse_image_size(image_size)
    if geojson is not None and not many and not _is_folder(geojson):
        check_name(geojson)
    if overlay is not None and not many and not _is_folder(overlay) and not overlay.lower().endswith(".png"):
        raise UsageError(f"--overlay {overlay}: give a name that ends in .png, or a folder")
    for option, value in (("--geojson", geojson), ("--overlay", overlay)):
        if value is not None and many and not _is_folder(value) and Path(value).suffix:
            raise UsageError(f"{option} {value} is one file, but there are several slides; give a folder")
    where = pick_device(device)
    started = time.perf_counter()
    loaded = load_model(model).to(where)
    if allow_upsample:
        loaded.tiles = replace(loaded.tiles, allow_upsample=True)
    report.detail(f"model with {len(loaded.heads)} fold heads, {', '.join(loaded.classes)}; loaded in {time.perf_counter() - started:.1f} s")
    settings = {"model": last_digest(loaded.header), "tiles": loaded.tiles.as_json()}

    def one(item: SlideInput) -> Outcome:
        began = time.perf_counter()
        folder = Path(output)
        table = "-" if output == "-" else folder / f"{item.slide_id}.attention.csv"
        with open_slide(item.path, slide_id=item.slide_id, slide_mpp=slide_mpp, manifest_mpp=item.mpp) as slide:
            origin_of = {"slide": slide.fingerprint, "mpp": repr(slide.mpp)}
            wanted = digest(settings, origin_of)
            targets = _targets(item.slide_id, folder, geojson, overlay, many)
            if output != "-" and up_to_date(table, wanted, lambda p: read_table(p, "attention")[0], overwrite) \
                    and all(p.exists() for p in targets.values()):
                known = read_table_header(table, "attention")["prediction"]
                return Outcome(str(folder), "skipped", f"{known['predicted']}, up to date ({table})", {"prediction": known})
            if dry_run:
                return planned(*plan_slide(loaded, slide, device=where, batch_size=batch_size), slide, table)
            opened = time.perf_counter() - began
            with report.progress(item.slide_id, None) as bar:
                p = predict_slide(loaded, slide, device=where, batch_size=batch_size, progress=bar)
            p.seconds = {"open": round(opened, 3), **p.seconds}
            record = prediction_record(loaded, p, slide, device_label(where), model, [step("predict", settings, origin_of)])
            header, rows = attention_table(loaded, p, record)
            text = heatmap(header, rows, origin=origin, image_size=size) if geojson is not None else None
            if output != "-":
                table.unlink(missing_ok=True)  # it marks the slide as done, and what stands beside it is about to change
            if overlay is not None:
                _draw(targets["overlay"], slide, rows, record)
            if text is not None:
                write_geojson(str(targets["geojson"]), text)
            if output != "-":
                _write_json(targets["prediction"], record)
            write_table(table, header, rows)  # last: it marks the slide as done
        spent = ", ".join(f"{k} {v:.2f}" for k, v in p.seconds.items())
        probability = record["probabilities"][record["predicted"]]
        message = f"{record['predicted']} (p {probability:.3f}), {len(rows)} tiles; seconds: {spent}; {device_label(where)}"
        return Outcome(str(output), message=message, extra={"prediction": record})

    run_batch("predict", inputs, one, report, fail_fast=fail_fast, failures_in=Path(output) if many else None, dry_run=dry_run)


def _is_folder(path: str) -> bool:
    return path.endswith("/") or Path(path).is_dir() or not Path(path).suffix


def _targets(slide_id: str, folder: Path, geojson: str | None, overlay: str | None, many: bool) -> dict[str, Path]:
    """Files besides the attention table that this run should leave for a slide."""
    out = {} if str(folder) == "-" else {"prediction": folder / f"{slide_id}.prediction.json"}
    for key, value, ending in (("geojson", geojson, ".heatmap.geojson.gz"), ("overlay", overlay, ".overlay.png")):
        if value is not None:
            out[key] = Path(value) / f"{slide_id}{ending}" if many or _is_folder(value) else Path(value)
    return out


def prediction_record(model: Model, p: Prediction, slide: Slide, device: str, model_path: str, history: list[dict]) -> dict[str, Any]:
    """The prediction JSON of a slide."""
    from lrmil_cli.files.header import last_digest, make_header

    best = int(p.probabilities.argmax())
    return make_header(
        "prediction", slide=slide.describe(), settings={"tiles": model.tiles.as_json()}, history=history,
        model={"path": model_path, "digest": last_digest(model.header), "preset": model.header.get("preset"),
               "license": model.header.get("license")},
        predicted=model.classes[best],
        probabilities={c: round(float(v), 9) for c, v in zip(model.classes, p.probabilities)},
        folds={c: [round(float(v), 6) for v in p.per_fold[:, n]] for n, c in enumerate(model.classes)},
        spread={c: round(float(p.per_fold[:, n].std()), 6) for n, c in enumerate(model.classes)},
        tiles=len(p.tiles), seconds=p.seconds, device=device,
    )


def attention_table(model: Model, p: Prediction, record: dict[str, Any]) -> tuple[dict[str, Any], Any]:
    """Header and rows of the attention table."""
    from lrmil_cli.distill.model import percentiles
    from lrmil_cli.files.header import make_header

    rows = p.tiles[["x", "y", "width", "height"]].copy()
    rows["attention"] = p.attention
    rows["percentile"] = percentiles(p.attention).round(4)
    if p.class_scores is not None:
        for name, scores in zip(model.classes, p.class_scores):
            rows[f"score_{name}"] = scores
    short = {k: record[k] for k in ("predicted", "probabilities", "tiles")}
    header = make_header("attention", slide=record["slide"], settings=record["settings"], history=record["history"],
                         prediction=short, attention_kind=model.header.get("attention_kind"))
    return header, rows


def _write_json(path: Path, record: dict[str, Any]) -> None:
    import json

    from lrmil_cli.files.atomic import write_text
    from lrmil_cli.files.header import sealed

    write_text(path, json.dumps(sealed(record), indent=1, allow_nan=False) + "\n")


def _draw(path: Path, slide: Slide, rows: Any, record: dict[str, Any]) -> None:
    from lrmil_cli.qupath.pictures import attention_picture
    from lrmil_cli.slides.reader import overview

    longest = max(slide.width, slide.height)
    image, scale_x, scale_y = overview(slide, max(slide.mpp, slide.mpp * longest / 900))
    probability = record["probabilities"][record["predicted"]]
    attention_picture(path, image, scale_x, scale_y, rows, record["slide"],
                      f"{record['slide']['id']}: {record['predicted']} (probability {probability:.2f}, {record['tiles']} tiles)")
