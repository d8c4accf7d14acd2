"""``lrmil predict``: slide + model -> prediction, attention table, overlays."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from lrmil_cli.commands import options, overlays, regions
from lrmil_cli.commands.batch import Outcome, SlideInput, Turn, expand_slides, planned, run_batch
from lrmil_cli.commands.report import Report
from lrmil_cli.errors import UsageError


def predict(
    slides: options.Slides,
    model: Annotated[str, typer.Option("-m", "--model", metavar="MODEL.safetensors", help="Model made by distill-student.", show_default=False)],
    output: Annotated[str, typer.Option("-o", "--output", metavar="DIR|-", help="Folder for <slide>.prediction.json and <slide>.attention.csv, or - for the attention table of one slide on stdout.", show_default=False)],
    overlay: Annotated[Optional[str], typer.Option("--overlay", metavar="FILE.png|DIR", help="Also write a picture: the slide beside its attention.", show_default=False)] = None,
    geojson: Annotated[Optional[str], typer.Option("--geojson", metavar="FILE.geojson[.gz]|DIR|-", help="Also write the attention for QuPath.", show_default=False)] = None,
    style: overlays.StyleName = "tiles",
    top: overlays.Top = None,
    threshold: overlays.Threshold = None,
    colormap: overlays.Colormap = None,
    roi: regions.Roi = None,
    roi_class: regions.RoiClass = None,
    min_inside: regions.MinInside = None,
    origin: regions.Origin = "auto",
    image_size: regions.ImageSize = None,
    slide_mpp: options.SlideMpp = None,
    allow_upsample: Annotated[bool, typer.Option("--allow-upsample", help="Enlarge pixels where the slide is coarser than the model wants.")] = False,
    batch_size: options.BatchSize = None,
    workers: options.Workers = None,
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
    from lrmil_cli.distill.prediction import attention_table, prediction_record
    from lrmil_cli.encoders.pipeline import BatchSize, slides_ahead
    from lrmil_cli.files.header import digest, last_digest, step, up_to_date
    from lrmil_cli.files.tables import as_frame, read_table, write_table
    from lrmil_cli.qupath.frame import parse_image_size, qupath_frame
    from lrmil_cli.qupath.pictures import rings
    from lrmil_cli.slides.slide import open_slide

    report = Report(json)
    inputs = expand_slides(slides)
    many = len(inputs) > 1
    chosen = overlays.make_style(style, top, threshold, colormap, geojson=geojson is not None, picture=overlay is not None)
    _check_outputs(output, overlay, geojson, many, json)
    size = parse_image_size(image_size)
    read_region = regions.region_reader(roi, roi_class, min_inside, origin, image_size, many, report)
    if (origin != "auto" or size) and geojson is None and roi is None:
        raise UsageError("--origin and --image-size are about --geojson and --roi; give one of these too")
    where = pick_device(device)
    started = time.perf_counter()
    loaded = load_model(model).to(where)
    if allow_upsample:
        loaded.tiles = replace(loaded.tiles, allow_upsample=True)
    report.detail(f"model with {len(loaded.heads)} fold heads, {', '.join(loaded.classes)}; loaded in {time.perf_counter() - started:.1f} s")
    batch = BatchSize(batch_size, where, report.warn)
    settings = {"model": last_digest(loaded.header), "tiles": loaded.tiles.as_json()}

    def one(item: SlideInput) -> Turn:
        began = time.perf_counter()
        table = "-" if output == "-" else Path(output) / f"{item.slide_id}.attention.csv"
        record_path = None if output == "-" else Path(output) / f"{item.slide_id}.prediction.json"
        with open_slide(item.path, slide_id=item.slide_id, slide_mpp=slide_mpp, manifest_mpp=item.mpp, workers=workers) as slide:
            qupath_frame(slide.describe(), origin, size)  # an image that does not fit is known before the work
            region = read_region(slide)
            made_of = {"slide": slide.fingerprint, "mpp": repr(slide.mpp)} | ({"roi": region.digest} if region else {})
            there = output != "-" and up_to_date(table, digest(settings, made_of), lambda p: read_table(p, "attention")[0], overwrite) \
                and record_path.exists()
            if there:
                header, rows = read_table(table, "attention")
                record = header["prediction"]
                message = f"{record['predicted']}, up to date ({table})"
                yield  # pictures and GeoJSON are made in turn
            elif dry_run:
                return planned(*plan_slide(loaded, slide, device=where, batch=batch, region=region), slide, table)
            else:
                opened = time.perf_counter() - began
                p = yield from predict_slide(loaded, slide, device=where, batch=batch, region=region,
                                             progress=lambda: report.progress(item.slide_id, None))
                p.seconds = {"open": round(opened, 3), **p.seconds}
                record = prediction_record(loaded, p, slide, device_label(where), model, [step("predict", settings, made_of)], region)
                header, rows = attention_table(loaded, p, record)
                spent = ", ".join(f"{k} {v:.2f}" for k, v in p.seconds.items())
                message = (f"{record['predicted']} (p {record['probabilities'][record['predicted']]:.3f}), {len(p.attention)} tiles; "
                           f"seconds: {spent}; {device_label(where)}")
                if record_path is not None:
                    Path(table).unlink(missing_ok=True)  # it marks the slide as done, and what stands beside it is about to change
                    _write_json(record_path, record)
                    write_table(table, header, rows)  # last: it marks the slide as done
            if dry_run:
                return Outcome(str(output), "skipped", message, {"prediction": record})
            files: dict[str, dict[str, Any]] = {}
            if geojson is not None or overlay is not None:
                rows = as_frame(rows)
            if geojson is not None:
                path = overlays.place(geojson, f"{item.slide_id}.{'regions' if style == 'regions' else 'heatmap'}.geojson.gz")
                files = overlays.write_geojson(report, header, rows, path, chosen, origin, size, overwrite)
            if overlay is not None:
                path = overlays.place(overlay, f"{item.slide_id}.overlay.png")
                outlines = rings(region.area) if region else ()
                files["overlay"] = {"path": path, "written": overlays.write_picture(path, slide, header, rows, chosen.colormap, outlines, overwrite)}
            if output == "-":
                write_table("-", header, rows)
        made = [f["path"] for f in files.values() if f["written"]]
        if there and made:
            message += f"; made {', '.join(made)}"
        extra = {"prediction": record, "files": {kind: f["path"] for kind, f in files.items()}}
        return Outcome(str(output), "skipped" if there and not made else "ok", message, extra)

    run_batch("predict", inputs, one, report, fail_fast=fail_fast, failures_in=Path(output) if many else None, ahead=slides_ahead(where),
              dry_run=dry_run)


def _check_outputs(output: str, overlay: str | None, geojson: str | None, many: bool, json: bool) -> None:
    """Names of outputs that cannot be meant, before any work.

    Raises:
        UsageError: one file for several slides, or a name of the wrong kind.
    """
    from lrmil_cli.qupath.files import check_name
    from lrmil_cli.qupath.pictures import check_picture_name

    if output == "-" and (many or json):
        raise UsageError("-o - streams the attention table of one slide, without --json; give a folder")
    if output != "-" and Path(output).exists() and not Path(output).is_dir():
        raise UsageError(f"-o {output} is a file; give a folder, or - for the attention table on stdout")
    for option, value in (("--geojson", geojson), ("--overlay", overlay)):
        if value is None or overlays.is_folder(value):
            continue
        if many:
            raise UsageError(f"{option} {value} is one file, but there are several slides; give a folder")
        if option == "--overlay":
            check_picture_name(option, value)
        elif value != "-":
            check_name(value)
        elif output == "-" or json:
            raise UsageError("--geojson - wants stdout for itself; choose one of it, -o - and --json")


def _write_json(path: Path, record: dict[str, Any]) -> None:
    import json

    from lrmil_cli.files.atomic import write_text
    from lrmil_cli.files.header import sealed

    write_text(path, json.dumps(sealed(record), indent=1, allow_nan=False) + "\n")
