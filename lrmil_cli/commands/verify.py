"""``lrmil verify``: does a model compute on this machine what it computed where it was made."""

from __future__ import annotations

from typing import Annotated

import typer

from lrmil_cli.commands import options
from lrmil_cli.commands.report import Report
from lrmil_cli.errors import InputError

Model = Annotated[
    str,
    typer.Argument(metavar="MODEL", help="Model made by distill-student, or a graph of one with the model beside it."),
]
Runtime = Annotated[
    str,
    typer.Option("--runtime", help="auto, torch, onnx or onnx-int8; auto as predict would take it here."),
]


def verify(
    model: Model,
    runtime: Runtime = "auto",
    device: options.Device = "auto",
    json: options.Json = False,
) -> None:
    """Replay the tiles that a model file holds, and compare with what the model said where it was made.

    Embeddings, attention and probabilities (outputs, of a model for numbers or survival) must agree within 1e-5; of
    int8 within twice what its graph was made with.
    Ends with 0, or with 3 where the model does not compute here what it computed there.
    """
    from lrmil_cli.inference import verify as arithmetic

    report = Report(json)
    found = arithmetic.verify(model, runtime=runtime, device=device, warn=report.warn)
    report.result(
        {
            "command": "verify",
            "model": model,
            "status": "failed" if found.wrong else "ok",
            "output": None,
            "error": None,
            "runtime": found.runtime,
            "device": found.device,
            "tiles": found.tiles,
            "of": found.of,
            "found": {k: None if v != v else v for k, v in found.found.items()},
            "allowed": found.allowed,
        }
    )
    where = f"{found.runtime} on {found.device}, {found.tiles} tiles ({found.of})"
    if found.wrong:
        raise InputError(
            f"{model}: differs from where it was made in {', '.join(found.wrong)}: {found.text()}; {where}"
        )
    report.say(f"{model}: computes here what it computed where it was made: {found.text()}; {where}")
