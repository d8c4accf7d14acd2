"""The files that ``lrmil predict`` writes: their names, and the order in which they come."""

from __future__ import annotations

import json as json_format
from pathlib import Path
from typing import Any

from lrmil_cli.commands import overlays
from lrmil_cli.errors import UsageError
from lrmil_cli.files.atomic import write_text
from lrmil_cli.files.header import sealed
from lrmil_cli.files.tables import write_table


def check_outputs(output: str, overlay: str | None, geojson: str | None, many: bool, json: bool) -> None:
    """Names of outputs that cannot be meant, before any work.

    Raises:
        UsageError: one file for several slides, or a name of the wrong kind.
    """
    from lrmil_cli.qupath.files import check_name
    from lrmil_cli.qupath.pictures import check_picture_name

    if output == "-" and (many or json):
        raise UsageError("-o - streams the attention table of one slide, without --json; give a folder")
    if output != "-" and Path(output).exists() and not Path(output).is_dir():
        raise UsageError(f"-o {output} is a file; give a folder, or - for the attention table on stdout")
    for option, value in (("--geojson", geojson), ("--overlay", overlay)):
        if value is None or overlays.is_folder(value):
            continue
        if many:
            raise UsageError(f"{option} {value} is one file, but there are several slides; give a folder")
        if option == "--overlay":
            check_picture_name(option, value)
        elif value != "-":
            check_name(value)
        elif output == "-" or json:
            raise UsageError("--geojson - wants stdout for itself; choose one of it, -o - and --json")


def write_prediction(folder: Path, slide_id: str, record: dict[str, Any], header: dict[str, Any], tables: dict[str, dict[str, Any]]) -> None:
    """Write the record of a slide and its tables: ``<slide>.attention.csv`` for the one named "", ``<slide>.<name>.attention.csv`` for others.

    The main table comes last: it marks the slide as done.

    Raises:
        MachineError: a file cannot be written.
    """
    main = folder / f"{slide_id}.attention.csv"
    main.unlink(missing_ok=True)  # what stands beside it is about to change
    write_text(folder / f"{slide_id}.prediction.json", json_format.dumps(sealed(record), indent=1, allow_nan=False) + "\n")
    for name in sorted(tables, reverse=True):
        write_table(folder / f"{slide_id}.{name}.attention.csv" if name else main, header, tables[name])
