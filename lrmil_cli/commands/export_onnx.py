"""``lrmil export-onnx``: model -> ONNX graphs that predict without torch."""

from __future__ import annotations

from typing import Annotated, Any, Optional

import typer

from lrmil_cli.commands import options
from lrmil_cli.commands.inputs import expand_slides
from lrmil_cli.commands.next_step import after_model
from lrmil_cli.commands.report import Report
from lrmil_cli.errors import UsageError

Model = Annotated[
    str,
    typer.Argument(metavar="MODEL.safetensors", help="Model made by distill-student."),
]
Int8 = Annotated[
    bool,
    typer.Option(
        "--int8",
        help="Also write MODEL.int8.onnx: about half as fast again on a CPU, with slightly other numbers; "
        "predict --runtime onnx-int8 uses it.",
    ),
]
CheckSlides = Annotated[
    Optional[list[str]],
    typer.Option(
        "--check",
        metavar="SLIDE|DIR|slides.csv",
        help="With --int8: slides to measure its effect on; it is shown, and kept in the graph. May be repeated.",
    ),
]


def export_onnx(
    model: Model,
    int8: Int8 = False,
    check: CheckSlides = None,
    json: options.Json = False,
    overwrite: options.Overwrite = False,
) -> None:
    """Write a model as ONNX graphs, for a CPU without torch.

    Makes MODEL.onnx (encoder) and MODEL.heads.onnx beside the model, as distill-student does, and compares both with
    torch; --int8 a smaller encoder. predict then starts in a second: it finds them beside the model, or takes
    MODEL.onnx by itself. The heads transmil, dtfd and dmin have no such form and are refused.
    """
    from lrmil_cli.inference.onnx_files import export_files

    report = Report(json)
    if not model.endswith(".safetensors"):
        raise UsageError(f"{model}: give the model's .safetensors")
    if check and not int8:
        raise UsageError("--check measures what int8 changes; give --int8 too")
    slides = expand_slides(check) if check else []
    made = export_files(
        model, int8=int8, slides=[(s.path, s.slide_id, s.mpp) for s in slides], overwrite=overwrite, say=report.say
    )
    for path, there in made.files.items():
        report.say(f"{path}: {'up to date' if there else 'written'}")
    report.end(describe_effect(made.effect) if made.effect else "", after_model(model))
    report.result(
        {
            "command": "export-onnx",
            "status": "skipped" if all(made.files.values()) else "ok",
            "output": str(next(iter(made.files))),
            "files": [str(p) for p in made.files],
            "error": None,
            "int8": made.effect,
        }
    )


def int8_note(effect: dict[str, Any] | None, model: str) -> str:
    """What a user of the int8 graph is told of it."""
    if effect:
        return describe_effect(effect)
    return (
        f"{model}: nobody has measured what int8 changes in this model; "
        "`lrmil export-onnx MODEL.safetensors --int8 --check SLIDES` does"
    )


def describe_effect(effect: dict[str, Any]) -> str:
    """What int8 changes, in two lines."""
    return (
        f"int8 on {effect['slides']} slide(s), {effect['tiles']} tiles: cosine of the features to fp32, each centred, "
        f"{effect['cosine_median']:.4f} in the median, {effect['cosine_worst']:.4f} at worst;\n"
        f"probabilities change by {effect['probability_change']:.4f} at most, "
        f"{effect['labels_changed']} predicted label(s) change"
    )
