"""Pictures of numbers (predicted against true, Bland-Altman) and of survival (Kaplan-Meier, numbers at risk)."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np

from lrmil_cli.evaluation.evaluate_targets import TargetModel
from lrmil_cli.evaluation.plots import COLOURS, short_name
from lrmil_cli.evaluation.target_cases import TargetCases

#: Of the groups of risk.
GROUP_COLOURS = {"high": COLOURS[1], "low": COLOURS[0]}


def numbers_picture(models: Sequence[tuple[str, TargetCases]], what: str) -> bytes:
    """PNG of predicted numbers: against the true ones, with the line on which both are the same, and their difference
    against their mean with its 95 % limits (Bland and Altman), a row a model.

    Args:
        models: (name, cases); what: the number is called.
    """
    figure = _figure((10.4, 4.6 * len(models)))
    rows = figure.subplots(len(models), 2, squeeze=False)
    for (name, cases), (left, right) in zip(models, rows):
        title = short_name(name) if len(models) > 1 else ""
        truth, said = cases.frame["label"].to_numpy(float), cases.frame["predicted"].to_numpy(float)
        ends = np.array([min(truth.min(), said.min()), max(truth.max(), said.max())])
        ends += np.array([-0.04, 0.04]) * (np.ptp(ends) or 1.0)
        shape: dict[str, Any] = {"s": 18, "alpha": 0.6, "color": COLOURS[0], "edgecolors": "none"}
        left.plot(ends, ends, color="#888888", lw=0.9, ls=(0, (2, 3)), label="predicted = true")
        left.scatter(truth, said, **shape)
        left.set(xlim=ends, ylim=ends, aspect="equal")
        left.set(xlabel=f"{short_name(what)}, true", ylabel=f"{short_name(what)}, predicted")
        left.set_title(title or "Predicted against true", fontsize=11)
        left.legend(fontsize=8, loc="upper left")
        about = "Bland-Altman"
        middle, off = (truth + said) / 2, said - truth
        right.scatter(middle, off, **shape)
        right.axhline(0, color="#888888", lw=0.9, ls=(0, (2, 3)))
        if len(off) > 1:
            bias, half = off.mean(), 1.96 * off.std(ddof=1)
            for value, dashes in ((bias, "-"), (bias - half, "--"), (bias + half, "--")):
                right.axhline(value, color=COLOURS[1], lw=1.4, ls=dashes)
            about = f"bias {bias:.3g}, 95 % limits {bias - half:.3g} to {bias + half:.3g}"
        right.set(xlabel="mean of both", ylabel="predicted - true")
        right.set_title(f"{title or 'Bland-Altman'}: {about}", fontsize=11)
        for ax in (left, right):
            ax.grid(alpha=0.25)
    return _png(figure)


def survival_picture(models: Sequence[tuple[str, dict[str, Any]]], unit: str) -> bytes:
    """PNG of Kaplan-Meier curves of the groups of risk with 95 % intervals and numbers at risk, a panel a model.

    Args:
        models: (name, ``survival_detail``); unit: what time is called.
    """
    across = min(2, len(models))
    down = -(-len(models) // across)
    figure = _figure((8.2 if across == 1 else 12.4, 5.4 * down))
    panels = figure.subfigures(down, across, squeeze=False).ravel()
    for panel, (name, detail) in zip(panels, models):
        _kaplan_meier(panel, short_name(name), detail, unit)
    return _png(figure)


def _kaplan_meier(panel: Any, name: str, detail: dict[str, Any], unit: str) -> None:
    groups = detail["groups"]
    upper, lower = panel.subplots(2, 1, sharex=True, height_ratios=[5, 0.25 + 0.25 * len(groups)])
    for g in groups:
        colour = GROUP_COLOURS[g["name"]]
        label = f"{g['name']} risk: {g['events']} events of {g['n']}"
        upper.step(g["times"], g["survival"], where="post", color=colour, lw=1.8, label=label)
        upper.fill_between(g["times"], g["low"], g["high"], step="post", color=colour, alpha=0.15, lw=0)
    upper.plot([], [], color="#888888", alpha=0.3, lw=7, label="95 % interval")
    p = detail["log_rank"]
    upper.set_title(name if p is None else f"{name}: log-rank p {p_text(p)}", fontsize=11)
    upper.set(ylabel="free of the event", ylim=(-0.02, 1.02), xlabel=short_name(unit))
    upper.xaxis.set_tick_params(labelbottom=True)
    upper.grid(alpha=0.25)
    upper.legend(fontsize=8, loc="best")
    lower.set(ylim=(len(groups), 0), yticks=[], xticks=detail["ticks"])
    lower.set_xlim(left=-0.02 * lower.get_xlim()[1])
    lower.text(0, 1.02, "at risk", transform=lower.transAxes, fontsize=8, color="#444444", va="bottom")
    for row, g in enumerate(groups):
        for tick, n in zip(detail["ticks"], g["at_risk"]):
            lower.text(tick, row + 0.5, str(n), ha="center", va="center", fontsize=8, color=GROUP_COLOURS[g["name"]])
        at = (-0.02, row + 0.5)
        where = lower.get_yaxis_transform()
        lower.text(*at, g["name"], transform=where, ha="right", va="center", fontsize=8, color=GROUP_COLOURS[g["name"]])
    lower.tick_params(bottom=False, labelbottom=False)
    for side in lower.spines.values():
        side.set_visible(False)


def p_text(p: float) -> str:
    """A p value as papers print it."""
    return f"{p:.3f}" if p >= 0.001 else "< 0.001"


def pictures(models: Sequence[TargetModel]) -> bytes:
    """The picture of an evaluation."""
    task = models[0].predictions.task
    if task.kind == "regression":
        return numbers_picture([(m.name, m.cases) for m in models], task.label)
    return survival_picture([(m.name, m.detail) for m in models], task.time)


def _figure(size: tuple[float, float]) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _png(figure: Any) -> bytes:
    sink = io.BytesIO()
    figure.savefig(sink, format="png", dpi=130)
    return sink.getvalue()
