"""HDF5 as it is found: opened without locks, and only what stands in the file itself is read."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from lrmil_cli.errors import InputError, no_such_file

#: How many times its size on disk a dataset may take in memory; a damaged one claims anything.
MOST_UNPACKED = 200
#: What reading a damaged file raises.
DAMAGE = (OSError, KeyError, ValueError, TypeError, RuntimeError, AttributeError)


def open_hdf5(path: str | Path) -> Any:
    """An HDF5 file, for reading and without a lock: network file systems may have none (ENOLCK), and a job of another
    machine may hold one. What we write is renamed into place whole, so nobody reads half of it.

    Raises:
        InputError: no such file, or the system cannot read it, which says nothing of what is in it.
        OSError: it is no HDF5 file.
    """
    import h5py

    try:
        return h5py.File(path, "r", locking=False)
    except FileNotFoundError as e:
        raise InputError(no_such_file(path)) from e
    except OSError as e:
        if not e.errno:
            raise
        raise InputError(
            f"{path}: cannot be read ({os.strerror(e.errno)}, errno {e.errno}); it may be whole: try again, or copy it "
            "to another disk"
        ) from e


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
