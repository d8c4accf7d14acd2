"""What a command is to work on: slides and attention tables named by files, folders, manifests, or lists on stdin."""

from __future__ import annotations

import io
import json
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lrmil_cli.errors import InputError, UsageError
from lrmil_cli.files.manifest import read_manifest
from lrmil_cli.files.manifest_rows import Entry
from lrmil_cli.files.names import as_file, fits_file_name
from lrmil_cli.files.spreadsheet import SUFFIXES as SPREADSHEETS
from lrmil_cli.files.tables import table_suffix
from lrmil_cli.slide_names import SLIDE_SUFFIXES, slide_id_of

if TYPE_CHECKING:
    from lrmil_cli.slides.slide import Slide


@dataclass(frozen=True)
class SlideInput:
    """One slide to work on.

    Attributes:
        mpp, mask, roi, min_tissue, patient_id: what the manifest says of it, None where it says nothing.
    """

    path: Path
    slide_id: str
    mpp: float | None = None
    mask: Path | None = None
    roi: Path | None = None
    min_tissue: float | None = None
    patient_id: str | None = None


def open_input(item: SlideInput, **options: Any) -> Slide:
    """Open a slide that a command was given, by what its table says of it.

    Args:
        options: of :func:`lrmil_cli.slides.slide.open_slide`.

    Raises:
        InputError: as that function.
    """
    from lrmil_cli.slides.slide import open_slide

    return open_slide(item.path, slide_id=item.slide_id, manifest_mpp=item.mpp, **options)


def expand_slides(
    args: list[str], *, recursive: bool = False, say: Callable[[str], None] = lambda text: None
) -> list[SlideInput]:
    """Slides named by files, folders, manifests, or ``-`` for a list on stdin.

    Args:
        recursive: slides of sub-folders too; where two have one name, their ids are their paths in the folder.
        say: told what was understood of a manifest, and what was left out of a folder.

    Raises:
        InputError: a folder without slides, a bad manifest, nothing on stdin, two slides of one id.
    """
    from lrmil_cli.slides.dicom import one_per_series

    if args.count("-") > 1:
        raise UsageError("- (standard input) can be given only once")
    slides: list[SlideInput] = []
    listed: list[SlideInput] = []
    for arg in args:
        if arg == "-":
            slides += _from_stdin()
        elif arg.lower().endswith(SPREADSHEETS):
            manifest = read_manifest(arg)
            say(f"{arg}: {manifest.understood()}")
            listed += map(of_entry, manifest)
        elif Path(arg).is_dir():
            slides += _from_folder(Path(arg), recursive, say)
        else:
            slides.append(SlideInput(Path(arg), slide_id_of(Path(arg))))
    # The files of a DICOM series are one slide; a manifest says itself which files are slides.
    whole = set(one_per_series([s.path for s in slides]))
    slides = listed + [s for s in slides if s.path in whole]
    counts = Counter(as_file(s.slide_id) for s in slides)
    twice = next((s.slide_id for s in slides if counts[as_file(s.slide_id)] > 1), None)
    if twice is not None:
        raise InputError(
            f"two slides have the id {twice!r}; their outputs would overwrite each other (use a manifest with slide_id)"
        )
    return slides


def of_entry(entry: Entry) -> SlideInput:
    """A row of a manifest as something to work on."""
    return SlideInput(entry.path, entry.slide_id, entry.mpp, entry.mask, entry.roi, entry.min_tissue, entry.patient_id)


def where_slides_are(argument: str | None) -> dict[str, Path]:
    """Slide id -> path, of a manifest or of a folder and its sub-folders; of nothing without one.

    Raises:
        InputError: as :func:`expand_slides`.
    """
    return {} if argument is None else {s.slide_id: s.path for s in expand_slides([argument], recursive=True)}


def _from_folder(folder: Path, recursive: bool, say: Callable[[str], None]) -> list[SlideInput]:
    """The slides of a folder, sorted; a link that leads nowhere is one of them, so that it fails by its name."""
    found = slides_in(folder, recursive, depth=2)  # one level down is looked at, to say what is left out
    own = [p for p in found if p.parent == folder]
    if (below := len(found) - len(own)) and not recursive:
        what = f"{below} slide{'' if below == 1 else 's'} in its sub-folders"
        if not own:
            raise InputError(f"{folder}: no slides in this folder itself, but {what}; add --recursive to take them")
        say(f"{folder}: {what} left out; add --recursive to take them too")
    chosen = found if recursive else own
    if not chosen:
        raise InputError(f"{folder}: no slides in this folder (looked for {' '.join(SLIDE_SUFFIXES)})")
    names = Counter(as_file(slide_id_of(p)) for p in chosen)
    return [
        SlideInput(p, slide_id_of(p) if names[as_file(slide_id_of(p))] == 1 else path_id(p.relative_to(folder)))
        for p in chosen
    ]


def slides_in(folder: Path, recursive: bool, *, depth: int = 1) -> list[Path]:
    """Files with the name of a slide, sorted: of a folder, down to ``depth``, or of all in it."""
    patterns = ("**/*",) if recursive else ("*", "*/*")[:depth]
    return sorted({p for d in patterns for p in folder.glob(d) if _is_slide(p.relative_to(folder)) and not p.is_dir()})


def _is_slide(path: Path) -> bool:
    return path.suffix.lower() in SLIDE_SUFFIXES and not any(part.startswith(".") for part in path.parts)


def path_id(path: Path) -> str:
    """``case1/a.svs`` -> ``case1__a``."""
    return "__".join([*path.parts[:-1], slide_id_of(path)])


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
                slide_id = str(record.get("slide_id") or slide_id_of(path))
                mpp, least = (None if record.get(k) is None else float(record[k]) for k in ("mpp", "min_tissue"))
                mask, roi = (None if record.get(k) is None else Path(record[k]) for k in ("mask", "roi"))
                # A slide that an earlier command of the pipe could not use is tried all the same: it fails here too,
                # and is not lost.
                patient = None if record.get("patient_id") is None else str(record["patient_id"])
                slides.append(SlideInput(path, slide_id, mpp, mask, roi, least, patient))
            except (ValueError, KeyError, TypeError) as e:
                raise InputError(f"standard input: not a JSON line with a 'slide' key: {line[:60]}") from e
            if slide_id != slide_id_of(path) and not fits_file_name(slide_id):  # it would be written to another folder
                raise InputError(f"standard input: slide_id {slide_id!r} cannot be part of a file name")
        else:
            slides.append(SlideInput(Path(line), slide_id_of(Path(line))))
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
            if path is None and error is None and "models" in record:
                raise InputError(
                    "standard input: answers of several models; run `lrmil export-geojson OUT/MODEL -o DIR` for each"
                )
            if path is None and error is None:
                raise KeyError("attention")
        except (ValueError, KeyError, TypeError, AttributeError) as e:
            raise InputError(
                f"standard input: not a JSON line of `lrmil predict --json -o DIR`: {line.strip()[:60]}"
            ) from e
        items.append(TableItem(str(path or record.get("slide")), slide_id, error))
    return items
