"""Feature files: HDF5 in the layout of TRIDENT and CLAM (``features`` [N, D], ``coords`` [N, 2]) plus an lrmil header."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lrmil_cli.errors import InputError
from lrmil_cli.files.atomic import write_bytes
from lrmil_cli.files.header import check_header, check_seal, parse_header, sealed


@dataclass(frozen=True)
class Features:
    """One bag: ``features`` float32 [N, D], ``coords`` int64 [N, 2] (level-0 x, y of the tiles' corners)."""

    header: dict[str, Any]
    features: np.ndarray
    coords: np.ndarray


def write_features(path: str | Path, header: dict[str, Any], features: np.ndarray, coords: np.ndarray) -> None:
    """Write a feature file atomically.

    Args:
        header: kind ``features``; its ``tiles`` entry gives ``mpp`` and ``tile_px``, its ``slide`` entry the scale.
        features: [N, D]; coords: [N, 2], level-0 px.

    Raises:
        MachineError: the file cannot be written.
    """
    import h5py

    slide, tiles = header["slide"], header["tiles"]
    # In memory first: HDF5 reports a full disk late and in words of its own.
    sink = io.BytesIO()
    with h5py.File(sink, "w") as h5:
        features, coords = np.ascontiguousarray(features, dtype=np.float32), np.ascontiguousarray(coords, dtype=np.int64)
        data = h5.create_dataset("features", data=features)
        data.attrs["encoder"] = header["encoder"]["name"]
        data.attrs["name"] = slide["id"]
        at = h5.create_dataset("coords", data=coords)
        # The attribute names of TRIDENT, so that its readers know what a coordinate means.
        for key, value in {
            "patch_size": tiles["tile_px"],
            "patch_size_level0": round(tiles["tile_px"] * tiles["mpp"] / slide["mpp"]),
            "level0_magnification": round(10 / slide["mpp"]),
            "target_magnification": round(10 / tiles["mpp"], 3),
            "level0_width": slide["width"],
            "level0_height": slide["height"],
            "overlap": 0,
            "name": slide["id"],
        }.items():
            at.attrs[key] = value
        h5.attrs["lrmil"] = json.dumps(sealed(header, features, coords), allow_nan=False)
    write_bytes(path, sink.getvalue())


def read_features(path: str | Path) -> Features:
    """Read a feature file made by ``lrmil embed`` or by the training commands.

    Raises:
        InputError: no such file, not one of ours, damaged, or not finite.
    """
    import h5py

    try:
        with h5py.File(path, "r") as h5:
            header = _header(h5, path)
            features = np.asarray(h5["features"], dtype=np.float32)
            coords = np.asarray(h5["coords"], dtype=np.int64)
    except FileNotFoundError as e:
        raise InputError(f"{path}: no such file") from e
    except InputError:
        raise
    except (OSError, KeyError, ValueError, TypeError, RuntimeError) as e:
        raise InputError(f"{path}: not a complete HDF5 feature file ({type(e).__name__}); make it again") from e
    if features.ndim != 2 or coords.shape != (len(features), 2) or not len(features):
        raise InputError(f"{path}: features {features.shape} and coords {coords.shape} do not fit; make it again")
    if not np.isfinite(features).all():
        raise InputError(f"{path}: the features hold values that are not finite; make it again")
    return Features(check_seal(header, str(path), features, coords), features, coords)


def read_features_header(path: str | Path) -> dict[str, Any]:
    """The lrmil header of a feature file.

    Raises:
        InputError: as :func:`read_features`.
    """
    import h5py

    try:
        with h5py.File(path, "r") as h5:
            return _header(h5, path)
    except OSError as e:
        raise InputError(f"{path}: not a complete HDF5 feature file ({type(e).__name__}); make it again") from e


def _header(h5: Any, path: str | Path) -> dict[str, Any]:
    text = h5.attrs.get("lrmil")
    if text is None:
        return check_header(None, "features", str(path))
    return parse_header(text, "features", str(path))
