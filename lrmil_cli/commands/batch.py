"""Slides in, one outcome a slide out: expanding inputs, running a batch that no bad slide stops, exit codes."""

from __future__ import annotations

import csv
import inspect
import io
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lrmil_cli.ahead import in_turn
from lrmil_cli.commands.report import Report, printable
from lrmil_cli.errors import InputError, LrmilError, NoTissueError, PartialError, UsageError
from lrmil_cli.files.atomic import remove, write_text
from lrmil_cli.files.manifest import is_formula, read_manifest
from lrmil_cli.files.tables import table_suffix

if TYPE_CHECKING:
    from lrmil_cli.slides.slide import Slide


@dataclass(frozen=True)
class SlideInput:
    """One slide to work on."""

    path: Path
    slide_id: str
    mpp: float | None = None


@dataclass
class Outcome:
    """What became of one slide: status ``ok``, ``skipped`` (up to date) or ``planned`` (dry run), where the output is or would be,
    what else to report."""

    output: str | None
    status: str = "ok"
    message: str = ""
    extra: dict[str, Any] = field(default_factory=dict)


def expand_slides(args: list[str]) -> list[SlideInput]:
    """Slides named by files, folders, manifests, or ``-`` for a list on stdin.

    Raises:
        InputError: a folder without slides, a bad manifest, nothing on stdin, two slides of one id.
    """
    from lrmil_cli.slides.dicom import one_per_series
    from lrmil_cli.slides.handles import SLIDE_SUFFIXES

    if args.count("-") > 1:
        raise UsageError("- (standard input) can be given only once")
    slides: list[SlideInput] = []
    listed: list[SlideInput] = []
    for arg in args:
        if arg == "-":
            slides += _from_stdin()
        elif arg.lower().endswith(".csv"):
            listed += [SlideInput(e.path, e.slide_id, e.mpp) for e in read_manifest(arg)]
        elif Path(arg).is_dir():
            found = sorted(
                p
                for p in Path(arg).iterdir()
                if p.suffix.lower() in SLIDE_SUFFIXES and p.is_file() and not p.name.startswith(".")
            )
            if not found:
                raise InputError(f"{arg}: no slides in this folder (looked for {' '.join(SLIDE_SUFFIXES)})")
            slides += [SlideInput(p, p.stem) for p in found]
        else:
            slides.append(SlideInput(Path(arg), Path(arg).stem))
    # The files of a DICOM series are one slide; a manifest says itself which files are slides.
    whole = set(one_per_series([s.path for s in slides]))
    slides = listed + [s for s in slides if s.path in whole]
    twice = [i for i, n in Counter(s.slide_id for s in slides).items() if n > 1]
    if twice:
        raise InputError(
            f"two slides have the id {twice[0]!r}; their outputs would overwrite each other (use a manifest with slide_id)"
        )
    return slides


def _from_stdin() -> list[SlideInput]:
    slides = []
    for line in sys.stdin:
        line = line.strip()
        if not line:
            continue
        if line.startswith("{"):
            try:
                record = json.loads(line)
                path = Path(record["slide"])
                mpp = record.get("mpp")
                # A slide that an earlier command of the pipe could not use is tried all the same: it fails here too, and is not lost.
                slides.append(
                    SlideInput(path, str(record.get("slide_id") or path.stem), None if mpp is None else float(mpp))
                )
            except (ValueError, KeyError, TypeError) as e:
                raise InputError(f"standard input: not a JSON line with a 'slide' key: {line[:60]}") from e
        else:
            slides.append(SlideInput(Path(line), Path(line).stem))
    if not slides:
        raise InputError("standard input: no slides came in")
    return slides


@dataclass(frozen=True)
class TableItem:
    """One attention table to work on; ``error`` where the command before it in a pipe failed on the slide."""

    path: str
    slide_id: str
    error: str | None = None


def find_tables(argument: str) -> list[TableItem] | None:
    """Attention tables of a folder, or of the JSON Lines of ``predict --json`` on stdin; None where ``argument`` is one table.

    Raises:
        InputError: a folder without tables, or lines that are not of ``predict``.
    """
    if argument != "-":
        if not Path(argument).is_dir():
            return None
        found = sorted(
            p
            for p in Path(argument).iterdir()
            if ".attention." in p.name and table_suffix(p) and not p.name.startswith(".")
        )
        if not found:
            raise InputError(
                f"{argument}: no attention tables (*.attention.csv) in this folder; make them with `lrmil predict`"
            )
        return [TableItem(str(p), p.name.partition(".attention.")[0]) for p in found]
    if sys.stdin.buffer.peek(1)[:1] != b"{":
        return None
    items = []
    for line in filter(str.strip, sys.stdin):
        try:
            record = json.loads(line)
            slide_id, path, error = str(record["slide_id"]), record.get("attention"), record.get("error")
            if path is None and error is None:
                raise KeyError("attention")
        except (ValueError, KeyError, TypeError, AttributeError) as e:
            raise InputError(
                f"standard input: not a JSON line of `lrmil predict --json -o DIR`: {line.strip()[:60]}"
            ) from e
        items.append(TableItem(str(path or record.get("slide")), slide_id, error))
    return items


def planned(tiles: int, seconds: float, slide: Slide, output: str | Path) -> Outcome:
    """What a dry run says of a slide whose output would be made, by about ``seconds`` of work."""
    text = f"would be made: {tiles} tiles, slide {slide.mpp:.4g} um/px ({slide.mpp_source}), about {max(1, round(seconds))} s -> {output}"
    return Outcome(
        str(output),
        "planned",
        text,
        {"tiles": tiles, "mpp": slide.mpp, "mpp_source": slide.mpp_source, "expected_seconds": round(seconds, 2)},
    )


def output_path(output: str, item_id: str, kind: str, many: bool) -> Path:
    """Where the table of one slide goes: ``output`` itself, or ``<output>/<id>.<kind>.csv`` if it is a folder.

    Raises:
        UsageError: one file name for several slides, or a name that is neither a folder nor a table.
    """
    path = Path(output)
    if path.is_dir() or output.endswith("/") or (many and table_suffix(output) is None and not path.is_file()):
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


#: What a ``work`` of :func:`run_batch` that has a part to be done ahead of its turn is annotated with.
Turn = Generator[None, None, Outcome]


def run_batch(
    command: str,
    items: list[Any],
    work: Callable[[Any], Outcome | Turn],
    report: Report,
    *,
    fail_fast: bool = False,
    failures_in: Path | None = None,
    ahead: int = 0,
    dry_run: bool = False,
) -> None:
    """Run ``work`` on every item; report each; raise what the exit code should be.

    Args:
        items: things with ``path`` (of a slide, or of a table) and ``slide_id``.
        work: a function, or a generator function whose part before its ``yield`` may be done while ``ahead`` items before it
            are finished (:func:`lrmil_cli.ahead.in_turn`).
        failures_in: folder for ``failures.csv`` of a batch; None writes none.
        dry_run: ``work`` only plans; nothing is written, and what was found is summed up.

    Raises:
        LrmilError: of the only item; PartialError if some of several failed; InputError if all did.
    """
    failures: list[tuple[Any, str, LrmilError]] = []
    outcomes: list[Outcome] = []
    failures_in = None if dry_run else failures_in
    turns = (
        in_turn(work, items, ahead) if inspect.isgeneratorfunction(work) else (partial(work, item) for item in items)
    )
    for item, finish in zip(items, turns):
        started = time.perf_counter()
        record = {"slide": str(item.path), "slide_id": item.slide_id, "command": command}
        try:
            outcome = finish()
        except LrmilError as e:
            status = "no_tissue" if isinstance(e, NoTissueError) else "failed"
            failures.append((item, status, e))
            report.result({**record, "status": status, "output": None, "error": str(e), "seconds": _since(started)})
            if len(items) == 1:
                raise
            print(printable(f"{item.slide_id}: {status}: {e}"), file=sys.stderr, flush=True)
            if fail_fast:
                break
            continue
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
        outcomes.append(outcome)
        if outcome.message:
            report.say(f"{item.slide_id}: {outcome.message}")
    if dry_run:
        report.say(_summary(outcomes, len(failures)))
    if failures_in is not None and len(items) > 1:
        _write_failures(failures_in / "failures.csv", failures)
    if failures:
        where = f", listed in {failures_in / 'failures.csv'}" if failures_in is not None else ""
        text = f"{len(failures)} of {len(items)} slides failed{where}"
        codes = {e.exit_code for _, _, e in failures}
        if len(failures) == len(items) and len(codes) == 1:
            error = failures[0][2]
            raise type(error)(f"{text}; the first: {error}")
        raise PartialError(text + (" (stopped at the first, --fail-fast)" if fail_fast else ""))


def _summary(outcomes: list[Outcome], failures: int) -> str:
    """What a dry run found in all."""
    made = [o.extra for o in outcomes if o.status == "planned"]
    tiles, seconds = sum(e["tiles"] for e in made), sum(e["expected_seconds"] for e in made)
    return (
        f"dry run, nothing was written: {len(made)} would be made ({tiles} tiles, about {max(1, round(seconds))} s), "
        f"{len(outcomes) - len(made)} up to date, {failures} would fail"
    )


def _write_failures(path: Path, failures: list[tuple[Any, str, LrmilError]]) -> None:
    if not failures:
        remove(path)  # a list of an earlier run would be untrue now
        return
    sink = io.StringIO()
    writer = csv.writer(sink, lineterminator="\n")
    writer.writerow(["slide", "slide_id", "status", "error"])
    # Nothing reads it again but people, whose spreadsheet must not run a file name as a formula.
    plain = lambda text: f"'{text}" if is_formula(text) else text  # noqa: E731
    writer.writerows([plain(str(i.path)), plain(i.slide_id), status, plain(str(e))] for i, status, e in failures)
    write_text(path, sink.getvalue())


def _since(started: float) -> float:
    return round(time.perf_counter() - started, 3)
