"""The table of slides in commands that need labels: its options, and reading it aloud."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from lrmil_cli.errors import UsageError

if TYPE_CHECKING:
    from lrmil_cli.commands.report import Report
    from lrmil_cli.files.manifest import Manifest
    from lrmil_cli.files.manifest_rows import Labels
    from lrmil_cli.targets.task import Task

Label = Annotated[
    Optional[str],
    typer.Option(
        "--label",
        metavar="COLUMN",
        help="Column of the labels: classes, or the number of --task regression.  [default: label]",
        show_default=False,
    ),
]
TaskName = Annotated[
    Optional[str],
    typer.Option(
        "--task",
        metavar="classification|regression|survival",
        help="What is learned: classes, a number, or the time to an event (--time, --event).  "
        "[default: classes, refused where the labels look like a number; paper]",
        show_default=False,
    ),
]
Loss = Annotated[
    Optional[str],
    typer.Option(
        "--loss",
        metavar="huber|mse|nll|cox",
        help="Of regression: huber, or mse. Of survival: nll, hazards of intervals of time, or cox, the partial "
        "likelihood of risk sets.  [default: huber, nll; ours]",
        show_default=False,
    ),
]
Time = Annotated[
    Optional[str],
    typer.Option(
        "--time",
        metavar="COLUMN",
        help="Column of the times of --task survival, in any unit.  [default: time]",
        show_default=False,
    ),
]
Event = Annotated[
    Optional[str],
    typer.Option(
        "--event",
        metavar="COLUMN",
        help="Column of the events: 1 it happened, 0 censored.  [default: event]",
        show_default=False,
    ),
]
Intervals = Annotated[
    Optional[int],
    typer.Option(
        "--intervals",
        help="Intervals of time with as many events each, at whose borders survival is told; fewer where times are "
        "tied.  [default: 4; ours: each should hold several events]",
        show_default=False,
    ),
]
RiskSet = Annotated[
    Optional[int],
    typer.Option(
        "--risk-set",
        metavar="N",
        help="Slides of a risk set of --loss cox, whose tiles are in memory together.  "
        "[default: 32; ours: what fits the memory of a small GPU]",
        show_default=False,
    ),
]
DropMissing = Annotated[
    bool,
    typer.Option("--drop-missing", help="Leave out slides without label (empty, NA, unknown, ...), and say how many."),
]
Classes = Annotated[
    Optional[list[str]],
    typer.Option(
        "--class",
        metavar="NAME",
        help="A class that is really called so, where its name looks like a missing value (None, NA, -). "
        "May be repeated.",
        show_default=False,
    ),
]
ClassMap = Annotated[
    Optional[list[str]],
    typer.Option(
        "--class-map",
        metavar="OLD=NEW",
        help="Rename a class, or make one of two spellings: --class-map msi=MSI. May be repeated.",
        show_default=False,
    ),
]


BagName = Annotated[
    Optional[str],
    typer.Option(
        "--bag",
        help="What is learned from, and answered, as one: the tiles of a slide, or those of all slides of a patient "
        "(column patient_id), which then have one label.  [default: slide, or what the teacher's were; paper]",
        show_default=False,
    ),
]


#: Options that a task has besides its loss, by their parameters.
OF_TASK = {"classification": (), "regression": ("label",), "survival": ("time", "event", "intervals", "risk_set")}

BY_SITE = ("preserve", "leave-one-out")
BySite = Annotated[
    Optional[str],
    typer.Option(
        "--by-site",
        help="Draw folds so that no site (column `site`, or TCGA ids) is on both sides of a split: preserve (as many "
        "as --folds), or leave-one-out (each site is tested once).  [default: sites are not looked at; paper]",
        show_default=False,
    ),
]


def read_cohort(
    report: Report,
    path: str,
    values: dict[str, Any],
    *,
    need_labels: bool = True,
    need_slides: bool = True,
    like: Task | None = None,
) -> Manifest:
    """Read a manifest and say what was understood.

    Args:
        values: parameters of the command, with ``label, drop_missing, classes, class_map``, and ``by_site`` if it has
            that; options of the task where it has those.
        like: the task of the teacher, which is taken over where no option says another.

    Raises:
        UsageError: a --class-map that is none. InputError: as :func:`lrmil_cli.files.manifest.read_manifest`.
    """
    from lrmil_cli.files.manifest import read_manifest

    labels = labels_of(values, like)
    by_site = values.get("by_site")
    if by_site not in (None, *BY_SITE):
        raise UsageError(f"--by-site {by_site}: choose one of {', '.join(BY_SITE)}")
    manifest = read_manifest(path, need_labels=need_labels, need_slides=need_slides, labels=labels)
    manifest = replace(manifest, by_site=by_site)
    report.say(f"{path}: {manifest.understood()}")
    if need_labels and manifest.unknown_patients:
        report.warn(f"{path}: {manifest.patients_warning()}")
    return manifest


def bag_asked(values: dict[str, Any]) -> str:
    """What a bag is to be: as ``--bag`` says, else as those of the teacher, else a slide.

    Raises:
        UsageError: no such bag.
    """
    from lrmil_cli.targets.task import BAGS, SLIDE, bag_of
    from lrmil_cli.training.teacher import read_teacher_header

    asked = values["bag"]
    if asked not in (None, *BAGS):
        raise UsageError(f"--bag {asked}: choose {' or '.join(BAGS)}")
    teacher = values.get("teacher")
    return asked or (bag_of(read_teacher_header(teacher)) if teacher else SLIDE)


def labels_of(values: dict[str, Any], like: Task | None = None) -> Labels:
    """How labels are taken from a table, as the options of a command say.

    Args:
        like: as of :func:`read_cohort`.

    Raises:
        UsageError: a --class-map that is none, or a task that is none.
    """
    from lrmil_cli.files.manifest_rows import Labels

    renamed = {}
    for pair in values["class_map"] or []:
        old, equals, new = pair.partition("=")
        if not equals or not new.strip():
            raise UsageError(f"--class-map {pair}: give OLD=NEW, the name in the table and the name of the class")
        renamed[old.strip()] = new.strip()
    asked = values.get("task") is not None
    task = task_asked(values, like)
    column = task.label if task.kind == "regression" else values["label"]
    return Labels(column, renamed, values["classes"] or (), values["drop_missing"], task, asked)


def task_asked(values: dict[str, Any], like: Task | None = None) -> Task:
    """The task that options name, ``like`` another where they name none or the same.

    Raises:
        UsageError: no such task or loss, or an option of another task.
    """
    from lrmil_cli.targets.task import make_task

    named = {n: values.get(n) for n in ("label", "time", "event", "intervals", "risk_set")}
    kind = values.get("task") or (like.kind if like else None)
    if like is not None and kind == like.kind:
        given = {n: v for n, v in named.items() if v is not None and n in OF_TASK[like.kind]}
        task = replace(like, **given)
        task = task if values.get("loss") is None else replace(task, loss=values["loss"])
        return make_task(task.kind, task.loss or None, **{n: getattr(task, n) for n in named})
    task = make_task(kind, values.get("loss"), **(named if kind == "regression" else named | {"label": None}))
    for name in ("time", "event", "intervals", "risk_set"):
        if named[name] is not None and name not in OF_TASK[task.kind]:
            raise UsageError(f"--{name.replace('_', '-')} belongs to --task survival")
    if named["risk_set"] is not None and task.loss != "cox":
        raise UsageError("--risk-set belongs to --loss cox")
    return task


def asks_for_labels(values: dict[str, Any]) -> bool:
    """Whether any of these options is given."""
    named = ("label", "drop_missing", "classes", "class_map", "task", "time", "event")
    return any(values.get(name) for name in named)
