"""What a head is trained for: the loss of a step, and what validation is judged by (training/README 3.2).

One class a task, of one interface; the loop knows no task. The mathematics is in ``targets/``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from lrmil_cli.errors import UsageError
from lrmil_cli.evaluation.metrics import auc
from lrmil_cli.evaluation.survival import Followed, harrell_c
from lrmil_cli.files.manifest import Manifest
from lrmil_cli.heads import MILHead, MILOutput
from lrmil_cli.targets import outputs as read
from lrmil_cli.targets.outputs import Outputs, Scale, risk_of, survival_curve
from lrmil_cli.targets.regression import RegressionLoss, fit_scale, regression_distillation, regression_loss
from lrmil_cli.targets.survival import (
    RISK_SET,
    cox_loss,
    hazard_borders,
    hazard_distillation,
    hazard_loss,
    hazard_offset,
    interval_of,
    risk_sets,
)
from lrmil_cli.targets.task import Task

#: ``{name: (weight, loss)}``.
Terms = dict[str, tuple[float, Tensor]]


class Objective(ABC):
    """A task with the targets of all slides.

    Attributes:
        outputs: numbers that a head gives; of_classes: each is the logit of a class.
        watched: columns of the curves that validation is judged by, and what to call them; the first is the loss.
    """

    outputs: int
    of_classes: bool = False
    watched: dict[str, str]

    def reading(self, train: Sequence[int], says: Callable[[Sequence[int]], np.ndarray]) -> Outputs | None:
        """How the numbers of a trained head are read (targets/README 8); None for classes.

        Args:
            train: its training slides; says: slides -> what it says of them [n, K].
        """
        return None

    @property
    def strata(self) -> np.ndarray | None:
        """int [n], of which balanced sampling draws equal shares; None where there are no classes."""
        return None

    def steps(self, order: Sequence[int], rng: np.random.Generator) -> list[list[int]]:
        """The bags of an epoch, together where a loss needs several."""
        return [[i] for i in order]

    @abstractmethod
    def terms(self, head: MILHead, index: Sequence[int], outs: Sequence[MILOutput]) -> Terms:
        """Supervised losses of a step: what the head says of the slides ``index``."""

    @abstractmethod
    def said(self, out: MILOutput) -> np.ndarray:
        """What an output says, float64 [K]: probabilities, a number, or a survival curve or log risk."""

    @abstractmethod
    def judged(self, said: np.ndarray, index: Sequence[int]) -> dict[str, float | None]:
        """The columns :attr:`watched` of some slides, from ``said`` [n, K]."""

    def score(self, row: dict[str, Any], monitor: str) -> tuple[float, float]:
        """Of a row of curves; the best epoch has the highest, and among equals the lower loss.

        Args:
            monitor: "loss" for the loss alone.
        """
        return score_of(row, self.watched, monitor)


class Classes(Objective):
    """Classification: the head's own loss, cross-entropy and AUC."""

    watched = {"val_ce": "validation cross-entropy", "val_auc": "validation AUC"}
    of_classes = True

    def __init__(
        self, labels: Sequence[int], classes: int, weights: Tensor | None = None, device: torch.device | None = None
    ):
        """Class index of every slide, and perhaps weights [C] of the classes; ``device``: where heads are trained."""
        self.labels, self.outputs = list(labels), classes
        self.weights = None if weights is None else weights.to(device)
        self._targets = torch.as_tensor(self.labels, device=device)  # there once, and not bag by bag

    @property
    def strata(self) -> np.ndarray:
        return np.asarray(self.labels)

    def terms(self, head: MILHead, index: Sequence[int], outs: Sequence[MILOutput]) -> Terms:
        (i,), (out,) = index, outs
        return head.loss_terms(out, self._targets[i], self.weights)

    def said(self, out: MILOutput) -> np.ndarray:
        return torch.softmax(_double(out.logits), 0).numpy()

    def judged(self, said: np.ndarray, index: Sequence[int]) -> dict[str, float | None]:
        truth = np.array([self.labels[i] for i in index])
        picked = np.clip(said[np.arange(len(truth)), truth], 1e-12, 1)
        return {"val_ce": float(-np.log(picked).mean()), "val_auc": auc(truth, said)}


class Numbers(Objective):
    """Regression (targets/README 2): one output, in standard deviations of the training slides."""

    watched = {"val_loss": "validation loss"}
    outputs = 1

    def __init__(self, values: Sequence[float], scale: Scale, loss: RegressionLoss = "huber"):
        """The number of every slide in its own unit."""
        self.values, self.scale, self.loss = np.asarray(values, float), scale, loss
        self._targets = torch.as_tensor(scale.standardised(self.values), dtype=torch.float32)

    def _loss(self, i: int, output: Tensor) -> Tensor:
        return regression_loss(output, self._targets[i].to(output.device), self.loss)

    def reading(self, train: Sequence[int], says: Callable[[Sequence[int]], np.ndarray]) -> Outputs:
        return self.scale.as_json()

    def terms(self, head: MILHead, index: Sequence[int], outs: Sequence[MILOutput]) -> Terms:
        return head.target_terms(outs[0], self._loss(index[0], outs[0].logits), regression_distillation)

    def said(self, out: MILOutput) -> np.ndarray:
        return self.scale.own_unit(_double(out.logits).numpy())

    def judged(self, said: np.ndarray, index: Sequence[int]) -> dict[str, float | None]:
        own = torch.as_tensor(self.scale.standardised(said), dtype=torch.float32)
        return {"val_loss": float(np.mean([float(self._loss(i, p)) for i, p in zip(index, own)]))}


class Hazards(Objective):
    """Survival by discrete hazards (targets/README 3): an output an interval of time."""

    watched = {"val_nll": "validation negative log likelihood", "val_c": "validation C-index"}

    def __init__(
        self, times: Sequence[float], events: Sequence[float], borders: np.ndarray, offset: np.ndarray | None = None
    ):
        """Time and event of every slide; the borders [B - 1] of the fold; ``offset`` [B] of :func:`hazard_offset`, to
        which the head's logits are added."""
        self.offset = np.zeros(len(borders) + 1) if offset is None else offset
        self.times, self.events = np.asarray(times, float), np.asarray(events, float) == 1
        self.interval, self.outputs, self.borders = interval_of(self.times, borders), len(borders) + 1, borders

    def reading(self, train: Sequence[int], says: Callable[[Sequence[int]], np.ndarray]) -> Outputs:
        about = {"borders": self.borders.tolist(), "offset": self.offset.tolist()}
        return about | {"cut": float(np.median(risk_of(says(train))))}

    def shifted(self, logits: Tensor) -> Tensor:
        """Logits [B] of hazards, of those of a head."""
        return logits.float() + torch.as_tensor(self.offset, dtype=torch.float32, device=logits.device)

    def terms(self, head: MILHead, index: Sequence[int], outs: Sequence[MILOutput]) -> Terms:
        (i,), (out,) = index, outs
        own = int(self.interval[i])

        def apart(student: Tensor, teacher: Tensor) -> Tensor:
            return hazard_distillation(self.shifted(student), self.shifted(teacher), own)

        return head.target_terms(out, hazard_loss(self.shifted(out.logits), own, bool(self.events[i])), apart)

    def said(self, out: MILOutput) -> np.ndarray:
        return survival_curve(_double(out.logits).numpy() + self.offset)

    def judged(self, said: np.ndarray, index: Sequence[int]) -> dict[str, float | None]:
        rows, own = np.arange(len(said)), self.interval[list(index)]
        before = np.concatenate([np.ones((len(said), 1)), said[:, :-1]], axis=1)[rows, own]
        chance = np.where(self.events[list(index)], before - said[rows, own], said[rows, own])
        return {
            "val_nll": float(-np.log(np.clip(chance, 1e-12, 1)).mean()),
            "val_c": harrell_c(_followed(self.times, self.events, risk_of(said), index)),
        }


class CoxRisks(Objective):
    """Survival by Cox's partial likelihood over risk sets (targets/README 4): a log risk."""

    watched = {"val_loss": "validation partial likelihood", "val_c": "validation C-index"}
    outputs = 1

    def __init__(self, times: Sequence[float], events: Sequence[float], borders: np.ndarray, size: int = RISK_SET):
        """Time and event of every slide; borders [B - 1], where survival is told; ``size``: bags of a risk set."""
        self.times, self.events, self.size = np.asarray(times, float), np.asarray(events, float) == 1, size
        self.borders = borders

    def reading(self, train: Sequence[int], says: Callable[[Sequence[int]], np.ndarray]) -> Outputs:
        rows, risks = list(train), says(train)[:, 0]
        centred = risks - (centre := float(risks.mean()))
        baseline = read.breslow(centred, self.times[rows], self.events[rows], self.borders)
        about = {"borders": self.borders.tolist(), "baseline": baseline.tolist(), "centre": centre}
        return about | {"cut": float(np.median(centred))}

    def steps(self, order: Sequence[int], rng: np.random.Generator) -> list[list[int]]:
        return risk_sets(self.events, order, self.size, rng)

    def _loss(self, risks: Tensor, index: Sequence[int]) -> Tensor:
        times, events = (torch.as_tensor(v[list(index)], device=risks.device) for v in (self.times, self.events))
        return cox_loss(risks, times, events)

    def terms(self, head: MILHead, index: Sequence[int], outs: Sequence[MILOutput]) -> Terms:
        loss = self._loss(torch.cat([out.logits for out in outs]), index)
        # Two branches of one head share its parameters, so their log risks, unlike those of two models, have one unit.
        own = [head.target_terms(out, loss, regression_distillation) for out in outs]
        return {name: (own[0][name][0], _mean([terms[name][1] for terms in own])) for name in own[0]}

    def said(self, out: MILOutput) -> np.ndarray:
        return _double(out.logits).numpy()

    def judged(self, said: np.ndarray, index: Sequence[int]) -> dict[str, float | None]:
        return {
            "val_loss": float(self._loss(torch.from_numpy(said[:, 0]), index)),
            "val_c": harrell_c(_followed(self.times, self.events, said[:, 0], index)),
        }


def objective_of(
    manifest: Manifest,
    train: Sequence[int],
    *,
    weighted: bool = False,
    like: Outputs | None = None,
    device: torch.device | None = None,
) -> Objective:
    """What a manifest teaches: scale and borders by the slides of ``train``, or those of a head that it is ``like``.

    Args:
        weighted: classes weigh inversely to their frequency in ``train``; device: where heads are trained.

    Raises:
        UsageError: weights where there are no classes.
        InputError: nothing to learn in ``train`` (:func:`lrmil_cli.targets.regression.fit_scale`).
    """
    task, entries = manifest.task, list(manifest)
    if weighted and not task.classes:
        raise UsageError(f"--class-weights weighs classes; {task.name} has none")
    if task.kind == "regression":
        values = [_known(e.value) for e in entries]
        scale = Scale(like["mean"], like["sd"]) if like else fit_scale([values[i] for i in train])
        return Numbers(values, scale, cast(RegressionLoss, task.loss))
    if task.kind == "survival":
        times, events = [_known(e.time) for e in entries], [_known(e.event) for e in entries]
        own = [times[i] for i in train], [events[i] for i in train]
        borders = np.asarray(like["borders"], float) if like else hazard_borders(*own, task.intervals)
        if task.loss == "cox":
            return CoxRisks(times, events, borders, task.risk_set)
        return Hazards(times, events, borders, np.asarray(like["offset"]) if like else hazard_offset(*own, borders))
    labels = [manifest.classes.index(str(e.label)) for e in entries]
    weights = class_weights(labels, train, len(manifest.classes)) if weighted else None
    return Classes(labels, len(manifest.classes), weights, device)


def watched_of(task: Task) -> dict[str, str]:
    """:attr:`Objective.watched` of a task."""
    if task.classes:
        return Classes.watched
    return Numbers.watched if task.kind == "regression" else (CoxRisks if task.loss == "cox" else Hazards).watched


def class_weights(labels: Sequence[int], train: Sequence[int], classes: int) -> Tensor:
    """Weights [C] inverse to the class frequency among ``train``, with mean 1 over its slides."""
    counts = np.bincount([labels[i] for i in train], minlength=classes)
    return torch.tensor(len(train) / (classes * np.maximum(counts, 1)), dtype=torch.float32)


def _known(value: float | None) -> float:
    assert value is not None, "manifests without it are not trained on"
    return float(value)


def score_of(row: dict[str, Any], watched: Iterable[str], monitor: str) -> tuple[float, float]:
    """:meth:`Objective.score` by the names of the columns that are watched."""
    loss, *other = (row[name] for name in watched)
    return (other[0] if other and other[0] is not None and monitor != "loss" else 0.0), -loss


def _followed(times: np.ndarray, events: np.ndarray, risks: np.ndarray, index: Sequence[int]) -> Followed:
    rows = list(index)
    return Followed(times[rows], events[rows], risks, np.asarray(rows).astype(str))


def _mean(losses: Sequence[Tensor]) -> Tensor:
    return losses[0] if len(losses) == 1 else torch.stack(list(losses)).mean()


def _double(logits: Tensor) -> Tensor:
    return logits.detach().cpu().double()  # an Apple GPU knows no float64
