"""The table and the picture of frontier.sh: how good each method is, for how many seconds a slide.

    python examples/frontier.py OUT

Reads OUT/seed*/METHOD.safetensors with the out-of-fold predictions beside them, and OUT/predicted/METHOD, folders of
`lrmil predict`. Writes OUT/frontier.csv, OUT/frontier.md and OUT/frontier.png. A metric is the mean over seeds; its
interval is a bootstrap of that mean over patients, its sd that of the seeds. Differences are paired.
"""

from __future__ import annotations

import csv
import statistics
import sys
from pathlib import Path

import numpy as np
from paper_table import costs, table

from lrmil_cli.evaluation.bootstrap import resamples
from lrmil_cli.evaluation.metrics import METRIC_FUNCTIONS
from lrmil_cli.evaluation.predictions import read_predictions
from lrmil_cli.evaluation.resampled import resampled
from lrmil_cli.evaluation.scores import Cases

TITLES = {
    "full-hr": "full 20x",
    "ahdmil": "AHDMIL",
    "hdmil": "HDMIL",
    "zoommil": "ZoomMIL",
    "eagle": "EAGLE",
    "lrmil": "LRMIL",
    "small": "LRMIL, small student",
    "lr-only": "5x alone",
    "lr-only-small": "5x alone, small",
}
METRICS = {"accuracy": "accuracy", "auc": "AUC"}
DIFFERENCES = [("small", "lr-only-small"), ("small", "lrmil"), ("lrmil", "lr-only"), ("lrmil", "full-hr")]
DRAWS = 2000


def of_seeds(out: Path, method: str) -> list[Cases]:
    """What the models of a method say of slides that they did not see, one of each seed, in the order of slide ids."""
    found = [read_predictions(str(p)) for p in sorted(out.glob(f"seed*/{method}.safetensors"))]
    if not found:
        sys.exit(f"{out}: no seed*/{method}.safetensors; run frontier.sh first")
    return [p.take(np.argsort(p.rows["slide_id"].to_numpy())).cases() for p in found]


def drawn(metric: str, seeds: list[Cases]) -> np.ndarray:
    """A metric's mean over seeds: of the cohort itself, then of each resample of its patients, [1 + draws]."""
    names, patient = np.unique(seeds[0].patients, return_inverse=True)
    parts = []
    for times in [np.ones((1, len(names))), *resamples(len(names), DRAWS, 0)]:
        parts.append(np.mean([resampled(metric, c.labels, c.probabilities, patient)(times) for c in seeds], 0))
    return np.concatenate(parts)


def interval(values: np.ndarray) -> tuple[float, float, float]:
    """A value and the ends of its 95 % interval."""
    low, high = np.nanquantile(values[1:], [0.025, 0.975])
    return float(values[0]), float(low), float(high)


def judged(out: Path) -> tuple[list[dict[str, object]], list[str]]:
    """A row a method, and lines on differences between them."""
    rows: list[dict[str, object]] = []
    all_drawn = {}
    for method, title in TITLES.items():
        seeds = of_seeds(out, method)
        row: dict[str, object] = {"method": method, "title": title, "seeds": len(seeds), "slides": len(seeds[0].labels)}
        for metric in METRICS:
            all_drawn[method, metric] = drawn(metric, seeds)
            value, low, high = interval(all_drawn[method, metric])
            each = [METRIC_FUNCTIONS[metric](c.labels, c.probabilities) for c in seeds]
            sd = statistics.stdev(each) if len(each) > 1 else None
            row |= {metric: value, f"{metric}_low": low, f"{metric}_high": high, f"{metric}_sd": sd}
        lr, hr, seconds = costs(str(out / "predicted" / method))
        row |= {
            "lr_tiles": statistics.mean(lr),
            "hr_tiles": statistics.mean(hr),
            "seconds": statistics.median(seconds),
            "timed": len(seconds),
        }
        rows.append(row)
    lines = []
    for a, b in DIFFERENCES:
        texts = []
        for metric, name in METRICS.items():
            value, low, high = interval(all_drawn[a, metric] - all_drawn[b, metric])
            texts.append(f"{name} {100 * value:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})")
        lines.append(f"- {TITLES[a]} against {TITLES[b]}: {', '.join(texts)} points")
    return rows, lines


def markdown(rows: list[dict[str, object]], lines: list[str]) -> str:
    """The table, and the differences under it."""
    full = rows[0]["seconds"]

    def percent(row: dict[str, object], metric: str) -> str:
        value, low, high, sd = (row[f"{metric}{end}"] for end in ("", "_low", "_high", "_sd"))
        spread = "" if sd is None else f" ± {100 * sd:.1f}"
        return f"{100 * value:.1f}{spread} ({100 * low:.0f} to {100 * high:.0f})"

    cells = [
        [
            str(row["title"]),
            *(percent(row, m) for m in ("auc", "accuracy")),
            f"{row['lr_tiles']:.0f}",
            f"{row['hr_tiles']:.0f}",
            f"{row['seconds']:.2f}",
            f"{full / row['seconds']:.1f}",
        ]
        for row in rows
    ]
    head = ["method", "AUC %", "accuracy %", "5x tiles", "20x tiles", "seconds a slide", "times faster"]
    return "\n".join([table(head, cells), "", *lines]) + "\n"


def plot(rows: list[dict[str, object]], path: Path) -> None:
    """AUC and accuracy against seconds a slide, with intervals."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    for ax, metric in zip(figure.subplots(1, 2, sharex=True), ("auc", "accuracy")):
        for row, colour in zip(rows, COLOURS):
            value = 100 * row[metric]
            ends = [[value - 100 * row[f"{metric}_low"]], [100 * row[f"{metric}_high"] - value]]
            mark = "s" if "alone" in row["title"] else "o"
            ax.errorbar(row["seconds"], value, ends, fmt=mark, color=colour, elinewidth=1, label=row["title"])
        ax.set_xscale("log")
        ax.set_xlabel("seconds a slide")
        ax.set_ylabel(f"{METRICS[metric]}, %")
        ax.grid(alpha=0.3)
        ax.spines[["top", "right"]].set_visible(False)
    handles, labels = ax.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", fontsize=8, frameon=False)
    figure.savefig(path, dpi=90)


#: Of Okabe and Ito; one a method.
COLOURS = ["#000000", "#D55E00", "#E69F00", "#F0E442", "#CC79A7", "#0072B2", "#009E73", "#56B4E9", "#999999"]


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    out = Path(sys.argv[1])
    rows, lines = judged(out)
    with open(out / "frontier.csv", "w", newline="", encoding="utf-8") as fh:
        writer = csv.DictWriter(fh, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    text = markdown(rows, lines)
    (out / "frontier.md").write_text(text, encoding="utf-8")
    plot(rows, out / "frontier.png")
    print(text, end="")


if __name__ == "__main__":
    main()
