"""``lrmil evaluate``: predictions of one or several models + labels -> metrics with intervals, curves, one page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from lrmil_cli.commands import cohort, evaluate_external, evaluate_targets, options
from lrmil_cli.commands.report import Report
from lrmil_cli.errors import UsageError

Predictions = Annotated[
    list[str],
    typer.Argument(
        metavar="[NAME=]PRED...",
        help="A model file or a teacher folder (their out-of-fold predictions), a predictions table, "
        "or the folder that predict wrote. NAME= says what to call it.",
    ),
]
Output = Annotated[
    str,
    typer.Option(
        "-o",
        "--output",
        metavar="DIR",
        help="Folder for evaluation.html, .md, .json and .png, metrics.csv and differences.csv.",
    ),
]
Slides = Annotated[
    Optional[str],
    typer.Option(
        "--slides",
        metavar="slides.csv",
        help="Labels and patients. Needed for the folder that predict wrote; tables bring their own.",
    ),
]
Level = Annotated[
    str,
    typer.Option(
        "--level",
        help="slide, or patient: mean of a patient's slides.  [default: slide; official code]",
        show_default=False,
    ),
]
Metric = Annotated[
    Optional[list[str]],
    typer.Option(
        "--metric",
        help="Only this metric; repeat for more: accuracy, auc, balanced_accuracy, f1_weighted, brier, log_loss; of "
        "numbers mae, rmse, r2, pearson, spearman; of survival c_harrell, c_uno, ibs, auc, brier.",
    ),
]
Positive = Annotated[
    Optional[str],
    typer.Option(
        "--positive",
        metavar="CLASS",
        help="Of two classes, the one that ROC, calibration and sensitivity are about.  "
        "[default: the second; official code]",
    ),
]
By = Annotated[
    Optional[str],
    typer.Option(
        "--by",
        metavar="COLUMN[,COLUMN]",
        help="Also judge the parts that columns of --slides make, such as sex,scanner; sites are shown where they are "
        "known.",
    ),
]
Bootstrap = Annotated[
    int,
    typer.Option(
        "--bootstrap",
        min=0,
        help="Draws of patients for the 95 % intervals; 0 for none.  [default: 2000; ours: the paper has no intervals]",
        show_default=False,
    ),
]
Receipt = Annotated[
    bool,
    typer.Option(
        "--receipt",
        help="Also write the receipt of each model file given (NAME.receipt.html, .md, .json): "
        "teacher, LR-only and distilled student, as distill-student does, at this --level.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]


def evaluate(
    ctx: typer.Context,
    predictions: Predictions,
    output: Output,
    slides: Slides = None,
    label: cohort.Label = None,
    time: cohort.Time = None,
    event: cohort.Event = None,
    drop_missing: cohort.DropMissing = False,
    classes: cohort.Classes = None,
    class_map: cohort.ClassMap = None,
    level: Level = "slide",
    metric: Metric = None,
    positive: Positive = None,
    by: By = None,
    horizon: evaluate_targets.Horizon = None,
    adjust: evaluate_targets.Adjust = None,
    profile: evaluate_external.Profile = None,
    at_threshold: evaluate_external.Threshold = None,
    share_interval: evaluate_external.IntervalOf = None,
    checklist: evaluate_external.Checklist = None,
    bootstrap: Bootstrap = 2000,
    receipt: Receipt = False,
    seed: options.Seed = 0,
    json: Json = False,
    overwrite: options.Overwrite = False,
) -> None:
    """Judge predictions: metrics with intervals, ROC, calibration, confusion; of numbers and survival their own.

    Several models are also compared pair by pair, on the slides that all of them predicted. Open evaluation.html first.

    Example: lrmil evaluate teacher/ student=model.safetensors -o evaluation
    """
    from lrmil_cli.commands.evaluate_outputs import FILES, check_folder, read_header, tell, write_files
    from lrmil_cli.evaluation.evaluate_models import inputs_for_digest
    from lrmil_cli.evaluation.join_predictions import join, task_of_all
    from lrmil_cli.evaluation.judging import JUDGING
    from lrmil_cli.evaluation.predictions import read_predictions
    from lrmil_cli.evaluation.scores import LEVELS
    from lrmil_cli.files.header import digest, make_header, step, up_to_date
    from lrmil_cli.files.names import fits_file_name
    from lrmil_cli.files.patients import patients_of
    from lrmil_cli.targets.task import PATIENT

    report = Report(json)
    folder = Path(output)
    if output == "-" or (folder.exists() and not folder.is_dir()):
        raise UsageError(f"-o {output}: give a folder")
    evaluate_external.check_options(profile, at_threshold, share_interval, checklist)
    found = [read_predictions(p) for p in predictions]
    task = task_of_all(found)
    judging = JUDGING[task.kind]
    for option, values, known in (("--level", [level], LEVELS), ("--metric", metric or [], judging.metrics)):
        for value in values:
            if value not in known:
                raise UsageError(f"{option} {value}: choose one of {', '.join(known)}")
    evaluate_targets.check_task(task, found[0].source, ctx.params)
    listed = None
    if slides:
        listed = cohort.read_cohort(report, slides, ctx.params, need_labels=False, need_slides=False, like=task)
        evaluate_targets.check_columns(task, listed)
    if any(p.bag == PATIENT for p in found):
        if profile is not None:
            raise UsageError(f"--profile {profile} counts slides, and these are answers for patients; leave it out")
        level, listed = PATIENT, None if listed is None else patients_of(listed)
    columns = [name.strip() for name in (by or "").split(",") if name.strip()]
    models = join(found, listed, columns)
    distilled = [p for p in found if receipt and p.source.endswith(".safetensors")]
    if receipt and not distilled:
        raise UsageError("--receipt: none of the arguments is a model file of distill-student")
    for p in distilled:
        if not fits_file_name(p.name):
            raise UsageError(f"--receipt: a model called {p.name!r} cannot name files in {folder}; choose NAME=PATH")
    class_names = models[0].classes
    if positive is not None and (positive not in class_names or len(class_names) != 2):
        raise UsageError(
            f"--positive {positive}: the classes are {', '.join(class_names)}"
            + ("" if len(class_names) == 2 else "; it is for two classes")
        )
    for m in models:
        for leak in m.leaks:
            report.warn(f"{m.name}: {leak}")
        for remark in m.remarks:
            report.say(f"{m.name}: {remark}")

    chosen = None if not metric else [n for n in judging.metrics if n in metric]
    beside = evaluate_targets.adjust_cells(listed, adjust)
    settings = {
        "level": level,
        "metrics": chosen,
        "positive": positive,
        "bootstrap": bootstrap,
        "seed": seed,
        "models": [m.name for m in models],
        **({"by": columns} if columns else {}),
        **({"profile": [profile, at_threshold or "0.5", share_interval or "wilson"]} if profile else {}),
        **({"checklist": checklist} if checklist else {}),
        **({"horizon": sorted(set(horizon))} if horizon else {}),
        **({"adjust": list(beside)} if beside else {}),
    }
    outside = []
    at = None if positive is None else class_names.index(positive)
    if profile is not None:
        outside = evaluate_external.judge(models, listed, level, at, at_threshold, share_interval)
    inputs = {m.name: digest({"predictions": inputs_for_digest(m)}, {}) for m in models}
    inputs |= {"adjust": digest({"cells": beside}, {})} if beside else {}
    wanted = digest(settings, inputs)
    files = [f for f in FILES if f != "differences.csv" or len(models) > 1]
    files += [f"checklist.{checklist}.md"] if checklist else []
    check_folder(folder)
    if distilled:
        from lrmil_cli.evaluation.receipt import receipt_header, write_receipt

        for p in distilled:  # before anything is written
            receipt_header(p.source)
    for p in distilled:
        write_receipt(p.source, output=folder / f"{p.name}.receipt", level=level, draws=bootstrap, seed=seed)
        report.say(f"receipt: {folder / p.name}.receipt.html")
    if up_to_date(folder / FILES[-1], wanted, read_header, overwrite) and all((folder / f).exists() for f in files):
        report.say(f"{folder}: up to date")
        tell(report, folder, "skipped", read_header(folder / FILES[-1]))
        return
    of_task = {"positive": at, "external": outside} if task.classes else {"horizons": horizon, "adjust": beside}
    evaluation = judging.evaluate(
        models, level=level, metrics=chosen, draws=bootstrap, seed=seed, by=columns, **of_task
    )
    for warning in judging.warnings(evaluation):
        report.warn(warning)
    history = [step("evaluate", settings, inputs)]
    record = make_header("evaluation", settings=settings, **judging.as_json(evaluation), history=history)
    pictures = []
    for m, own in zip(models, outside):
        assert listed is not None, "the profile asks for it"
        shown, missing = evaluate_external.pictures_of(m, own, listed)
        pictures.append(shown)
        for why in missing:
            report.warn(f"{m.name}: {why}")
    write_files(folder, judging, evaluation, record, pictures, checklist)
    if len(models) > 1 and not evaluation.differences:
        report.warn(f"no {level} was predicted by all models, so they cannot be compared")
    report.say(f"written: {folder / 'evaluation.html'}")
    tell(report, folder, "ok", record)
