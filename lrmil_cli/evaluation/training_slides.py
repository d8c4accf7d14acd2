"""What a model saw in training: slides by their labels, and slides by their pixels alone (evaluation/README 8)."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lrmil_cli.errors import InputError
from lrmil_cli.files.header import last_digest
from lrmil_cli.files.tables import checked_header

#: What a prediction says that its model saw of the slide.
LABELS, PIXELS, NOTHING = "labels", "pixels", "nothing"
_ENDINGS = (".int8.onnx", ".onnx", ".safetensors")


@dataclass(frozen=True)
class TrainingSlides:
    """Ids of slides that a model's heads were trained or selected on (``labels``), and of those that its LR encoder was
    distilled on (``pixels``)."""

    labels: frozenset[str]
    pixels: frozenset[str]


def training_slides(path: str | Path, header: dict[str, Any]) -> TrainingSlides:
    """What the model of a header saw.

    Args:
        path: of the model file, or of one of its graphs: its out-of-fold predictions beside it say which slides of its
            cohort no head saw.
    """
    pixels, labels = _distilled(header)
    return TrainingSlides(_cohort(header) - _held_out(Path(path), header) | labels, pixels)


def saw_in_training(slide_id: str, path: str | Path, header: dict[str, Any]) -> str:
    """What a model saw of one slide: its label, its pixels alone, or nothing. For a slide that is none of its own no
    file is read."""
    pixels, labels = _distilled(header)
    if slide_id not in _cohort(header) | labels | pixels:
        return NOTHING
    seen = training_slides(path, header)
    return LABELS if slide_id in seen.labels else PIXELS if slide_id in seen.pixels else NOTHING


def model_name(name: str) -> str:
    """The name of a model file without its endings; of its graphs it is the same."""
    return name.removesuffix(next((e for e in _ENDINGS if name.endswith(e)), ""))


def _cohort(header: dict[str, Any]) -> frozenset[str]:
    return frozenset(header.get("slides", []))


def _distilled(header: dict[str, Any]) -> tuple[frozenset[str], frozenset[str]]:
    """Slides whose pixels, and slides whose labels, decided the weights of the encoders."""
    encoders = [*header.get("encoders", []), *header.get("picker", {}).get("encoders", [])]
    about = [e.get("distilled") or {} for e in encoders]
    pixels, labels = (frozenset(s for a in about for s in a.get(key, [])) for key in ("slides", "label_slides"))
    return pixels, labels


def _folds(header: dict[str, Any]) -> int:
    """A model may hold several heads a fold."""
    return len(set(header["fold_of"])) if "fold_of" in header else len(header.get("heads", []))


def held_out_folds(path: Path, header: dict[str, Any]) -> dict[int, set[str]] | None:
    """The test slides of each fold (from 1) of a model, by the predictions beside it; None where there are none of its
    own."""
    beside = path.with_name(f"{model_name(path.name)}.predictions.csv")
    try:  # without pandas, which takes as long to import as a small slide to predict
        if last_digest(checked_header(beside, "predictions")) != last_digest(header):
            return None
        with open(beside, encoding="utf-8", newline="") as fh:
            fh.readline()
            folds: dict[int, set[str]] = {}
            for row in csv.DictReader(fh):
                # Of patients, a row names all their slides.
                own = row["slides"].split("|") if "slides" in row else [row["slide_id"]]
                folds.setdefault(int(row["fold"]), set()).update(own)
    except (InputError, OSError, KeyError, ValueError):
        return None
    return folds


def _held_out(path: Path, header: dict[str, Any]) -> frozenset[str]:
    """Slides of the model's cohort that none of its heads was trained or selected on: test slides of every fold."""
    folds = held_out_folds(path, header) or {}
    if not folds or len(folds) < _folds(header):
        return frozenset()
    return frozenset.intersection(*map(frozenset, folds.values()))
