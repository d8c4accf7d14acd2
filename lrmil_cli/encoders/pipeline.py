"""From the tiles of a slide to tensors: reader threads, a bounded queue, the device, the encoder.

On a GPU tiles are read while others are encoded; on a CPU in turn, because reading ahead would only take cores from the
encoder. Every command that encodes tiles does it here.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from lrmil_cli.ahead import Prefetch
from lrmil_cli.device import autocast, free_memory, is_out_of_memory, synchronize, to_device
from lrmil_cli.errors import MachineError
from lrmil_cli.progress import TILES, phase
from lrmil_cli.slides.reader import iter_batches
from lrmil_cli.slides.slide import Slide

#: Tiles encoded at a time on a CPU; one at a time is a fifth slower, more gain nothing.
CPU_BATCH = 16
#: On a GPU the size starts here and doubles as long as it pays.
GPU_FIRST_BATCH, GPU_LAST_BATCH = 32, 512
#: A larger batch must be this much faster to be kept.
WORTHWHILE = 1.05
#: What the tiles that wait for a GPU may take.
QUEUE_BYTES = 128_000_000

Tiles = Prefetch[tuple[np.ndarray, np.ndarray]]


@dataclass
class Seconds:
    """Seconds spent in each phase of a slide."""

    phases: dict[str, float] = field(default_factory=dict)

    def add(self, phase: str, seconds: float) -> None:
        self.phases[phase] = self.phases.get(phase, 0.0) + seconds

    def rounded(self) -> dict[str, float]:
        return {k: round(v, 3) for k, v in self.phases.items()}


class BatchSize:
    """How many tiles go to the device at a time, over all slides of a run.

    A size that was given stays. Else it is fixed on a CPU, and found on a GPU with the tiles that are to be encoded
    anyway: it doubles until a batch is no faster per tile. Where memory does not suffice it is halved and stays so.

    Attributes:
        now: tiles at a time; piece: tiles that the reader hands over at a time.
    """

    def __init__(self, given: int | None, device: torch.device, say: Callable[[str], None] = lambda text: None):
        on_gpu = device.type != "cpu"
        self.now = given or (GPU_FIRST_BATCH if on_gpu else CPU_BATCH)
        self.piece = min(self.now, GPU_FIRST_BATCH)
        self.searching = given is None and on_gpu
        self._say = say
        self._best = 0.0
        self._batches = 0

    def observe(self, tiles: int, seconds: float) -> None:
        """Learn from a batch of ``tiles`` while the size is being searched."""
        if not self.searching or tiles < self.now:
            return
        self._batches += 1
        if self._batches == 1:  # the first of a size also pays for what is set up once
            return
        rate = tiles / seconds
        if rate < self._best * WORTHWHILE:
            self.now //= 2
            self.searching = False
        elif self.now >= GPU_LAST_BATCH:
            self.searching = False
        else:
            self._best, self._batches = rate, 0
            self.now *= 2

    def halve(self, tiles: int) -> None:
        """The device had no memory for ``tiles`` at a time.

        Raises:
            MachineError: not even for one.
        """
        if tiles == 1:
            raise MachineError(
                "out of memory with a single tile; free memory on the device, or use --device cpu or a smaller "
                "--input-size"
            )
        self.searching = False
        self.now = max(1, tiles // 2)
        self._say(f"out of memory with {tiles} tiles at a time; going on with {self.now}")


def slides_ahead(device: torch.device) -> int:
    """How many slides are opened, searched for tissue and read while another is encoded (`lrmil_cli.ahead.in_turn`)."""
    return 0 if device.type == "cpu" else 2


def read_ahead(
    slide: Slide,
    boxes: np.ndarray,
    level: int,
    tile_px: int,
    *,
    device: torch.device,
    batch: BatchSize,
    bad: list[int] | None = None,
) -> Tiles:
    """Begin to read the tiles of a slide; on a CPU they are read when they are asked for.

    Args:
        boxes: int64 [N, 4], ``x, y, width, height`` in level-0 px.
        bad: as of :func:`lrmil_cli.slides.reader.iter_batches`; complete when all tiles were taken.

    Returns:
        a context manager and iterable of rows int64 [B] of ``boxes`` and pixels uint8 [B, tile_px, tile_px, 3]. Leave
        it before the slide is closed.
    """
    ahead = 0 if device.type == "cpu" else max(2, QUEUE_BYTES // (batch.piece * tile_px**2 * 3))
    return Prefetch(iter_batches(slide, boxes, level, tile_px, batch.piece, bad), ahead)


def encode_tiles(
    encode: Callable[[Tensor], tuple[Tensor, ...]],
    tiles: Iterable[tuple[np.ndarray, np.ndarray]],
    count: int,
    *,
    device: torch.device,
    batch: BatchSize,
    seconds: Seconds | None = None,
) -> list[np.ndarray]:
    """Encode tiles as they come in, a phase of the work.

    Args:
        encode: uint8 [B, P, P, 3] on the device -> tensors [B, ...].
        tiles: rows and pixels, as of :func:`read_ahead`; together all rows 0 to ``count`` - 1.
        seconds: filled with ``read`` (time that no tile was there) and ``encode``.

    Returns:
        one float32 array [count, ...] for each tensor, in the order of the rows; an empty list where there is no tile.

    Raises:
        InputError: the slide is damaged at a tile. MachineError: out of memory with a single tile.
    """
    seconds = seconds or Seconds()
    out: list[np.ndarray] = []

    def keep(rows: np.ndarray, results: tuple[Tensor, ...]) -> None:
        if not out:
            out.extend(np.empty((count, *r.shape[1:]), np.float32) for r in results)
        for array, result in zip(out, results):
            array[rows] = result.float().cpu().numpy()
        told.advance(len(rows))

    # Results are fetched one batch late, so that the device has the next one to work on meanwhile.
    waiting: tuple[np.ndarray, tuple[Tensor, ...]] | None = None
    clock = time.perf_counter()
    with phase("", count, TILES) as told, torch.inference_mode():
        for pieces in _regroup(tiles, batch):
            began = time.perf_counter()
            seconds.add("read", began - clock)
            rows = np.concatenate([r for r, _ in pieces])
            searching = batch.searching
            results = _encode(encode, [p for _, p in pieces], device, batch)
            if waiting is not None:
                keep(*waiting)
            waiting = rows, results
            if searching:
                synchronize(device)
                batch.observe(len(rows), time.perf_counter() - began)
            clock = time.perf_counter()
            seconds.add("encode", clock - began)
        if waiting is not None:
            keep(*waiting)
            synchronize(device)
            seconds.add("encode", time.perf_counter() - clock)
    return out


def _regroup(
    tiles: Iterable[tuple[np.ndarray, np.ndarray]], batch: BatchSize
) -> Iterator[list[tuple[np.ndarray, np.ndarray]]]:
    """Pieces put together, or cut, to batches of the size that holds at the time."""
    group: list[tuple[np.ndarray, np.ndarray]] = []
    held = 0
    for rows, pixels in tiles:
        while len(rows):
            part = batch.now - held
            group.append((rows[:part], pixels[:part]))
            held += len(group[-1][0])
            rows, pixels = rows[part:], pixels[part:]
            if held >= batch.now:
                yield group
                group, held = [], 0
    if group:
        yield group


def _encode(
    encode: Callable[[Tensor], tuple[Tensor, ...]], pieces: list[np.ndarray], device: torch.device, batch: BatchSize
) -> tuple[Tensor, ...]:
    """One batch through the encoder; in smaller ones where memory does not suffice."""
    results = _try(encode, pieces, device)
    if results is not None:
        return results
    pixels, parts = np.concatenate(pieces), []
    tried = len(pixels)
    while len(pixels):
        if results is None:
            free_memory(device)
            batch.halve(tried)
        results = _try(encode, [pixels[: batch.now]], device)
        tried = min(batch.now, len(pixels))
        if results is not None:
            parts.append(results)
            pixels = pixels[tried:]
    return tuple(torch.cat(part) for part in zip(*parts))


def _try(
    encode: Callable[[Tensor], tuple[Tensor, ...]], pieces: list[np.ndarray], device: torch.device
) -> tuple[Tensor, ...] | None:
    """Results of a batch, None where memory does not suffice; then nothing holds on to what did fit."""
    try:
        parts = [to_device(p, device) for p in pieces]
        with autocast(device):
            return encode(parts[0] if len(parts) == 1 else torch.cat(parts))
    except (RuntimeError, MemoryError) as e:
        if not is_out_of_memory(e):
            raise
    return None
