"""``lrmil predict``: slide + model -> prediction, attention table, overlays."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from lrmil_cli.commands import (
    options,
    overlays,
    predict_outputs,
    promises,
    regions,
    report_pages,
    second_look,
    selective_options,
)
from lrmil_cli.commands import watch as watching
from lrmil_cli.commands.batch import Outcome, Turn, failures_folder, planned, run_batch
from lrmil_cli.commands.inputs import SlideInput, expand_slides
from lrmil_cli.commands.next_step import after_predict
from lrmil_cli.commands.predict_outputs import (
    check_outputs,
    follow_prediction,
    predicted_before,
    summary,
    write_prediction,
)
from lrmil_cli.commands.report import Report
from lrmil_cli.errors import UsageError

Model = Annotated[
    str,
    typer.Option(
        "-m",
        "--model",
        metavar="MODEL.safetensors",
        help="Model made by distill-student; or MODEL.onnx, made of one by export-onnx.",
    ),
]
AllowUpsample = Annotated[
    bool,
    typer.Option("--allow-upsample", help="Enlarge pixels where the slide is coarser than the model wants."),
]
Runtime = Annotated[
    str,
    typer.Option(
        "--runtime",
        help="auto, torch, onnx or onnx-int8. "
        "auto takes the ONNX graphs beside the model on a CPU, and imports no torch; "
        "onnx-int8 (`lrmil export-onnx --int8`) changes the numbers a little, and says how much.",
    ),
]


def predict(
    slides: options.Slides,
    model: Model,
    output: predict_outputs.Output,
    overlay: predict_outputs.Overlay = None,
    geojson: predict_outputs.GeoJson = None,
    pages: report_pages.Pages = False,
    top_tiles: report_pages.TopTiles = None,
    style: overlays.StyleName = "tiles",
    top: overlays.Top = None,
    threshold: overlays.Threshold = None,
    colormap: overlays.Colormap = None,
    roi: regions.Roi = None,
    roi_class: regions.RoiClass = None,
    min_inside: regions.MinInside = None,
    origin: regions.Origin = "auto",
    image_size: regions.ImageSize = None,
    mask: regions.Mask = None,
    slide_mpp: options.SlideMpp = None,
    reader: options.Reader = "auto",
    image: options.Image = None,
    allow_upsample: AllowUpsample = False,
    escalate: second_look.Escalate = None,
    budget: second_look.Budget = None,
    confidence: second_look.Confidence = None,
    hr_encoder: second_look.HrEncoder = None,
    abstain: second_look.Abstain = False,
    max_error: promises.MaxError = None,
    coverage: promises.Coverage = None,
    coverage_by: promises.CoverageBy = None,
    keep_min: selective_options.KeepMin = None,
    keep_max: selective_options.KeepMax = None,
    keep_threshold: selective_options.KeepThreshold = None,
    batch_size: options.BatchSize = None,
    workers: options.Workers = None,
    on_bad_tile: options.OnBadTile = "fail",
    device: options.Device = "auto",
    runtime: Runtime = "auto",
    compile: options.Compile = False,
    audit: predict_outputs.Audit = None,
    json: options.Json = False,
    overwrite: options.Overwrite = False,
    recursive: options.Recursive = False,
    fail_fast: options.FailFast = False,
    dry_run: options.DryRun = False,
    watch: watching.Watch = False,
    interval: watching.Interval = None,
) -> None:
    """Classify slides from their LR tiles, and from the HR tiles that a model picks by them.

    Writes the prediction and the attention of every tile; --geojson and --overlay show where the model looked.
    """
    options.check_model(model)
    from lrmil_cli.commands.export_onnx import int8_note
    from lrmil_cli.evaluation.head_calibration import uncalibrated
    from lrmil_cli.files.audit import append_line, audit_line, check_trail
    from lrmil_cli.files.header import digest, last_digest, step
    from lrmil_cli.files.tables import write_table
    from lrmil_cli.inference.answers import check_answers
    from lrmil_cli.inference.record import attention_table, prediction_record
    from lrmil_cli.inference.runtime import open_predictor
    from lrmil_cli.qupath.frame import parse_image_size, qupath_frame
    from lrmil_cli.slides.slide import open_slide

    report = Report(json)
    watching.check_watch(watch, interval, slides, output, dry_run=dry_run, fail_fast=fail_fast)
    inputs = [] if watch else expand_slides(slides, recursive=recursive, say=report.say)
    many = watch or len(inputs) > 1
    chosen = overlays.make_style(
        style, top, threshold, colormap, geojson=geojson is not None, picture=overlay is not None
    )
    check_outputs(output, overlay, geojson, pages or top_tiles is not None, many, json)
    report_pages.check_folders(".", top_tiles)
    if audit is not None:
        check_trail(audit)
    second_look.check_second_look(escalate, budget, confidence, hr_encoder, abstain)
    promises.check_promises(coverage, coverage_by, max_error, escalate, confidence, abstain)
    size = parse_image_size(image_size)
    read_region = regions.region_reader(roi, roi_class, min_inside, origin, image_size, inputs, report)
    read_mask = regions.mask_reader(mask, many)
    if (origin != "auto" or size) and geojson is None and roi is None and not any(item.roi for item in inputs):
        raise UsageError("--origin and --image-size are about --geojson and --roi; give one of these too")
    if output != "-" and not dry_run:
        check_answers(Path(output), overwrite)
    answers: list[dict[str, str]] = []
    indexed: list[bool] = []
    started = time.perf_counter()
    predictor = open_predictor(
        model,
        runtime=runtime,
        device=device,
        batch_size=batch_size,
        allow_upsample=allow_upsample,
        compile=compile,
        budget=selective_options.budget_options(keep_min, keep_max, keep_threshold),
        warn=report.warn,
    )
    predictor = second_look.with_second_look(
        predictor,
        escalate,
        budget,
        confidence,
        hr_encoder,
        abstain and max_error is None,
        device=device,
        batch_size=batch_size,
        allow_upsample=allow_upsample,
        report=report,
    )
    predictor = promises.with_promises(predictor, coverage, coverage_by, max_error)
    if note := uncalibrated(predictor.header):
        report.say(note)
    if runtime == "onnx-int8" or model.endswith(".int8.onnx"):
        report.say(int8_note(predictor.header.get("int8"), model))
    report.detail(
        f"model of {', '.join(predictor.classes)}, on {predictor.device}; "
        f"loaded in {time.perf_counter() - started:.1f} s"
    )

    def one(item: SlideInput) -> Turn:
        began = time.perf_counter()
        table = "-" if output == "-" else Path(output) / f"{item.slide_id}.attention.csv"
        with open_slide(
            item.path,
            slide_id=item.slide_id,
            slide_mpp=slide_mpp,
            manifest_mpp=item.mpp,
            reader=reader,
            image=image,
            workers=workers,
            on_bad_tile=on_bad_tile,
        ) as slide:
            qupath_frame(slide.describe(), origin, size)  # an image that does not fit is known before the work
            report.notes(slide)
            slide.given = replace(read_mask(slide, item), min_tissue=item.min_tissue)
            region = read_region(slide, item)
            made_of = slide.made_of | ({"roi": region.digest} if region else {})
            there = (
                None
                if output == "-"
                else predicted_before(
                    Path(output), item.slide_id, digest(predictor.settings, made_of), overwrite, on_bad_tile == "skip"
                )
            )
            if there:
                header, tables = there
                if not dry_run:
                    header = follow_prediction(Path(output), item.slide_id, header, slide.path.absolute())
                record = header["prediction"]
                message = f"{record['predicted']}, up to date ({table})"
                predict_outputs.warn_of(report, item.slide_id, record)
                yield  # pictures and GeoJSON are made in turn
            elif dry_run:
                tiles, seconds = predictor.plan(slide, region)
                report.notes(slide)
                return planned(tiles, seconds, slide, table)
            else:
                opened = time.perf_counter() - began
                p = yield from predictor.predict(slide, region)
                report.notes(slide)
                p.seconds = {"open": round(opened, 3), **p.seconds}
                record = prediction_record(predictor, p, slide, [step("predict", predictor.settings, made_of)], region)
                header, rows = attention_table(predictor, p, record)
                tables = {"": rows, **p.tables}
                message = summary(record, timed=report.verbose)
                if record.get("bad_tiles"):
                    report.warn(options.bad_tiles_text(item.slide_id, record["bad_tiles"], record["tiles"]))
                predict_outputs.warn_of(report, item.slide_id, record)
                if output != "-":
                    write_prediction(Path(output), item.slide_id, record, header, tables)
            if dry_run:
                return Outcome(str(output), "skipped", message, {"prediction": record})
            files = overlays.write_overlays(
                report,
                slide,
                header,
                tables,
                geojson=geojson,
                picture=overlay,
                style=chosen,
                origin=origin,
                image_size=size,
                region=region,
                overwrite=overwrite,
            )
            if output == "-":
                write_table("-", header, tables[""])
            else:
                if pages or top_tiles is not None:
                    shown = report_pages.pages_of(Path(output), slide, item.slide_id, pages, top_tiles, overwrite)
                    files |= shown
                answers.append(predict_outputs.answer(Path(output), item.slide_id, tables, files))
        if audit is not None:
            of = {"path": predictor.path, "digest": last_digest(predictor.header)}
            append_line(audit, audit_line(header, of, known=bool(there), output=None if output == "-" else str(table)))
        made = [f["path"] for f in files.values() if f["written"]]
        if there and made:
            message += f"; made {', '.join(made)}"
        extra = {
            "prediction": record,
            "attention": None if output == "-" else str(table),
            "files": {kind: f["path"] for kind, f in files.items()},
        }
        status = "skipped" if there and not made else "uncertain" if record.get("uncertain") else "ok"
        return Outcome(str(output), status, message, extra)

    def kept() -> None:  # what is done, also where some failed or Ctrl-C ended it
        if answers:
            predict_outputs.keep_answers(Path(output), answers, overwrite, report)
        if answers and pages:
            # A page that is only refreshed need not be named again.
            say = report.detail if indexed else report.say
            report_pages.write_index(Path(output), Path(output), {}, overwrite, say)
            indexed.append(True)
        answers.clear()

    if watch:
        return watching.watch_folders(
            "predict",
            slides,
            one,
            report,
            failures_in=Path(output),
            kept=kept,
            ahead=predictor.ahead,
            recursive=recursive,
            interval=interval or watching.INTERVAL,
        )
    run_batch(
        "predict",
        "planning" if dry_run else "predicting",
        inputs,
        one,
        report,
        fail_fast=fail_fast,
        failures_in=failures_folder(output, many),
        ahead=predictor.ahead,
        dry_run=dry_run,
        kept=kept,
        where=output,
        then=lambda: after_predict(slides, output, pages=pages, maps=geojson is not None),
    )
