"""Cross-validation of a head: one fit a fold, out-of-fold predictions, metrics, curves.

Teacher and student share it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
import pandas as pd
import torch

from lrmil_cli.errors import UsageError
from lrmil_cli.evaluation.head_calibration import HeadCalibration, calibrate_head
from lrmil_cli.evaluation.metrics import show
from lrmil_cli.files.manifest import Manifest
from lrmil_cli.heads import Bag, MILHead, PyramidBag, build_head, head_defaults
from lrmil_cli.progress import phase
from lrmil_cli.targets.outputs import Outputs
from lrmil_cli.targets.task import Task
from lrmil_cli.training.bags import Bags
from lrmil_cli.training.folds import fold_names, members
from lrmil_cli.training.loop import ExtraTerms, Fit, TrainSettings, fit_head, predict_bags
from lrmil_cli.training.objectives import Objective, objective_of

#: Fold number (from 1) -> the bags of all slides of the manifest, in its order.
BagsOfFold = Callable[[int], Bags[Bag | PyramidBag]]


@dataclass(frozen=True)
class HeadSpec:
    """Which head, with which options."""

    name: str
    options: dict[str, Any]


def head_spec(name: str, options: dict[str, Any], task: Task = Task()) -> HeadSpec:
    """A head that can be built, and learns a task.

    Raises:
        UsageError: unknown head or option, one that learns classes only, or options that no bag goes through, said
            before any tile is encoded.
    """
    with torch.random.fork_rng(devices=[]):
        head = build_head(name, 8, 2, options, of_classes=task.classes)
        if head.takes == "pyramid":
            raise UsageError(
                f"--head {name} looks at a pyramid of tiles; train it with `lrmil distill-student --method {name}`"
            )
        try:
            out = head(torch.randn(20, 8), torch.arange(40).view(20, 2))
            if task.classes:
                terms = head.loss_terms(out, torch.tensor(1))
            else:
                terms = head.target_terms(out, out.logits.sum(), lambda one, other: (one - other).sum())
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
        parts: who was in it; raw: what the head says [n, K] by part, ``val`` and ``test``: probabilities as they are,
            or of another task what :func:`lrmil_cli.targets.outputs.said` makes of logits.
        calibration: of the head, by its validation slides: no test slide has a say in it; None of another task.
    """

    fold: int
    fit: Fit
    parts: dict[str, list[str]]
    raw: dict[str, np.ndarray]
    calibration: HeadCalibration | None

    def said(self, part: str) -> np.ndarray:
        """Of a part [n, K], probabilities calibrated."""
        return self.raw[part] if self.calibration is None else self.calibration.apply(self.raw[part])

    @property
    def outputs(self) -> list[Outputs]:
        """How the numbers of the head are read; empty of classes."""
        return [] if self.fit.outputs is None else [self.fit.outputs]

    def heads(self, part: str) -> list[np.ndarray]:
        """What each head says of a part, [n, K]."""
        return [self.raw[part]]

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
    def outputs(self) -> list[Outputs]: ...
    def heads(self, part: str) -> list[np.ndarray]: ...
    @property
    def probabilities(self) -> np.ndarray: ...


def judged(
    manifest: Manifest, parts: dict[str, list[str]], predict: Callable[[list[int]], np.ndarray]
) -> tuple[dict[str, np.ndarray], HeadCalibration | None]:
    """What a head says of its validation and test slides, and its calibration, as :class:`FoldResult` has them.

    Args:
        predict: indices of slides in the manifest -> what the head says [n, K].
    """
    at = {e.slide_id: i for i, e in enumerate(manifest)}
    entries = list(manifest)
    raw = {part: predict([at[s] for s in parts[part]]) for part in ("val", "test")}
    if not manifest.task.classes:
        return raw, None
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
    extra_terms: Callable[[int, list[str], Objective], ExtraTerms | None] = lambda fold, train_ids, objective: None,
    like: Callable[[int], Outputs | None] = lambda fold: None,
    known: Callable[[int], Fit | None] = lambda fold: None,
    done: Callable[[FoldResult], None] = lambda result: None,
    only: int | None = None,
    who: str = "training",
    say: Callable[[str], None] = lambda text: None,
) -> list[FoldResult]:
    """Fit one head a fold.

    Args:
        bags_of_fold: what each fold trains on.
        extra_terms: fold number, training slide ids, what is learned -> distillation terms of that fold.
        like: fold number -> how the numbers of the teacher's head are read, which the head of that fold takes over.
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
            weighted = settings.class_weights
            objective = objective_of(manifest, index["train"], weighted=weighted, like=like(k), device=bags.device)
            fit = there = known(k)
            if fit is None:
                # Seeded before the head exists: fold k is the same whether or not another fold was trained before.
                head = seeded_head(spec, bags.dim, objective, settings.seed + k).to(bags.device)
                fit = fit_head(
                    head,
                    bags.all,
                    objective,
                    index["train"],
                    index["val"],
                    settings,
                    extra_terms=extra_terms(k, parts["train"], objective),
                )
            else:
                fit.head.to(bags.device)
            best = fit.curves[fit.best_epoch - 1]
            kept = f", kept {best['val_kept']:.2f}" if "val_kept" in best else ""
            watched, named = list(objective.watched.items())[-1]
            reached = f"best {fit.best_epoch}, {named} {show(best[watched])}{kept}"
            say(f"fold {k}: {len(fit.curves)} epochs, {reached}")
            says = partial(predict_bags, fit.head, bags.all, objective)
            result = FoldResult(k, fit, parts, *judged(manifest, parts, says))
            if there is None:
                done(result)
            if (how := result.calibration) is not None:
                said = f"calibrated by {how.method}" if not how.reason else f"not calibrated ({how.reason})"
                say(f"fold {k}: {said}")
            results.append(result)
            told.advance(idle=there is not None)
    if bags is not None:
        bags.all.forget()
    return results


def seeded_head(spec: HeadSpec, in_dim: int, objective: Objective, seed: int) -> MILHead:
    """A new head for what is learned, whose random weights depend on ``seed`` only."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build_head(spec.name, in_dim, objective.outputs, spec.options, of_classes=objective.of_classes)
