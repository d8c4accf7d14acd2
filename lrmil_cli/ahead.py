"""Doing the next thing while this one is worked on: a queue that a thread fills, and slides begun one ahead of their
turn."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from functools import partial
from typing import Any, Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")


class Prefetch(Generic[T]):
    """An iterable that a thread runs through from now on, at most ``ahead`` items in front; with 0 it is run through in
    turn.

    A context manager: leaving it stops the thread. Can be iterated once.
    """

    def __init__(self, items: Iterable[T], ahead: int):
        self._items = items
        self._box: queue.Queue[tuple[str, Any]] = queue.Queue(max(1, ahead))
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True) if ahead > 0 else None
        if self._thread is not None:
            self._thread.start()

    def __enter__(self) -> Prefetch[T]:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop reading ahead."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def _put(self, kind: str, value: Any) -> None:
        while not self._stop.is_set():
            try:
                return self._box.put((kind, value), timeout=0.1)
            except queue.Full:
                continue

    def _work(self) -> None:
        try:
            for item in self._items:
                self._put("item", item)
                if self._stop.is_set():
                    return
            self._put("end", None)
        except BaseException as e:  # handed over to the thread that waits for it
            self._put("error", e)

    def __iter__(self) -> Iterator[T]:
        if self._thread is None:
            yield from self._items
            return
        try:
            while True:
                try:
                    kind, value = self._box.get(timeout=1)
                except queue.Empty:  # Windows hears Ctrl-C only between waits
                    continue
                if kind == "end":
                    return
                if kind == "error":
                    raise value
                yield value
        finally:
            self.close()


def in_turn(work: Callable[[T], Generator[None, None, R]], items: Iterable[T], ahead: int) -> Iterator[Callable[[], R]]:
    """Work on items one after the other, each begun while those before it are finished.

    Args:
        work: a generator function: what stands before its one ``yield`` can be done ahead of the item's turn, in a
            thread; what stands after it cannot. It may return without a yield.
        ahead: how many items may be begun before their turn, each in a thread of its own; 0 does everything in turn.

    Yields:
        for each item a function that returns what ``work`` returns for it, or raises what it raises. Call it before
        asking for the next one.
    """
    if ahead <= 0:
        for item in items:
            yield partial(_finish, work(item), None)
        return
    pool = ThreadPoolExecutor(ahead, "next slide")
    begun: list[tuple[Generator[None, None, R], Future[tuple[R] | None]]] = []
    try:
        for item in items:
            generator = work(item)
            begun.append((generator, pool.submit(copy_context().run, _advance, generator)))
            if len(begun) > ahead:
                yield partial(_finish, *begun[0])
                del begun[0]
        for turn in begun:
            yield partial(_finish, *turn)
    finally:
        pool.shutdown(cancel_futures=True)
        for generator, _ in begun:
            generator.close()


def _advance(generator: Generator[None, None, R]) -> tuple[R] | None:
    """Run to the next yield, or to the end: then what it returned, in a tuple."""
    try:
        next(generator)
    except StopIteration as end:
        return (end.value,)
    return None


def _finish(generator: Generator[None, None, R], future: Future[tuple[R] | None] | None) -> R:
    end = _advance(generator) if future is None else future.result()
    while end is None:
        end = _advance(generator)
    return end[0]
