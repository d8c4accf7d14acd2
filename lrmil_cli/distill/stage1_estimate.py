"""What a run of stage 1 will cost, said before it begins: tiles, disk, and hours measured on its first batches."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from lrmil_cli.device import device_label, synchronize
from lrmil_cli.distill.hr_tokens import compute_targets, open_targets, target_paths
from lrmil_cli.distill.learner import make_learner
from lrmil_cli.distill.patch_loss import batch_loss
from lrmil_cli.distill.region_batches import TileReader, read_regions
from lrmil_cli.distill.settings import Stage1Settings
from lrmil_cli.distill.slide_pairs import SlidePairs
from lrmil_cli.distributed import World
from lrmil_cli.encoders.pipeline import CPU_BATCH, BatchSize
from lrmil_cli.encoders.vit import Encoder
from lrmil_cli.errors import MachineError
from lrmil_cli.matching.paired_slide import keep_targets
from lrmil_cli.progress import phase
from lrmil_cli.units import duration

#: Batches of a run from which on it is worth measuring a few of them first.
WORTH_MEASURING = 200
#: HR tiles encoded at a time while they are timed on a GPU.
GPU_BATCH = 128


def say_cost(
    teacher: Encoder,
    train: list[SlidePairs],
    val: list[SlidePairs],
    settings: Stage1Settings,
    *,
    cache: Path,
    device: torch.device,
    workers: int | None,
    world: World,
    say: Callable[[str], None],
    student: Encoder | None = None,
) -> None:
    """Say what is to be done, and how long it will take where that is worth measuring.

    Raises:
        MachineError: the disk cannot hold the HR targets that are missing. InputError: a slide cannot be read.
    """
    slides, final = train + val, settings.final_loss != "none"
    weights = teacher.digest()
    files = [list(map(open_targets, target_paths(cache, s, weights, settings.layers, final).values())) for s in slides]
    missing = [s for s, own in zip(slides, files) if None in own]
    value = max((f.dtype.itemsize for own in files for f in own if f is not None), default=2)
    tile = value * target_values(teacher, len(settings.layers), final)
    whole, wanted = (tile * sum(s.targets for s in some) for some in (slides, missing))
    free = _free(cache)
    if wanted > free:
        raise MachineError(
            f"{cache}: the HR targets of {len(missing)} slides need {_size(wanted)}, and {_size(free)} are free there; "
            "choose a folder on another disk with --cache DIR, or fewer LR tiles of each slide with "
            "--max-tiles-per-slide N"
        )
    regions, targets = sum(s.regions for s in slides), sum(s.targets for s in slides)
    text = f"{regions} LR tiles, {targets} HR tiles, HR targets of {_size(whole)} in {cache}"
    if missing:
        text += f" ({_size(wanted)} to be made, {_size(free)} free)"
    together = settings.batch_size * world.size
    steps = settings.steps_per_epoch or math.ceil(sum(s.regions for s in train) / together)
    checks = math.ceil(sum(s.regions for s in val) / together)
    hr_tiles = math.ceil(sum(s.targets for s in missing) / world.size)
    batch = CPU_BATCH if device.type == "cpu" else GPU_BATCH
    if world.first and hr_tiles / batch + settings.epochs * steps >= WORTH_MEASURING:
        with phase("measuring the first batches"):
            own = tile_seconds(teacher, missing[0], settings, batch, device, workers) if missing else 0.0
            step, check = step_seconds(teacher, student, train[0], settings, device, workers)
        encoding, epoch = hr_tiles * own, steps * step + checks * check
        text += f"; on {device_label(device)} about " + (f"{duration(encoding)} for them and " if missing else "")
        text += f"{duration(epoch)} an epoch, {duration(encoding + settings.epochs * epoch)} for {settings.epochs}"
        text += " (measured on the first batches)"
    say(text)


def target_values(teacher: Encoder, layers: int, final: bool) -> int:
    """Numbers that are kept of an HR tile: its class token after each layer, and its final embedding."""
    return layers * teacher.width + (teacher.embed_dim if final else 0)


def tile_seconds(
    teacher: Encoder, slide: SlidePairs, settings: Stage1Settings, batch: int, device: torch.device, workers: int | None
) -> float:
    """Seconds to read and encode one HR tile: what the tiles of two batches cost on top of those of one."""

    def seconds(tiles: int) -> float:
        some = slide.narrowed(lambda p: keep_targets(p, np.arange(min(tiles, len(p.hr_index)))))
        size, began = BatchSize(batch, device), time.perf_counter()
        work = compute_targets(teacher, some, settings.layers, settings.final_loss != "none", device, size, workers)
        for _ in work:
            pass
        return time.perf_counter() - began

    seconds(batch)  # the first also pays for what is set up once
    one, three = min(batch, slide.targets), min(3 * batch, slide.targets)
    few, more = seconds(one), seconds(three)
    return max(more - few, 0.0) / (three - one) if three > one else few / one


def step_seconds(
    teacher: Encoder,
    student: Encoder | None,
    slide: SlidePairs,
    settings: Stage1Settings,
    device: torch.device,
    workers: int | None,
) -> tuple[float, float]:
    """Seconds of a step of training and of a batch of validation, on LR tiles of one slide.

    A copy of what is to learn does so from zeros and is thrown away. A GPU works while the next tiles are read.
    """
    data = read_regions([slide], [{}], None)
    rows = np.arange(settings.batch_size) % len(data)
    reader = TileReader(workers)
    try:
        reader.read(data, rows[:1])  # opens the slide
        began = time.perf_counter()
        tiles = torch.from_numpy(reader.read(data, rows)).to(device)
        read = time.perf_counter() - began
    finally:
        reader.close()
    learner = make_learner(teacher, student, settings, slide.ratio)
    cells = len(rows), slide.ratio**2
    targets = torch.zeros(*cells, len(settings.layers), teacher.width, device=device)
    final = torch.zeros(*cells, teacher.embed_dim, device=device) if settings.final_loss != "none" else None
    mask = torch.ones(cells, dtype=torch.bool, device=device)
    for _ in range(2):  # the second counts
        began = time.perf_counter()
        loss, _ = batch_loss(learner, tiles, targets, mask, settings, final)
        synchronize(device)
        forward = time.perf_counter() - began
        loss.backward()
        synchronize(device)
        both = time.perf_counter() - began
    join = sum if device.type == "cpu" else max
    return join((read, both)), join((read, forward))


def _free(folder: Path) -> int:
    """Bytes free where a folder is or will be."""
    there = next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists())
    return shutil.disk_usage(there).free


def _size(nbytes: float) -> str:
    return f"{nbytes / 1e9:.1f} GB" if nbytes >= 1e9 else f"{nbytes / 1e6:.1f} MB"
