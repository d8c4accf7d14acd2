"""Progress as one line: that moves on a terminal, and comes every so often where there is none, and in the log."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

from lrmil_cli.commands import screen
from lrmil_cli.progress import TILES, Phase, open_phases, seconds_left, tiles_counted
from lrmil_cli.units import duration

#: Seconds between two looks at how far it is, and from when on the moving line is there.
BEAT = 0.25
#: Seconds between two lines where none can move, and from when on a phase is worth one.
EVERY, LONG = 30.0, 5.0
#: Seconds that the rate is of, those just past.
RECENT = 10.0


def progress_text(phases: Sequence[Phase], now: float, rate: float | None, width: int | None = None) -> str:
    """Open phases in one line: what is done, how far it is, tiles a second, time left.

    Args:
        rate: tiles a second; width: what there is room for, on which the item that is worked on is cut short.
    """
    # A command is named as long as it says nothing of itself.
    named = [p for p in phases if _words(p) and (p is phases[-1] or not p.whole)] or list(phases[-1:])
    told = [_words(p) for p in named]
    pace = [f"{rate:.3g} {TILES}/s"] if rate and any(p.unit == TILES for p in named) else []
    left, end = seconds_left(list(phases), now), []
    if left is not None:
        end = [f"{'at most' if any(p.at_most for p in phases) else 'about'} {duration(max(1, left))} left"]
    elif named[-1].total is None and not named[-1].waiting:
        end = [duration(now - named[-1].started)]

    def line(items: Sequence[str], pace: Sequence[str], first: int = 0) -> str:
        return ", ".join([*(f"{w} ({i})" if i else w for w, i in zip(told, items))][first:] + [*pace, *end])

    items = [p.item for p in named]
    whole = line(items, pace)
    over = len(whole) - width if width else 0
    if over <= 0:
        return whole
    short = [_shortened(i, len(i) - over) for i in items]
    bare = [""] * len(items)
    # What can best be done without goes first; the time left stays.
    tries = [line(short, pace), line(bare, pace), line(bare, []), *(line(bare, [], n) for n in range(1, len(told)))]
    return next((text for text in tries if len(text) <= (width or 0)), tries[-1])


def _words(p: Phase) -> str:
    if p.total is None:
        return p.name
    if p.unit.endswith("s"):
        return f"{p.name} {p.done} of {p.total} {p.unit}".strip()
    if p.total == 1:
        return p.name.removesuffix(" of")
    return f"{p.name} {p.unit} {min(p.done + 1, p.total)} of {p.total}".strip()


def _shortened(item: str, room: int) -> str:
    """The end of an id, which tells slides of one cohort apart."""
    return item if len(item) <= room else f"...{item[3 - room :]}" if room >= 8 else ""


def ended_text(p: Phase, now: float) -> str:
    """What is said of a phase that took long when it is over."""
    units = p.unit if p.unit.endswith("s") or p.done == 1 else p.unit + "s"
    what = [w for w in (p.name.removesuffix(" of"), f"{p.done} {units}" if p.total else "") if w]
    tiles = p.tiles()
    seconds = now - p.started
    read = f", {tiles} {TILES}, {tiles / seconds:.3g} a second" if tiles and p.unit != TILES else ""
    return f"{': '.join(what)} in {duration(seconds)}{read}"


class ProgressLine:
    """Who listens to the phases of a command.

    A thread looks at them every now and then, so that work which does not count is not silent either.
    """

    def __init__(self, tell: Callable[..., None], *, quiet: bool, verbose: bool, still: bool = False):
        """
        Args:
            tell: of :mod:`lrmil_cli.commands.report`: a text, and whether it is to be seen or in the log alone.
            quiet: nothing is to be seen; verbose: words on single items are; still: no line may move.
        """
        self._tell, self.quiet, self.verbose = tell, quiet, verbose
        self._moving = screen.is_terminal() and not quiet and not still
        # In a pipe, who waits to be fed need not speak into the line of who works.
        self._patient = screen.is_terminal() and still
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()
        self._top: Phase | None = None
        self._due = 0.0
        self._seen: deque[tuple[float, int]] = deque()

    def opened(self, phase: Phase) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="progress", daemon=True)
            self._thread.start()

    def closed(self, phase: Phase) -> None:
        now = time.monotonic()
        if now - phase.started >= LONG and phase is _top_of(open_phases()) and not phase.whole and not phase.waiting:
            self._say(ended_text(phase, now))
            self._due = now + EVERY

    def noted(self, text: str) -> None:
        self._tell(text, show=self.verbose and not self.quiet)

    def close(self) -> None:
        """Take the line away and listen no more."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        with screen.line_cleared():
            pass

    def _run(self) -> None:
        while not self._stop.wait(BEAT):
            self.beat(time.monotonic())

    def beat(self, now: float) -> None:
        """Look how far it is, and say so if it is time."""
        phases = open_phases()
        if not phases:
            return
        self._seen.append((now, tiles_counted()))
        while now - self._seen[0][0] > RECENT and len(self._seen) > 2:
            self._seen.popleft()
        if self._moving:
            screen.draw(progress_text(phases, now, self._rate(), screen.columns() - 1))
        top = _top_of(phases)
        if top is not self._top:
            # A phase that has just begun is told of once it turns out to be long.
            self._top, self._due = top, now + LONG if self._top is None else min(self._due, now + LONG)
        waits = phases[-1].waiting or (self._patient and top is not None and top.whole)
        if now >= self._due and not waits:
            self._due = now + EVERY
            self._say(progress_text(phases, now, self._rate()))

    def _rate(self) -> float | None:
        (then, before), (now, done) = self._seen[0], self._seen[-1]
        return (done - before) / (now - then) if done > before else None

    def _say(self, text: str) -> None:
        """A line for the log, and for stderr with the time where nothing moves there."""
        self._tell(text, show=False)
        if not self._moving and not self.quiet:
            screen.show(f"{time.strftime('%H:%M:%S')}  {text}")


def _own(phases: Sequence[Phase]) -> list[Phase]:
    """The phases of the command that runs, itself the first; of a chain that is the step."""
    start = max((n for n, p in enumerate(phases) if p.whole), default=0)
    return list(phases[start:])


def _top_of(phases: Sequence[Phase]) -> Phase | None:
    """The outermost phase of the command that runs; the command itself where it has opened none."""
    own = _own(phases)
    return own[min(1, len(own) - 1)] if own else None
