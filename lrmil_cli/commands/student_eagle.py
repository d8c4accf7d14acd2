"""``lrmil distill-student --method eagle``: an LR model picks the HR tiles that are read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lrmil_cli.commands import head_options, options
from lrmil_cli.commands.cohort import read_cohort
from lrmil_cli.commands.next_step import after_student
from lrmil_cli.commands.report import Report
from lrmil_cli.errors import UsageError

#: What classifies the mean of the picked tiles, unless --head says otherwise.
HEAD = "meanpool"
#: HR tiles of a slide (the paper).
TOP = 25


def distill_eagle(report: Report, values: dict[str, Any]) -> None:
    """Train EAGLE by the parameters of distill-student; ``head`` is None where it was not given."""
    from lrmil_cli.device import pick_device
    from lrmil_cli.selective.train_eagle import train_eagle
    from lrmil_cli.training.crossval import head_spec
    from lrmil_cli.training.recipes import recipe_options, train_settings
    from lrmil_cli.training.streamed import room_for

    for name in ("picker", "pairs"):
        if values[name] is None:
            raise UsageError(f"--method eagle needs --{name}")
    head, recipe = values["head"] or HEAD, values["recipe"]
    given = head_options.head_options(values["gated"], values["proj_dim"], values["classifier"], values["head_option"])
    target, picker = Path(values["output"]), Path(values["picker"])
    where = pick_device(values["device"])
    result = train_eagle(
        read_cohort(report, values["manifest"], values),
        **{
            k: values[k]
            for k in (
                "tiles",
                "pairs",
                "encoder",
                "features",
                "teacher",
                "folds",
                "input_size",
                "embedding",
                "batch_size",
                "overwrite",
                "workers",
                "on_bad_tile",
                "dtype",
            )
        },
        picker=str(picker),
        top=values["top_hr"] or TOP,
        # The picker's own LR features, where its training left them.
        lr_features=Path(values["lr_features"]) if values["lr_features"] else picker.with_suffix(".features"),
        head=head_spec(head, recipe_options(recipe, head, given)),
        training=train_settings(recipe, head, {k: values[k] for k in head_options.OF_TRAINING}),
        output=target,
        device=where,
        room=room_for(where, options.memory_bytes(values["memory"])),
        say=report.say,
        warn=report.warn,
    )
    report.end(f"{target}: {result.text}", after_student(values["manifest"], str(target)))
    report.result(
        {
            "command": "distill-student",
            "method": "eagle",
            "status": "skipped" if result.there else "ok",
            "output": str(target),
            "metrics": result.metrics,
        }
    )
