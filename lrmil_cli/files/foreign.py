"""Feature and coordinate files of TRIDENT, CLAM and STAMP, read as they are.

A coordinate is the top-left corner of a tile in all of them; what else they say differs:

- TRIDENT, ``<slide>.h5`` and ``patches/<slide>_patches.h5``: ``features``, ``coords`` in level-0 px; the attributes of
  ``coords`` hold ``patch_size`` (at the target magnification) and ``patch_size_level0``. Published feature sets add a
  leading axis of one slide.
- CLAM, ``patches/<slide>.h5``: ``coords`` in level-0 px with ``patch_size`` in px of the pyramid level ``patch_level``
  and that level's ``downsample``; ``h5_files/<slide>.h5``: ``features`` and ``coords`` without any attribute.
- STAMP from version 2, ``<slide>.h5``: ``feats``, ``coords`` in um; attributes of the file: ``unit``, ``tile_size_um``
  (``tile_size`` before 2.1), ``tile_size_px``, ``extractor``.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lrmil_cli.errors import InputError
from lrmil_cli.files.features import Features, open_hdf5, own_dataset, read_features
from lrmil_cli.files.header import digest, make_header
from lrmil_cli.units import LevelPx, Mpp

SUFFIXES = (".h5", ".hdf5")
NAMES = {"trident": "TRIDENT", "clam": "CLAM", "stamp": "STAMP", "lrmil": "lrmil"}
#: A corner in um must fall on a whole pixel of its grid to within this many level-0 px, or something was lost.
MAX_SNAP_PX = 1.0


@dataclass(frozen=True)
class ForeignTiles:
    """What a file of another tool says, in its own units.

    Attributes:
        made_by: a key of :data:`NAMES`.
        coords: [N, 2] x, y of top-left corners in ``unit``: ``px`` (level 0) or ``um``.
        features: float32 [N, D]; None in coordinate files, and where they were not asked for.
        width: D as stored, None in coordinate files.
        tile_px: side of the tiles as they were encoded; side: the same in ``unit``, None where the file does not say.
        level: pyramid level whose pixels ``tile_px`` counts, where ``side`` has to be found with the slide.
        magnification: as asked of the tool; overlap: in px of the tile; size: width, height of the slide in level-0 px.
        digest: of the content.
    """

    path: str
    made_by: str
    unit: str
    coords: np.ndarray
    features: np.ndarray | None
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


def read_bag(path: str | Path, slide_mpp: float | Callable[[], float]) -> Features:
    """The features of one slide, from a file of lrmil, TRIDENT, CLAM or STAMP.

    Args:
        slide_mpp: level-0 um/px, or a function that finds it, called for files that count in um only.

    Raises:
        InputError: no such file, none of these, damaged, without features, not finite; a corner in um is no whole
            pixel.
    """
    if made_by_us(path):
        return read_features(path)
    tiles = read_foreign(path)
    if tiles.features is None:
        raise InputError(f"{path}: coordinates of {tiles.tool} without features; give the folder of its feature files")
    mpp = None if tiles.unit == "px" else slide_mpp() if callable(slide_mpp) else slide_mpp
    coords, side = level0(tiles, None if mpp is None else Mpp(mpp))
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
        history=[origin(tiles)],
    )
    return Features(header, tiles.features, coords)


def origin(tiles: ForeignTiles) -> dict[str, str]:
    """The ``history`` entry of a foreign file: the tool, and the digest of the content in place of a command's."""
    return {"command": tiles.tool, "digest": tiles.digest}


def read_foreign(path: str | Path, *, features: bool = True) -> ForeignTiles:
    """Read a feature or coordinate file of TRIDENT, CLAM or STAMP.

    Args:
        features: False leaves the features on disk; ``digest`` then covers the coordinates alone.

    Raises:
        InputError: no such file, none of these, one of ours, damaged, empty, or not finite.
    """
    if made_by_us(path):
        raise InputError(f"{path}: a feature file of lrmil; give the tile table it was made from in its place")
    with _open(path) as h5:
        try:
            for key in ("coords", "features", "feats"):
                if h5.get(key, getlink=True) is not None:
                    own_dataset(h5, key, path)
            said = _stamp(h5, path) if "feats" in h5 else _trident_or_clam(h5, path)
            raw = np.asarray(h5["coords"])
            data = h5.get("feats" if "feats" in h5 else "features")
            shape = None if data is None else data.shape
            stored = np.asarray(data) if data is not None and features else None
        except (OSError, KeyError, ValueError, TypeError, RuntimeError, AttributeError) as e:
            reason = f"{type(e).__name__}: {' '.join(str(e).split())[:100]}"
            raise InputError(f"{path}: cannot be read ({reason}); copy it again, or make it again") from e
    coords = _coords(raw, said["unit"], path)
    tool, n = NAMES[said["made_by"]], len(coords)
    width = None if shape is None else _width(shape, n, tool, path)
    values = None if stored is None or width is None else _finite(stored, path).reshape(n, width)
    key = digest(
        {k: v for k, v in said.items() if k != "name"},
        {"coords": _sha(raw), **({"features": _sha(stored)} if stored is not None else {})},
    )
    return ForeignTiles(path=str(path), coords=coords, features=values, width=width, digest=key, **said)


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
    except FileNotFoundError as e:
        raise InputError(f"{path}: no such file") from e
    except OSError as e:
        raise InputError(f"{path}: not an HDF5 file, or cut short; copy it again, or make it again") from e


def _stamp(h5: Any, path: str | Path) -> dict[str, Any]:
    unit, kind = _text(h5.attrs.get("unit")), _text(h5.attrs.get("feat_type")) or "tile"
    side = _number(h5.attrs.get("tile_size_um", h5.attrs.get("tile_size")))
    if kind != "tile":
        raise InputError(
            f"{path}: STAMP's features of a whole {kind}; those of its tiles are needed (`stamp preprocess`)"
        )
    if "coords" not in h5 or unit != "um" or side is None:
        raise InputError(
            f"{path}: STAMP features whose coordinates are not said to be in um (made before STAMP 2?), so they cannot "
            "be placed on the slide; encode them again with STAMP 2"
        )
    tile_px = _number(h5.attrs.get("tile_size_px"))
    return {
        "made_by": "stamp",
        "unit": "um",
        "side": side,
        "tile_px": None if tile_px is None else round(tile_px),
        "encoder": _text(h5.attrs.get("extractor")),
    }


def _trident_or_clam(h5: Any, path: str | Path) -> dict[str, Any]:
    has = ", ".join(sorted(h5)) or "nothing"
    if "coords" not in h5 or "imgs" in h5:
        raise InputError(
            f"{path}: not a feature or coordinate file of lrmil, TRIDENT, CLAM or STAMP (it holds {has[:80]}; "
            "`coords`, with `features` or `feats`, were looked for)"
        )
    at = h5["coords"].attrs
    about = h5["features"].attrs if "features" in h5 else {}
    said: dict[str, Any] = {
        "unit": "px",
        "name": _text(at.get("name")) or _text(about.get("name")),
        "encoder": _text(about.get("encoder")),
        "overlap": round(_number(at.get("overlap")) or 0),
    }
    tile_px = _number(at.get("patch_size"))
    said["tile_px"] = None if tile_px is None else round(tile_px)
    base, target = _number(at.get("level0_magnification")), _number(at.get("target_magnification"))
    side = _number(at.get("patch_size_level0"))
    if side is None and tile_px and base and target:
        side = tile_px * base / target
    if side is not None:
        size = tuple(_number(at.get(k)) for k in ("level0_width", "level0_height"))
        said["size"] = None if None in size else size
        return {**said, "made_by": "trident", "side": side, "magnification": target}
    level = _number(at.get("patch_level"))
    if level is not None and tile_px:
        return {**said, "made_by": "clam", **_clam_level(at, round(level), tile_px, path)}
    if "features" not in h5:
        raise InputError(
            f"{path}: coordinates that do not say how large a tile is (no patch_size_level0, no patch_size and "
            "patch_level)"
        )
    return {**said, "made_by": "trident" if "savetodir" in about else "clam", "side": None}


def _clam_level(at: Any, level: int, tile_px: float, path: str | Path) -> dict[str, Any]:
    if (_number(at.get("custom_downsample")) or 1) != 1:
        raise InputError(
            f"{path}: custom_downsample {at['custom_downsample']} leaves open how large its tiles are; patch the "
            "slides without it"
        )
    downsample, dim = at.get("downsample"), at.get("level_dim")
    factors = None if downsample is None else np.broadcast_to(np.asarray(downsample, np.float64).ravel(), 2)
    if factors is None and level == 0:
        factors = np.ones(2)
    if factors is None:
        return {"side": None, "level": level}
    size = None if dim is None else tuple(float(v) for v in np.asarray(dim, np.float64).ravel()[:2] * factors)
    return {"side": float(tile_px * factors.mean()), "level": level, "size": size}


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


def _finite(stored: np.ndarray, path: str | Path) -> np.ndarray:
    """float32 of features stored in any float type.

    Raises:
        InputError: no floats, or some that are not finite.
    """
    if stored.dtype.kind != "f":
        raise InputError(f"{path}: features of type {stored.dtype}, but floats are needed; make the file again")
    values = np.ascontiguousarray(stored, dtype=np.float32)
    bad = values.size - int(np.isfinite(values).sum())
    if bad:
        raise InputError(f"{path}: {bad} of its feature values are not finite; encode the slide again")
    return values


def _sha(array: np.ndarray) -> str:
    hashed = hashlib.sha256(f"{array.dtype.str} {array.shape}".encode())
    hashed.update(np.ascontiguousarray(array).data)
    return hashed.hexdigest()


def _number(value: Any) -> float | None:
    """A number from an HDF5 attribute (scalar, array of one, text), or None; TRIDENT writes "None" for nothing."""
    try:
        number = float(np.asarray(value).ravel()[0]) if value is not None else math.nan
    except (ValueError, TypeError, IndexError):
        return None
    return number if math.isfinite(number) else None


def _text(value: Any) -> str | None:
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    return str(value) if value is not None and str(value) not in ("", "None") else None
