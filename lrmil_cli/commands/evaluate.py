"""``lrmil evaluate``: predictions of one or several models + labels -> metrics with intervals, curves, one page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from lrmil_cli.commands import options
from lrmil_cli.commands.report import Report
from lrmil_cli.errors import InputError, UsageError

if TYPE_CHECKING:
    from lrmil_cli.evaluation.evaluate_models import Evaluation

#: In the order they are written; the last one marks the folder as complete.
FILES = ("evaluation.png", "evaluation.html", "evaluation.md", "metrics.csv", "differences.csv", "evaluation.json")


def evaluate(
    predictions: Annotated[
        list[str],
        typer.Argument(
            metavar="[NAME=]PRED...",
            show_default=False,
            help="A model file or a teacher folder (their out-of-fold predictions), a predictions table, or the folder that predict wrote. NAME= says what to call it.",
        ),
    ],
    output: Annotated[
        str,
        typer.Option(
            "-o",
            "--output",
            metavar="DIR",
            help="Folder for evaluation.html, .md, .json and .png, metrics.csv and differences.csv.",
            show_default=False,
        ),
    ],
    slides: Annotated[
        Optional[str],
        typer.Option(
            "--slides",
            metavar="slides.csv",
            help="Labels and patients. Needed for the folder that predict wrote; tables bring their own.",
            show_default=False,
        ),
    ] = None,
    level: Annotated[str, typer.Option("--level", help="slide, or patient: mean of a patient's slides.")] = "slide",
    metric: Annotated[
        Optional[list[str]],
        typer.Option(
            "--metric",
            help="Only this metric; repeat for more: accuracy, auc, balanced_accuracy, f1_weighted, brier, log_loss.",
            show_default=False,
        ),
    ] = None,
    positive: Annotated[
        Optional[str],
        typer.Option(
            "--positive",
            metavar="CLASS",
            help="Of two classes, the one that ROC, calibration and sensitivity are about.  [default: the second]",
            show_default=False,
        ),
    ] = None,
    bootstrap: Annotated[
        int, typer.Option("--bootstrap", min=0, help="Draws of patients for the 95 % intervals; 0 for none.")
    ] = 2000,
    receipt: Annotated[
        bool,
        typer.Option(
            "--receipt",
            help="Also write the receipt of each model file given (NAME.receipt.html, .md, .json): teacher, LR-only and distilled student, as distill-student does, at this --level.",
        ),
    ] = False,
    seed: options.Seed = 0,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")] = False,
    overwrite: options.Overwrite = False,
) -> None:
    """Judge predictions: metrics with intervals, ROC, calibration, confusion.

    Several models are also compared pair by pair, on the slides that all of them predicted. Open evaluation.html first.

    Example: lrmil evaluate teacher/ student=model.safetensors -o evaluation
    """
    from lrmil_cli.evaluation.evaluate_models import evaluate_models, inputs_for_digest, pairs
    from lrmil_cli.evaluation.evaluation_files import as_json
    from lrmil_cli.evaluation.join_predictions import join
    from lrmil_cli.evaluation.metrics import METRICS
    from lrmil_cli.evaluation.predictions import read_predictions
    from lrmil_cli.evaluation.scores import LEVELS
    from lrmil_cli.files.header import digest, make_header, step, up_to_date
    from lrmil_cli.files.manifest import read_manifest

    report = Report(json)
    folder = Path(output)
    if output == "-" or (folder.exists() and not folder.is_dir()):
        raise UsageError(f"-o {output}: give a folder")
    for option, values, known in (("--level", [level], LEVELS), ("--metric", metric or [], METRICS)):
        for value in values:
            if value not in known:
                raise UsageError(f"{option} {value}: choose one of {', '.join(known)}")
    found = [read_predictions(p) for p in predictions]
    models = join(found, read_manifest(slides) if slides else None)
    distilled = [p for p in found if receipt and p.source.endswith(".safetensors")]
    if receipt and not distilled:
        raise UsageError("--receipt: none of the arguments is a model file of distill-student")
    classes = models[0].classes
    if positive is not None and (positive not in classes or len(classes) != 2):
        raise UsageError(
            f"--positive {positive}: the classes are {', '.join(classes)}"
            + ("" if len(classes) == 2 else "; it is for two classes")
        )
    for m in models:
        for leak in m.leaks:
            report.warn(f"{m.name}: {leak}")
        for remark in m.remarks:
            report.say(f"{m.name}: {remark}")

    chosen = None if not metric else [n for n in METRICS if n in metric]
    settings = {
        "level": level,
        "metrics": chosen,
        "positive": positive,
        "bootstrap": bootstrap,
        "seed": seed,
        "models": [m.name for m in models],
    }
    inputs = {m.name: digest({"predictions": inputs_for_digest(m)}, {}) for m in models}
    wanted = digest(settings, inputs)
    files = [f for f in FILES if f != "differences.csv" or len(models) > 1]
    _check_folder(folder)
    if distilled:
        from lrmil_cli.evaluation.receipt import receipt_header, write_receipt

        for p in distilled:  # before anything is written
            receipt_header(p.source)
    for p in distilled:
        write_receipt(p.source, output=folder / f"{p.name}.receipt", level=level, draws=bootstrap, seed=seed)
        report.say(f"receipt: {folder / p.name}.receipt.html")
    if up_to_date(folder / FILES[-1], wanted, _read_header, overwrite) and all((folder / f).exists() for f in files):
        report.say(f"{folder}: up to date")
        _tell(report, folder, "skipped", _read_header(folder / FILES[-1]))
        return
    with report.progress("models", len(models) + len(pairs(len(models)))) as bar:
        evaluation = evaluate_models(
            models,
            level=level,
            metrics=chosen,
            positive=None if positive is None else classes.index(positive),
            draws=bootstrap,
            seed=seed,
            done=bar,
        )
    history = [step("evaluate", settings, inputs)]
    record = make_header("evaluation", settings=settings, **as_json(evaluation), history=history)
    _write(folder, evaluation, record)
    if len(models) > 1 and not evaluation.differences:
        report.warn(f"no {level} was predicted by all models, so they cannot be compared")
    report.say(f"written: {folder / 'evaluation.html'}")
    _tell(report, folder, "ok", record)


def _read_header(path: Path) -> dict[str, Any]:
    from lrmil_cli.files.header import parse_header

    try:
        return parse_header(path.read_text(encoding="utf-8"), "evaluation", str(path))
    except (OSError, UnicodeDecodeError) as e:
        raise InputError(f"{path}: cannot be read ({type(e).__name__})") from e


def _check_folder(folder: Path) -> None:
    """A teacher's folder has a metrics.csv of its own, which must not be lost."""
    from lrmil_cli.files.tables import read_table_header

    for name, kind in (("metrics.csv", "evaluation"), ("differences.csv", "differences")):
        if (folder / name).exists():
            try:
                read_table_header(folder / name, kind)
            except InputError as e:
                raise UsageError(
                    f"{folder / name} exists and was not made by this command; choose another --output"
                ) from e


def _write(folder: Path, evaluation: Evaluation, record: dict[str, Any]) -> None:
    import json

    from lrmil_cli.evaluation.evaluation_files import differences_frame, metrics_frame
    from lrmil_cli.evaluation.evaluation_page import CURVE_PICTURE, blocks, title
    from lrmil_cli.evaluation.page import Picture, to_html, to_markdown
    from lrmil_cli.evaluation.plots import evaluation_picture
    from lrmil_cli.files.atomic import remove, write_bytes, write_text
    from lrmil_cli.files.header import make_header
    from lrmil_cli.files.tables import write_table

    png = evaluation_picture([(m.name, m.cases) for m in evaluation.models], evaluation.classes, evaluation.positive)
    page = blocks(evaluation, png, record["history"][-1])
    common = {"settings": record["settings"], "history": record["history"]}
    remove(folder / FILES[-1])  # it marks the folder as complete
    remove(folder / CURVE_PICTURE)  # of an earlier run with a cascade
    for picture in page:
        if isinstance(picture, Picture):
            write_bytes(folder / picture.name, picture.png)
    write_text(folder / "evaluation.html", to_html(title(evaluation), page))
    write_text(folder / "evaluation.md", to_markdown(title(evaluation), page))
    write_table(folder / "metrics.csv", make_header("evaluation", **common), metrics_frame(evaluation))
    if len(evaluation.models) > 1:
        write_table(folder / "differences.csv", make_header("differences", **common), differences_frame(evaluation))
    else:
        remove(folder / "differences.csv")  # of an earlier run with more models
    write_text(folder / "evaluation.json", json.dumps(record, indent=1, allow_nan=False) + "\n")


def _tell(report: Report, folder: Path, status: str, record: dict[str, Any]) -> None:
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
        from lrmil_cli.commands.evaluation_tables import print_tables

        print_tables(record)
