"""From a manifest to bags: the feature file of every slide, made where it is missing, or read as another tool left it.

Bags are in the order of the manifest (training/README 1).
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch

from lrmil_cli.ahead import in_turn
from lrmil_cli.encoders.embed import embed_table, features_settings
from lrmil_cli.encoders.pipeline import BatchSize, Seconds, slides_ahead
from lrmil_cli.encoders.vit import Encoder
from lrmil_cli.errors import InputError
from lrmil_cli.files.features import Features
from lrmil_cli.files.foreign import NAMES, read_bag
from lrmil_cli.files.manifest import Entry, Manifest
from lrmil_cli.files.tables import find_table, read_table_header
from lrmil_cli.heads import Bag, PyramidBag
from lrmil_cli.slides.slide import open_slide

B = TypeVar("B", bound=Bag | PyramidBag, covariant=True)


@dataclass(frozen=True)
class Bags(Generic[B]):
    """Bags of all slides of a manifest, in its order.

    Attributes:
        all: float32 features [N_i, D] and int64 coords [N_i, 2] each, or pyramids of them.
        headers: of the feature files (of a pyramid, those of its lowest level).
    """

    all: Sequence[B]
    headers: list[dict[str, Any]]

    @property
    def dim(self) -> int:
        """Width D of the features."""
        return self.all[0].features.shape[1]

    @property
    def device(self) -> torch.device:
        return self.all[0].features.device


def tile_tables(manifest: Manifest, folder: str | Path) -> list[tuple[Path, dict[str, Any]]]:
    """Path and header of every slide's tile table, checked to share one scale.

    Raises:
        InputError: a table is missing, or tables of different mpp or tile size are mixed.
    """
    tables = [(p, read_table_header(p, "tiles")) for p in (find_table(folder, e.slide_id, "tiles") for e in manifest)]
    first = tables[0][1]["settings"]
    for path, header in tables:
        own = header["settings"]
        if (own["mpp"], own["tile_px"]) != (first["mpp"], first["tile_px"]):
            raise InputError(
                f"{path}: tiles of {own['mpp']:g} um/px, {own['tile_px']} px among tiles of {first['mpp']:g} um/px, "
                f"{first['tile_px']} px; tile all slides of a training alike"
            )
    return tables


def embed_cohort(
    encoder: Encoder,
    manifest: Manifest,
    tables: Sequence[tuple[Path, dict[str, Any]]],
    folder: str | Path,
    *,
    device: torch.device,
    batch_size: int | None = None,
    workers: int | None = None,
    on_bad_tile: str = "fail",
    overwrite: bool = False,
    say: Callable[[str], None] = lambda text: None,
) -> Bags[Bag]:
    """Feature files of all slides in ``folder``: those up to date are read, the others made.

    Args:
        batch_size: tiles encoded at a time, by the device if None; workers: threads that read, a core each if None.
        on_bad_tile: as of :func:`lrmil_cli.encoders.embed.embed_table`.

    Raises:
        InputError: a slide cannot be read, or features of another encoder are in the folder.
        UsageError: features of another tool are in the folder.
    """
    encoder.to(device)
    bags: list[Features] = []
    made = 0
    batch, settings = BatchSize(batch_size, device, say), features_settings(encoder)

    def one(
        item: tuple[Entry, tuple[Path, dict[str, Any]]],
    ) -> Generator[None, None, tuple[Features, bool, Seconds]]:
        entry, (path, _) = item
        return embed_table(
            encoder,
            path,
            Path(folder) / f"{entry.slide_id}.h5",
            settings=settings,
            device=device,
            batch=batch,
            workers=workers,
            on_bad_tile=on_bad_tile,
            overwrite=overwrite,
            slide_path=entry.path if entry.path.exists() else None,
        )

    turns = in_turn(one, list(zip(manifest, tables)), slides_ahead(device))
    for k, (entry, embedded) in enumerate(zip(manifest, turns), 1):
        features, there, seconds = embedded()
        made += not there
        if not there:
            bad = features.header.get("bad_tiles")
            say(
                f"embedded {entry.slide_id} ({k}/{len(manifest)}): {len(features.coords)} tiles"
                + (f" ({bad} that cannot be decoded left out)" if bad else "")
                + f", {sum(seconds.phases.values()):.1f} s"
            )
        bags.append(features)
    if made < len(manifest):
        say(f"features of {len(manifest) - made} slides were up to date in {folder}")
    return _bags(bags, device)


def read_cohort(
    manifest: Manifest, folder: str | Path, *, device: torch.device, say: Callable[[str], None] = lambda text: None
) -> Bags[Bag]:
    """Features of all slides as they are in ``folder``, ``<slide_id>.h5`` each: of lrmil, TRIDENT, CLAM or STAMP.

    Raises:
        InputError: a file is missing or unusable; files of different tools, encoders, widths or tile sizes are mixed.
    """
    paths = [Path(folder) / f"{e.slide_id}.h5" for e in manifest]
    missing = [p for p in paths if not p.is_file()]
    if missing:
        only_pt = missing[0].with_suffix(".pt").exists()
        raise InputError(
            f"{folder}: no features of slide {missing[0].stem} ({missing[0].name}; "
            f"{len(missing)} of {len(paths)} missing)"
            + ("; the .pt files there hold no coordinates, CLAM keeps both in the folder `h5_files`" if only_pt else "")
        )
    bags = [read_bag(p, partial(_slide_mpp, e)) for p, e in zip(paths, manifest)]
    first = _kind(bags[0])
    for path, bag in zip(paths, bags):
        other = next(((k, v) for k, v in _kind(bag).items() if v != first[k]), None)
        if other:
            raise InputError(
                f"{path}: {other[0]} {other[1]}, but {first[other[0]]} in {paths[0].name}; "
                "the features of a training come from one tool, one encoder and one tile size"
            )
    say(f"features of {len(bags)} slides as they are in {folder}: {first['made by']}, {first['width']} wide")
    return _bags(bags, device)


def _bags(bags: list[Features], device: torch.device) -> Bags[Bag]:
    return Bags([bag_of(f, device) for f in bags], [f.header for f in bags])


def bag_of(features: Features, device: torch.device) -> Bag:
    """The bag of a feature file on ``device``."""
    return Bag(torch.from_numpy(features.features), torch.from_numpy(features.coords)).to(device)


def _kind(bag: Features) -> dict[str, Any]:
    """What must be alike in all slides, by the name that a message gives it."""
    tiles, settings = bag.header["tiles"], bag.header["settings"]
    own = "made_by" not in bag.header
    return {
        "made by": NAMES[bag.header.get("made_by", "lrmil")],
        "width": bag.features.shape[1],
        "encoder": bag.header["encoder"]["name"],
        "embedding": bag.header["encoder"]["embedding"],
        "weights": settings.get("encoder"),
        "tile size in px": tiles["tile_px"],
        "mpp": tiles["mpp"],
        "magnification": None if own else tiles["magnification"],
    }


def _slide_mpp(entry: Entry) -> float:
    """Level-0 um/px of a slide: the manifest's, else the slide's own."""
    if entry.mpp is not None:
        return entry.mpp
    with open_slide(entry.path, slide_id=entry.slide_id) as slide:
        return slide.mpp


def shared_tiles(bags: Bags) -> dict[str, Any]:
    """The tile geometry that all bags have in common."""
    first, *others = (h["tiles"] for h in bags.headers)
    return {k: v for k, v in first.items() if all(k in o and o[k] == v for o in others)}
