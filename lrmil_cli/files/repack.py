"""Feature files of other tools written anew, each dataset in one piece."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np

from lrmil_cli.errors import InputError, UsageError
from lrmil_cli.files.atomic import write_bytes
from lrmil_cli.files.hdf5 import DAMAGE, open_hdf5, own_dataset


def repack(path: str | Path, output: str | Path, *, feature_set: str | None = None, dtype: str | None = None) -> int:
    """Write the features of another tool as they are, attributes and all, so that a bag is one sequential read.

    Args:
        feature_set: of a file with several sets of features (AtlasPatch) the one to keep; None keeps all.
        dtype: of the features, float16 or float32; None leaves it.

    Returns:
        bytes of the new file.

    Raises:
        InputError: no such file, or damaged. UsageError: no set of that name, or values that ``dtype`` cannot hold.
        MachineError: the file cannot be written.
    """
    import h5py

    sink = io.BytesIO()
    try:
        with open_hdf5(path) as old, h5py.File(sink, "w") as new:
            if "lrmil" in old.attrs:
                raise InputError(f"{path}: a feature file of lrmil, which lies in one piece as it is")
            names: list[str] = []
            old.visit(names.append)
            sets = [n.removeprefix("features/") for n in names if n.startswith("features/")]
            if feature_set is not None and feature_set not in sets:
                raise UsageError(
                    f"--feature-set {feature_set}: {path} has {', '.join(sets) or 'no sets of features to choose from'}"
                )
            _attributes(old, new)
            for name in names:
                if isinstance(old[name], h5py.Group):
                    _attributes(old[name], new.require_group(name))
                elif feature_set is None or not name.startswith("features/") or name == f"features/{feature_set}":
                    values = np.asarray(own_dataset(old, name, path))
                    if name.split("/")[0] in ("features", "feats"):
                        values = _as_type(values, dtype, path)
                    _attributes(old[name], new.create_dataset(name, data=values))
    except (InputError, UsageError):
        raise
    except DAMAGE as e:
        raise InputError(f"{path}: cannot be read as HDF5 ({type(e).__name__}); copy it again, or make it again") from e
    data = sink.getvalue()
    write_bytes(output, data)
    return len(data)


def _attributes(old: Any, new: Any) -> None:
    for key, value in old.attrs.items():
        new.attrs[key] = value


def _as_type(values: np.ndarray, dtype: str | None, path: str | Path) -> np.ndarray:
    if dtype is None:
        return values
    with np.errstate(over="ignore"):
        changed = values.astype(dtype)
    if np.isinf(changed).any() and np.isfinite(values).all():
        raise UsageError(
            f"{path}: features up to {np.abs(values).max():.3g}, which {dtype} cannot hold; leave out --dtype"
        )
    return changed
