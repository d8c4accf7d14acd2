"""``lrmil distill-student --method eagle``: an LR model picks the HR tiles that are read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lrmil_cli.commands import head_options
from lrmil_cli.commands.cohort import task_asked
from lrmil_cli.commands.report import Report
from lrmil_cli.commands.student_runs import end, in_common, read_cohort, task_of_teacher
from lrmil_cli.errors import UsageError

#: What classifies the mean of the picked tiles, unless --head says otherwise.
HEAD = "meanpool"
#: HR tiles of a slide (the paper).
TOP = 25


def distill_eagle(report: Report, values: dict[str, Any]) -> None:
    """Train EAGLE by the parameters of distill-student; ``head`` is None where it was not given."""
    from lrmil_cli.selective.train_eagle import train_eagle
    from lrmil_cli.training.crossval import head_spec
    from lrmil_cli.training.recipes import recipe_options, train_settings

    for name in ("picker", "pairs"):
        if values[name] is None:
            raise UsageError(f"--method eagle needs --{name}")
    head, recipe = values["head"] or HEAD, values["recipe"]
    given = head_options.head_options(values["gated"], values["proj_dim"], values["classifier"], values["head_option"])
    picker, task = Path(values["picker"]), task_asked(values, task_of_teacher(values))
    result = train_eagle(
        read_cohort(report, values),
        picker=str(picker),
        top=values["top_hr"] or TOP,
        # The picker's own LR features, where its training left them.
        lr_features=Path(values["lr_features"]) if values["lr_features"] else picker.with_suffix(".features"),
        head=head_spec(head, recipe_options(recipe, head, given), task),
        training=train_settings(recipe, head, {k: values[k] for k in head_options.OF_TRAINING}, task),
        **in_common(report, values),
    )
    end(report, values, result)
