"""HDF5 files laid out as TRIDENT, CLAM and STAMP write them, so that tests read what their users have."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np


def _dataset(h5: h5py.File, key: str, values: np.ndarray, attributes: dict) -> None:
    """Chunks of one row and a first axis without limit, as TRIDENT and CLAM have them."""
    rest = values.shape[1:]
    data = h5.create_dataset(key, shape=values.shape, maxshape=(None, *rest), chunks=(1, *rest), dtype=values.dtype)
    data[:] = values
    for name, value in attributes.items():
        data.attrs[name] = "None" if value is None else value


def write_trident(
    path: Path,
    coords: np.ndarray,
    features: np.ndarray | None = None,
    *,
    patch_size: int = 256,
    source: int = 20,
    target: int = 20,
    overlap: int = 0,
    size: tuple[int, int] | None = None,
    encoder: str = "uni_v1",
    batch_axis: bool = False,
) -> Path:
    """``<slide>.h5``, or without features ``patches/<slide>_patches.h5``. Without ``size``, as its first versions
    wrote it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    name = path.stem.removesuffix("_patches")
    about = {
        "patch_size": patch_size,
        "patch_size_level0": patch_size * source // target,
        "level0_magnification": source,
        "target_magnification": target,
        "overlap": overlap,
        "name": name,
        "savetodir": str(path.parent),
    }
    if size:
        about |= {"level0_width": size[0], "level0_height": size[1]}
    coords = np.asarray(coords, np.int64)
    with h5py.File(path, "w") as h5:
        if features is not None:
            values = features[None] if batch_axis else features
            _dataset(h5, "features", values, {"name": name, "savetodir": str(path.parent), "encoder": encoder})
        _dataset(h5, "coords", coords[None] if batch_axis else coords, about)
    return path


def write_clam_coords(
    path: Path,
    coords: np.ndarray,
    *,
    patch_size: int = 256,
    level: int = 0,
    downsample: float | None = 1.0,
    size: tuple[int, int] = (10000, 10000),
) -> Path:
    """``patches/<slide>.h5``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    about = {"patch_size": patch_size, "patch_level": level, "name": path.stem, "save_path": str(path.parent)}
    if downsample:
        dim = tuple(int(s / downsample) for s in size)
        about |= {"downsample": (downsample, downsample), "downsampled_level_dim": dim, "level_dim": dim}
    with h5py.File(path, "w") as h5:
        _dataset(h5, "coords", np.asarray(coords, np.int64), about)
    return path


def write_clam_features(path: Path, coords: np.ndarray, features: np.ndarray) -> Path:
    """``h5_files/<slide>.h5``: two datasets and no attribute."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as h5:
        _dataset(h5, "features", np.asarray(features, np.float32), {})
        _dataset(h5, "coords", np.asarray(coords, np.int32), {})
    return path


def write_stamp(
    path: Path,
    coords_um: np.ndarray,
    features: np.ndarray,
    *,
    tile_um: float = 256.0,
    tile_px: int | None = 224,
    version: str = "2.4.0",
    **attributes,
) -> Path:
    """``<slide>.h5`` of STAMP 2; before 2.1 ``tile_size`` instead of ``tile_size_um`` and ``tile_size_px``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    about = {
        "stamp_version": version,
        "extractor": "uni2",
        "unit": "um",
        "tile_size_um": tile_um,
        "tile_size_px": tile_px,
        "code_hash": "0" * 8,
        "feat_type": "tile",
    }
    if tile_px is None:
        about = {"extractor": "uni", "unit": "um", "tile_size": tile_um}
    with h5py.File(path, "w") as h5:
        h5["coords"] = np.asarray(coords_um, np.float32)
        h5["feats"] = np.asarray(features, np.float16)
        for key, value in (about | attributes).items():
            if value is not None:
                h5.attrs[key] = value
    return path


def write_atlaspatch(
    path: Path, coords: np.ndarray, sets: dict[str, np.ndarray], *, patch_size: int = 128, source: int = 20
) -> Path:
    """``patches/<slide>.h5``: x, y and how each tile was read, a group of feature sets, attributes of the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    read = np.broadcast_to(np.array([patch_size, patch_size, 0]), (len(coords), 3))
    with h5py.File(path, "w") as h5:
        h5.create_dataset("coords", data=np.hstack([coords, read]).astype(np.int32), maxshape=(None, 5), chunks=(64, 5))
        h5.create_dataset("passports", data=np.full(len(coords), b"s", "S160"))
        for name, values in sets.items():
            h5.create_dataset(f"features/{name}", data=np.asarray(values, np.float32))
        about = {"patch_size": patch_size, "patch_size_level0": patch_size, "level0_magnification": source}
        about |= {"target_magnification": source, "overlap": 0, "level0_width": 10000, "level0_height": 9000}
        for key, value in about.items():
            h5.attrs[key] = value
    return path
