"""What a predictor is, what it says of a slide, and the arithmetic that all predictors share; without torch."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from lrmil_cli.evaluation.unlike_training import training_features, unlike_text
from lrmil_cli.slides.region import Region
from lrmil_cli.slides.slide import Slide
from lrmil_cli.slides.tiles import TileSettings
from lrmil_cli.targets.outputs import Outputs, said
from lrmil_cli.targets.task import PATIENT, bag_of, task_of


@dataclass
class Prediction:
    """Of one slide.

    Attributes:
        raw: probabilities [F, C] of the fold heads as they are, or of another task what they say [F, K];
            per_fold: the same calibrated (inference/README 2).
        attention: [N], sums to 1; class_scores: [C, N] where the head has them.
        tiles: columns of the tile table they belong to.
        seconds: by phase.
        record: further entries of the prediction JSON, such as what was read where.
        tables: further tables by name, each the columns of an attention table, such as the HR tiles that were read
            (``hr``).
        outputs: how what heads say is read, of a task that has them, where it is not the model's own heads that spoke.
    """

    raw: np.ndarray
    per_fold: np.ndarray
    attention: np.ndarray
    class_scores: np.ndarray | None
    tiles: dict[str, np.ndarray]
    seconds: dict[str, float]
    record: dict[str, Any] = field(default_factory=dict)
    tables: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)
    outputs: Sequence[Outputs] | None = None

    @property
    def probabilities(self) -> np.ndarray:
        """The answer of classes, [C]: the mean over the calibrated heads."""
        return self.per_fold.mean(0)


class Predictor(Protocol):
    """A model that is ready to predict slides, whatever its method and what runs it (inference/README 1)."""

    @property
    def path(self) -> str:
        """Of the model file, as the user named it."""

    @property
    def header(self) -> dict[str, Any]:
        """Of the model file."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names in logit order."""

    @property
    def tiles(self) -> TileSettings:
        """How a slide is tiled for it."""

    @property
    def settings(self) -> dict[str, Any]:
        """All that decides a prediction besides the slide, for digests."""

    @property
    def device(self) -> str:
        """What it runs on, for the user."""

    @property
    def ahead(self) -> int:
        """Slides that may be begun before their turn."""

    def plan(self, slide: Slide, region: Region | None) -> tuple[int, float]:
        """Tiles that would be read of a slide, and the seconds it would take.

        Raises:
            NoTissueError, InputError: as :meth:`predict`, as far as a few tiles show it.
        """

    def predict(self, slide: Slide, region: Region | None) -> Generator[None, None, Prediction]:
        """Classify one slide, or a region of it. A generator for :func:`lrmil_cli.ahead.in_turn`.

        Raises:
            NoTissueError: no tile has enough tissue, or none lies in the region.
            InputError: the slide is damaged, or coarser than the model's mpp.
        """


def said_by_heads(header: dict[str, Any], logits: np.ndarray) -> np.ndarray:
    """What the heads of a model say: probabilities [F, C], or of another task :func:`lrmil_cli.targets.outputs.said`
    [F, K], by their logits."""
    task = task_of(header)
    if task.classes:
        scaled = np.exp(logits.astype(np.float64) - logits.max(1, keepdims=True))
        return scaled / scaled.sum(1, keepdims=True)
    return np.stack([said(task, o, z) for o, z in zip(header["outputs"], logits.astype(np.float64), strict=True)])


def ensemble(
    header: dict[str, Any], logits: np.ndarray, attention: np.ndarray, class_scores: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Fold heads together (inference/README 2).

    Args:
        header: of the model; logits: [F, C]; attention: [F, N]; class_scores: [F, C, N] or None.

    Returns:
        what each head says [F, C]; attention [N], the mean, with sum 1; class scores [C, N], the mean, or None.
    """
    mean = attention.astype(np.float64).mean(0)
    return (
        said_by_heads(header, logits),
        mean / mean.sum(),
        None if class_scores is None else class_scores.astype(np.float64).mean(0),
    )


def unlike_record(header: dict[str, Any], path: str, features: np.ndarray) -> dict[str, Any]:
    """The entry ``unlike_training`` of a record, from the LR features [N, D] of a slide, or of a patient (``of``) by
    all slides; none where the model does not say what its training slides look like.

    Raises:
        InputError: the header is damaged.
    """
    known = training_features(header, path)
    if known is None:
        return {}
    of = {"of": PATIENT} if bag_of(header) == PATIENT else {}
    return {"unlike_training": known.judge(features) | of}


def reasons_to_abstain(record: dict[str, Any], reason: str | None) -> str | None:
    """``reason``, and besides it that the slide is unlike the training slides; None where neither holds."""
    return "; ".join(text for text in (reason, unlike_text(record.get("unlike_training"))) if text) or None


def expected_seconds(
    boxes: np.ndarray, batch: int, tissue: float, encode: Callable[[np.ndarray], Any]
) -> tuple[int, float]:
    """Tiles of a slide and the seconds they would take: two batches from all over the slide stand for the rest.

    Args:
        boxes: int64 [N, 4]; batch: tiles at a time; tissue: seconds spent already.
        encode: reads and encodes some boxes.
    """
    some = boxes[np.unique(np.linspace(0, len(boxes) - 1, 2 * batch).astype(int))]
    rate = 0.0
    # The first batch of a run sets things up; the second, where there is one, is the better measure.
    for part in (some[:batch], some[batch:]):
        if len(part):
            clock = time.perf_counter()
            encode(part)
            rate = (time.perf_counter() - clock) / len(part)
    return len(boxes), tissue + rate * len(boxes)
