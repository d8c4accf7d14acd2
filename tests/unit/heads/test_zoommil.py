"""ZoomMIL: the perturbed top-k, the pyramid, and the properties that every head has, for a head that zooms."""

import numpy as np
import pytest
import torch

from lrmil_cli.errors import UsageError
from lrmil_cli.evaluation.metrics import auc
from lrmil_cli.evaluation.regression import regression_metrics
from lrmil_cli.heads import Bag, PyramidBag, build_head
from lrmil_cli.heads.checkpoint import load_head, save_head
from lrmil_cli.heads.topk import perturbed_topk, top_rows
from lrmil_cli.heads.zoommil import gather_children
from lrmil_cli.targets.regression import fit_scale
from lrmil_cli.training.loop import TrainSettings, fit_head, predict_bags
from lrmil_cli.training.objectives import Classes, Numbers

SMALL = {"embed_dim": 16, "hidden": 8, "k": 3, "dropout": 0.0}


def make(levels=2, dim=12, classes=3, **options):
    torch.manual_seed(0)
    return build_head("zoommil", dim, classes, {**SMALL, "levels": levels, **options}).eval()


def pyramid(n=10, ratio=4, levels=2, dim=12, seed=0, missing=0.2):
    """A random pyramid in which some children are not there."""
    g = torch.Generator().manual_seed(seed)
    features, children = [torch.randn(n, dim, generator=g)], []
    for _ in range(levels - 1):
        parents = len(features[-1])
        rows = torch.arange(parents * ratio).view(parents, ratio)
        there = torch.rand(parents, ratio, generator=g) >= missing
        order = torch.cumsum(there.flatten(), 0) - 1
        children.append(torch.where(there, order.view(parents, ratio), torch.full_like(rows, -1)))
        features.append(torch.randn(int(there.sum()), dim, generator=g))
    return PyramidBag(tuple(features), tuple(children))


def slow(head, bag):
    """Evaluation with lists and loops."""
    rows, total, chosen = list(range(len(bag.levels[0]))), 0, []
    for t in range(head.levels):
        x = torch.stack([bag.levels[t][r] for r in rows])
        h = head.project[t](x)
        total = total + torch.softmax(head.scorers[t](h)[0], 0) @ h
        if t == head.levels - 1:
            break
        kin = [[c for c in bag.children[t][r].tolist() if c >= 0] for r in rows]
        u = head.selectors[t](h)[0].tolist()
        able = [i for i in range(len(rows)) if kin[i]]
        if not able:
            break
        best = sorted(sorted(able, key=lambda i: -u[i])[: head.k])
        chosen.append([rows[i] for i in best])
        rows = [c for i in best for c in kin[i]]
    return head.classifier(total), chosen


# ---- perturbed top-k ---------------------------------------------------------------
def test_selection_by_hand():
    u = torch.tensor([0.1, 0.9, 0.5, 0.7])
    assert top_rows(u, 2).tolist() == [1, 3]
    assert perturbed_topk(u, 2, 1e-6, torch.randn(50, 4)).tolist() == [[0, 1, 0, 0], [0, 0, 0, 1]]
    # two draws: one leaves the order, one lifts row 0 to the top, so that the slots are (1, 3) and (0, 1)
    noise = torch.tensor([[0.0, 0, 0, 0], [10.0, 0, 0, 0]])
    assert perturbed_topk(u, 2, 0.1, noise).tolist() == [[0.5, 0.5, 0, 0], [0, 0.5, 0, 0.5]]


@pytest.mark.parametrize(("n", "k", "draws"), [(7, 3, 20), (5, 5, 4), (30, 1, 50)])
def test_rows_sum_to_one_and_the_gradient_is_the_published_formula(n, k, draws):
    g = torch.Generator().manual_seed(n)
    u = torch.rand(n, generator=g, dtype=torch.float64).requires_grad_()
    noise, sigma = torch.randn(draws, n, generator=g, dtype=torch.float64), 0.3
    select, weights = perturbed_topk(u, k, sigma, noise), torch.randn(k, n, generator=g, dtype=torch.float64)
    torch.testing.assert_close(select.sum(1), torch.ones(k, dtype=torch.float64))
    (select * weights).sum().backward()
    hot = torch.zeros(draws, k, n, dtype=torch.float64)
    for s in range(draws):
        for j, row in enumerate(sorted((u.detach() + sigma * noise[s]).topk(k).indices.tolist())):
            hot[s, j, row] = 1
    torch.testing.assert_close(select.detach(), hot.mean(0))
    torch.testing.assert_close(u.grad, torch.einsum("jn,sjn,sn->n", weights, hot, noise) / (draws * sigma))


# ---- the head ----------------------------------------------------------------------
@pytest.mark.parametrize("levels", [2, 3])
@pytest.mark.parametrize("n", [1, 2, 3, 9])
def test_evaluation_equals_loops(levels, n):
    head = make(levels)
    for seed in range(4):
        bag = pyramid(n, levels=levels, seed=seed, missing=0.5)
        with torch.no_grad():
            out, (logits, chosen) = head(*bag), slow(head, bag)
        torch.testing.assert_close(out.logits, logits)
        assert [out.extra[f"selected{t}"].tolist() for t in range(len(chosen))] == chosen
        torch.testing.assert_close(out.attention, torch.softmax(out.scores, 0))
        assert out.scores.shape == (n,)


@pytest.mark.parametrize("levels", [2, 3])
def test_training_without_noise_is_evaluation(levels):
    head, bag = make(levels, sigma=1e-9, samples=3), pyramid(9, levels=levels)
    with torch.no_grad():
        evaluated = head(*bag).logits
        out = head.train()(*bag)
    torch.testing.assert_close(out.logits, evaluated)
    assert out.extra["agreement"] == 1


def test_descendants_of_a_tile_are_its_childrens_children():
    bag = pyramid(5, ratio=2, levels=3)
    found, there = gather_children(bag.levels, bag.children, 2)
    for a in range(5):
        for b, child in enumerate(bag.children[0][a].tolist()):
            for c, grandchild in enumerate(bag.children[1][child].tolist() if child >= 0 else [-1, -1]):
                assert there[a, b, c] == (grandchild >= 0)
                assert torch.equal(found[a, b, c], bag.levels[2][grandchild] if grandchild >= 0 else torch.zeros(12))


def test_every_parameter_learns_and_the_selectors_only_in_training():
    head, bag = make(3).train(), pyramid(40, levels=3)
    sum(w * v for w, v in head.loss_terms(head(*bag), torch.tensor(1)).values()).backward()
    without = {n for n, p in head.named_parameters() if p.grad is None or not p.grad.abs().sum() > 1e-12}
    assert without <= {n for n, _ in head.named_parameters() if n.endswith("out.bias") and "classifier" not in n}
    head = make(2)
    sum(w * v for w, v in head.loss_terms(head(*pyramid(40)), torch.tensor(1)).values()).backward()
    assert all(p.grad is None for p in head.selectors.parameters())


def test_whole_parents_may_change_places():
    head, bag = make(), pyramid(10)
    p = torch.randperm(10, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        a, b = head(*bag), head((bag.levels[0][p], bag.levels[1]), (bag.children[0][p],))
    torch.testing.assert_close(a.logits, b.logits)
    torch.testing.assert_close(a.scores[p], b.scores)


def test_size_and_options():
    head = build_head("zoommil", 512, 2, {"levels": 3})
    assert sum(p.numel() for p in head.parameters()) == 2_103_559
    for options in ({"levels": 4}, {"k": 0}, {"sigma": 0.0}, {"zoom": 1}):
        with pytest.raises(UsageError):
            build_head("zoommil", 8, 2, options)
    with pytest.raises(UsageError, match="--method zoommil"):
        make()(*Bag(torch.zeros(3, 12)))


@pytest.mark.parametrize("levels", [2, 3])
def test_no_children_at_all_leaves_the_lowest_level(levels):
    head, bag = make(levels), pyramid(4, levels=levels, missing=1.1)
    for mode in (True, False):
        out = head.train(mode)(*bag)
        assert torch.isfinite(out.logits).all() and "selected0" not in out.extra


def test_saved_and_rebuilt(tmp_path):
    from lrmil_cli.files.header import make_header, step

    head, bag = make(3), pyramid(6, levels=3)
    save_head(tmp_path / "h.safetensors", head, make_header("head", settings={}, history=[step("x", {}, {})]))
    with torch.no_grad():
        assert torch.equal(load_head(tmp_path / "h.safetensors")[1](*bag).logits, head(*bag).logits)


@pytest.mark.parametrize("what", ["classes", "a number"])
def test_it_learns_what_only_the_children_show(what):
    """Every slide holds parents that look a little different, and whose children carry the class, or the number."""
    rng = np.random.default_rng(0)
    labels = [i % 2 for i in range(150)]
    strength = 12 * np.array(labels) - 6.0 if what == "classes" else rng.uniform(-6, 6, 150)
    bags = []
    for s in strength:
        n = int(rng.integers(12, 24))
        low, high = rng.normal(size=(n, 16)), rng.normal(size=(n * 4, 16))
        hot = rng.choice(n, 3, replace=False)
        low[hot, 0] += 4  # where to look, in every slide
        for h in hot:
            high[h * 4 : h * 4 + 4, 1] += s  # what is seen there
        bags.append(
            PyramidBag(
                (torch.tensor(low, dtype=torch.float32), torch.tensor(high, dtype=torch.float32)),
                (torch.arange(n * 4).view(n, 4),),
            )
        )
    objective = Classes(labels, 2) if what == "classes" else Numbers(strength, fit_scale(strength[:80]))
    torch.manual_seed(0)
    options = {"embed_dim": 32, "hidden": 16, "k": 4}
    head = build_head("zoommil", 16, objective.outputs, options, of_classes=objective.of_classes)
    fit = fit_head(head, bags, objective, range(80), range(80, 100), TrainSettings(lr=2e-3, epochs=8))
    said = predict_bags(fit.head, bags, objective, range(100, len(bags)))
    if what == "classes":
        assert auc(np.array(labels[100:]), said) >= 0.95
    else:
        assert regression_metrics(strength[100:], said[:, 0])["r2"] > 0.6


def test_blended_training_equals_kronecker_and_loops():
    """One forward pass of training with draws that disagree: the published product with an identity, written out."""
    head, bag = make(2, sigma=0.05, samples=7, dropout=0.0).train(), pyramid(6, ratio=4, missing=0.3, seed=3)
    out = head(*bag, generator=torch.Generator().manual_seed(5))
    assert out.extra["agreement"] < 1
    with torch.no_grad():
        h = head.project[0](bag.levels[0])
        able = (bag.children[0] >= 0).any(1).nonzero().flatten()
        u = torch.softmax(head.selectors[0](h)[0][able], 0)
        noise = torch.randn(7, 6, generator=torch.Generator().manual_seed(5))[:, able]
        k = min(3, len(able))
        select = torch.zeros(k, 6)
        for s in range(7):
            for j, i in enumerate(sorted((u + 0.05 * noise[s]).topk(k).indices.tolist())):
                select[j, able[i]] += 1 / 7
        flat = torch.stack(
            [bag.levels[1][c] if c >= 0 else torch.zeros(12) for c in bag.children[0].flatten().tolist()]
        )
        there = (bag.children[0].flatten() >= 0).float()
        wide = torch.kron(select, torch.eye(4))
        x, valid = wide @ flat, wide @ there >= 0.5
        deep = head.project[1](x)
        total = torch.softmax(head.scorers[0](h)[0], 0) @ h
        total = total + torch.softmax(head.scorers[1](deep)[0].masked_fill(~valid, -torch.inf), 0) @ deep
        torch.testing.assert_close(out.logits, head.classifier(total), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("n", [1, 2, 3, 5, 17, 64, 65, 1000])
@pytest.mark.parametrize("training", [False, True])
def test_outputs_are_finite_and_attention_sums_to_one(n, training):
    head = make(3).train(training)
    for scale in (1.0, 1e3):
        bag = pyramid(n, levels=3)
        out = head(tuple(v * scale for v in bag.levels), bag.children)
        assert torch.isfinite(out.logits).all() and torch.isfinite(out.scores).all()
        assert out.attention.sum().item() == pytest.approx(1, abs=1e-5) and out.attention.min() >= 0
