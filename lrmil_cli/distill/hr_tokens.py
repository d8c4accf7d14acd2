"""HR targets of stage 1: class tokens of the HR tiles at the chosen blocks, computed once and kept on disk."""

from __future__ import annotations

from collections.abc import Callable, Generator
from pathlib import Path

import numpy as np
import torch

from lrmil_cli.ahead import in_turn
from lrmil_cli.distributed import World
from lrmil_cli.encoders.pipeline import BatchSize, encode_tiles, read_ahead, slides_ahead
from lrmil_cli.encoders.vit import Encoder
from lrmil_cli.files.atomic import atomic_path
from lrmil_cli.files.header import digest, last_digest
from lrmil_cli.matching.paired_slide import PairedSlide, tile_level

#: float16 ends at 65504; residual streams of large encoders can be beyond.
FLOAT16_LIMIT = 6e4


def target_path(cache: Path, paired: PairedSlide, encoder_digest: str, layers: tuple[int, ...], final: bool) -> Path:
    """Name of a slide's target file: another encoder, layer set or pairs table is another file."""
    key = digest(
        {"encoder": encoder_digest, "layers": list(layers), "final": final},
        {
            "pairs": last_digest(paired.header),
            **({"readable": paired.header["readable"]} if "readable" in paired.header else {}),
        },
    )
    return cache / f"{paired.slide_id}.{key[:16]}.targets"


def compute_targets(
    encoder: Encoder,
    paired: PairedSlide,
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

    with paired.open_slide("hr", workers) as slide:
        level, tile_px = tile_level(slide, paired.header["hr"]), paired.header["hr"]["settings"]["tile_px"]
        with read_ahead(slide, paired.hr_boxes, level, tile_px, device=device, batch=batch) as tiles:
            yield
            arrays = encode_tiles(encode, tiles, len(paired.hr_boxes), device=device, batch=batch)
    return dict(zip(("layers", "final"), map(half, arrays)))


def half(values: np.ndarray) -> np.ndarray:
    """float16 where the values fit, else float32."""
    return values.astype(np.float16) if np.abs(values).max(initial=0) <= FLOAT16_LIMIT else values


def load_targets(
    encoder: Encoder,
    slides: list[PairedSlide],
    layers: tuple[int, ...],
    final: bool,
    cache: Path,
    device: torch.device,
    say: Callable[[str], None],
    *,
    batch_size: int | None = None,
    workers: int | None = None,
    world: World = World(),
) -> list[dict[str, np.ndarray]]:
    """Targets of all slides, memory-mapped from ``cache``; what is missing is computed and written first.

    Args:
        batch_size: HR tiles encoded at a time, by the device if None; workers: threads that read, a core each if None.
        world: processes that share the work, and the cache.

    Raises:
        InputError: a slide cannot be read.
        MachineError: the cache cannot be written.
    """
    weights, batch = encoder.digest(), BatchSize(batch_size, device, say)
    names = ["layers", "final"] if final else ["layers"]
    paths = []
    for paired in slides:
        base = target_path(cache, paired, weights, layers, final)
        paths.append({k: base.with_name(f"{base.name}.{k}.npy") for k in names})
    # Each process looks at its own part alone, because another may be writing meanwhile.
    missing = [n for n in world.share(range(len(paths))) if not all(map(_readable, paths[n].values()))]
    turns = in_turn(
        lambda n: compute_targets(encoder, slides[n], layers, final, device, batch, workers),
        missing,
        slides_ahead(device),
    )
    for n, computed in zip(missing, turns):
        arrays = computed()
        for k, path in paths[n].items():
            with atomic_path(path) as tmp, open(tmp, "wb") as fh:
                np.save(fh, arrays[k], allow_pickle=False)
        say(f"HR targets {n + 1}/{len(slides)}: {slides[n].slide_id}, {len(slides[n].hr_boxes)} tiles")
    world.wait()
    return [{k: np.load(p, mmap_mode="r", allow_pickle=False) for k, p in own.items()} for own in paths]


def _readable(path: Path) -> bool:
    try:
        np.load(path, mmap_mode="r", allow_pickle=False)
        return True
    except (OSError, ValueError, EOFError):
        return False
