"""Folds by patient, metrics that may be undefined, the loop's selection rule."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lrmil_cli.errors import InputError
from lrmil_cli.evaluation.metrics import evaluate, mean_sd, metrics_table
from lrmil_cli.files.manifest import Manifest
from lrmil_cli.files.manifest_rows import Entry
from lrmil_cli.heads import Bag, build_head
from lrmil_cli.targets.task import make_task
from lrmil_cli.training.folds import fold_names, make_folds, members
from lrmil_cli.training.leaks import check_no_label_leak, check_no_leak, check_patients, encoder_leak
from lrmil_cli.training.loop import TrainSettings, draw_order, fit_head
from lrmil_cli.training.objectives import Classes, class_weights


def make_manifest(tmp, labels, patients=None, split=None, **columns):
    entries = tuple(
        Entry(
            f"s{i}",
            tmp / f"s{i}.svs",
            str(l),
            patients[i] if patients else f"p{i}",
            None,
            split[i] if split else None,
            {k: v[i] for k, v in columns.items()},
        )
        for i, l in enumerate(labels)
    )
    return Manifest(tmp / "slides.csv", entries, tuple(sorted(set(map(str, labels)))))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 5), st.integers(2, 3))
def test_drawn_folds_keep_patients_together_and_test_each_slide_once(seed, folds, classes):

    rng = np.random.default_rng(seed)
    of_patient = np.repeat(np.arange(classes), 8)  # a patient has one label
    patients = rng.integers(0, 8 * classes, 50).tolist() + list(range(8 * classes))
    manifest = make_manifest(Path("/x"), [of_patient[p] for p in patients], [f"p{p}" for p in patients])
    table = make_folds(manifest, folds, seed)
    names = fold_names(table)
    assert len(names) == folds
    tested = [s for n in names for s in members(table, n)["test"]]
    assert sorted(tested) == sorted(e.slide_id for e in manifest)
    for n in names:
        parts = members(table, n)
        assert all(parts.values())
        where = {}
        for part, slides in parts.items():
            for s in slides:
                where.setdefault(table.set_index("slide_id").loc[s, "patient_id"], set()).add(part)
        assert all(len(v) == 1 for v in where.values())
    again = make_folds(manifest, folds, seed)
    assert table.equals(again)


def test_the_users_own_split_and_folds_are_taken(tmp_path):
    labels = ["a", "b"] * 4
    split = ["train"] * 4 + ["val"] * 2 + ["test"] * 2
    table = make_folds(make_manifest(tmp_path, labels, split=split), 5, 0)
    assert table["fold_1"].tolist() == split and fold_names(table) == ["fold_1"]
    own = ["1", "1", "2", "2", "3", "3", "3", "3"]
    table = make_folds(make_manifest(tmp_path, labels, fold=own), 5, 0)
    assert [members(table, n)["test"] for n in fold_names(table)] == [
        ["s0", "s1"],
        ["s2", "s3"],
        ["s4", "s5", "s6", "s7"],
    ]
    table = make_folds(make_manifest(tmp_path, labels, fold_1=split, fold_2=split[::-1]), 5, 0)
    assert table["fold_2"].tolist() == split[::-1]


def test_splits_that_cannot_work_say_why(tmp_path):
    with pytest.raises(InputError, match="too few for 5 folds"):
        make_folds(make_manifest(tmp_path, ["a"] * 10 + ["b"] * 4), 5, 0)
    with pytest.raises(InputError, match="no training slide of class 'b'"):
        make_folds(make_manifest(tmp_path, ["a", "a", "b", "b"], split=["train", "val", "test", "val"]), 5, 0)
    with pytest.raises(InputError, match="split is empty for 1"):
        make_folds(make_manifest(tmp_path, ["a", "a", "b", "b"], split=["train", None, "test", "val"]), 5, 0)


def test_metrics_by_hand():
    labels = [0, 0, 1, 1]
    p = np.array([[0.9, 0.1], [0.4, 0.6], [0.3, 0.7], [0.8, 0.2]])
    m = evaluate(labels, p)
    assert m["accuracy"] == 0.5 and m["balanced_accuracy"] == 0.5
    assert m["auc"] == 0.75  # of the four pairs, only (second, fourth) is in the wrong order
    assert m["brier"] == pytest.approx(2 * (0.01 + 0.36 + 0.09 + 0.64) / 4)
    assert m["log_loss"] == pytest.approx(-np.log([0.9, 0.4, 0.7, 0.2]).mean())


def test_auc_with_a_missing_class_is_undefined_never_zero():
    assert evaluate([1, 1], np.array([[0.2, 0.8], [0.4, 0.6]]))["auc"] is None
    assert evaluate([0, 1, 0], np.array([[0.2, 0.5, 0.3], [0.4, 0.4, 0.2], [0.5, 0.3, 0.2]]))["auc"] is None
    assert mean_sd([None, 0.5]) == (0.5, None)
    table = metrics_table(
        {"1": evaluate([1], np.array([[0.2, 0.8]])), "2": evaluate([0, 1], np.array([[0.8, 0.2], [0.3, 0.7]]))}
    )
    assert table.set_index("fold").loc["mean", "auc"] == 1.0


def test_multiclass_auc_is_macro_one_vs_rest():
    rng = np.random.default_rng(0)
    labels, p = rng.integers(0, 3, 60), rng.dirichlet([1, 1, 1], 60)
    own = []
    for c in range(3):  # pair counting
        a, b = p[labels == c, c], p[labels != c, c]
        own.append(np.mean([(x > y) + 0.5 * (x == y) for x in a for y in b]))
    assert evaluate(labels, p)["auc"] == pytest.approx(np.mean(own))


def bags_with_signal(n=24):
    torch.manual_seed(1)
    labels = [i % 2 for i in range(n)]
    return [Bag(torch.randn(8, 6) + 2.0 * y) for y in labels], labels


@pytest.mark.parametrize("seed", range(3))
def test_a_rare_class_does_not_make_validation_large(seed):
    """60 patients of a, 40 of b and 5 of c: an eighth of the common ones, one of the rare class in each fold."""
    labels = ["a"] * 60 + ["b"] * 40 + ["c"] * 5
    table = make_folds(make_manifest(Path("/x"), labels, [f"p{i}" for i in range(105)]), 5, seed)
    for name in fold_names(table):
        val = table.loc[table[name] == "val", "label"].value_counts()
        rest = table.loc[table[name] != "test", "label"].value_counts()
        assert val["c"] == 1 and rest["c"] >= 3
        assert abs(val["a"] - rest["a"] / 8) <= 1.5 and abs(val["b"] - rest["b"] / 8) <= 1.5


def test_folds_of_a_teacher_must_not_tear_the_patients_of_today():
    manifest = make_manifest(Path("/x"), ["a", "a", "b", "b"], ["p", "q", "p", "r"])
    folds = pd.DataFrame({"slide_id": [e.slide_id for e in manifest], "fold_1": ["test", "train", "train", "val"]})
    with pytest.raises(InputError, match="teacher: patient 'p' has slides in the test part of fold_1 and in the rest"):
        check_patients(folds, manifest, "teacher")
    check_patients(folds.assign(fold_1=["test", "train", "test", "val"]), manifest, "teacher")


def test_leaks_go_by_patient():
    patients = {"s1": "p", "s2": "p", "s3": "q"}
    with pytest.raises(InputError, match="trained with slide s1, whose patient is tested"):
        check_no_leak({"train": ["s1"], "val": []}, ["s2"], 1, patients)
    check_no_leak({"train": ["s1"], "val": []}, ["s3"], 1, patients)
    kin = [f"TCGA-A1-A0SB-01Z-00-DX{n}.UUID" for n in (1, 2)]
    with pytest.raises(InputError, match="learned from the teacher's attention on slide TCGA-A1-A0SB"):
        check_no_label_leak({"label_slides": kin[:1]}, kin[1:], 1)
    folds = pd.DataFrame({"slide_id": ["s2", "s3"], "fold_1": ["test", "train"]})
    assert encoder_leak({"slides": ["s1"]}, folds, ["fold_1"], patients)
    assert not encoder_leak({"slides": ["s1"]}, folds, ["fold_1"])


def test_selection_takes_the_best_validation_epoch_and_stops():
    bags, labels = bags_with_signal()
    fit = fit_head(
        build_head("abmil", 6, 2),
        bags,
        Classes(labels, 2),
        range(16),
        range(16, 24),
        TrainSettings(lr=1e-2, epochs=60, patience=3),
    )
    keys = [((r["val_auc"] or 0.0), -r["val_ce"]) for r in fit.curves]
    assert fit.best_epoch == 1 + max(range(len(keys)), key=lambda i: keys[i])
    assert len(fit.curves) == 60 or len(fit.curves) - fit.best_epoch == 3
    assert fit.curves[0]["train_total"] > fit.curves[-1]["train_total"]


def test_training_is_reproducible_and_test_bags_do_not_matter():
    bags, labels = bags_with_signal()
    settings = TrainSettings(lr=1e-3, epochs=3)
    run = lambda b: fit_head(build_fixed(), b, Classes(labels, 2), range(12), range(12, 18), settings)  # noqa: E731
    first = run(bags)
    changed = bags[:18] + [Bag(torch.full((3, 6), 99.0))] * 6  # slides 18.. are test
    second = run(changed)
    for a, b in zip(first.head.state_dict().values(), second.head.state_dict().values()):
        assert torch.equal(a, b)


def build_fixed():
    torch.manual_seed(5)
    return build_head("abmil", 6, 2)


def test_undefined_validation_auc_falls_back_to_cross_entropy():
    bags, labels = bags_with_signal()
    fit = fit_head(build_head("abmil", 6, 2), bags, Classes(labels, 2), range(12), [12, 14], TrainSettings(epochs=5))
    assert all(r["val_auc"] is None for r in fit.curves)
    assert fit.best_epoch == 1 + int(np.argmin([r["val_ce"] for r in fit.curves]))


def test_class_weights_and_balanced_sampling():
    labels = [0] * 9 + [1] * 3
    w = class_weights(labels, range(12), 2)
    assert w.tolist() == pytest.approx([12 / 18, 2.0])
    rng = np.random.default_rng(0)
    draws = [labels[i] for _ in range(200) for i in draw_order(labels, range(12), True, rng)]
    assert np.mean(draws) == pytest.approx(0.5, abs=0.05)
    assert sorted(draw_order(labels, range(12), False, rng)) == list(range(12))


def test_recipes_and_what_the_user_says_on_top():
    from lrmil_cli.errors import UsageError
    from lrmil_cli.heads import head_names
    from lrmil_cli.training.recipes import PUBLISHED, recipe_options, train_settings

    assert set(PUBLISHED) == {*head_names(), "zoommil"}
    assert train_settings("common", "clam_sb", {"lr": None, "class_weights": False, "seed": 3}) == TrainSettings(seed=3)
    clam = train_settings("published", "clam_sb", {"lr": 2e-4, "patience": None})
    assert (clam.lr, clam.weight_decay, clam.min_epochs, clam.balanced_sampling, clam.monitor, clam.patience) == (
        2e-4,
        1e-5,
        50,
        True,
        "loss",
        20,
    )
    number = make_task("regression")  # which has no classes to balance
    assert replace(train_settings("published", "meanpool", {}), balanced_sampling=False) == train_settings(
        "published", "meanpool", {}, number
    )
    assert recipe_options("published", "clam_mb", {"k": 4}) == {"inst_loss": "svm", "k": 4}
    assert recipe_options("published", "clam_sb", {"inst_loss": "ce"}) == {"inst_loss": "ce"}
    assert recipe_options("common", "clam_sb", {}) == recipe_options("published", "abmil", {}) == {}
    transmil = train_settings("published", "transmil", {})
    assert (transmil.optimizer, transmil.accumulate, transmil.lr) == ("lookahead-radam", 2, 2e-4)
    dmin = train_settings("published", "dmin", {})  # never an epoch before the 50th, but where there are fewer
    assert (dmin.lr, dmin.select_from, train_settings("published", "dmin", {"epochs": 40}).select_from) == (3e-4, 49, 9)
    short = train_settings("published", "dtfd", {"epochs": 50})
    assert (short.epochs, short.select_from, short.min_epochs) == (50, 40, 50)
    for recipe, asked in (("paper", {}), ("common", {"lr": 0.0})):
        with pytest.raises(UsageError):
            train_settings(recipe, "abmil", asked)
    with pytest.raises(UsageError, match="--recipe paper"):
        recipe_options("paper", "abmil", {})


def test_schedules_stopping_and_selection():
    from lrmil_cli.training.loop import rate

    assert [rate(TrainSettings(epochs=10, schedule="step"), e) for e in (1, 5, 6, 10)] == [1, 1, 0.2, 0.2]
    cosine = [rate(TrainSettings(epochs=10, schedule="cosine"), e) for e in range(1, 12)]
    assert cosine[0] == 1 and cosine[-1] == pytest.approx(0.05) and cosine == sorted(cosine, reverse=True)
    bags, labels = bags_with_signal()
    fit = lambda **s: fit_head(
        build_fixed(), bags, Classes(labels, 2), range(16), range(16, 24), TrainSettings(lr=1e-2, epochs=30, **s)
    )  # noqa: E731
    assert len(fit(patience=1, min_epochs=12).curves) >= 12
    late = fit(patience=30, select_from=25)
    assert late.best_epoch > 25
    assert fit(patience=1, select_from=20).best_epoch > 20  # no stopping before there is an epoch to choose
    by_loss = fit(patience=30, monitor="loss")
    assert by_loss.best_epoch == 1 + int(np.argmin([r["val_ce"] for r in by_loss.curves]))
    wrong = [*labels[:16], *(1 - np.array(labels[16:]))]  # validation gets worse as training gets better
    plateau = fit_head(
        build_fixed(),
        bags,
        Classes(wrong, 2),
        range(16),
        range(16, 24),
        TrainSettings(lr=1e-2, epochs=30, patience=30, schedule="plateau"),
    )
    best, since, lr = np.inf, 0, 1e-2
    for row in plateau.curves:
        assert row["lr"] == pytest.approx(lr)
        best, since = (row["val_ce"], 0) if row["val_ce"] < best * (1 - 1e-4) else (best, since + 1)
        if since > 5:
            lr, since = lr / 2, 0
    assert lr < 1e-2
    assert len(fit(patience=30, optimizer="radam", betas=(0.5, 0.9), clip=1e-3).curves) == 30


def test_clipping_limits_the_step(monkeypatch):
    bags, labels = bags_with_signal()
    seen = []
    inner = torch.nn.utils.clip_grad_norm_
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda p, limit: seen.append(limit) or inner(p, limit))
    fit_head(build_fixed(), bags, Classes(labels, 2), range(4), range(16, 24), TrainSettings(epochs=1, clip=5.0))
    assert seen == [5.0] * 4
