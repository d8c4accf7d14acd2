"""Writing files so that a name either holds a whole file or does not exist."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import secrets
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lrmil_cli.errors import MachineError

#: Temporary files say which process of which machine they are of, so that those of one that was killed can be told.
_TEMPORARY = re.compile(r"^\..*\.([0-9a-f]{8})-(\d+)-[0-9a-f]{12}\.tmp(\.|$)")
#: Folders that were looked through for them.
_swept: set[Path] = set()
#: Seconds between attempts to put a file in its place, or to remove it, see :func:`_patiently`.
_PATIENCE = (0.05, 0.1, 0.2, 0.4) if os.name == "nt" else ()

#: What a full disk, or a quota, says.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def atomic_path(path: str | Path, option: str = "--output") -> Iterator[Path]:
    """Yield a temporary name in the folder of ``path``; on success it becomes ``path``, else it is removed.

    Args:
        option: by which the user can choose another folder.

    Raises:
        MachineError: the folder cannot be written (full disk, no permission, a file in the way).
    """
    path = Path(path)
    # Named before it exists, so that an interrupt at any moment finds it; the suffix stays last, because libraries
    # choose a format by it.
    tmp = path.with_name(f".{path.stem[:40]}.{_machine()}-{os.getpid()}-{secrets.token_hex(6)}.tmp{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.parent not in _swept:
            _swept.add(path.parent)
            _sweep(path.parent)
        yield tmp
        _patiently(lambda: os.replace(tmp, path))
    except OSError as e:
        raise MachineError(f"cannot write {path}: {e.strerror or e}; {_hint(e, path)}choose another {option}") from e
    finally:
        with suppress(OSError):  # gone already, or its folder was never made
            tmp.unlink()


def _patiently(step: Callable[[], None]) -> None:
    """Do what Windows refuses while somebody has the file open; virus scanners do for a moment."""
    for wait in _PATIENCE:
        try:
            return step()
        except PermissionError:
            time.sleep(wait)
    step()


def _hint(e: OSError, path: Path) -> str:
    if isinstance(e, PermissionError) and _PATIENCE and path.exists():
        return "close it where it is open in another program, or "
    return "free space or " if e.errno in FULL else ""


def _machine() -> str:
    return hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]


def _sweep(folder: Path) -> None:
    """Remove temporary files of processes of this machine that are no more: a SIGKILL leaves them behind."""
    for entry in folder.iterdir():
        found = _TEMPORARY.match(entry.name)
        if found and found[1] == _machine() and not _alive(int(found[2])):
            with suppress(OSError):
                entry.unlink()


def _alive(pid: int) -> bool:
    if os.name != "posix":  # there, asking would end the process
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass
    return True


def remove(path: str | Path) -> None:
    """Remove a file, if it is there.

    Raises:
        MachineError: it cannot be removed (no permission; on Windows also while somebody has it open).
    """
    path = Path(path)
    try:
        _patiently(path.unlink)
    except (FileNotFoundError, NotADirectoryError):
        pass  # what stands in the way of its folder is said when something is written
    except OSError as e:
        raise MachineError(f"cannot remove {path}: {e.strerror or e}; {_hint(e, path)}choose another --output") from e


def write_bytes(path: str | Path, data: bytes) -> None:
    """Write ``data`` to ``path`` atomically.

    Raises:
        MachineError: as :func:`atomic_path`.
    """
    with atomic_path(path) as tmp:
        tmp.write_bytes(data)


def write_text(path: str | Path, text: str) -> None:
    """Write ``text`` to ``path`` atomically, as UTF-8; bytes of file names that are none stay as they are.

    Raises:
        MachineError: as :func:`atomic_path`.
    """
    write_bytes(path, text.encode("utf-8", "surrogateescape"))
