"""Items in, one outcome each out: a batch that no bad slide stops, what it says of each, and its exit code."""

from __future__ import annotations

import csv
import inspect
import io
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from lrmil_cli.ahead import in_turn
from lrmil_cli.commands.options import debug
from lrmil_cli.commands.report import Report, tell
from lrmil_cli.errors import LrmilError, NoTissueError, PartialError, UsageError
from lrmil_cli.files.atomic import remove, write_text
from lrmil_cli.files.locks import locked
from lrmil_cli.files.manifest_rows import plain_cell
from lrmil_cli.files.names import SEPARATORS
from lrmil_cli.files.tables import follow_slide, table_suffix
from lrmil_cli.progress import phase
from lrmil_cli.units import duration

if TYPE_CHECKING:
    from lrmil_cli.slides.slide import Slide


@dataclass
class Outcome:
    """What became of one slide: where the output is or would be, and what else to report.

    ``status`` is ``ok``, ``skipped`` (up to date), ``planned`` (dry run) or, of ``predict --abstain``, ``uncertain``.
    """

    output: str | None
    status: str = "ok"
    message: str = ""
    extra: dict[str, Any] = field(default_factory=dict)


def planned(tiles: int, seconds: float, slide: Slide, output: str | Path) -> Outcome:
    """What a dry run says of a slide whose output would be made, by about ``seconds`` of work."""
    text = (
        f"would be made: {tiles} tiles, slide {slide.mpp:.4g} um/px ({slide.mpp_source}), "
        f"about {max(1, round(seconds))} s -> {output}"
    )
    return Outcome(
        str(output),
        "planned",
        text,
        {"tiles": tiles, "mpp": slide.mpp, "mpp_source": slide.mpp_source, "expected_seconds": round(seconds, 4)},
    )


def left_alone(target: str | Path, kind: str, slide: str | Path) -> Outcome:
    """Of a table that is up to date; if its slide is not where it says, but at ``slide``, it is told so."""
    followed = f"; its slide has moved: noted at {slide}" if follow_slide(target, kind, slide) else ""
    return Outcome(str(target), "skipped", f"up to date ({target}){followed}")


def output_path(output: str, item_id: str, kind: str, many: bool) -> Path:
    """Where the table of one slide goes: ``output`` itself, or ``<output>/<id>.<kind>.csv`` if it is a folder.

    Raises:
        UsageError: one file name for several slides, or a name that is neither a folder nor a table.
    """
    path = Path(output)
    if path.is_dir() or output.endswith(SEPARATORS) or (many and table_suffix(output) is None and not path.is_file()):
        return path / f"{item_id}.{kind}.csv"
    if many or (path.is_file() and table_suffix(output) is None):
        raise UsageError(
            f"-o {output} is one file; for several slides give a folder"
            if many
            else f"-o {output} is a file, but no table; choose another name"
        )
    if table_suffix(output) is None:
        if path.suffix and not path.exists():
            raise UsageError(f"-o {output}: give a folder, or a name that ends in .csv, .csv.gz or .parquet")
        return path / f"{item_id}.{kind}.csv"
    return path


class Item(Protocol):
    """What a batch works on: a slide, or a table of one."""

    @property
    def path(self) -> str | Path: ...
    @property
    def slide_id(self) -> str: ...


@dataclass(frozen=True)
class Failed:
    """An item that failed: ``status`` is ``no_tissue`` or ``failed``."""

    item: Item
    status: str
    error: LrmilError


T = TypeVar("T", bound=Item)
FAILURE_COLUMNS = ["slide", "slide_id", "status", "error"]


def failures_folder(output: str, many: bool) -> Path | None:
    """Where a batch lists what failed; a slide alone is listed only in a folder that is there, as jobs of an array
    share it."""
    return Path(output) if output != "-" and (many or Path(output).is_dir()) else None


#: What a ``work`` of :func:`run_batch` that has a part to be done ahead of its turn is annotated with.
Turn = Generator[None, None, Outcome]


def run_batch(
    command: str,
    doing: str,
    items: Sequence[T],
    work: Callable[[T], Outcome | Turn],
    report: Report,
    *,
    fail_fast: bool = False,
    what: str = "slide",
    failures_in: Path | None = None,
    ahead: int = 0,
    dry_run: bool = False,
    kept: Callable[[], None] = lambda: None,
    where: str = "",
    then: Callable[[], Sequence[str] | None] | None = None,
) -> None:
    """Run ``work`` on every item; report each; raise what the exit code should be.

    Args:
        doing: what the command does to its items, as ``embedding``, for the line that says how far it is.
        work: a function, or a generator function whose part before its ``yield`` may be done while ``ahead`` items
            before it are finished (:func:`lrmil_cli.ahead.in_turn`).
        what: an item is.
        failures_in: folder for ``failures.csv`` of a batch; None writes none.
        kept: called when all are done, also where some failed or Ctrl-C ended it.
        where: what is made goes there; then: the command that comes next (:mod:`lrmil_cli.commands.next_step`).
        dry_run: ``work`` only plans; nothing is written, and what was found is summed up.

    Raises:
        LrmilError: of the only item; PartialError if some of several failed; InputError if all did. Whatever else one
            of several raises is that item's failure too; of the only one it goes through, as an internal error.
    """
    failures: list[Failed] = []
    outcomes: list[Outcome] = []
    failures_in = None if dry_run else failures_in
    started = time.monotonic()
    try:
        with phase(doing, len(items), what) as told:
            for item, finish in zip(items, turns(work, items, ahead)):
                told.item = item.slide_id if item.slide_id != "-" else ""
                done = settle(command, item, finish, report, alone=len(items) == 1)
                told.advance(idle=isinstance(done, Outcome) and done.status == "skipped")
                if isinstance(done, Outcome):
                    outcomes.append(done)
                    continue
                failures.append(done)
                if len(items) > 1 and fail_fast:
                    break
    finally:
        in_any_case(kept)
    if dry_run:
        report.say(_summary(outcomes, len(failures)))
    if failures_in is not None:
        list_failures(failures_in / "failures.csv", items, failures, report)
    if failures and len(items) == 1:
        raise failures[0].error
    if not dry_run and outcomes:
        many = counted(outcomes, failures, time.monotonic() - started, what) if len(items) > 1 else ""
        report.end(f"{many} -> {where}" if many and where else many, then() if then else None)
    if failures:
        listed = f", listed in {failures_in / 'failures.csv'}" if failures_in is not None else ""
        text = f"{len(failures)} of {len(items)} {what}s failed{listed}"
        codes = {f.error.exit_code for f in failures}
        if len(failures) == len(items) and len(codes) == 1:
            error = failures[0].error
            raise type(error)(f"{text}; the first: {error}")
        raise PartialError(text + (" (stopped at the first, --fail-fast)" if fail_fast else ""))


def in_any_case(kept: Callable[[], None]) -> None:
    """Keep what is done; where an interrupt falls into that, once more, and then be interrupted."""
    try:
        kept()
    except KeyboardInterrupt:
        kept()
        raise


def settle(
    command: str,
    item: Item,
    finish: Callable[[], Outcome],
    report: Report,
    *,
    alone: bool = False,
    skipped: Callable[[str], None] | None = None,
) -> Outcome | Failed:
    """Finish one item, and say what became of it.

    Args:
        alone: it is the only one, so that an error is said by who raises it, and one that nobody foresaw goes through.
        skipped: told of one that is up to date, in place of the report.
    """
    started = time.perf_counter()
    record = {"slide": str(item.path), "slide_id": item.slide_id, "command": command}
    try:
        outcome = _guarded(finish, item, alone=alone)
    except LrmilError as e:
        # Without its traceback, whose frames hold the slide and its pixels.
        failed = Failed(item, "no_tissue" if isinstance(e, NoTissueError) else "failed", type(e)(str(e)))
        report.result({**record, "status": failed.status, "output": None, "error": str(e), "seconds": _since(started)})
        if not alone:
            tell(f"{item.slide_id}: {failed.status}: {e}")
        return failed
    report.result(
        {
            **record,
            "status": outcome.status,
            "output": outcome.output,
            "error": None,
            "seconds": _since(started),
            **outcome.extra,
        }
    )
    if outcome.message:
        say = skipped if skipped is not None and outcome.status == "skipped" else report.say
        say(f"{item.slide_id}: {outcome.message}")
    return outcome


def counted(outcomes: Sequence[Outcome], failures: Sequence[Failed], seconds: float, what: str = "slide") -> str:
    """What became of a batch, in one line."""
    words = {"ok": "made", "uncertain": "uncertain", "skipped": "there already", "no_tissue": "without tissue"}
    statuses = Counter([o.status for o in outcomes] + [f.status for f in failures])
    parts = [f"{statuses[s]} {words.get(s, s)}" for s in (*words, "failed") if statuses[s]]
    return f"{sum(statuses.values())} {what}s in {duration(seconds)}: {', '.join(parts)}"


def turns(work: Callable[[T], Outcome | Turn], items: Sequence[T], ahead: int) -> Iterator[Callable[[], Outcome]]:
    """For each item a function that does its work."""
    if inspect.isgeneratorfunction(work):
        yield from in_turn(work, items, ahead)
    else:
        yield from (partial(_outcome, work, item) for item in items)


def _guarded(finish: Callable[[], Outcome], item: Item, *, alone: bool) -> Outcome:
    """What becomes of an item. Libraries raise what they like at a file that nobody foresaw: it must not end a night's
    batch."""
    try:
        return finish()
    except (LrmilError, BrokenPipeError):
        raise
    except Exception as e:
        if alone or debug.get():
            raise
        # Memory that runs out is of a class without words.
        text = " ".join(str(e).split())[:300] or "no further words"
        raise LrmilError(
            f"{item.path}: internal error: {type(e).__name__}: {text} (add --debug for the traceback)"
        ) from e


def _outcome(work: Callable[[T], Outcome | Turn], item: T) -> Outcome:
    outcome = work(item)
    assert isinstance(outcome, Outcome)  # generator functions were told apart before
    return outcome


def _summary(outcomes: list[Outcome], failures: int) -> str:
    """What a dry run found in all."""
    made = [o.extra for o in outcomes if o.status == "planned"]
    tiles, seconds = sum(e["tiles"] for e in made), sum(e["expected_seconds"] for e in made)
    return (
        f"dry run, nothing was written: {len(made)} would be made ({tiles} tiles, about {max(1, round(seconds))} s), "
        f"{len(outcomes) - len(made)} up to date, {failures} would fail"
    )


def list_failures(path: Path, items: Sequence[Item], failures: Sequence[Failed], report: Report) -> None:
    """Say in ``failures.csv`` what became of this batch. Rows of other slides stay: jobs of an array share a folder,
    and may end in the same moment."""
    if not failures and not path.exists():
        return
    done = {plain_cell(i.slide_id) for i in items}
    with locked(path) as alone:
        rows = [row for row in _listed_failures(path) if row[1] not in done]
        rows += [
            [*map(plain_cell, (str(f.item.path), f.item.slide_id)), f.status, plain_cell(str(f.error))]
            for f in failures
        ]
        if rows:
            sink = io.StringIO()
            csv.writer(sink, lineterminator="\n").writerows([FAILURE_COLUMNS, *rows])
            write_text(path, sink.getvalue())
        else:
            remove(path)  # a list of an earlier run would be untrue now
    if not alone:
        report.warn(
            f"{path}: this file system has no locks; of jobs that ended in the same moment, rows may be missing"
        )


def _listed_failures(path: Path) -> list[list[str]]:
    try:
        with open(path, encoding="utf-8", errors="surrogateescape", newline="") as fh:  # names may be no text
            return [row for row in csv.reader(fh) if len(row) == len(FAILURE_COLUMNS) and row != FAILURE_COLUMNS]
    except (OSError, ValueError, csv.Error):  # none, or one that people wrote over: it is made anew
        return []


def _since(started: float) -> float:
    return round(time.perf_counter() - started, 3)
