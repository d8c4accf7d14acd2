"""One process at a time for a file that several jobs change, or want to make.

The lock is a file beside it, ``.NAME.lock``, locked by the system, which lets go of it when a process dies: what stays
of one that was killed means nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

from lrmil_cli.errors import MachineError

#: Whether a lock is ours, another process has it, or the file system has no locks.
Held = Literal["ours", "another's", "no locks"]


@contextmanager
def locked(path: str | Path) -> Iterator[bool]:
    """Hold ``path`` alone among all who ask here, so that it can be read, changed and written without losing what
    others write.

    Yields:
        False where the file system has no locks, and others may write at the same time.

    Raises:
        MachineError: the folder cannot be written.
    """
    with _held(Path(path), wait=True) as held:
        yield held == "ours"


@contextmanager
def claimed(path: str | Path, *, wait: bool = False) -> Iterator[bool]:
    """Whether this process may make ``path`` now: False where another one is at it, unless that is waited for.

    Where the file system has no locks everybody may: files are put in their place whole, so that the same work is done
    twice at worst. May be entered in one thread and left in another.

    Raises:
        MachineError: the folder cannot be written.
    """
    with _held(Path(path), wait=wait) as held:
        yield held != "another's"


@contextmanager
def _held(path: Path, wait: bool) -> Iterator[Held]:
    from filelock import FileLock, Timeout

    beside = path.with_name(f".{path.name}.lock")
    lock = FileLock(beside, timeout=-1 if wait else 0, thread_local=False)
    held: Held = "ours"
    try:
        beside.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        held = "another's"
    except NotImplementedError:  # the library's word for a file system without locks
        held = "no locks"
    except OSError as e:
        raise MachineError(f"cannot write {beside}: {e.strerror or e}; choose another --output") from e
    try:
        yield held
    finally:
        if held == "ours":
            with suppress(OSError):  # Windows removes no file that is open
                beside.unlink()  # while it is held: who waits for it sees that it is gone, and asks anew
            lock.release()
