"""What predictions cost in tiles read, and what each further slide read at high resolution buys.

The latter of a cascade (``predict --escalate``); evaluation/README 7.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

#: Micrometres per pixel below which a model's own tiles are called HR.
FINE = 1.0


@dataclass(frozen=True)
class Reading:
    """Of the predictions of one model, slide by slide.

    Attributes:
        lr, hr, mid: tiles read of each magnification, int [n]; of a model of HR tiles alone these are HR.
        seconds: float [n]; uncertain: bool [n], answers that abstain.
        first, second: probabilities [n, C] at LR and at HR, NaN where the slide was not read there; None but for a
            cascade, as the next two.
        agree: bool [n], whether the fold heads agree at LR.
        confidence: float [n], calibrated probability of the LR answer.
    """

    lr: np.ndarray
    hr: np.ndarray
    seconds: np.ndarray
    uncertain: np.ndarray
    first: np.ndarray | None = None
    second: np.ndarray | None = None
    agree: np.ndarray | None = None
    confidence: np.ndarray | None = None
    mid: np.ndarray | None = None

    def take(self, index: np.ndarray) -> Reading:
        """The slides ``index``."""
        return replace(self, **{k: v[index] for k, v in vars(self).items() if v is not None})

    def in_order(self, classes: Sequence[int]) -> Reading:
        """The same with the classes in another order."""
        both = {"first": self.first, "second": self.second}
        return replace(self, **{k: v[:, classes] for k, v in both.items() if v is not None})


def read_reading(records: Sequence[dict[str, Any]], classes: Sequence[str]) -> Reading | None:
    """From prediction records; None where one does not say what was read.

    Without ``classes``, of numbers or survival, it holds no answers of a cascade.

    Raises:
        KeyError, TypeError, ValueError: damaged records.
    """
    if not all("tiles_read" in r for r in records):
        return None
    # A model of HR tiles alone calls its own tiles LR, as any other does.
    fine = np.array([float(r["settings"]["tiles"]["mpp"]) < FINE for r in records])
    lr, mid, hr = (
        np.array([int(r["tiles_read"].get(name, 0)) for r in records], np.int64) for name in ("lr", "mid", "hr")
    )
    own = Reading(
        np.where(fine, 0, lr),
        np.where(fine, lr, hr),
        np.array([sum(map(float, r["seconds"].values())) for r in records]),
        np.array([bool(r.get("uncertain")) for r in records]),
        mid=mid if mid.any() else None,
    )
    if not classes or not all("escalation" in r for r in records):
        return own

    def answers(side: str) -> np.ndarray:
        said = [(r["escalation"].get(side) or {}).get("probabilities") for r in records]
        return np.array([[np.nan if s is None else float(s[c]) for c in classes] for s in said])

    first = [r["escalation"]["lr"] for r in records]
    return replace(
        own,
        first=answers("lr"),
        second=answers("hr"),
        agree=np.array([bool(f["agree"]) for f in first]),
        confidence=np.array([float(f["confidence"]) for f in first]),
    )


@dataclass(frozen=True)
class Curve:
    """Accuracy as more slides are read at HR, the least sure first.

    Attributes:
        escalated: slides read at HR, 0 to K; hr_tiles: a slide, mean over all; accuracy: over all. [K + 1] each.
    """

    escalated: np.ndarray
    hr_tiles: np.ndarray
    accuracy: np.ndarray


def cascade_curve(labels: np.ndarray, reading: Reading) -> Curve | None:
    """The curve of a cascade by the slides that were read at HR; None without any.

    Slides come in the order of doubt that ``predict`` goes by: those whose heads disagree, then by calibrated
    probability. Each prefix is what a lower ``--confidence`` would have done.

    Args:
        labels: int [n].
    """
    if reading.first is None or reading.second is None or reading.agree is None or reading.confidence is None:
        return None
    read = np.flatnonzero(np.isfinite(reading.second).all(1))
    if not read.size:
        return None
    order = read[np.lexsort((reading.confidence[read], reading.agree[read]))]
    right_first = reading.first.argmax(1) == labels
    right_second = reading.second[order].argmax(1) == labels[order]
    change = np.concatenate([[0], np.cumsum(right_second.astype(int) - right_first[order].astype(int))])
    tiles = np.concatenate([[0], np.cumsum(reading.hr[order])])
    return Curve(np.arange(len(order) + 1), tiles / len(labels), (right_first.sum() + change) / len(labels))
