#!/usr/bin/env python3
"""Tables like the paper's from the metrics.csv of `lrmil evaluate`.

    python3 paper_table.py ablation|topk|heads metrics.csv [receipt.json]

Accuracy and AUC in percent: mean and standard deviation over folds (of one fold: its value). Needs no package.
"""

from __future__ import annotations

import csv
import json
import sys

#: Which losses each preset uses: patch, bag, soft, hard.
TERMS = {"lr-only": "", "patch": "p", "bag": "pb", "bag-soft": "pbs", "bag-hard": "pbh", "lrmil": "pbsh"}
METRICS = ("accuracy", "auc")


def read(path: str) -> dict[str, dict[str, str]]:
    """model -> metric -> "mean ± sd" in percent, in the order of the file."""
    out: dict[str, dict[str, str]] = {}
    with open(path, newline="", encoding="utf-8") as fh:
        for row in csv.DictReader(line for line in fh if not line.startswith("#")):
            text = "undefined"
            if row["mean"]:
                text = f"{100 * float(row['mean']):.1f}" + (f" ± {100 * float(row['sd']):.1f}" if row["sd"] else "")
            out.setdefault(row["model"], {})[row["metric"]] = text
    return out


def table(headers: list[str], rows: list[list[str]]) -> str:
    """A Markdown table whose columns line up in a terminal."""
    widths = [max(len(r[i]) for r in [headers, *rows]) for i in range(len(headers))]
    line = lambda cells: "| " + " | ".join(c.ljust(w) for c, w in zip(cells, widths)) + " |"  # noqa: E731
    return "\n".join([line(headers), "|" + "|".join("-" * (w + 2) for w in widths) + "|", *map(line, rows)])


def main() -> None:
    if len(sys.argv) < 3 or sys.argv[1] not in ("ablation", "topk", "heads"):
        sys.exit(__doc__)
    kind, models = sys.argv[1], read(sys.argv[2])
    scores = {name: [own.get(m, "") for m in METRICS] for name, own in models.items()}
    if kind == "ablation":
        rows = [[name, *("x" if t in TERMS[name] else "" for t in "pbsh"), *own] if name in TERMS else [f"HR {name}", "", "", "", "", *own]
                for name, own in scores.items()]
        print(table(["preset", "patch", "bag", "soft", "hard", "accuracy %", "AUC %"], rows))
    elif kind == "topk":
        print(table(["top-k", "accuracy %", "AUC %"], [[name, *own] for name, own in scores.items()]))
    else:
        cost = json.load(open(sys.argv[3], encoding="utf-8"))["cost"] if len(sys.argv) > 3 else {}
        tiles = {side: f"{cost[side]['tiles']:.0f}" if side in cost else "" for side in ("hr", "lr")}
        print(table(["reads", "method", "accuracy %", "AUC %", "tiles a slide"],
                    [["5x" if n == "lrmil" else "20x", n, *own, tiles["lr" if n == "lrmil" else "hr"]] for n, own in scores.items()]))


if __name__ == "__main__":
    main()
