"""Every loss against numbers worked out by hand and against slow, independent versions (loops, scipy)."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import logsumexp, softmax
from scipy.stats import entropy

from lrmil_cli.distill.losses import (
    bag_distillation,
    final_loss,
    hard_attention,
    hard_feature,
    masked_region_mean,
    patch_errors,
    select_regions,
    soft_attention,
)
from lrmil_cli.distill.regions import pooling_matrix, region_means, region_scores

seeds = st.integers(0, 2**31)


# ---- region pooling ----------------------------------------------------------------
@pytest.mark.parametrize(
    ("grid", "ratio"), [(16, 2), (16, 4), (16, 8), (16, 16), (14, 2), (28, 4), (32, 8), (24, 4), (8, 4), (12, 3)]
)
def test_pooling_is_the_block_mean_where_it_divides(grid, ratio):
    tokens = torch.randn(3, grid, grid, 5)
    m = grid // ratio
    blocks = tokens.reshape(3, ratio, m, ratio, m, 5).mean(dim=(2, 4)).reshape(3, ratio * ratio, 5)
    torch.testing.assert_close(region_means(tokens, pooling_matrix(grid, ratio)), blocks, atol=1e-6, rtol=1e-5)


def test_pooling_shares_border_tokens_by_area():
    w = pooling_matrix(14, 4)
    torch.testing.assert_close(w[0] * 7, torch.tensor([2.0, 2, 2, 1] + [0] * 10))
    torch.testing.assert_close(w.sum(1), torch.ones(4))


@pytest.mark.parametrize("cell", [0, 1, 4, 15])
def test_painting_one_cell_moves_only_that_cell(cell):
    tokens = torch.zeros(1, 16, 16, 1)
    row, col = divmod(cell, 4)
    tokens[:, row * 4 : row * 4 + 4, col * 4 : col * 4 + 4] = 1
    means = region_means(tokens, pooling_matrix(16, 4))[0, :, 0]
    assert means.tolist() == [1.0 if k == cell else 0.0 for k in range(16)]


# ---- region scores -----------------------------------------------------------------
def slow_region_scores(e, parent, n, how):
    alpha = softmax(e)
    out, matched = np.zeros(n), np.zeros(n, bool)
    for r in range(n):
        own = [i for i in range(len(e)) if parent[i] == r]
        if not own:
            continue
        matched[r] = True
        v = e[own]
        out[r] = {
            "logmeanexp": logsumexp(v) - math.log(len(v)),
            "mean-logit": v.mean(),
            "logsumexp": logsumexp(v),
            "max": v.max(),
            "mean-weight": alpha[own].mean(),
        }[how]
    return out, matched


@settings(max_examples=40)
@given(
    seeds,
    st.integers(1, 60),
    st.integers(1, 12),
    st.sampled_from(["logmeanexp", "mean-logit", "logsumexp", "max", "mean-weight"]),
    st.sampled_from([1.0, 30.0]),
)
def test_region_scores_equal_a_loop(seed, n_hr, n_lr, how, scale):
    rng = np.random.default_rng(seed)
    e = rng.normal(size=n_hr) * scale
    parent = rng.integers(-1, n_lr, n_hr)
    got, matched = region_scores(torch.tensor(e), torch.tensor(parent), n_lr, how)
    want, want_matched = slow_region_scores(e.astype(np.float32).astype(float), parent, n_lr, how)
    assert matched.tolist() == want_matched.tolist()
    np.testing.assert_allclose(got.numpy(), want, rtol=2e-5, atol=2e-5)


def test_logmeanexp_at_t1_is_the_mean_attention_weight():
    rng = np.random.default_rng(1)
    e, parent = rng.normal(size=200), rng.integers(0, 13, 200)
    region, _ = region_scores(torch.tensor(e), torch.tensor(parent), 13)
    alpha = softmax(e)
    mean = np.array([alpha[parent == r].mean() for r in range(13)])
    np.testing.assert_allclose(torch.softmax(region, 0).numpy(), mean / mean.sum(), atol=1e-6)


# ---- stage 1 -----------------------------------------------------------------------
def test_patch_loss_by_hand():
    means = torch.tensor([[[1.0, 2.0], [0.0, 0.0]], [[3.0, 3.0], [1.0, 1.0]]])  # B=2, K=2, D=2
    targets = torch.zeros_like(means)
    errors = patch_errors(means, targets)
    assert errors.tolist() == [[2.5, 0.0], [9.0, 1.0]]
    full = torch.ones(2, 2, dtype=torch.bool)
    assert masked_region_mean(errors, full).item() == pytest.approx((1.25 + 5) / 2)
    part = torch.tensor([[True, False], [True, True]])  # masking a child removes exactly its term
    assert masked_region_mean(errors, part).item() == pytest.approx((2.5 + 5) / 2)
    assert masked_region_mean(errors, part, "child").item() == pytest.approx((2.5 + 9 + 1) / 3)
    one = torch.tensor([[False, False], [True, True]])  # a region without children does not count
    assert masked_region_mean(errors, one).item() == pytest.approx(5)


def test_patch_loss_is_zero_on_its_own_means_and_ignores_padding():
    tokens = torch.randn(2, 8, 8, 6)
    means = region_means(tokens, pooling_matrix(8, 4))
    mask = torch.rand(2, 16) > 0.4
    padded = torch.where(mask[..., None], means, torch.full_like(means, float("nan")))
    assert masked_region_mean(patch_errors(means, padded), mask).item() == 0.0


def test_unmatched_batch_gives_zero_and_no_gradient():
    errors = torch.rand(2, 4, requires_grad=True)
    loss = masked_region_mean(errors, torch.zeros(2, 4, dtype=torch.bool))
    loss.backward()
    assert loss.item() == 0 and errors.grad.abs().sum() == 0


def test_layer_norm_option_removes_scale_and_shift():
    a = torch.randn(2, 3, 32)
    assert patch_errors(a * 7 + 3, a, "ln").max() < 1e-4


def test_final_loss_by_hand():
    s = torch.tensor([[1.0, 1.0]])
    f = torch.tensor([[[0.0, 0.0], [1.0, 3.0], [9.0, 9.0]]])
    mask = torch.tensor([[True, True, False]])
    assert final_loss(s, f, mask).item() == pytest.approx((1 + 2) / 2)
    weights = torch.tensor([[0.1, 0.3, 0.6]])  # the absent child's attention is not counted
    assert final_loss(s, f, mask, weights).item() == pytest.approx(0.25 * 1 + 0.75 * 2)
    assert final_loss(s, f, mask, torch.zeros(1, 3)).item() == pytest.approx(1.5)  # no attention at all: uniform


# ---- stage 2 -----------------------------------------------------------------------
@settings(max_examples=25)
@given(seeds, st.sampled_from([0.5, 1.0, 4.0]))
def test_bag_distillation_is_the_kl_of_scipy(seed, t):
    rng = np.random.default_rng(seed)
    s, q = rng.normal(size=4), rng.normal(size=4)
    want = t**2 * entropy(softmax(q / t), softmax(s / t))
    assert bag_distillation(torch.tensor(s), torch.tensor(q), t).item() == pytest.approx(want, rel=1e-4, abs=1e-6)


def test_bag_distillation_by_hand():
    # teacher (1/2, 1/2), student (1/4, 3/4): ln 2 - 1/2 ln 3 + ... = 1/2 ln(4/3) = 0.143841
    student = torch.log(torch.tensor([0.25, 0.75]))
    assert bag_distillation(student, torch.zeros(2)).item() == pytest.approx(0.5 * math.log(4 / 3), abs=1e-6)


@settings(max_examples=25)
@given(seeds, st.integers(2, 40), st.sampled_from([0.5, 1.0, 2.0]))
def test_soft_attention_is_a_sum_over_matched_regions(seed, n, t):
    rng = np.random.default_rng(seed)
    e, a, matched = rng.normal(size=n) * 2, rng.normal(size=n) * 2, rng.random(n) < 0.8
    loss = soft_attention(torch.tensor(e), torch.tensor(a), torch.tensor(matched), t).item()
    if matched.sum() < 2:
        assert loss == 0
        return
    q, p = softmax(a[matched] / t), softmax(e[matched] / t)
    want = t**2 * sum(qi * (math.log(qi) - math.log(pi)) for qi, pi in zip(q, p))
    assert loss == pytest.approx(want, rel=1e-4, abs=1e-6)
    per = soft_attention(torch.tensor(e), torch.tensor(a), torch.tensor(matched), t, "instances").item()
    assert per == pytest.approx(want / matched.sum(), rel=1e-4, abs=1e-6)


def test_equal_scores_up_to_a_constant_give_no_soft_loss():
    a = torch.randn(9)
    every = torch.ones(9, dtype=torch.bool)
    assert soft_attention(a + 5, a, every).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    ("m", "k", "k_eff"), [(0, 4, 0), (1, 4, 0), (2, 4, 1), (3, 4, 1), (8, 4, 4), (9, 4, 4), (100, 4, 4)]
)
def test_k_eff(m, k, k_eff):
    matched = torch.zeros(120, dtype=torch.bool)
    matched[torch.randperm(120)[:m]] = True
    chosen = select_regions(torch.randn(120), matched, k)
    if k_eff == 0:
        assert chosen is None
        return
    top, bottom = chosen
    assert len(top) == len(bottom) == k_eff
    assert not set(top.tolist()) & set(bottom.tolist())
    assert matched[top].all() and matched[bottom].all()


def test_ties_go_by_tile_order_and_equal_scores_are_skipped():
    region = torch.tensor([1.0, 1.0, 0.0, 0.0, 1.0])
    top, bottom = select_regions(region, torch.ones(5, dtype=torch.bool), 2)
    assert top.tolist() == [0, 1]
    assert set(bottom.tolist()) == {2, 3}
    assert select_regions(torch.ones(6), torch.ones(6, dtype=torch.bool), 2) is None


def test_hard_attention_by_hand_and_its_step_lowers_it():
    e = torch.tensor([2.0, 0.0, -1.0], requires_grad=True)
    top, bottom = torch.tensor([0]), torch.tensor([2])
    want = 0.5 * (math.log(1 + math.exp(-2)) + math.log(1 + math.exp(-1)))
    loss = hard_attention(e, top, bottom)
    assert loss.item() == pytest.approx(want, abs=1e-6)
    loss.backward()
    assert hard_attention(e - 0.1 * e.grad, top, bottom) < loss
    assert e.grad[1] == 0


def test_hard_feature_reaches_the_classifier_only_when_features_are_frozen():
    features = torch.randn(6, 5)
    classifier = torch.nn.Linear(5, 2)
    hard_feature(features, classifier, torch.tensor([0, 1]), torch.tensor([2, 3])).backward()
    assert classifier.weight.grad.abs().sum() > 0
    z = classifier(features[[0, 1, 2, 3]]).detach().numpy()
    want = np.mean([-math.log(softmax(row)[t]) for row, t in zip(z, [1, 1, 0, 0])])
    assert hard_feature(features, classifier, torch.tensor([0, 1]), torch.tensor([2, 3])).item() == pytest.approx(
        want, rel=1e-5
    )
