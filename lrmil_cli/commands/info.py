"""``lrmil info``: what a slide, or any file of the chain, is."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from lrmil_cli.commands import cohort, options
from lrmil_cli.commands.report import Report
from lrmil_cli.commands.screen import line_cleared, printable

PathOrNone = Annotated[
    Optional[str],
    typer.Argument(
        metavar="FILE|DIR",
        help="A slide, a table of slides, any file of the chain (tiles, features, encoder, model, prediction, ...), a "
        "teacher folder, or any GeoJSON.",
    ),
]
Encoders = Annotated[
    bool,
    typer.Option("--encoders", help="List the encoders that --encoder knows by a short name."),
]
Heads = Annotated[
    bool,
    typer.Option("--heads", help="List the MIL heads and their options for --head-option."),
]
QuPathScripts = Annotated[
    Optional[str],
    typer.Option("--qupath-scripts", metavar="DIR", help="Copy the scripts for QuPath there."),
]


Card = Annotated[
    bool,
    typer.Option("--card", help="Of a model: write its card, from its header and the receipt beside it, to -o."),
]
Statement = Annotated[
    Optional[str],
    typer.Option(
        "--statement",
        metavar="FILE.toml",
        help="With --card: what only a person can say: intended_use, not_for, population, ethics, risks, authors, "
        "contact, citation.",
    ),
]
Output = Annotated[
    Optional[str],
    typer.Option("-o", "--output", metavar="CARD.md|-", help="With --card: where the card goes; - for stdout."),
]


def info(
    ctx: typer.Context,
    path: PathOrNone = None,
    encoders: Encoders = False,
    heads: Heads = False,
    qupath_scripts: QuPathScripts = None,
    card: Card = False,
    statement: Statement = None,
    output: Output = None,
    slide_mpp: options.SlideMpp = None,
    reader: options.Reader = "auto",
    image: options.Image = None,
    label: cohort.Label = None,
    task: cohort.TaskName = None,
    time: cohort.Time = None,
    event: cohort.Event = None,
    drop_missing: cohort.DropMissing = False,
    classes: cohort.Classes = None,
    class_map: cohort.ClassMap = None,
    json: options.Json = False,
    overwrite: options.Overwrite = False,
) -> None:
    """Say what a slide or a file of the chain is.

    Of GeoJSON from anywhere it says what QuPath will make of it, and ends with exit code 3 where that is nothing. Of a
    table of slides it shows how the commands understand it, and ends with exit code 3 where they refuse it.
    """
    from lrmil_cli.commands.info_files import describe
    from lrmil_cli.commands.info_text import render
    from lrmil_cli.errors import InputError, UsageError

    report = Report(json)
    if encoders + heads + (path is not None) + (qupath_scripts is not None) != 1:
        raise UsageError(
            "give one of: a slide or file to describe, --encoders, --heads, --qupath-scripts DIR; "
            "see `lrmil info --help`"
        )
    if card or statement is not None or output is not None:
        _card(report, path, card, statement, output, overwrite)
        return
    if qupath_scripts is not None:
        from lrmil_cli.qupath.scripts import copy_scripts

        for file in copy_scripts(qupath_scripts, overwrite):
            report.say(f"{file}: drop it on QuPath, or open it in Automate > Script editor")
            report.result({"command": "info", "status": "ok", "output": str(file)})
        return
    if path is None:
        rows, text = _encoders() if encoders else _heads()
        for row in rows:
            report.result(row)
        if not json:
            with line_cleared():
                print(text)
        return
    labels = cohort.labels_of(ctx.params) if cohort.asks_for_labels(ctx.params) else None
    about = describe(path, slide_mpp, reader, image, labels)
    report.result(about)
    if not json:
        with line_cleared():
            print(printable(render(path, about)))
    if about["kind"] == "geojson" and not (about["opens"] and about["objects"]):
        which = (
            "" if len(about["opens_in"]) in (0, 3) else f" in every version (it does in {', '.join(about['opens_in'])})"
        )
        why = (about["fatal"] or about["silent"] or about["notes"])[0]
        nothing = "QuPath imports nothing of it" if not which else f"QuPath does not import it{which}"
        raise InputError(f"{path}: {nothing}: {why}")
    refused = [p for p in about["problems"] if not p["training"]] if about["kind"] == "manifest" else []
    if refused:
        raise InputError(f"{path}: {refused[0]['text']}")


def _card(
    report: Report, path: str | None, card: bool, statement: str | None, output: str | None, overwrite: bool
) -> None:
    """Write the card of a model.

    Raises:
        UsageError: options that do not go together, or a file that was written by others.
    """
    from lrmil_cli.errors import UsageError
    from lrmil_cli.evaluation.model_card import model_card, read_statement
    from lrmil_cli.files.atomic import write_text

    if not card:
        raise UsageError("-o and --statement are about --card; give that too")
    if path is None or output is None:
        raise UsageError("--card writes a file: lrmil info MODEL.safetensors --card -o CARD.md")
    if output == "-" and report.as_json:
        raise UsageError("-o - wants stdout for the card; give a file, or leave out --json")
    text = model_card(path, read_statement(statement) if statement else None)
    if output == "-":
        print(text, end="")
        return
    there = Path(output).exists() and Path(output).read_text(encoding="utf-8", errors="replace")
    if there and there != text and not overwrite:
        raise UsageError(f"{output} exists and says something else; add --overwrite to replace it")
    if there != text:
        write_text(output, text)
    report.say(f"{output}: {'up to date' if there == text else 'written'}")
    status = "skipped" if there == text else "ok"
    report.result({"command": "info", "status": status, "output": output, "error": None})


def _encoders() -> tuple[list[dict[str, Any]], str]:
    """The encoders that have a short name, and the same as text."""
    from lrmil_cli.commands.info_text import render_encoders
    from lrmil_cli.encoders.aliases import alias_table

    rows = alias_table()
    return rows, render_encoders(rows)


def _heads() -> tuple[list[dict[str, Any]], str]:
    """The MIL heads with their options, and the same as text."""
    from lrmil_cli.commands.info_text import render_heads
    from lrmil_cli.heads import head_sources, head_table
    from lrmil_cli.training.recipes import DIFFERENCES

    rows = head_table()
    return rows, render_heads(rows, {r["name"]: head_sources(r["name"]) for r in rows}, DIFFERENCES)
