"""Options of ``lrmil evaluate`` for an outside cohort and for papers, and the pictures of what a model got wrong."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from lrmil_cli.errors import InputError, LrmilError, UsageError

if TYPE_CHECKING:
    from lrmil_cli.evaluation.external import External
    from lrmil_cli.evaluation.predictions import Predictions
    from lrmil_cli.files.manifest import Manifest

PROFILES = ("external",)
INTERVALS = ("wilson", "clopper-pearson")
CHECKLISTS = ("tripod-ai", "stard-ai", "claim", "remark")

Profile = Annotated[
    Optional[str],
    typer.Option(
        "--profile",
        help="external: judge the folder that predict wrote as a validation on patients of elsewhere: operating point, "
        "decision curve, flow of participants, worst errors. Needs --slides.",
    ),
]
Threshold = Annotated[
    Optional[str],
    typer.Option(
        "--threshold",
        metavar="P|youden|sensitivity=P",
        help="With --profile external, of two classes: positive from this probability on, given, or chosen on the "
        "training record in the model file.  [default: 0.5; ours]",
    ),
]
IntervalOf = Annotated[
    Optional[str],
    typer.Option(
        "--interval",
        help="With --profile external: intervals of sensitivity and the like, wilson or clopper-pearson.  "
        "[default: wilson; ours: as narrow as it says, on average]",
    ),
]
Checklist = Annotated[
    Optional[str],
    typer.Option(
        "--checklist",
        help="Also write checklist.NAME.md: item numbers of tripod-ai, stard-ai, claim or remark, answered from the "
        "record, or left to you.",
    ),
]


def check_options(profile: str | None, threshold: str | None, interval: str | None, checklist: str | None) -> None:
    """Options that would do nothing, or that are none.

    Raises:
        UsageError: there are some.
    """
    for option, value, known in (
        ("--profile", profile, PROFILES),
        ("--interval", interval, INTERVALS),
        ("--checklist", checklist, CHECKLISTS),
    ):
        if value is not None and value not in known:
            raise UsageError(f"{option} {value}: choose {'one of ' if len(known) > 1 else ''}{', '.join(known)}")
    for option, value in (("--threshold", threshold), ("--interval", interval)):
        if value is not None and profile is None:
            raise UsageError(f"{option} is about the operating point of --profile external; give that too")


def judge(
    models: Sequence[Predictions],
    manifest: Manifest | None,
    level: str,
    positive: int | None,
    threshold: str | None,
    interval: str | None,
) -> list[External]:
    """What the external profile adds, of each model."""
    from lrmil_cli.evaluation.external import judge_externally

    if len(models[0].classes) == 2 and positive is None:
        positive = 1
    return [
        judge_externally(
            m, manifest, level=level, positive=positive, rule=threshold or "0.5", method=interval or "wilson"
        )
        for m in models
    ]


def pictures_of(m: Predictions, found: External, manifest: Manifest) -> tuple[dict[str, bytes], list[str]]:
    """Slide id -> PNG of the slide beside its attention, of the worst errors, and why there is none of others."""
    from lrmil_cli.pages.attention_map import attention_picture, side_by_side, view_of_slide, view_without_slide
    from lrmil_cli.pages.results import read_result
    from lrmil_cli.qupath.colours import multiples
    from lrmil_cli.slides.slide import open_slide

    folder = Path(m.source) if Path(m.source).is_dir() else Path(m.source).parent
    paths = {e.slide_id: e.path for e in manifest}
    out: dict[str, bytes] = {}
    missing = []
    for slide_id in (e["slide_id"] for e in found.errors):
        try:
            result = read_result(folder, slide_id)
        except InputError as e:
            missing.append(str(e))
            continue
        here = next((p for p in (paths[slide_id], Path(result.slide["path"])) if p.is_file()), None)
        try:
            if here is None:
                raise InputError(f"{paths[slide_id]}: the slide is not there")
            with open_slide(here, slide_id=slide_id, slide_mpp=result.slide["mpp"]) as slide:
                view = view_of_slide(slide, result.record)
        except LrmilError as e:
            missing.append(f"{e}; shown without its pixels")
            view = view_without_slide(result.slide, result.rows)
        painted = attention_picture(view, result.rows, multiples(result.rows["attention"].to_numpy(float)))
        out[slide_id] = side_by_side(view.image, painted)
    return out, missing
