"""What is learned: a class, a number, or the time to an event (targets/README 1); of a slide, or of a patient."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, cast

from lrmil_cli.errors import UsageError

Kind = Literal["classification", "regression", "survival"]
#: Losses of each task; the first is the default.
LOSSES: dict[str, tuple[str, ...]] = {
    "classification": ("",),
    "regression": ("huber", "mse"),
    "survival": ("nll", "cox"),
}

#: What a bag holds: the tiles of a slide, or those of all slides of a patient.
SLIDE, PATIENT = "slide", "patient"
BAGS = (SLIDE, PATIENT)


@dataclass(frozen=True)
class Task:
    """A task, as headers of files keep it under ``target`` (classification is not noted there).

    Attributes:
        loss: of :data:`LOSSES`; label: column of the number; time, event: columns of survival.
        intervals: of time, at most, that hazards or a baseline are known for; risk_set: bags of a risk set of Cox.
    """

    kind: Kind = "classification"
    loss: str = ""
    label: str = "label"
    time: str = "time"
    event: str = "event"
    intervals: int = 4
    risk_set: int = 32

    @property
    def classes(self) -> bool:
        """Whether labels are classes."""
        return self.kind == "classification"

    @property
    def name(self) -> str:
        """For people: "classes", "label (regression)", "time and event (survival)" by the columns' own names."""
        if self.classes:
            return "classes"
        return f"{self.label} (regression)" if self.kind == "regression" else f"{self.time} and {self.event} (survival)"

    def as_json(self) -> dict[str, Any]:
        """As headers keep it: what belongs to the task."""
        of = {"regression": ("label",), "survival": ("time", "event", "intervals")}.get(self.kind, ())
        names = ("kind", "loss", *of, *(("risk_set",) if self.loss == "cox" else ()))
        return {k: v for k, v in asdict(self).items() if k in names}


def make_task(kind: str | None, loss: str | None = None, **named: Any) -> Task:
    """The task that options name.

    Args:
        kind: None for classification; loss: None for the default; named: further fields, None where not given.

    Raises:
        UsageError: no such task or loss, or too few intervals or bags.
    """
    kind = kind or "classification"
    if kind not in LOSSES:
        raise UsageError(f"--task {kind}: choose one of {', '.join(LOSSES)}")
    losses = LOSSES[kind]
    if loss is not None and loss not in losses:
        choice = f"choose {' or '.join(losses)}" if any(losses) else "classes have the loss of their head"
        raise UsageError(f"--loss {loss}: of --task {kind}, {choice}")
    task = Task(cast(Kind, kind), loss or losses[0], **{k: v for k, v in named.items() if v is not None})
    if task.intervals < 2:
        raise UsageError(f"--intervals {task.intervals}: at least 2")
    if task.risk_set < 2:
        raise UsageError(f"--risk-set {task.risk_set}: at least 2 slides")
    return task


def task_of(header: Mapping[str, Any]) -> Task:
    """The task of a file; of one without ``target`` classification."""
    return Task(**header["target"]) if header.get("target") else Task()


def bag_of(header: Mapping[str, Any]) -> str:
    """What the bags of a file's header were; files of before there was a choice, and those of slides, do not say it."""
    return str(header.get("bag", SLIDE))
