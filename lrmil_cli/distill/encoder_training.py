"""Stage 1: patch-level cross-resolution distillation of the LR encoder (distill/README 4, equations 1 and 2).

The loss of a batch is in ``patch_loss.py``, the batches in ``region_batches.py``, the HR targets in ``hr_tokens.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from lrmil_cli.ahead import Prefetch
from lrmil_cli.device import grad_scaler, seed_everything
from lrmil_cli.distill.hr_tokens import load_targets
from lrmil_cli.distill.learner import Learner, make_learner
from lrmil_cli.distill.patch_loss import batch_loss
from lrmil_cli.distill.region_batches import (
    Regions,
    TileReader,
    batches,
    epoch_order,
    hold_out,
    on_device,
    read_regions,
    turn_batch,
)
from lrmil_cli.distill.settings import Stage1Settings
from lrmil_cli.distill.slide_pairs import SlidePairs
from lrmil_cli.distill.stage1_checkpoint import Progress, resume, save_checkpoint
from lrmil_cli.distill.stage1_estimate import say_cost
from lrmil_cli.distributed import World
from lrmil_cli.encoders.vit import Encoder
from lrmil_cli.errors import LrmilError
from lrmil_cli.progress import TILES, phase


@dataclass
class Stage1Result:
    """What a run of stage 1 came to.

    Attributes:
        encoder: the LR encoder; curves: one row of numbers an epoch, the first (epoch 0) before training.
        best_epoch: the one that was kept; checkpoint: of the run, for the caller to remove once the encoder is kept.
    """

    encoder: Encoder
    curves: list[dict[str, float]]
    best_epoch: int
    checkpoint: Path


@dataclass
class _Run:
    """What all steps of a run share; ``together`` is the learner with gradients averaged over the processes."""

    learner: Learner
    together: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    settings: Stage1Settings
    device: torch.device
    reader: TileReader
    world: World

    @property
    def final(self) -> bool:
        """Whether batches need the targets of the final loss."""
        return self.settings.final_loss != "none"

    @property
    def ahead(self) -> int:
        """Batches read while one is worked on; on a CPU reading would only take time from the model."""
        return 0 if self.device.type == "cpu" else 4


def distill(
    teacher: Encoder,
    train: list[SlidePairs],
    val: list[SlidePairs],
    settings: Stage1Settings,
    *,
    cache: Path,
    key: str,
    device: torch.device,
    attention: dict[str, np.ndarray] | None = None,
    workers: int | None = None,
    world: World = World(),
    say: Callable[[str], None] = lambda text: None,
    student: Encoder | None = None,
) -> Stage1Result:
    """Train the LR encoder.

    N processes with batches of B tiles take the steps of one process with batches of N B.

    Args:
        teacher: the HR encoder; frozen. student: what becomes the LR encoder; a copy of the teacher if None.
        train, val: paired slides; an empty ``val`` holds out a tenth of the regions of ``train``.
        cache: folder of HR targets and of the checkpoint.
        key: digest of the run; a checkpoint of another run is not used.
        attention: slide id -> [N] teacher attention of each target row, for ``final_loss="attention"``.
        workers: threads that read tiles; a core each if None. world: the processes that train together.

    Raises:
        InputError: a slide cannot be read, or there are no pairs.
        MachineError: the disk cannot hold the HR targets, or takes no more.
        LrmilError: the loss is no longer finite.
    """
    teacher = teacher.to(device).eval()
    student = None if student is None else student.to(device)
    say_cost(
        teacher,
        train,
        val,
        settings,
        cache=cache,
        device=device,
        workers=workers,
        world=world,
        say=say,
        student=student,
    )
    seed_everything(settings.seed)
    final = settings.final_loss != "none"

    def regions(slides: list[SlidePairs]) -> Regions:
        targets = load_targets(
            teacher, slides, settings.layers, final, cache, device, say, workers=workers, world=world
        )
        return read_regions(slides, targets, None if attention is None else [attention[s.slide_id] for s in slides])

    train_set = regions(train)
    val_set = regions(val) if val else None
    if val_set is None:
        train_set, val_set = hold_out(train_set, settings.seed)
    learner = make_learner(teacher, student, settings, train[0].ratio)
    run = _Run(
        learner,
        world.together(learner),
        torch.optim.Adam([p for p in learner.parameters() if p.requires_grad], lr=settings.lr),
        grad_scaler(device),
        settings,
        device,
        TileReader(workers),
        world,
    )
    checkpoint = cache / f"checkpoint.{key[:16]}.pt"
    try:
        progress = _train(run, train_set, val_set, checkpoint, key, say)
    finally:
        run.reader.close()
    encoder = learner.encoder
    encoder.model.load_state_dict(progress.best_weights or (teacher if student is None else student).weights())
    if progress.best_weights is None:
        say("no epoch was better than the start; the encoder is returned as it was (try another --lr)")
    return Stage1Result(encoder.eval().requires_grad_(False), progress.curves, progress.best_epoch, checkpoint)


def _train(
    run: _Run, train_set: Regions, val_set: Regions, checkpoint: Path, key: str, say: Callable[[str], None]
) -> Progress:
    """Epoch after epoch, from the checkpoint on if there is one."""
    settings = run.settings
    progress = resume(checkpoint, key, run.learner, run.optimizer, run.scaler, run.device)
    if progress is not None:
        say(f"resumed after epoch {progress.epoch}")
    else:
        with phase("stage 1: the encoder as it is"):
            start = {"epoch": 0, **_validate(run, val_set)}
        progress = Progress(best=start["val_loss"], curves=[start])  # what it starts from is the first candidate
        say(_line(start, settings))
    with phase("stage 1", settings.epochs, "epoch", at_most=True) as told:
        told.advance(progress.epoch, idle=True)
        while progress.epoch < settings.epochs and progress.epoch - progress.best_epoch < settings.patience:
            progress.epoch += 1
            mean = _train_epoch(run, train_set, progress)
            row = {"epoch": progress.epoch, "train_loss": mean, **_validate(run, val_set)}
            progress.curves.append(row)
            if row["val_loss"] < progress.best:
                progress.best, progress.best_epoch = row["val_loss"], progress.epoch
                progress.best_weights = {k: v.detach().cpu().clone() for k, v in run.learner.encoder.weights().items()}
            say(_line(row, settings))
            if run.world.first:
                save_checkpoint(checkpoint, key, run.learner, run.optimizer, run.scaler, progress)
            told.advance()
    return progress


def _cut(order: np.ndarray, size: int) -> list[np.ndarray]:
    return [order[k : k + size] for k in range(0, len(order), size)]


def own_part(group: np.ndarray, world: World) -> tuple[np.ndarray, bool]:
    """This process's part of a batch of all processes, and whether it counts.

    One that gets nothing takes a tile all the same, because all must take the step.
    """
    part = np.array_split(group, world.size)[world.rank]
    return (part, True) if len(part) else (group[:1], False)


def step_scale(mask: Tensor, weighting: str, counts: bool, world: World) -> tuple[Tensor, Tensor]:
    """What the means of this process must be multiplied by.

    Their average over the processes is then the mean over the whole batch.

    Args:
        mask: bool [B, K], children of this process's regions; counts: of :func:`own_part`.

    Returns:
        of the layers' losses, of the final one; :func:`lrmil_cli.distill.losses.masked_region_mean` says what they are
        means of.
    """
    regions = (mask.sum(1) > 0).sum() * counts
    own = torch.stack([mask.sum() * counts if weighting == "child" else regions, regions]).float()
    whole = world.sum(own.clone()).clamp(min=1)
    of_layers, of_final = own * world.size / whole
    return of_layers, of_final


def _train_epoch(run: _Run, data: Regions, progress: Progress) -> float:
    """One pass over the regions; the mean loss."""
    settings, world, optimizer, scaler = run.settings, run.world, run.optimizer, run.scaler
    rng = np.random.default_rng((settings.seed, progress.epoch))
    whole = settings.batch_size * world.size
    order = epoch_order(data, settings.steps_per_epoch and settings.steps_per_epoch * whole, rng)
    run.together.train()
    total, seen = 0.0, 0
    groups = _cut(order, whole)
    parts = [own_part(g, world) for g in groups]
    ahead = Prefetch(batches(data, [p for p, _ in parts], run.reader, run.final), run.ahead)
    with phase("", sum(map(len, groups)), TILES) as told:
        for arrays, group, (_, counts) in zip(ahead, groups, parts):
            batch = on_device(arrays, run.device)
            if settings.augment:
                batch = turn_batch(batch, int(rng.integers(8)))
            progress.step += 1
            for param_group in optimizer.param_groups:
                param_group["lr"] = settings.lr * min(1.0, progress.step / max(1, settings.warmup))
            scale = step_scale(batch.mask, settings.weighting, counts, world) if world.size > 1 else (1.0, 1.0)
            loss, _ = batch_loss(
                run.together,
                batch.tiles,
                batch.targets,
                batch.mask,
                settings,
                batch.final,
                batch.attention,
                scale,
            )
            value = float(world.sum(loss.detach() / world.size))
            if not np.isfinite(value):
                raise LrmilError(
                    f"stage 1 diverged in epoch {progress.epoch} (loss {value}); lower --lr, or try --normalize ln"
                )
            optimizer.zero_grad(set_to_none=True)
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_([p for p in run.together.parameters() if p.grad is not None], settings.clip)
            scaler.step(optimizer)
            scaler.update()
            total, seen = total + value * len(group), seen + len(group)
            told.advance(len(group))
    return total / seen


@torch.inference_mode()
def _validate(run: _Run, data: Regions) -> dict[str, float]:
    """Means over all regions, or over their children where the loss weighs those; no batch size has a say in them."""
    learner, settings, device, world = run.learner, run.settings, run.device, run.world
    learner.eval()
    layers = settings.layers
    by_child = [f"cosine_{l}" for l in layers]
    if settings.weighting == "child":
        by_child += [f"loss_{l}" for l in layers]
    names = [f"{k}_{l}" for l in layers for k in ("loss", "cosine")]
    if run.final:
        names.append("loss_final")
    sums = dict.fromkeys([*names, "children", "regions"], 0.0)
    groups = world.share(_cut(np.arange(len(data)), settings.batch_size))
    with phase("validating", sum(map(len, groups)), TILES) as told:
        for arrays in Prefetch(batches(data, groups, run.reader, run.final), run.ahead):
            batch = on_device(arrays, device)
            _, parts = batch_loss(
                learner, batch.tiles, batch.targets, batch.mask, settings, batch.final, batch.attention
            )
            counts = {"children": int(batch.mask.sum()), "regions": len(batch.tiles)}
            for k, v in parts.items():
                sums[k] += float(v) * counts["children" if k in by_child else "regions"]
            for k, n in counts.items():
                sums[k] += n
            told.advance(len(batch.tiles))
    # On the device because nccl sums nothing else; an Apple GPU knows no float64.
    summed = world.sum(
        torch.tensor(list(sums.values()), dtype=torch.float32 if device.type == "mps" else torch.float64, device=device)
    )
    *totals, children, regions = map(float, summed)
    mean = {k: v / (children if k in by_child else regions) for k, v in zip(names, totals)}
    loss = sum(mean[f"loss_{l}"] for l in layers) / len(layers) + settings.lambda_final * mean.get("loss_final", 0.0)
    return {"val_loss": loss, **{f"val_{k}": v for k, v in mean.items()}}


def _line(row: dict[str, float], settings: Stage1Settings) -> str:
    layers = ", ".join(
        f"block {l} {row[f'val_loss_{l}']:.4g} (cos {row[f'val_cosine_{l}']:.3f})" for l in settings.layers
    )
    final = f", final {row['val_loss_final']:.4g}" if "val_loss_final" in row else ""
    return f"epoch {int(row['epoch'])}: validation {row['val_loss']:.4g}; {layers}{final}"
