"""How much work the steps of a run are, counted in encoder passes, and the time left by that (chain/README 4)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lrmil_cli.chain.plan import Settings
from lrmil_cli.chain.steps import Done, Step
from lrmil_cli.distill.settings import Stage1Settings, stage1_default
from lrmil_cli.files.tables import list_tables

#: Passes that a training step costs a tile: forward, and twice that backward.
TRAINING = 3


@dataclass(frozen=True)
class Tiles:
    """Tiles of a whole cohort on both sides."""

    slides: int
    lr: int
    hr: int


def stage1_options(settings: Settings) -> dict[str, Any]:
    """Options of ``distill-encoder`` that decide its cost, with their defaults."""
    usual = Stage1Settings()
    given = settings.of("distill-encoder")
    final = stage1_default("final_loss", given.get("student"))
    return {"epochs": usual.epochs, "batch-size": usual.batch_size, "layers": "lrmil", "final-loss": final, **given}


def regions(settings: Settings, tiles: Tiles) -> int:
    """LR tiles that stage 1 learns from: all, or so many a slide at most (the mean slide stands for each)."""
    return min(tiles.lr, tiles.slides * stage1_options(settings).get("max-tiles-per-slide", tiles.lr))


def targets(settings: Settings, tiles: Tiles) -> int:
    """HR tiles below :func:`regions`, of which stage 1 keeps the class tokens."""
    return round(tiles.hr * regions(settings, tiles) / tiles.lr)


def passes(settings: Settings, tiles: Tiles, steps: Sequence[Step], student: float = 1.0) -> list[float]:
    """Passes of the HR encoder that each step is worth, a tile each; a training step of stage 1 counts as
    :data:`TRAINING`.

    Epochs are counted in full (early stopping saves some), and all slides as training slides.

    Args:
        student: what a tile costs by the LR encoder, of what it costs by the HR encoder.
    """
    stage1 = stage1_options(settings)
    encoders = sum(step.name == "distill-encoder" for step in steps)
    epoch = regions(settings, tiles)
    epoch = min(epoch, stage1.get("steps-per-epoch", epoch) * stage1["batch-size"])
    # Targets are kept, so the first fold makes nearly all of them. The receipt's LR-only student has an encoder too.
    made = iter([targets(settings, tiles)] + [0] * encoders)
    lr = tiles.lr * student
    work = {"train-teacher": tiles.hr, "distill-student": lr * (encoders + 1), "predict": lr * encoders}
    return [
        stage1["epochs"] * epoch * TRAINING * student + next(made)
        if step.name == "distill-encoder"
        else float(work.get(step.name, 0))
        for step in steps
    ]


def count_tiles(folder: Path) -> Tiles:
    """The tiles that a run has found."""
    lr, hr = ([_rows(p) for p in list_tables(folder / f"tiles-{side}", "tiles").values()] for side in ("lr", "hr"))
    return Tiles(len(hr), sum(lr), sum(hr))


def _rows(path: Path) -> int:
    """Rows of a table of ``lrmil tile``, below its header and its line of columns."""
    return max(0, path.read_bytes().count(b"\n") - 2)


def seconds_left(steps: Sequence[Step], work: Sequence[float], done: Sequence[Done]) -> float | None:
    """Seconds of the steps that are left, by how fast those that are done were.

    A step is taken to go as fast as those of its name did (folds of stage 1), else as all that encoded.

    Args:
        work: passes of all steps.

    Returns:
        None where no step that encodes had anything to do so far.
    """
    timed = [(d.step.name, d.seconds, own) for d, own in zip(done, work) if d.worked and own]

    def rate(name: str) -> float:
        alike = [t for t in timed if t[0] == name] or timed
        return sum(seconds for _, seconds, _ in alike) / sum(own for _, _, own in alike)

    return sum(own * rate(step.name) for step, own in zip(steps[len(done) :], work[len(done) :])) if timed else None
