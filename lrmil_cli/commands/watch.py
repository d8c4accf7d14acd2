"""``lrmil predict INBOX --watch``: slides as they come into a folder, such as the one that a scanner writes to.

The folder is looked at every so often, because network shares tell nobody of new files.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Annotated, Optional

import typer

from lrmil_cli.commands.batch import Failed, Outcome, Turn, in_any_case, list_failures, settle, turns
from lrmil_cli.commands.inputs import SlideInput, path_id, slides_in
from lrmil_cli.commands.report import Report
from lrmil_cli.errors import InputError, MachineError, UsageError
from lrmil_cli.progress import phase
from lrmil_cli.slides.dicom import one_per_series

#: Seconds between two looks, and between two refreshes of what sums up all slides.
INTERVAL, REFRESH = 10.0, 30.0

Watch = Annotated[
    bool,
    typer.Option(
        "--watch",
        help="Go on for ever: predict what comes into the folders named, each slide once it has stopped growing. "
        "Ctrl-C or SIGTERM ends it; the same command goes on.",
    ),
]
Interval = Annotated[
    Optional[float],
    typer.Option(
        "--interval",
        metavar="SECONDS",
        help="With --watch: between two looks; a slide that two of them find the same is taken.  [default: 10]",
    ),
]

#: Size and time of writing of each file of a slide.
Stamp = tuple[tuple[str, int, int], ...]


def check_watch(
    watch: bool, interval: float | None, slides: Sequence[str], output: str, *, dry_run: bool, fail_fast: bool
) -> None:
    """What cannot be meant, before any work.

    Raises:
        UsageError: it is there. InputError: a folder is not.
    """
    if not watch:
        if interval is not None:
            raise UsageError("--interval is between two looks of --watch; give that too")
        return
    for name, given in (("--dry-run", dry_run), ("--fail-fast", fail_fast)):
        if given:
            raise UsageError(f"--watch goes on until it is ended; leave out {name}")
    if interval is not None and interval <= 0:
        raise UsageError(f"--interval {interval:g}: give seconds above 0")
    if output == "-":
        raise UsageError("--watch writes files of many slides; give -o a folder, and --json for a stream of answers")
    for slide in slides:
        if not Path(slide).is_dir():
            if slide != "-" and not Path(slide).exists():
                raise InputError(f"{slide}: no such folder; make it, or name the one that slides come into")
            raise UsageError(f"{slide}: --watch looks into folders; name the one that slides come into")


def watch_folders(
    command: str,
    folders: Sequence[str],
    work: Callable[[SlideInput], Turn],
    report: Report,
    *,
    failures_in: Path,
    kept: Callable[[], None],
    ahead: int = 0,
    recursive: bool = False,
    interval: float = INTERVAL,
    looks: int | None = None,
) -> None:
    """Work on slides as they come, each once; until an interrupt, or something that the machine lacks, ends it.

    Args:
        command, work, ahead: as of :func:`lrmil_cli.commands.batch.run_batch`.
        failures_in: folder of ``failures.csv``. What failed is tried again when its files have changed.
        kept: called when slides are done, to refresh what sums them up; also where an interrupt ends it.
        looks: how often to look; None for ever.

    Raises:
        MachineError: the next slide would fail in the same way.
    """
    before: dict[Path, Stamp | None] = {}
    done: dict[Path, Stamp] = {}
    failed: dict[Path, Stamp] = {}
    count, look, there = 0, 0, True
    report.say(f"watching {', '.join(folders)}, every {interval:g} s; Ctrl-C ends it")
    while looks is None or look < looks:
        found = _look(folders, recursive)
        if there and found is None:
            report.warn(f"{', '.join(folders)}: cannot be read now; waiting for it")
        there = found is not None
        fresh = {
            p: (base, whole)
            for p, (base, whole) in (found or {}).items()
            if done.get(p) != _stamp([p]) and (whole is None or failed.get(p) != whole)
        }
        still = {p: (base, whole) for p, (base, whole) in fresh.items() if whole and before.get(p) == whole}
        slides = set(one_per_series(list(still)))
        done |= {p: _stamp([p]) for p in still if p not in slides}  # of the series of another file
        items = [SlideInput(p, path_id(p.relative_to(base))) for p, (base, _) in still.items() if p in slides]
        settled = _round(command, items, work, report, ahead, failures_in, kept) if items else []
        for item, outcome in settled:
            if isinstance(outcome, Failed):
                failed[item.path] = still[item.path][1]
            else:
                failed.pop(item.path, None)
                done[item.path] = _stamp([item.path])
        skipped = sum(isinstance(o, Outcome) and o.status == "skipped" for _, o in settled)
        count += sum(isinstance(o, Outcome) for _, o in settled) - skipped
        if skipped:
            report.say(f"{skipped} slide{'' if skipped == 1 else 's'} up to date")
        if found is not None:
            before = {p: whole for p, (_, whole) in found.items()}
        look += 1
        if look != looks:
            counts = {"predicted": count, "failed": len(failed), "arriving": len(fresh) - len(still)}
            state = ", ".join(f"{n} {word}" for word, n in counts.items() if n)
            with phase(f"waiting for slides{state and ': '}{state}", waiting=True):
                time.sleep(interval)


def _look(folders: Sequence[str], recursive: bool) -> dict[Path, tuple[Path, Stamp | None]] | None:
    """Each slide with the folder it was found in, and its files; None where a folder is away for now."""
    try:
        if not all(Path(folder).is_dir() for folder in folders):
            return None
        return {p: (Path(f), files_of(p)) for f in folders for p in slides_in(Path(f), recursive)}
    except OSError:
        return None


def _round(
    command: str,
    items: Sequence[SlideInput],
    work: Callable[[SlideInput], Turn],
    report: Report,
    ahead: int,
    failures_in: Path,
    kept: Callable[[], None],
) -> list[tuple[SlideInput, Outcome | Failed]]:
    """The slides that have come, one after the other."""
    settled: list[tuple[SlideInput, Outcome | Failed]] = []
    refreshed = time.monotonic()
    ids: dict[str, Path] = {}

    def keep() -> None:
        kept()
        failures = [o for _, o in settled if isinstance(o, Failed)]
        list_failures(failures_in / "failures.csv", [i for i, _ in settled], failures, report)

    try:
        with phase("predicting", len(items), "slide") as told:
            for item, finish in zip(items, turns(work, items, ahead)):
                told.item = item.slide_id
                outcome = settle(command, item, _once(ids, item, finish), report, skipped=report.detail)
                told.advance(idle=isinstance(outcome, Outcome) and outcome.status == "skipped")
                if isinstance(outcome, Failed) and isinstance(outcome.error, MachineError):
                    raise outcome.error
                settled.append((item, outcome))
                if time.monotonic() - refreshed > REFRESH:
                    kept()
                    refreshed = time.monotonic()
    finally:
        in_any_case(keep)
    return settled


def _once(ids: dict[str, Path], item: SlideInput, finish: Callable[[], Outcome]) -> Callable[[], Outcome]:
    """The work on a slide, refused where another of this round has its id."""

    def checked() -> Outcome:
        other = ids.setdefault(item.slide_id, item.path)
        if other != item.path:
            raise InputError(f"{item.path}: {other.name} has the id {item.slide_id!r} too; give one another name")
        return finish()

    return checked


def files_of(slide: Path) -> Stamp | None:
    """All files that a slide is made of, as they are now; None where some have not even begun to come.

    Beside a MIRAX slide that is the folder of its name; of DICOM and Hamamatsu VMS slides, which do not say in their
    names what belongs together, what lies in the same folder.
    """
    suffix = slide.suffix.lower()
    if suffix == ".mrxs":
        parts = [p for p in slide.with_suffix("").rglob("*")] if slide.with_suffix("").is_dir() else []
        return _stamp([slide, *parts]) if parts else None
    if suffix == ".dcm":
        return _stamp([p for p in slide.parent.iterdir() if p.suffix.lower() == ".dcm"])
    if suffix in (".vms", ".vmu"):
        return _stamp(slide.parent.iterdir())
    return _stamp([slide])


def _stamp(files: Iterable[Path]) -> Stamp:
    out = []
    for path in sorted(files):
        try:
            known = path.stat()
        except OSError:  # gone, or its share is away: not as it was
            out.append((str(path), -1, 0))
        else:
            out.append((str(path), known.st_size, known.st_mtime_ns))
    return tuple(out)
