"""From a manifest to bags: the feature file of every slide, made where it is missing, or read as another tool left it.

Bags are in the order of the manifest (training/README 1).
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch

from lrmil_cli.ahead import in_turn
from lrmil_cli.encoders.embed import Embedded, embed_table, features_settings
from lrmil_cli.encoders.pipeline import BatchSize, slides_ahead
from lrmil_cli.encoders.vit import Encoder
from lrmil_cli.errors import InputError
from lrmil_cli.files.features import BagFile
from lrmil_cli.files.foreign import NAMES, open_bag
from lrmil_cli.files.manifest import Manifest
from lrmil_cli.files.manifest_rows import Entry
from lrmil_cli.files.tables import find_table, read_table_header
from lrmil_cli.heads import Bag, PyramidBag
from lrmil_cli.progress import phase
from lrmil_cli.slides.slide import open_slide
from lrmil_cli.training.streamed import Room, Streamed

#: Files that a message names; a cohort may have hundreds that are wrong in the same way.
MOST_LISTED = 5

Embedding = Generator[None, None, Embedded | None]

B = TypeVar("B", bound=Bag | PyramidBag, covariant=True)


@dataclass(frozen=True)
class Bags(Generic[B]):
    """Bags of all slides of a manifest, in its order.

    Attributes:
        all: float32 features [N_i, D] and int64 coords [N_i, 2] each, or pyramids of them, read when they are asked
            for.
        headers: of the feature files (of a pyramid, those of its lowest level).
        of: of bags of patients (:mod:`lrmil_cli.training.patients`), those of their slides.
    """

    all: Streamed[B]
    headers: list[dict[str, Any]]
    of: Bags[B] | None = None

    @property
    def slides(self) -> Bags[B]:
        """The bags of slides: itself, unless a bag is of a patient."""
        return self.of or self

    @property
    def dim(self) -> int:
        """Width D of the features."""
        return self.all.dim

    @property
    def counts(self) -> list[int]:
        """N_i, tiles of each slide."""
        return self.all.counts

    @property
    def device(self) -> torch.device:
        return self.all.device


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
    room: Room,
    batch_size: int | None = None,
    workers: int | None = None,
    on_bad_tile: str = "fail",
    left_out: dict[str, str] | None = None,
    dtype: str | None = None,
    overwrite: bool = False,
    say: Callable[[str], None] = lambda text: None,
) -> Bags[Bag]:
    """Feature files of all slides in ``folder``: those up to date are taken, the others made.

    Args:
        room: that bags may be kept in.
        batch_size: tiles encoded at a time, by the device if None; workers: threads that read, a core each if None.
        left_out: takes the ids of slides that cannot be used, and why, so that the others go on; None for none.
        on_bad_tile, dtype: as of :func:`lrmil_cli.encoders.embed.embed_table`.

    Raises:
        InputError: a slide cannot be read, or features of another encoder are in the folder.
        UsageError: features of another tool are in the folder.
    """
    encoder.to(device)
    files: dict[str, BagFile] = {}
    made = 0
    batch, settings = BatchSize(batch_size, device, say), features_settings(encoder)
    todo = list(zip(manifest, tables))

    with phase("embedding", len(manifest), "slide") as told:
        # What is free is taken first; then what other jobs were at is waited for, and made where one ended early.
        for wait in (False, True):

            def one(item: tuple[Entry, tuple[Path, dict[str, Any]]], wait: bool = wait) -> Embedding:
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
                    dtype=dtype,
                    slide_path=entry.path if entry.path.exists() else None,
                    wait=wait,
                )

            others = []
            ahead = 0 if wait else slides_ahead(device)  # who waits for a slide must hold no other that is waited for
            for item, embedded in zip(todo, in_turn(one, todo, ahead)):
                slide_id = told.item = item[0].slide_id
                try:
                    done = embedded()
                except InputError as e:
                    if left_out is None:
                        raise
                    left_out[slide_id] = str(e)
                    told.advance(idle=True)
                    continue
                if done is None:
                    others.append(item)
                    continue
                files[slide_id] = done.file
                told.advance(idle=done.there)
                if not done.there:
                    made += 1
                    bad = done.file.header.get("bad_tiles")
                    if bad:
                        say(f"{slide_id}: {bad} tiles that cannot be decoded left out")
                    told.note(
                        f"embedded {slide_id}: {done.file.shape[0]} tiles, {sum(done.seconds.phases.values()):.1f} s"
                    )
            if others and not wait:
                say(f"other jobs are at {len(others)} of the slides; waiting for them")
            todo = others
    if not files:
        raise InputError(listed(list((left_out or {}).values()), len(manifest)))
    if made < len(files):
        say(f"features of {len(files) - made} slides were up to date in {folder}")
    return stored_bags([files[e.slide_id] for e in manifest if e.slide_id in files], device, room, say)


def read_cohort(
    manifest: Manifest,
    folder: str | Path,
    *,
    device: torch.device,
    room: Room,
    left_out: dict[str, str] | None = None,
    say: Callable[[str], None] = lambda text: None,
    warn: Callable[[str], None] = lambda text: None,
) -> Bags[Bag]:
    """Features of all slides as they are in ``folder``, ``<slide_id>.h5`` each: of lrmil or of another tool.

    Args:
        room: that bags may be kept in.
        left_out: takes the ids of slides whose features cannot be used, and why, so that the others go on; all files
            are read for it. None: none may be.

    Raises:
        InputError: files are missing or cannot be used; files of different tools, encoders, widths or tile sizes are
            mixed. One message for all of them.
    """
    files: dict[str, BagFile] = {}
    wrong: dict[str, str] = {}
    for entry in manifest:
        path = Path(folder) / f"{entry.slide_id}.h5"
        try:
            if not path.is_file() and path.with_suffix(".pt").exists():
                raise InputError(
                    f"{path}: no such file; the .pt file there holds no coordinates, CLAM keeps both in `h5_files`"
                )
            files[entry.slide_id] = open_bag(path, partial(_slide_mpp, entry))
            if left_out is not None:
                files[entry.slide_id].features()
        except InputError as e:
            wrong[entry.slide_id] = str(e)
            files.pop(entry.slide_id, None)
    kinds = {slide_id: _kind(file) for slide_id, file in files.items()}
    usual = Counter(tuple(k.items()) for k in kinds.values()).most_common(1)
    common = dict(usual[0][0]) if usual else {}
    for slide_id, kind in kinds.items():
        other = next((name for name, value in kind.items() if value != common[name]), None)
        if other is not None:
            wrong[slide_id] = (
                f"{files.pop(slide_id).path}: {other} {kind[other]}, but {common[other]} in most of the others (the "
                "features of a training come from one tool, one encoder and one tile size)"
            )
    if wrong and (left_out is None or not files):
        raise InputError(listed(list(wrong.values()), len(manifest)))
    if left_out is not None:
        left_out |= wrong
    own = list(files.values())
    say(f"features of {len(own)} slides as they are in {folder}: {common['made by']}, {common['width']} wide")
    if slow := [f for f in own if f.in_chunks]:
        started = time.perf_counter()
        slow[0].features()
        spent = time.perf_counter() - started
        warn(
            f"{len(slow)} feature files lie in a chunk a tile or so, which takes {spent:.2f} s to read for the "
            f"{slow[0].nbytes / 1e6:.0f} MB of {slow[0].path.name}; `lrmil embed --repack {folder} -o DIR` writes them "
            "in one piece"
        )
    return stored_bags(own, device, room, say)


def listed(wrong: Sequence[str], of: int) -> str:
    """One message of what is wrong with some of ``of`` files, each with its path."""
    if len(wrong) == 1:
        return wrong[0]
    shown = "; ".join(wrong[:MOST_LISTED])
    more = f"; and {len(wrong) - MOST_LISTED} more" if len(wrong) > MOST_LISTED else ""
    return f"{len(wrong)} of {of} feature files cannot be used: {shown}{more}"


def stored_bags(
    files: Sequence[BagFile], device: torch.device, room: Room, say: Callable[[str], None] = lambda text: None
) -> Bags[Bag]:
    """The bags of feature files, which stay on disk.

    Args:
        say: told where not even the largest bag can be kept.

    Reading a bag that cannot be used raises an InputError that names all such files of the cohort.
    """

    def load(index: int) -> Bag:
        try:
            return loaded(files[index])
        except InputError:
            raise InputError(listed(unusable(files), len(files))) from None

    largest = max(files, key=lambda f: f.nbytes)
    if largest.nbytes > max(room.on_device, room.in_memory):
        say(
            f"the features of {largest.path.stem} take {largest.nbytes / 1e6:.1f} MB, more than may be kept "
            f"({max(room.on_device, room.in_memory) / 1e6:.1f} MB); such bags are read again each epoch (--memory)"
        )
    bags = Streamed(load, [f.shape[0] for f in files], files[0].shape[1], room, device)
    return Bags(bags, [f.header for f in files])


def loaded(file: BagFile) -> Bag:
    """The bag of a feature file in memory, in the type that it is stored in.

    Raises:
        InputError: as :meth:`BagFile.features`.
    """
    return Bag(torch.from_numpy(file.features()), torch.from_numpy(file.coords()))


def unusable(files: Sequence[BagFile]) -> list[str]:
    """What is wrong with those of the files whose features cannot be used."""
    wrong = []
    for file in files:
        try:
            file.features()
        except InputError as e:
            wrong.append(str(e))
    return wrong


def _kind(bag: BagFile) -> dict[str, Any]:
    """What must be alike in all slides, by the name that a message gives it."""
    tiles, settings = bag.header["tiles"], bag.header["settings"]
    own = "made_by" not in bag.header
    return {
        "made by": NAMES[bag.header.get("made_by", "lrmil")],
        "width": bag.shape[1],
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
    first, *others = (h["tiles"] for h in bags.slides.headers)
    return {k: v for k, v in first.items() if all(k in o and o[k] == v for o in others)}
