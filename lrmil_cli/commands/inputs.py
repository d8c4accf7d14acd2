"""What a command is to work on: slides and attention tables named by files, folders, manifests, or lists on stdin."""

from __future__ import annotations

import io
import json
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from lrmil_cli.errors import InputError, UsageError
from lrmil_cli.files.manifest import read_manifest
from lrmil_cli.files.tables import table_suffix


@dataclass(frozen=True)
class SlideInput:
    """One slide to work on."""

    path: Path
    slide_id: str
    mpp: float | None = None


def expand_slides(args: list[str]) -> list[SlideInput]:
    """Slides named by files, folders, manifests, or ``-`` for a list on stdin.

    Raises:
        InputError: a folder without slides, a bad manifest, nothing on stdin, two slides of one id.
    """
    from lrmil_cli.slides.handles import SLIDE_SUFFIXES

    if args.count("-") > 1:
        raise UsageError("- (standard input) can be given only once")
    slides: list[SlideInput] = []
    for arg in args:
        if arg == "-":
            slides += _from_stdin()
        elif arg.lower().endswith(".csv"):
            slides += [SlideInput(e.path, e.slide_id, e.mpp) for e in read_manifest(arg)]
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
    twice = [i for i, n in Counter(s.slide_id for s in slides).items() if n > 1]
    if twice:
        raise InputError(
            f"two slides have the id {twice[0]!r}; their outputs would overwrite each other "
            "(use a manifest with slide_id)"
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
                # A slide that an earlier command of the pipe could not use is tried all the same: it fails here too,
                # and is not lost.
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
    """Attention tables of a folder, or of the JSON Lines of ``predict --json`` on stdin.

    None where ``argument`` is one table.

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
    stdin = sys.stdin.buffer
    if not isinstance(stdin, io.BufferedReader) or stdin.peek(1)[:1] != b"{":
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
