"""What methods of ``lrmil distill-student`` other than LRMIL have in common: what training gets, how they end."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from lrmil_cli.commands import cohort, options
from lrmil_cli.commands.next_step import after_student
from lrmil_cli.commands.report import Report

if TYPE_CHECKING:
    from lrmil_cli.files.manifest import Manifest
    from lrmil_cli.targets.task import Task

#: Parameters that their training takes by the names of the command's options.
TAKEN = "tiles pairs teacher encoder features input_size embedding overwrite workers on_bad_tile".split()
#: Those that decide LR features and folds, besides.
OF_LR_FEATURES = ["folds", "batch_size", "dtype"]


def read_cohort(report: Report, values: dict[str, Any]) -> Manifest:
    """The cohort, whose task is the teacher's where no option says another."""
    return cohort.read_cohort(report, values["manifest"], values, like=task_of_teacher(values))


def task_of_teacher(values: dict[str, Any]) -> Task | None:
    """What the teacher learned; None without one."""
    from lrmil_cli.targets.task import task_of
    from lrmil_cli.training.teacher import read_teacher_header

    return task_of(read_teacher_header(values["teacher"])) if values["teacher"] else None


def in_common(report: Report, values: dict[str, Any], *, lr_features: bool = True) -> dict[str, Any]:
    """Arguments of a training function: options as they are, device, room, voices.

    Args:
        values: parameters of the command; lr_features: the method has LR features of its own.
    """
    from lrmil_cli.device import pick_device
    from lrmil_cli.training.streamed import room_for

    where = pick_device(values["device"])
    names = TAKEN + OF_LR_FEATURES if lr_features else TAKEN
    return {
        **{name: values[name] for name in names},
        "output": Path(values["output"]),
        "device": where,
        "room": room_for(where, options.memory_bytes(values["memory"])),
        "say": report.say,
        "warn": report.warn,
    }


def end(report: Report, values: dict[str, Any], result: Any, **more: Any) -> None:
    """Say what was made and what comes next, and give the record.

    Args:
        result: of the training: ``there``, ``text``, ``metrics``; more: entries of the record.
    """
    output = str(Path(values["output"]))
    report.end(f"{output}: {result.text}", after_student(values["manifest"], output))
    status = "skipped" if result.there else "ok"
    about = {"command": "distill-student", "method": values["method"], "status": status, "output": output}
    report.result({**about, "metrics": result.metrics, **more})
