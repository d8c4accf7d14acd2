"""Survival: the time to an event, or to the end of watching for it (targets/README 3 and 4).

Intervals are numbered from 0. Interval b is ``[border_{b-1}, border_b)``, the first from 0, the last without an end.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lrmil_cli.errors import InputError

#: Intervals of the discrete hazard.
INTERVALS = 4
#: Bags of a risk set: as many graphs as fit the memory of a small GPU.
RISK_SET = 32


def hazard_borders(times: Sequence[float], events: Sequence[float], intervals: int = INTERVALS) -> np.ndarray:
    """float [B - 1]: borders between B intervals, at quantiles of the event times of the training slides.

    Each interval holds about as many events. Where times are tied there are fewer intervals.

    Raises:
        InputError: no event, or all at one time with the first interval empty.
    """
    own = np.asarray(times, float)[np.asarray(events, float) == 1]
    if not len(own):
        raise InputError("no event among the training slides; there are no intervals of time to learn")
    borders = np.unique(np.quantile(own, np.arange(1, intervals) / intervals))
    # A border at the first event time would leave an interval in which nothing ever happens.
    return borders[borders > own.min()]


def interval_of(times: Sequence[float] | np.ndarray, borders: np.ndarray) -> np.ndarray:
    """int64 [n]: the interval in which each time lies; a time at a border lies in the later one."""
    return np.searchsorted(borders, np.asarray(times, float), side="right").astype(np.int64)


def hazard_offset(times: Sequence[float], events: Sequence[float], borders: np.ndarray) -> np.ndarray:
    """Logits [B] of the hazards that the training slides have on the whole: events in an interval over those at risk,
    half of one added to each.

    Heads learn what differs from it. Else the first thing that a head learns is how common events are, by whatever
    features all slides share, and these are the wrong way round where an interval has few.
    """
    interval, happened = interval_of(times, borders), np.asarray(events, float) == 1
    at_risk = np.array([(interval >= b).sum() for b in range(len(borders) + 1)])
    seen = np.array([(happened & (interval == b)).sum() for b in range(len(borders) + 1)])
    return np.log((seen + 0.5) / (at_risk - seen + 0.5))


def hazard_loss(logits: Tensor, interval: Tensor | int, event: Tensor | bool) -> Tensor:
    """Negative log likelihood of one bag under discrete hazards ``h_b = sigmoid(z_b)``.

    Event in b: ``-log h_b - sum_{j<b} log(1 - h_j)``; censored in b: ``-sum_{j<=b} log(1 - h_j)`` (Gensheimer and
    Narasimhan 2019; of slides: Zadeh and Schmid 2020).

    Args:
        logits: [B].
    """
    z, b = logits.float(), int(interval)
    survived = F.softplus(z)  # -log(1 - h)
    return survived[:b].sum() + (F.softplus(-z[b]) if bool(event) else survived[b])


def hazard_distillation(student: Tensor, teacher: Tensor, interval: Tensor | int, temperature: float = 1.0) -> Tensor:
    """In place of eq. 3: ``T^2 sum_b KL(Bernoulli(h_b^T) || Bernoulli(h_b^S))`` over the intervals at risk.

    At risk are those up to the one of the bag's time: later ones say nothing of this patient.

    Args:
        student, teacher: logits [B].
    """
    at_risk = slice(int(interval) + 1)
    s, t = student.float()[at_risk] / temperature, teacher.float()[at_risk] / temperature
    h = torch.sigmoid(t)
    happens = h * (F.logsigmoid(t) - F.logsigmoid(s))
    not_so = (1 - h) * (F.logsigmoid(-t) - F.logsigmoid(-s))
    return temperature**2 * (happens + not_so).sum()


def cox_loss(risks: Tensor, times: Tensor, events: Tensor) -> Tensor:
    """Negative partial log likelihood of a risk set, over its events; ties by Efron (1977).

    With D_t the events at time t, d of them, and R_t those with a time of at least t:
    ``-(1/n) sum_t [sum_{D_t} r_i - sum_{l<d} log(sum_{R_t} e^r - l/d sum_{D_t} e^r)]``.

    Args:
        risks: log risks [n]; times: [n]; events: 0 or 1 [n].

    Returns:
        scalar; 0 (with a gradient of 0) where there is no event.
    """
    r, happened = risks.float(), events.bool()
    if not bool(happened.any()):
        return (r * 0).sum()
    total = torch.zeros((), device=r.device)
    for t in torch.unique(times[happened]):
        tied = happened & (times == t)
        d = int(tied.sum())
        everyone = torch.logsumexp(r[times >= t], 0)
        own = torch.logsumexp(r[tied], 0)
        # log(A - l/d B) as log A + log(1 - l/d B/A): A and B may be beyond what exp can hold.
        share = torch.arange(d, device=r.device, dtype=r.dtype) / d * torch.exp(own - everyone)
        total = total + r[tied].sum() - (everyone + torch.log1p(-share)).sum()
    return -total / happened.sum()


def cox_distillation(student: Tensor, teacher: Tensor) -> Tensor:
    """In place of eq. 3 over a risk set: mean squared distance of log risks [n], each standardised over the set.

    A model's log risks have no unit of their own: a constant drops out of the likelihood, and a steeper model is not
    another order of patients. 0 for a set of fewer than two.
    """
    if len(student) < 2:
        return (student * 0).sum()

    def standardised(r: Tensor) -> Tensor:
        own = r.float() - r.float().mean()
        return own / (own.pow(2).mean().sqrt() + 1e-6)

    return ((standardised(student) - standardised(teacher.detach())) ** 2).mean()


def risk_sets(
    events: Sequence[float] | np.ndarray, index: Sequence[int], size: int, rng: np.random.Generator
) -> list[list[int]]:
    """An epoch as risk sets of about ``size`` slides, events dealt out evenly, so that each holds its share of them.

    Args:
        events: of all slides; index: those of this epoch.

    Returns:
        every slide of ``index`` once; sets without an event only where there are fewer events than sets.
    """
    own = np.asarray(events, float)[np.asarray(index)] == 1
    order = np.concatenate([rng.permutation(np.asarray(index)[kind]) for kind in (own, ~own)])
    sets = max(1, round(len(order) / size))
    return [rng.permutation(order[k::sets]).tolist() for k in range(sets)]
