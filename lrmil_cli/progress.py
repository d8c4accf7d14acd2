"""How far the work is: phases that any room opens and counts, for whoever listens; commands do.

Phases lie in each other: a fold, in it an epoch, in it tiles. Those of the main thread are told; what threads do ahead
of their turn is not.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

#: The unit whose rate is worth telling.
TILES = "tiles"

_open: list[Phase] = []
_tiles = 0
_listener: Listener | None = None


class Listener(Protocol):
    """Who is told of phases."""

    def opened(self, phase: Phase) -> None: ...

    def closed(self, phase: Phase) -> None: ...

    def noted(self, text: str) -> None: ...


@dataclass(eq=False)
class Phase:
    """One phase of the work.

    Attributes:
        name: what is done, as ``embedding``; "" where the unit says it.
        total: how many there are; None where it is not known, or nothing is counted.
        unit: in the singular, of things done one after the other (``slide``: *slide 3 of 14*); in the plural, of an
            amount (``tiles``: *120 of 400 tiles*).
        at_most: it may end before its total, as training does that stops early.
        even: each takes about as long as the others, so that the time left can be told.
        waiting: for something outside, of which nobody need hear again and again.
        whole: it is a command, whose phases lie in it.
        item: what is worked on now.
        done: how many are done; idle: of these, how many were there already and took no time.
        depth: how many phases it lies in.
    """

    name: str
    total: int | None = None
    unit: str = ""
    at_most: bool = False
    even: bool = True
    whole: bool = False
    waiting: bool = False
    item: str = ""
    done: int = 0
    idle: int = 0
    started: float = field(default_factory=time.monotonic)
    tiles_before: int = field(default_factory=lambda: _tiles)
    depth: int = 0
    _idle_seconds: float = 0.0
    _last: float = field(default_factory=time.monotonic)

    def advance(self, count: int = 1, *, idle: bool = False) -> None:
        """So many more are done; ``idle``: they were there already."""
        global _tiles
        now = time.monotonic()
        self.done += count
        if idle:
            self.idle += count
            self._idle_seconds += now - self._last
        self._last = now
        if self.unit == TILES:
            _tiles += count

    def note(self, text: str) -> None:
        """A word on one of many, for those who want to know it all."""
        if _listener is not None:
            _listener.noted(text)

    def spent(self, now: float) -> float:
        """Seconds that those took which were not idle."""
        return now - self.started - self._idle_seconds

    def share(self, within: float = 0.0) -> float:
        """How much of the work is done, 0 to 1; ``within``: of the one that is worked on."""
        if not self.total or self.total <= self.idle:
            return 0.0
        return min(1.0, (self.done - self.idle + within) / (self.total - self.idle))

    def tiles(self) -> int:
        """Tiles that were counted since it began."""
        return _tiles - self.tiles_before


@contextmanager
def phase(
    name: str,
    total: int | None = None,
    unit: str = "",
    *,
    at_most: bool = False,
    even: bool = True,
    whole: bool = False,
    waiting: bool = False,
    item: str = "",
) -> Iterator[Phase]:
    """A phase, open as long as the context: count in it by :meth:`Phase.advance`."""
    own = Phase(name, total, unit, at_most, even, whole, waiting, item, depth=len(_open))
    if threading.current_thread() is not threading.main_thread():
        yield own
        return
    _open.append(own)
    if _listener is not None:
        _listener.opened(own)
    try:
        yield own
    finally:
        if own in _open:
            if _listener is not None:
                _listener.closed(own)
            del _open[_open.index(own) :]  # also those that an error left open in it


def open_phases() -> list[Phase]:
    """The phases that are open, the outermost first."""
    return list(_open)


def tiles_counted() -> int:
    """Tiles that were counted since the program began."""
    return _tiles


@contextmanager
def listening(listener: Listener | None) -> Iterator[None]:
    """Phases are told to ``listener`` meanwhile, to nobody if None."""
    global _listener
    before, _listener = _listener, listener
    try:
        yield
    finally:
        _listener = before


def seconds_left(phases: list[Phase], now: float) -> float | None:
    """Seconds that the outermost phase with a known end will take, by the time that its done part took.

    None where too little is done to tell.
    """
    for n, p in enumerate(phases):
        if p.total and p.even:
            within = 0.0
            for inner in reversed(phases[n + 1 :]):
                within = inner.share(within) if inner.total else within
            share = p.share(within)
            return p.spent(now) * (1 - share) / share if share > 0 and p.spent(now) >= 1 else None
    return None
