"""AHDMIL, step 2 (selective/README 4): the screener learns DMIN's masks, and DMIN is tuned on what the screener keeps.

HDMIL is the same with one branch, hard masks alone and DMIN frozen (selective/README 4.5).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lrmil_cli.device import optimizer_for, seed_everything
from lrmil_cli.errors import LrmilError, UsageError
from lrmil_cli.heads import MILOutput
from lrmil_cli.heads.dmin import DMIN, straight_through, union_rate
from lrmil_cli.progress import phase
from lrmil_cli.selective.screener import Screener, Screening, cross_ema, refresh_statistics, screen, seeded_screener
from lrmil_cli.training.loop import Fit, draw_order
from lrmil_cli.training.objectives import Objective
from lrmil_cli.training.streamed import counts_of, in_order

#: How often a fold starts anew, with another seed, where no epoch kept a share within the window.
RESTARTS = 3


@dataclass(frozen=True)
class ScreenSettings:
    """How the screener is made and trained. Defaults are AHDMIL's; their sources: selective/README 6.

    Attributes:
        screen_px, source: of the screening images; branches: 1 or 2.
        p_soft: chance that a step learns raw scores, not masks.
        cross_ema: what the branches take over of each other after an epoch; freeze_dmin: DMIN is not tuned.
        window: kept rate on validation that a checkpoint must have, None for any.
        official_modes: DMIN with dropout makes the targets, and the screener with batch statistics the masks, as in the
            official code.
    """

    screen_px: int = 16
    source: str = "lr-tiles"
    branches: int = 2
    p_soft: float = 0.0
    cross_ema: float = 0.0
    freeze_dmin: bool = False
    lipn_lr: float = 1e-5
    dmin_lr: float = 1e-5
    weight_decay: float = 1e-5
    window: tuple[float, float] | None = (0.3, 1.0)
    official_modes: bool = False
    epochs: int = 200
    patience: int = 5
    seed: int = 0

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "window": list(self.window) if self.window else None}


#: The methods, as changes of the defaults.
METHODS: dict[str, dict[str, Any]] = {
    "ahdmil": {},
    "hdmil": {"branches": 1, "p_soft": 0.0, "cross_ema": 0.0, "freeze_dmin": True, "lipn_lr": 1e-4, "window": None},
}


def screen_settings(method: str, changes: dict[str, Any]) -> ScreenSettings:
    """The settings of a method, with what the user asked for on top.

    Raises:
        UsageError: values that make no sense, alone or together.
    """
    s = replace(ScreenSettings(), **{**METHODS[method], **changes})
    if s.cross_ema and s.branches != 2:
        raise UsageError("--cross-ema is between two branches; give --branches 2, or leave it out")
    if s.freeze_dmin and "dmin_lr" in changes:
        raise UsageError(
            f"--dmin-lr: DMIN is frozen ({'--freeze-dmin' if 'freeze_dmin' in changes else f'--method {method}'}) "
            "and learns nothing"
        )
    if min(s.lipn_lr, s.dmin_lr) <= 0:
        raise UsageError("--lipn-lr and --dmin-lr must be above 0")
    if s.window and not 0 <= s.window[0] < s.window[1] <= 1:
        raise UsageError(
            f"--keep-rate-window {s.window[0]:g},{s.window[1]:g}: give two shares A,B with 0 <= A < B <= 1, or none"
        )
    return s


class Instances(NamedTuple):
    """One slide for step 2: HR features [N, D] and screening images uint8 [N, s, s, 3] of the same tiles."""

    features: Tensor
    images: Tensor


@dataclass
class ScreenedFit(Fit):
    """DMIN and the screener that belong together; ``curves`` and ``best_epoch`` are of the last start.

    Attributes:
        starts: that were needed; skipped: training slides, for having one tile.
    """

    head: DMIN
    screener: Screener
    starts: int
    skipped: int


def screener_loss(scores: Tensor, target: Tensor, soft: bool) -> dict[str, Tensor]:
    """Terms of the screener's loss, each the mean over branches (selective/README 4.1).

    L1 to DMIN's masks (or raw scores), and squared error of the kept rate.

    Args:
        scores: of the branches [B, C, N]; target: DMIN's raw scores [C, N].
        soft: learn these, not the masks ``target > 0``.
    """
    mask = (target > 0).to(scores.dtype)
    rate = mask.amax(0).mean()
    l1, square = [], []
    for own in scores:
        hard = straight_through(torch.sigmoid(own))
        l1.append(((own - target) if soft else (hard - mask)).abs().mean())
        square.append((union_rate(hard) - rate) ** 2)
    return {"soft" if soft else "hard": torch.stack(l1).mean(), "rate": torch.stack(square).mean()}


def answer(head: DMIN, screener: Screener, slide: Instances) -> tuple[MILOutput, Screening]:
    """What the head says of what the screener keeps of a slide, and the screening, each in the mode it is in."""
    screening = screen(screener, slide.images)
    return head.select(slide.features, screening.used), screening


def fit_screened(
    teacher: DMIN,
    slides: Sequence[Instances],
    objective: Objective,
    train: Sequence[int],
    val: Sequence[int],
    settings: ScreenSettings,
    *,
    say: Callable[[str], None] = lambda text: None,
) -> ScreenedFit:
    """Train a screener and tune a copy of ``teacher``; start anew where no checkpoint is within the kept-rate window.

    Args:
        slides: all of the cohort; objective: what is learned of them; train, val: indices.

    Raises:
        LrmilError: no start came within the window; the message shows the kept rates. Or the loss is no longer finite.
    """
    tried, own = [], 0.0
    for start in range(RESTARTS + 1):
        fit = _fit_once(teacher, slides, objective, train, val, replace(settings, seed=settings.seed + 1000 * start))
        if fit.best_epoch:
            fit.starts = start + 1
            return fit
        tried.append(", ".join(f"{row['val_kept']:.2f}" for row in fit.curves[:8]))
        own = fit.curves[-1]["train_target_kept"]
        say(f"no epoch kept a share within {settings.window}: {tried[-1]}")
    low, high = settings.window or (0.0, 1.0)
    raise LrmilError(
        f"the screener kept a share outside the window {low:g} to {high:g} in {RESTARTS + 1} starts "
        f"(kept on validation, by epoch: {'; '.join(tried)}; DMIN itself keeps {own:.2f} in training); "
        "widen --keep-rate-window, raise --lipn-lr, or train the teacher with another retention"
    )


def _fit_once(
    teacher: DMIN,
    slides: Sequence[Instances],
    objective: Objective,
    train: Sequence[int],
    val: Sequence[int],
    settings: ScreenSettings,
) -> ScreenedFit:
    """One start. ``best_epoch`` is 0 where no epoch could be kept."""
    seed_everything(settings.seed)
    rng = np.random.default_rng(settings.seed)
    device = next(teacher.parameters()).device
    head = copy.deepcopy(teacher).requires_grad_(not settings.freeze_dmin)
    screener = seeded_screener(head.num_classes, settings.branches, settings.seed).to(device)
    decay = settings.weight_decay
    optimizer = optimizer_for("adam", screener.parameters(), device, lr=settings.lipn_lr, weight_decay=decay)
    tuner = None
    if not settings.freeze_dmin:
        tuner = optimizer_for("adam", head.parameters(), device, lr=settings.dmin_lr, weight_decay=decay)
    counts = counts_of(slides)
    usable = [i for i in train if counts[i] > 1]  # one image has no batch statistics
    if not usable:
        raise LrmilError("every training slide has a single HR tile; the screener cannot learn from them")
    curves: list[dict[str, Any]] = []
    best, best_epoch, state = np.inf, 0, None
    loss = next(iter(objective.watched))
    cross_ema(screener, settings.cross_ema)
    with phase("", settings.epochs, "epoch", at_most=True) as told:
        for epoch in range(1, settings.epochs + 1):
            order = draw_order(objective.strata, usable, objective.of_classes, rng)
            steps = objective.steps(order, rng)
            means = _epoch(head, screener, slides, objective, steps, optimizer, tuner, settings, rng)
            cross_ema(screener, settings.cross_ema)
            if not settings.official_modes:
                refresh_statistics(screener, (s.images for s in in_order(slides, usable)))
            row: dict[str, Any] = {"epoch": epoch, **{f"train_{k}": v for k, v in means.items()}}
            if not np.isfinite(row["train_total"]) or not np.isfinite(row.get(f"train_{_tuned(objective)}", 0.0)):
                raise LrmilError(
                    f"training diverged in epoch {epoch} (loss {row['train_total']}); lower --lipn-lr or --dmin-lr"
                )
            row |= validate(head, screener, slides, objective, val)
            curves.append(row)
            told.advance()
            inside = settings.window is None or settings.window[0] <= row["val_kept"] <= settings.window[1]
            if row[loss] < best and inside:
                best, best_epoch, state = row[loss], epoch, copy.deepcopy((head.state_dict(), screener.state_dict()))
            elif epoch - best_epoch >= settings.patience:
                break
    if state is not None:
        head.load_state_dict(state[0])
        screener.load_state_dict(state[1])
    return ScreenedFit(
        head.eval().requires_grad_(False),
        curves,
        best_epoch,
        screener.eval().requires_grad_(False),
        1,
        len(train) - len(usable),
    )


def _epoch(
    head: DMIN,
    screener: Screener,
    slides: Sequence[Instances],
    objective: Objective,
    steps: list[list[int]],
    optimizer: torch.optim.Optimizer,
    tuner: torch.optim.Optimizer | None,
    settings: ScreenSettings,
    rng: np.random.Generator,
) -> dict[str, float]:
    """One pass: for each slide the screener learns, then of each step DMIN where there is a ``tuner``.

    Returns:
        means of all terms and kept rates.
    """
    noted: dict[str, list[float]] = {}
    loaded = iter(in_order(slides, [i for own in steps for i in own]))
    for own in steps:
        outs = []
        for _ in own:
            slide = next(loaded)
            values = _screener_step(head, screener, slide, optimizer, settings, rng)
            for name, value in values.items():
                noted.setdefault(name, []).append(float(value.detach()))
            if tuner is not None:
                head.train()
                screener.train(settings.official_modes)
                outs.append(answer(head, screener, slide)[0])
        if tuner is not None:
            terms = objective.terms(head, own, outs)
            loss = torch.stack([weight * term for weight, term in terms.values()]).sum()
            tuner.zero_grad(set_to_none=True)
            loss.backward()
            tuner.step()
            noted.setdefault(_tuned(objective), []).append(float(loss.detach()))
    return {name: float(np.mean(own)) for name, own in noted.items()}


def _screener_step(
    head: DMIN,
    screener: Screener,
    slide: Instances,
    optimizer: torch.optim.Optimizer,
    settings: ScreenSettings,
    rng: np.random.Generator,
) -> dict[str, Tensor]:
    """The screener learns DMIN's mask of one slide; terms of its loss and kept rates."""
    with torch.no_grad():
        target = head.train(settings.official_modes).relevance(slide.features)
    scores = screener.train()(slide.images)
    terms = screener_loss(scores, target, rng.random() < settings.p_soft)
    loss = torch.stack(list(terms.values())).sum()
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    return {
        "total": loss,
        **terms,
        "kept": (scores.detach().mean(0) > 0).any(0).float().mean(),
        "target_kept": (target > 0).any(0).float().mean(),
    }


def _tuned(objective: Objective) -> str:
    """What the loss that DMIN is tuned by is called in the curves."""
    return "ce" if objective.of_classes else "loss"


def predict(
    head: DMIN, screener: Screener, slides: Sequence[Instances], objective: Objective, index: Sequence[int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of ``slides[i]`` for each i of ``index``, in evaluation mode: what is said float64 [n, K] (as the objective has
    it), kept rate (before fallbacks) and share of HR tiles read [n]."""
    head.eval()
    screener.eval()
    said, kept, read = [np.zeros((0, objective.outputs))], [], []
    with torch.no_grad():
        for slide in in_order(slides, index):
            out, screening = answer(head, screener, slide)
            said.append(objective.said(out)[None])
            kept.append(screening.kept_rate)
            read.append(float(screening.used.any(0).float().mean()))
    return np.concatenate(said), np.array(kept), np.array(read)


def validate(
    head: DMIN, screener: Screener, slides: Sequence[Instances], objective: Objective, index: Sequence[int]
) -> dict[str, Any]:
    """How good head and screener are on the slides of ``index``.

    Returns:
        what the objective watches, ``val_kept`` of the fused masks, and ``val_agreement``, the share of mask entries
        that are DMIN's own.
    """
    said, kept, _ = predict(head, screener, slides, objective, index)
    with torch.no_grad():
        same = [
            float(((head.relevance(s.features) > 0) == screen(screener, s.images).mask).float().mean())
            for s in in_order(slides, index)
        ]
    return {
        **objective.judged(said, index),
        "val_kept": float(kept.mean()),
        "val_agreement": float(np.mean(same)),
    }
