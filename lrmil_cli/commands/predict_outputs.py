"""The files that ``lrmil predict`` writes: options about them, their names, and the order in which they come."""

from __future__ import annotations

import json as json_format
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from lrmil_cli.commands import overlays
from lrmil_cli.commands.report import Report
from lrmil_cli.errors import InputError, UsageError
from lrmil_cli.files.atomic import remove, write_text
from lrmil_cli.files.header import sealed
from lrmil_cli.files.tables import write_table
from lrmil_cli.slide_places import as_seen_from
from lrmil_cli.targets.answers import answer_text, sureness, what_is_told

if TYPE_CHECKING:
    from lrmil_cli.inference.prediction import Predictor

Output = Annotated[
    str,
    typer.Option(
        "-o",
        "--output",
        metavar="DIR|-",
        help="Folder for <slide>.prediction.json, <slide>.attention.csv and predictions.csv, a row a slide, "
        "or - for the attention table of one slide on stdout.",
    ),
]
Overlay = Annotated[
    Optional[str],
    typer.Option(
        "--overlay",
        metavar="FILE.png|FILE.svg|FILE.pdf|DIR",
        help="Also write a picture: the slide beside its attention.",
    ),
]
GeoJson = Annotated[
    Optional[str],
    typer.Option(
        "--geojson",
        metavar="FILE.geojson[.gz]|DIR|-",
        help="Also write the attention for QuPath.",
    ),
]


Fine = Annotated[
    Optional[int],
    typer.Option(
        "--fine",
        metavar="2|4",
        help="Also make a finer map: tiles shifted by halves (or quarters) are read too, and each cell is the mean of "
        "the tiles over it. It takes 3 (or 15) times as long as the answer, which stays what it is.",
    ),
]
Audit = Annotated[
    Optional[str],
    typer.Option(
        "--audit",
        metavar="FILE.jsonl",
        help="Append a line for each answer: who, when, which slide, model and prediction by digest, what was said.",
    ),
]


def check_fine(fine: int | None, output: str) -> None:
    """Raises UsageError if a finer map cannot be made as it is asked for."""
    from lrmil_cli.inference.fine import PIECES

    if fine is not None and fine not in PIECES:
        raise UsageError(f"--fine {fine}: choose {' or '.join(map(str, PIECES))}, the cells along a side of a tile")
    if fine is not None and output == "-":
        raise UsageError("--fine writes a table of its own; give -o a folder")


def check_outputs(
    output: str,
    overlay: str | None,
    format: str | None,
    geojson: str | None,
    pages: bool,
    many: bool,
    json: bool,
    *,
    several: bool,
) -> None:
    """Names of outputs that cannot be meant, before any work.

    Args:
        format: of the picture, if the user says it; several: models, each with folders of its own.

    Raises:
        UsageError: one file for several slides or models, or a name of the wrong kind.
    """
    from lrmil_cli.qupath.files import check_name
    from lrmil_cli.qupath.pictures import check_picture_name

    if output == "-" and several:
        raise UsageError("-o - streams the attention table of one model; give a folder")
    if output == "-" and (many or json):
        raise UsageError("-o - streams the attention table of one slide, without --json; give a folder")
    if output == "-" and pages:
        raise UsageError("--report and --top-tiles show the files of a results folder; give -o a folder")
    if output != "-" and Path(output).exists() and not Path(output).is_dir():
        raise UsageError(f"-o {output} is a file; give a folder, or - for the attention table on stdout")
    for option, value in (("--geojson", geojson), ("--overlay", overlay)):
        if value is None or overlays.is_folder(value):
            continue
        if many or several:
            what = "slides" if many else "models"
            raise UsageError(f"{option} {value} is one file, but there are several {what}; give a folder")
        if option == "--overlay":
            check_picture_name(option, value, format)
        elif value != "-":
            check_name(value)
        elif output == "-" or json:
            raise UsageError("--geojson - wants stdout for itself; choose one of it, -o - and --json")


def summary(record: dict[str, Any], *, timed: bool = True) -> str:
    """A prediction in one line; ``timed``: with the seconds of each phase."""
    levels = {name: n for name, n in record.get("tiles_read", {}).items() if n}
    read = (
        " and ".join(f"{n} {name.upper()} tiles" for name, n in levels.items())
        if len(levels) > 1
        else f"{record['tiles']} tiles"
    )
    spent = ", ".join(f"{k} {v:.2f}" for k, v in record["seconds"].items())
    doubt = f"uncertain ({record['uncertain']}): " if record.get("uncertain") else ""
    said = f"{answer_text(record)} ({sureness(record, 3).replace('probability', 'p')})"
    if own := record.get("prediction_set"):
        said += f", {own['coverage']:.0%} set: {', '.join(own['classes']) or 'empty'}"
    return f"{doubt}{said}, {read}" + (f"; seconds: {spent}; {record['device']}" if timed else "")


def warn_of(report: Report, slide_id: str, record: dict[str, Any]) -> None:
    """Say that a slide is unlike those that the model was trained on, where it is."""
    from lrmil_cli.evaluation.purpose import means_nothing
    from lrmil_cli.evaluation.unlike_training import unlike_text

    if nothing := means_nothing((record.get("model") or {}).get("trained_on") or {}, record.get("slide") or {}):
        report.warn(f"{slide_id}: {nothing}")
    if said := unlike_text(record.get("unlike_training")):
        report.warn(f"{slide_id}: {said}; whether the model's figures hold for it is not known")


def write_prediction(
    folder: Path, slide_id: str, record: dict[str, Any], header: dict[str, Any], tables: dict[str, dict[str, Any]]
) -> None:
    """Write the record of a slide and its tables.

    The table named "" becomes ``<slide>.attention.csv``, others ``<slide>.<name>.attention.csv``. The main table comes
    last: it marks the slide as done.

    Raises:
        MachineError: a file cannot be written.
    """
    main = folder / f"{slide_id}.attention.csv"
    remove(main)  # what stands beside it is about to change
    record = {**record, "model": record["model"] | as_seen_from(folder, record["model"]["path"])}
    write_text(
        folder / f"{slide_id}.prediction.json", json_format.dumps(sealed(record), indent=1, allow_nan=False) + "\n"
    )
    for name in sorted(tables, reverse=True):
        write_table(folder / f"{slide_id}.{name}.attention.csv" if name else main, header, tables[name])


def write_patient(
    folder: Path, patient: str, record: dict[str, Any], tables: Sequence[tuple[dict[str, Any], dict[str, Any]]]
) -> None:
    """Write the record of a patient, ``<patient>.prediction.json``, and an attention table a slide.

    The tables come last: all of them together mark the patient as done.

    Raises:
        MachineError: a file cannot be written.
    """
    paths = [folder / f"{header['slide']['id']}.attention.csv" for header, _ in tables]
    for path in paths:
        remove(path)
    record = {**record, "model": record["model"] | as_seen_from(folder, record["model"]["path"])}
    write_text(
        folder / f"{patient}.prediction.json", json_format.dumps(sealed(record), indent=1, allow_nan=False) + "\n"
    )
    for path, (header, rows) in zip(paths, tables):
        write_table(path, header, rows)


def answer(
    folder: Path,
    slide_id: str,
    tables: dict[str, Any],
    files: dict[str, dict[str, Any]],
    seen_from: Path | None = None,
) -> dict[str, str]:
    """The row of ``predictions.csv`` of a slide that is predicted.

    Args:
        tables: its attention tables by name; files: what was made of it besides, by kind; seen_from: the folder that
            the row is for, if it is not ``folder``.

    Raises:
        InputError: its record is damaged.
    """
    from lrmil_cli.files.header import check_seal, parse_header
    from lrmil_cli.inference.answers import answer_row

    path = folder / f"{slide_id}.prediction.json"
    record = check_seal(parse_header(path.read_bytes(), "prediction", str(path)), str(path))
    own = [folder / (f"{slide_id}.{name}.attention.csv" if name else f"{slide_id}.attention.csv") for name in tables]
    made = [f["path"] for f in files.values() if f["path"] != "-"]
    return answer_row(record, [path, *own, *made], folder if seen_from is None else seen_from)


def seconds_of(folder: Path, slide_id: str) -> dict[str, float]:
    """What a prediction that is there took, by phase; nothing where that is not known."""
    try:
        record = json_format.loads((folder / f"{slide_id}.prediction.json").read_text(encoding="utf-8"))
        return {str(k): float(v) for k, v in record["seconds"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def keep_answers(
    folder: Path, rows: list[dict[str, str]], overwrite: bool, report: Report, models: Sequence[str] = ()
) -> None:
    """Put the rows of a run into ``predictions.csv``; ``models``: their names, where there are several."""
    from lrmil_cli.inference.answers import note_answers

    if not note_answers(folder, rows, overwrite, models):
        report.warn(
            f"{folder / 'predictions.csv'}: this file system has no locks; of jobs that ended in the same moment, rows "
            "may be missing"
        )


def introduce(name: str, predictor: Predictor, report: Report) -> None:
    """Say what a model is, before its first answer."""
    from lrmil_cli.commands.export_onnx import int8_note
    from lrmil_cli.evaluation.head_calibration import uncalibrated
    from lrmil_cli.evaluation.purpose import purpose, purpose_text

    named = f"{name}: " if name else ""
    report.say(f"{named}model of {what_is_told(predictor.header)}; {purpose_text(purpose(predictor.header))}")
    if note := uncalibrated(predictor.header):
        report.say(f"{named}{note}")
    if predictor.settings.get("runtime") == "onnx-int8":
        report.say(f"{named}{int8_note(predictor.header.get('int8'), predictor.path)}")


def predicted_before(
    folder: Path, slide_id: str, wanted: str, overwrite: bool, skip_bad: bool, of: str | None = None
) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """Header and tables of a slide whose prediction is there, whole and up to date; None where it must be made.

    Args:
        of: the patient whose record it is of, if it is not of the slide.
        wanted: digest of the prediction; skip_bad: one that left out tiles which cannot be decoded is good enough.

    Raises:
        InputError: it is not.
        UsageError: it was made by others and ``overwrite`` is off.
    """
    from lrmil_cli.files.header import up_to_date
    from lrmil_cli.files.tables import read_table

    main = folder / f"{slide_id}.attention.csv"
    if (
        not up_to_date(main, wanted, lambda p: read_table(p, "attention")[0], overwrite)
        or not (folder / f"{of or slide_id}.prediction.json").exists()
    ):
        return None
    header, rows = read_table(main, "attention")
    if header["prediction"].get("bad_tiles") and not skip_bad:
        raise InputError(
            f"{main}: {header['prediction']['bad_tiles']} tiles of the slide cannot be decoded and were left out "
            "(--on-bad-tile skip); say that again to use it, or copy the slide again and add --overwrite"
        )
    try:
        return header, {
            "": rows,
            **{
                name: read_table(folder / f"{slide_id}.{name}.attention.csv", "attention")[1]
                for name in header.get("tables", [])
            },
        }
    except InputError:  # a further table is gone or damaged
        return None


def follow_prediction(folder: Path, slide_id: str, header: dict[str, Any], slide: Path) -> dict[str, Any]:
    """The header of a prediction that is up to date, with the place ``slide`` of its slide; its tables say so too."""
    from lrmil_cli.files.tables import follow_slide
    from lrmil_cli.slide_places import moved_header

    for name in [*header.get("tables", []), ""]:  # the main table is written last, as always
        file = f"{slide_id}.{name}.attention.csv" if name else f"{slide_id}.attention.csv"
        follow_slide(folder / file, "attention", slide)
    return moved_header(header, slide)
