"""The benchmark as a table of 80 columns and as a picture."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from lrmil_cli.files.atomic import write_bytes

#: Phases of a side in their order, as the table calls them.
PHASES = {"tissue": "open, tissue", "read": "read", "encode": "encode", "head": "head"}
COLOURS = {"tissue": "#E69F00", "read": "#56B4E9", "encode": "#0072B2", "head": "#CC79A7"}


def sides_table(record: dict[str, Any], mpps: dict[str, float]) -> str:
    """Seconds of LR and HR, side by side; stars mark what was extrapolated."""
    sides = {k: record[k] for k in ("lr", "hr")}
    partly = {k: s["measured"] < s["tiles"] for k, s in sides.items()}

    def line(title: str, texts: list[str]) -> str:
        return f"{title:<24}" + "".join(f"{t:>24}" for t in texts)

    def seconds(key: str) -> list[str]:
        stars = key in ("read", "encode", "total", "encoder_floor")
        return [f"{s[key]:.2f} s" + ("*" if stars and partly[k] else " ") for k, s in sides.items()]

    lines = [
        line("", [f"{k.upper()}, {mpps[k]:g} um/px " for k in sides]),
        line("tiles", [f"{s['tiles']:,} " for s in sides.values()]),
        *(line(title, seconds(key)) for key, title in PHASES.items()),
        line("total", seconds("total")),
        line("encoder alone", seconds("encoder_floor")),
        line("total / encoder alone", [f"{record[f'{k}_overhead']:.2f} " for k in sides]),
    ]
    if any(partly.values()):
        counts = " and ".join(f"{s['measured']:,} {k.upper()}" for k, s in sides.items() if partly[k])
        lines.append(f"* measured on {counts} tiles, the rest extrapolated (--max-tiles)")
    lines += [
        "",
        f"HR takes {record['ratio']:.1f} times as long as LR, for {record['tile_ratio']:.1f} times the tiles.",
    ]
    return "\n".join(lines)


def arithmetic_line(rates: dict[str, float]) -> str:
    """How much of the device's arithmetic the encoder uses."""
    product = f"{rates['share']:.0%} of this device's matrix product ({rates['matrix_product']:,.0f} GFLOP/s)"
    return f"Encoder: {rates['encoder']:,.0f} GFLOP/s, {product}."


def readers_table(tables: dict[str, dict[str, float]]) -> str:
    """Tiles a second of each reader, and how many times that is of tiffslide (of the slowest where there is none)."""
    names = list(next(iter(tables.values())))
    lines = [f"{'tiles a second':<22}" + "".join(f"{title:>19}" for title in tables)]
    for name in names:
        cells = []
        for rates in tables.values():
            base = next((v for k, v in rates.items() if k.startswith("tiffslide")), min(rates.values()))
            cells.append(f"{rates[name]:,.0f} ({rates[name] / base:.1f}x)")
        lines.append(f"{name:<22}" + "".join(f"{c:>19}" for c in cells))
    return "\n".join(lines)


def plot(path: str | Path, record: dict[str, Any], tables: dict[str, dict[str, float]], title: str) -> None:
    """PNG: seconds of LR and HR by phase, where they were measured, and tiles a second of the readers.

    Raises:
        MachineError: the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = (["sides"] if record.get("lr") else []) + list(tables)
    figure = Figure(figsize=(8.5, 0.6 + 2.1 * len(panels)), layout="constrained")
    FigureCanvasAgg(figure)
    for ax, panel in zip(figure.subplots(len(panels), 1, squeeze=False).ravel(), panels):
        if panel == "sides":
            for side in ("hr", "lr"):
                left = 0.0
                for phase, name in PHASES.items():
                    value = record[side][phase]
                    ax.barh(side.upper(), value, left=left, color=COLOURS[phase], label=name if side == "hr" else None)
                    left += value
                ax.text(left, side.upper(), f" {left:.1f} s", va="center", fontsize=9)
            ax.legend(fontsize=8, ncols=4, loc="upper right")
            ax.margins(x=0.12)
            ax.set_xlabel("seconds a slide")
        else:
            names = list(tables[panel])[::-1]
            rates = [tables[panel][n] for n in names]
            ax.barh(names, rates, color=["#0072B2" if n.startswith("lrmil") else "#999999" for n in names])
            for y, rate in enumerate(rates):
                ax.text(rate, y, f" {rate:,.0f}", va="center", fontsize=9)
            ax.margins(x=0.12)
            ax.set_xlabel(f"tiles a second, {panel}")
        ax.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title, fontsize=10)
    sink = io.BytesIO()
    figure.savefig(sink, format="png", dpi=110)
    write_bytes(path, sink.getvalue())
