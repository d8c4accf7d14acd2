"""``lrmil distill-student``: slides.csv + LR tiles + LR encoder + teacher -> model (LRMIL stage 2, step 2)."""

from __future__ import annotations

from pathlib import Path
from textwrap import fill
from typing import Annotated, Optional

import typer

from lrmil_cli.commands import options, student_options
from lrmil_cli.commands.report import Report
from lrmil_cli.commands.student_ahdmil import distill_screened
from lrmil_cli.commands.student_zoommil import distill_zoom
from lrmil_cli.errors import UsageError

Weight = Optional[float]
#: What runs a method other than LRMIL, given the report and all parameters by name.
OTHER_METHODS = {"ahdmil": distill_screened, "hdmil": distill_screened, "zoommil": distill_zoom}


def distill_student(
    ctx: typer.Context,
    manifest: options.Manifest,
    tiles: Annotated[str, typer.Option("--tiles", metavar="DIR", help="Folder of LR tile tables.", show_default=False)],
    encoder: options.Encoder,
    output: Annotated[
        str, typer.Option("-o", "--output", metavar="MODEL.safetensors", help="The model.", show_default=False)
    ],
    method: student_options.Method = "lrmil",
    pairs: Annotated[
        Optional[str], typer.Option("--pairs", metavar="DIR", help="Folder of pairs tables.", show_default=False)
    ] = None,
    teacher: Annotated[
        Optional[str],
        typer.Option("--teacher", metavar="DIR", help="Folder made by train-teacher.", show_default=False),
    ] = None,
    features: Annotated[
        Optional[str],
        typer.Option(
            "--features",
            metavar="DIR",
            help="HR features.  [default: the folder that teacher.json names]",
            show_default=False,
        ),
    ] = None,
    lr_features: Annotated[
        Optional[str],
        typer.Option(
            "--lr-features",
            metavar="DIR",
            help="Where LR features are kept.  [default: <model>.features]",
            show_default=False,
        ),
    ] = None,
    baseline_encoder: Annotated[
        Optional[str],
        typer.Option(
            "--baseline-encoder",
            metavar="SPEC",
            help="Encoder of the LR-only student that the receipt compares with.  [default: the one that --encoder was distilled from]",
            show_default=False,
        ),
    ] = None,
    no_baseline: Annotated[
        bool, typer.Option("--no-baseline", help="Train no LR-only student; the receipt then lacks it.")
    ] = False,
    mid_pairs: student_options.MidPairs = None,
    mid_features: student_options.MidFeatures = None,
    preset: Annotated[
        str, typer.Option("--preset", help="lrmil, lr-only, patch, bag, bag-soft, bag-hard or official-code.")
    ] = "lrmil",
    lambda_bag: Annotated[
        Weight,
        typer.Option(
            "--lambda-bag", min=0.0, help="Weight of bag distillation (eq. 3).  [default: 1]", show_default=False
        ),
    ] = None,
    lambda_soft: Annotated[
        Weight,
        typer.Option(
            "--lambda-soft",
            min=0.0,
            help="Weight of soft attention matching (eq. 4).  [default: 1]",
            show_default=False,
        ),
    ] = None,
    lambda_hard: Annotated[
        Weight,
        typer.Option(
            "--lambda-hard",
            min=0.0,
            help="Weight of top-/bottom-k supervision (eq. 5).  [default: 0.5]",
            show_default=False,
        ),
    ] = None,
    temperature_bag: Annotated[
        Weight, typer.Option("--temp-bag", help="Temperature of eq. 3.  [default: 1]", show_default=False)
    ] = None,
    temperature_attention: Annotated[
        Weight, typer.Option("--temp-attn", help="Temperature of eq. 4.  [default: 1]", show_default=False)
    ] = None,
    region_attention: Annotated[
        Optional[str],
        typer.Option(
            "--region-attention",
            help="logmeanexp, mean-logit, logsumexp, max or mean-weight.  [default: logmeanexp]",
            show_default=False,
        ),
    ] = None,
    soft_reduction: Annotated[
        Optional[str], typer.Option("--soft-reduction", help="sum or instances.  [default: sum]", show_default=False)
    ] = None,
    hard: Annotated[
        Optional[str],
        typer.Option(
            "--hard",
            help="attention, or feature (needs --proj-dim to have an effect).  [default: attention]",
            show_default=False,
        ),
    ] = None,
    k: Annotated[
        Optional[int],
        typer.Option(
            "--k", min=1, help="Regions at the top and at the bottom for eq. 5.  [default: 4]", show_default=False
        ),
    ] = None,
    unmatched: Annotated[
        Optional[str],
        typer.Option(
            "--unmatched",
            help="LR tiles without HR: leave-out, or zero (as the official code).  [default: leave-out]",
            show_default=False,
        ),
    ] = None,
    missing_teacher: Annotated[
        Optional[str],
        typer.Option(
            "--missing-teacher",
            help="error, or ce-only: train such slides with the label alone.  [default: error]",
            show_default=False,
        ),
    ] = None,
    attention_row: Annotated[
        Optional[str],
        typer.Option(
            "--attention-row",
            help="Of a teacher with attention a class: the row of its predicted class, or of the label.  [default: predicted]",
            show_default=False,
        ),
    ] = None,
    crossfit: Annotated[
        Optional[int],
        typer.Option(
            "--crossfit",
            min=2,
            help="Inner folds for targets by heads that did not see the slide.  [default: off]",
            show_default=False,
        ),
    ] = None,
    screen_px: student_options.ScreenPx = None,
    screen_source: student_options.ScreenSource = None,
    branches: student_options.Branches = None,
    p_soft: student_options.PSoft = None,
    cross_ema: student_options.CrossEma = None,
    freeze_dmin: student_options.FreezeDmin = None,
    lipn_lr: student_options.LipnLr = None,
    dmin_lr: student_options.DminLr = None,
    keep_rate_window: student_options.KeepRateWindow = None,
    official_modes: student_options.OfficialModes = False,
    head: options.Head = "abmil",
    head_option: options.HeadOption = None,
    gated: options.Gated = False,
    proj_dim: options.ProjDim = 0,
    classifier: options.Classifier = None,
    folds: options.Folds = 5,
    recipe: options.Recipe = "common",
    lr: options.HeadLearningRate = None,
    epochs: options.HeadEpochs = None,
    patience: options.HeadPatience = None,
    weight_decay: options.WeightDecay = None,
    class_weights: options.ClassWeights = False,
    balanced_sampling: options.BalancedSampling = False,
    embedding: options.Embedding = None,
    input_size: options.InputSize = None,
    random_init: options.RandomInit = False,
    batch_size: options.BatchSize = None,
    workers: options.Workers = None,
    on_bad_tile: options.OnBadTile = "fail",
    device: options.Device = "auto",
    onnx: Annotated[
        bool,
        typer.Option(
            "--onnx",
            help="Also write the model's ONNX graphs, as `lrmil export-onnx` does, for predicting without torch.",
        ),
    ] = False,
    seed: options.Seed = 0,
    json: options.Json = False,
    overwrite: options.Overwrite = False,
) -> None:
    """Stage 2: distil the teacher into an LR student, or into one that picks the HR tiles to read (--method ahdmil, hdmil, zoommil).

    The student head learns from the labels, the teacher's predictions and its attention. The model file holds the LR
    encoder and one head a fold; predict needs nothing else. Beside it a receipt says what distillation bought: teacher,
    LR-only student and distilled student on the same held-out patients.
    """
    from lrmil_cli.device import pick_device
    from lrmil_cli.distill.distill_student import EncoderArgs, train_student
    from lrmil_cli.distill.settings import preset_settings
    from lrmil_cli.evaluation.receipt_page import headline
    from lrmil_cli.files.manifest import read_manifest
    from lrmil_cli.training.crossval import has_projection, head_spec
    from lrmil_cli.training.recipes import train_settings

    report = Report(json)
    target = Path(output)
    if target.suffix != ".safetensors":
        raise UsageError(f"-o {output}: the model's name must end in .safetensors")
    student_options.check_method(ctx, method)
    if method in OTHER_METHODS:
        return OTHER_METHODS[method](report, ctx.params)
    if no_baseline and baseline_encoder:
        raise UsageError("--no-baseline and --baseline-encoder exclude each other")
    changes = {
        "lambda_bag": lambda_bag,
        "lambda_soft": lambda_soft,
        "lambda_hard": lambda_hard,
        "temperature_bag": temperature_bag,
        "temperature_attention": temperature_attention,
        "region_attention": region_attention,
        "soft_reduction": soft_reduction,
        "hard": hard,
        "k": k,
        "unmatched": unmatched,
        "missing_teacher": missing_teacher,
        "crossfit": crossfit,
        "attention_row": attention_row,
    }
    distill = preset_settings(preset, {n: v for n, v in changes.items() if v is not None})
    spec = head_spec(head, options.head_options(gated, proj_dim, classifier, head_option))
    settings = train_settings(
        recipe,
        head,
        {
            "lr": lr,
            "epochs": epochs,
            "patience": patience,
            "weight_decay": weight_decay,
            "class_weights": class_weights,
            "balanced_sampling": balanced_sampling,
            "seed": seed,
        },
    )
    if distill.hard == "feature" and distill.lambda_hard and not has_projection(spec):
        report.warn(
            "--hard feature without --proj-dim changes neither attention nor prediction: the features are frozen"
        )
    result = train_student(
        read_manifest(manifest, need_labels=True),
        tiles=tiles,
        pairs=pairs,
        encoder=EncoderArgs(encoder, input_size, embedding, random_init),
        teacher=teacher,
        features=features,
        lr_features=Path(lr_features) if lr_features else target.with_suffix(".features"),
        baseline=None if no_baseline else baseline_encoder or "auto",
        head=spec,
        preset=preset,
        distill=distill,
        training=settings,
        folds=folds,
        output=target,
        device=pick_device(device),
        batch_size=batch_size,
        overwrite=overwrite,
        say=report.say,
        warn=report.warn,
        workers=workers,
        on_bad_tile=on_bad_tile,
    )
    if onnx:
        from lrmil_cli.inference.onnx_files import export_files

        report.say(", ".join(map(str, export_files(output, overwrite=True, say=report.detail).files)))
    if result.receipt is None:
        report.say(f"{target}: {result.text}\nno receipt: the split holds out no test slides to judge on")
    else:
        report.say(
            f"{target}: {result.text}\n{fill(headline(result.receipt), 80)}\nreceipt: {target.with_suffix('.receipt.html')}"
        )
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
