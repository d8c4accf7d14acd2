"""One picture of an evaluation: ROC, calibration, and what is taken for what."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np

from lrmil_cli.evaluation.metrics import auc, confusion, one_auc, show
from lrmil_cli.evaluation.scores import Cases, answers, macro_roc, reliability, roc

#: Okabe and Ito: told apart by the colour-blind; the pale yellow is left out.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES = ("-", "--", "-.", ":")
NAME_LENGTH = 28


def evaluation_picture(
    models: Sequence[tuple[str, Cases]], classes: Sequence[str], positive: int | None = None
) -> bytes:
    """PNG of one or several models: ROC and calibration above, a confusion matrix each below.

    Args:
        models: (name, cases); positive: for two classes, the one that ROC and calibration are about (default: the second).
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    positive = (1 if positive is None else positive) if len(classes) == 2 else None
    side = 3.4 if len(classes) <= 4 else 4.4
    if len(models) == 1:
        figure = Figure(figsize=(9.0 + side, 4.4), layout="constrained")
        left, middle, right = figure.subfigures(1, 3, width_ratios=[4.4, 4.6, side])
        matrices = [right.subplots()]
    else:
        across = min(3, len(models))
        down = -(-len(models) // across)
        figure = Figure(figsize=(10.8, 5.2 + side * down), layout="constrained")
        top, bottom = figure.subfigures(2, 1, height_ratios=[5.2, side * down])
        left, middle = top.subfigures(1, 2)
        bottom.suptitle("Confusion: cases, and their share of the label", fontsize=11)
        matrices = bottom.subplots(down, across, squeeze=False).ravel()
    FigureCanvasAgg(figure)
    figure.get_layout_engine().set(w_pad=0.08, h_pad=0.06)
    _draw_roc(left.subplots(), models, classes, positive)
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


def _draw_roc(ax: Any, models: Sequence[tuple[str, Cases]], classes: Sequence[str], positive: int | None) -> None:
    curves = []
    if positive is not None:
        ax.set_title(
            fontsize=11, label=f"ROC, {short_name(classes[positive])} against {short_name(classes[1 - positive])}"
        )
        curves = [
            (
                name,
                roc(c.labels == positive, c.probabilities[:, positive]),
                one_auc(c.labels == positive, c.probabilities[:, positive]),
            )
            for name, c in models
        ]
    elif len(models) == 1:
        ax.set_title("ROC, each class against the rest", fontsize=11)
        cases = models[0][1]
        curves = [
            (
                name,
                roc(cases.labels == n, cases.probabilities[:, n]),
                one_auc(cases.labels == n, cases.probabilities[:, n]),
            )
            for n, name in enumerate(classes)
        ]
        curves.append(
            (
                "mean of the classes",
                macro_roc(cases.labels, cases.probabilities),
                auc(cases.labels, cases.probabilities),
            )
        )
    else:
        ax.set_title("ROC, mean over the classes (one against the rest)", fontsize=11)
        curves = [(name, macro_roc(c.labels, c.probabilities), auc(c.labels, c.probabilities)) for name, c in models]
    ax.plot([0, 1], [0, 1], color="#888888", lw=0.8, ls=(0, (2, 3)))
    for n, (name, points, area) in enumerate(curves):
        own = {"color": "#000000", "ls": "--"} if name == "mean of the classes" else style(n)
        # An undefined curve keeps its line in the legend, so that nobody looks for it in vain.
        ax.plot(
            *(points if points is not None else ([], [])), lw=1.8, label=f"{short_name(name)}: AUC {show(area)}", **own
        )
    ax.set(
        xlabel="false positive rate",
        ylabel="true positive rate",
        xlim=(-0.02, 1.02),
        ylim=(-0.02, 1.02),
        aspect="equal",
    )
    ax.grid(alpha=0.25)
    ax.legend(loc="lower right", fontsize=8)


def _draw_calibration(
    figure: Any, models: Sequence[tuple[str, Cases]], classes: Sequence[str], positive: int | None
) -> None:
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[4, 1])
    what = (
        f"probability of {short_name(classes[positive])}"
        if positive is not None
        else "probability of the predicted class"
    )
    upper.set_title("Calibration: perfect on the diagonal", fontsize=11)
    upper.plot([0, 1], [0, 1], color="#888888", lw=0.8, ls=(0, (2, 3)))
    edges = np.linspace(0, 1, 21)
    for n, (name, cases) in enumerate(models):
        came_true, probability = answers(cases, positive)
        bins = reliability(came_true, probability)
        size = " to ".join(str(v) for v in sorted({bins.n.min(), bins.n.max()}))
        upper.plot(
            bins.predicted,
            bins.observed,
            marker="o",
            ms=5,
            lw=1.5,
            label=f"{short_name(name)}: {size} cases a point",
            **style(n),
        )
        lower.stairs(np.histogram(probability, edges)[0], edges, lw=1.5, fill=len(models) == 1, **style(n))
    upper.set(
        ylabel=f"share that is {short_name(classes[positive])}" if positive is not None else "share predicted right",
        xlim=(-0.02, 1.02),
        ylim=(-0.04, 1.04),
    )
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
        ax.text(
            j,
            i,
            text,
            ha="center",
            va="center",
            fontsize=9 if len(classes) <= 4 else 7,
            color="white" if share[i, j] > 0.55 else "black",
        )
    names = [short_name(c) for c in classes]
    turned = len(classes) > 3 or max(map(len, names)) > 10
    ax.set_xticks(
        range(len(classes)), names, rotation=35 if turned else 0, ha="right" if turned else "center", fontsize=8
    )
    ax.set_yticks(range(len(classes)), names, fontsize=8)
    ax.set(xlabel="predicted", ylabel="label")
    ax.set_title(title, fontsize=11)
