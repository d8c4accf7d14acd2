"""Training curves as a picture."""

from __future__ import annotations

import io
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING

from lrmil_cli.files.atomic import write_bytes

if TYPE_CHECKING:
    import pandas as pd


#: Columns of curves, without ``train_`` and ``val_``, in plain words.
NAMES = {
    "total": "all losses together",
    "ce": "cross-entropy with the label",
    "bag": "cross-entropy of the slide's answer with its label",
    "bag_kd": "distance to the teacher's answer (eq. 3)",
    "soft": "distance to where the teacher looks (eq. 4)",
    "hard": "missed tiles that the teacher looks at most (eq. 5)",
    "instance": "loss of CLAM's instances",
    "max": "loss of DSMIL's highest instance",
    "tier1": "loss of DTFD's pseudo-slides",
    "tier2": "loss of DTFD's slides",
    "loss": "loss",
    "auc": "AUC",
    "nll": "negative log likelihood",
    "c": "C-index",
}
PARTS = {"train": "training", "val": "validation"}


def plain(column: str) -> str:
    """``train_bag_kd`` in plain words."""
    part, _, name = column.partition("_")
    if part not in PARTS:
        return column
    if name.startswith("cosine_"):
        return f"block {name.removeprefix('cosine_')}"
    return f"{PARTS[part]}: {NAMES.get(name, name)}"


def plot_curves(
    path: str | Path, curves: pd.DataFrame, panels: list[tuple[str, list[str]]], best: dict[int, int]
) -> None:
    """Write a PNG: one panel each, one colour a fold, solid for the first column of a panel and dashed for the rest.

    Args:
        curves: columns ``fold, epoch`` and those that the panels name.
        panels: (title, columns); best: fold -> chosen epoch, marked by a dot.

    Raises:
        MachineError: the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    columns_of_panels = min(len(panels), 4)
    rows_of_panels = -(-len(panels) // columns_of_panels)
    figure = Figure(figsize=(3.9 * columns_of_panels, 3.2 * rows_of_panels), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows_of_panels, columns_of_panels, squeeze=False).ravel()
    for ax in axes[len(panels) :]:
        ax.set_axis_off()
    colours = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]
    for ax, (title, columns) in zip(axes, panels):
        for n, fold in enumerate(sorted(set(curves["fold"].tolist()))):
            rows = curves[curves["fold"] == fold]
            for m, column in enumerate(c for c in columns if c in rows):
                ax.plot(
                    rows["epoch"],
                    rows[column],
                    color=colours[n % 7],
                    ls="-" if m == 0 else "--",
                    lw=1.3,
                    label=f"fold {fold}" if len(columns) == 1 else f"fold {fold}, {_short(column)}",
                )
                at = rows[rows["epoch"] == best.get(fold)]
                ax.plot(at["epoch"], at[column], "o", color=colours[n % 7], ms=5)
        ax.set_title("\n".join(wrap(title, 38)), fontsize=10)
        ax.set_xlabel("epoch")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.grid(alpha=0.3)
        if ax.get_legend_handles_labels()[0]:
            ax.legend(fontsize=7)
    sink = io.BytesIO()
    figure.savefig(sink, format="png", dpi=120)
    write_bytes(path, sink.getvalue())


def _short(column: str) -> str:
    """What a line is called beside others of its panel."""
    name = plain(column)
    return name.partition(":")[0]
