"""A model calibrated anew, on slides that the user names: ``lrmil calibrate`` (evaluation/README 6).

Weights stay; only what the header says of calibration changes. A laboratory may so calibrate a model to its own
patients, and models of earlier versions get what they lack.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lrmil_cli.errors import InputError
from lrmil_cli.evaluation.head_calibration import HeadCalibration, calibrate_head, calibrated_heads
from lrmil_cli.evaluation.join_predictions import join
from lrmil_cli.evaluation.prediction_sets import by_patient
from lrmil_cli.evaluation.predictions import Predictions, read_predictions
from lrmil_cli.files.header import digest, last_digest, step, up_to_date
from lrmil_cli.files.manifest import Manifest
from lrmil_cli.files.tensors import load_tensors, save_tensors
from lrmil_cli.models.fixture import PREFIX


@dataclass(frozen=True)
class Recalibrated:
    """For the summary: whether it was there already, and the header of the new model."""

    there: bool
    header: dict[str, Any]


def recalibrate(
    model: str, predictions: str, output: Path, manifest: Manifest | None, *, overwrite: bool = False
) -> Recalibrated:
    """Write a model whose heads are calibrated on the slides of some predictions of it.

    Of the folder that ``predict`` wrote, every head is calibrated on all slides; of an out-of-fold table, each on the
    slides of its own fold.

    Args:
        predictions: as ``read_predictions`` takes them; manifest: labels and patients, where the predictions have none.

    Raises:
        InputError: predictions of another model, of slides that its heads were trained on, or too few.
        UsageError: labels are missing, or another file is at ``output``.
    """
    header, tensors = load_tensors(model, "model")
    found = read_predictions(predictions)
    if not found.task.classes:
        raise InputError(
            f"{found.source}: predictions of {found.task.name}; only probabilities of classes are calibrated"
        )
    if found.of_model != last_digest(header):
        raise InputError(f"{found.source}: not predicted by {model}; give predictions of that model")
    (own,) = join([found], manifest)
    if own.leaks:
        raise InputError(f"{found.source}: {own.leaks[0]}; calibrate on slides of other patients")
    if set(own.classes) != set(header["classes"]):
        raise InputError(f"{found.source}: other classes than {model}; give predictions of that model")
    slides = _of_heads(own, header, model)
    heads = [calibrate_head(labels, p, patients) for labels, p, patients in slides]
    if all(h.method == "none" for h in heads):
        raise InputError(f"{found.source}: no head can be calibrated: {heads[0].reason}")
    settings: dict[str, Any] = {"kind": found.kind}
    data = [[labels.tolist(), p.round(9).tolist(), list(patients)] for labels, p, patients in slides]
    inputs = {"model": last_digest(header), "predictions": digest({"slides": data}, {})}
    made = step("calibrate", settings, inputs)
    if up_to_date(output, made["digest"], lambda p: load_tensors(p, "model")[0], overwrite):
        return Recalibrated(True, load_tensors(output, "model")[0])
    new = {
        **header,
        "calibration": {
            "of": "named",
            "slides": own.rows["slide_id"].nunique(),
            "patients": own.rows["patient_id"].nunique(),
            "predictions": Path(found.source).name,
            "digest": inputs["predictions"],
            "date": made["date"],
            "heads": [h.as_json() for h in heads],
        },
        "history": [*header["history"], made],
    }
    new["calibration_patients"] = _patients(own, heads, slides, new)
    if "fixture" in header:  # what its tiles are answered changes with the calibration
        raw = tensors[f"{PREFIX}probabilities"].numpy()
        answer = calibrated_heads(new, raw).mean(0)
        new["fixture"] = {**header["fixture"], "answer": [round(float(p), 9) for p in answer]}
    save_tensors(output, tensors, new)
    return Recalibrated(False, new)


def _of_heads(own: Predictions, header: dict[str, Any], model: str) -> list[tuple[np.ndarray, np.ndarray, list[str]]]:
    """For each head labels [n], its probabilities before calibration [n, C] and patients [n] of its slides, with the
    classes in the model's order."""
    order = [own.classes.index(c) for c in header["classes"]]
    labels = own.rows["label"].map(list(header["classes"]).index).to_numpy(np.int64)
    patients, count = own.rows["patient_id"].astype(str).tolist(), len(header["heads"])
    if own.kind == "predict":
        if own.heads is None or own.heads.shape[1] != count:
            raise InputError(
                f"{own.source}: does not say what each head of {model} said (a teacher answered, or it is damaged); "
                "predict again without --escalate"
            )
        return [(labels, own.heads[:, k][:, order], patients) for k in range(count)]
    if "fold_of" in header:
        raise InputError(
            f"{own.source}: {model} holds several heads a fold, and an out-of-fold table does not say what each of "
            "them said; give the folder that `lrmil predict` wrote, of other slides"
        )
    raw = (own.probabilities if own.raw is None else own.raw)[:, order]
    folds = own.rows["fold"].to_numpy(np.int64)
    rows = [np.flatnonzero(folds == k + 1) for k in range(count)]
    return [(labels[i], raw[i], [patients[j] for j in i]) for i in rows]


def _patients(
    own: Predictions,
    heads: list[HeadCalibration],
    slides: list[tuple[np.ndarray, np.ndarray, list[str]]],
    header: dict[str, Any],
) -> dict[str, Any]:
    """``calibration_patients`` of the new header: by the head that did not see them; new to all, by all together."""
    if own.kind == "predict":
        labels, _, patients = slides[0]
        raw = np.stack([p for _, p, _ in slides], 1)
        mean = np.stack([calibrated_heads(header, of_slide).mean(0) for of_slide in raw])
        return by_patient("named", [-1] * len(labels), patients, labels.tolist(), mean).as_json()
    rows = [
        (k, patient, int(label), p)
        for k, (head, (labels, raw, patients)) in enumerate(zip(heads, slides))
        for patient, label, p in zip(patients, labels, head.apply(raw))
    ]
    head, who, label, p = zip(*rows)
    return by_patient("named", head, who, label, np.stack(p)).as_json()


def describe(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """What changed, a line a head.

    Args:
        before, after: headers of the model and of the new one.
    """
    old = before.get("calibration") or {}
    was = [h["method"] for h in old["heads"]] if "heads" in old else ["as it was"] * len(after["calibration"]["heads"])
    lines = []
    for k, (method, h) in enumerate(zip(was, after["calibration"]["heads"]), 1):
        if h["method"] == "none":
            lines.append(f"head {k}: {method} -> as it is ({h['reason']})")
            continue
        losses = h["log_loss"]
        how = ", ".join(f"{s:.3g}" for s in h["scale"]), ", ".join(f"{b:+.3g}" for b in h["offset"])
        shift = "" if h["method"] == "temperature" else f", intercepts {how[1]}"
        scale = f"T {1 / h['scale'][0]:.3g}" if h["method"] == "temperature" else f"slopes {how[0]}"
        lines.append(
            f"head {k}: {method} -> {h['method']} ({scale}{shift}) by {h['slides']} slides; "
            f"log loss {losses['raw']:.3f} -> {losses[h['method']]:.3f} (each slide left out)"
        )
    return lines
