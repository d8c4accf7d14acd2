"""``lrmil distill-student --method zoommil``: a head that picks where to zoom in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lrmil_cli.commands import head_options
from lrmil_cli.commands.cohort import task_asked
from lrmil_cli.commands.report import Report
from lrmil_cli.commands.student_runs import end, in_common, read_cohort, task_of_teacher
from lrmil_cli.errors import UsageError


def distill_zoom(report: Report, values: dict[str, Any]) -> None:
    """Train ZoomMIL by the parameters of distill-student."""
    from lrmil_cli.heads import build_head
    from lrmil_cli.selective.train_zoommil import train_zoom
    from lrmil_cli.training.crossval import HeadSpec
    from lrmil_cli.training.recipes import train_settings

    if values["pairs"] is None:
        raise UsageError("--method zoommil needs --pairs, which say what lies under each LR tile")
    if (values["mid_pairs"] is None) != (values["mid_features"] is None):
        raise UsageError("--mid-pairs and --mid-features go together")
    own = head_options.head_options(False, 0, None, values["head_option"])
    if "levels" in own:
        raise UsageError("--head-option levels does nothing: --pairs make two levels, --mid-pairs three")
    build_head("zoommil", 8, 2, own)
    target, task = Path(values["output"]), task_asked(values, task_of_teacher(values))
    result = train_zoom(
        read_cohort(report, values),
        mid_pairs=values["mid_pairs"],
        mid_features=values["mid_features"],
        lr_features=Path(values["lr_features"]) if values["lr_features"] else target.with_suffix(".features"),
        head=HeadSpec("zoommil", own),
        training=train_settings(values["recipe"], "zoommil", {k: values[k] for k in head_options.OF_TRAINING}, task),
        own_fixture=not values["no_fixture"],
        **in_common(report, values),
    )
    end(report, values, result)
