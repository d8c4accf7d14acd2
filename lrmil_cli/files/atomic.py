"""Writing files so that a name either holds a whole file or does not exist."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import secrets
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import TypeVar

from lrmil_cli.errors import MachineError

#: Temporary files say which process of which world they are of, so that those of one that was killed can be told.
_TEMPORARY = re.compile(r"^\..*\.([0-9a-f]{8})-(\d+)-[0-9a-f]{12}\.tmp(\.|$)")
#: Folders that were looked through for them.
_swept: set[Path] = set()
#: Seconds between attempts to put a file in its place, or to remove it, see :func:`_patiently`.
_PATIENCE = (0.05, 0.1, 0.2, 0.4) if os.name == "nt" else ()

#: Seconds after which nobody can still be writing a file that was not touched, whoever began it.
_FORGOTTEN = 7 * 24 * 3600

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
    tmp = path.with_name(f".{path.stem[:40]}.{_world()}-{os.getpid()}-{secrets.token_hex(6)}.tmp{path.suffix}")
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


T = TypeVar("T")


def _patiently(step: Callable[[], T]) -> T:
    """Do what Windows refuses while somebody has the file open; virus scanners do for a moment."""
    for wait in _PATIENCE:
        try:
            return step()
        except PermissionError:
            time.sleep(wait)
    return step()


def _hint(e: OSError, path: Path) -> str:
    if isinstance(e, PermissionError) and _PATIENCE and path.exists():
        return "close it where it is open in another program, or "
    return "free space or " if e.errno in FULL else ""


@cache
def _world() -> str:
    """Which processes a process number tells apart: those of one PID namespace of one boot of one machine.

    Containers that share a folder may have one host name, and count their processes each from 1. Where Linux does not
    say its namespace, the process is a world of its own, and what it leaves behind is swept by age alone.
    """
    parts = [socket.gethostname()]
    if sys.platform == "linux":
        try:
            parts += [Path("/proc/sys/kernel/random/boot_id").read_text("ascii"), os.readlink("/proc/self/ns/pid")]
        except OSError:
            parts.append(secrets.token_hex(16))
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:8]


def _sweep(folder: Path) -> None:
    """Remove temporary files that are surely nobody's, which a SIGKILL leaves behind: of processes of this world that
    are no more, and those that nobody has touched for a week."""
    for entry in folder.iterdir():
        if not (found := _TEMPORARY.match(entry.name)):
            continue
        with suppress(OSError):
            dead = found[1] == _world() and not _alive(int(found[2]))
            if dead or time.time() - entry.stat().st_mtime > _FORGOTTEN:
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
