"""The receipt of a distillation: HR teacher, LR-only student and distilled student on the same out-of-fold patients.

Everything it says is read from the files beside a model, so that it can be written again at any time:
``<model>.predictions.csv``, ``<model>.lr-only.predictions.csv``, ``<model>.teacher.predictions.csv``,
``<model>.also.predictions.csv`` (students of another LR encoder), ``<model>.agreement.csv``, and the model's own
metadata (evaluation/README 9).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lrmil_cli.errors import InputError
from lrmil_cli.evaluation.evaluate_models import calibration_of, groups_of
from lrmil_cli.evaluation.evaluation_files import group_json
from lrmil_cli.evaluation.join_predictions import common
from lrmil_cli.evaluation.page import Block, Picture, to_html, to_markdown
from lrmil_cli.evaluation.plots import evaluation_picture
from lrmil_cli.evaluation.prediction_sets import (
    COVERAGE,
    by_patient,
    calibration_patients,
    held_out_sets,
    set_figures,
)
from lrmil_cli.evaluation.predictions import SLIDES, Predictions, read_predictions
from lrmil_cli.evaluation.receipt_page import receipt_blocks
from lrmil_cli.evaluation.scores import Score, at_level, differences, majority, metric_table
from lrmil_cli.evaluation.seed_spread import seed_spread, target_seed_spread
from lrmil_cli.evaluation.target_files import group_json as target_group_json
from lrmil_cli.evaluation.target_receipt import judge_students, students_picture, target_receipt_blocks
from lrmil_cli.files.atomic import write_bytes, write_text
from lrmil_cli.files.header import last_digest, step
from lrmil_cli.files.tables import read_table
from lrmil_cli.files.tensors import read_tensor_header
from lrmil_cli.progress import phase
from lrmil_cli.targets.task import PATIENT, bag_of, task_of

TITLES = {"teacher": "HR teacher", "lr_only": "LR-only student", "distilled": "distilled student"}
#: What the model itself is called where its preset distils less than all.
OWN_TITLES = {"lr-only": "LR-only student", "patch": "student of a distilled encoder"}
#: Which file beside the model holds the predictions of whom.
FILES = {
    "teacher": ".teacher.predictions.csv",
    "lr_only": ".lr-only.predictions.csv",
    "also": ".also.predictions.csv",
    "distilled": ".predictions.csv",
}
#: The picture of the slides where teacher and student disagree most.
DISAGREEMENT = ".disagreement.png"
#: What each seed said, of models that were trained with several.
SEEDS = ".seeds.csv"
COMPARISONS = (("distilled", "lr_only"), ("distilled", "also"), ("distilled", "teacher"), ("lr_only", "teacher"))


def receipt_header(model: str | Path) -> dict[str, Any]:
    """Header of a model file that there can be a receipt of.

    Raises:
        InputError: not a model, or of another method than LRMIL.
    """
    header = read_tensor_header(model, "model")
    if header.get("method", "lrmil") != "lrmil":
        raise InputError(
            f"{model}: a receipt is of a distilled student of LRMIL; this is a model of {header['method']}, compare it "
            "by `lrmil evaluate` without --receipt"
        )
    return header


#: What a receipt says of a task: its entries that are of the task alone, its picture, its page.
Content = Callable[[dict[str, Any], dict[str, Predictions], Path, str, int, int], dict[str, Any]]


@dataclass(frozen=True)
class Kind:
    """How the receipt of a task is made.

    Attributes:
        content: header of the model, predictions on the shared slides by who made them, the model file, level, draws,
            seed -> entries of the receipt, ``models`` without their titles among them.
        picture: the receipt and the same predictions -> PNG, and what it shows in words; None for none.
    """

    content: Content
    picture: Callable[[dict[str, Any], dict[str, Predictions]], tuple[bytes, str] | None]
    blocks: Callable[..., list[Block]]


def build_receipt(
    model: str | Path, *, level: str = "slide", draws: int = 2000, seed: int = 0
) -> tuple[dict[str, Any], dict[str, Predictions]]:
    """The content of a receipt, and the predictions that it is of (for pictures).

    Args:
        model: model file of ``distill-student``; level: slide or patient; draws: bootstrap resamples.

    Raises:
        InputError: not a model, or its predictions are not beside it.
    """
    model = Path(model)
    header = receipt_header(model)
    task = task_of(header)
    level = PATIENT if bag_of(header) == PATIENT else level
    beside = {n: _beside(model, f) for n, f in FILES.items()}
    found = {
        n: _own_predictions(path, last_digest(header), header)
        for n, path in beside.items()
        if n == "distilled" or path.exists()
    }
    shared = dict(zip(found, common(list(found.values()))))
    rows = shared["distilled"].rows
    if not len(rows):
        raise InputError(f"{model}: the predictions beside it have no slide in common; train the student again")
    own_title = OWN_TITLES.get(header["preset"], TITLES["distilled"])
    titles = {**TITLES, "also": header.get("also", ""), "distilled": own_title}
    content = KINDS[task.kind].content(header, shared, model, level, draws, seed)
    content["models"] = {n: {"title": titles[n], **own} for n, own in content["models"].items()}
    receipt = {
        "kind": "receipt",
        "version": 1,
        "model": model.name,
        "preset": header["preset"],
        "head": header["settings"]["head"],
        **({} if task.classes else {"target": task.as_json()}),
        "classes": list(header["classes"]),
        "level": level,
        **({"bag": PATIENT} if bag_of(header) == PATIENT else {}),
        "slides": sum(len(own.split("|")) for own in rows.groupby("slide_id")[SLIDES].first())
        if SLIDES in rows
        else rows["slide_id"].nunique(),
        "patients": rows["patient_id"].nunique(),
        "patients_apart": _patients_apart(header, rows),
        "folds": next(iter(shared.values())).rows["fold"].nunique(),
        **content,
        "cost": header.get("cost", {}),
        "agreement": _agreement(model),
        "encoder_saw_test_pixels": header["encoder_saw_test_pixels"],
        "bootstrap": {"draws": draws, "seed": seed, "level": 0.95},
        "trained": {
            **{k: header["history"][-1].get(k) for k in ("date", "lrmil")},
            "seed": header["settings"].get("seed"),
        },
    }
    return receipt, shared


def _of_classes(
    header: dict[str, Any], shared: dict[str, Predictions], model: Path, level: str, draws: int, seed: int
) -> dict[str, Any]:
    classes = tuple(header["classes"])
    cases = {n: p.cases() for n, p in shared.items()}
    scores = {
        name: metric_table(
            c.labels, c.probabilities, c.patients, c.folds, classes=classes, level=level, draws=draws, seed=seed
        )
        for name, c in cases.items()
    }
    judged = {name: at_level(c, level, classes) for name, c in cases.items()}
    first = next(iter(judged.values()))

    def compare(a: str, b: str) -> dict[str, Any]:
        both = judged[a].probabilities, judged[b].probabilities
        found = differences(first.labels, *both, first.patients, draws=draws, seed=seed)
        return {"a": a, "b": b, **{m: asdict(i) for m, i in found.items()}}

    positive = 1 if len(classes) == 2 else None
    name, share = majority(first.labels, classes)
    return {
        "majority": {"class": name, "share": share},
        "models": {
            n: {
                "metrics": {s.metric: _score(s) for s in own_scores},
                "calibration": {
                    who: {k: asdict(v) for k, v in figures.items()}
                    for who, figures in calibration_of(shared[n], level, positive, draws=draws, seed=seed).items()
                },
            }
            for n, own_scores in scores.items()
        },
        "prediction_sets": _held_out_sets(model, header, shared["distilled"], draws, seed),
        "seeds": seed_spread(_beside(model, SEEDS), last_digest(header), classes, level),
        "sites": _sites(header, shared, level, draws, seed),
        "differences": [compare(a, b) for a, b in COMPARISONS if a in cases and b in cases],
    }


def _class_picture(receipt: dict[str, Any], shared: dict[str, Predictions]) -> tuple[bytes, str]:
    classes, about = receipt["classes"], receipt["bootstrap"]
    cases = [(receipt["models"][n]["title"], at_level(p.cases(), receipt["level"], classes)) for n, p in shared.items()]
    png = evaluation_picture(cases, classes, draws=about["draws"], seed=about["seed"])
    return png, "ROC, calibration and confusion matrices of the models"


def _of_target(
    header: dict[str, Any], shared: dict[str, Predictions], model: Path, level: str, draws: int, seed: int
) -> dict[str, Any]:
    found = judge_students(shared, level, COMPARISONS, draws=draws, seed=seed)
    models = {
        n: {"metrics": {s.metric: _score(s) for s in scores}, **found.details[n]} for n, scores in found.scores.items()
    }
    sites = {n: [target_group_json(g) for g in own] for n, own in found.sites.items() if own}
    apart = (header.get("data") or {}).get("sites_apart")
    return {
        "models": models,
        "seeds": target_seed_spread(_beside(model, SEEDS), last_digest(header), level),
        "sites": {"apart": apart, "probe": header.get("site_probe"), "models": sites} if sites else None,
        "differences": [
            {"a": a, "b": b, **{m: asdict(i) for m, i in own.items()}} for (a, b), own in found.differences.items()
        ],
    }


def _target_picture(receipt: dict[str, Any], shared: dict[str, Predictions]) -> tuple[bytes, str] | None:
    titles = {n: m["title"] for n, m in receipt["models"].items()}
    return students_picture(shared, titles, receipt)


KINDS = {
    "classification": Kind(_of_classes, _class_picture, receipt_blocks),
    "regression": Kind(_of_target, _target_picture, target_receipt_blocks),
    "survival": Kind(_of_target, _target_picture, target_receipt_blocks),
}


def write_receipt(
    model: str | Path, *, output: str | Path | None = None, level: str = "slide", draws: int = 2000, seed: int = 0
) -> dict[str, Any]:
    """Write ``<model>.receipt.html``, ``.md``, ``.json`` and ``.png``; returns the content of the JSON.

    Args:
        output: stem of the files in place of ``<model>.receipt``.

    Raises:
        InputError: as :func:`build_receipt`; MachineError: a file cannot be written.
    """
    with phase("receipt"):
        receipt, shared = build_receipt(model, level=level, draws=draws, seed=seed)
    kind = KINDS[task_of(receipt).kind]
    stem = str(output) if output is not None else str(_beside(Path(model), ".receipt"))
    found = kind.picture(receipt, shared)
    shown = None if found is None else Picture(*found, Path(stem).name + ".png")
    apart = _disagreement(Path(model))
    if apart is not None and Path(stem).parent != Path(model).parent:  # the Markdown page names it
        write_bytes(Path(stem).parent / apart.name, apart.png)
    blocks = kind.blocks(receipt, shown, apart, step("receipt", {}, {}))
    title = f"What distillation bought: {receipt['model']}"
    if shown is not None:
        write_bytes(f"{stem}.png", shown.png)
    write_text(f"{stem}.md", to_markdown(title, blocks))
    write_text(f"{stem}.html", to_html(title, blocks))
    write_text(f"{stem}.json", json.dumps(receipt, indent=1, allow_nan=False) + "\n")
    return receipt


def _disagreement(model: Path) -> Picture | None:
    """The picture of the slides where teacher and student disagree most, if the training left one."""
    path = _beside(model, DISAGREEMENT)
    if not path.exists():
        return None
    return Picture(path.read_bytes(), "The held-out slides where teacher and student disagree most", path.name)


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


def cost_of(headers: dict[str, Sequence[dict[str, Any]]], tiles: dict[str, Sequence[int]]) -> dict[str, Any]:
    """Tiles and seconds a slide of ``hr``, ``lr`` and ``also`` (another LR encoder) from the headers of feature files.

    Args:
        headers: side -> headers of feature files; tiles: side -> tiles of the same slides.

    Returns:
        a side: ``slides``, ``tiles`` (mean a slide), ``seconds`` (mean over the slides whose file records it, else
        None), ``timed`` (how many those are), ``devices``; and ``tile_ratio``, ``seconds_ratio`` (None where unknown).
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
    for key, name in (("tiles", "tile_ratio"), ("seconds", "seconds_ratio")):
        hr, lr = (out.get(side, {}).get(key) for side in ("hr", "lr"))
        out[name] = hr / lr if hr and lr else None
    return out


def _held_out_sets(
    model: Path, header: dict[str, Any], own: Predictions, draws: int, seed: int
) -> dict[str, Any] | None:
    """What sets of :data:`COVERAGE` reach on patients that had no part in them; None where there are too few, or the
    model holds none of whom it was calibrated by."""
    if "calibration_patients" not in header:
        return None
    cases = own.cases()
    tested = by_patient(
        "test", [0] * len(cases.labels), cases.patients.tolist(), cases.labels.tolist(), cases.probabilities
    )
    found = held_out_sets(calibration_patients(header, str(model)), COVERAGE, tested)
    if found is None:
        return None
    figures = set_figures(*found, np.arange(len(found[1])).astype(str), COVERAGE, draws=draws, seed=seed)
    return asdict(figures)


def _sites(
    header: dict[str, Any], shared: dict[str, Predictions], level: str, draws: int, seed: int
) -> dict[str, Any] | None:
    """Figures by site of each model, whether folds keep sites apart, and whether features tell them; None where sites
    are not known."""
    groups = {
        n: [group_json(g, own.classes) for g in found]
        for n, own in shared.items()
        for found in groups_of(own, (), level, draws=draws, seed=seed).values()
    }
    if not groups:
        return None
    apart = (header.get("data") or {}).get("sites_apart")
    return {"apart": apart, "probe": header.get("site_probe"), "models": groups}


def _patients_apart(header: dict[str, Any], rows: pd.DataFrame) -> bool | None:
    """Whether no head saw another slide of a patient that it is judged on; None where nobody named the patients.

    Folds were checked against the manifest's patients when the model was trained; slides that were tested in different
    folds show where that was not so.
    """
    known = header.get("patients", {}).get("from")
    if known == "slides" or (known is None and (rows["slide_id"] == rows["patient_id"]).all()):
        return None
    tested = rows.groupby("slide_id")["fold"].agg(frozenset)
    return all(tested[own.unique()].nunique() == 1 for _, own in rows.groupby("patient_id")["slide_id"])


def _beside(model: Path, ending: str) -> Path:
    return model.with_name(model.stem + ending)


def _own_predictions(path: Path, digest: str, header: dict[str, Any]) -> Predictions:
    """A predictions table of the run that made the model.

    Raises:
        InputError: not there, damaged, or of another run.
    """
    found = read_predictions(str(path))
    same = found.classes == tuple(header["classes"]) and found.task.kind == task_of(header).kind
    if found.made_by.get("digest") != digest or not same:
        raise InputError(f"{path}: not of the run that made the model beside it; run `lrmil distill-student` again")
    return found


def _score(s: Score) -> dict[str, Any]:
    folds = {"mean": s.mean, "sd": s.sd, "folds": s.folds, "of_folds": s.of_folds}
    return {**asdict(s.pooled), **folds, "reason": s.reason}


def _agreement(model: Path) -> dict[str, Any]:
    """Means over slides of ``<model>.agreement.csv``, by student."""
    path = _beside(model, ".agreement.csv")
    if not path.exists():
        return {}
    _, table = read_table(path, "agreement")

    def mean(values: pd.Series) -> float | None:
        return float(values.mean()) if values.notna().any() else None

    return {
        str(student): {
            "slides": len(rows),
            **{c: mean(rows[c]) for c in ("regions", "rank_correlation", "k", "overlap", "chance")},
        }
        for student, rows in table.groupby("student")
    }
