"""Stage 1: patch-level cross-resolution distillation of the LR encoder (method 4, equations 1 and 2)."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lrmil_cli.ahead import Prefetch
from lrmil_cli.device import autocast, grad_scaler, seed_everything, to_device
from lrmil_cli.distill.hr_tokens import load_targets
from lrmil_cli.distill.losses import final_loss, masked_region_mean, patch_errors
from lrmil_cli.distill.region_batches import Regions, TileReader, batches, hold_out, turn, turn_cells
from lrmil_cli.distill.regions import pooling_matrix, region_means
from lrmil_cli.distributed import World
from lrmil_cli.encoders.vit import Encoder
from lrmil_cli.errors import LrmilError
from lrmil_cli.files.atomic import atomic_path
from lrmil_cli.matching.paired_slide import PairedSlide


@dataclass(frozen=True)
class Stage1Settings:
    """All that decides the result of stage 1. Defaults and their sources: method 4.2, 4.4, 4.6.

    Why the layers stay (0, 1, L-2) although they leave the last block untrained: on 76 composed slides of real tissue with
    DINOv2 ViT-S/14 (40 train, 24 test, no source block in two splits; one stage 1 of 4-6 epochs each at lr 1e-4, ABMIL,
    mean and sd of the test AUC over five seeds of the heads) the teacher had 0.876 +- 0.074 and the LR-only student
    0.485 +- 0.062; students of ``cls``: patch 0.918 +- 0.023 and lrmil 0.919 +- 0.022 with (0, 1, L-2), 0.856 +- 0.021 and
    0.864 +- 0.029 with the last block and the uniform final loss. ``mean`` was no better than ``cls`` on either side.
    A second cohort of the same make at 168 px input (six epochs, test AUC / accuracy over five seeds): teacher 0.77 +- 0.23 /
    0.73, LR-only 0.53 +- 0.10 / 0.54; (0, 1, L-2): patch 0.98 +- 0.02 / 0.94, lrmil 0.95 +- 0.02 / 0.94; the uniform final loss
    beside it: patch 0.93 +- 0.05 / 0.66, lrmil 0.98 +- 0.03 / 0.78, so it stays off.
    """

    layers: tuple[int, ...] = (0, 1, 10)
    lr: float = 1e-5
    epochs: int = 50
    patience: int = 20
    batch_size: int = 64
    warmup: int = 200
    clip: float = 1.0
    normalize: str = "none"
    weighting: str = "region"
    final_loss: str = "none"
    lambda_final: float = 1.0
    freeze_blocks: int = 0
    steps_per_epoch: int | None = None
    max_tiles_per_slide: int | None = None
    init: str = "teacher"
    augment: bool = False
    seed: int = 0

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "layers": list(self.layers)}


@dataclass
class Stage1Result:
    """The LR encoder, one row of numbers an epoch (epoch 0: before training), the best epoch, and the checkpoint of the run,
    which the caller removes once the encoder is kept."""

    encoder: Encoder
    curves: list[dict[str, float]]
    best_epoch: int
    checkpoint: Path


def distill(
    teacher: Encoder,
    train: list[PairedSlide],
    val: list[PairedSlide],
    settings: Stage1Settings,
    *,
    cache: Path,
    key: str,
    device: torch.device,
    attention: dict[str, np.ndarray] | None = None,
    workers: int | None = None,
    world: World = World(),
    say: Callable[[str], None] = lambda text: None,
) -> Stage1Result:
    """Train the LR encoder.

    N processes with batches of B tiles take the steps of one process with batches of N B.

    Args:
        teacher: the HR encoder; frozen. The student starts as a copy of it.
        train, val: paired slides; an empty ``val`` holds out a tenth of the regions of ``train``.
        cache: folder of HR targets and of the checkpoint; key: digest of the run, a checkpoint of another run is not used.
        attention: slide id -> [N] teacher attention of each target row, for ``final_loss="attention"``.
        workers: threads that read tiles; a core each if None. world: the processes that train together.

    Raises:
        InputError: a slide cannot be read, or there are no pairs.
        LrmilError: the loss is no longer finite.
    """
    seed_everything(settings.seed)
    teacher = teacher.to(device).eval()
    final = settings.final_loss != "none"

    def regions(slides: list[PairedSlide]) -> Regions:
        targets = load_targets(
            teacher, slides, settings.layers, final, cache, device, say, workers=workers, world=world
        )
        index = [(s, r) for s, p in enumerate(slides) for r in _capped(len(p.children), settings, p.slide_id)]
        weights = [attention[p.slide_id] for p in slides] if attention is not None else None
        return Regions(slides, targets, weights, np.array(index, np.int64).reshape(-1, 2))

    train_set = regions(train)
    val_set = regions(val) if val else None
    if val_set is None:
        train_set, val_set = hold_out(train_set, settings.seed)
    ratio = train[0].ratio
    student = _student(teacher, settings)
    together = world.together(student)
    pooling = pooling_matrix(student.grid, ratio).to(device)
    parameters = [p for p in student.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(parameters, lr=settings.lr)
    scaler = grad_scaler(device)
    state = _Progress()
    checkpoint = cache / f"checkpoint.{key[:16]}.pt"
    if checkpoint.exists() and _resume(checkpoint, key, student, optimizer, scaler, state, device):
        say(f"resumed after epoch {state.epoch}")
    else:
        state.curves.append({"epoch": 0, **_validate(student, val_set, settings, pooling, device, workers, world)})
        state.best = state.curves[0]["val_loss"]  # the copy it starts from is the first candidate
        say(_line(state.curves[0], settings))
    reader = TileReader(train, workers)
    try:
        while state.epoch < settings.epochs and state.epoch - state.best_epoch < settings.patience:
            state.epoch += 1
            mean = _train_epoch(together, train_set, reader, settings, pooling, device, optimizer, scaler, state, world)
            row = {
                "epoch": state.epoch,
                "train_loss": mean,
                **_validate(student, val_set, settings, pooling, device, workers, world),
            }
            state.curves.append(row)
            if row["val_loss"] < state.best:
                state.best, state.best_epoch = row["val_loss"], state.epoch
                state.best_weights = {k: v.detach().cpu().clone() for k, v in student.weights().items()}
            say(_line(row, settings))
            if world.first:
                _save_checkpoint(checkpoint, key, student, optimizer, scaler, state)
    finally:
        reader.close()
    student.model.load_state_dict(state.best_weights or teacher.weights())
    if state.best_weights is None:
        say("no epoch was better than the start; the encoder is returned as it was (try another --lr)")
    return Stage1Result(student.eval().requires_grad_(False), state.curves, state.best_epoch, checkpoint)


@dataclass
class _Progress:
    epoch: int = 0
    step: int = 0
    best: float = float("inf")
    best_epoch: int = 0
    best_weights: dict[str, Tensor] | None = None
    curves: list[dict[str, float]] = field(default_factory=list)


def _student(teacher: Encoder, settings: Stage1Settings) -> Encoder:
    """A trainable copy; poolers and heads, and the first ``freeze_blocks`` blocks, stay as they are."""
    student = copy.deepcopy(teacher)
    model = student.model.requires_grad_(True)
    frozen = [getattr(model, name, None) for name in ("head", "attn_pool", "fc_norm", "head_drop")]
    if settings.init == "random":
        kept = {id(m) for head in frozen if head is not None for m in head.modules()}
        for module in model.modules():
            if hasattr(module, "reset_parameters") and id(module) not in kept:
                module.reset_parameters()
    if settings.freeze_blocks:
        frozen += [model.patch_embed, *model.blocks[: settings.freeze_blocks]]
        for name in ("cls_token", "pos_embed", "reg_token"):
            if isinstance(getattr(model, name, None), torch.nn.Parameter):
                getattr(model, name).requires_grad_(False)
    for module in frozen:
        if module is not None:
            module.requires_grad_(False)
    return student.train()


def batch_loss(
    student: nn.Module,
    tiles: Tensor,
    targets: Tensor,
    mask: Tensor,
    settings: Stage1Settings,
    pooling: Tensor,
    final_targets: Tensor | None = None,
    attention: Tensor | None = None,
    scale: tuple[float | Tensor, float | Tensor] = (1.0, 1.0),
) -> tuple[Tensor, dict[str, Tensor]]:
    """L_patch (eq. 2), plus the final loss where it is on.

    Args:
        tiles: uint8 [B, P, P, 3]; targets: [B, K, |layers|, D]; mask: bool [B, K]; pooling: [r, g].
        final_targets: [B, K, D_e]; attention: [B, K]; scale: of the layers' losses and of the final one.

    Returns:
        scalar loss, and per-layer ``loss_<l>`` and ``cosine_<l>`` (detached).
    """
    with autocast(tiles.device):
        out = student(tiles, settings.layers, need_final=settings.final_loss != "none")
    total = tiles.new_zeros((), dtype=torch.float32)
    parts: dict[str, Tensor] = {}
    for i, layer in enumerate(settings.layers):
        means = region_means(out["tokens"][layer], pooling)
        loss = masked_region_mean(patch_errors(means, targets[:, :, i], settings.normalize), mask, settings.weighting)
        total = total + scale[0] * loss / len(settings.layers)
        with torch.no_grad():
            cosine = torch.cosine_similarity(means.detach(), targets[:, :, i].float(), dim=-1)
            parts[f"loss_{layer}"] = loss.detach()
            parts[f"cosine_{layer}"] = masked_region_mean(cosine, mask, "child")
    if settings.final_loss != "none":
        loss = final_loss(out["final"], final_targets, mask, attention)
        total = total + scale[1] * settings.lambda_final * loss
        parts["loss_final"] = loss.detach()
    return total, parts


def _cut(order: np.ndarray, size: int) -> list[np.ndarray]:
    return [order[k : k + size] for k in range(0, len(order), size)]


def own_part(group: np.ndarray, world: World) -> tuple[np.ndarray, bool]:
    """This process's part of a batch of all processes, and whether it counts: one that gets nothing takes a tile all the same, because
    all must take the step."""
    part = np.array_split(group, world.size)[world.rank]
    return (part, True) if len(part) else (group[:1], False)


def step_scale(mask: Tensor, weighting: str, counts: bool, world: World) -> tuple[Tensor, Tensor]:
    """What the means of this process must be multiplied by, so that their average over the processes is the mean over the whole batch.

    Args:
        mask: bool [B, K], children of this process's regions; counts: of :func:`own_part`.

    Returns:
        of the layers' losses, of the final one; see :func:`lrmil_cli.distill.losses.masked_region_mean` for what they are means of.
    """
    regions = (mask.sum(1) > 0).sum() * counts
    own = torch.stack([mask.sum() * counts if weighting == "child" else regions, regions]).float()
    whole = world.sum(own.clone()).clamp(min=1)
    return tuple(own * world.size / whole)


def _on(device: torch.device, batch: tuple) -> list[Tensor | None]:
    return [None if a is None else to_device(a, device) for a in batch]


def _train_epoch(student, data, reader, settings, pooling, device, optimizer, scaler, state, world) -> float:
    rng = np.random.default_rng((settings.seed, state.epoch))
    whole = settings.batch_size * world.size
    order = rng.permutation(len(data.index))
    if settings.steps_per_epoch:
        order = np.resize(order, settings.steps_per_epoch * whole)
    student.train()
    total, seen = 0.0, 0
    groups = _cut(order, whole)
    parts = [own_part(g, world) for g in groups]
    ahead = Prefetch(
        batches(data, [p for p, _ in parts], reader, settings.final_loss != "none"), 0 if device.type == "cpu" else 4
    )
    for batch, group, (_, counts) in zip(ahead, groups, parts):
        tiles, targets, mask, final_targets, attention = _on(device, batch)
        if settings.augment:
            view = int(rng.integers(8))
            tiles = turn(tiles, view)
            targets, mask, final_targets, attention = (
                turn_cells(a, view) for a in (targets, mask, final_targets, attention)
            )
        state.step += 1
        for param_group in optimizer.param_groups:
            param_group["lr"] = settings.lr * min(1.0, state.step / max(1, settings.warmup))
        scale = step_scale(mask, settings.weighting, counts, world) if world.size > 1 else (1.0, 1.0)
        loss, _ = batch_loss(student, tiles, targets, mask, settings, pooling, final_targets, attention, scale)
        value = float(world.sum(loss.detach() / world.size))
        if not np.isfinite(value):
            raise LrmilError(
                f"stage 1 diverged in epoch {state.epoch} (loss {value}); lower --lr, or try --normalize ln"
            )
        optimizer.zero_grad(set_to_none=True)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_([p for p in student.parameters() if p.grad is not None], settings.clip)
        scaler.step(optimizer)
        scaler.update()
        total, seen = total + value * len(group), seen + len(group)
    return total / seen


@torch.inference_mode()
def _validate(
    student: Encoder,
    data: Regions,
    settings: Stage1Settings,
    pooling: Tensor,
    device: torch.device,
    workers: int | None,
    world: World,
) -> dict[str, float]:
    """Means over all regions, or over all their children where that is what the loss weighs; no batch size has a say in them."""
    student.eval()
    by_child = [f"cosine_{l}" for l in settings.layers] + (
        [f"loss_{l}" for l in settings.layers] if settings.weighting == "child" else []
    )
    names = [
        *(f"{k}_{l}" for l in settings.layers for k in ("loss", "cosine")),
        *(["loss_final"] if settings.final_loss != "none" else []),
    ]
    sums = dict.fromkeys([*names, "children", "regions"], 0.0)
    reader = TileReader(data.slides, workers)
    groups = world.share(_cut(np.arange(len(data.index)), settings.batch_size))
    try:
        for batch in Prefetch(
            batches(data, groups, reader, settings.final_loss != "none"), 0 if device.type == "cpu" else 4
        ):
            tiles, targets, mask, final_targets, attention = _on(device, batch)
            _, parts = batch_loss(student, tiles, targets, mask, settings, pooling, final_targets, attention)
            children, regions = int(mask.sum()), len(tiles)
            for k, v in parts.items():
                sums[k] += float(v) * (children if k in by_child else regions)
            sums["children"] += children
            sums["regions"] += regions
    finally:
        reader.close()
    # On the device because nccl sums nothing else; an Apple GPU knows no float64.
    summed = world.sum(
        torch.tensor(list(sums.values()), dtype=torch.float32 if device.type == "mps" else torch.float64, device=device)
    )
    *totals, children, regions = map(float, summed)
    mean = {k: v / (children if k in by_child else regions) for k, v in zip(names, totals)}
    loss = sum(mean[f"loss_{l}"] for l in settings.layers) / len(settings.layers) + settings.lambda_final * mean.get(
        "loss_final", 0.0
    )
    return {"val_loss": loss, **{f"val_{k}": v for k, v in mean.items()}}


def _capped(regions: int, settings: Stage1Settings, slide_id: str) -> np.ndarray:
    if settings.max_tiles_per_slide is None or regions <= settings.max_tiles_per_slide:
        return np.arange(regions)
    rng = np.random.default_rng((settings.seed, *slide_id.encode()))
    return np.sort(rng.choice(regions, settings.max_tiles_per_slide, replace=False))


def _save_checkpoint(path: Path, key: str, student: Encoder, optimizer, scaler, state: _Progress) -> None:
    with atomic_path(path) as tmp:
        torch.save(
            {
                "key": key,
                "student": student.weights(),
                "optimizer": optimizer.state_dict(),
                "scaler": scaler.state_dict(),
                "epoch": state.epoch,
                "step": state.step,
                "best": state.best,
                "best_epoch": state.best_epoch,
                "best_weights": state.best_weights,
                "curves": state.curves,
            },
            tmp,
        )


def _resume(path: Path, key: str, student: Encoder, optimizer, scaler, state: _Progress, device: torch.device) -> bool:
    try:
        saved = torch.load(path, map_location=device, weights_only=True)
        if saved["key"] != key:
            return False
        student.model.load_state_dict(saved["student"])
        optimizer.load_state_dict(saved["optimizer"])
        scaler.load_state_dict(saved["scaler"])
        for name in ("epoch", "step", "best", "best_epoch", "best_weights", "curves"):
            setattr(state, name, saved[name])
        return True
    except Exception as e:  # a damaged checkpoint is no loss: training starts anew
        if isinstance(e, (KeyboardInterrupt, MemoryError)):
            raise
        return False


def _line(row: dict[str, float], settings: Stage1Settings) -> str:
    layers = ", ".join(
        f"block {l} {row[f'val_loss_{l}']:.4g} (cos {row[f'val_cosine_{l}']:.3f})" for l in settings.layers
    )
    final = f", final {row['val_loss_final']:.4g}" if "val_loss_final" in row else ""
    return f"epoch {int(row['epoch'])}: validation {row['val_loss']:.4g}; {layers}{final}"
