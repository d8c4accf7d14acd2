"""``lrmil distill-student --method ahdmil`` and ``hdmil``: a model that reads only the HR tiles it needs."""

from __future__ import annotations

from typing import Any

from lrmil_cli.commands.report import Report
from lrmil_cli.commands.selective_options import screen_changes
from lrmil_cli.commands.student_runs import end, in_common, read_cohort
from lrmil_cli.errors import UsageError


def distill_screened(report: Report, values: dict[str, Any]) -> None:
    """Run it with the parameters of ``distill-student``, by name."""
    from lrmil_cli.selective.asymmetric_distillation import screen_settings
    from lrmil_cli.selective.train_ahdmil import train_screened

    method = values["method"]
    for option in ("teacher", "pairs"):
        if values[option] is None:
            raise UsageError(
                f"--method {method} learns from a teacher with --head dmin on pairs of tiles: "
                "give --teacher and --pairs"
            )
    settings = screen_settings(method, screen_changes(values))
    result = train_screened(
        read_cohort(report, values),
        method=method,
        settings=settings,
        **in_common(report, values, lr_features=False),
    )
    end(report, values, result, kept_rate=result.kept_rate)
