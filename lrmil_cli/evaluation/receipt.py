"""The receipt of a distillation: HR teacher, LR-only student and distilled student on the same out-of-fold patients.

Everything it says is read from the files beside a model, so that it can be written again at any time:
``<model>.predictions.csv``, ``<model>.lr-only.predictions.csv``, ``<model>.teacher.predictions.csv``,
``<model>.agreement.csv``, and the model's own metadata.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lrmil_cli.errors import InputError
from lrmil_cli.evaluation.bootstrap import Interval
from lrmil_cli.evaluation.metrics import show
from lrmil_cli.evaluation.page import Block, Heading, Picture, Table, Text, to_html, to_markdown
from lrmil_cli.evaluation.plots import evaluation_picture
from lrmil_cli.evaluation.predictions import Predictions, common, read_predictions
from lrmil_cli.evaluation.report import LOWER_IS_BETTER, folds_text, interval_text
from lrmil_cli.evaluation.report import TITLES as METRIC_NAMES
from lrmil_cli.evaluation.scores import Cases, Score, at_level, differences, majority, metric_table
from lrmil_cli.files.atomic import write_bytes, write_text
from lrmil_cli.files.header import last_digest
from lrmil_cli.files.tables import read_table
from lrmil_cli.files.tensors import read_tensor_header

TITLES = {"teacher": "HR teacher", "lr_only": "LR-only student", "distilled": "distilled student"}
#: What the model itself is called where its preset distils less than all.
OWN_TITLES = {"lr-only": "LR-only student", "patch": "student of a distilled encoder"}
#: Which file beside the model holds the predictions of whom.
FILES = {"teacher": ".teacher.predictions.csv", "lr_only": ".lr-only.predictions.csv", "distilled": ".predictions.csv"}
METRIC_TITLES = {m: title + (" (lower is better)" if m in LOWER_IS_BETTER else "") for m, title in METRIC_NAMES.items()}
COMPARISONS = (("distilled", "lr_only"), ("distilled", "teacher"), ("lr_only", "teacher"))


def receipt_header(model: str | Path) -> dict[str, Any]:
    """Header of a model file that there can be a receipt of.

    Raises:
        InputError: not a model, or of another method than LRMIL.
    """
    header = read_tensor_header(model, "model")
    if header.get("method", "lrmil") != "lrmil":
        raise InputError(
            f"{model}: a receipt is of a distilled student of LRMIL; this is a model of {header['method']}, compare it by `lrmil evaluate` without --receipt"
        )
    return header


def build_receipt(
    model: str | Path, *, level: str = "slide", draws: int = 2000, seed: int = 0
) -> tuple[dict[str, Any], list[tuple[str, Cases]]]:
    """The content of a receipt, and the cases of each model (for pictures).

    Args:
        model: model file of ``distill-student``; level: slide or patient; draws: bootstrap resamples.

    Raises:
        InputError: not a model, or its predictions are not beside it.
    """
    model = Path(model)
    header = receipt_header(model)
    classes = tuple(header["classes"])
    beside = {n: _beside(model, f) for n, f in FILES.items()}
    found = {
        n: _own_predictions(path, last_digest(header), classes)
        for n, path in beside.items()
        if n == "distilled" or path.exists()
    }
    shared = dict(zip(found, common(list(found.values()))))
    cases = {n: p.cases() for n, p in shared.items()}
    if not len(shared["distilled"].rows):
        raise InputError(f"{model}: the predictions beside it have no slide in common; train the student again")
    own = dict(level=level, draws=draws, seed=seed)
    scores = {
        name: metric_table(c.labels, c.probabilities, c.patients, c.folds, classes=classes, **own)
        for name, c in cases.items()
    }
    judged = {name: at_level(c, level, classes) for name, c in cases.items()}
    first = next(iter(judged.values()))
    compared = [
        {
            "a": a,
            "b": b,
            **{
                m: asdict(i)
                for m, i in differences(
                    first.labels,
                    judged[a].probabilities,
                    judged[b].probabilities,
                    first.patients,
                    draws=draws,
                    seed=seed,
                ).items()
            },
        }
        for a, b in COMPARISONS
        if a in cases and b in cases
    ]
    name, share = majority(first.labels, classes)
    titles = {**TITLES, "distilled": OWN_TITLES.get(header["preset"], TITLES["distilled"])}
    receipt = {
        "kind": "receipt",
        "version": 1,
        "model": model.name,
        "preset": header["preset"],
        "head": header["settings"]["head"],
        "classes": list(classes),
        "level": level,
        "slides": shared["distilled"].rows["slide_id"].nunique(),
        "patients": len(set(first.patients.tolist())),
        "folds": len(set(next(iter(cases.values())).folds.tolist())),
        "majority": {"class": name, "share": share},
        "models": {
            n: {"title": titles[n], "metrics": {s.metric: _score(s) for s in own_scores}}
            for n, own_scores in scores.items()
        },
        "differences": compared,
        "cost": header.get("cost", {}),
        "agreement": _agreement(model),
        "encoder_saw_test_pixels": header["encoder_saw_test_pixels"],
        "bootstrap": {"draws": draws, "seed": seed, "level": 0.95},
    }
    return receipt, [(titles[n], c) for n, c in judged.items()]


def write_receipt(
    model: str | Path, *, output: str | Path | None = None, level: str = "slide", draws: int = 2000, seed: int = 0
) -> dict[str, Any]:
    """Write ``<model>.receipt.html``, ``.md``, ``.json`` and ``.png``; returns the content of the JSON.

    Args:
        output: stem of the files in place of ``<model>.receipt``.

    Raises:
        InputError: as :func:`build_receipt`; MachineError: a file cannot be written.
    """
    receipt, cases = build_receipt(model, level=level, draws=draws, seed=seed)
    stem = str(output) if output is not None else str(_beside(Path(model), ".receipt"))
    picture = evaluation_picture(cases, receipt["classes"])
    blocks = receipt_blocks(
        receipt, Picture(picture, "ROC, calibration and confusion matrices of the models", Path(stem).name + ".png")
    )
    title = f"What distillation bought: {receipt['model']}"
    write_bytes(f"{stem}.png", picture)
    write_text(f"{stem}.md", to_markdown(title, blocks))
    write_text(f"{stem}.html", to_html(title, blocks))
    write_text(f"{stem}.json", json.dumps(receipt, indent=1, allow_nan=False) + "\n")
    return receipt


def existing_receipt(model: str | Path) -> dict[str, Any]:
    """The receipt of a finished model; written first where an interrupted run left none.

    Raises:
        InputError: as :func:`build_receipt`; MachineError: a file cannot be written.
    """
    path = _beside(Path(model), ".receipt.json")
    try:
        receipt = json.loads(path.read_text(encoding="utf-8"))
        if receipt["model"] == Path(model).name:
            return receipt
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return write_receipt(model)


def receipt_blocks(receipt: dict[str, Any], picture: Picture) -> list[Block]:
    """The receipt as a page."""
    models = receipt["models"]
    unit = receipt["level"] + "s"
    blocks: list[Block] = [Text(headline(receipt))]
    blocks += [
        Heading("How good"),
        Table(
            ["", *(m["title"] for m in models.values())],
            [[METRIC_TITLES[k], *(_with_interval(m["metrics"][k]) for m in models.values())] for k in METRIC_TITLES],
            f"On the same {receipt['slides']} slides of {receipt['patients']} patients, each predicted by heads that did not see its "
            f"patient; in brackets 95 % bootstrap intervals over patients. Always saying {receipt['majority']['class']} has accuracy "
            f"{receipt['majority']['share']:.3f}.",
        ),
    ]
    if receipt["folds"] > 1:
        blocks.append(
            Table(
                ["mean ± sd over folds", *(m["title"] for m in models.values())],
                [
                    [METRIC_TITLES[k], *(_over_folds(k, m["metrics"][k]) for m in models.values())]
                    for k in METRIC_TITLES
                ],
            )
        )
    if receipt["differences"]:
        keys = [k for k in METRIC_TITLES if k in receipt["differences"][0]]
        blocks += [
            Heading("Differences"),
            Table(
                ["", *(f"{models[d['a']]['title']} - {models[d['b']]['title']}" for d in receipt["differences"])],
                [[METRIC_TITLES[k], *(_with_interval(d[k], sign=True) for d in receipt["differences"])] for k in keys],
                "Paired: both models on the same resampled patients. An interval that holds 0 does not tell the two apart.",
            ),
        ]
    blocks += [Heading("What it costs"), *_cost_blocks(receipt["cost"])]
    blocks += [Heading("Where they look"), *_agreement_blocks(receipt)]
    blocks += [Heading("Pictures"), picture, Heading("How it was made"), Text(_fine_print(receipt, unit))]
    return blocks


def headline(receipt: dict[str, Any]) -> str:
    """The receipt in two or three sentences, without more certainty than the intervals allow."""
    m = receipt["models"]

    def auc(name: str) -> str:
        return _with_interval(m[name]["metrics"]["auc"])

    parts = [f"AUC at low resolution {auc('distilled')} with preset {receipt['preset']}"]
    if "lr_only" in m:
        parts.append(f"{auc('lr_only')} from the labels alone")
    if "teacher" in m:
        parts.append(f"{auc('teacher')} for the teacher at high resolution")
    text = "; ".join(parts) + "."
    for d in receipt["differences"]:
        if d["b"] == "teacher" and d["a"] == "lr_only":
            continue
        value = d["auc"]
        if value["value"] is None or value["low"] is None:
            continue
        against = "LR-only student" if d["b"] == "lr_only" else "teacher"
        sure = "" if value["low"] > 0 or value["high"] < 0 else ", which these patients cannot tell from none"
        text += f" Against the {against} the distilled student's AUC is {abs(value['value']):.3f} {'higher' if value['value'] >= 0 else 'lower'}{sure}."
    ratio = receipt["cost"].get("tile_ratio")
    return text + (f" It reads {ratio:.1f} times fewer tiles." if ratio else "")


def cost_of(headers: dict[str, Sequence[dict[str, Any]]], tiles: dict[str, Sequence[int]]) -> dict[str, Any]:
    """Tiles and seconds a slide of ``hr`` and ``lr`` from the headers of feature files.

    Args:
        headers: side -> headers of feature files; tiles: side -> tiles of the same slides.

    Returns:
        a side: ``slides``, ``tiles`` (mean a slide), ``seconds`` (mean over the slides whose file records it, else None),
        ``timed`` (how many those are), ``devices``; and ``tile_ratio``, ``seconds_ratio`` (None where unknown).
    """
    out: dict[str, Any] = {}
    for side, own in headers.items():
        timed = [sum(h["seconds"].values()) for h in own if h.get("seconds")]
        out[side] = {
            "slides": len(own),
            "tiles": float(np.mean(tiles[side])) if len(own) else None,
            "seconds": float(np.mean(timed)) if timed else None,
            "timed": len(timed),
            "devices": sorted({str(h["device"]) for h in own if h.get("seconds") and h.get("device")}),
        }
    hr, lr = out.get("hr"), out.get("lr")
    for key, name in (("tiles", "tile_ratio"), ("seconds", "seconds_ratio")):
        known = hr is not None and lr is not None and hr[key] and lr[key]
        out[name] = hr[key] / lr[key] if known else None
    return out


def _beside(model: Path, ending: str) -> Path:
    return model.with_name(model.stem + ending)


def _own_predictions(path: Path, digest: str, classes: Sequence[str]) -> Predictions:
    """A predictions table of the run that made the model.

    Raises:
        InputError: not there, damaged, or of another run.
    """
    found = read_predictions(str(path))
    if found.made_by.get("digest") != digest or found.classes != tuple(classes):
        raise InputError(f"{path}: not of the run that made the model beside it; run `lrmil distill-student` again")
    return found


def _score(s: Score) -> dict[str, Any]:
    return {
        **asdict(s.pooled),
        "mean": s.mean,
        "sd": s.sd,
        "folds": s.folds,
        "of_folds": s.of_folds,
        "reason": s.reason,
    }


def _agreement(model: Path) -> dict[str, Any]:
    """Means over slides of ``<model>.agreement.csv``, by student."""
    path = _beside(model, ".agreement.csv")
    if not path.exists():
        return {}
    _, table = read_table(path, "agreement")

    def mean(values: pd.Series) -> float | None:
        return float(values.mean()) if values.notna().any() else None

    return {
        student: {
            "slides": len(rows),
            **{c: mean(rows[c]) for c in ("regions", "rank_correlation", "k", "overlap", "chance")},
        }
        for student, rows in table.groupby("student")
    }


def _interval(value: dict[str, Any]) -> Interval:
    return Interval(value["value"], value["low"], value["high"], value["undefined"])


def _with_interval(value: dict[str, Any], sign: bool = False) -> str:
    text = interval_text(_interval(value), sign)
    return f"{text} ({value['reason']})" if value.get("reason") else text


def _over_folds(metric: str, value: dict[str, Any]) -> str:
    return folds_text(
        Score(metric, _interval(value), *(value[k] for k in ("mean", "sd", "folds", "of_folds", "reason")))
    )


def _cost_blocks(cost: dict[str, Any]) -> list[Block]:
    sides = [s for s in ("hr", "lr") if s in cost]
    if not sides:
        return [Text("Not recorded.")]

    def row(title: str, key: str, form: str, ratio: float | None) -> list[str]:
        return [
            title,
            *(form.format(cost[s][key]) if cost[s][key] is not None else "not recorded" for s in sides),
            f"{ratio:.1f}" if ratio else "-",
        ]

    devices = sorted({d for s in sides for d in cost[s]["devices"]})
    note = (
        "Seconds are those of opening, reading and encoding when the features were made"
        + (f", on {', '.join(devices)}" if devices else "")
        + ". "
    )
    timed = ", ".join(f"{s.upper()} {cost[s]['timed']} of {cost[s]['slides']} slides" for s in sides)
    return [
        Table(
            ["a slide", *({"hr": "HR", "lr": "LR"}[s] for s in sides), "HR / LR"],
            [
                row("tiles read and encoded", "tiles", "{:.1f}", cost.get("tile_ratio")),
                row("seconds", "seconds", "{:.2f}", cost.get("seconds_ratio")),
            ],
            note + f"Timed: {timed}.",
        )
    ]


def _agreement_blocks(receipt: dict[str, Any]) -> list[Block]:
    own = receipt["agreement"]
    if not own:
        return [Text("Not compared: that takes a teacher, and HR features and pairs of the held-out slides.")]
    rows = [
        [
            receipt["models"][s]["title"],
            str(v["slides"]),
            show(v["rank_correlation"]),
            show(v["overlap"]),
            show(v["chance"]),
        ]
        for s, v in own.items()
    ]
    return [
        Table(
            ["compared with the teacher", "slides", "rank correlation", "top-k overlap", "overlap by chance"],
            rows,
            "Attention of the teacher, carried to LR tiles, against the student's own, on held-out slides: Spearman correlation and the share "
            "of the teacher's top k LR tiles that are in the student's top k, both as means over slides.",
        )
    ]


def _fine_print(receipt: dict[str, Any], unit: str) -> str:
    folds = f"{receipt['folds']} folds" if receipt["folds"] > 1 else "one fixed split"
    text = (
        f"Head {receipt['head']}, {folds}, the same for all models; the epoch of each head was chosen on validation slides. Metrics count "
        f"{unit}; {receipt['bootstrap']['draws']} resamples. "
    )
    if receipt["encoder_saw_test_pixels"]:
        text += (
            "The LR encoder was distilled on slides that are test slides here: it saw their pixels, not their labels. For inductive "
            "numbers make one encoder a fold."
        )
    else:
        text += "The LR encoder saw no test slide."
    return text
