"""What a results folder of ``predict`` holds of a slide, and where pages go (pages/README 1)."""

from __future__ import annotations

import csv
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from lrmil_cli.errors import InputError
from lrmil_cli.evaluation.predictions import read_record
from lrmil_cli.files.header import check_slide, last_digest
from lrmil_cli.files.tables import checked_header, read_table
from lrmil_cli.inference.answers import models_in
from lrmil_cli.inference.fine import NAME as FINE
from lrmil_cli.qupath.pictures import FORMATS
from lrmil_cli.targets.task import PATIENT, bag_of

RECORD, INDEX = ".prediction.json", "index.html"


@dataclass(frozen=True)
class Result:
    """Of one slide.

    Attributes:
        folder: where it was found; slide_id: what its files are called after; model: its name among several, or "".
        record: the prediction JSON; header, rows: its main attention table.
        further: rows of the other attention tables of the prediction by name, the finer map (``fine``) first.
        files: what else is there of the slide, for links.
        digest: of all that a page shows of it besides the slide itself.
    """

    folder: Path
    slide_id: str
    record: dict[str, Any]
    header: dict[str, Any]
    rows: pd.DataFrame
    further: dict[str, pd.DataFrame]
    files: tuple[Path, ...]
    digest: str
    model: str = ""

    @property
    def slide(self) -> dict[str, Any]:
        """What the record says of the slide; its place is that of the table, which is kept where a slide moves."""
        return self.header["slide"]


def slide_ids(folder: Path) -> list[str]:
    """Of all slides that have a prediction in a folder, by any of its models, sorted.

    Raises:
        InputError: no such folder, or none in it.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; give the one that `lrmil predict` wrote into")
    paths = [p for _, own in models_in(folder) for p in own.glob(f"*{RECORD}")]
    found = sorted({own for p in paths if not p.name.startswith(".") for own in _slides_of(p)})
    if not found:
        raise InputError(f"{folder}: no predictions in it (*{RECORD}); make them with `lrmil predict`")
    return found


def page_name(slide_id: str) -> str:
    """``<slide>.html``, but never the index."""
    name = f"{slide_id}.html"
    return f"{slide_id}.slide.html" if name.casefold() == INDEX else name


def _slides_of(path: Path) -> list[str]:
    """The slides that a record speaks of: its own, or all of its patient's."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if bag_of(record) == PATIENT:
            return [str(own["id"]) for own in record["slides"]]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, InputError):
        pass  # it is told of when it is to be shown
    return [path.name.removesuffix(RECORD)]


def record_path(folder: Path, slide_id: str) -> Path:
    """The record that speaks of a slide: its own, or that of the patient whom its attention table names."""
    try:
        patient = checked_header(folder / f"{slide_id}.attention.csv", "attention").get("patient")
    except (InputError, OSError):
        patient = None
    return folder / f"{patient or slide_id}{RECORD}"


def record_of(path: Path, slide_id: str) -> dict[str, Any]:
    """The record of a slide, at :func:`record_path`.

    Of an answer for a patient, with the slide in place of the patient, and besides ``patient`` its name, ``share`` of
    the attention that the slide holds, and ``of`` so many slides.

    Raises:
        InputError: no such record, damaged, or of a patient without this slide.
    """
    record = read_record(path)
    if bag_of(record) != PATIENT:
        return record
    try:
        own = next(s for s in record["slides"] if s["id"] == slide_id)
        about: dict[str, Any] = {"patient": str(record["slide"]["id"]), "of": len(record["slides"])}
        about |= {"tiles": int(own["tiles"]), "share": float(own["attention"])}
    except (KeyError, TypeError, ValueError, StopIteration) as e:
        raise InputError(f"{path}: does not speak of slide {slide_id}; run `lrmil predict` again") from e
    return {**record, "slide": own, "roi": own.get("roi"), "given": own.get("given"), **about}


def read_results(folder: Path, slide_id: str) -> list[Result]:
    """All that a page shows of a slide: of one model, or of each of several that answered.

    Raises:
        InputError: as :func:`read_result`.
    """
    models = models_in(folder)
    own = [(name, place) for name, place in models if len(models) == 1 or record_path(place, slide_id).exists()]
    if not own:
        raise InputError(f"{folder}: no model has a prediction of {slide_id} in it")
    return [read_result(place, slide_id, name) for name, place in own]


def read_result(folder: Path, slide_id: str, model: str = "") -> Result:
    """All that a page shows of a slide by one model.

    Raises:
        InputError: its record or its attention table is missing, damaged, or of another prediction.
    """
    path = record_path(folder, slide_id)
    record = record_of(path, slide_id)
    table = folder / f"{slide_id}.attention.csv"
    header, rows = read_table(table, "attention")
    check_slide(header, str(table))
    if last_digest(header) != last_digest(record):
        raise InputError(f"{table}: of another prediction than {path.name}; run `lrmil predict` again")
    if not len(rows) or not (rows["attention"] >= 0).all() or not rows["attention"].sum() > 0:
        raise InputError(f"{table}: its attention is no share of a slide; run `lrmil predict` again")
    names = [n for n in header.get("tables", []) if isinstance(n, str)]
    further = {name: folder / f"{slide_id}.{name}.attention.csv" for name in (FINE, *names)}
    found = {name: own for name, at in further.items() if (own := _further(at, record)) is not None}
    files = tuple(p for p in (*_files(folder, slide_id, [*found]), path) if p.is_file())
    shown = [path, table, *(further[name] for name in found)]
    parts = [*(p.read_bytes() for p in shown), "|".join(p.name for p in files).encode()]
    digest = hashlib.sha256(b"\0".join(parts)).hexdigest()[:32]
    return Result(folder, slide_id, record, header, rows, found, files, digest, model)


def _further(path: Path, record: dict[str, Any]) -> pd.DataFrame | None:
    """Rows of a further table of a prediction; None where it is gone, damaged or of another one."""
    try:
        header, rows = read_table(path, "attention")
    except InputError:
        return None
    known = last_digest(record)
    return rows if len(rows) and known in [step.get("digest") for step in header["history"]] else None


def _files(folder: Path, slide_id: str, names: list[str]) -> list[Path]:
    """What may lie beside a record, under the names that the commands give."""
    stems = [slide_id, *(f"{slide_id}.{name}" for name in names)]
    maps = [f"{stem}.{kind}.geojson{gz}" for stem in stems for kind in ("heatmap", "regions") for gz in (".gz", "")]
    pictures = [f"{stem}.overlay.{kind}" for stem in stems for kind in FORMATS]
    tables = [f"{stem}.attention.csv" for stem in stems]
    return [folder / name for name in (*maps, *pictures, *tables)]


def failures(folder: Path) -> list[dict[str, str]]:
    """Rows of ``failures.csv``; none where there is none that can be read."""
    try:
        with open(folder / "failures.csv", encoding="utf-8", errors="replace", newline="") as fh:
            return [{k: v or "" for k, v in row.items() if k} for row in csv.DictReader(fh)]
    except (OSError, ValueError, csv.Error):
        return []
