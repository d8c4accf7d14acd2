"""Cross-validation of a head: one fit a fold, out-of-fold predictions, metrics, curves.

Teacher and student share it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
import pandas as pd
import torch

from lrmil_cli.errors import UsageError
from lrmil_cli.evaluation.head_calibration import HeadCalibration, calibrate_head
from lrmil_cli.evaluation.metrics import evaluate, metrics_table, show
from lrmil_cli.evaluation.prediction_sets import by_patient
from lrmil_cli.files.manifest import Manifest
from lrmil_cli.heads import Bag, MILHead, PyramidBag, build_head, head_defaults
from lrmil_cli.progress import phase
from lrmil_cli.training.bags import Bags
from lrmil_cli.training.folds import fold_names, members
from lrmil_cli.training.loop import ExtraTerms, Fit, TrainSettings, class_weights, fit_head, predict_bags
from lrmil_cli.training.objectives import Classes

#: Fold number (from 1) -> the bags of all slides of the manifest, in its order.
BagsOfFold = Callable[[int], Bags[Bag | PyramidBag]]


@dataclass(frozen=True)
class HeadSpec:
    """Which head, with which options."""

    name: str
    options: dict[str, Any]


def head_spec(name: str, options: dict[str, Any]) -> HeadSpec:
    """A head that can be built.

    Raises:
        UsageError: unknown head or option, or options that no bag goes through, said before any tile is encoded.
    """
    with torch.random.fork_rng(devices=[]):
        head = build_head(name, 8, 2, options)
        if head.takes == "pyramid":
            raise UsageError(
                f"--head {name} looks at a pyramid of tiles; train it with `lrmil distill-student --method {name}`"
            )
        try:
            terms = head.loss_terms(head(torch.randn(20, 8), torch.arange(40).view(20, 2)), torch.tensor(1))
            possible = all(bool(torch.isfinite(loss)) for _, loss in terms.values())
        except (RuntimeError, ValueError, ArithmeticError, IndexError):
            possible = False
    if not possible:
        raise UsageError(
            f"--head {name}: nothing can be trained with the options {options}; "
            "`lrmil info --heads` lists what they mean"
        )
    return HeadSpec(name, options)


def has_projection(spec: HeadSpec) -> bool:
    """Whether the head's instances are trained features, not the encoder's own."""
    return bool(spec.options.get("embed_dim", head_defaults(spec.name).get("embed_dim")))


@dataclass
class FoldResult:
    """One fold.

    Attributes:
        parts: who was in it; raw: probabilities [n, C] of the head by part, ``val`` and ``test``, as they are.
        calibration: of the head, by its validation slides: no test slide has a say in it.
    """

    fold: int
    fit: Fit
    parts: dict[str, list[str]]
    raw: dict[str, np.ndarray]
    calibration: HeadCalibration

    def said(self, part: str) -> np.ndarray:
        """Calibrated probabilities [n, C] of a part."""
        return self.calibration.apply(self.raw[part])

    @property
    def probabilities(self) -> np.ndarray:
        """Of the test slides, calibrated: what the fold is judged by."""
        return self.said("test")


class Judged(Protocol):
    """What is judged of a fold: a head, or several as one."""

    @property
    def fold(self) -> int: ...
    @property
    def parts(self) -> dict[str, list[str]]: ...
    @property
    def raw(self) -> dict[str, np.ndarray]: ...
    def said(self, part: str) -> np.ndarray: ...
    @property
    def probabilities(self) -> np.ndarray: ...


def judged(
    manifest: Manifest, parts: dict[str, list[str]], predict: Callable[[list[int]], np.ndarray]
) -> tuple[dict[str, np.ndarray], HeadCalibration]:
    """What a head says of its validation and test slides, and its calibration, as :class:`FoldResult` has them.

    Args:
        predict: indices of slides in the manifest -> probabilities [n, C].
    """
    at = {e.slide_id: i for i, e in enumerate(manifest)}
    entries = list(manifest)
    raw = {part: predict([at[s] for s in parts[part]]).reshape(-1, len(manifest.classes)) for part in ("val", "test")}
    own = [entries[at[s]] for s in parts["val"]]
    labels = np.array([manifest.classes.index(e.label) for e in own], np.int64)
    return raw, calibrate_head(labels, raw["val"], [e.patient_id for e in own])


def train_folds(
    manifest: Manifest,
    folds: pd.DataFrame,
    bags_of_fold: BagsOfFold,
    spec: HeadSpec,
    settings: TrainSettings,
    *,
    extra_terms: Callable[[int, list[str]], ExtraTerms | None] = lambda fold, train_ids: None,
    known: Callable[[int], Fit | None] = lambda fold: None,
    done: Callable[[FoldResult], None] = lambda result: None,
    only: int | None = None,
    who: str = "training",
    say: Callable[[str], None] = lambda text: None,
) -> list[FoldResult]:
    """Fit one head a fold.

    Args:
        bags_of_fold: what each fold trains on.
        extra_terms: fold number, training slide ids -> distillation terms of that fold.
        known: fold number -> a fit of an earlier, interrupted run.
        done: called after each fold that was not known, so that what is finished is kept.
        only: the one fold (from 1) to train; None for all.
        who: is trained, for the line that says how far it is.
    """
    ids = [e.slide_id for e in manifest]
    at = {slide_id: i for i, slide_id in enumerate(ids)}
    results = []
    bags: Bags[Bag | PyramidBag] | None = None
    names = fold_names(folds)
    with phase(who, len(names) if only is None else 1, "fold") as told:
        for k, name in enumerate(names, 1):
            if only not in (None, k):
                continue
            parts = members(folds, name)
            index = {part: [at[s] for s in slides] for part, slides in parts.items()}
            if bags is not None and bags is not bags_of_fold(k):
                bags.all.forget()
            bags = bags_of_fold(k)
            objective = class_objective(manifest, index["train"], settings, bags.device)
            fit = there = known(k)
            if fit is None:
                # Seeded before the head exists: fold k is the same whether or not another fold was trained before.
                head = seeded_head(spec, bags.dim, len(manifest.classes), settings.seed + k).to(bags.device)
                fit = fit_head(
                    head,
                    bags.all,
                    objective,
                    index["train"],
                    index["val"],
                    settings,
                    extra_terms=extra_terms(k, parts["train"]),
                )
            else:
                fit.head.to(bags.device)
            best = fit.curves[fit.best_epoch - 1]
            kept = f", kept {best['val_kept']:.2f}" if "val_kept" in best else ""
            reached = f"best {fit.best_epoch}, validation AUC {show(best['val_auc'])}{kept}"
            say(f"fold {k}: {len(fit.curves)} epochs, {reached}")
            says = partial(predict_bags, fit.head, bags.all, objective)
            result = FoldResult(k, fit, parts, *judged(manifest, parts, says))
            if there is None:
                done(result)
            how = result.calibration
            say(
                f"fold {k}: calibrated by {how.method}"
                if not how.reason
                else f"fold {k}: not calibrated ({how.reason})"
            )
            results.append(result)
            told.advance(idle=there is not None)
    if bags is not None:
        bags.all.forget()
    return results


def class_objective(manifest: Manifest, train: Sequence[int], settings: TrainSettings, device: torch.device) -> Classes:
    """The classes of a manifest as what is learned, weighed by the slides of ``train`` where that is asked for."""
    labels = [manifest.classes.index(e.label) for e in manifest]
    weights = class_weights(labels, train, len(manifest.classes)) if settings.class_weights else None
    return Classes(labels, len(manifest.classes), weights, device)


def seeded_head(spec: HeadSpec, in_dim: int, classes: int, seed: int) -> MILHead:
    """A new head whose random weights depend on ``seed`` only."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build_head(spec.name, in_dim, classes, spec.options)


def predictions_table(manifest: Manifest, results: Sequence[Judged]) -> pd.DataFrame:
    """Out-of-fold predictions: ``slide_id, patient_id, label, fold, predicted, prob_<class>..., raw_<class>...``, and
    ``site`` where the manifest knows any.

    ``prob_`` are calibrated, each head by its own validation slides, ``raw_`` are as the head has them.
    """
    entries = {e.slide_id: e for e in manifest}
    rows = []
    for r in results:
        for slide_id, p, raw in zip(r.parts["test"], r.probabilities, r.raw["test"]):
            e = entries[slide_id]
            rows.append(
                {
                    "slide_id": slide_id,
                    "patient_id": e.patient_id,
                    "label": e.label,
                    "fold": r.fold,
                    "site": e.site or "",
                    "predicted": manifest.classes[int(p.argmax())],
                    **{f"prob_{c}": float(v) for c, v in zip(manifest.classes, p)},
                    **{f"raw_{c}": float(v) for c, v in zip(manifest.classes, raw)},
                }
            )
    columns = ["slide_id", "patient_id", "label", "fold", *(["site"] if manifest.sites_from else []), "predicted"]
    columns += [f"{kind}_{c}" for kind in ("prob", "raw") for c in manifest.classes]
    return pd.DataFrame(rows, columns=columns)


def score(manifest: Manifest, results: Sequence[Judged]) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Metrics table (folds, mean, sd, pooled) and the pooled metrics of all out-of-fold slides."""
    truth = {e.slide_id: manifest.classes.index(e.label) for e in manifest}
    per_fold = {str(r.fold): evaluate([truth[s] for s in r.parts["test"]], r.probabilities) for r in results}
    labels = [truth[s] for r in results for s in r.parts["test"]]
    pooled = evaluate(labels, np.concatenate([r.probabilities for r in results]))
    return metrics_table(per_fold, pooled), pooled


def calibration(results: Sequence[FoldResult]) -> dict[str, Any]:
    """``calibration`` of a header: how each head is calibrated, by which slides (evaluation/README 6)."""
    heads = [r.calibration for r in results]
    return {"of": "validation", "slides": sum(h.slides for h in heads), "heads": [h.as_json() for h in heads]}


def conformal(manifest: Manifest, results: Sequence[Judged]) -> dict[str, Any]:
    """``calibration_patients`` of a header: what each head says, calibrated, of patients that it did not see.

    Those of the test slides of the folds; of one split those of its validation slides, since its test slides judge.
    """
    part, of = ("val", "validation") if len(results) == 1 else ("test", "test")
    entries = {e.slide_id: e for e in manifest}
    slides = [(n, entries[s]) for n, r in enumerate(results) for s in r.parts[part]]
    return by_patient(
        of,
        [n for n, _ in slides],
        [e.patient_id for _, e in slides],
        [manifest.classes.index(e.label) for _, e in slides],
        np.concatenate([r.said(part) for r in results]),
    ).as_json()


def curves_table(results: Sequence[FoldResult]) -> pd.DataFrame:
    """One row a fold and epoch: every loss term of training, validation cross-entropy and AUC."""
    return pd.DataFrame([{"fold": r.fold, **row} for r in results for row in r.fit.curves])


def summary(name: str, table: pd.DataFrame, folds: int) -> str:
    """One line for the terminal."""
    by = table.set_index("fold")
    if folds == 1:
        return (
            f"{name}: test accuracy {show(_value(by, 'pooled', 'accuracy'))}, AUC {show(_value(by, 'pooled', 'auc'))}"
        )
    parts = [
        f"{m} {show(_value(by, 'mean', c))} (sd {show(_value(by, 'sd', c))})"
        for m, c in (("accuracy", "accuracy"), ("AUC", "auc"))
    ]
    return f"{name}, {folds} folds: " + ", ".join(parts)


def _value(table: pd.DataFrame, row: str, column: str) -> float | None:
    value = float(pd.to_numeric(table[column])[row])
    return None if np.isnan(value) else value
