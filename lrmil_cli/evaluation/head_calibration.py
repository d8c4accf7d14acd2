"""The probabilities of a fold head, made to mean what they say: its temperature, or slope and intercept.

Fitted on slides that the head was not trained on, kept in the header of what holds the heads, applied by whoever
predicts with them (evaluation/README 6). Nothing in the papers calibrates; the choices are ours.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from lrmil_cli.errors import InputError
from lrmil_cli.targets.task import task_of

#: Temperatures that are sought; beyond them the few slides say more than they know.
LOWEST, HIGHEST = 0.2, 20.0
#: Fewer slides than this calibrate nothing.
FEWEST = 20
#: Weight of the ridge that holds slopes (and 1 / T) at 1 and intercepts at 0, beside a log loss summed over slides.
RIDGE = 4.0
#: Patients that are left out one by one; of more, they are left out in so many groups.
LEFT_OUT = 200
#: A probability of 0 is taken for this one; softmax in float64 gives no smaller one.
TINY = float(np.finfo(np.float64).tiny)


@dataclass(frozen=True)
class HeadCalibration:
    """``softmax(scale * ln p + offset)`` for the probabilities p [C] of one head.

    Attributes:
        method: ``none``, ``temperature`` (all scales 1 / T), ``platt`` (two classes: one slope, the intercept with the
            second class) or ``vector`` (more classes: a slope and an intercept each).
        scale, offset: [C].
        slides: how many it was fitted on; reason: why it is ``none``, else "".
        log_loss: leave-one-out log loss of those slides by method, and ``raw`` of them as they are.
    """

    method: str
    scale: tuple[float, ...]
    offset: tuple[float, ...]
    slides: int
    reason: str = ""
    log_loss: dict[str, float] = field(default_factory=dict)

    def apply(self, probabilities: np.ndarray) -> np.ndarray:
        """Calibrated probabilities of raw ones, [..., C]; those of ``none`` untouched."""
        if self.method == "none":
            return probabilities
        return _softmax(np.array(self.scale) * _logs(probabilities) + np.array(self.offset))

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "scale": list(self.scale), "offset": list(self.offset)}


def calibrate_head(labels: np.ndarray, probabilities: np.ndarray, patients: Sequence[str]) -> HeadCalibration:
    """The calibration of a head by slides that it was not trained on.

    A temperature; slope and intercept in its place where they lower the leave-one-out log loss, all slides of a patient
    left out together.

    Args:
        labels: int [n]; probabilities: [n, C], of this head; patients: [n], whose slides they are.
    """
    n, classes = probabilities.shape
    as_it_is = (1.0,) * classes, (0.0,) * classes
    present = len(np.unique(labels))
    if n < FEWEST or present < 2:
        few = f"{n} calibration slides, {FEWEST} are needed" if n < FEWEST else "calibration slides of one class alone"
        return HeadCalibration("none", *as_it_is, n, few)
    methods: dict[str, Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]] = {
        "temperature": _temperature
    }
    if present == classes:  # nothing says what the intercept of a class without slides should be
        methods["platt" if classes == 2 else "vector"] = fit_slopes
    groups = np.unique(np.asarray(patients), return_inverse=True)[1] % LEFT_OUT
    losses = {"raw": _log_loss(labels, probabilities)}
    for name, fit in methods.items():
        held_out = np.empty_like(probabilities)
        for g in np.unique(groups):
            out = groups == g
            scale, offset = fit(labels[~out], probabilities[~out])
            held_out[out] = _softmax(scale * _logs(probabilities[out]) + offset)
        losses[name] = _log_loss(labels, held_out)
    best = min(methods, key=lambda name: losses[name])  # a tie is the temperature's
    found = methods[best](labels, probabilities)
    slope, intercept = (tuple(round(float(v), 9) for v in part) for part in found)
    return HeadCalibration(best, slope, intercept, n, "", {k: round(v, 6) for k, v in losses.items()})


def fit_temperature(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """The temperature T that makes ``softmax(ln p / T)`` fit the labels best (Guo et al. 2017).

    Least log loss, summed over slides, plus ``RIDGE / 2`` times ``(ln T)^2``: a few slides that are all right do not
    make the model infinitely sure.

    Args:
        labels: int [n]; probabilities: [n, C], of a head that was not trained on these slides.

    Returns:
        T between :data:`LOWEST` and :data:`HIGHEST`; 1 without slides.
    """
    from scipy.optimize import minimize_scalar

    if not len(labels):
        return 1.0
    rows, logs = np.arange(len(labels)), _logs(probabilities)

    def loss(log_temperature: float) -> float:
        right = _log_softmax(logs / np.exp(log_temperature))[rows, labels]
        return -float(right.sum()) + RIDGE / 2 * log_temperature**2

    found = minimize_scalar(loss, bounds=(np.log(LOWEST), np.log(HIGHEST)), method="bounded")
    return float(np.exp(found.x))


def fit_slopes(labels: np.ndarray, probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Slopes and intercepts of ``softmax(scale * ln p + offset)``: Platt's for two classes, vector scaling for more.

    Least log loss, summed over slides, plus ``RIDGE / 2`` times the squares of the slopes' logarithms and of the
    intercepts. Slopes keep within the bounds of 1 / T.

    Returns:
        scale [C], offset [C].
    """
    from scipy.optimize import minimize

    classes = probabilities.shape[1]
    targets, logs = np.eye(classes)[labels], _logs(probabilities)
    slopes = 1 if classes == 2 else classes  # of two classes, only the difference of their logits counts

    def parts(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        own = np.exp(x[:slopes])
        return (np.full(2, own[0]), np.array([0.0, x[1]])) if classes == 2 else (own, x[slopes:])

    def loss(x: np.ndarray) -> tuple[float, np.ndarray]:
        scale, offset = parts(x)
        log_p = _log_softmax(scale * logs + offset)
        residual = np.exp(log_p) - targets
        by_log, by_offset = scale * (residual * logs).sum(0), residual.sum(0)
        gradient = np.r_[by_log.sum(), by_offset[1]] if classes == 2 else np.r_[by_log, by_offset]
        return -float((targets * log_p).sum()) + RIDGE / 2 * float(x @ x), gradient + RIDGE * x

    bounds = [(-np.log(HIGHEST), -np.log(LOWEST))] * slopes + [(None, None)] * slopes
    return parts(minimize(loss, np.zeros(2 * slopes), jac=True, bounds=bounds, method="L-BFGS-B").x)


def calibrated(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """``softmax(ln p / T)`` of probabilities [..., C]; the order of the classes stays."""
    return _softmax(_logs(probabilities) / temperature)


def head_calibrations(header: dict[str, Any]) -> list[HeadCalibration] | None:
    """The calibrations of the heads of a model or teacher, by its header; None of one that has none for each head.

    Models of earlier versions hold one temperature for all heads or nothing: they say what they always said.

    Raises:
        InputError: the header is damaged.
    """
    about = header.get("calibration")
    if not isinstance(about, dict) or "heads" not in about:
        return None
    classes = len(header["classes"])
    try:
        heads = [
            HeadCalibration(
                str(h["method"]),
                tuple(float(v) for v in h["scale"]),
                tuple(float(v) for v in h["offset"]),
                int(h["slides"]),
                str(h.get("reason", "")),
                dict(h.get("log_loss", {})),
            )
            for h in about["heads"]
        ]
        if any(len(h.scale) != classes or len(h.offset) != classes for h in heads):
            raise ValueError("classes")
    except (KeyError, TypeError, ValueError) as e:
        raise InputError(
            f"the calibration in the model's header is damaged ({e!r}); copy or make the file again"
        ) from e
    return heads


def calibrated_heads(header: dict[str, Any], raw: np.ndarray) -> np.ndarray:
    """Probabilities [F, C] of the folds, each head calibrated as the header says; as they are where it says nothing.

    Several heads of a fold (``fold_of``) are one, their mean. What is no class is as it is, head by head.

    Args:
        raw: [H, C] of the heads.

    Raises:
        InputError: the header is damaged.
    """
    if not task_of(header).classes:
        return raw
    heads = head_calibrations(header)
    if heads is None:
        return _of_folds(header, raw)
    if len(heads) != len(raw):
        raise InputError(
            f"the model's header calibrates {len(heads)} heads, but there are {len(raw)}; copy or make the file again"
        )
    return _of_folds(header, np.stack([h.apply(p) for h, p in zip(heads, raw)]))


def _of_folds(header: dict[str, Any], heads: np.ndarray) -> np.ndarray:
    """[F, C], the mean of the heads of each fold, of [H, C]; a fold has one, but where a model keeps several seeds.

    Raises:
        InputError: the header is damaged.
    """
    if "fold_of" not in header:
        return heads
    of = header["fold_of"]
    folds = sorted(set(of)) if isinstance(of, list) and all(type(k) is int for k in of) else []
    if len(of or ()) != len(heads) or folds != list(range(len(folds))) or not folds:
        raise InputError("which fold each head is of is damaged in the model's header; copy or make the file again")
    return np.stack([heads[np.array(of) == k].mean(0) for k in folds])


def common_temperature(header: dict[str, Any]) -> float | None:
    """What the mean of the heads is divided by in logits before it is asked how sure it is: the temperature of a model
    of an earlier version, 1 where each head is calibrated by itself, None where nothing is."""
    about = header.get("calibration") or {}
    return 1.0 if "heads" in about else about.get("temperature")


def uncalibrated(header: dict[str, Any]) -> str | None:
    """Why the probabilities of a model, or of some of its heads, are as they are; None where all are calibrated, or
    there are none."""
    if not task_of(header).classes:
        return None
    heads = head_calibrations(header)
    if heads is None:
        return (
            "probabilities are not calibrated: the model is of an earlier version; `lrmil calibrate` makes one that is"
        )
    plain = [h for h in heads if h.method == "none"]
    if not plain:
        return None
    which = "probabilities" if len(plain) == len(heads) else f"the probabilities of {len(plain)} of {len(heads)} heads"
    return f"{which} are not calibrated: {'; '.join(sorted({h.reason for h in plain}))}"


def _temperature(labels: np.ndarray, probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    classes = probabilities.shape[1]
    return np.full(classes, 1 / fit_temperature(labels, probabilities)), np.zeros(classes)


def _log_loss(labels: np.ndarray, probabilities: np.ndarray) -> float:
    return -float(np.log(np.maximum(probabilities[np.arange(len(labels)), labels], 1e-15)).mean())


def _logs(probabilities: np.ndarray) -> np.ndarray:
    return np.log(np.maximum(probabilities, TINY))


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def _softmax(logits: np.ndarray) -> np.ndarray:
    return np.exp(_log_softmax(logits))
