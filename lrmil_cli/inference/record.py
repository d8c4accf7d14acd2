"""A prediction as it is written: the JSON record, the attention tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from lrmil_cli.evaluation.head_calibration import head_calibrations
from lrmil_cli.evaluation.purpose import purpose
from lrmil_cli.evaluation.training_slides import saw_in_training
from lrmil_cli.files.header import last_digest, make_header
from lrmil_cli.inference.prediction import Prediction, Predictor
from lrmil_cli.slides.region import Region
from lrmil_cli.slides.slide import Slide
from lrmil_cli.targets.outputs import known_times, survival_answer
from lrmil_cli.targets.task import task_of

#: Entries of the record that the header of the attention table repeats.
SHORT = (
    "predicted probabilities tiles tiles_read answered_at uncertain unlike_training prediction_set bad_tiles kept_rate"
).split()
#: Further ones, where the answer is no class.
TOLD = ("target", "spread", "folds", "risk", "group", "times", "survival", "median")


def prediction_record(
    predictor: Predictor, p: Prediction, slide: Slide, history: list[dict[str, Any]], region: Region | None = None
) -> dict[str, Any]:
    """The prediction JSON of a slide."""
    header = predictor.header
    return make_header(
        "prediction",
        slide=slide.describe(),
        settings={"tiles": predictor.tiles.as_json()},
        history=history,
        roi=region.about if region else None,
        **({"given": slide.given.about} if slide.given.about else {}),
        model={
            "path": str(Path(predictor.path).absolute()),
            "digest": last_digest(header),
            "preset": header.get("preset"),
            "license": header.get("license"),
            "trained_on": purpose(header),
            "saw": saw_in_training(slide.slide_id, predictor.path, header),
        },
        **SAYS[task_of(header).kind](header, p),
        tiles=len(p.attention),
        seconds=p.seconds,
        device=predictor.device,
        **p.record,
    )


def _says_class(header: dict[str, Any], p: Prediction) -> dict[str, Any]:
    classes, heads = header["classes"], head_calibrations(header)
    about = {"of": header["calibration"].get("of"), "heads": [h.method for h in heads]} if heads is not None else None
    return {
        "predicted": classes[int(p.probabilities.argmax())],
        "probabilities": {c: round(float(v), 9) for c, v in zip(classes, p.probabilities)},
        "calibration": about,
        "probabilities_raw": {c: round(float(v), 9) for c, v in zip(classes, p.raw.mean(0))},
        "folds": {c: [round(float(v), 6) for v in p.per_fold[:, n]] for n, c in enumerate(classes)},
        "folds_raw": {c: [round(float(v), 9) for v in p.raw[:, n]] for n, c in enumerate(classes)},
        "spread": {c: round(float(p.per_fold[:, n].std()), 6) for n, c in enumerate(classes)},
    }


def _says_number(header: dict[str, Any], p: Prediction) -> dict[str, Any]:
    own = p.raw[:, 0]
    about = {"target": header["target"], "predicted": float(f"{own.mean():.9g}"), "spread": float(f"{own.std():.6g}")}
    return about | {"folds": [float(f"{v:.9g}") for v in own]}


def _says_survival(header: dict[str, Any], p: Prediction) -> dict[str, Any]:
    outputs = p.outputs or header["outputs"]
    answer = survival_answer(task_of(header), outputs, list(p.raw[:, None]), known_times(outputs))
    median = float(answer.median[0])
    return {
        "target": header["target"],
        "predicted": str(answer.group[0]),
        "risk": round(float(answer.risk[0]), 9),
        "folds": [round(float(v), 9) for v in answer.of_heads[:, 0]],
        "spread": round(float(answer.of_heads[:, 0].std()), 6),
        "cut": round(answer.cut, 9),
        "group": str(answer.group[0]),
        "times": [float(f"{t:.9g}") for t in answer.times],
        "survival": [round(float(s), 9) for s in answer.survival[0]],
        "median": None if np.isnan(median) else float(f"{median:.9g}"),
    }


#: Task -> what the record of a slide says.
SAYS = {"classification": _says_class, "regression": _says_number, "survival": _says_survival}


def attention_table(
    predictor: Predictor, p: Prediction, record: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Header and columns of the attention table."""
    rows = {k: p.tiles[k] for k in ("x", "y", "width", "height")}
    rows["attention"] = p.attention
    rows["percentile"] = percentiles(p.attention).round(4)
    if p.class_scores is not None:
        for name, scores in zip(predictor.classes, p.class_scores):
            rows[f"score_{name}"] = scores
    header = make_header(
        "attention",
        slide=record["slide"],
        settings=record["settings"],
        history=record["history"],
        roi=record["roi"],
        prediction={k: record[k] for k in (SHORT if task_of(record).classes else (*TOLD, *SHORT)) if k in record},
        attention_kind=predictor.header.get("attention_kind"),
        tables=sorted(p.tables),
    )
    return header, rows


def attention_rows(boxes: np.ndarray, attention: np.ndarray) -> dict[str, np.ndarray]:
    """Columns of a further attention table: ``boxes`` int64 [N, 4] in level-0 px, ``attention`` [N]."""
    return {
        **dict(zip(("x", "y", "width", "height"), boxes.T)),
        "attention": attention,
        "percentile": percentiles(attention).round(4),
    }


def percentiles(attention: np.ndarray) -> np.ndarray:
    """Rank of each tile within its slide as 0..100 (ties share their mean rank); 100 for a single tile."""
    n = len(attention)
    if n == 1:
        return np.full(1, 100.0)
    _, inverse, counts = np.unique(attention, return_inverse=True, return_counts=True)
    rank = np.cumsum(counts) - (counts + 1) / 2  # mean of the ranks, from 0, of each distinct value
    return rank[inverse] / (n - 1) * 100
