"""What a feature or coordinate file of another tool says of itself, in the tool's own units."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from lrmil_cli.errors import InputError


def layout(h5: Any, path: str | Path) -> dict[str, Any]:
    """What an open file says, as fields of :class:`lrmil_cli.files.foreign.ForeignTiles`; ``dataset`` is where its
    features are, None in coordinate files.

    Raises:
        InputError: a file of none of the tools, or one that leaves open where its tiles are.
    """
    if "feats" in h5:
        return {**_stamp(h5, path), "dataset": "feats"}
    if "coords" in h5 and (_is_group(h5, "features") or h5["coords"].shape[1:] == (5,)):
        return _atlaspatch(h5, path)
    return {**_trident_or_clam(h5, path), "dataset": "features" if "features" in h5 else None}


def _is_group(h5: Any, key: str) -> bool:
    import h5py

    return isinstance(h5.get(key, getlink=True), h5py.HardLink) and isinstance(h5[key], h5py.Group)


def _atlaspatch(h5: Any, path: str | Path) -> dict[str, Any]:
    sets = sorted(h5["features"]) if "features" in h5 else []
    if len(sets) > 1:
        raise InputError(
            f"{path}: holds {len(sets)} sets of features ({', '.join(sets)[:100]}); write the one to train on to a "
            "file of its own: `lrmil embed --repack --feature-set NAME`"
        )
    at = h5.attrs
    tile_px = _number(at.get("patch_size"))
    size = tuple(_number(at.get(k)) for k in ("level0_width", "level0_height"))
    return {
        "made_by": "atlaspatch",
        "unit": "px",
        "encoder": sets[0] if sets else None,
        "tile_px": None if tile_px is None else round(tile_px),
        "side": _number(at.get("patch_size_level0")),
        "magnification": _number(at.get("target_magnification")),
        "overlap": round(_number(at.get("overlap")) or 0),
        "size": None if None in size else size,
        "dataset": f"features/{sets[0]}" if sets else None,
    }


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
