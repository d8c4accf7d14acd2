"""A patient's slides as one bag, by a model that was trained so; the attention and the record, slide by slide.

Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from lrmil_cli.errors import UsageError
from lrmil_cli.evaluation.training_slides import LABELS, NOTHING, PIXELS, saw_in_training
from lrmil_cli.files.header import with_version
from lrmil_cli.inference.plain import Encoded, classified, encode_slide, finished, judged, plain_part
from lrmil_cli.inference.prediction import Prediction, Predictor
from lrmil_cli.inference.record import attention_table, prediction_record
from lrmil_cli.slides.region import Region
from lrmil_cli.slides.slide import Slide
from lrmil_cli.targets.task import PATIENT

#: A slide and the part of it that is asked about.
Part = tuple[Slide, "Region | None"]


def predict_patient(
    predictor: Predictor, parts: Sequence[Part], begun: Callable[[Slide], None] = lambda slide: None
) -> tuple[Prediction, list[slice]]:
    """What a model says of the slides of a patient together, and which rows of it are those of each slide.

    Args:
        begun: told of each slide before it is read.

    Raises:
        as :meth:`lrmil_cli.inference.prediction.Predictor.predict`, of any of the slides.
        UsageError: a model that reads other tiles than all LR tiles of a slide.
    """
    model = plain_part(predictor)
    if model is None:
        raise UsageError(f"{predictor.path}: only models of --method lrmil answer for patients")
    read = []
    for slide, region in parts:
        begun(slide)
        read.append(finished(encode_slide([model], slide, region)))
    ends = np.cumsum([len(own.boxes) for own in read]).tolist()
    (said,) = classified([model], together(read))
    return judged(predictor, said), [slice(a, b) for a, b in zip([0, *ends], ends)]


def together(slides: Sequence[Encoded]) -> Encoded:
    """Slides as one bag, in their order. Boxes as if each lay below the one before it, as in training; ``tiles`` are
    where they are on their slides."""
    if len(slides) == 1:
        return slides[0]
    boxes: list[np.ndarray] = []
    below = 0
    for own in slides:
        boxes.append(own.boxes + np.array([0, below, 0, 0]))
        below = int(boxes[-1][:, 1].max()) + 1
    seconds: dict[str, float] = {}
    for own in slides:
        for name, spent in own.seconds.items():
            seconds[name] = seconds.get(name, 0.0) + spent
    return Encoded(
        {k: np.concatenate([own.tiles[k] for own in slides]) for k in slides[0].tiles},
        np.concatenate(boxes),
        [[np.concatenate(of) for of in zip(*models)] for models in zip(*(own.features for own in slides))],
        sum(own.bad for own in slides),
        seconds,
    )


def patient_record(
    predictor: Predictor,
    p: Prediction,
    patient: str,
    parts: Sequence[Part],
    cuts: Sequence[slice],
    history: list[dict[str, Any]],
) -> dict[str, Any]:
    """The prediction JSON of a patient: as that of a slide, with the patient's name for its ``slide`` (which is the
    first one), ``bag``, and under ``slides`` each slide with its share of the attention."""
    first, region = parts[0]
    record = prediction_record(predictor, p, first, history, region)
    slides = [
        {
            **slide.describe(),
            **({"roi": own.about} if own else {}),
            **({"given": slide.given.about} if slide.given.about else {}),
            "tiles": cut.stop - cut.start,
            "attention": round(float(p.attention[cut].sum()), 9),
        }
        for (slide, own), cut in zip(parts, cuts)
    ]
    record["model"]["saw"] = _saw(saw_in_training(s.slide_id, predictor.path, predictor.header) for s, _ in parts)
    return with_version({**record, "slide": {**record["slide"], "id": patient}, "bag": PATIENT, "slides": slides})


def _saw(of_slides: Iterable[str]) -> str:
    """What a model saw of a patient: the most that it saw of a slide."""
    found = set(of_slides)
    return next(what for what in (LABELS, PIXELS, NOTHING) if what in found)


def slide_tables(
    predictor: Predictor, p: Prediction, record: dict[str, Any], parts: Sequence[Part], cuts: Sequence[slice]
) -> list[tuple[dict[str, Any], dict[str, np.ndarray]]]:
    """Header and columns of the attention table of each slide of a patient: its part of the patient's attention, so
    that it sums to its share of it; percentiles are among the tiles of the slide."""
    out = []
    for (slide, region), cut in zip(parts, cuts):
        scores = None if p.class_scores is None else p.class_scores[:, cut]
        own = replace(p, attention=p.attention[cut], class_scores=scores, tiles={k: v[cut] for k, v in p.tiles.items()})
        about = {**record, "slide": slide.describe(), "roi": region.about if region else None}
        header, rows = attention_table(predictor, own, about)
        out.append(({**header, "patient": record["slide"]["id"]}, rows))
    return out
