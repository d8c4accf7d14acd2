"""Training curves as a picture."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

from lrmil_cli.files.atomic import write_bytes

if TYPE_CHECKING:
    import pandas as pd


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
                    label=f"fold {fold}" if len(columns) == 1 else f"fold {fold}, {column}",
                )
                at = rows[rows["epoch"] == best.get(fold)]
                ax.plot(at["epoch"], at[column], "o", color=colours[n % 7], ms=5)
        ax.set_title(title, fontsize=10)
        ax.set_xlabel("epoch")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.grid(alpha=0.3)
        if ax.get_legend_handles_labels()[0]:
            ax.legend(fontsize=7)
    sink = io.BytesIO()
    figure.savefig(sink, format="png", dpi=120)
    write_bytes(path, sink.getvalue())
