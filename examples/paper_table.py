#!/usr/bin/env python3
"""Tables like the paper's from the metrics.csv of `lrmil evaluate`.

    python3 paper_table.py ablation|topk|heads metrics.csv [receipt.json]
    python3 paper_table.py methods metrics.csv NAME=PREDICTIONS...

Accuracy, AUC and F1 in percent: mean and standard deviation over folds (of one fold: its value). PREDICTIONS are
folders of `lrmil predict`, for tiles and seconds a slide. Needs no package.
"""

from __future__ import annotations

import csv
import json
import statistics
import sys
from pathlib import Path

#: Which losses each preset uses: patch, bag, soft, hard.
TERMS = {"lr-only": "", "patch": "p", "bag": "pb", "bag-soft": "pbs", "bag-hard": "pbh", "lrmil": "pbsh"}
METRICS = ("accuracy", "auc")
#: Seconds against those of full HR: LRMIL's paper, Table 1, TCGA-NSCLC (10, 22, 117 and 121 in one unit); AHDMIL's
#: abstract says 1.2 to 2.1 times faster than what it compares with, over four data sets.
PAPER = {"full-hr": "1", "lrmil": "0.08", "zoommil": "0.18", "hdmil": "0.97", "ahdmil": "0.48 to 0.83"}


def read(path: str) -> dict[str, dict[str, str]]:
    """model -> metric -> "mean ± sd" in percent (Brier: as it is), in the order of the file."""
    out: dict[str, dict[str, str]] = {}
    with open(path, newline="", encoding="utf-8") as fh:
        for row in csv.DictReader(line for line in fh if not line.startswith("#")):
            text = "undefined"
            if row["mean"]:
                scale, form = (1, ".3f") if row["metric"] == "brier" else (100, ".1f")
                text = f"{scale * float(row['mean']):{form}}" + (
                    f" ± {scale * float(row['sd']):{form}}" if row["sd"] else ""
                )
            out.setdefault(row["model"], {})[row["metric"]] = text
    return out


def spread(values: list[float], form: str) -> str:
    """ "mean ± sd" of some numbers."""
    return f"{statistics.mean(values):{form}}" + (f" ± {statistics.stdev(values):{form}}" if len(values) > 1 else "")


def costs(folder: str) -> tuple[list[float], list[float], list[float]]:
    """LR tiles, HR tiles and seconds of each slide that `lrmil predict` wrote to a folder; a model of 20x alone reads
    HR tiles only."""
    records = [json.loads(p.read_text(encoding="utf-8")) for p in sorted(Path(folder).glob("*.prediction.json"))]
    lr, hr, seconds = [], [], []
    for r in records:
        fine = r["settings"]["tiles"]["mpp"] < 1
        lr.append(0 if fine else r["tiles_read"]["lr"])
        hr.append(r["tiles_read"]["lr"] if fine else r["tiles_read"].get("hr", 0))
        seconds.append(sum(r["seconds"].values()))
    return lr, hr, seconds


def methods_table(models: dict[str, dict[str, str]], folders: dict[str, str]) -> str:
    """Quality and cost of each method; seconds against the first one's, beside what the papers say."""
    found = {name: costs(folder) for name, folder in folders.items()}
    full = statistics.mean(found[next(iter(found))][2])
    rows = []
    for name, own in models.items():
        lr, hr, seconds = found[name]
        rows.append(
            [
                name,
                *(own.get(m, "") for m in ("accuracy", "auc", "f1_weighted", "brier")),
                f"{statistics.mean(lr):.1f}",
                spread(hr, ".1f"),
                spread(seconds, ".2f"),
                f"{statistics.mean(seconds) / full:.2f}",
                PAPER.get(name, ""),
            ]
        )
    return table(
        ["method", "accuracy %", "AUC %", "F1 %", "Brier", "LR tiles", "HR tiles", "seconds", "of full HR", "paper"],
        rows,
    )


def table(headers: list[str], rows: list[list[str]]) -> str:
    """A Markdown table whose columns line up in a terminal."""
    widths = [max(len(r[i]) for r in [headers, *rows]) for i in range(len(headers))]
    line = lambda cells: "| " + " | ".join(c.ljust(w) for c, w in zip(cells, widths)) + " |"  # noqa: E731
    return "\n".join([line(headers), "|" + "|".join("-" * (w + 2) for w in widths) + "|", *map(line, rows)])


def main() -> None:
    if len(sys.argv) < 3 or sys.argv[1] not in ("ablation", "topk", "heads", "methods"):
        sys.exit(__doc__)
    kind, models = sys.argv[1], read(sys.argv[2])
    scores = {name: [own.get(m, "") for m in METRICS] for name, own in models.items()}
    if kind == "methods":
        print(methods_table(models, dict(a.split("=", 1) for a in sys.argv[3:])))
    elif kind == "ablation":
        rows = [
            [name, *("x" if t in TERMS[name] else "" for t in "pbsh"), *own]
            if name in TERMS
            else [f"HR {name}", "", "", "", "", *own]
            for name, own in scores.items()
        ]
        print(table(["preset", "patch", "bag", "soft", "hard", "accuracy %", "AUC %"], rows))
    elif kind == "topk":
        print(table(["top-k", "accuracy %", "AUC %"], [[name, *own] for name, own in scores.items()]))
    else:
        cost = json.load(open(sys.argv[3], encoding="utf-8"))["cost"] if len(sys.argv) > 3 else {}
        tiles = {side: f"{cost[side]['tiles']:.0f}" if side in cost else "" for side in ("hr", "lr")}
        print(
            table(
                ["reads", "method", "accuracy %", "AUC %", "tiles a slide"],
                [
                    ["5x" if n == "lrmil" else "20x", n, *own, tiles["lr" if n == "lrmil" else "hr"]]
                    for n, own in scores.items()
                ],
            )
        )


if __name__ == "__main__":
    main()
