"""Writing files so that a name either holds a whole file or does not exist."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lrmil_cli.errors import MachineError


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary name in the folder of ``path``; on success it becomes ``path``, else it is removed.

    Raises:
        MachineError: the folder cannot be written (full disk, no permission, a file in the way).
    """
    path = Path(path)
    # Named before it exists, so that an interrupt at any moment finds it; the suffix stays last, because libraries choose
    # a format by it.
    tmp = path.with_name(f".{path.stem[:40]}.{secrets.token_hex(6)}.tmp{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield tmp
        os.replace(tmp, path)
    except OSError as e:
        raise MachineError(f"cannot write {path}: {e.strerror or e}; free space or choose another --output") from e
    finally:
        with suppress(OSError):  # gone already, or its folder was never made
            tmp.unlink()


def write_bytes(path: str | Path, data: bytes) -> None:
    """Write ``data`` to ``path`` atomically.

    Raises:
        MachineError: as :func:`atomic_path`.
    """
    with atomic_path(path) as tmp:
        tmp.write_bytes(data)


def write_text(path: str | Path, text: str) -> None:
    """Write ``text`` to ``path`` atomically, as UTF-8.

    Raises:
        MachineError: as :func:`atomic_path`.
    """
    write_bytes(path, text.encode("utf-8"))
