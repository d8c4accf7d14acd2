"""``lrmil match``: LR tiles + HR tiles -> pairs table."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from lrmil_cli.commands import options
from lrmil_cli.commands.batch import Outcome, failures_folder, left_alone, output_path, run_batch
from lrmil_cli.commands.inputs import where_slides_are
from lrmil_cli.commands.next_step import after_match
from lrmil_cli.commands.report import Report
from lrmil_cli.errors import InputError, UsageError


@dataclass(frozen=True)
class Tables:
    """The two tile tables of one slide."""

    slide_id: str
    path: str
    hr: str


LrTable = Annotated[
    str,
    typer.Argument(metavar="LR", help="Tile table at low resolution, or a folder of them."),
]
HrTable = Annotated[
    str,
    typer.Argument(
        metavar="HR",
        help="Tile table at high resolution; or a .h5 file of TRIDENT, CLAM or STAMP (coordinates, features); "
        "or a folder of one of these.",
    ),
]
Output = Annotated[
    str,
    typer.Option("-o", "--output", metavar="FILE|DIR|-", help="Pairs table, a folder, or - for stdout."),
]


def match(
    lr: LrTable,
    hr: HrTable,
    output: Output,
    slides: options.SlidePlaces = None,
    json: options.Json = False,
    overwrite: options.Overwrite = False,
    fail_fast: options.FailFast = False,
) -> None:
    """Find the HR tiles under each LR tile. Two tables of one slide, or two folders matched by slide id."""
    from lrmil_cli.files.foreign import SUFFIXES, ForeignTiles, read_foreign
    from lrmil_cli.files.header import digest, last_digest, make_header, step, up_to_date
    from lrmil_cli.files.tables import read_table, write_table
    from lrmil_cli.matching.pairs import match_foreign, match_tables
    from lrmil_cli.slide_places import refreshed

    report = Report(json)
    items = _pairs_of(lr, hr)
    many = Path(lr).is_dir()
    if output == "-" and (many or json):
        raise UsageError("-o - takes the pairs of one slide, without --json")

    if output != "-":
        output_path(output, "any", "pairs", many)
    places = where_slides_are(slides)

    def one(item: Tables) -> Outcome:
        lr_header, lr_rows = read_table(item.path, "tiles")
        slide_id = lr_header["slide"]["id"]
        lr_header = refreshed(lr_header, places.get(slide_id))
        target = output if output == "-" else output_path(output, slide_id, "pairs", many)
        high = read_foreign(item.hr) if item.hr.lower().endswith(SUFFIXES) else read_table(item.hr, "tiles")
        hr_digest = high.digest if isinstance(high, ForeignTiles) else last_digest(high[0])
        inputs = {"lr": last_digest(lr_header), "hr": hr_digest}
        if output != "-" and up_to_date(target, digest({}, inputs), lambda p: read_table(p, "pairs")[0], overwrite):
            return left_alone(target, "pairs", lr_header["slide"]["path"])
        if isinstance(high, ForeignTiles):
            rows, about, hr_header = match_foreign(lr_header, lr_rows, high, item.path)
        else:
            hr_header, hr_rows = refreshed(high[0], places.get(slide_id)), high[1]
            rows, about = match_tables(lr_header, lr_rows, hr_header, hr_rows)
        header = make_header(
            "pairs",
            slide=lr_header["slide"],
            settings={},
            **about,
            lr=lr_header,
            hr=hr_header,
            history=[*lr_header["history"], *hr_header["history"], step("match", {}, inputs)],
        )
        write_table(target, header, rows)
        for text in _warnings(about["counts"]):
            report.warn(f"{slide_id}: {text}")
        return Outcome(
            str(target),
            message=_summary(about, high.tool if isinstance(high, ForeignTiles) else None),
            extra={"ratio": about["ratio"], **about["counts"]},
        )

    run_batch(
        "match",
        "matching",
        items,
        one,
        report,
        fail_fast=fail_fast,
        failures_in=failures_folder(output, many),
        where=output,
        then=lambda: after_match(output),
    )


def _summary(about: dict[str, Any], tool: str | None) -> str:
    """One line on a slide; ``tool`` made its HR tiles, None for lrmil."""
    c = about["counts"]
    fit = (
        f"grids agree to {c['scale_error_px']:g} px"
        if tool is None
        else f"{tool} grid, {c['offset']:.2f} of an HR side off the cells (median), "
        f"{c['straddling']} HR tiles on a border, {c['shared']} share a cell"
    )
    return (
        f"ratio {about['ratio']}, {c['lr']} LR and {c['hr']} HR tiles, {c['pairs']} pairs; {c['matched']} LR tiles "
        f"covered ({c['pairs'] / max(1, c['matched']):.1f} HR each, {c['incomplete']} incomplete), "
        f"{c['unmatched']} without HR; {c['orphans']} HR orphans, {c['outside']} off the slide; {fit}"
    )


def _warnings(c: dict[str, Any]) -> list[str]:
    from lrmil_cli.matching.pairs import ALIGNED

    texts = []
    if c["unmatched"] > 0.2 * c["lr"]:
        texts.append(
            f"{c['unmatched'] / c['lr']:.0%} of the LR tiles have no HR tile; do the tissue settings disagree?"
        )
    if c.get("misaligned") or c.get("offset", 0) > ALIGNED:
        texts.append(
            f"HR tiles lie {c['offset']:.2f} of their side off the LR cells in the median, "
            f"{c['misaligned']} of {c['pairs']} by more than a quarter; "
            "good for distill-student, but distill-encoder leaves those out: tile HR with `lrmil tile` for it"
        )
    return texts


def _pairs_of(lr: str, hr: str) -> list[Tables]:
    from lrmil_cli.files.tables import list_tables

    if Path(lr).is_dir() != Path(hr).is_dir():
        raise UsageError("give two tables, or two folders of tables")
    if not Path(lr).is_dir():
        if lr == "-" and hr == "-":
            raise UsageError("only one of the two tables can come from standard input")
        return [Tables(Path(lr).name, lr, hr)]
    ending = ".tiles.csv" if list_tables(hr, "tiles") else ".h5"
    low, high = list_tables(lr, "tiles"), list_tables(hr, "tiles") or _foreign_files(hr)
    if not low:
        raise InputError(f"{lr}: no tile tables (*.tiles.csv) in this folder; make them with `lrmil tile`")
    missing = sorted(set(low) - set(high))
    if missing and len(missing) == len(low):
        raise InputError(
            f"{hr}: no tiles of any slide in {lr} "
            f"(looked for {missing[0]}.tiles.csv, {missing[0]}.h5, {missing[0]}_patches.h5)"
        )
    # A slide without HR tiles fails by name and does not stop the others.
    return [Tables(s, str(p), str(high.get(s, Path(hr) / f"{s}{ending}"))) for s, p in low.items()]


def _foreign_files(folder: str) -> dict[str, Path]:
    """``<slide_id>.h5`` and TRIDENT's ``<slide_id>_patches.h5`` in a folder, by slide id."""
    from lrmil_cli.files.foreign import SUFFIXES

    found = sorted(
        p for p in Path(folder).iterdir() if p.suffix.lower() in SUFFIXES and p.is_file() and not p.name.startswith(".")
    )
    return {p.stem.removesuffix("_patches"): p for p in found} | {p.stem: p for p in found}
