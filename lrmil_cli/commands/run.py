"""``lrmil run``: the whole chain by one command, from a table of slides to receipt, predictions and maps."""

from __future__ import annotations

from pathlib import Path

import typer

from lrmil_cli.commands import (
    cohort,
    common,
    encoder_options,
    head_options,
    options,
    run_options,
    stage1_options,
    student_options,
    tile,
)
from lrmil_cli.commands.report import Report, logged


def run(
    ctx: typer.Context,
    output: run_options.Output,
    slides: run_options.Slides = None,
    config: run_options.Config = None,
    encoder: encoder_options.EncoderOrNone = None,
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
    mpp: run_options.Mpp = 2.0,
    hr_mpp: run_options.HrMpp = 0.5,
    tile_px: tile.TilePx = 256,
    min_tissue: tile.MinTissue = 0.1,
    embedding: encoder_options.Embedding = None,
    input_size: encoder_options.InputSize = None,
    student: stage1_options.Student = None,
    one_encoder: run_options.OneEncoder = False,
    stage1_epochs: run_options.Stage1Epochs = 50,
    head: head_options.Head = "abmil",
    head_option: head_options.HeadOption = None,
    folds: head_options.Folds = 5,
    by_site: cohort.BySite = None,
    recipe: head_options.Recipe = "common",
    epochs: head_options.Epochs = None,
    preset: student_options.Preset = "lrmil",
    further: run_options.Set = None,
    device: options.Device = "auto",
    batch_size: options.BatchSize = None,
    workers: options.Workers = None,
    memory: options.Memory = None,
    dtype: options.Dtype = None,
    on_bad_slide: run_options.OnBadSlide = "fail",
    on_bad_tile: options.OnBadTile = "fail",
    seed: options.Seed = 0,
    json: options.Json = False,
    overwrite: options.Overwrite = False,
    dry_run: run_options.DryRun = False,
) -> None:
    """Run the whole chain on your slides: tiles, teacher, LR encoders, student with its receipt, predictions, maps.

    Every step is one of the commands above, shown as you could type it. What is done is left alone, so the same line
    again goes on after a break. The folder gets run.toml, which repeats the run (--config), and log.txt.
    """
    from dataclasses import replace

    from lrmil_cli import __version__
    from lrmil_cli.chain.plan import LABELS, OF_TEACHER, chain_steps
    from lrmil_cli.chain.run import count_folds, run_chain
    from lrmil_cli.encoders.spec import absolute_spec
    from lrmil_cli.files.header import command_line

    report = Report(json)
    settings = run_options.read_settings(ctx, config)
    small = settings.options.get("student")
    settings = replace(
        settings,
        slides=str(Path(settings.slides).absolute()),
        encoder=absolute_spec(settings.encoder),
        options={**settings.options, **({"student": absolute_spec(str(small))} if small is not None else {})},
    )
    run_options.check_settings(settings)
    out = Path(output)
    labels = {name: settings.of("train-teacher").get(name) for name in (*LABELS, *OF_TEACHER, "by-site")}
    values = {"classes": labels.pop("class"), **{name.replace("-", "_"): value for name, value in labels.items()}}
    manifest = cohort.read_cohort(report, settings.slides, values)
    folds_there = count_folds(manifest, settings)
    voice = common.voice()

    def step(args: list[str]) -> int:
        return ctx.obj([*args, *voice])

    if dry_run:
        from lrmil_cli.chain.estimate import as_record, as_text, estimate

        found = estimate(settings, out, manifest, step)
        report.say("\n".join(f"$ {s.line}" for s in chain_steps(settings, out, folds_there, overwrite)))
        report.say(f"dry run, nothing was written\n{as_text(found)}")
        report.result({"command": "run", "status": "planned", "output": output, **as_record(found)})
        return
    if settings.one_encoder:
        report.warn(
            "--one-encoder: it learns from the pixels of all slides, those that a fold tests on too; the figures are "
            "not quite inductive"
        )
    with logged(out / "log.txt", f"lrmil {__version__}: {command_line.get()}"):
        seconds = run_chain("lrmil run", settings, out, manifest, step, report.say, overwrite=overwrite)
        report.end(
            f"\n{out / 'model.receipt.html'}: what distillation bought, on held-out slides\n"
            f"{out / 'results' / 'index.html'}: what the model says of all slides, also of those it was trained on\n"
            f"{out / 'run.toml'}: repeats this run; {out / 'log.txt'}: what the steps said",
            ["predict", "new-slide.svs", "-m", str(out / "model.safetensors"), "-o", "results", "--report"],
        )
    report.result({"command": "run", "status": "ok", "output": output, "seconds": seconds})
