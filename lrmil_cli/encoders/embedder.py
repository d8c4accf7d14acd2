"""What embeds tile tables one after the other on a device: the encoder is loaded once."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path

import torch

from lrmil_cli.device import device_label, pick_device
from lrmil_cli.encoders.compiled import compile_encoder
from lrmil_cli.encoders.embed import embed_table, features_settings
from lrmil_cli.encoders.pipeline import BatchSize, slides_ahead
from lrmil_cli.encoders.spec import load_encoder
from lrmil_cli.encoders.vit import EncoderInfo
from lrmil_cli.slides.slide import default_workers


@dataclass(frozen=True)
class Table:
    """One slide to embed: its tile table, the feature file to write, where the slide may be now."""

    slide_id: str
    path: Path
    target: Path
    slide_path: Path | None


@dataclass(frozen=True)
class How:
    """By which encoder, and how (:func:`lrmil_cli.encoders.spec.load_encoder`,
    :func:`lrmil_cli.encoders.embed.embed_table`)."""

    encoder: str
    tile_px: int
    input_size: int | None
    embedding: str | None
    random_init: bool
    compile: bool
    batch_size: int | None
    workers: int | None
    on_bad_tile: str
    dtype: str | None
    overwrite: bool


@dataclass(frozen=True)
class Made:
    """What came of a slide: tiles, width of the features, tiles left out; seconds a phase, on which device."""

    there: bool
    tiles: int
    width: int
    bad_tiles: int
    phases: dict[str, float]
    device: str


Embed = Callable[[Table], Generator[None, None, Made | None]]


def open_embedder(
    how: How,
    device: str,
    *,
    sharing: int = 1,
    warn: Callable[[str], None],
    about: Callable[[EncoderInfo], None],
) -> tuple[Embed, int]:
    """Load the encoder.

    Args:
        sharing: processes that share the cores of this machine.
        warn: told what had to be guessed, and of memory that did not suffice; about: told what encoder it is.

    Returns:
        a generator function for :func:`lrmil_cli.ahead.in_turn`, None for slides that another process is at; and how
        many slides to begin ahead.

    Raises:
        as :func:`lrmil_cli.device.pick_device` and :func:`lrmil_cli.encoders.spec.load_encoder`.
    """
    where = pick_device(device)
    workers = how.workers
    if sharing > 1:
        workers = workers or max(1, default_workers() // sharing)
        torch.set_num_threads(max(1, torch.get_num_threads() // sharing))
    model = load_encoder(
        how.encoder,
        tile_px=how.tile_px,
        input_size=how.input_size,
        embedding=how.embedding,
        random_init=how.random_init,
        warn=warn,
    ).to(where)
    about(model.info)
    if how.compile:
        compile_encoder(model, how.tile_px, where)
    batch, settings, label = BatchSize(how.batch_size, where, warn), features_settings(model), device_label(where)

    def embed(table: Table) -> Generator[None, None, Made | None]:
        done = yield from embed_table(
            model,
            table.path,
            table.target,
            settings=settings,
            device=where,
            batch=batch,
            workers=workers,
            on_bad_tile=how.on_bad_tile,
            overwrite=how.overwrite,
            dtype=how.dtype,
            slide_path=table.slide_path,
        )
        if done is None:
            return None
        bad = done.file.header.get("bad_tiles", 0)
        return Made(done.there, *done.file.shape, bad, done.seconds.rounded(), label)

    return embed, slides_ahead(where)
