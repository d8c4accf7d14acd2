"""``lrmil distill-student``: slides.csv + LR tiles + LR encoder + teacher -> model (LRMIL stage 2, step 2)."""

from __future__ import annotations

from pathlib import Path
from textwrap import fill

import typer

from lrmil_cli.commands import cohort, encoder_options, head_options, options, selective_options, student_options
from lrmil_cli.commands.next_step import after_student
from lrmil_cli.commands.report import Report
from lrmil_cli.commands.student_ahdmil import distill_screened
from lrmil_cli.commands.student_eagle import distill_eagle
from lrmil_cli.commands.student_methods import OF_SETTINGS, check_method, given
from lrmil_cli.commands.student_runs import task_of_teacher
from lrmil_cli.commands.student_zoommil import distill_zoom
from lrmil_cli.errors import UsageError
from lrmil_cli.targets.task import SLIDE

#: What runs a method other than LRMIL, given the report and all parameters by name.
OTHER_METHODS = {"ahdmil": distill_screened, "hdmil": distill_screened, "zoommil": distill_zoom, "eagle": distill_eagle}


def distill_student(
    ctx: typer.Context,
    manifest: options.Manifest,
    tiles: student_options.Tiles,
    encoder: encoder_options.Encoder,
    output: student_options.Output,
    method: student_options.Method = "lrmil",
    pairs: student_options.Pairs = None,
    teacher: student_options.Teacher = None,
    features: student_options.Features = None,
    lr_features: student_options.LrFeatures = None,
    label: cohort.Label = None,
    task: cohort.TaskName = None,
    loss: cohort.Loss = None,
    time: cohort.Time = None,
    event: cohort.Event = None,
    intervals: cohort.Intervals = None,
    risk_set: cohort.RiskSet = None,
    bag: cohort.BagName = None,
    drop_missing: cohort.DropMissing = False,
    classes: cohort.Classes = None,
    class_map: cohort.ClassMap = None,
    baseline_encoder: student_options.BaselineEncoder = None,
    no_baseline: student_options.NoBaseline = False,
    also_encoder: student_options.AlsoEncoder = None,
    no_fixture: student_options.NoFixture = False,
    mid_pairs: selective_options.MidPairs = None,
    mid_features: selective_options.MidFeatures = None,
    picker: selective_options.Picker = None,
    top_hr: selective_options.TopHr = None,
    preset: student_options.Preset = "lrmil",
    lambda_bag: student_options.LambdaBag = None,
    lambda_soft: student_options.LambdaSoft = None,
    lambda_hard: student_options.LambdaHard = None,
    temperature_bag: student_options.TemperatureBag = None,
    temperature_attention: student_options.TemperatureAttention = None,
    region_attention: student_options.RegionAttention = None,
    soft_reduction: student_options.SoftReduction = None,
    hard: student_options.Hard = None,
    k: student_options.K = None,
    unmatched: student_options.Unmatched = None,
    missing_teacher: student_options.MissingTeacher = None,
    attention_row: student_options.AttentionRow = None,
    crossfit: student_options.Crossfit = None,
    screen_px: selective_options.ScreenPx = None,
    screen_source: selective_options.ScreenSource = None,
    branches: selective_options.Branches = None,
    p_soft: selective_options.PSoft = None,
    cross_ema: selective_options.CrossEma = None,
    freeze_dmin: selective_options.FreezeDmin = None,
    lipn_lr: selective_options.LipnLr = None,
    dmin_lr: selective_options.DminLr = None,
    keep_rate_window: selective_options.KeepRateWindow = None,
    official_modes: selective_options.OfficialModes = False,
    head: head_options.Head = "abmil",
    head_option: student_options.HeadOption = None,
    gated: head_options.Gated = False,
    proj_dim: head_options.ProjDim = 0,
    classifier: head_options.Classifier = None,
    folds: head_options.Folds = 5,
    by_site: cohort.BySite = None,
    fold: head_options.Fold = None,
    seeds: head_options.Seeds = 1,
    keep: student_options.Keep = None,
    recipe: head_options.Recipe = "common",
    lr: head_options.LearningRate = None,
    epochs: student_options.Epochs = None,
    patience: student_options.Patience = None,
    weight_decay: head_options.WeightDecay = None,
    class_weights: head_options.ClassWeights = False,
    balanced_sampling: head_options.BalancedSampling = False,
    embedding: encoder_options.Embedding = None,
    input_size: encoder_options.InputSize = None,
    random_init: encoder_options.RandomInit = False,
    batch_size: options.BatchSize = None,
    workers: options.Workers = None,
    on_bad_tile: options.OnBadTile = "fail",
    dtype: options.Dtype = None,
    device: options.Device = "auto",
    memory: options.Memory = None,
    no_onnx: student_options.NoOnnx = False,
    seed: options.Seed = 0,
    json: options.Json = False,
    overwrite: options.Overwrite = False,
) -> None:
    """Stage 2: distil the teacher into an LR student, or into one that picks the HR tiles to read (--method ahdmil,
    hdmil, zoommil, eagle).

    The student head learns from the labels, the teacher's predictions and its attention. The model file holds the LR
    encoder and one head a fold; predict needs nothing else. Beside it a receipt says what distillation bought: teacher,
    LR-only student and distilled student on the same held-out patients.
    """
    from lrmil_cli.device import pick_device
    from lrmil_cli.distill.distill_student import train_student
    from lrmil_cli.distill.settings import preset_settings
    from lrmil_cli.distill.student_encoders import EncoderArgs
    from lrmil_cli.evaluation.receipt_page import headline
    from lrmil_cli.training.crossval import has_projection, head_spec
    from lrmil_cli.training.recipes import recipe_options, train_settings
    from lrmil_cli.training.seeds import check_seeds
    from lrmil_cli.training.streamed import room_for

    report = Report(json)
    options.check_dtype(dtype)
    target = Path(output)
    if target.suffix != ".safetensors":
        raise UsageError(f"-o {output}: the model's name must end in .safetensors")
    check_method(ctx, method)
    if method in OTHER_METHODS:
        if cohort.bag_asked(values := ctx.params) != SLIDE:
            raise UsageError(
                f"--method {method} learns from slides, and {values['teacher']} is a teacher of patients, which only "
                "--method lrmil can follow"
            )
        return OTHER_METHODS[method](report, {**ctx.params, "head": head if given(ctx, "head") else None})
    check_seeds(seeds, keep)
    if no_baseline and baseline_encoder:
        raise UsageError("--no-baseline and --baseline-encoder exclude each other")
    values = ctx.params
    asked = {name: values[name] for name in OF_SETTINGS if values[name] is not None}
    distill = preset_settings(preset, asked)
    own = recipe_options(recipe, head, head_options.head_options(gated, proj_dim, classifier, head_option))
    like = task_of_teacher(values)
    wanted = cohort.task_asked(values, like)
    spec = head_spec(head, own, wanted)
    settings = train_settings(recipe, head, {name: values[name] for name in head_options.OF_TRAINING}, wanted)
    if distill.hard == "feature" and distill.lambda_hard and not has_projection(spec):
        report.warn(
            "--hard feature without --proj-dim changes neither attention nor prediction: the features are frozen"
        )
    where = pick_device(device)
    result = train_student(
        cohort.read_cohort(report, manifest, values, like=like),
        tiles=tiles,
        pairs=pairs,
        encoder=EncoderArgs(encoder, input_size, embedding, random_init),
        teacher=teacher,
        features=features,
        lr_features=Path(lr_features) if lr_features else target.with_suffix(".features"),
        baseline=None if no_baseline else baseline_encoder or "auto",
        also=also_encoder,
        head=spec,
        preset=preset,
        distill=distill,
        training=settings,
        folds=folds,
        fold=fold,
        output=target,
        device=where,
        room=room_for(where, options.memory_bytes(memory)),
        batch_size=batch_size,
        overwrite=overwrite,
        say=report.say,
        warn=report.warn,
        workers=workers,
        on_bad_tile=on_bad_tile,
        dtype=dtype,
        own_fixture=not no_fixture,
        seeds=seeds,
        keep=keep,
        bag=cohort.bag_asked(values),
    )
    if fold is not None and not result.there:
        report.say(f"{target}: fold {fold} is there; the same command without --fold puts the model together")
        return report.result({"command": "distill-student", "status": "ok", "output": str(target), "fold": fold})
    if not no_onnx:
        _write_graphs(report, output)
    if result.receipt is None:
        made = f"{target}: {result.text}\nno receipt: the split holds out no test slides to judge on"
    else:
        made = (
            f"{target}: {result.text}\n{fill(headline(result.receipt), 80)}\n"
            f"receipt: {target.with_suffix('.receipt.html')}"
        )
    report.end(made, after_student(manifest, str(target)))
    report.result(
        {
            "command": "distill-student",
            "status": "skipped" if result.there else "ok",
            "output": str(target),
            "preset": preset,
            "metrics": result.metrics,
            "receipt": result.receipt,
        }
    )


def _write_graphs(report: Report, model: str) -> None:
    """The graphs by which a CPU predicts without torch; a model that has none still predicts with torch."""
    from lrmil_cli.errors import LrmilError
    from lrmil_cli.inference.onnx_files import export_files

    try:
        made = export_files(model, replace=True, say=report.detail).files
    except LrmilError as e:
        report.warn(f"no ONNX graphs, so that predicting imports torch: {e} (--no-onnx leaves them out)")
    else:
        report.detail(", ".join(map(str, made)))
