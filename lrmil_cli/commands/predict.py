"""``lrmil predict``: slide + model -> prediction, attention table, overlays."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lrmil_cli.commands import (
    options,
    overlays,
    predict_outputs,
    predict_patients,
    promises,
    regions,
    report_pages,
    second_look,
    selective_options,
)
from lrmil_cli.commands import watch as watching
from lrmil_cli.commands.batch import Outcome, Turn, failures_folder, run_batch
from lrmil_cli.commands.inputs import SlideInput, expand_slides, open_input
from lrmil_cli.commands.next_step import after_predict
from lrmil_cli.commands.predict_outputs import check_fine, check_outputs
from lrmil_cli.commands.predict_slide import Answers, Asked, Wanted, model_names, planned_slide, predict_slide
from lrmil_cli.commands.report import Report
from lrmil_cli.errors import UsageError

if TYPE_CHECKING:
    from lrmil_cli.inference.patients import Part

Models = Annotated[
    list[str],
    typer.Option(
        "-m",
        "--model",
        metavar="MODEL.safetensors",
        help="Model made by distill-student; or MODEL.onnx, made of one by export-onnx. Given again, several models "
        "answer from one reading of a slide, each in a folder of its own in --output.",
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
    model: Models,
    output: predict_outputs.Output,
    overlay: predict_outputs.Overlay = None,
    format: overlays.PictureFormat = None,
    dpi: overlays.Dpi = None,
    geojson: predict_outputs.GeoJson = None,
    pages: report_pages.Pages = False,
    top_tiles: report_pages.TopTiles = None,
    style: overlays.StyleName = "tiles",
    top: overlays.Top = None,
    threshold: overlays.Threshold = None,
    colormap: overlays.Colormap = None,
    fine: predict_outputs.Fine = None,
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
    max_spread: second_look.MaxSpread = None,
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
    from lrmil_cli.files.audit import check_trail
    from lrmil_cli.inference.answers import check_answers
    from lrmil_cli.inference.fine import shiftable
    from lrmil_cli.inference.runtime import open_predictors
    from lrmil_cli.qupath.frame import parse_image_size, qupath_frame

    report = Report(json)
    watching.check_watch(watch, interval, slides, output, dry_run=dry_run, fail_fast=fail_fast)
    inputs = [] if watch else expand_slides(slides, recursive=recursive, say=report.say)
    names, many = model_names(model), watch or len(inputs) > 1
    chosen = overlays.make_style(
        style, top, threshold, colormap, geojson=geojson is not None, picture=overlay is not None
    )
    look = overlays.make_picture_style(overlay, format, dpi, colormap)
    shown = pages or top_tiles is not None
    check_outputs(output, overlay, format, geojson, shown, many, json, several=len(names) > 1)
    check_fine(fine, output)
    report_pages.check_folders(".", top_tiles)
    if audit is not None:
        check_trail(audit)
    doubt = second_look.Asked(escalate, budget, confidence, max_spread, hr_encoder, abstain)
    second_look.check_second_look(doubt)
    if escalate is not None and len(names) > 1:
        raise UsageError("--escalate asks the teacher of one model; give one --model")
    promises.check_promises(coverage, coverage_by, max_error, escalate, confidence, abstain)
    size = parse_image_size(image_size)
    read_region = regions.region_reader(roi, roi_class, min_inside, origin, image_size, inputs, report)
    read_mask = regions.mask_reader(mask, many)
    if (origin != "auto" or size) and geojson is None and roi is None and not any(item.roi for item in inputs):
        raise UsageError("--origin and --image-size are about --geojson and --roi; give one of these too")
    for path in model:
        options.check_model(path)
    wanted = Wanted(
        output,
        geojson,
        overlay,
        pages,
        top_tiles,
        chosen,
        look,
        origin,
        size,
        fine,
        audit,
        overwrite,
        on_bad_tile == "skip",
    )
    if output != "-" and not dry_run:
        for folder in dict.fromkeys([output, *(wanted.of(name).output for name in names)]):
            check_answers(Path(folder), overwrite, several=len(names) > 1 and folder == output)
    indexed: list[bool] = []
    started = time.perf_counter()
    predictors = open_predictors(
        model,
        runtime=runtime,
        device=device,
        batch_size=batch_size,
        allow_upsample=allow_upsample,
        compile=compile,
        budget=selective_options.budget_options(keep_min, keep_max, keep_threshold),
        warn=report.warn,
    )
    models = []
    for name, predictor in zip(names, predictors):
        predictor = second_look.with_second_look(
            predictor,
            replace(doubt, abstain=abstain and max_error is None),
            device=device,
            batch_size=batch_size,
            allow_upsample=allow_upsample,
            report=report,
        )
        predictor = promises.with_promises(predictor, coverage, coverage_by, max_error)
        models.append(Asked(name, predictor, wanted.of(name)))
    for asked in models:
        predict_outputs.introduce(asked.name, asked.predictor, report)
    report.detail(f"on {models[0].predictor.device}; loaded in {time.perf_counter() - started:.1f} s")
    if fine is not None:
        for asked in models:
            shiftable(asked.predictor)
    answers = Answers(Path(output), names)
    of_patients = predict_patients.answers_for_patients(predictors)
    if of_patients:
        predict_patients.check_patients(
            predictors,
            {
                "-o -": output == "-",
                "--geojson -": geojson == "-",
                "--fine": fine is not None,
                "--escalate": escalate is not None,
                "--watch": watch,
            },
        )

    def one(item: SlideInput) -> Turn:
        began = time.perf_counter()
        with ExitStack() as stack:
            slide, region = opened_part(item, stack)
            if dry_run:
                return planned_slide(models, slide, region, report)
            opened = time.perf_counter() - began
            return (yield from predict_slide(models, slide, region, opened, answers, report))

    def opened_part(item: SlideInput, stack: ExitStack) -> Part:
        how = {"reader": reader, "image": image, "workers": workers, "on_bad_tile": on_bad_tile}
        slide = stack.enter_context(open_input(item, slide_mpp=slide_mpp, **how))
        qupath_frame(slide.describe(), origin, size)  # an image that does not fit is known before the work
        report.notes(slide)
        slide.given = replace(read_mask(slide, item), min_tissue=item.min_tissue)
        return slide, read_region(slide, item)

    def one_patient(patient: predict_patients.PatientInput) -> Outcome:
        if dry_run:
            return predict_patients.planned_patient(models[0], patient, opened_part)
        return predict_patients.predict_patient(models[0], patient, opened_part, answers, report)

    def kept() -> None:  # what is done, also where some failed or Ctrl-C ended it
        if not answers.some:
            return
        answers.keep(overwrite, report)
        if pages:
            # A page that is only refreshed need not be named again.
            say = report.detail if indexed else report.say
            report_pages.write_index(Path(output), Path(output), {}, overwrite, say)
            indexed.append(True)
        answers.forget()  # the last thing, so that after an interrupt all of it is done once more

    ahead = min(p.ahead for p in predictors)
    if watch:
        return watching.watch_folders(
            "predict",
            slides,
            one,
            report,
            failures_in=Path(output),
            kept=kept,
            ahead=ahead,
            recursive=recursive,
            interval=interval or watching.INTERVAL,
        )
    things: Sequence[Any] = predict_patients.by_patient(inputs, model[0], report) if of_patients else inputs
    run_batch(
        "predict",
        "planning" if dry_run else "predicting",
        things,
        one_patient if of_patients else one,
        report,
        fail_fast=fail_fast,
        what="patient" if of_patients else "slide",
        failures_in=failures_folder(output, many),
        ahead=ahead,
        dry_run=dry_run,
        kept=kept,
        where=output,
        then=None if of_patients else lambda: after_predict(slides, output, pages=pages, maps=geojson is not None),
    )
