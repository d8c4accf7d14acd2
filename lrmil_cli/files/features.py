"""Feature files: HDF5 as TRIDENT and CLAM lay it out (``features`` [N, D], ``coords`` [N, 2]) plus an lrmil header."""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lrmil_cli.errors import InputError, UsageError, no_such_file
from lrmil_cli.files.atomic import write_bytes
from lrmil_cli.files.hdf5 import DAMAGE, open_hdf5, own_dataset
from lrmil_cli.files.header import check_header, check_seal, parse_header

#: How features may be stored. Two bytes a value are half of four to read, and what they lose (2^-11 of a value) is less
#: than what a head sees (files/README 2.2).
DTYPES = ("float16", "float32")
#: A dataset in more chunks is read slowly: each is looked up by itself.
MANY_CHUNKS = 256


@dataclass(frozen=True)
class Features:
    """One bag: ``features`` float32 [N, D], ``coords`` int64 [N, 2] (level-0 x, y of the tiles' corners)."""

    header: dict[str, Any]
    features: np.ndarray
    coords: np.ndarray


@dataclass
class BagFile:
    """A feature file that stays on disk: what it says of itself is known, its features are read when they are asked
    for.

    The first reading also checks them; later ones, if nobody wrote to the file since it was opened, do not.

    Attributes:
        header: as of :class:`Features`; shape: N tiles, D features of each.
        dtype: of the features as they are stored, float16 or float32.
        in_chunks: stored in more than :data:`MANY_CHUNKS` chunks (often one a row), which is slow to read.
    """

    path: Path
    header: dict[str, Any]
    shape: tuple[int, int]
    dtype: np.dtype[Any]
    in_chunks: bool
    _features: Callable[[bool], np.ndarray]
    _coords: Callable[[], np.ndarray]
    _checked: bool = field(default=False, init=False)
    _stamp: tuple[int, int] = field(init=False)

    def __post_init__(self) -> None:
        self._stamp = _stamp(self.path)

    @property
    def nbytes(self) -> int:
        """Bytes of the features as they are stored."""
        return self.shape[0] * self.shape[1] * self.dtype.itemsize

    def features(self) -> np.ndarray:
        """``dtype`` [N, D], an array of the caller's own.

        Raises:
            InputError: the file is not there any more, was written to since it was opened, is damaged, or holds values
                that are not finite.
        """
        if _stamp(self.path) != self._stamp:
            raise InputError(
                f"{self.path}: changed while it was in use (does another job write there?); run the command again"
            )
        values = self._features(not self._checked)
        if values.shape != self.shape:
            raise InputError(f"{self.path}: changed while it was in use; run the command again")
        if not self._checked and (bad := values.size - int(np.isfinite(values).sum())):
            raise InputError(f"{self.path}: {bad} of its feature values are not finite; encode the slide again")
        self._checked = True
        return values

    def coords(self) -> np.ndarray:
        """int64 [N, 2], level-0 x, y of the tiles' corners.

        Raises:
            InputError: the file cannot be read.
        """
        return self._coords()

    def read(self) -> Features:
        """All of it, in float32.

        Raises:
            InputError: as :meth:`features`.
        """
        return Features(self.header, self.features().astype(np.float32, copy=False), self.coords())


#: What stands behind the end of HDF5, which its readers do not look at: a checksum of all bytes before it. The library
#: itself crashes on some damaged files, so ours are looked at before it is.
_MARK = b"\nlrmil blake2b-128 "


def write_features(
    path: str | Path, header: dict[str, Any], features: np.ndarray, coords: np.ndarray, dtype: str = "float16"
) -> None:
    """Write a feature file atomically, each dataset in one piece, so that a bag is one sequential read.

    Args:
        header: kind ``features``; its ``tiles`` entry gives ``mpp`` and ``tile_px``, its ``slide`` entry the scale.
        features: [N, D]; coords: [N, 2], level-0 px; dtype: one of :data:`DTYPES`.

    Raises:
        UsageError: values beyond what ``dtype`` can hold. MachineError: the file cannot be written.
    """
    import h5py

    slide, tiles = header["slide"], header["tiles"]
    with np.errstate(over="ignore"):
        stored = np.ascontiguousarray(features, dtype=dtype)
    if np.isinf(stored).any() and np.isfinite(features).all():
        raise UsageError(
            f"{path}: features up to {np.abs(features).max():.3g}, which float16 cannot hold; add --dtype float32"
        )
    # In memory first: HDF5 reports a full disk late and in words of its own.
    sink = io.BytesIO()
    with h5py.File(sink, "w") as h5:
        data = h5.create_dataset("features", data=stored)
        data.attrs["encoder"] = header["encoder"]["name"]
        data.attrs["name"] = slide["id"]
        at = h5.create_dataset("coords", data=np.ascontiguousarray(coords, dtype=np.int64))
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
        h5.attrs["lrmil"] = json.dumps(header, allow_nan=False)
    data = sink.getvalue()
    write_bytes(path, data + _MARK + hashlib.blake2b(data, digest_size=16).digest())


def open_features(path: str | Path) -> BagFile:
    """Open a feature file made by ``lrmil embed`` or by the training commands, without reading its features.

    Raises:
        InputError: no such file, not one of ours, cut short, or its parts do not fit.
    """
    path = Path(path)
    try:
        with open_hdf5(path) as h5:
            header = _header(h5, path)
            data, at = own_dataset(h5, "features", path), own_dataset(h5, "coords", path)
            shape, dtype, in_chunks, place = data.shape, data.dtype, many_chunks(data), data.id.get_offset()
            if len(shape) != 2 or at.shape != (shape[0], 2) or not shape[0] or dtype.kind != "f":
                raise InputError(f"{path}: features {shape} and coords {at.shape} do not fit; make it again")
    except InputError:
        raise
    except DAMAGE as e:
        raise InputError(f"{path}: not a complete HDF5 feature file ({type(e).__name__}); make it again") from e
    kept = np.dtype(np.float16 if dtype.itemsize == 2 else np.float32)
    whole = place is not None and dtype == kept and place % dtype.itemsize == 0

    def values(check: bool) -> np.ndarray:
        if check:
            checked = _checked_bytes(path)
            if checked is None:  # its checksum went with a copy by another tool, or it is of old
                return _sealed_values(path, kept)
            if whole:
                return np.frombuffer(checked, dtype, shape[0] * shape[1], place).reshape(shape)
        if whole:
            return _section(path, place, shape, dtype)
        return _dataset(path, "features", kept)

    return BagFile(
        path,
        {k: v for k, v in header.items() if k != "content"},
        shape,
        kept,
        in_chunks,
        values,
        lambda: _dataset(path, "coords", np.dtype(np.int64)),
    )


def read_features(path: str | Path) -> Features:
    """Read a feature file made by ``lrmil embed`` or by the training commands, in float32.

    Raises:
        InputError: no such file, not one of ours, damaged, or not finite.
    """
    _checked_bytes(Path(path))  # before the library opens it, which crashes on some damaged files
    return open_features(path).read()


def read_features_header(path: str | Path) -> dict[str, Any]:
    """The lrmil header of a feature file.

    Raises:
        InputError: as :func:`open_features`.
    """
    try:
        with open_hdf5(path) as h5:
            return _header(h5, path)
    except InputError:
        raise
    except DAMAGE as e:
        raise InputError(f"{path}: not a complete HDF5 feature file ({type(e).__name__}); make it again") from e


def many_chunks(data: Any) -> bool:
    """Whether a dataset lies in more than :data:`MANY_CHUNKS` chunks."""
    return data.chunks is not None and data.size > MANY_CHUNKS * int(np.prod(data.chunks))


def _stamp(path: Path) -> tuple[int, int]:
    """What changes when somebody writes to a file.

    Raises:
        InputError: it is not there.
    """
    try:
        about = os.stat(path)
    except OSError as e:
        raise InputError(f"{path}: cannot be read ({e.strerror}); was it there when the command started?") from e
    return about.st_size, about.st_mtime_ns


def _checked_bytes(path: Path) -> bytearray | None:
    """All bytes of a file that carries a checksum behind its end; None if it carries none.

    Raises:
        InputError: the checksum is another, or the file cannot be read.
    """
    try:
        with open(path, "rb", buffering=0) as fh:
            data = bytearray(os.fstat(fh.fileno()).st_size)
            _fill(fh, data)
    except OSError as e:
        raise InputError(
            no_such_file(path, "make it with `lrmil embed`")
            if isinstance(e, FileNotFoundError)
            else f"{path}: cannot be read ({e.strerror}); check its permissions and the disk"
        ) from e
    end = len(data) - 16 - len(_MARK)
    if end < 0 or data[end : end + len(_MARK)] != _MARK:
        return None
    if hashlib.blake2b(memoryview(data)[:end], digest_size=16).digest() != data[-16:]:
        raise InputError(
            f"{path}: changed after it was written (a damaged copy?); make it again (--overwrite), or copy it again"
        )
    return data


def _fill(fh: io.FileIO, target: Any) -> int:
    """Read into ``target``, as often as it takes (the system gives 2 GB at most at a time); how many bytes there
    were."""
    view, done = memoryview(target).cast("B"), 0
    while done < len(view) and (n := fh.readinto(view[done:])):
        done += n
    return done


def _section(path: Path, place: int, shape: tuple[int, int], dtype: np.dtype[Any]) -> np.ndarray:
    """A dataset that lies in one piece, read past the library, which lets no other thread run meanwhile.

    Not mapped into memory: a mapped file that shrinks ends the process.
    """
    out = np.empty(shape, dtype)
    try:
        with open(path, "rb", buffering=0) as fh:
            fh.seek(place)
            if _fill(fh, out) < out.nbytes:
                raise InputError(f"{path}: became shorter while it was in use; make it again")
    except OSError as e:
        raise InputError(f"{path}: cannot be read ({e.strerror}); check its permissions and the disk") from e
    return out


def _dataset(path: Path, key: str, dtype: np.dtype[Any]) -> np.ndarray:
    try:
        with open_hdf5(path) as h5:
            return np.asarray(own_dataset(h5, key, path), dtype=dtype)
    except InputError:
        raise
    except DAMAGE as e:
        raise InputError(f"{path}: not a complete HDF5 feature file ({type(e).__name__}); make it again") from e


def _sealed_values(path: Path, dtype: np.dtype[Any]) -> np.ndarray:
    """Features of a file without a checksum behind its end, by the one in its header if there is one."""
    features, coords = _dataset(path, "features", dtype), _dataset(path, "coords", np.dtype(np.int64))
    check_seal(read_features_header(path), str(path), features, coords)
    return features


def _header(h5: Any, path: str | Path) -> dict[str, Any]:
    text = h5.attrs.get("lrmil")
    if text is None:
        return check_header(None, "features", str(path))
    return parse_header(text, "features", str(path))
