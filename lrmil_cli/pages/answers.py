"""What a model says of a slide, as a page shows it: one table or picture a task (pages/README 3)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from lrmil_cli.evaluation.page import escaped
from lrmil_cli.targets.answers import answer_text, sureness
from lrmil_cli.targets.task import SLIDE, task_of


def answer_html(record: dict[str, Any]) -> str:
    """The answer as the first line of a page says it."""
    badge = ' <span class="badge">uncertain</span>' if record.get("uncertain") else ""
    if (record.get("unlike_training") or {}).get("unlike"):
        badge += f' <span class="badge">unlike the training {record["unlike_training"].get("of", SLIDE)}s</span>'
    said = sureness(record)
    if task_of(record).classes:
        heads = (record.get("calibration") or {}).get("heads") or ["none"]
        said = f"{said}, not calibrated" if "none" in heads else f"calibrated {said}"
    return f'<p class="answer"><b>{escaped(answer_text(record))}</b> {said}{badge}</p>'


def set_html(record: dict[str, Any]) -> str:
    """The prediction set, if one was asked for."""
    own = record.get("prediction_set")
    if not own:
        return ""
    names = ", ".join(map(str, own["classes"])) or "no class: the slide is like none of them"
    whom = " of each class" if own.get("by") == "class" else ""
    return f'<p class="set">The set for {own["coverage"]:.0%} of new patients{whom}: <b>{escaped(names)}</b></p>'


def detail_title(record: dict[str, Any]) -> str:
    """What the part of the page is called that shows the answer in full."""
    return DETAILS[task_of(record).kind][0]


def detail_html(record: dict[str, Any]) -> str:
    """The answer in full: probabilities, what the heads say of a number, or the survival curve."""
    return DETAILS[task_of(record).kind][1](record)


def _chances(record: dict[str, Any]) -> str:
    """The probability of each class as a bar, with a dot a fold, and what it was before calibration."""
    folds, spread, raw = (record.get(k) or {} for k in ("folds", "spread", "probabilities_raw"))
    calibrated = bool(raw) and any(abs(raw.get(c, p) - p) > 5e-4 for c, p in record["probabilities"].items())
    rows = []
    for name, p in sorted(record["probabilities"].items(), key=lambda item: -item[1]):
        own = [float(v) for v in folds.get(name, [])]
        dots = "".join(f'<circle cx="{4 + 392 * v:.1f}" cy="9" r="5.5"/>' for v in own) if len(own) > 1 else ""
        bar = (
            '<svg viewBox="0 0 400 18" aria-hidden="true"><rect class="track" x="4" y="3" width="392" height="12"/>'
            f'<rect class="bar" x="4" y="3" width="{392 * p:.1f}" height="12"/>{dots}</svg>'
        )
        some = f"{min(own):.2f} to {max(own):.2f}, sd {float(spread.get(name, 0)):.2f}" if len(own) > 1 else "one head"
        before = f'<td class="number">{raw.get(name, p):.3f}</td>' if calibrated else ""
        rows.append(
            f'<tr><th scope="row">{escaped(str(name))}</th><td class="number">{p:.3f}</td>'
            f'<td class="chance">{bar}</td><td class="number">{some}</td>{before}</tr>'
        )
    n = max((len(v) for v in folds.values()), default=0)
    note = [f"The mean over the heads of {n} folds; a dot is what one of them says."] if n > 1 else []
    note += [_calibration(record)]
    before = '<th scope="col" class="number">before calibration</th>' if calibrated else ""
    return (
        '<div class="wide" tabindex="0" role="group" aria-label="table"><table class="full"><thead><tr>'
        '<th scope="col">class</th><th scope="col" class="number">probability</th><th scope="col"></th>'
        f'<th scope="col">folds</th>{before}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'
        f'<p class="note">{escaped(" ".join(note))}</p>'
    )


def _calibration(record: dict[str, Any]) -> str:
    about = record.get("calibration") or {}
    methods = [str(m) for m in about.get("heads") or []]
    if not methods:
        return "Not calibrated: the model is of an earlier version."
    plain = methods.count("none")
    if plain == len(methods):
        return "Not calibrated: too few slides to calibrate by."
    named = ", ".join(sorted({m for m in methods if m != "none"}))
    some = f", {plain} of {len(methods)} heads not, for lack of slides" if plain else ""
    return f"Calibrated by {about.get('of') or 'held-out'} slides ({named}){some}."


def _number(record: dict[str, Any]) -> str:
    """The number and what each head says, on the range of the training slides where that is known."""
    folds = [float(v) for v in record["folds"]]
    known = ((record.get("model") or {}).get("trained_on") or {}).get("target") or {}
    low, high = (f([*folds, *([known[k]] if k in known else [])]) for f, k in ((min, "min"), (max, "max")))
    rows = [["answer, the mean over heads", f"{record['predicted']:.4g}"]]
    if len(folds) > 1:
        rows.append([f"the {len(folds)} heads", f"{min(folds):.4g} to {max(folds):.4g}, sd {record['spread']:.3g}"])
    if known:
        rows.append(["training slides", f"{known['min']:.4g} to {known['max']:.4g}, median {known['median']:.4g}"])
    return f'<div class="chance">{_strip(folds, float(record["predicted"]), low, high)}</div>' + _rows(rows)


def _strip(folds: Sequence[float], answer: float, low: float, high: float) -> str:
    def at(value: float) -> float:
        return 8 + 384 * (value - low) / (high - low or 1)

    dots = "".join(f'<circle cx="{at(v):.1f}" cy="9" r="5.5"/>' for v in folds)
    mark = f'<rect class="bar" x="{at(answer) - 2:.1f}" y="0" width="4" height="18"/>'
    track = '<rect class="track" x="4" y="3" width="392" height="12"/>'
    return f'<svg viewBox="0 0 400 18" aria-hidden="true">{track}{mark}{dots if len(folds) > 1 else ""}</svg>'


def _survival(record: dict[str, Any]) -> str:
    """The curve as a picture, and the same as numbers."""
    folds, times, chances = ([float(v) for v in record[k]] for k in ("folds", "times", "survival"))
    beyond = f"not reached up to {times[-1]:.4g}"
    median = f"{record['median']:.4g}" if record.get("median") is not None else beyond
    spread = f", {len(folds)} heads from {min(folds):.3g} to {max(folds):.3g}" if len(folds) > 1 else ""
    rows = [
        ["median survival", median],
        *([f"survival at {t:.4g}", f"{s:.2f}"] for t, s in zip(times, chances)),
        ["risk", f"{record['risk']:.3g}{spread}; {record['group']}: {_side(record)} {record['cut']:.3g}"],
    ]
    note = (
        "The time is in the unit of the training slides. Between the times that the model knows, the curve is a "
        "straight line. The groups are cut at the median risk of training slides."
    )
    return f'<div class="wide">{_curve(times, chances)}</div>{_rows(rows)}<p class="note">{note}</p>'


def _side(record: dict[str, Any]) -> str:
    return "above" if record["group"] == "high" else "not above"


def _curve(times: Sequence[float], chances: Sequence[float]) -> str:
    def at(t: float, s: float) -> tuple[float, float]:
        return 40 + 334 * t / times[-1], 10 + 150 * (1 - s)

    points = " ".join(f"{x:.1f},{y:.1f}" for x, y in (at(t, s) for t, s in zip((0.0, *times), (1.0, *chances))))
    levels = "".join(
        f'<line x1="40" x2="374" y1="{at(0, s)[1]:.1f}" y2="{at(0, s)[1]:.1f}"/>'
        f'<text x="34" y="{at(0, s)[1] + 4:.1f}" text-anchor="end">{s:g}</text>'
        for s in (0.0, 0.5, 1.0)
    )
    marks = "".join(f'<text x="{at(t, 0)[0]:.1f}" y="177" text-anchor="middle">{t:.4g}</text>' for t in (0, *times))
    return (
        '<svg class="curve" viewBox="0 0 400 184" role="img" aria-label="survival over time">'
        f'{levels}{marks}<polyline points="{points}"/></svg>'
    )


def _rows(rows: Sequence[Sequence[str]]) -> str:
    cells = "".join(f'<tr><th scope="row">{escaped(a)}</th><td>{escaped(b)}</td></tr>' for a, b in rows)
    return f'<table class="pairs"><tbody>{cells}</tbody></table>'


#: Task -> title and content of the answer in full.
DETAILS: dict[str, tuple[str, Callable[[dict[str, Any]], str]]] = {
    "classification": ("Probabilities", _chances),
    "regression": ("The number", _number),
    "survival": ("Survival", _survival),
}
