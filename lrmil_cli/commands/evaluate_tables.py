"""The tables that ``lrmil evaluate`` prints.

They come from the JSON record, so that an evaluation that is up to date shows them too.
"""

from __future__ import annotations

from typing import Any, Literal

from lrmil_cli.evaluation.metrics import decimals, metric_title


def print_tables(record: dict[str, Any]) -> None:
    """Metrics of each model, and differences, on stdout; fits 80 columns."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, markup=False, emoji=False)
    several = len(record["models"]) > 1
    folds = any(m["of_folds"] > 1 for model in record["models"] for m in model["metrics"].values())
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for name, wanted in (
        ("model", several),
        (f"{record['level']} level", True),
        ("value", True),
        ("95 % interval", True),
        ("over folds (sd)", folds),
    ):
        if wanted:
            overflow: Literal["fold", "ellipsis"] = "fold" if name == "model" else "ellipsis"
            table.add_column(name, justify="right" if name == "value" else "left", overflow=overflow)
    for model in record["models"]:
        name = model["name"]
        for metric, m in model["metrics"].items():
            cells = [
                metric_title(metric),
                _number(metric, m["value"]),
                _interval(metric, m),
                *([_folds(metric, m)] if folds else []),
            ]
            table.add_row(*([name] if several else []), *cells)
            name = ""
            if metric == "accuracy":
                table.add_row(
                    *([""] if several else []),
                    "majority rate",
                    _number(metric, model["majority_rate"]),
                    f"always {model['majority_class']}",
                    *([""] if folds else []),
                )
        table.add_section()
    console.print(table)
    if record["differences"]:
        console.print()
        n = record["differences"][0]["n"]
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
        for name in (f"difference, {n} {record['level']}s", "metric", "value", "95 % interval"):
            table.add_column(name, justify="right" if name == "value" else "left", overflow="fold")
        last = None
        for d in record["differences"]:
            pair = f"{d['model']} - {d['reference']}"
            metric = d["metric"]
            cells = [metric_title(metric), _number(metric, d["value"], "+"), _interval(metric, d, "+")]
            table.add_row("" if pair == last else pair, *cells)
            last = pair
        console.print(table)


def _number(metric: str, value: float | None, sign: str = "") -> str:
    return "undefined" if value is None else f"{value:{sign}{decimals(metric)}}"


def _interval(metric: str, m: dict[str, Any], sign: str = "") -> str:
    if m.get("reason"):
        return m["reason"]
    form = f"{sign}{decimals(metric)}"
    return "-" if m["low"] is None else f"{m['low']:{form}} to {m['high']:{form}}"


def _folds(metric: str, m: dict[str, Any]) -> str:
    if m["mean"] is None:
        return "undefined" if m["of_folds"] else "-"
    form = decimals(metric)
    sd = f" ({m['sd']:{form}})" if m["sd"] is not None else ""
    return f"{m['mean']:{form}}{sd}" + (f", {m['folds']} of {m['of_folds']}" if m["folds"] < m["of_folds"] else "")
