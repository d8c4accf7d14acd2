"""Pictures of an evaluation: ROC, calibration and what is taken for what in one; accuracy against tiles read."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np

from lrmil_cli.evaluation.calibration import answers, reliability
from lrmil_cli.evaluation.metrics import auc, confusion, one_auc, show
from lrmil_cli.evaluation.operating_point import GRID
from lrmil_cli.evaluation.scores import Cases, macro_roc, roc, roc_band
from lrmil_cli.evaluation.tiles_read import Curve

#: Okabe and Ito: told apart by the colour-blind; the pale yellow is left out.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES = ("-", "--", "-.", ":")
NAME_LENGTH = 28
#: Resamples that the bands around ROC curves are made of, at most.
BAND_DRAWS = 500


def evaluation_picture(
    models: Sequence[tuple[str, Cases]],
    classes: Sequence[str],
    positive: int | None = None,
    *,
    draws: int = 0,
    seed: int = 0,
) -> bytes:
    """PNG of one or several models: ROC and calibration above, a confusion matrix each below.

    Args:
        models: (name, cases).
        positive: for two classes, the one that ROC and calibration are about (default: the second).
        draws, seed: of the bands around ROC curves; 0 for none.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    positive = (1 if positive is None else positive) if len(classes) == 2 else None
    side = 3.4 if len(classes) <= 4 else 4.4
    if len(models) == 1:
        figure = Figure(figsize=(9.0 + side, 4.4), layout="constrained")
        left, middle, right = figure.subfigures(1, 3, squeeze=False, width_ratios=[4.4, 4.6, side])[0]
        matrices = [right.subplots()]
    else:
        across = min(3, len(models))
        down = -(-len(models) // across)
        figure = Figure(figsize=(10.8, 5.2 + side * down), layout="constrained")
        top, bottom = figure.subfigures(2, 1, squeeze=False, height_ratios=[5.2, side * down])[:, 0]
        left, middle = top.subfigures(1, 2, squeeze=False)[0]
        bottom.suptitle("Confusion: cases, and their share of the label", fontsize=11)
        matrices = bottom.subplots(down, across, squeeze=False).ravel()
    FigureCanvasAgg(figure)
    layout = figure.get_layout_engine()
    assert isinstance(layout, ConstrainedLayoutEngine)  # as asked for above
    layout.set(w_pad=0.08, h_pad=0.06)
    _draw_roc(left.subplots(), models, classes, positive, draws, seed)
    _draw_calibration(middle, models, classes, positive)
    for ax, (name, cases) in zip(matrices, models):
        _draw_confusion(ax, short_name(name) if len(models) > 1 else "Confusion: cases (% of label)", cases, classes)
    for ax in matrices[len(models) :]:
        ax.set_axis_off()
    sink = io.BytesIO()
    figure.savefig(sink, format="png", dpi=130)
    return sink.getvalue()


def style(n: int) -> dict[str, Any]:
    """Colour and dashes of the n-th line of a plot."""
    return {"color": COLOURS[n % len(COLOURS)], "ls": DASHES[n // len(COLOURS) % len(DASHES)]}


def short_name(name: str) -> str:
    """A name as it fits a legend."""
    name = name.replace("$", r"\$")  # matplotlib would set it as a formula
    return name if len(name) <= NAME_LENGTH else name[: NAME_LENGTH - 3] + "..."


#: What the legend calls a curve, its points (None where it is undefined), its area.
_Roc = tuple[str, "tuple[np.ndarray, np.ndarray] | None", "float | None"]


def _roc_of(name: str, cases: Cases, which: int) -> _Roc:
    """One class against the rest."""
    hit, scores = cases.labels == which, cases.probabilities[:, which]
    return name, roc(hit, scores), one_auc(hit, scores)


def _macro_roc_of(name: str, cases: Cases) -> _Roc:
    return name, macro_roc(cases.labels, cases.probabilities), auc(cases.labels, cases.probabilities)


def _draw_roc(
    ax: Any, models: Sequence[tuple[str, Cases]], classes: Sequence[str], positive: int | None, draws: int, seed: int
) -> None:
    if positive is not None:
        title = f"ROC, {short_name(classes[positive])} against {short_name(classes[1 - positive])}"
        curves = [_roc_of(name, c, positive) for name, c in models]
    elif len(models) == 1:
        title = "ROC, each class against the rest"
        cases = models[0][1]
        curves = [_roc_of(name, cases, n) for n, name in enumerate(classes)]
        curves.append(_macro_roc_of("mean of the classes", cases))
    else:
        title = "ROC, mean over the classes (one against the rest)"
        curves = [_macro_roc_of(name, c) for name, c in models]
    ax.set_title(title, fontsize=11)
    ax.plot([0, 1], [0, 1], color="#888888", lw=0.8, ls=(0, (2, 3)))
    for n, (name, points, area) in enumerate(curves):
        own = {"color": "#000000", "ls": "--"} if name == "mean of the classes" else style(n)
        # An undefined curve keeps its line in the legend, so that nobody looks for it in vain.
        false, true = points if points is not None else ([], [])
        ax.plot(false, true, lw=1.8, label=f"{short_name(name)}: AUC {show(area)}", **own)
    if draws and (positive is not None or len(models) > 1):
        which = range(len(classes)) if positive is None else [positive]
        for n, (_, cases) in enumerate(models):
            band = roc_band(cases, which, draws=min(draws, BAND_DRAWS), seed=seed)
            if band is not None:
                ax.fill_between(*band, color=style(n)["color"], alpha=0.12, lw=0)
        ax.plot([], [], color="#888888", alpha=0.3, lw=7, label="95 % of resampled patients")
    ax.set(xlabel="false positive rate", ylabel="true positive rate")
    ax.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
    ax.grid(alpha=0.25)
    ax.legend(loc="lower right", fontsize=8)


def _draw_calibration(
    figure: Any, models: Sequence[tuple[str, Cases]], classes: Sequence[str], positive: int | None
) -> None:
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[4, 1])
    what, observed = "probability of the predicted class", "share predicted right"
    if positive is not None:
        what, observed = (
            f"probability of {short_name(classes[positive])}",
            f"share that is {short_name(classes[positive])}",
        )
    upper.set_title("Calibration: perfect on the diagonal", fontsize=11)
    upper.plot([0, 1], [0, 1], color="#888888", lw=0.8, ls=(0, (2, 3)))
    edges = np.linspace(0, 1, 21)
    for n, (name, cases) in enumerate(models):
        came_true, probability = answers(cases, positive)
        bins = reliability(came_true, probability)
        size = " to ".join(str(v) for v in sorted({bins.n.min(), bins.n.max()}))
        label = f"{short_name(name)}: {size} cases a point"
        upper.plot(bins.predicted, bins.observed, marker="o", ms=5, lw=1.5, label=label, **style(n))
        lower.stairs(np.histogram(probability, edges)[0], edges, lw=1.5, fill=len(models) == 1, **style(n))
    upper.set(ylabel=observed, xlim=(-0.02, 1.02), ylim=(-0.04, 1.04))
    lower.set(xlabel=what, ylabel="cases")
    lower.yaxis.get_major_locator().set_params(integer=True)
    for ax in (upper, lower):
        ax.grid(alpha=0.25)
    upper.legend(loc="upper left", fontsize=8)


def _draw_confusion(ax: Any, title: str, cases: Cases, classes: Sequence[str]) -> None:
    counts = confusion(cases.labels, cases.probabilities)
    own = counts.sum(1, keepdims=True)
    share = counts / np.maximum(own, 1)
    ax.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for i, j in np.ndindex(*counts.shape):
        text = f"{counts[i, j]}\n{share[i, j]:.0%}" if own[i, 0] else "0"
        size, colour = 9 if len(classes) <= 4 else 7, "white" if share[i, j] > 0.55 else "black"
        ax.text(j, i, text, ha="center", va="center", fontsize=size, color=colour)
    names = [short_name(c) for c in classes]
    turned = len(classes) > 3 or max(map(len, names)) > 10
    slant = {"rotation": 35, "ha": "right"} if turned else {"rotation": 0, "ha": "center"}
    ax.set_xticks(range(len(classes)), names, fontsize=8, **slant)
    ax.set_yticks(range(len(classes)), names, fontsize=8)
    ax.set(xlabel="predicted", ylabel="label")
    ax.set_title(title, fontsize=11)


def curve_picture(models: Sequence[tuple[str, Curve]]) -> bytes:
    """PNG of accuracy against HR tiles a slide, of one or several cascades."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.0, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    ax = figure.subplots()
    shape: dict[str, Any] = {"drawstyle": "steps-post", "lw": 1.8, "marker": "o", "ms": 3.5}
    for n, (name, curve) in enumerate(models):
        ax.plot(curve.hr_tiles, curve.accuracy, label=short_name(name), **shape, **style(n))
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


def decision_picture(models: Sequence[tuple[str, np.ndarray]], everybody: np.ndarray) -> bytes:
    """PNG of decision curves: net benefit against the threshold.

    Args:
        models: name and net benefit at ``operating_point.GRID``; everybody: that of calling all positive.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    ax = figure.subplots()
    for n, (name, values) in enumerate(models):
        ax.plot(GRID, values, label=short_name(name), lw=2, **style(n))
    ax.plot(GRID, everybody, color="0.45", ls="--", lw=1.2, label="all positive")
    ax.axhline(0, color="0.2", lw=1.2, label="none positive")
    top = max(float(everybody[0]), *(float(v.max()) for _, v in models), 0.05)
    ax.set(xlim=(0, 1), ylim=(-0.25 * top, 1.1 * top), xlabel="threshold probability", ylabel="net benefit")
    ax.legend(frameon=False)
    sink = io.BytesIO()
    figure.savefig(sink, format="png", dpi=130)
    return sink.getvalue()
