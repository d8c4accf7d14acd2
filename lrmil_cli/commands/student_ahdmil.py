"""``lrmil distill-student --method ahdmil`` and ``hdmil``: a model that reads only the HR tiles it needs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lrmil_cli.commands import options
from lrmil_cli.commands.cohort import read_cohort
from lrmil_cli.commands.next_step import after_student
from lrmil_cli.commands.report import Report
from lrmil_cli.commands.selective_options import screen_changes
from lrmil_cli.errors import UsageError


def distill_screened(report: Report, values: dict[str, Any]) -> None:
    """Run it with the parameters of ``distill-student``, by name."""
    from lrmil_cli.device import pick_device
    from lrmil_cli.selective.asymmetric_distillation import screen_settings
    from lrmil_cli.selective.train_ahdmil import train_screened
    from lrmil_cli.training.streamed import room_for

    method, output = values["method"], values["output"]
    for option in ("teacher", "pairs"):
        if values[option] is None:
            raise UsageError(
                f"--method {method} learns from a teacher with --head dmin on pairs of tiles: "
                "give --teacher and --pairs"
            )
    settings = screen_settings(method, screen_changes(values))
    where = pick_device(values["device"])
    result = train_screened(
        read_cohort(report, values["manifest"], values),
        method=method,
        settings=settings,
        output=Path(output),
        device=where,
        room=room_for(where, options.memory_bytes(values["memory"])),
        say=report.say,
        warn=report.warn,
        **{
            k: values[k]
            for k in (
                "tiles",
                "pairs",
                "teacher",
                "encoder",
                "features",
                "input_size",
                "embedding",
                "overwrite",
                "workers",
                "on_bad_tile",
            )
        },
    )
    report.end(f"{output}: {result.text}", after_student(values["manifest"], str(output)))
    report.result(
        {
            "command": "distill-student",
            "status": "skipped" if result.there else "ok",
            "output": output,
            "method": method,
            "metrics": result.metrics,
            "kept_rate": result.kept_rate,
        }
    )
