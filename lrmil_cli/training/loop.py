"""The loop that trains a MIL head: one bag a step, early stopping on validation, nothing hidden."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lrmil_cli.device import seed_everything
from lrmil_cli.errors import LrmilError, UsageError
from lrmil_cli.heads import Bag, MILHead, MILOutput, PyramidBag
from lrmil_cli.progress import phase
from lrmil_cli.targets.outputs import Outputs
from lrmil_cli.training.objectives import Objective, Terms
from lrmil_cli.training.optimizers import head_optimizer
from lrmil_cli.training.streamed import in_order

#: What a head is called with: ``head(*bag)``.
AnyBag = Bag | PyramidBag
#: (indices of the slides of a step, what the head says of them) -> further loss terms {name: (weight, loss)}
ExtraTerms = Callable[[Sequence[int], Sequence[MILOutput]], Terms]

#: Epochs without a better validation loss that a plateau may last.
PLATEAU = 5


@dataclass(frozen=True)
class TrainSettings:
    """How a head is trained. Defaults and their sources: training/README 3.1.

    Attributes:
        optimizer: "adam", "radam" or "lookahead-radam" (:mod:`lrmil_cli.training.optimizers`).
        accumulate: bags a step; the last one of an epoch may have fewer.
        schedule: "constant", "cosine" (to a twentieth), "step" (a fifth from half time on) or "plateau" (half after
            :data:`PLATEAU` epochs without a better validation loss).
        clip: gradient norm at most, of each part that a head clips by itself, 0 for no limit.
        min_epochs: no stopping before; select_from: epochs up to this one are not chosen.
        monitor: "auc" (ties by cross-entropy) or "loss", on validation.
    """

    lr: float = 1e-4
    epochs: int = 200
    patience: int = 20
    weight_decay: float = 0.0
    class_weights: bool = False
    balanced_sampling: bool = False
    seed: int = 0
    optimizer: str = "adam"
    betas: tuple[float, float] = (0.9, 0.999)
    schedule: str = "constant"
    clip: float = 0.0
    min_epochs: int = 0
    select_from: int = 0
    monitor: str = "auc"
    accumulate: int = 1

    def as_json(self) -> dict[str, Any]:
        """Without ``accumulate`` where it is 1, so that heads from before there was such a setting are up to date."""
        return {k: v for k, v in asdict(self).items() if k != "accumulate" or v != 1}


def settings_of(values: dict[str, Any]) -> TrainSettings:
    """The training settings among those of a header, such as a teacher's; what an older file lacks is the default."""
    names = {f.name for f in fields(TrainSettings)} & values.keys()
    known: dict[str, Any] = {k: tuple(v) if isinstance(v := values[k], list) else v for k in names}
    return TrainSettings(**known)


@dataclass
class Fit:
    """A trained head (the best epoch's weights are in it), one row of numbers an epoch, the best epoch, and how its
    numbers are read (None for classes)."""

    head: MILHead
    curves: list[dict[str, Any]]
    best_epoch: int
    outputs: Outputs | None = field(default=None, kw_only=True)


def fit_head(
    head: MILHead,
    bags: Sequence[AnyBag],
    objective: Objective,
    train: Sequence[int],
    val: Sequence[int],
    settings: TrainSettings,
    *,
    extra_terms: ExtraTerms | None = None,
) -> Fit:
    """Train ``head`` in place.

    Args:
        bags: every slide, on the head's device, or :class:`Streamed`; objective: what is learned of them.
        train, val: indices into ``bags``.
        extra_terms: distillation terms, called for training bags only.

    Returns:
        :class:`Fit`; selection by the objective: for classes by validation AUC, ties by lower cross-entropy, and by
        that alone where the AUC is undefined.

    Raises:
        LrmilError: the loss is no longer finite.
        UsageError: draws of each class alike are asked for where there are no classes.
    """
    assert head.of_classes == objective.of_classes, "a head is built for what it learns"
    seed_everything(settings.seed)
    device = next(head.parameters()).device
    optimizer = head_optimizer(
        settings.optimizer, head, device, lr=settings.lr, betas=settings.betas, weight_decay=settings.weight_decay
    )
    plateau = (
        torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=PLATEAU)
        if settings.schedule == "plateau"
        else None
    )
    rng = np.random.default_rng(settings.seed)
    best, best_epoch = (-np.inf, -np.inf), 0
    best_state: dict[str, Tensor] = {}
    curves: list[dict[str, Any]] = []
    with phase("", settings.epochs, "epoch", at_most=True) as told:
        for epoch in range(1, settings.epochs + 1):
            sums: dict[str, float] = {}
            if plateau is None:
                for group in optimizer.param_groups:
                    group["lr"] = settings.lr * rate(settings, epoch)
            lr = optimizer.param_groups[0]["lr"]
            head.train()
            steps = objective.steps(draw_order(objective.strata, train, settings.balanced_sampling, rng), rng)
            loaded, read = iter(in_order(bags, [i for own in steps for i in own])), 0
            for n, own in enumerate(steps, 1):
                told.item, read = f"slide {read + 1} of {len(train)}", read + len(own)
                outs = [head(*next(loaded)) for _ in own]
                terms = objective.terms(head, own, outs)
                if extra_terms is not None:
                    terms |= extra_terms(own, outs)
                loss = sum((w * t for w, t in terms.values()), torch.zeros((), device=device))
                (loss / settings.accumulate).backward()
                if n % settings.accumulate == 0 or n == len(steps):
                    if settings.clip:
                        for part in head.clipped_parts():
                            torch.nn.utils.clip_grad_norm_(part, settings.clip)
                    optimizer.step()
                    optimizer.zero_grad(set_to_none=True)
                noted = {name: t for name, (_, t) in terms.items()} | {"total": loss}
                for name, t in noted.items():
                    sums[name] = sums.get(name, 0.0) + len(own) * float(t.detach())
                for name, t in (note for out in outs for note in head.notes(out).items()):
                    sums[name] = sums.get(name, 0.0) + float(t.detach())
            row: dict[str, Any] = {"epoch": epoch, "lr": lr, **{f"train_{k}": v / len(train) for k, v in sums.items()}}
            if not np.isfinite(row["train_total"]):
                raise LrmilError(f"training diverged in epoch {epoch} (loss {row['train_total']}); lower --lr")
            row |= validate(head, bags, objective, val)
            if plateau is not None:
                plateau.step(row[next(iter(objective.watched))])
            curves.append(row)
            told.advance()
            score = objective.score(row, settings.monitor)
            if score > best or epoch == settings.select_from + 1:
                best, best_epoch, best_state = score, epoch, copy.deepcopy(head.state_dict())
            elif (
                epoch - best_epoch >= settings.patience
                and epoch >= settings.min_epochs
                and epoch > settings.select_from
            ):
                break
    head.load_state_dict(best_state)
    head.eval()
    outputs = objective.reading(train, lambda index: predict_bags(head, bags, objective, index))
    return Fit(head, curves, best_epoch, outputs=outputs)


def rate(settings: TrainSettings, epoch: int) -> float:
    """Learning rate of an epoch (from 1) as a share of ``settings.lr``, where it hangs on the epoch alone."""
    done = (epoch - 1) / settings.epochs
    if settings.schedule == "cosine":
        return 0.05 + 0.95 * (1 + np.cos(np.pi * done)) / 2
    return 0.2 if settings.schedule == "step" and done >= 0.5 else 1.0


def validate(head: MILHead, bags: Sequence[AnyBag], objective: Objective, index: Sequence[int]) -> dict[str, Any]:
    """What the objective watches, and the means of the head's own notes, of a set of bags."""
    head.eval()
    said, notes = [], []
    with torch.inference_mode():
        for bag in in_order(bags, index):
            out = head(*bag)
            said.append(objective.said(out))
            notes.append({name: float(t) for name, t in head.notes(out).items()})
    means = {f"val_{name}": float(np.mean([own[name] for own in notes])) for name in notes[0]}
    return objective.judged(np.stack(said), index) | means


def predict_bags(head: MILHead, bags: Sequence[AnyBag], objective: Objective, index: Sequence[int]) -> np.ndarray:
    """What the head says, float64 [n, K], of ``bags[i]`` for each i of ``index``, in evaluation mode."""
    head.eval()
    with torch.inference_mode():
        said = [objective.said(head(*bag)) for bag in in_order(bags, index)]
    return np.stack(said) if said else np.zeros((0, objective.outputs))


def draw_order(
    labels: Sequence[int] | np.ndarray | None, train: Sequence[int], balanced: bool, rng: np.random.Generator
) -> list[int]:
    """The order of one epoch: a permutation, or as many draws with equal chance for each class.

    Raises:
        UsageError: balanced where there are no classes.
    """
    index = np.asarray(train)
    if balanced and labels is None:
        raise UsageError("--balanced-sampling draws each class alike; this task has no classes")
    if not balanced or labels is None:
        return rng.permutation(index).tolist()
    own = np.asarray([labels[i] for i in train])
    counts = np.bincount(own)
    chance = 1 / counts[own]
    return rng.choice(index, len(index), p=chance / chance.sum()).tolist()
