"""What the numbers of a head mean, of a task that is no classification (targets/README 8); numpy alone.

A head's file keeps how its numbers are read, its ``outputs``: the scale of a number, the borders of the intervals of
time. :func:`said` makes of logits what the head says, and the other functions what follows from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lrmil_cli.targets.task import Task

#: How the numbers of one head are read, as its file keeps it.
Outputs = dict[str, Any]


@dataclass(frozen=True)
class Scale:
    """Mean and standard deviation of a number, by which heads see it: 0 is the mean, 1 a standard deviation."""

    mean: float
    sd: float

    def standardised(self, values: np.ndarray) -> np.ndarray:
        """From the number's own unit to standard deviations from the mean."""
        return (np.asarray(values, float) - self.mean) / self.sd

    def own_unit(self, standardised: np.ndarray) -> np.ndarray:
        """What a head says, in the number's own unit."""
        return np.asarray(standardised, float) * self.sd + self.mean

    def as_json(self) -> dict[str, Any]:
        """As head and model files keep it."""
        return {"mean": self.mean, "sd": self.sd}


def said(task: Task, outputs: Outputs, logits: np.ndarray) -> np.ndarray:
    """What a head says [..., K] by its logits [..., K]: a number in its own unit, a survival curve, or a log risk."""
    if task.kind == "regression":
        return Scale(**{k: outputs[k] for k in ("mean", "sd")}).own_unit(logits)
    own = np.asarray(logits, float)
    return survival_curve(own + outputs["offset"]) if task.loss == "nll" else own


def risk(task: Task, outputs: Outputs, says: np.ndarray) -> np.ndarray:
    """Risk [...] of what a head says [..., K]: of hazards :func:`risk_of`, of Cox the log risk over the mean one of the
    training slides. Higher for who is to have the event sooner."""
    return risk_of(says) if task.loss == "nll" else np.asarray(says, float)[..., 0] - outputs["centre"]


def curve(task: Task, outputs: Outputs, says: np.ndarray) -> np.ndarray:
    """Survival [..., B - 1] at the borders: of hazards as they are, of Cox ``exp(-H_0(t) e^r)``, H_0 Breslow's."""
    if task.loss == "nll":
        return np.asarray(says, float)[..., :-1]
    return np.exp(-np.exp(risk(task, outputs, says))[..., None] * np.asarray(outputs["baseline"], float))


def known_times(outputs: Sequence[Outputs]) -> np.ndarray:
    """Times at which all of some heads can say something, as many as one head has borders: these where there is one,
    else quantiles of all borders up to the last that each has."""
    own = [np.asarray(o["borders"], float) for o in outputs]
    if all(np.array_equal(own[0], b) for b in own):
        return own[0]
    pool = np.concatenate(own)
    pool = pool[pool <= min(b[-1] for b in own)]
    return np.quantile(pool, np.linspace(0, 1, len(own[0])) if len(own[0]) > 1 else [1.0])


def at_times(borders: Sequence[float], survival: np.ndarray, times: np.ndarray) -> np.ndarray:
    """A curve [..., B - 1] that is known at borders at other times [T] up to the last of them, by straight lines."""
    s = np.asarray(survival, float)
    rows = s.reshape(-1, s.shape[-1])
    at = np.concatenate([[0.0], np.asarray(borders, float)])
    return np.array([np.interp(times, at, [1.0, *row]) for row in rows]).reshape(*s.shape[:-1], len(times))


def survival_curve(logits: np.ndarray) -> np.ndarray:
    """``S_b = prod_{j<=b} (1 - h_j)`` [..., B] of hazard logits [..., B]: the chance to be free of the event after b.

    The last one has no end of its interval; it is the chance to outlive all intervals.
    """
    z = np.asarray(logits, float)
    return np.exp(-np.logaddexp(0.0, z).cumsum(-1))


def risk_of(survival: np.ndarray) -> np.ndarray:
    """Risk [...] of survival curves [..., B]: ``-sum_b S_b``, higher for who is to have the event sooner."""
    return -np.asarray(survival, float).sum(-1)


def median_survival(survival: np.ndarray, borders: np.ndarray) -> float | None:
    """The time at which a curve, known at ``borders``, crosses one half, by a straight line; None if not reached."""
    at = np.concatenate([[0.0], borders])
    s = np.concatenate([[1.0], np.asarray(survival, float)[: len(borders)]])
    below = np.flatnonzero(s <= 0.5)
    if not len(below):
        return None
    i = int(below[0])
    return float(at[i - 1] + (s[i - 1] - 0.5) / (s[i - 1] - s[i]) * (at[i] - at[i - 1]))


@dataclass(frozen=True)
class SurvivalAnswer:
    """What some heads together say of n slides.

    Attributes:
        risk: [n], the mean over heads, higher for who is to have the event sooner; of_heads: [F, n], of each.
        cut: between the groups, the mean of the heads' own; group: [n] ``high`` above it, else ``low``.
        times: [T]; survival: [n, T], the mean curve; median: [n], nan where it does not reach one half.
    """

    risk: np.ndarray
    of_heads: np.ndarray
    cut: float
    group: np.ndarray
    times: np.ndarray
    survival: np.ndarray
    median: np.ndarray


def survival_answer(
    task: Task, outputs: Sequence[Outputs], says: Sequence[np.ndarray], times: np.ndarray
) -> SurvivalAnswer:
    """Heads together: risks and curves are averaged (**ours**: curves in time, not hazards of unlike intervals).

    Args:
        outputs, says: of each head, what it says [n, K]; times: [T] of :func:`known_times`.
    """
    risks = np.stack([risk(task, o, s) for o, s in zip(outputs, says)])
    curves = [at_times(o["borders"], curve(task, o, s), times) for o, s in zip(outputs, says)]
    survival = np.mean(curves, axis=0)
    cut = float(np.mean([o["cut"] for o in outputs]))
    both = risks.mean(0)
    medians = [median_survival(s, times) for s in survival]
    group = np.where(both > cut, "high", "low")
    known = np.array([np.nan if m is None else m for m in medians], float)
    return SurvivalAnswer(both, risks, cut, group, np.asarray(times, float), survival, known)


def breslow(risks: np.ndarray, times: np.ndarray, events: np.ndarray, borders: np.ndarray) -> np.ndarray:
    """Cumulative baseline hazard [B - 1] at borders: the sum of ``d_t / sum_{R_t} e^r`` over event times t before each
    (Breslow 1972).

    Args:
        risks: log risks [n]; times: [n]; events: bool [n]. R_t are those with a time of at least t, d_t events at t.
    """
    at = np.unique(times[events])
    steps = [np.sum(events & (times == t)) / np.exp(risks[times >= t]).sum() for t in at]
    total = np.concatenate([[0.0], np.cumsum(steps)])
    return total[np.searchsorted(at, borders, side="left")]
