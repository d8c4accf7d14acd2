"""The chain of ``lrmil run`` on a cohort: settings kept, steps run, time left."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lrmil_cli.chain.plan import LEFT, Settings, chain_steps
from lrmil_cli.chain.run_encoders import student_share
from lrmil_cli.chain.run_file import NAME, keep_settings
from lrmil_cli.chain.steps import Done, Run, Say, run_steps
from lrmil_cli.chain.work import count_tiles, passes, seconds_left
from lrmil_cli.errors import InputError, UsageError
from lrmil_cli.files.atomic import write_text
from lrmil_cli.files.locks import claimed
from lrmil_cli.files.manifest import Manifest
from lrmil_cli.files.manifest_rows import Entry
from lrmil_cli.files.tables import list_tables
from lrmil_cli.targets.task import Task
from lrmil_cli.training.folds import fold_names, make_folds

#: Steps after which all tiles are there.
TILED = 2
#: Columns of a table that may be empty.
OF_A_SLIDE = ("mpp", "mask", "roi", "min_tissue", "site", "organ", "stain")


def count_folds(manifest: Manifest, settings: Settings) -> int:
    """Folds that ``train-teacher`` will make of a cohort.

    Raises:
        InputError, UsageError: as :func:`lrmil_cli.training.folds.make_folds`.
    """
    own = {"folds": 5, "seed": 0, **settings.of("train-teacher")}
    return len(fold_names(make_folds(manifest, int(str(own["folds"])), int(str(own["seed"])))))


def keep_tiled(manifest: Manifest, out: Path, say: Say) -> None:
    """Write the table of the slides that have tiles on both sides: ids, labels, patients and folds as they were read.

    Raises:
        InputError: none has.
    """
    sides = [list_tables(out / name, "tiles").keys() for name in ("tiles-lr", "tiles-hr")]
    there = [e for e in manifest if all(e.slide_id in side for side in sides)]
    if not there:
        raise InputError(f"{manifest.path}: no slide could be tiled; see {out / 'tiles-lr' / 'failures.csv'}")
    if len(there) < len(manifest):
        say(
            f"{len(manifest) - len(there)} of {len(manifest)} slides cannot be tiled and are left out "
            f"(failures.csv in {out / 'tiles-lr'} and {out / 'tiles-hr'} says why)"
        )
    write_text(out / LEFT, as_table(there, manifest.task, patients=manifest.patients_from != "slides"))


def as_table(slides: Sequence[Entry], task: Task, *, patients: bool) -> str:
    """All that a table says of slides, with paths that hold anywhere; ``patients``: with a column of them."""
    rows = [
        {
            "slide": e.path.absolute(),
            "slide_id": e.slide_id,
            **_target(e, task),
            **{name: value for name in OF_A_SLIDE if (value := getattr(e, name)) is not None},
            **({"patient_id": e.patient_id} if patients else {}),
            **({"split": e.split} if e.split else {}),
            **e.folds,
        }
        for e in slides
    ]
    out = io.StringIO()
    columns = dict.fromkeys(name for row in rows for name in row)
    writer = csv.DictWriter(out, list(columns), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def _target(e: Entry, task: Task) -> dict[str, Any]:
    """What is learned of a slide, by the task's own columns."""
    if task.kind == "survival":
        return {task.time: e.time, task.event: e.event}
    return {"label" if task.classes else task.label: e.label or ""}


def run_chain(
    of: str, settings: Settings, out: Path, manifest: Manifest, run: Run, say: Say, *, overwrite: bool = False
) -> dict[str, float]:
    """Run the chain into ``out``, which is this process's alone so long; each step leaves alone what is up to date.

    Args:
        of: the command that a user says, for messages; run: runs one command line and returns its exit code.

    Returns:
        seconds of the steps, by name.

    Raises:
        UsageError: the folder is of other settings, or another run is at work in it. StepError: a step failed.
    """
    with claimed(out / NAME) as ours:
        if not ours:
            raise UsageError(
                f"another lrmil is at work in {out}; wait until it is done (its log.txt says how far it is), or choose "
                "another --output"
            )
        keep_settings(out, settings, overwrite)
        return _run_steps(of, settings, out, manifest, run, say, overwrite)


def _run_steps(
    of: str, settings: Settings, out: Path, manifest: Manifest, run: Run, say: Say, overwrite: bool
) -> dict[str, float]:
    """What :func:`run_chain` does in a folder of its own."""
    steps = chain_steps(settings, out, count_folds(manifest, settings), overwrite)
    work: list[float] = []

    def before(done: Sequence[Done]) -> float | None:
        if len(done) == TILED:
            work.extend(passes(settings, count_tiles(out), steps, student_share(settings)))
            if settings.skip_slides:
                keep_tiled(manifest, out, say)
        return seconds_left(steps, work, done) if work else None

    seconds: dict[str, float] = {}
    for done in run_steps(of, steps, run, say, before):
        seconds[done.step.name] = round(seconds.get(done.step.name, 0.0) + done.seconds, 2)
    return seconds
