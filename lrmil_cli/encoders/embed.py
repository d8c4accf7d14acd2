"""From tiles of a slide to embeddings: reading and encoding, one batch after the other."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from lrmil_cli.device import autocast, device_label, synchronize, to_device
from lrmil_cli.encoders.vit import Encoder
from lrmil_cli.errors import InputError, UsageError
from lrmil_cli.files.features import Features, read_features, read_features_header, write_features
from lrmil_cli.files.foreign import is_foreign
from lrmil_cli.files.header import digest, last_digest, make_header, step, up_to_date
from lrmil_cli.files.tables import read_table
from lrmil_cli.slides.reader import iter_batches
from lrmil_cli.slides.slide import Slide, open_slide

if TYPE_CHECKING:
    import pandas as pd


@dataclass
class Seconds:
    """Seconds spent in each phase of a slide."""

    phases: dict[str, float] = field(default_factory=dict)

    def add(self, phase: str, seconds: float) -> None:
        self.phases[phase] = self.phases.get(phase, 0.0) + seconds

    def rounded(self) -> dict[str, float]:
        return {k: round(v, 3) for k, v in self.phases.items()}


def prefetch(batches: Iterator[Any], ahead: int) -> Iterator[Any]:
    """Run an iterator in a thread, ``ahead`` items in front; 0 runs it in turn (a CPU needs its cores for the encoder)."""
    if ahead <= 0:
        yield from batches
        return
    import queue
    import threading

    box: queue.Queue = queue.Queue(ahead)
    stop = threading.Event()

    def put(item: tuple[str, Any]) -> None:
        while not stop.is_set():
            try:
                return box.put(item, timeout=0.1)
            except queue.Full:
                continue

    def work() -> None:
        try:
            for item in batches:
                put(("item", item))
                if stop.is_set():
                    return
            put(("end", None))
        except BaseException as e:  # handed over to the thread that waits for it
            put(("error", e))

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        while True:
            kind, value = box.get()
            if kind == "end":
                return
            if kind == "error":
                raise value
            yield value
    finally:
        stop.set()
        thread.join()


def encode_batch(encoder: Encoder, tiles: np.ndarray, device: torch.device) -> np.ndarray:
    """Embeddings float32 [B, D_e] of uint8 tiles [B, P, P, 3]."""
    with torch.inference_mode(), autocast(device):
        return encoder(to_device(tiles, device))["final"].float().cpu().numpy()


def embed_tiles(
    encoder: Encoder,
    slide: Slide,
    tiles: pd.DataFrame,
    level: int,
    tile_px: int,
    *,
    device: torch.device,
    batch_size: int = 16,
    seconds: Seconds | None = None,
    progress: Callable[[int], None] = lambda n: None,
) -> np.ndarray:
    """Embed the tiles of one slide, in table order.

    Args:
        level: pyramid level to read from; tile_px: side of a tile in px.
        seconds: filled with ``read`` and ``encode``.
        progress: called with the number of tiles done in each batch.

    Returns:
        float32 [N, D_e].

    Raises:
        InputError: the slide is damaged at a tile.
    """
    seconds = seconds or Seconds()
    out = np.empty((len(tiles), encoder.embed_dim), np.float32)
    batches = prefetch(iter_batches(slide, tiles, level, tile_px, batch_size), 0 if device.type == "cpu" else 4)
    clock = time.perf_counter()
    for rows, pixels in batches:
        now = time.perf_counter()
        seconds.add("read", now - clock)
        out[rows] = encode_batch(encoder, pixels, device)
        synchronize(device)
        clock = time.perf_counter()
        seconds.add("encode", clock - now)
        progress(len(rows))
    return out


def features_settings(encoder: Encoder) -> dict[str, Any]:
    """What of an encoder decides its features."""
    return {"encoder": encoder.digest(), "embedding": encoder.info.embedding, "image_size": encoder.info.image_size}


def features_digest(encoder: Encoder, tiles_header: dict[str, Any]) -> str:
    """Digest of the feature file of a tile table by an encoder: equal digest, nothing to compute."""
    return digest(features_settings(encoder), {"tiles": last_digest(tiles_header)})


def embed_table(
    encoder: Encoder,
    tiles_path: str | Path,
    output: str | Path,
    *,
    device: torch.device,
    batch_size: int = 16,
    overwrite: bool = False,
    slide_path: str | Path | None = None,
    progress: Callable[[int], None] = lambda n: None,
) -> tuple[Features, bool, Seconds]:
    """Embed the tiles of a tile table into a feature file, unless it is there and up to date.

    Args:
        slide_path: where the slide is now; default: where the table says it was.

    Returns:
        the features, True if they were there already, seconds.

    Raises:
        InputError: the slide cannot be read, or is not the one that was tiled.
        UsageError: the feature file was made by other settings and ``overwrite`` is off, or by another tool.
    """
    if is_foreign(output):
        raise UsageError(f"{output} was made by another tool and is not overwritten; choose another folder (train-teacher trains on such "
                         "features as they are with --features alone, without --tiles and --encoder)")
    header, tiles = read_table(tiles_path, "tiles")
    seconds = Seconds()
    if up_to_date(output, features_digest(encoder, header), read_features_header, overwrite):
        try:
            return read_features(output), True, seconds
        except InputError:
            if not overwrite:
                raise
    started = time.perf_counter()
    with open_tiled_slide(header, slide_path) as slide:
        seconds.add("open", time.perf_counter() - started)
        array = embed_tiles(encoder, slide, tiles, header["level"], header["settings"]["tile_px"], device=device,
                            batch_size=batch_size, seconds=seconds, progress=progress)
    settings = features_settings(encoder)
    new = make_header(
        "features", slide=header["slide"], settings=settings, tiles=header["settings"],
        encoder={k: v for k, v in encoder.info.as_json().items() if k != "arch_args"},
        seconds=seconds.rounded(), device=device_label(device),
        history=[*header["history"], step("embed", settings, {"tiles": last_digest(header)})],
    )
    coords = tiles[["x", "y"]].to_numpy(np.int64)
    write_features(output, new, array, coords)
    return Features(new, array, coords), False, seconds


def open_tiled_slide(header: dict[str, Any], slide_path: str | Path | None = None) -> Slide:
    """Open the slide of a tile table again, with the scale it was tiled at.

    Raises:
        InputError: it is not the same file any more, or not there.
    """
    about = header["slide"]
    slide = open_slide(slide_path or about["path"], slide_id=about["id"], slide_mpp=about["mpp"])
    if slide.fingerprint != about["fingerprint"]:
        slide.close()
        raise InputError(f"{slide.path}: the slide has changed since `lrmil tile` read it; tile it again with --overwrite")
    return slide
