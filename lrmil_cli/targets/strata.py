"""By what folds are stratified where labels are no classes; numpy alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

#: Fewer events than this in the training part of a fold are too few to learn from.
MIN_EVENTS = 10


def target_bins(values: Sequence[float], bins: int = 4) -> np.ndarray:
    """int [n]: the quantile bin of each number, by which folds are stratified; fewer bins where numbers are tied."""
    own = np.asarray(values, float)
    borders = np.unique(np.quantile(own, np.arange(1, bins) / bins))
    return np.searchsorted(borders, own, side="right").astype(np.int64)


def survival_bins(times: Sequence[float], events: Sequence[float]) -> np.ndarray:
    """int [n]: event and quartile of time, by which folds are stratified."""
    own, happened = np.asarray(times, float), np.asarray(events, float) == 1
    bins = np.zeros(len(own), np.int64)
    for kind in (False, True):
        some = own[happened == kind]
        if len(some):
            borders = np.unique(np.quantile(some, [0.25, 0.5, 0.75]))
            bins[happened == kind] = np.searchsorted(borders, some, side="right") + 4 * kind
    return bins
