"""What predictions cost in tiles read, and what each further slide read at high resolution buys (cascade of ``predict --escalate``)."""

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
        lr, hr, mid: tiles read of each magnification, int [n]; of a model of HR tiles alone these are HR; seconds: float [n]; uncertain: bool [n], answers that abstain.
        first, second: probabilities [n, C] at LR and at HR, NaN where the slide was not read there; None but for a cascade.
        agree: bool [n], whether the fold heads agree at LR; confidence: float [n], calibrated probability of the LR answer.
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
        return Reading(*(None if v is None else v[index] for v in vars(self).values()))

    def in_order(self, classes: Sequence[int]) -> Reading:
        """The same with the classes in another order."""
        turned = {k: None if v is None else v[:, classes] for k, v in (("first", self.first), ("second", self.second))}
        return Reading(**{**vars(self), **turned})


def read_reading(records: Sequence[dict[str, Any]], classes: Sequence[str]) -> Reading | None:
    """From prediction records; None where one does not say what was read.

    Raises:
        KeyError, TypeError, ValueError: damaged records.
    """
    if not all("tiles_read" in r for r in records):
        return None
    # A model of HR tiles alone calls its own tiles LR, as any other does.
    fine = np.array([float(r["settings"]["tiles"]["mpp"]) < FINE for r in records])
    count = lambda name: np.array([int(r["tiles_read"].get(name, 0)) for r in records], np.int64)  # noqa: E731
    lr, hr, mid = count("lr"), count("hr"), count("mid")
    own = Reading(
        np.where(fine, 0, lr),
        np.where(fine, lr, hr),
        np.array([sum(map(float, r["seconds"].values())) for r in records]),
        np.array([bool(r.get("uncertain")) for r in records]),
        mid=mid if mid.any() else None,
    )
    if not all("escalation" in r for r in records):
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
    """Accuracy as more slides are read at HR, the least sure first: ``escalated`` slides, ``hr_tiles`` a slide (mean over all), ``accuracy``, [K + 1] each."""

    escalated: np.ndarray
    hr_tiles: np.ndarray
    accuracy: np.ndarray


def cascade_curve(labels: np.ndarray, reading: Reading) -> Curve | None:
    """The curve of a cascade by the slides that were read at HR; None without any.

    Slides come in the order of doubt that ``predict`` goes by: those whose heads disagree, then by calibrated probability. Each
    prefix is what a lower ``--confidence`` would have done.

    Args:
        labels: int [n].
    """
    if reading.second is None:
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


def curve_picture(models: Sequence[tuple[str, Curve]]) -> bytes:
    """PNG of accuracy against HR tiles a slide."""
    import io

    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from lrmil_cli.evaluation.plots import short_name, style

    figure = Figure(figsize=(7.0, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    ax = figure.subplots()
    for n, (name, curve) in enumerate(models):
        ax.plot(
            curve.hr_tiles,
            curve.accuracy,
            drawstyle="steps-post",
            lw=1.8,
            marker="o",
            ms=3.5,
            label=short_name(name),
            **style(n),
        )
    ax.set(xlabel="HR tiles read, mean over all slides", ylabel="accuracy", ylim=(None, 1.02))
    ax.set_yticks([t for t in ax.get_yticks() if ax.get_ylim()[0] <= t <= 1])  # room above, but no accuracy beyond 1
    ax.set_title("Reading the least sure slides at high resolution", fontsize=11)
    ax.set_xlim(left=-0.02 * max(1.0, max(c.hr_tiles[-1] for _, c in models)))
    ax.grid(alpha=0.25)
    if len(models) > 1:
        ax.legend(fontsize=8)
    sink = io.BytesIO()
    figure.savefig(sink, format="png", dpi=130)
    return sink.getvalue()
