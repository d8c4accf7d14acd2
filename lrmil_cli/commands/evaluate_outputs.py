"""The files that ``lrmil evaluate`` writes, and what it says of them on stdout."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lrmil_cli.commands.report import Report
from lrmil_cli.commands.screen import line_cleared
from lrmil_cli.errors import InputError, UsageError

if TYPE_CHECKING:
    from lrmil_cli.evaluation.judging import Judging

#: In the order they are written; the last one marks the folder as complete.
FILES = ("evaluation.png", "evaluation.html", "evaluation.md", "metrics.csv", "differences.csv", "evaluation.json")


def read_header(path: Path) -> dict[str, Any]:
    """The record of an evaluation that is there.

    Raises:
        InputError: it cannot be read.
    """
    from lrmil_cli.files.header import parse_header

    try:
        return parse_header(path.read_text(encoding="utf-8"), "evaluation", str(path))
    except (OSError, UnicodeDecodeError) as e:
        raise InputError(f"{path}: cannot be read ({type(e).__name__})") from e


def check_folder(folder: Path) -> None:
    """A teacher's folder has a metrics.csv of its own, which must not be lost.

    Raises:
        UsageError: this is one.
    """
    from lrmil_cli.files.tables import read_table_header

    for name, kind in (("metrics.csv", "evaluation"), ("differences.csv", "differences")):
        if (folder / name).exists():
            try:
                read_table_header(folder / name, kind)
            except InputError as e:
                raise UsageError(
                    f"{folder / name} exists and was not made by this command; choose another --output"
                ) from e


def write_files(
    folder: Path,
    judging: Judging,
    evaluation: Any,
    record: dict[str, Any],
    pictures: Sequence[Mapping[str, bytes]] = (),
    checklist: str | None = None,
) -> None:
    """Write all of :data:`FILES`, and a checklist where one is asked for.

    Args:
        evaluation: what ``judging`` made of the predictions; record: becomes evaluation.json.
        pictures: of the worst errors of each model, slide id -> PNG.
    """
    from lrmil_cli.evaluation import checklists
    from lrmil_cli.evaluation.evaluation_files import differences_frame
    from lrmil_cli.evaluation.evaluation_page import CURVE_PICTURE, title
    from lrmil_cli.evaluation.page import Picture, to_html, to_markdown
    from lrmil_cli.files.atomic import remove, write_bytes, write_text
    from lrmil_cli.files.header import make_header
    from lrmil_cli.files.tables import write_table

    page = judging.blocks(evaluation, judging.picture(evaluation), record["history"][-1], pictures)
    common = {"settings": record["settings"], "history": record["history"]}
    remove(folder / FILES[-1])  # it marks the folder as complete
    remove(folder / CURVE_PICTURE)  # of an earlier run with a cascade
    for old in (*folder.glob("evaluation.error.*.png"), *folder.glob("evaluation.decision*.png")):
        remove(old)
    for picture in page:
        if isinstance(picture, Picture):
            write_bytes(folder / picture.name, picture.png)
    write_text(folder / "evaluation.html", to_html(title(evaluation), page))
    write_text(folder / "evaluation.md", to_markdown(title(evaluation), page))
    write_table(folder / "metrics.csv", make_header("evaluation", **common), judging.frame(evaluation))
    if len(evaluation.models) > 1:
        write_table(folder / "differences.csv", make_header("differences", **common), differences_frame(evaluation))
    else:
        remove(folder / "differences.csv")  # of an earlier run with more models
    if checklist is not None:
        header = evaluation.models[0].predictions.model_header
        write_text(folder / f"checklist.{checklist}.md", checklists.checklist(checklist, record, header))
    write_text(folder / "evaluation.json", json.dumps(record, indent=1, allow_nan=False) + "\n")


def tell(report: Report, folder: Path, status: str, record: dict[str, Any]) -> None:
    """The result on stdout: tables for people, or one JSON object."""
    if report.as_json:
        report.result(
            {
                "command": "evaluate",
                "status": status,
                "output": str(folder),
                "error": None,
                **{k: v for k, v in record.items() if k not in ("kind", "version")},
            }
        )
    elif not report.quiet:
        from lrmil_cli.commands.evaluate_tables import print_tables

        with line_cleared():
            print_tables(record)
