"""Options of ``lrmil evaluate`` for numbers and survival, and which options are about which task."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from lrmil_cli.errors import InputError, UsageError

if TYPE_CHECKING:
    from lrmil_cli.files.manifest import Manifest
    from lrmil_cli.targets.task import Task

Horizon = Annotated[
    Optional[list[float]],
    typer.Option(
        "--horizon",
        metavar="T",
        help="Of survival: judge AUC and Brier score at this time, in the unit of the times; repeat for more.  "
        "[default: the times that the model's curves are known at; ours]",
        show_default=False,
    ),
]
Adjust = Annotated[
    Optional[str],
    typer.Option(
        "--adjust",
        metavar="COLUMN[,COLUMN]",
        help="Of survival: also give hazard ratios beside these columns of --slides, such as age,stage: numbers as "
        "numbers, words against the first of them. Patients of whom one is not known are left out and counted.",
    ),
]

#: Parameter -> how it is called, and the tasks that it is about.
ABOUT = {
    "positive": ("--positive", ("classification",)),
    "profile": ("--profile", ("classification",)),
    "classes": ("--class", ("classification",)),
    "class_map": ("--class-map", ("classification",)),
    "label": ("--label", ("classification", "regression")),
    "time": ("--time", ("survival",)),
    "event": ("--event", ("survival",)),
    "horizon": ("--horizon", ("survival",)),
    "adjust": ("--adjust", ("survival",)),
}


def check_task(task: Task, source: str, values: dict[str, Any]) -> None:
    """Options that say nothing of this task, or nothing at all.

    Args:
        source: whose predictions they are; values: parameters of the command.

    Raises:
        UsageError: there are some.
    """
    for name, (option, kinds) in ABOUT.items():
        if values[name] and task.kind not in kinds:
            raise UsageError(f"{option} is about {' and '.join(kinds)}; {source} predicts {task.name}")
    for at in values["horizon"] or []:
        if not (at > 0 and math.isfinite(at)):
            raise UsageError(f"--horizon {at:g}: give a time after the start, in the unit of {task.time}")


def check_columns(task: Task, manifest: Manifest) -> None:
    """The table of slides has the columns of a number, or of time and event.

    Raises:
        InputError: it has not.
    """
    wanted = {"regression": ("label",), "survival": ("time", "event")}.get(task.kind, ())
    for role in wanted:
        if role not in manifest.columns:
            raise InputError(
                f"{manifest.path}: no column {getattr(manifest.task, role)!r}, which the predictions are of; name the "
                f"one that is meant with --{role} COLUMN"
            )


def adjust_cells(manifest: Manifest | None, adjust: str | None) -> dict[str, dict[str, str]]:
    """Columns that hazard ratios are to be beside: name -> slide id -> cell.

    Raises:
        UsageError: no table of slides is given, or it has no such column.
    """
    from lrmil_cli.files.manifest_columns import bare

    names = [name.strip() for name in (adjust or "").split(",") if name.strip()]
    if names and manifest is None:
        raise UsageError(f"--adjust {adjust}: the table of slides says it; add --slides")
    out = {}
    for name in names:
        assert manifest is not None
        known = {bare(c): c for e in manifest for c in e.cells}
        if bare(name) not in known:
            there = ", ".join(known.values())
            raise UsageError(f"--adjust {name}: {manifest.path.name} has no such column (there: {there})")
        out[name] = {e.slide_id: e.cells.get(known[bare(name)], "") for e in manifest}
    return out
