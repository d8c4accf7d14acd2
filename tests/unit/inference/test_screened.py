"""The budget of HR tiles."""

import pytest
import torch

from lrmil_cli.errors import UsageError
from lrmil_cli.inference.screened import Budget, within_budget
from lrmil_cli.selective.screener import screening_of

#: Two folds, two classes, five candidates; the mean of the largest class scores falls from the first to the last.
FOLDS = [
    torch.tensor([[3.0, 2.0, -1.0, -2.0, -3.0], [-1.0, 1.0, 0.5, -2.0, -4.0]]),
    torch.tensor([[3.0, 1.0, -1.0, -2.0, -3.0], [-1.0, -1.0, -0.5, -1.5, -4.0]]),
]


def kept(screenings):
    return torch.stack([s.used.any(0) for s in screenings]).any(0).tolist()


def test_within_its_bounds_a_decision_stays():
    own = [screening_of(s) for s in FOLDS]
    assert within_budget(own, Budget()) is own and kept(own) == [True, True, True, False, False]


def test_the_best_by_score_stay_and_no_class_is_left_with_nothing():
    own = within_budget([screening_of(s) for s in FOLDS], Budget(most=0.2))
    assert kept(own) == [True, False, False, False, False]
    assert all(s.used.any(1).all() for s in own)
    # the second class of the first fold had kept tiles, but none of those that may be read
    assert own[0].empty.tolist() == [False, True]
    assert sum(kept(within_budget([screening_of(s) for s in FOLDS], Budget(most=0.01)))) == 1


def test_tiles_that_are_added_are_seen_by_every_class():
    own = within_budget([screening_of(s) for s in FOLDS], Budget(least=0.8))
    assert kept(own) == [True, True, True, True, False] and all(s.used[:, 3].all() for s in own)


@pytest.mark.parametrize("given", [{"least": 0.5, "most": 0.3}, {"most": 0.0}, {"least": -0.1}, {"most": 1.1}])
def test_shares_that_make_no_sense_are_refused(given):
    with pytest.raises(UsageError, match="--keep-min"):
        Budget(**given)
    with pytest.raises(UsageError, match="--keep-threshold"):
        Budget(threshold=1.0)
