"""Items shared by several processes, each of which loads once what it works with: a model on a device of its own."""

from __future__ import annotations

import pickle
import signal
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NotYet  # another class than the built-in one before Python 3.11
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from threading import Thread, current_thread, main_thread
from typing import Any, Generic, TypeVar

from lrmil_cli.ahead import in_turn
from lrmil_cli.errors import LrmilError, MachineError

#: Seconds that a process gets to put away what it is at before it is killed.
PATIENCE = 20

T = TypeVar("T")
R = TypeVar("R")

#: What a process works by: a generator function as of :func:`lrmil_cli.ahead.in_turn`, and how many items it begins
#: ahead of their turn.
Work = tuple[Callable[[T], Generator[None, None, R]], int]


class Processes(Generic[T, R]):
    """Processes that have loaded, of :func:`processes`."""

    def __init__(self, ends: Sequence[tuple[str, SpawnProcess, Connection, int]]):
        self._ends = ends

    def turns(self, items: Sequence[T]) -> Iterator[Callable[[], R]]:
        """Share the items: each process takes the next one when it has done with one.

        Yields:
            for each item, in order, a function that waits for what ``work`` returns for it, or raises what it raised.
            MachineError where its process ended on the way, or all have.
        """
        answers: list[Future[R]] = [Future() for _ in items]
        waiting = deque(range(len(items)))
        feeders = [Thread(target=_feed, args=(*end, items, waiting, answers), daemon=True) for end in self._ends]
        for feeder in feeders:
            feeder.start()
        for answer in answers:
            yield partial(_wait, answer, feeders)


@contextmanager
def processes(loads: Sequence[tuple[str, Callable[[], Work[T, R]]]]) -> Iterator[Processes[T, R]]:
    """Start a process for each of ``loads``, by its name for messages and the function that loads what it works by.

    Functions and items must be such that they can be pickled. Interrupts are this process's alone to hear; the others
    end with it, also when it is killed.

    Raises:
        what a load raises; MachineError: a process ended while loading.
    """
    context = get_context("spawn")  # a fork would share what CUDA and threads hold
    started: list[tuple[str, SpawnProcess, Connection]] = []
    try:
        for name, load in loads:
            here, there = context.Pipe()
            process = context.Process(target=_serve, args=(there, load), name=f"lrmil on {name}", daemon=True)
            with _no_interrupts():  # inherited: Ctrl-C reaches all processes of a terminal
                process.start()
            there.close()  # or its end would not be seen
            started.append((name, process, here))
        yield Processes([(*own, _loaded(*own)) for own in started])
        for *_, pipe in started:
            pipe.close()  # what it is at is done, and no more
        for _, process, _ in started:
            process.join()
    finally:
        for _, process, _ in started:
            process.terminate()
        for _, process, _ in started:
            process.join(PATIENCE)
            process.kill()


@contextmanager
def _no_interrupts() -> Iterator[None]:
    if current_thread() is not main_thread():  # where no signal could be received anyway
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _loaded(name: str, process: SpawnProcess, pipe: Connection) -> int:
    """How many items a process begins ahead, when it has loaded.

    Raises:
        what its load raised; MachineError: it has ended.
    """
    try:
        good, value = pipe.recv()
    except (EOFError, OSError) as e:
        raise _ended(name, process) from e
    if not good:
        raise value
    return value


def _feed(
    name: str,
    process: SpawnProcess,
    pipe: Connection,
    ahead: int,
    items: Sequence[T],
    waiting: deque[int],
    answers: Sequence[Future[R]],
) -> None:
    """Keep a process supplied until no item waits, and hand on its answers, which come in the order of its items."""
    at: deque[int] = deque()
    more = True
    try:
        while more or at:
            while more and len(at) <= ahead:
                try:
                    at.append(waiting.popleft())
                    pipe.send((items[at[-1]],))
                except IndexError:
                    more = False
                    pipe.send(None)
            if at:
                good, value = pipe.recv()
                answer = answers[at.popleft()]
                answer.set_result(value) if good else answer.set_exception(value)
    except (EOFError, OSError):
        for index in at:
            answers[index].set_exception(_ended(name, process))


def _ended(name: str, process: SpawnProcess) -> MachineError:
    process.join(PATIENCE)
    return MachineError(
        f"the process on {name} has ended unasked (exit code {process.exitcode}: killed, or out of memory?); run the "
        "command again to go on"
    )


def _wait(answer: Future[R], feeders: Sequence[Thread]) -> R:
    while True:
        left = any(feeder.is_alive() for feeder in feeders)  # before looking: what the last one answered is there
        try:
            return answer.result(timeout=1)  # Windows hears Ctrl-C only between waits
        except NotYet:
            if answer.done():
                raise
            if not left:
                raise MachineError("all processes have ended; run the command again to go on") from None


def _serve(pipe: Connection, load: Callable[[], Work[T, R]]) -> None:
    """A process's own side: load, then an answer for each item until no more come."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _leave)
    try:
        work, ahead = load()
    except Exception as e:
        return pipe.send((False, _sendable(e)))
    pipe.send((True, ahead))
    try:
        for finish in in_turn(work, _items(pipe), ahead):
            answer: tuple[bool, Any]
            try:
                answer = True, finish()
            except Exception as e:
                answer = False, _sendable(e)
            pipe.send(answer)
    except OSError:  # nobody listens any more
        pass


def _items(pipe: Connection) -> Iterator[Any]:
    try:
        while (item := pipe.recv()) is not None:
            yield item[0]
    except (EOFError, OSError):  # who gave them is gone
        pass


def _leave(*_: object) -> None:
    raise SystemExit


def _sendable(e: Exception) -> Exception:
    """The error, or its words where it cannot travel between processes."""
    try:
        if type(pickle.loads(pickle.dumps(e))) is type(e):
            return e
    except Exception:
        pass
    return LrmilError(f"internal error: {type(e).__name__}: {' '.join(str(e).split())[:300] or 'no further words'}")
