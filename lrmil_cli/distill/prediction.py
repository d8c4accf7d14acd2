"""What is kept of a prediction: the prediction JSON of a slide, and its attention table."""

from __future__ import annotations

from typing import Any

import numpy as np

from lrmil_cli.distill.model import Model, Prediction, percentiles
from lrmil_cli.files.header import last_digest, make_header
from lrmil_cli.slides.region import Region
from lrmil_cli.slides.slide import Slide


def prediction_record(
    model: Model, p: Prediction, slide: Slide, device: str, model_path: str, history: list[dict[str, Any]], region: Region | None = None
) -> dict[str, Any]:
    """The prediction JSON of a slide."""
    best = int(p.probabilities.argmax())
    return make_header(
        "prediction", slide=slide.describe(), settings={"tiles": model.tiles.as_json()}, history=history,
        roi=region.about if region else None,
        model={"path": model_path, "digest": last_digest(model.header), "preset": model.header.get("preset"),
               "license": model.header.get("license")},
        predicted=model.classes[best],
        probabilities={c: round(float(v), 9) for c, v in zip(model.classes, p.probabilities)},
        folds={c: [round(float(v), 6) for v in p.per_fold[:, n]] for n, c in enumerate(model.classes)},
        spread={c: round(float(p.per_fold[:, n].std()), 6) for n, c in enumerate(model.classes)},
        tiles=len(p.attention), seconds=p.seconds, device=device,
    )


def attention_table(model: Model, p: Prediction, record: dict[str, Any]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Header and columns of the attention table."""
    rows = {k: p.tiles[k] for k in ("x", "y", "width", "height")}
    rows["attention"] = p.attention
    rows["percentile"] = percentiles(p.attention).round(4)
    if p.class_scores is not None:
        for name, scores in zip(model.classes, p.class_scores):
            rows[f"score_{name}"] = scores
    short = {k: record[k] for k in ("predicted", "probabilities", "tiles")}
    header = make_header("attention", slide=record["slide"], settings=record["settings"], history=record["history"], roi=record["roi"],
                         prediction=short, attention_kind=model.header.get("attention_kind"))
    return header, rows
