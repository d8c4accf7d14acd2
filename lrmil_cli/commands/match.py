"""``lrmil match``: LR tiles + HR tiles -> pairs table."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from lrmil_cli.commands import options
from lrmil_cli.commands.batch import Outcome, output_path, run_batch
from lrmil_cli.commands.report import Report
from lrmil_cli.errors import InputError, UsageError


@dataclass(frozen=True)
class Tables:
    """The two tile tables of one slide."""

    slide_id: str
    path: str
    hr: str


def match(
    lr: Annotated[str, typer.Argument(metavar="LR", help="Tile table at low resolution, or a folder of them.", show_default=False)],
    hr: Annotated[str, typer.Argument(metavar="HR", help="Tile table at high resolution, or a folder of them.", show_default=False)],
    output: Annotated[str, typer.Option("-o", "--output", metavar="FILE|DIR|-", help="Pairs table, a folder, or - for stdout.", show_default=False)],
    json: options.Json = False,
    overwrite: options.Overwrite = False,
    fail_fast: options.FailFast = False,
) -> None:
    """Find the HR tiles under each LR tile. Two tables of one slide, or two folders matched by slide id."""
    from lrmil_cli.distill.pairs import match_tables
    from lrmil_cli.files.header import digest, last_digest, make_header, step, up_to_date
    from lrmil_cli.files.tables import read_table, read_table_header, write_table

    report = Report(json)
    items = _pairs_of(lr, hr)
    many = Path(lr).is_dir()
    if output == "-" and (many or json):
        raise UsageError("-o - takes the pairs of one slide, without --json")

    def one(item: Tables) -> Outcome:
        lr_header, lr_rows = read_table(item.path, "tiles")
        hr_header, hr_rows = read_table(item.hr, "tiles")
        slide_id = lr_header["slide"]["id"]
        target = output if output == "-" else output_path(output, slide_id, "pairs", many)
        inputs = {"lr": last_digest(lr_header), "hr": last_digest(hr_header)}
        if output != "-" and up_to_date(target, digest({}, inputs), lambda p: read_table_header(p, "pairs"), overwrite):
            return Outcome(str(target), "skipped", f"up to date ({target})")
        rows, about = match_tables(lr_header, lr_rows, hr_header, hr_rows)
        header = make_header("pairs", slide=lr_header["slide"], settings={}, **about, lr=lr_header, hr=hr_header,
                             history=[*lr_header["history"], *hr_header["history"], step("match", {}, inputs)])
        write_table(target, header, rows)
        c = about["counts"]
        per_lr = c["pairs"] / max(1, c["matched"])
        text = (f"ratio {about['ratio']}, {c['lr']} LR and {c['hr']} HR tiles, {c['pairs']} pairs; {c['matched']} LR tiles "
                f"covered ({per_lr:.1f} HR each, {c['incomplete']} incomplete), {c['unmatched']} without HR; {c['orphans']} HR "
                f"orphans, {c['outside']} off the slide; grids agree to {c['scale_error_px']:g} px")
        if c["unmatched"] > 0.2 * c["lr"]:
            report.warn(f"{slide_id}: {c['unmatched'] / c['lr']:.0%} of the LR tiles have no HR tile; do the tissue settings disagree?")
        return Outcome(str(target), message=text, extra={"ratio": about["ratio"], **c})

    run_batch("match", items, one, report, fail_fast=fail_fast, failures_in=Path(output) if many and output != "-" else None)


def _pairs_of(lr: str, hr: str) -> list[Tables]:
    from lrmil_cli.training.bags import list_tables

    if Path(lr).is_dir() != Path(hr).is_dir():
        raise UsageError("give two tables, or two folders of tables")
    if not Path(lr).is_dir():
        if lr == "-" and hr == "-":
            raise UsageError("only one of the two tables can come from standard input")
        return [Tables(Path(lr).name, lr, hr)]
    low, high = list_tables(lr, "tiles"), list_tables(hr, "tiles")
    if not low:
        raise InputError(f"{lr}: no tile tables (*.tiles.csv) in this folder; make them with `lrmil tile`")
    missing = sorted(set(low) - set(high))
    if missing and len(missing) == len(low):
        raise InputError(f"{hr}: no tile table of any slide in {lr} (looked for {missing[0]}.tiles.csv)")
    # A slide without an HR table fails by name and does not stop the others.
    return [Tables(s, str(p), str(high.get(s, Path(hr) / f"{s}.tiles.csv"))) for s, p in low.items()]
