"""``lrmil train-teacher``: slides.csv + HR tiles + HR encoder -> teacher folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from lrmil_cli.commands import options
from lrmil_cli.commands.report import Report
from lrmil_cli.errors import UsageError


def train_teacher(
    manifest: options.Manifest,
    tiles: Annotated[str, typer.Option("--tiles", metavar="DIR", help="Folder of HR tile tables.", show_default=False)],
    encoder: options.Encoder,
    output: Annotated[str, typer.Option("-o", "--output", metavar="DIR", help="Folder of the teacher.", show_default=False)],
    features: Annotated[Optional[str], typer.Option("--features", metavar="DIR", help="Where HR features are kept and found.  [default: <output>/features]", show_default=False)] = None,
    head: Annotated[str, typer.Option("--head", help="MIL head.")] = "abmil",
    gated: Annotated[bool, typer.Option("--gated", help="Gated attention.")] = False,
    proj_dim: Annotated[int, typer.Option("--proj-dim", min=0, help="Width of a projection in front of the head; 0 for none.")] = 0,
    folds: Annotated[int, typer.Option("--folds", help="Folds, where the manifest defines no split.")] = 5,
    lr: Annotated[float, typer.Option("--lr", help="Learning rate (Adam).")] = 1e-4,
    epochs: Annotated[int, typer.Option("--epochs", min=1, help="Epochs at most.")] = 200,
    patience: Annotated[int, typer.Option("--patience", min=1, help="Epochs without a better validation AUC before stopping.")] = 20,
    weight_decay: Annotated[float, typer.Option("--weight-decay", min=0.0, help="Weight decay.")] = 0.0,
    class_weights: Annotated[bool, typer.Option("--class-weights", help="Weigh the loss against class frequency.")] = False,
    balanced_sampling: Annotated[bool, typer.Option("--balanced-sampling", help="Draw slides of all classes equally often.")] = False,
    embedding: options.Embedding = None,
    input_size: options.InputSize = None,
    random_init: options.RandomInit = False,
    batch_size: options.BatchSize = 16,
    device: options.Device = "auto",
    seed: options.Seed = 0,
    json: options.Json = False,
    overwrite: options.Overwrite = False,
) -> None:
    """Train the HR teacher: one MIL head a fold.

    Missing features are embedded first. Out-of-fold predictions, metrics and curves stand beside the heads.
    """
    from lrmil_cli.device import pick_device
    from lrmil_cli.encoders.spec import load_encoder
    from lrmil_cli.files.manifest import read_manifest
    from lrmil_cli.training import teacher
    from lrmil_cli.training.bags import embed_cohort, tile_tables
    from lrmil_cli.training.crossval import HeadSpec
    from lrmil_cli.training.folds import make_folds
    from lrmil_cli.training.loop import TrainSettings
    from lrmil_cli.training.metrics import show

    report = Report(json)
    if lr <= 0:
        raise UsageError("--lr must be above 0")
    where = pick_device(device)
    cohort = read_manifest(manifest, need_labels=True)
    parts = make_folds(cohort, folds, seed)
    tables = tile_tables(cohort, tiles)
    model = load_encoder(encoder, tile_px=tables[0][1]["settings"]["tile_px"], input_size=input_size, embedding=embedding, random_init=random_init)
    kept = Path(features) if features else Path(output) / "features"
    bags = embed_cohort(model, cohort, tables, kept, device=where, batch_size=batch_size, overwrite=overwrite, say=report.say)
    spec = HeadSpec(head, head_options(head, gated, proj_dim))
    settings = TrainSettings(lr, epochs, patience, weight_decay, class_weights, balanced_sampling, seed)
    header, there = teacher.train_teacher(cohort, parts, bags, spec, settings, output, kept, overwrite=overwrite, say=report.say)
    m = header["metrics"]
    scores = f"accuracy {show(m['accuracy'])}, AUC {show(m['auc'])} on {sum((parts == 'test').any(axis=1))} held-out slides"
    report.say(f"{output}: {'up to date; ' if there else ''}{scores}")
    report.result({"command": "train-teacher", "status": "skipped" if there else "ok", "output": output, "metrics": m, "folds": header["folds"]})


def head_options(head: str, gated: bool, proj_dim: int) -> dict:
    """Options of a head that differ from its defaults."""
    return ({"gated": True} if gated else {}) | ({"embed_dim": proj_dim} if proj_dim else {})
