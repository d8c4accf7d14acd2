"""``lrmil demo``: the whole chain on slides it makes, offline."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lrmil_cli.commands import common, options
from lrmil_cli.commands.report import Report, logged

Folder = Annotated[str, typer.Argument(metavar="DIR", help="Folder for slides and results.")]
Slides = Annotated[
    int,
    typer.Option("--slides", min=18, help="Slides to make; a third of them is held out."),
]


TaskName = Annotated[
    str,
    typer.Option(
        "--task",
        metavar="classification|regression|survival",
        help="What the slides hide and the models learn: a lesion or none, how much of the tissue is one, or a time to "
        "an event that this sets.  [default: classification; paper]",
        show_default=False,
    ),
]


def demo(
    ctx: typer.Context,
    folder: Folder,
    slides: Slides = 60,
    task: TaskName = "classification",
    seed: options.Seed = 0,
    json: options.Json = False,
) -> None:
    """Run the whole chain on slides it makes, offline.

    The slides look like H&E and have a known lesion. Teacher and students are trained for real, in about three minutes
    on two cores. The encoder (demo-vit) is for demonstration only.
    """
    import time

    from lrmil_cli import __version__
    from lrmil_cli.chain.demo import demo_task, run_demo
    from lrmil_cli.demo.slides import make_cohort
    from lrmil_cli.files.header import command_line

    report = Report(json)
    out, wanted = Path(folder), demo_task(task)
    report.say(f"making {slides} slides in {out / 'cohort'} (seed {seed})")
    started = time.perf_counter()
    manifest = make_cohort(out / "cohort", slides, seed, task=task)
    report.say(f"{slides} slides in {time.perf_counter() - started:.0f} s")
    voice = common.voice()
    with logged(out / "log.txt", f"lrmil {__version__}: {command_line.get()}"):
        summary = run_demo(out, manifest, seed, lambda args: ctx.obj([*args, *voice]), report.say, wanted)
        report.end("", ["report", str(out / "results")])
    report.result({"command": "demo", "status": "ok", "output": folder, **summary})
