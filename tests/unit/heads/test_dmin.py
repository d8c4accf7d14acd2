"""DMIN and its Chebyshev classifier against their formulas (heads/README 2.5 and 3.7)."""

import math

import numpy as np
import pytest
import torch
from numpy.polynomial import chebyshev

from lrmil_cli.errors import UsageError
from lrmil_cli.heads import build_head
from lrmil_cli.heads.chebyshev import Chebyshev
from lrmil_cli.heads.dmin import gumbel_mask, masked_softmax, settle, union_rate


def dmin(classes=3, **options):
    torch.manual_seed(0)
    return build_head("dmin", 12, classes, {"embed_dim": 16, "hidden": 8, **options}).eval()


@pytest.mark.parametrize("degree", [1, 2, 12, 16])
def test_cka_is_numpys_chebyshev_series(degree):
    torch.manual_seed(0)
    layer, x = Chebyshev(7, 3, degree), torch.randn(5, 7) * 2
    theta, t = layer.theta.detach().double().numpy(), np.tanh(x.double().numpy())
    expected = [[sum(chebyshev.chebval(t[b, i], theta[i, o]) for i in range(7)) for o in range(3)] for b in range(5)]
    torch.testing.assert_close(layer(x), torch.tensor(expected).float(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(layer.own(x[:3]), layer(x[:3]).diagonal())
    torch.testing.assert_close(layer(x[0]), layer(x)[0])


def test_cka_gradient_and_initial_spread():
    torch.manual_seed(0)
    layer = Chebyshev(2, 1, 6).double()
    x = torch.randn(3, 2, dtype=torch.float64)
    step, out = 1e-3, []
    for sign in (1, -1):  # the layer computes in float32, so a difference of a wide step
        out.append(layer(x + sign * step * torch.tensor([1.0, 0.0])).sum())
    x.requires_grad_()
    layer(x).sum().backward()
    assert x.grad[:, 0].sum().item() == pytest.approx(((out[0] - out[1]) / (2 * step)).item(), rel=1e-2, abs=1e-3)
    near = torch.tensor([[20.0, -20.0]], requires_grad=True)  # tanh = 1, where arccos has no gradient
    Chebyshev(2, 1)(near).sum().backward()
    assert torch.isfinite(near.grad).all()
    assert Chebyshev(512, 1, 12).theta.std().item() == pytest.approx(0.0173, rel=0.05)
    assert Chebyshev(512, 4, 12, separate=True).theta.std().item() == pytest.approx(0.0173, rel=0.03)
    assert Chebyshev(512, 2, 12).theta.std().item() == pytest.approx(math.sqrt(2 / (514 * 13)), rel=0.03)


@pytest.mark.parametrize("tau", [0.2, 0.7, 3.0])
def test_the_share_kept_is_sigma_of_the_score_whatever_tau(tau):
    generator = torch.Generator().manual_seed(0)
    for score in (-1.0, 0.0, 0.7):
        share = gumbel_mask(torch.full((100_000,), score), tau, generator).mean().item()
        assert share == pytest.approx(1 / (1 + math.exp(-score)), abs=0.006)


def test_the_gumbel_mask_passes_the_gradient_of_its_sigmoid():
    scores = torch.randn(50, requires_grad=True)
    gumbel_mask(scores, 0.7, torch.Generator().manual_seed(3)).sum().backward()
    u = torch.rand(50, generator=torch.Generator().manual_seed(3))
    again = scores.detach().requires_grad_()
    torch.sigmoid((again + torch.log(u / (1 - u))) / 0.7).sum().backward()
    torch.testing.assert_close(scores.grad, again.grad, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("classes", [2, 3])
def test_mask_union_and_rate_by_brute_force(classes):
    head, x = dmin(classes), torch.randn(40, 12)
    out = head(x)
    a = out.class_scores.tolist()
    mask = [[a[c][n] > 0 for n in range(40)] for c in range(classes)]
    assert out.extra["mask"].tolist() == mask
    kept = [any(mask[c][n] for c in range(classes)) for n in range(40)]
    assert out.extra["rate"].item() == pytest.approx(sum(kept) / 40)
    random = (torch.rand(classes, 30) < 0.3).float().requires_grad_()
    rate = union_rate(random)
    assert rate.item() == pytest.approx(sum(any(row) for row in (random.T > 0.5).tolist()) / 30)
    rate.backward()
    assert torch.equal(random.grad, torch.full((classes, 30), 1 / 30))  # straight through to the sum
    # and the logits: one class at a time, over what it keeps
    h = out.extra["instances"]
    for c in range(classes):
        use = [n for n in range(40) if mask[c][n]] or [n for n in range(40) if kept[n]]
        e = [math.exp(a[c][n]) for n in use]
        bag = sum(w / sum(e) * h[n] for w, n in zip(e, use))
        assert out.logits[c].item() == pytest.approx(head.classifier(bag)[c].item(), abs=1e-4)


def test_with_all_kept_both_branches_are_one():
    head, x = dmin(dropout=0.0), torch.randn(25, 12)
    with torch.no_grad():
        head.scorer.out.bias.fill_(50.0)  # every score far above 0
    out = head.train()(x)
    assert out.extra["mask"].all() and out.extra["rate"] == 1
    torch.testing.assert_close(out.extra["student_logits"], out.logits)
    terms = head.loss_terms(out, torch.tensor(1))
    assert terms["kl"][1].abs() < 1e-6 and terms["embed"][1] < 1e-10
    assert terms["rate"][1].item() == pytest.approx(0.16) and [w for w, _ in terms.values()] == [
        0.7,
        0.3,
        0.5,
        0.5,
        2.0,
    ]
    torch.testing.assert_close(head.eval()(x).logits, out.logits)


def test_masked_softmax():
    scores, mask = torch.randn(3, 20), (torch.rand(3, 20) < 0.5).float()
    mask[:, 0] = 1
    weights = masked_softmax(scores, mask)
    torch.testing.assert_close(weights.sum(1), torch.ones(3))
    torch.testing.assert_close(weights, torch.softmax(scores.masked_fill(mask < 0.5, -math.inf), 1))
    torch.testing.assert_close(masked_softmax(scores + 1000, mask), weights, atol=1e-4, rtol=1e-3)
    wild = torch.tensor([[1000.0, -1000.0]], requires_grad=True)
    m = torch.tensor([[0.0, 1.0]], requires_grad=True)
    masked_softmax(wild, m)[0, 1].backward()
    assert torch.isfinite(wild.grad).all() and torch.isfinite(m.grad).all()


def test_empty_classes_take_the_union_and_an_empty_union_the_best():
    scores = torch.tensor([[3.0, 1.0, 0.0, 2.0], [3.0, 0.0, 0.0, 4.0]])
    one = torch.tensor([[0.0, 1.0, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    used, empty = settle(one, scores)
    assert used.tolist() == [[0, 1, 1, 0], [0, 1, 1, 0]] and empty.tolist() == [False, True]
    used, empty = settle(torch.zeros(2, 4), scores)
    assert (
        used.tolist() == [[1, 0, 0, 0]] * 2 or used.tolist() == [[0, 0, 0, 1]] * 2
    )  # means 3 and 3: the first of both
    assert used[0, 0] == 1 and empty.tolist() == [True, True]
    used, _ = settle(torch.zeros(1, 100), torch.arange(100.0)[None])
    assert used[0].nonzero().flatten().tolist() == [95, 96, 97, 98, 99]
    head, x = dmin(), torch.randn(9, 12)
    with torch.no_grad():
        head.scorer.out.bias.fill_(-50.0)
    out = head(x)
    assert (
        out.extra["empty"]
        and out.extra["empty_classes"].all()
        and out.extra["rate"] == 0
        and torch.isfinite(out.logits).all()
    )
    assert not dmin().select(x, torch.ones(3, 9, dtype=torch.bool)).extra["empty"]


def test_select_reads_the_selected_instances_only():
    head, x = dmin(), torch.randn(30, 12)
    mask = torch.rand(3, 30) < 0.4
    union = mask.any(0)
    all_of_it, part = head.select(x, mask), head.select(x[union], mask[:, union])
    torch.testing.assert_close(all_of_it.logits, part.logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(head.select(x, head(x).extra["mask"]).logits, head(x).logits)


def test_the_mask_of_training_is_reproducible_and_random():
    head, x = dmin(dropout=0.0).train(), torch.randn(60, 12)
    masks = [head(x, generator=torch.Generator().manual_seed(s)).extra["mask"] for s in (1, 1, 2)]
    assert torch.equal(masks[0], masks[1]) and not torch.equal(masks[0], masks[2])


def test_retention_is_what_training_keeps():
    """Trained on the rate term alone, the masks keep the share asked for."""
    for target in (0.3, 0.8):
        head, x = dmin(retention=target, dropout=0.0).train(), torch.randn(200, 12)
        optimizer = torch.optim.Adam(head.parameters(), lr=1e-2)
        for _ in range(80):
            weight, loss = head.loss_terms(head(x), torch.tensor(0))["rate"]
            optimizer.zero_grad()
            (weight * loss).backward()
            optimizer.step()
        rates = [head(x).extra["rate"].item() for _ in range(10)]
        assert np.mean(rates) == pytest.approx(target, abs=0.06)


def test_normalised_as_published():
    """Per class the weights of a row sum to 1; as published those of all rows together, each divided by one sum."""
    scores, mask = torch.tensor([[0.0, 1.0, 2.0], [3.0, 0.5, -1.0]]), torch.tensor([[1.0, 0.0, 1.0], [1.0, 1.0, 0.0]])
    kept = torch.tensor([[1.0, 0.0, torch.e**2], [torch.e**3, torch.e**0.5, 0.0]])
    torch.testing.assert_close(masked_softmax(scores, mask), kept / kept.sum(1, keepdim=True))
    torch.testing.assert_close(masked_softmax(scores, mask, joint=True), kept / kept.sum())
    with pytest.raises(UsageError, match="normalise 'none': choose one of per-class, published"):
        build_head("dmin", 8, 2, {"normalise": "none"})
    features, outs = torch.randn(12, 8), []
    for how in ("per-class", "published"):
        torch.manual_seed(0)
        head = build_head("dmin", 8, 2, {"normalise": how, "dropout": 0.0}).train()
        outs.append(head(features, generator=torch.Generator().manual_seed(1)))
        assert torch.equal(head.eval()(features).logits, head(features).logits)
    assert torch.equal(outs[0].logits, outs[1].logits)  # the teacher branch has no mask
    assert not torch.allclose(outs[0].extra["student_embedding"], outs[1].extra["student_embedding"])
