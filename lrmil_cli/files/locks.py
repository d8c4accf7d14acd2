"""One process at a time for a file that several jobs may want to make."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lrmil_cli.errors import MachineError


@contextmanager
def claimed(path: str | Path) -> Iterator[bool]:
    """Whether this process may make ``path`` now: False where another one is at it.

    A lock of the system on a file beside it, which a process that dies lets go of; the file may stay and means nothing.
    Where a file system has no locks, everybody may: files are put in their place whole, so that the same work is done
    twice at worst.

    Raises:
        MachineError: the folder cannot be written.
    """
    from filelock import FileLock, Timeout

    path = Path(path)
    beside = path.with_name(f".{path.name}.lock")
    lock = FileLock(beside, timeout=0)
    try:
        beside.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        yield False
        return
    except NotImplementedError:  # filelock's word for a file system without locks
        yield True
        return
    except OSError as e:
        raise MachineError(f"cannot write {beside}: {e.strerror or e}; choose another --output") from e
    try:
        yield True
    finally:
        with suppress(OSError):
            beside.unlink()
        lock.release()
