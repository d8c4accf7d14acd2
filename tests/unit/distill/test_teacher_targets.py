"""Teacher targets, the fold rule, presets."""

import numpy as np
import pandas as pd
import pytest
import torch

from lrmil_cli.distill.settings import DistillSettings, preset_settings, preset_warning
from lrmil_cli.distill.student_loss import bag_distance, terms_of_fold
from lrmil_cli.distill.teacher_targets import crossfit_targets, fold_targets, make_target
from lrmil_cli.errors import InputError, UsageError
from lrmil_cli.files.features import open_features, write_features
from lrmil_cli.files.manifest import Manifest
from lrmil_cli.files.manifest_rows import Entry
from lrmil_cli.heads import Bag, MILHead, MILOutput, build_head
from lrmil_cli.matching.pairs import match_tables
from lrmil_cli.matching.tile_rows import matched_counts
from lrmil_cli.targets.outputs import Scale
from lrmil_cli.training.bags import loaded
from lrmil_cli.training.crossval import HeadSpec
from lrmil_cli.training.high_resolution import HighResolution, HighSlide
from lrmil_cli.training.leaks import check_no_leak, encoder_leak
from lrmil_cli.training.loop import TrainSettings
from lrmil_cli.training.objectives import Classes, CoxRisks, Hazards, Numbers
from lrmil_cli.training.streamed import Room, Streamed
from tests.unit.files.test_files import features_header


def tile_table(cols, rows, mpp, width=4096, height=4096, fingerprint="f", slide_mpp=0.5):
    from lrmil_cli.slides.grid import make_grid, tile_boxes

    grid = make_grid(width, height, slide_mpp, mpp, 128)
    col, row = (a.ravel() for a in np.meshgrid(np.arange(cols), np.arange(rows)))
    slide = {"id": "s", "path": "s.svs", "width": width, "height": height, "mpp": slide_mpp, "fingerprint": fingerprint}
    header = {
        "kind": "tiles",
        "version": 1,
        "slide": slide,
        "settings": {"mpp": mpp, "tile_px": 128},
        "history": [{"digest": f"{mpp}"}],
    }
    return header, pd.DataFrame({**tile_boxes(grid, col, row), "col": col, "row": row, "tissue": 1.0})


def test_match_counts_orphans_incomplete_and_off_the_slide():
    lr_header, lr = tile_table(2, 2, 2.0, width=1100, height=1024)
    hr_header, hr = tile_table(12, 8, 0.5, width=1100, height=1024)
    lr = lr[lr["row"] * 2 + lr["col"] != 3].reset_index(drop=True)  # the bottom right LR tile was not kept
    rows, about = match_tables(lr_header, lr, hr_header, hr)
    c = about["counts"]
    # columns 0-7 lie in the two LR columns; HR column 8 starts at 1024 < 1100 with 76 of 128 px inside, but has no
    # parent
    assert about["ratio"] == 4 and c["pairs"] == 3 * 16 and c["orphans"] == 16 + 4 * 8
    assert (c["matched"], c["unmatched"], c["incomplete"]) == (3, 0, 0)
    assert rows["cell_row"].max() == rows["cell_col"].max() == 3
    first = rows.iloc[0]
    assert (first["lr_x"], first["hr_x"], first["cell_row"], first["cell_col"]) == (0, 0, 0, 0)


def test_a_child_that_lies_mostly_off_the_slide_is_dropped():
    lr_header, lr = tile_table(1, 1, 2.0, width=300, height=512)
    hr_header, hr = tile_table(3, 4, 0.5, width=300, height=512)
    _, about = match_tables(lr_header, lr, hr_header, hr)
    assert about["counts"]["outside"] == 4  # column 2: 44 of 128 px inside


@pytest.mark.parametrize(
    ("change", "says"),
    [({"fingerprint": "other"}, "tables? is of slide|of one slide"), ({"slide_mpp": 0.25}, "two scales")],
)
def test_tables_that_do_not_belong_together(change, says):
    lr_header, lr = tile_table(1, 1, 2.0)
    hr_header, hr = tile_table(4, 4, 0.5, **change)
    with pytest.raises(InputError, match=says):
        match_tables(lr_header, lr, hr_header, hr)


def test_swapped_tables_say_so():
    lr_header, lr = tile_table(1, 1, 2.0)
    hr_header, hr = tile_table(4, 4, 0.5)
    with pytest.raises(InputError, match="swapped"):
        match_tables(hr_header, hr, lr_header, lr)


# ---- targets -----------------------------------------------------------------------
def test_teacher_targets_have_one_score_a_tile_not_one_a_feature():
    torch.manual_seed(0)
    head, hr = build_head("abmil", 7, 2), torch.randn(23, 7)
    parent = torch.tensor([i % 5 for i in range(22)] + [-1])
    t = make_target(head.eval(), Bag(hr), parent, 6, DistillSettings())
    assert t.region.shape == (6,) and t.matched.tolist() == [True] * 5 + [False] and t.logits.shape == (2,)
    with torch.inference_mode():
        e = head(hr).scores
    want = [torch.logsumexp(e[parent == r], 0).item() - np.log((parent == r).sum().item()) for r in range(5)]
    np.testing.assert_allclose(t.region[:5].numpy(), want, rtol=1e-5)
    zero = make_target(head, Bag(hr), parent, 6, DistillSettings(unmatched="zero"))
    assert zero.matched.all() and zero.region[5] == 0


def terms_of(out, target, settings, objective=None):
    """The terms of a step of one slide."""
    distance = bag_distance(objective or Classes([0], 2), settings)
    return terms_of_fold({0: target}, settings, 0, 1e-4, distance)([0], [out])


def test_the_objective_is_the_weighted_sum_of_its_terms():
    torch.manual_seed(0)
    teacher, pupil = build_head("abmil", 7, 2).eval(), build_head("abmil", 7, 2)
    t = make_target(teacher, Bag(torch.randn(40, 7)), torch.arange(40) % 10, 10, DistillSettings())
    out = pupil(torch.randn(10, 7))
    terms = terms_of(out, t, DistillSettings())
    assert {k: w for k, (w, _) in terms.items()} == {"bag_kd": 1.0, "soft": 1.0, "hard": 0.5}
    assert set(terms_of(out, t, preset_settings("bag-soft", {}))) == {"bag_kd", "soft"}
    assert terms_of(out, t, preset_settings("lr-only", {})) == {}


def test_a_student_that_equals_its_teacher_has_no_bag_and_soft_loss():
    torch.manual_seed(0)
    head, x = build_head("abmil", 7, 2).eval(), torch.randn(9, 7)
    t = make_target(head, Bag(x), torch.arange(9), 9, DistillSettings())  # one HR tile a region
    terms = terms_of(head(x), t, DistillSettings())
    assert terms["bag_kd"][1].item() == pytest.approx(0, abs=1e-6) and terms["soft"][1].item() == pytest.approx(
        0, abs=1e-6
    )


@pytest.mark.parametrize("task", ["regression", "nll", "cox"])
def test_what_stands_in_place_of_eq_3_by_task(task):
    """By hand from the logits; the terms of attention stay, as means over a risk set."""
    torch.manual_seed(0)
    times, events, borders = [1.0, 5.0, 2.0, 9.0], [1, 0, 1, 1], np.array([2.0, 4.0])
    objective, outputs = {
        "regression": (Numbers([1.0, 2.0, 3.0, 4.0], Scale(2.0, 1.0)), 1),
        "nll": (Hazards(times, events, borders), 3),
        "cox": (CoxRisks(times, events, borders, 4), 1),
    }[task]
    teacher, pupil = (build_head("abmil", 7, outputs).eval() for _ in range(2))
    settings, index = DistillSettings(temperature_bag=2.0), [0, 1, 2] if task == "cox" else [1]
    targets = {i: make_target(teacher, Bag(torch.randn(40, 7)), torch.arange(40) % 10, 10, settings) for i in (0, 1, 3)}
    outs = [pupil(torch.randn(10, 7)) for _ in index]
    terms = terms_of_fold(targets, settings, 0, 1e-4, bag_distance(objective, settings))(index, outs)
    s, t = outs[0].logits.detach().numpy().astype(float), targets[index[0]].logits.numpy().astype(float)
    if task == "regression":
        want = ((s - t) ** 2).sum()
    elif task == "nll":  # a time of 5 lies in the last of three intervals: all are at risk
        h, own = (1 / (1 + np.exp(-z / 2)) for z in (t, s))
        want = 4 * sum(a * np.log(a / b) + (1 - a) * np.log((1 - a) / (1 - b)) for a, b in zip(h, own))
    else:  # slide 2 has no teacher; of two standardised risks one is 1 and one -1
        both = [
            np.sign(float(a - b)) for a, b in ((outs[0].logits, outs[1].logits), (targets[0].logits, targets[1].logits))
        ]
        want = 0.0 if both[0] == both[1] else 4.0
    assert terms["bag_kd"][1].item() == pytest.approx(want, rel=1e-4, abs=1e-4)
    alone = [terms_of(out, targets[i], settings)["soft"][1].item() for i, out in zip(index, outs) if i in targets]
    assert terms["soft"][1].item() == pytest.approx(np.mean(alone), rel=1e-5)


def test_hard_feature_without_projection_gives_the_head_no_gradient():
    torch.manual_seed(0)
    pupil = build_head("abmil", 7, 2)
    t = make_target(
        build_head("abmil", 7, 2).eval(), Bag(torch.randn(20, 7)), torch.arange(20) % 10, 10, DistillSettings()
    )
    settings = DistillSettings(lambda_bag=0, lambda_soft=0, lambda_hard=1, hard="feature")
    terms = terms_of(pupil(torch.randn(10, 7)), t, settings)
    terms["hard"][1].backward()
    assert all(p.grad is None or not p.grad.abs().sum() for p in pupil.parameters())
    projected = build_head("abmil", 7, 2, {"embed_dim": 5})
    terms_of(projected(torch.randn(10, 7)), t, settings)["hard"][1].backward()
    assert projected.project[0].weight.grad.abs().sum() > 0


def test_a_teacher_that_saw_a_test_slide_is_refused():
    check_no_leak({"train": ["a", "b"], "val": ["c"]}, ["d"], 1)
    for seen in ("b", "c"):
        with pytest.raises(InputError, match=f"slide {seen}"):
            check_no_leak({"train": ["a", "b"], "val": ["c"]}, ["d", seen], 1)


def test_slides_without_a_teacher_are_an_error_or_asked_for(tmp_path):
    head = build_head("abmil", 3, 2).eval()
    write_features(tmp_path / "a.h5", features_header(), np.ones((4, 3)), np.zeros((4, 2)))
    file, rows = open_features(tmp_path / "a.h5"), np.arange(4)
    slides = [HighSlide(torch.tensor([0, 0, 1, 1]), file, rows), None, HighSlide(torch.full((4,), -1), file, rows)]
    high = HighResolution(slides, Streamed(lambda i: loaded(file), [4] * 3, 3, Room(0, 0), torch.device("cpu")))
    with pytest.raises(InputError, match=r"slide b.*2 slide\(s\).*ce-only"):
        fold_targets(head, [0, 1, 2], high, [2, 2, 2], DistillSettings(), ["a", "b", "c"], [0, 1, 0])
    assert list(
        fold_targets(
            head, [0, 1, 2], high, [2, 2, 2], DistillSettings(missing_teacher="ce-only"), ["a", "b", "c"], [0, 1, 0]
        )
    ) == [0]


def test_cross_fitting_without_any_hr_features_says_so(tmp_path):
    entries = tuple(Entry(f"s{i}", tmp_path / f"s{i}.svs", "ab"[i % 2], f"p{i}") for i in range(4))
    manifest = Manifest(tmp_path / "slides.csv", entries, ("a", "b"))
    settings = DistillSettings(crossfit=2, missing_teacher="ce-only")
    none = Streamed(lambda i: Bag(torch.zeros(1, 1)), [0] * 4, 3, Room(0, 0), torch.device("cpu"))
    args = (
        HighResolution([None] * 4, none),
        [2] * 4,
        settings,
        HeadSpec("abmil", {}),
        TrainSettings(),
        1,
        list("abcd"),
    )
    with pytest.raises(InputError, match="too few patients"):
        crossfit_targets(manifest, [0, 1, 2, 3], *args)


def test_presets_and_bad_values():
    assert preset_settings("lrmil", {"k": 8}).k == 8
    official = preset_settings("official-code", {})
    assert (official.region_attention, official.soft_reduction, official.hard) == ("mean-logit", "instances", "feature")
    for bad in (
        lambda: preset_settings("lr", {}),
        lambda: DistillSettings(region_attention="mean"),
        lambda: DistillSettings(temperature_bag=0),
    ):
        with pytest.raises(UsageError):
            bad()
    assert "was distilled" in preset_warning("lr-only", True)
    assert "not distilled" in preset_warning("lrmil", False)
    assert preset_warning("patch", True) is None


def test_matched_counts_leave_out_slides_the_teacher_does_not_speak_of():
    counts = matched_counts([torch.tensor([0, 0, 0, 0, 1, -1]), None], [3, 9], 2)
    assert counts == {"matched": 2, "unmatched": 1, "incomplete": 1}


def test_encoder_leak_is_seen():
    folds = pd.DataFrame({"slide_id": ["a", "b"], "fold_1": ["train", "test"]})
    assert encoder_leak({"slides": ["a", "b"]}, folds, ["fold_1"])
    assert not encoder_leak({"slides": ["a"]}, folds, ["fold_1"])
    assert not encoder_leak(None, folds, ["fold_1"])


class TwoRows(MILHead):
    """A teacher that predicts class 1 and whose rows look at opposite ends."""

    def forward(self, features, coords=None, *, generator=None):
        rows = torch.stack([torch.arange(len(features)).float(), -torch.arange(len(features)).float()])
        return MILOutput(torch.tensor([0.0, 1.0]), rows[1], torch.softmax(rows[1], 0), class_scores=rows)


def test_the_attention_row_of_the_label_teaches_where_the_predicted_class_is_wrong():
    hr, parent = Bag(torch.zeros(6, 3)), torch.arange(6)
    predicted = make_target(TwoRows(3, 2), hr, parent, 6, DistillSettings(), 0)
    label = make_target(TwoRows(3, 2), hr, parent, 6, DistillSettings(attention_row="label"), 0)
    assert predicted.region.argmax() == 0 and label.region.argmax() == 5
    single = make_target(build_head("abmil", 3, 2).eval(), hr, parent, 6, DistillSettings(attention_row="label"), 0)
    assert single.region.shape == (6,)
