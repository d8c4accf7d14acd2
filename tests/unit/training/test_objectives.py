"""Tasks besides classes in the loop: they learn, select as they say, and refuse what needs classes."""

import numpy as np
import pytest
import torch

from lrmil_cli.errors import UsageError
from lrmil_cli.evaluation.regression import regression_metrics
from lrmil_cli.evaluation.survival import Followed, harrell_c
from lrmil_cli.heads import Bag, build_head, head_table
from lrmil_cli.targets.outputs import risk_of
from lrmil_cli.targets.regression import fit_scale
from lrmil_cli.targets.survival import hazard_borders
from lrmil_cli.training.loop import TrainSettings, fit_head, predict_bags
from lrmil_cli.training.objectives import Classes, CoxRisks, Hazards, Numbers

TRAIN, VAL, TEST = range(60), range(60, 80), range(80, 120)


@pytest.fixture(scope="module")
def cohort():
    """Bags of twelve instances; the first four are marked, and their strength sets a number and the hazard."""
    rng = np.random.default_rng(5)
    strength = rng.random(120)
    bags = []
    for s in strength:
        x = rng.normal(size=(12, 2)).astype(np.float32)
        x[:4, :2] += (6 * (s - 0.5), 4)
        bags.append(Bag(torch.from_numpy(x)))
    times = rng.exponential(1 / np.exp(6 * strength - 3))
    end = rng.exponential(4.0, 120)
    return bags, 50 + 20 * strength, np.minimum(times, end), times <= end


#: Heads that take any target, each small enough for a test.
OPTIONS = {
    "abmil": {"hidden": 8},
    "meanpool": {"embed_dim": 16},
    "dmin": {"embed_dim": 16, "hidden": 8, "degree": 3},
    "transmil": {"embed_dim": 16, "heads": 2},
}


def learned(cohort, objective, name="abmil", **settings):
    torch.manual_seed(0)
    head = build_head(name, 2, objective.outputs, OPTIONS[name], of_classes=objective.of_classes)
    epochs = 8 if name == "transmil" else 30  # which takes long
    fit = fit_head(head, cohort[0], objective, TRAIN, VAL, TrainSettings(lr=1e-2, epochs=epochs, **settings))
    return fit, predict_bags(fit.head, cohort[0], objective, TEST)


def test_heads_that_take_any_target_are_those_tested_here():
    assert {row["name"] for row in head_table() if not row["classes_only"]} == set(OPTIONS)


@pytest.mark.parametrize(("name", "loss"), [("abmil", "mse"), *((name, "huber") for name in OPTIONS)])
def test_a_number_is_learned_in_its_own_unit(cohort, name, loss):
    values = cohort[1]
    fit, said = learned(cohort, Numbers(values, fit_scale(values[:60]), loss), name)
    assert said.shape == (40, 1) and regression_metrics(values[80:], said[:, 0])["r2"] > 0.6
    best = min(fit.curves, key=lambda row: row["val_loss"])
    assert fit.best_epoch == best["epoch"]


@pytest.mark.parametrize(("name", "how"), [(name, how) for name in OPTIONS for how in ("nll", "cox")])
def test_survival_is_learned_and_selected_by_concordance(cohort, name, how):
    _, _, times, events = cohort
    nll = how == "nll"
    objective = (
        Hazards(times, events, hazard_borders(times[:60], events[:60]))
        if nll
        else CoxRisks(times, events, hazard_borders(times[:60], events[:60]), 16)
    )
    fit, said = learned(cohort, objective, name)
    if nll:
        assert said.shape == (40, 4) and (np.diff(said, axis=1) <= 0).all() and (said <= 1).all()
    risks = risk_of(said) if nll else said[:, 0]
    assert harrell_c(Followed(times[80:], events[80:], risks, np.arange(40).astype(str))) > 0.68
    best = max(fit.curves, key=lambda row: (row["val_c"], -row[next(iter(objective.watched))]))
    assert fit.best_epoch == best["epoch"]


def test_validation_of_hazards_is_their_likelihood(cohort):
    from lrmil_cli.targets.outputs import survival_curve
    from lrmil_cli.targets.survival import hazard_loss

    _, _, times, events = cohort
    objective = Hazards(times, events, hazard_borders(times[:60], events[:60]))
    z = np.random.default_rng(0).normal(size=(20, 4))
    slow = [float(hazard_loss(torch.tensor(z[n]), int(objective.interval[i]), events[i])) for n, i in enumerate(VAL)]
    assert objective.judged(survival_curve(z), VAL)["val_nll"] == pytest.approx(np.mean(slow), rel=1e-5)


def test_what_needs_classes_is_refused(cohort):
    values = cohort[1]
    numbers = Numbers(values, fit_scale(values))
    with pytest.raises(UsageError, match="no classes"):
        learned(cohort, numbers, balanced_sampling=True)


def test_labels_are_learned_as_before(cohort):
    """One bag a step, the head's own loss: what the loop did when it knew of nothing but classes."""
    labels = (cohort[1] > 60).astype(int).tolist()
    torch.manual_seed(0)
    fit, said = learned(cohort, Classes(labels, 2))
    assert said.shape == (40, 2) and said.sum(1) == pytest.approx(1)
    assert {"train_bag", "val_ce", "val_auc"} <= fit.curves[0].keys()
