"""Feature and coordinate files of TRIDENT, CLAM, STAMP and AtlasPatch, read as they are.

A coordinate is the top-left corner of a tile in all of them; what else they say differs:

- TRIDENT, ``<slide>.h5`` and ``patches/<slide>_patches.h5``: ``features``, ``coords`` in level-0 px; the attributes of
  ``coords`` hold ``patch_size`` (at the target magnification) and ``patch_size_level0``. Published feature sets add a
  leading axis of one slide.
- CLAM, ``patches/<slide>.h5``: ``coords`` in level-0 px with ``patch_size`` in px of the pyramid level ``patch_level``
  and that level's ``downsample``; ``h5_files/<slide>.h5``: ``features`` and ``coords`` without any attribute.
- STAMP from version 2, ``<slide>.h5``: ``feats``, ``coords`` in um; attributes of the file: ``unit``, ``tile_size_um``
  (``tile_size`` before 2.1), ``tile_size_px``, ``extractor``.
- AtlasPatch, ``patches/<slide>.h5``: ``coords`` [N, 5], whose first two columns are x, y in level-0 px; a group
  ``features`` with a dataset for each encoder; TRIDENT's attributes, of the file.

What they say of themselves is read in ``foreign_layouts.py``.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from lrmil_cli.errors import InputError
from lrmil_cli.files.features import BagFile, Features, many_chunks, open_features, read_features
from lrmil_cli.files.foreign_layouts import layout
from lrmil_cli.files.hdf5 import DAMAGE, open_hdf5, own_dataset
from lrmil_cli.files.header import digest, make_header
from lrmil_cli.units import LevelPx, Mpp

SUFFIXES = (".h5", ".hdf5")
NAMES = {"trident": "TRIDENT", "clam": "CLAM", "stamp": "STAMP", "atlaspatch": "AtlasPatch", "lrmil": "lrmil"}
#: Rows of features, spread over the slide, that tell them from those of another encoder.
ROWS_IN_DIGEST = 64
#: A corner in um must fall on a whole pixel of its grid to within this many level-0 px, or something was lost.
MAX_SNAP_PX = 1.0


@dataclass(frozen=True)
class ForeignTiles:
    """What a file of another tool says, in its own units.

    Attributes:
        made_by: a key of :data:`NAMES`.
        coords: [N, 2] x, y of top-left corners in ``unit``: ``px`` (level 0) or ``um``.
        dataset: where in the file the features are, None in coordinate files; width, dtype: D and type as stored.
        in_chunks: as of :class:`BagFile`.
        tile_px: side of the tiles as they were encoded; side: the same in ``unit``, None where the file does not say.
        level: pyramid level whose pixels ``tile_px`` counts, where ``side`` has to be found with the slide.
        magnification: as asked of the tool; overlap: in px of the tile; size: width, height of the slide in level-0 px.
        digest: of the coordinates and of what is said of them; features_digest: of :data:`ROWS_IN_DIGEST` rows of the
            features.
    """

    path: str
    made_by: str
    unit: str
    coords: np.ndarray
    width: int | None
    tile_px: LevelPx | None
    side: float | None
    digest: str
    level: int | None = None
    magnification: float | None = None
    overlap: int = 0
    size: tuple[float, float] | None = None
    encoder: str | None = None
    name: str | None = None
    dataset: str | None = None
    dtype: str | None = None
    features_digest: str | None = None
    in_chunks: bool = False

    @property
    def tool(self) -> str:
        return NAMES[self.made_by]

    @property
    def mpp(self) -> Mpp | None:
        """um/px of the tiles as they were encoded, where the file alone says it."""
        return Mpp(self.side / self.tile_px) if self.unit == "um" and self.side and self.tile_px else None


def made_by_us(path: str | Path) -> bool:
    """Whether an HDF5 file carries an lrmil header.

    Raises:
        InputError: no such file, or not HDF5.
    """
    with _open(path) as h5:
        try:
            return "lrmil" in h5.attrs
        except (OSError, KeyError, RuntimeError) as e:
            raise InputError(f"{path}: damaged ({type(e).__name__}); copy it again, or make it again") from e


def is_foreign(path: str | Path) -> bool:
    """Whether there is a feature or coordinate file of another tool at ``path``: work that is never overwritten."""
    try:
        with _open(path) as h5:
            return "lrmil" not in h5.attrs and ("coords" in h5 or "feats" in h5)
    except (InputError, OSError, KeyError, RuntimeError):
        return False


def open_bag(path: str | Path, slide_mpp: float | Callable[[], float]) -> BagFile:
    """Open the features of one slide, of lrmil or of another tool, without reading them.

    Args:
        slide_mpp: level-0 um/px, or a function that finds it, called for files that count in um only.

    Raises:
        InputError: no such file, none of these, cut short, without features; a corner in um is no whole pixel.
    """
    if made_by_us(path):
        return open_features(path)
    tiles = read_foreign(path)
    if tiles.dataset is None or tiles.width is None:
        raise InputError(f"{path}: coordinates of {tiles.tool} without features; give the folder of its feature files")
    found = None if tiles.unit == "px" else slide_mpp() if callable(slide_mpp) else slide_mpp
    mpp = None if found is None else Mpp(found)
    _, side = level0(tiles, mpp)
    known = {
        "tile_px": tiles.tile_px,
        "side_level0_px": side,
        "magnification": tiles.magnification,
        "overlap": tiles.overlap,
        "mpp": tiles.mpp,
    }
    header = make_header(
        "features",
        slide={"id": Path(path).stem},
        settings={},
        made_by=tiles.made_by,
        tiles=known,
        encoder={"name": tiles.encoder, "embedding": None, "made_by": tiles.made_by},
        history=[{**origin(tiles), "digest": digest({}, {"tiles": tiles.digest, "rows": str(tiles.features_digest)})}],
    )
    return features_on_disk(tiles, header, lambda: level0(read_foreign(path), mpp)[0])


def features_on_disk(tiles: ForeignTiles, header: dict[str, Any], coords: Callable[[], np.ndarray]) -> BagFile:
    """The features of a file that has some.

    Args:
        header, coords: as of :class:`BagFile`.
    """
    assert tiles.dataset is not None and tiles.width is not None, "who calls has looked"
    shape = (len(tiles.coords), tiles.width)
    dtype = np.dtype(np.float16 if tiles.dtype == "float16" else np.float32)
    values = partial(_values, tiles.path, tiles.dataset, shape, dtype)
    return BagFile(Path(tiles.path), header, shape, dtype, tiles.in_chunks, lambda check: values(), coords)


def read_bag(path: str | Path, slide_mpp: float | Callable[[], float]) -> Features:
    """The features of one slide, from a file of lrmil or of another tool, in float32.

    Raises:
        InputError: as :func:`open_bag` (arguments as there), damaged, or not finite.
    """
    return read_features(path) if made_by_us(path) else open_bag(path, slide_mpp).read()


def origin(tiles: ForeignTiles) -> dict[str, str]:
    """The ``history`` entry of a foreign file: the tool, and the digest of the content in place of a command's."""
    return {"command": tiles.tool, "digest": tiles.digest}


def read_foreign(path: str | Path) -> ForeignTiles:
    """Read what a feature or coordinate file of another tool says, and its coordinates; its features stay on disk.

    Raises:
        InputError: no such file, none of these, one of ours, damaged, or empty.
    """
    if made_by_us(path):
        raise InputError(f"{path}: a feature file of lrmil; give the tile table it was made from in its place")
    with _open(path) as h5:
        try:
            said = layout(h5, path)
            raw = np.asarray(own_dataset(h5, "coords", path))
            if said["made_by"] == "atlaspatch":
                raw = raw[:, :2]
            coords = _coords(raw, said["unit"], path)
            key = digest({k: v for k, v in said.items() if k not in ("name", "dataset")}, {"coords": _sha(raw)})
            if said["dataset"] is not None:
                data = own_dataset(h5, said["dataset"], path)
                said |= {
                    "width": _width(data.shape, len(coords), NAMES[said["made_by"]], path),
                    "dtype": str(data.dtype),
                    "in_chunks": many_chunks(data),
                }
                if data.dtype.kind != "f":
                    raise InputError(
                        f"{path}: features of type {data.dtype}, but floats are needed; make the file again"
                    )
                said["features_digest"] = _sha(_some_rows(data, len(coords)))
        except DAMAGE as e:
            raise _damaged(path, e) from e
    return ForeignTiles(path=str(path), coords=coords, digest=key, **{"width": None, **said})


def _some_rows(data: Any, n: int) -> np.ndarray:
    """:data:`ROWS_IN_DIGEST` rows of features that may have further axes of one."""
    rows = np.unique(np.linspace(0, n - 1, min(n, ROWS_IN_DIGEST)).astype(int))
    axis = data.shape.index(n) if n > 1 else 0
    at: list[Any] = [slice(None)] * len(data.shape)
    return np.stack([np.asarray(data[tuple([*at[:axis], int(r), *at[axis + 1 :]])]) for r in rows])


def _values(path: str | Path, dataset: str, shape: tuple[int, int], dtype: np.dtype[Any]) -> np.ndarray:
    with _open(path) as h5:
        try:
            stored = np.asarray(own_dataset(h5, dataset, path))
        except DAMAGE as e:
            raise _damaged(path, e) from e
    if stored.size != shape[0] * shape[1]:
        raise InputError(f"{path}: changed while it was in use; run the command again")
    return np.ascontiguousarray(stored, dtype=dtype).reshape(shape)


def _damaged(path: str | Path, e: Exception) -> InputError:
    reason = f"{type(e).__name__}: {' '.join(str(e).split())[:100]}"
    return InputError(f"{path}: cannot be read ({reason}); copy it again, or make it again")


def describe_foreign(tiles: ForeignTiles) -> dict[str, Any]:
    """What a file says, for people."""
    t = tiles
    unit = "level-0 px" if t.unit == "px" else "um"
    side = f"{t.side:g} {unit}" if t.side else "not in this file"
    if not t.side and t.level:
        side = f"{t.tile_px} px of level {t.level}, the slide says how many level-0 px"
    return {
        "kind": "features" if t.width else "coordinates",
        "made_by": t.tool,
        "slide": t.name,
        "tiles": len(t.coords),
        "width": t.width,
        "encoder": t.encoder,
        "tile_px": t.tile_px,
        "tile_side": side,
        "mpp": t.mpp,
        "magnification": t.magnification,
        "overlap_px": t.overlap,
        "slide_size_px": [round(v) for v in t.size] if t.size else None,
        "coords": f"top-left corners in {unit}",
        "digest": t.digest,
    }


def level0(
    tiles: ForeignTiles, mpp: Mpp | None, downsamples: Callable[[], list[float]] | None = None
) -> tuple[np.ndarray, float | None]:
    """Corners int64 [N, 2] and side of the tiles in level-0 px; the side is None where neither file nor slide tells.

    Args:
        mpp: of level 0, for coordinates in um; downsamples: gives those of the slide's levels, where the file lacks
            them.

    Raises:
        InputError: corners in um are no whole pixels at this ``mpp``; the slide has no such level.
    """
    if tiles.unit == "um":
        assert mpp is not None, "who reads coordinates in um knows the scale of the slide"
        return _snap(tiles, mpp)
    if tiles.side is None and tiles.level is not None and downsamples is not None:
        found = downsamples()
        if tiles.level >= len(found):
            raise InputError(
                f"{tiles.path}: tiles of pyramid level {tiles.level}, but the slide has levels 0 to {len(found) - 1}"
            )
        assert tiles.tile_px is not None, "a level is named with the px that it counts"
        return tiles.coords, tiles.tile_px * found[tiles.level]
    return tiles.coords, tiles.side


def _snap(tiles: ForeignTiles, mpp: Mpp) -> tuple[np.ndarray, float]:
    """STAMP cuts tiles of ``ceil(tile_um / mpp)`` px from a grid at (0, 0) and writes corners in um: back onto it.

    Rounding alone would not do: inside the larger blocks it reads, STAMP adds ``tile_um`` and not the px that it cut.
    """
    assert tiles.side is not None, "STAMP says the side of its tiles"
    exact = tiles.side / mpp
    px = tiles.coords / mpp
    found = []
    for side in {math.ceil(exact), round(exact)}:
        cell = np.rint(px / side)
        found.append((float(np.abs(px - cell * side).max()), side, cell))
    error, side, cell = min(found, key=lambda f: f[:2])
    if error > MAX_SNAP_PX:
        raise InputError(
            f"{tiles.path}: at {mpp:g} um/px its corners (in um) lie up to {error:.1f} px off every grid of whole "
            "pixels; was the slide encoded with another mpp? give that one in the manifest's mpp column, or as "
            "--slide-mpp of `lrmil tile`"
        )
    return (cell * side).astype(np.int64), float(side)


def _open(path: str | Path) -> Any:
    try:
        return open_hdf5(path)
    except OSError as e:
        raise InputError(f"{path}: not an HDF5 file, or cut short; copy it again, or make it again") from e


def _coords(raw: np.ndarray, unit: str, path: str | Path) -> np.ndarray:
    """[N, 2] from what is stored: integers for px, float64 for um; leading axes of one are dropped."""
    if raw.ndim < 2 or raw.shape[-1] != 2 or any(d != 1 for d in raw.shape[:-2]) or raw.dtype.kind not in "iuf":
        raise InputError(f"{path}: coords of shape {raw.shape} ({raw.dtype}); one x, y for each tile is needed")
    if not raw.size:
        raise InputError(
            f"{path}: no tiles in it; leave the slide out, or look at its tissue in the tool that made the file"
        )
    at = raw.reshape(-1, 2).astype(np.float64)
    if not np.isfinite(at).all() or np.abs(at).max() > 2**31 or (unit == "px" and (at != np.rint(at)).any()):
        raise InputError(f"{path}: coords hold values that are no level-0 pixels; make the file again")
    return at.astype(np.int64) if unit == "px" else at


def _width(shape: tuple[int, ...], n: int, tool: str, path: str | Path) -> int:
    """D of features stored as ``shape`` for ``n`` tiles; axes of one do not count."""
    total = math.prod(shape)
    width = total // n
    if not total or total % n or [d for d in shape if d != 1] != [d for d in (n, width) if d != 1]:
        one = " (one vector for the whole slide? those of its tiles are needed)"
        hint = one if max(shape, default=0) == total else ""
        raise InputError(f"{path}: {tool} features of shape {tuple(shape)} do not fit its {n} coordinates{hint}")
    return width


def _sha(array: np.ndarray) -> str:
    hashed = hashlib.sha256(f"{array.dtype.str} {array.shape}".encode())
    hashed.update(np.ascontiguousarray(array).data)
    return hashed.hexdigest()
