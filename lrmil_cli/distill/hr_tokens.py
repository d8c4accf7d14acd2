"""HR targets of stage 1: class tokens of the HR tiles at the chosen blocks, computed once and kept on disk."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.lib.format as npy
import torch

from lrmil_cli.ahead import in_turn
from lrmil_cli.distill.slide_pairs import SlidePairs
from lrmil_cli.distributed import World
from lrmil_cli.encoders.pipeline import BatchSize, encode_tiles, read_ahead, slides_ahead
from lrmil_cli.encoders.vit import Encoder
from lrmil_cli.errors import InputError
from lrmil_cli.files.atomic import atomic_path
from lrmil_cli.files.header import digest, last_digest
from lrmil_cli.files.locks import claimed
from lrmil_cli.matching.paired_slide import tile_level
from lrmil_cli.progress import phase

#: float16 ends at 65504; residual streams of large encoders can be beyond.
FLOAT16_LIMIT = 6e4


@dataclass(frozen=True)
class TargetFile:
    """Targets of a slide on disk, an array [N, ...] in the form of numpy.

    They are read row by row and not mapped into memory: mapped pages count as the process's own, and a file that
    shrinks under a map ends the process with a signal.

    Attributes:
        shape, dtype: of the array; start: of its values in the file.
    """

    path: Path
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    start: int

    def take(self, rows: np.ndarray) -> np.ndarray:
        """The rows, [len(rows), ...]; neighbours in one read.

        Raises:
            InputError: the file is not there any more, or has become shorter.
        """
        out = np.empty((len(rows), *self.shape[1:]), self.dtype)
        size = out[:1].nbytes
        bounds = [0, *(np.flatnonzero(np.diff(rows) != 1) + 1).tolist(), len(rows)]
        values = out.data.cast("B")
        try:
            with open(self.path, "rb") as fh:
                for first, end in zip(bounds, bounds[1:]):
                    fh.seek(self.start + int(rows[first]) * size)
                    if fh.readinto(values[first * size : end * size]) < (end - first) * size:
                        raise InputError(f"{self.path}: became shorter while it was in use; run the command again")
        except OSError as e:
            raise InputError(f"{self.path}: cannot be read any more ({e.strerror}); run the command again") from e
        return out


def open_targets(path: Path) -> TargetFile | None:
    """A file of targets, None where there is none that is whole."""
    try:
        with open(path, "rb") as fh:
            if npy.read_magic(fh) != (1, 0):
                return None
            shape, in_columns, dtype = npy.read_array_header_1_0(fh)
            start, length = fh.tell(), os.fstat(fh.fileno()).st_size
    except (OSError, ValueError, EOFError):
        return None
    whole = dtype.kind == "f" and not in_columns and start + int(np.prod(shape)) * dtype.itemsize == length
    return TargetFile(path, shape, dtype, start) if whole else None


def _write(path: Path, array: np.ndarray) -> None:
    """As ``np.save``, which does not say why the disk does not take it."""
    with atomic_path(path, "--cache") as tmp, open(tmp, "wb") as fh:
        npy.write_array_header_1_0(fh, npy.header_data_from_array_1_0(array))
        fh.write(array.data.cast("B"))


def target_paths(
    cache: Path, slide: SlidePairs, encoder_digest: str, layers: tuple[int, ...], final: bool
) -> dict[str, Path]:
    """Files of a slide's targets, by what is in them.

    Another encoder, layer set, pairs table or choice of its tiles is another file.
    """
    chosen: dict[str, str] = {k: slide.header[k] for k in ("readable", "drawn") if k in slide.header}
    key = digest(
        {"encoder": encoder_digest, "layers": list(layers), "final": final},
        {"pairs": last_digest(slide.header), **chosen},
    )
    return {
        name: cache / f"{slide.slide_id}.{key[:16]}.targets.{name}.npy"
        for name in (["layers", "final"] if final else ["layers"])
    }


def compute_targets(
    encoder: Encoder,
    slide_pairs: SlidePairs,
    layers: tuple[int, ...],
    final: bool,
    device: torch.device,
    batch: BatchSize,
    workers: int | None = None,
) -> Generator[None, None, dict[str, np.ndarray]]:
    """``layers`` [N, |layers|, D] and, with ``final``, ``final`` [N, D_e] of the paired HR tiles.

    A generator for :func:`lrmil_cli.ahead.in_turn`: what stands before its ``yield`` can be done ahead of its turn.

    Raises:
        InputError: the slide cannot be read.
    """

    def encode(tiles: torch.Tensor) -> tuple[torch.Tensor, ...]:
        out = encoder(tiles, layers, need_final=final)
        tokens = torch.stack([out["summary"][l].float() for l in layers], 1)
        return (tokens, out["final"]) if final else (tokens,)

    paired = slide_pairs.read()
    with paired.open_slide("hr", workers) as slide:
        level, tile_px = tile_level(slide, paired.header["hr"]), paired.header["hr"]["settings"]["tile_px"]
        with read_ahead(slide, paired.hr_boxes, level, tile_px, device=device, batch=batch) as tiles:
            yield
            arrays = encode_tiles(encode, tiles, len(paired.hr_boxes), device=device, batch=batch)
    return dict(zip(("layers", "final"), map(half, arrays)))


def half(values: np.ndarray) -> np.ndarray:
    """float16 where the values fit, else float32."""
    largest = max(values.max(initial=0), -values.min(initial=0))
    return values.astype(np.float16) if largest <= FLOAT16_LIMIT else values


def load_targets(
    encoder: Encoder,
    slides: list[SlidePairs],
    layers: tuple[int, ...],
    final: bool,
    cache: Path,
    device: torch.device,
    say: Callable[[str], None],
    *,
    batch_size: int | None = None,
    workers: int | None = None,
    world: World = World(),
) -> list[dict[str, TargetFile]]:
    """Targets of all slides in ``cache``; what is missing is computed and written first.

    Args:
        batch_size: HR tiles encoded at a time, by the device if None; workers: threads that read, a core each if None.
        world: processes that share the work, and the cache.

    Raises:
        InputError: a slide cannot be read.
        MachineError: the cache cannot be written.
    """
    weights, batch = encoder.digest(), BatchSize(batch_size, device, say)
    paths = [target_paths(cache, s, weights, layers, final) for s in slides]
    there = lambda n: all(map(open_targets, paths[n].values()))
    # Each process looks at its own part alone, because another may be writing meanwhile.
    missing = [n for n in world.share(range(len(paths))) if not there(n)]

    with phase("HR targets of", len(missing), "slide") as told:
        # Folds that are jobs share a cache: what is free is taken first, then what others were at is waited for.
        for wait in (False, True):

            def one(n: int, wait: bool = wait) -> Generator[None, None, bool]:
                with claimed(paths[n]["layers"], wait=wait) as mine:
                    if mine and not there(n):
                        told.item = slides[n].slide_id
                        arrays = yield from compute_targets(encoder, slides[n], layers, final, device, batch, workers)
                        for k, path in paths[n].items():
                            _write(path, arrays[k])
                        told.advance()
                        told.note(f"HR targets {n + 1}/{len(slides)}: {slides[n].slide_id}, {slides[n].targets} tiles")
                    return mine

            ahead = 0 if wait else slides_ahead(device)  # who waits for a slide must hold no other that is waited for
            missing = [n for n, made in zip(missing, in_turn(one, missing, ahead)) if not made()]
            if missing:
                say(f"other jobs are at the HR targets of {len(missing)} slides; waiting for them")
    world.wait()
    return [{k: _opened(p) for k, p in own.items()} for own in paths]


def _opened(path: Path) -> TargetFile:
    targets = open_targets(path)
    if targets is None:
        raise InputError(f"{path}: gone or damaged while it was in use; run the command again")
    return targets
