"""Screening images, DB-LIPN and step 2 of AHDMIL (selective/README 2 to 4)."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch

from lrmil_cli.errors import LrmilError, UsageError
from lrmil_cli.heads import build_head
from lrmil_cli.selective import asymmetric_distillation as ahdmil
from lrmil_cli.selective.asymmetric_distillation import (
    Instances,
    ScreenSettings,
    fit_screened,
    screen_settings,
    screener_loss,
)
from lrmil_cli.selective.screener import Branch, Screener, cross_ema, screen, screening_of, seeded_screener
from lrmil_cli.selective.screening_images import check_windows, cut_windows
from lrmil_cli.targets.regression import fit_scale
from lrmil_cli.training.objectives import Classes, CoxRisks, Numbers


@pytest.mark.parametrize("ratio", [2, 4, 8])
def test_painting_one_cell_changes_one_window(ratio):
    rng = np.random.default_rng(0)
    tiles = rng.integers(0, 256, (3, 128, 128, 3), np.uint8)
    side, px = 128 // ratio, min(16, 128 // ratio)
    before = cut_windows(tiles, ratio, px)
    assert before.shape == (3, ratio**2, px, px, 3)
    for row, col in ((0, 0), (0, ratio - 1), (ratio - 1, 1)):
        painted = tiles.copy()
        painted[1, row * side : (row + 1) * side, col * side : (col + 1) * side] = 7
        changed = (cut_windows(painted, ratio, px) != before).any((2, 3, 4))
        assert np.argwhere(changed).tolist() == [[1, row * ratio + col]]
        assert (cut_windows(painted, ratio, px)[1, row * ratio + col] == 7).all()
    window = tiles[2, side : 2 * side, :side]
    np.testing.assert_array_equal(before[2, ratio], cv2.resize(window, (px, px), interpolation=cv2.INTER_AREA))
    k = side // px  # area averaging, by the mean of whole blocks
    mean = window.reshape(px, k, px, k, 3).mean((1, 3))
    assert np.abs(before[2, ratio] - mean).max() <= 0.51


def test_windows_that_cannot_be_cut_are_refused():
    check_windows(256, 4, 16, "lr-tiles")
    check_windows(100, 16, 16, "thumbnail")
    for args, words in (
        ((256, 4, 8, "lr-tiles"), "at least 16"),
        ((256, 4, 65, "lr-tiles"), "use 64 or less"),
        ((250, 4, 16, "lr-tiles"), "--tile-px 248"),
        ((256, 4, 16, "tiles"), "lr-tiles, thumbnail"),
        ((128, 16, 16, "lr-tiles"), "thumbnail can do more"),
    ):
        with pytest.raises(UsageError, match=words):
            check_windows(*args)


def test_branch_size_and_shapes():
    assert sum(p.numel() for p in Branch(2).parameters()) == 33_898
    branch = Branch(3).eval()
    for side, last in ((16, 1), (32, 1), (64, 2)):
        x = torch.randn(5, 3, side, side)
        assert branch(x).shape == (5, 3) and branch.trunk(x).shape == (5, 64, last, last)
    assert Branch(2).trunk[0][0].weight.std().item() == pytest.approx((2 / (9 * 16)) ** 0.5, rel=0.15)


def test_fusion_is_the_mean_of_raw_scores():
    torch.manual_seed(0)
    screener = Screener(2).eval()
    for b in screener.branches:
        torch.nn.init.normal_(b.out.weight, std=3.0)
    images = torch.randint(0, 256, (50, 16, 16, 3), dtype=torch.uint8)
    x = images.permute(0, 3, 1, 2).float() / 255 - 0.5
    scores = (screener.branches[0](x) + screener.branches[1](x)).detach() / 2
    s = screen(screener, images)
    torch.testing.assert_close(s.scores, scores.T)
    assert torch.equal(s.mask, s.scores > 0) and s.kept_rate == pytest.approx(
        ((scores > 0).sum(1) > 0).float().mean().item()
    )
    assert not torch.equal(screening_of(s.scores, 0.5).mask, s.mask) or not ((s.scores > 0) & (s.scores <= 0.5)).any()


def test_screening_without_a_kept_instance_keeps_the_best():
    scores = torch.stack([torch.linspace(-2, -1, 40), torch.linspace(-3, -2, 40)])
    s = screening_of(scores)
    assert s.kept_rate == 0 and s.empty.all() and s.used.any(0).nonzero().flatten().tolist() == [38, 39]  # 5 % of 40
    scores[0, 3] = 1.0
    s = screening_of(scores)
    assert s.empty.tolist() == [False, True] and s.used.any(0).nonzero().flatten().tolist() == [3]


def test_the_loss_is_zero_where_the_screener_agrees():
    torch.manual_seed(0)
    target = torch.randn(3, 30)
    same_signs = torch.stack([target * 5, target.sign() * 0.1])
    assert all(float(v) == 0 for v in screener_loss(same_signs, target, soft=False).values())
    assert all(float(v) == 0 for v in screener_loss(torch.stack([target, target]), target, soft=True).values())
    other = torch.stack([target, -target])
    hard, soft = screener_loss(other, target, False), screener_loss(other, target, True)
    assert hard["hard"].item() == pytest.approx(0.5)  # one branch right, one wrong everywhere
    assert soft["soft"].item() == pytest.approx(target.abs().mean().item())
    rates = [(m > 0).any(0).float().mean().item() for m in (target, -target)]
    assert hard["rate"].item() == soft["rate"].item() == pytest.approx((rates[1] - rates[0]) ** 2 / 2)


def test_cross_ema():
    images = torch.randint(0, 256, (8, 16, 16, 3), dtype=torch.uint8)
    for share in (0.0, 0.2, 0.5, 1.0):
        screener = seeded_screener(2, 2, 0).train()
        screener(images)  # the batch-norm buffers of both branches now differ
        old = [{k: v.clone() for k, v in b.state_dict().items()} for b in screener.branches]
        cross_ema(screener, share)
        own = {k for k, _ in screener.branches[0].named_parameters()}
        for n, b in enumerate(screener.branches):
            for k, v in b.state_dict().items():
                wanted = (1 - share) * old[n][k] + share * old[1 - n][k] if k in own else old[n][k]
                torch.testing.assert_close(v, wanted)
                if share == 0 or k not in own:
                    assert torch.equal(v, old[n][k])
    assert any(not torch.equal(old[0][k], old[1][k]) for k in old[0] if k not in own)


def coloured(count=24, dim=6, seed=0):
    """Slides whose HR tiles are reddish where their features say so: what DMIN keeps can be seen at low resolution."""
    g = torch.Generator().manual_seed(seed)
    slides, labels = [], []
    for i in range(count):
        n = 60
        hot = torch.rand(n, generator=g) < (0.5 if i % 2 else 0.2)
        features = torch.randn(n, dim, generator=g) * 0.3
        features[hot, 0] += 3
        features[:, 1] += 2.0 * (i % 2)
        images = torch.randint(90, 160, (n, 16, 16, 3), generator=g, dtype=torch.uint8)
        images[hot, :, :, 0] = torch.clamp(images[hot, :, :, 0].int() + 70, max=255).to(torch.uint8)
        slides.append(Instances(features, images))
        labels.append(i % 2)
    return slides, Classes(labels, 2)


def mask_teacher():
    """A DMIN that keeps the instances with a high first feature."""
    torch.manual_seed(0)
    head = build_head("dmin", 6, 2, {"embed_dim": 8, "hidden": 4}).eval()
    with torch.no_grad():
        for p in head.scorer.parameters():
            p.zero_()
        head.project[0].weight.zero_()
        head.project[0].weight[0, 0] = 1.0
        head.project[0].bias.zero_()
        head.project[0].weight[1, 1] = 1.0
        head.scorer.tanh.weight[0, 0], head.scorer.tanh.bias[0] = 2.0, -3.0
        head.scorer.out.weight[:, 0] = 4.0
    return head


FAST = ScreenSettings(lipn_lr=3e-3, dmin_lr=1e-3, epochs=4, patience=4, window=None)


def test_the_screener_learns_the_masks():
    slides, objective = coloured()
    teacher = mask_teacher()
    fit = fit_screened(teacher, slides, objective, range(16), range(16, 20), FAST)
    wanted = [teacher.relevance(s.features) > 0 for s in slides[20:]]
    assert 0.1 < np.mean([m.float().mean().item() for m in wanted]) < 0.6
    agreement = np.mean(
        [(screen(fit.screener, s.images).mask == m).float().mean().item() for s, m in zip(slides[20:], wanted)]
    )
    majority = max(
        np.mean([m.float().mean().item() for m in wanted]), 1 - np.mean([m.float().mean().item() for m in wanted])
    )
    assert agreement > majority + 0.1
    assert {
        "train_hard",
        "train_rate",
        "train_kept",
        "train_target_kept",
        "train_ce",
        "val_ce",
        "val_kept",
        "val_agreement",
    } <= set(fit.curves[0])


@pytest.mark.parametrize("how", ["a number", "cox"])
def test_other_targets_tune_dmin_on_what_the_screener_keeps(how):
    """A mask an output; a risk set of Cox is one step of DMIN's and many of the screener's."""
    slides, _ = coloured(16)
    truth = np.array([float(s.features[:, 1].mean()) for s in slides])
    objective = (
        Numbers(truth, fit_scale(truth[:8]))
        if how == "a number"
        else CoxRisks(5 - truth, truth > 0.5, np.array([4.0]), 4)
    )
    torch.manual_seed(0)
    teacher = build_head("dmin", 6, 1, {"embed_dim": 8, "hidden": 4, "degree": 3}, of_classes=False).eval()
    settings = ScreenSettings(lipn_lr=3e-3, dmin_lr=3e-2, epochs=5, patience=5, window=None)
    fit = fit_screened(teacher, slides, objective, range(8), range(8, 12), settings)
    assert {"train_hard", "train_loss", "val_loss", "val_kept"} <= fit.curves[
        0
    ].keys() and "train_ce" not in fit.curves[0]
    assert fit.best_epoch == 1 + int(np.argmin([row["val_loss"] for row in fit.curves]))
    said, kept, read = ahdmil.predict(fit.head, fit.screener, slides, objective, range(8, 16))
    assert said.shape == (8, 1) and kept.shape == read.shape == (8,)
    assert np.corrcoef(said[:, 0], truth[8:])[0, 1] > 0.8
    untuned = fit_screened(
        teacher, slides, objective, range(8), range(8, 12), replace(settings, freeze_dmin=True, epochs=1)
    )
    assert "train_loss" not in untuned.curves[0]


def test_hdmil_leaves_dmin_as_it_was_and_ahdmil_does_not():
    slides, objective = coloured(8)
    teacher = mask_teacher()
    few = dict(epochs=2, patience=2)
    hdmil = fit_screened(teacher, slides, objective, range(6), range(6, 8), screen_settings("hdmil", few))
    assert (
        all(torch.equal(v, hdmil.head.state_dict()[k]) for k, v in teacher.state_dict().items())
        and len(hdmil.screener.branches) == 1
    )
    assert "train_ce" not in hdmil.curves[0]
    own = fit_screened(
        teacher, slides, objective, range(6), range(6, 8), screen_settings("ahdmil", {**few, "window": None})
    )
    assert (
        any(not torch.equal(v, own.head.state_dict()[k]) for k, v in teacher.state_dict().items())
        and len(own.screener.branches) == 2
    )
    assert not any(p.requires_grad for p in own.head.parameters())


def test_hdmil_is_the_preset_of_section_10():
    assert screen_settings("hdmil", {}) == ScreenSettings(
        branches=1, p_soft=0.0, cross_ema=0.0, freeze_dmin=True, lipn_lr=1e-4, window=None
    )


@pytest.mark.parametrize("modes", [False, True])
def test_the_same_seed_gives_the_same_pair(modes):
    slides, objective = coloured(6)
    settings = screen_settings(
        "ahdmil", dict(epochs=2, patience=2, window=None, p_soft=0.5, cross_ema=0.2, official_modes=modes)
    )
    one, two = (fit_screened(mask_teacher(), slides, objective, range(4), range(4, 6), settings) for _ in range(2))
    assert one.curves == two.curves
    assert all(
        torch.equal(a, b) for a, b in zip(one.screener.state_dict().values(), two.screener.state_dict().values())
    )


def test_a_window_that_is_never_met_ends_after_three_new_starts(monkeypatch):
    slides, objective = coloured(6)
    seeds = []
    once = ahdmil._fit_once
    monkeypatch.setattr(ahdmil, "_fit_once", lambda *a: seeds.append(a[-1].seed) or once(*a))
    with pytest.raises(LrmilError, match="in 4 starts .kept on validation"):
        fit_screened(
            mask_teacher(),
            slides,
            objective,
            range(4),
            range(4, 6),
            screen_settings("ahdmil", dict(epochs=3, patience=1, window=(0.998, 0.999))),
        )
    assert len(set(seeds)) == 4


def test_a_checkpoint_lies_in_the_window_and_has_the_lowest_cross_entropy_there():
    slides, objective = coloured()
    settings = screen_settings("ahdmil", dict(epochs=3, patience=3, lipn_lr=3e-3, window=(0.05, 0.6)))
    fit = fit_screened(mask_teacher(), slides, objective, range(16), range(16, 24), settings)
    inside = {row["epoch"]: row["val_ce"] for row in fit.curves if 0.05 <= row["val_kept"] <= 0.6}
    assert fit.best_epoch == min(inside, key=inside.get)
    again = ahdmil.validate(fit.head, fit.screener, slides, objective, range(16, 24))
    assert again["val_ce"] == pytest.approx(fit.curves[fit.best_epoch - 1]["val_ce"], abs=1e-6)


def test_slides_of_one_tile():
    slides, objective = coloured(8)
    slides[0] = Instances(slides[0].features[:1], slides[0].images[:1])
    slides[7] = Instances(slides[7].features[:1], slides[7].images[:1])  # validation: works
    fit = fit_screened(mask_teacher(), slides, objective, range(6), range(6, 8), FAST)
    assert fit.skipped == 1
    assert np.isfinite(ahdmil.predict(fit.head, fit.screener, slides, objective, range(8))[0]).all()
    single = [Instances(s.features[:1], s.images[:1]) for s in slides]
    with pytest.raises(LrmilError, match="single HR tile"):
        fit_screened(mask_teacher(), single, objective, range(6), range(6, 8), FAST)


def test_settings_that_contradict_are_refused():
    for method, changes, words in (
        ("hdmil", {"cross_ema": 0.2}, "two branches"),
        ("hdmil", {"dmin_lr": 1e-4}, "frozen"),
        ("ahdmil", {"lipn_lr": 0.0}, "above 0"),
        ("ahdmil", {"window": (0.6, 0.3)}, "A < B"),
    ):
        with pytest.raises(UsageError, match=words):
            screen_settings(method, changes)
