"""What a model says of a slide: the prediction itself, its JSON record, its attention tables. Nothing here needs torch."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from lrmil_cli.files.header import last_digest, make_header
from lrmil_cli.slides.region import Region
from lrmil_cli.slides.slide import Slide
from lrmil_cli.slides.tiles import TileSettings

#: Opened when it is the slide's turn, gives a function that is called with the number of tiles done.
Progress = Callable[[], AbstractContextManager[Callable[[int], None]]]


@dataclass
class Prediction:
    """Of one slide.

    Attributes:
        probabilities: [C], mean over folds; per_fold: [F, C].
        attention: [N], sums to 1; class_scores: [C, N] where the head has them; tiles: columns of the tile table they belong to.
        seconds: by phase.
        record: further entries of the prediction JSON, such as what was read where.
        tables: further tables by name, each the columns of an attention table, such as the HR tiles that were read (``hr``).
    """

    probabilities: np.ndarray
    per_fold: np.ndarray
    attention: np.ndarray
    class_scores: np.ndarray | None
    tiles: dict[str, np.ndarray]
    seconds: dict[str, float]
    record: dict[str, Any] = field(default_factory=dict)
    tables: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)


class Predictor(Protocol):
    """A model that is ready to predict slides, whatever its method and what runs it.

    Attributes:
        path, header: of the model file; classes: names in logit order; tiles: how a slide is tiled for it.
        settings: all that decides a prediction besides the slide, for digests.
        device: what it runs on, for the user; ahead: slides that may be begun before their turn.
    """

    path: str
    header: dict[str, Any]
    classes: tuple[str, ...]
    tiles: TileSettings
    settings: dict[str, Any]
    device: str
    ahead: int

    def plan(self, slide: Slide, region: Region | None) -> tuple[int, float]:
        """Tiles that would be read of a slide, and the seconds it would take.

        Raises:
            NoTissueError, InputError: as :meth:`predict`, as far as a few tiles show it.
        """

    def predict(self, slide: Slide, region: Region | None, progress: Progress) -> Generator[None, None, Prediction]:
        """Classify one slide, or a region of it. A generator for :func:`lrmil_cli.ahead.in_turn`.

        Raises:
            NoTissueError: no tile has enough tissue, or none lies in the region.
            InputError: the slide is damaged, or coarser than the model's mpp.
        """


def prediction_record(
    predictor: Predictor, p: Prediction, slide: Slide, history: list[dict[str, Any]], region: Region | None = None
) -> dict[str, Any]:
    """The prediction JSON of a slide."""
    best = int(p.probabilities.argmax())
    header = predictor.header
    return make_header(
        "prediction",
        slide=slide.describe(),
        settings={"tiles": predictor.tiles.as_json()},
        history=history,
        roi=region.about if region else None,
        model={
            "path": predictor.path,
            "digest": last_digest(header),
            "preset": header.get("preset"),
            "license": header.get("license"),
        },
        predicted=predictor.classes[best],
        probabilities={c: round(float(v), 9) for c, v in zip(predictor.classes, p.probabilities)},
        folds={c: [round(float(v), 6) for v in p.per_fold[:, n]] for n, c in enumerate(predictor.classes)},
        spread={c: round(float(p.per_fold[:, n].std()), 6) for n, c in enumerate(predictor.classes)},
        tiles=len(p.attention),
        seconds=p.seconds,
        device=predictor.device,
        **p.record,
    )


def attention_table(
    predictor: Predictor, p: Prediction, record: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Header and columns of the attention table."""
    rows = {k: p.tiles[k] for k in ("x", "y", "width", "height")}
    rows["attention"] = p.attention
    rows["percentile"] = percentiles(p.attention).round(4)
    if p.class_scores is not None:
        for name, scores in zip(predictor.classes, p.class_scores):
            rows[f"score_{name}"] = scores
    short = {
        k: record[k]
        for k in (
            "predicted",
            "probabilities",
            "tiles",
            "tiles_read",
            "answered_at",
            "uncertain",
            "bad_tiles",
            "kept_rate",
        )
        if k in record
    }
    header = make_header(
        "attention",
        slide=record["slide"],
        settings=record["settings"],
        history=record["history"],
        roi=record["roi"],
        prediction=short,
        attention_kind=predictor.header.get("attention_kind"),
        tables=sorted(p.tables),
    )
    return header, rows


def attention_rows(boxes: np.ndarray, attention: np.ndarray) -> dict[str, np.ndarray]:
    """Columns of a further attention table: ``boxes`` int64 [N, 4] in level-0 px, ``attention`` [N]."""
    return {
        **dict(zip(("x", "y", "width", "height"), boxes.T)),
        "attention": attention,
        "percentile": percentiles(attention).round(4),
    }


def ensemble(
    logits: np.ndarray, attention: np.ndarray, class_scores: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Fold heads together: probabilities [F, C] of each, mean attention [N] (sums to 1), mean class scores [C, N] or None.

    Args:
        logits: [F, C]; attention: [F, N]; class_scores: [F, C, N] or None.
    """
    scaled = np.exp(logits.astype(np.float64) - logits.max(1, keepdims=True))
    mean = attention.astype(np.float64).mean(0)
    return (
        scaled / scaled.sum(1, keepdims=True),
        mean / mean.sum(),
        None if class_scores is None else class_scores.astype(np.float64).mean(0),
    )


def expected_seconds(
    boxes: np.ndarray, batch: int, tissue: float, encode: Callable[[np.ndarray], Any]
) -> tuple[int, float]:
    """Tiles of a slide and the seconds they would take: two batches of tiles from all over the slide stand for the rest.

    Args:
        boxes: int64 [N, 4]; batch: tiles at a time; tissue: seconds spent already; encode: reads and encodes some boxes.
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


def percentiles(attention: np.ndarray) -> np.ndarray:
    """Rank of each tile within its slide as 0..100 (ties share their mean rank); 100 for a single tile."""
    n = len(attention)
    if n == 1:
        return np.full(1, 100.0)
    _, inverse, counts = np.unique(attention, return_inverse=True, return_counts=True)
    rank = np.cumsum(counts) - (counts + 1) / 2  # mean of the ranks, from 0, of each distinct value
    return rank[inverse] / (n - 1) * 100
