"""Feature files: HDF5 as TRIDENT and CLAM lay it out (``features`` [N, D], ``coords`` [N, 2]) plus an lrmil header."""

from __future__ import annotations

import hashlib
import io
import json
import os
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


#: What stands behind the end of HDF5, which its readers do not look at: a checksum of all bytes before it. The library
#: itself crashes on some damaged files, so ours are looked at before it is.
_MARK = b"\nlrmil blake2b-128 "
#: How many times its size on disk a dataset may take in memory; a damaged one claims anything.
MOST_UNPACKED = 200


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
        features = np.ascontiguousarray(features, dtype=np.float32)
        coords = np.ascontiguousarray(coords, dtype=np.int64)
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
    data = sink.getvalue()
    write_bytes(path, data + _MARK + _checksum(data))


def read_features(path: str | Path) -> Features:
    """Read a feature file made by ``lrmil embed`` or by the training commands.

    Raises:
        InputError: no such file, not one of ours, damaged, or not finite.
    """
    _check_bytes(path)
    try:
        with open_hdf5(path) as h5:
            header = _header(h5, path)
            features = np.asarray(own_dataset(h5, "features", path), dtype=np.float32)
            coords = np.asarray(own_dataset(h5, "coords", path), dtype=np.int64)
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
    try:
        with open_hdf5(path) as h5:
            return _header(h5, path)
    except InputError:
        raise
    except (OSError, KeyError, RuntimeError, TypeError) as e:
        raise InputError(f"{path}: not a complete HDF5 feature file ({type(e).__name__}); make it again") from e


def open_hdf5(path: str | Path) -> Any:
    """An HDF5 file, for reading and without a lock: network file systems may have none (ENOLCK), and a job of another
    machine may hold one. What we write is renamed into place whole, so nobody reads half of it.

    Raises:
        InputError: the system cannot read it, which says nothing of what is in it. OSError: it is no HDF5 file.
    """
    import h5py

    try:
        return h5py.File(path, "r", locking=False)
    except OSError as e:
        if not e.errno or isinstance(e, FileNotFoundError):
            raise
        raise InputError(
            f"{path}: cannot be read ({os.strerror(e.errno)}, errno {e.errno}); it may be whole: try again, or copy it "
            "to another disk"
        ) from e


def _checksum(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()


def _check_bytes(path: str | Path) -> None:
    """Of files that carry a checksum behind their end, whether it is right.

    Raises:
        InputError: it is not.
    """
    try:
        data = Path(path).read_bytes()
    except OSError:  # said in better words by who opens it
        return
    end = len(data) - 16 - len(_MARK)
    if end >= 0 and data[end : end + len(_MARK)] == _MARK and _checksum(data[:end]) != data[-16:]:
        raise InputError(f"{path}: changed after it was written (a damaged copy?); make it again, or copy it again")


def own_dataset(h5: Any, key: str, path: str | Path) -> Any:
    """A dataset whose values stand in the file itself.

    Raises:
        InputError: it is a link, or its values lie in another file, which is not followed; or it is impossibly large.
        KeyError: it is not there.
    """
    import h5py

    link = h5.get(key, getlink=True)
    found = h5[key] if isinstance(link, h5py.HardLink) else None
    if link is not None and (not isinstance(found, h5py.Dataset) or found.external or found.is_virtual):
        raise InputError(
            f"{path}: {key} points to another place or file, which is not followed; "
            "write its values into the file itself"
        )
    size = os.path.getsize(path)
    if found is not None and found.nbytes > MOST_UNPACKED * size + 2**26:
        raise InputError(
            f"{path}: {key} claims {found.nbytes / 1e9:.0f} GB in a file of {size / 1e6:.1f} MB; it is damaged"
        )
    return h5[key]


def _header(h5: Any, path: str | Path) -> dict[str, Any]:
    text = h5.attrs.get("lrmil")
    if text is None:
        return check_header(None, "features", str(path))
    return parse_header(text, "features", str(path))
