"""``lrmil calibrate``: model + predictions of slides with known labels -> the same model, calibrated on them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from lrmil_cli.commands import cohort, options
from lrmil_cli.commands.next_step import after_model
from lrmil_cli.commands.report import Report
from lrmil_cli.errors import UsageError

Model = Annotated[
    str,
    typer.Argument(metavar="MODEL.safetensors", help="Model made by distill-student, of this or an earlier version."),
]
Predictions = Annotated[
    str,
    typer.Argument(
        metavar="PREDICTIONS",
        help="What this model says of slides whose labels are known: the folder that predict wrote, of slides it was "
        "not trained on, or its out-of-fold predictions.csv.",
    ),
]
Output = Annotated[
    str,
    typer.Option("-o", "--output", metavar="NEW.safetensors", help="The calibrated model; its weights are the same."),
]
Slides = Annotated[
    Optional[str],
    typer.Option(
        "--slides",
        metavar="slides.csv",
        help="Labels and patients. Needed for the folder that predict wrote; tables bring their own.",
    ),
]


def calibrate(
    ctx: typer.Context,
    model: Model,
    predictions: Predictions,
    output: Output,
    slides: Slides = None,
    label: cohort.Label = None,
    drop_missing: cohort.DropMissing = False,
    classes: cohort.Classes = None,
    class_map: cohort.ClassMap = None,
    json: options.Json = False,
    overwrite: options.Overwrite = False,
) -> None:
    """Calibrate a model on slides that you name, such as those of your own patients.

    Each head gets its temperature, or slope and intercept, and the new model knows these patients for --coverage and
    --max-error. Nothing else changes; its header says by how many slides, when, and by which predictions.
    """
    from lrmil_cli.files.tensors import read_tensor_header
    from lrmil_cli.inference.recalibrate import describe, recalibrate

    report = Report(json)
    options.check_model(model)
    if not output.endswith(".safetensors"):
        raise UsageError(f"-o {output}: a model ends in .safetensors")
    if Path(output).resolve() == Path(model).resolve():
        raise UsageError(f"-o {output}: this is the model itself; give the new one another name")
    listed = cohort.read_cohort(report, slides, ctx.params, need_labels=False, need_slides=False) if slides else None
    found = recalibrate(model, predictions, Path(output), listed, overwrite=overwrite)
    about = found.header["calibration"]
    for line in describe(read_tensor_header(model, "model"), found.header):
        report.say(line)
    report.end(
        f"{output}: {'up to date' if found.there else 'written'}, calibrated by {about['slides']} slides of "
        f"{about['patients']} patients",
        after_model(output),
    )
    report.result(
        {
            "command": "calibrate",
            "status": "skipped" if found.there else "ok",
            "output": output,
            "error": None,
            "calibration": about,
        }
    )
