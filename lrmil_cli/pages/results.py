"""What a results folder of ``predict`` holds of a slide, and where pages go (pages/README 1)."""

from __future__ import annotations

import csv
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from lrmil_cli.errors import InputError
from lrmil_cli.evaluation.predictions import read_record
from lrmil_cli.files.header import check_slide, last_digest
from lrmil_cli.files.tables import read_table

RECORD, INDEX = ".prediction.json", "index.html"


@dataclass(frozen=True)
class Result:
    """Of one slide.

    Attributes:
        folder: where it was found; slide_id: what its files are called after.
        record: the prediction JSON; header, rows: its main attention table.
        files: what else is there of the slide, for links.
        digest: of all that a page shows of it besides the slide itself.
    """

    folder: Path
    slide_id: str
    record: dict[str, Any]
    header: dict[str, Any]
    rows: pd.DataFrame
    files: tuple[Path, ...]
    digest: str

    @property
    def slide(self) -> dict[str, Any]:
        """What the record says of the slide; its place is that of the table, which is kept where a slide moves."""
        return self.header["slide"]


def slide_ids(folder: Path) -> list[str]:
    """Of all slides that have a prediction in a folder, sorted.

    Raises:
        InputError: no such folder, or none in it.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; give the one that `lrmil predict` wrote into")
    found = sorted(p.name.removesuffix(RECORD) for p in folder.glob(f"*{RECORD}") if not p.name.startswith("."))
    if not found:
        raise InputError(f"{folder}: no predictions in it (*{RECORD}); make them with `lrmil predict`")
    return found


def page_name(slide_id: str) -> str:
    """``<slide>.html``, but never the index."""
    name = f"{slide_id}.html"
    return f"{slide_id}.slide.html" if name.casefold() == INDEX else name


def record_path(folder: Path, slide_id: str) -> Path:
    return folder / f"{slide_id}{RECORD}"


def read_result(folder: Path, slide_id: str) -> Result:
    """All that a page shows of a slide.

    Raises:
        InputError: its record or its attention table is missing, damaged, or of another prediction.
    """
    path = record_path(folder, slide_id)
    record = read_record(path)
    table = folder / f"{slide_id}.attention.csv"
    header, rows = read_table(table, "attention")
    check_slide(header, str(table))
    if last_digest(header) != last_digest(record):
        raise InputError(f"{table}: of another prediction than {path.name}; run `lrmil predict` again")
    if not len(rows) or not (rows["attention"] >= 0).all() or not rows["attention"].sum() > 0:
        raise InputError(f"{table}: its attention is no share of a slide; run `lrmil predict` again")
    files = tuple(p for p in _files(folder, slide_id, header) if p.is_file())
    names = "|".join(p.name for p in files)
    digest = hashlib.sha256(b"\0".join([path.read_bytes(), table.read_bytes(), names.encode()])).hexdigest()[:32]
    return Result(folder, slide_id, record, header, rows, files, digest)


def _files(folder: Path, slide_id: str, header: dict[str, Any]) -> list[Path]:
    """What may lie beside a record, under the names that the commands give."""
    names = [n for n in header.get("tables", []) if isinstance(n, str)]
    stems = [slide_id, *(f"{slide_id}.{name}" for name in names)]
    maps = [f"{stem}.{kind}.geojson{gz}" for stem in stems for kind in ("heatmap", "regions") for gz in (".gz", "")]
    tables = [f"{stem}.attention.csv" for stem in stems]
    return [folder / name for name in (*maps, f"{slide_id}.overlay.png", *tables, f"{slide_id}{RECORD}")]


def failures(folder: Path) -> list[dict[str, str]]:
    """Rows of ``failures.csv``; none where there is none that can be read."""
    try:
        with open(folder / "failures.csv", encoding="utf-8", errors="replace", newline="") as fh:
            return [{k: v or "" for k, v in row.items() if k} for row in csv.DictReader(fh)]
    except (OSError, ValueError, csv.Error):
        return []
