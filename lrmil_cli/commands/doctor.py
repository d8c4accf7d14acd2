"""``lrmil doctor``: is this machine, slide or model fit for use, and what to do if not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Optional

import typer

from lrmil_cli.commands import cohort, head_options, options
from lrmil_cli.commands.layout import beside
from lrmil_cli.commands.report import Report
from lrmil_cli.commands.screen import line_cleared, printable

if TYPE_CHECKING:
    from lrmil_cli.doctor.check import Check

Paths = Annotated[
    Optional[list[str]],
    typer.Argument(
        metavar="SLIDE|MODEL|slides.csv...",
        help="Slides (also folders, or -), tables of slides and model files to look at besides the machine.",
    ),
]
Model = Annotated[
    Optional[str],
    typer.Option("-m", "--model", metavar="MODEL.safetensors", help="Model that the slides should fit."),
]
Mpp = Annotated[
    Optional[float],
    typer.Option(
        "--mpp",
        min=0.01,
        help="Micrometres per pixel of the tiles.  [default: as the model says, else 2.0; ours, as in tile]",
    ),
]
Quick = Annotated[
    bool,
    typer.Option("--quick", help="Measure no speed, and look at fewer blocks of a slide."),
]
TableOnly = Annotated[
    bool,
    typer.Option("--table-only", help="Of a table of slides look at the table alone, and open none of its slides."),
]


def doctor(
    ctx: typer.Context,
    paths: Paths = None,
    model: Model = None,
    mpp: Mpp = None,
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
    folds: head_options.Folds = 5,
    table_only: TableOnly = False,
    quick: Quick = False,
    device: options.Device = "auto",
    json: options.Json = False,
) -> None:
    """Check machine, slides, tables of slides and models before they are used.

    One line a check: PASS, WARN or FAIL, with what to do. Nothing is written. Ends with 0 if nothing fails, 3 if a
    slide, table or model does, 5 if the machine does.
    """
    from dataclasses import replace

    from lrmil_cli.commands.inputs import expand_slides, of_entry, open_input
    from lrmil_cli.device import pick_device
    from lrmil_cli.doctor.check import FAIL, failed
    from lrmil_cli.doctor.machine import PROBE_SECONDS, check_machine, check_speed, encoder_speed, probe_speed
    from lrmil_cli.errors import LrmilError, UsageError
    from lrmil_cli.files.spreadsheet import SUFFIXES as SPREADSHEETS
    from lrmil_cli.progress import phase

    report = Report(json)
    tables = [p for p in paths or [] if p.lower().endswith(SPREADSHEETS)]
    if not tables and (table_only or cohort.asks_for_labels(ctx.params)):
        raise UsageError(
            "--label, --drop-missing, --class, --class-map and --table-only are about a table of slides; name one"
        )
    labels = cohort.labels_of(ctx.params)
    files = [*([model] if model else []), *(p for p in paths or [] if p.endswith((".safetensors", ".onnx")))]
    machine = check_machine(device)
    # Heavy imports come after the machine was found to have what they need.
    broken = any(c.name in ("packages", "device") and c.status == FAIL for c in machine)
    rate = None
    alone = table_only and set(paths or []) == set(tables)
    if not (broken or quick or files or alone):  # the encoder of a model says more than the probe's
        rate = probe_speed(device)
        machine.append(check_speed(rate))
    found = [_tell(report, "machine", "this machine", machine)]
    if (paths or model) and not broken:
        from lrmil_cli.doctor.model import check_fit, check_model
        from lrmil_cli.doctor.slide import check_slide
        from lrmil_cli.doctor.table import check_table
        from lrmil_cli.slides.tiles import TileSettings
        from lrmil_cli.units import Mpp

        slides = []
        for table in tables:
            checks, entries = check_table(table, labels, folds, compare=not quick)
            found.append(_tell(report, "table", table, checks))
            slides += [] if table_only else [of_entry(e) for e in entries]
        others = [p for p in paths or [] if p not in tables and not p.endswith((".safetensors", ".onnx"))]
        slides += expand_slides(others, say=report.say)
        opened = []
        for file in files:
            checks, good = check_model(file)
            found.append(_tell(report, "model", file, checks))
            opened += [good] if good is not None else []
        first = next((m for m in opened if m.tiles is not None), None)
        settings = first.tiles if first and first.tiles else TileSettings()
        settings = replace(settings, mpp=Mpp(mpp) if mpp else settings.mpp)
        if slides and first and first.encoders and not quick:
            where = pick_device(device)
            # A model with one encoder a fold encodes every tile with each of them.
            rate = encoder_speed(first.encoders[0].to(where), where, PROBE_SECONDS, settings.tile_px) / len(
                first.encoders
            )
        with phase("checking", len(slides), "slide") as told:
            for item in slides:
                told.item = item.slide_id
                checks = check_slide(
                    item.path,
                    settings,
                    slide_id=item.slide_id,
                    slide_mpp=slide_mpp,
                    manifest_mpp=item.mpp,
                    mask=item.mask,
                    min_tissue=item.min_tissue,
                    reader=reader,
                    image=image,
                    blocks=12 if quick else 40,
                    rate=rate,
                )
                if opened and all(c.name not in ("opens", "mpp") or c.status != FAIL for c in checks):
                    try:
                        with open_input(item, slide_mpp=slide_mpp, reader=reader, image=image) as slide:
                            checks += [check for m in opened for check in check_fit(m, slide)]
                    except LrmilError as e:
                        checks.append(failed("fit", e, str(item.path)))
                found.append(_tell(report, "slide", str(item.path), checks))
                told.advance()
    _conclude([c for checks in found for c in checks])


def _tell(report: Report, kind: str, subject: str, checks: list[Check]) -> list[Check]:
    """Print the checks of one machine, model, table or slide, and hand them on."""
    from dataclasses import asdict

    from lrmil_cli.doctor.check import worst

    report.result(
        {
            "command": "doctor",
            "kind": kind,
            "subject": subject,
            "status": worst(checks).lower(),
            "checks": [{k: v for k, v in asdict(c).items() if k != "code"} for c in checks],
        }
    )
    if not report.as_json:
        with line_cleared():
            print(printable(render(subject, checks)), flush=True)
    return checks


def render(subject: str, checks: list[Check]) -> str:
    """The checks of one subject for a terminal of 80 columns."""
    lines = [subject]
    for c in checks:
        head = f"  {c.status}  {c.name:<10} "
        lines += beside(head, [c.found]) + (beside(" " * len(head), [f"-> {c.fix}"]) if c.fix else [])
    return "\n".join(lines)


def _conclude(checks: list[Check]) -> None:
    """Raise what the exit code should be: the machine's comes before that of slides and models."""
    from lrmil_cli.doctor.check import FAIL
    from lrmil_cli.errors import InputError, MachineError

    codes = [c.code for c in checks if c.status == FAIL]
    if codes:
        kind = MachineError if MachineError.exit_code in codes else InputError
        raise kind(f"{len(codes)} of {len(checks)} checks failed; what to do stands under each")
