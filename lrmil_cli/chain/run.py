"""The chain of ``lrmil run`` on a cohort: settings kept, steps run, time left."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lrmil_cli.chain.plan import Settings, chain_steps
from lrmil_cli.chain.run_file import keep_settings
from lrmil_cli.chain.steps import Done, Run, Say, run_steps
from lrmil_cli.chain.work import count_tiles, passes, seconds_left
from lrmil_cli.files.manifest import Manifest
from lrmil_cli.training.folds import fold_names, make_folds


def count_folds(manifest: Manifest, settings: Settings) -> int:
    """Folds that ``train-teacher`` will make of a cohort.

    Raises:
        InputError, UsageError: as :func:`lrmil_cli.training.folds.make_folds`.
    """
    own = {"folds": 5, "seed": 0, **settings.of("train-teacher")}
    return len(fold_names(make_folds(manifest, int(str(own["folds"])), int(str(own["seed"])))))


def run_chain(
    of: str, settings: Settings, out: Path, folds: int, run: Run, say: Say, *, overwrite: bool = False
) -> dict[str, float]:
    """Run the chain into ``out``; what is up to date is left alone by each step.

    Args:
        of: the command that a user says, for messages; run: runs one command line and returns its exit code.

    Returns:
        seconds of the steps, by name.

    Raises:
        UsageError: the folder is of other settings. StepError: a step failed.
    """
    keep_settings(out, settings, overwrite)
    steps = chain_steps(settings, out, folds, overwrite)
    work: list[float] = []

    def left(done: Sequence[Done]) -> float | None:
        if not work and len(done) > 2 and (tiles := count_tiles(out)):  # both sides are tiled
            work.extend(passes(settings, tiles, steps))
        return seconds_left(steps, work, done) if work else None

    seconds: dict[str, float] = {}
    for done in run_steps(of, steps, run, say, left):
        seconds[done.step.name] = round(seconds.get(done.step.name, 0.0) + done.seconds, 2)
    return seconds
