"""Promises of every head (all that are registered), and ABMIL against its formula."""

import pytest
import torch

from lrmil_cli.errors import InputError, UsageError
from lrmil_cli.files.header import make_header, step
from lrmil_cli.heads import build_head, head_names
from lrmil_cli.heads.checkpoint import load_head, save_head

VARIANTS = [("abmil", {}), ("abmil", {"gated": True}), ("abmil", {"embed_dim": 16}), ("abmil", {"embed_dim": 16, "gated": True, "dropout": 0.25})]
every_head = pytest.mark.parametrize(("name", "options"), VARIANTS)


def make(name, options, dim=12, classes=3):
    torch.manual_seed(0)
    return build_head(name, dim, classes, options).eval()


def test_all_registered_heads_are_tested():
    assert set(head_names()) == {name for name, _ in VARIANTS}


@every_head
@pytest.mark.parametrize("n", [1, 2, 3, 5, 17, 64, 65, 1000])
def test_attention_is_the_softmax_of_scores(name, options, n):
    for scale in (1.0, 1e3):
        out = make(name, options)(torch.randn(n, 12) * scale)
        assert out.logits.shape == (3,) and out.scores.shape == (n,) and out.attention.shape == (n,)
        torch.testing.assert_close(out.attention, torch.softmax(out.scores, 0))
        assert out.attention.min() >= 0 and out.attention.sum().item() == pytest.approx(1, abs=1e-5)
        assert torch.isfinite(out.logits).all()


@every_head
def test_order_does_not_matter(name, options):
    head, x, p = make(name, options), torch.randn(20, 12), torch.randperm(20)
    a, b = head(x), head(x[p])
    torch.testing.assert_close(a.logits, b.logits, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(a.scores[p], b.scores, atol=1e-5, rtol=1e-4)


@every_head
def test_a_doubled_bag_gives_the_same_logits_and_half_the_attention(name, options):
    head, x = make(name, options), torch.randn(9, 12)
    one, two = head(x), head(torch.cat([x, x]))
    torch.testing.assert_close(one.logits, two.logits, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(one.attention / 2, two.attention[:9], atol=1e-6, rtol=1e-4)


@every_head
def test_deterministic_and_empty_bag(name, options):
    head, x = make(name, options), torch.randn(7, 12)
    assert torch.equal(head(x).logits, head(x).logits)
    with pytest.raises(ValueError, match="N >= 1"):
        head(torch.zeros(0, 12))


@every_head
def test_every_parameter_learns_but_the_bias_that_softmax_ignores(name, options):
    head = make(name, options).train()
    out = head(torch.randn(40, 12))
    sum(w * t for w, t in head.loss_terms(out, torch.tensor(1)).values()).backward()
    for key, p in head.named_parameters():
        if key == "scorer.out.bias":
            assert p.grad.abs().max() < 1e-6
        else:
            assert p.grad is not None and p.grad.abs().sum() > 0, key


@every_head
def test_a_file_rebuilds_the_head(name, options, tmp_path):
    head, x = make(name, options), torch.randn(7, 12)
    save_head(tmp_path / "h.safetensors", head, make_header("head", settings={}, history=[step("t", {}, {})]))
    _, back = load_head(tmp_path / "h.safetensors")
    assert torch.equal(back(x).logits, head(x).logits) and back.config() == head.config()


def test_unknown_head_or_option_lists_what_there_is():
    with pytest.raises(UsageError, match="abmil"):
        build_head("abmill", 4, 2)
    with pytest.raises(UsageError, match="gated"):
        build_head("abmil", 4, 2, {"gate": True})


def test_a_head_that_does_not_fit_is_refused(tmp_path):
    head = make("abmil", {})
    header = make_header("head", settings={}, history=[step("t", {}, {})])
    save_head(tmp_path / "h.safetensors", head, header)
    from lrmil_cli.files.tensors import load_tensors, save_tensors

    h, tensors = load_tensors(tmp_path / "h.safetensors", "head")
    save_tensors(tmp_path / "bad.safetensors", tensors, {**h, "head": {**h["head"], "in_dim": 5}})
    with pytest.raises(InputError, match="does not fit"):
        load_head(tmp_path / "bad.safetensors")


@pytest.mark.parametrize(("gated", "count"), [(False, 66_819), (True, 132_483)])
def test_parameter_counts(gated, count):
    head = build_head("abmil", 512, 2, {"gated": gated})
    assert sum(p.numel() for p in head.parameters()) == count


@pytest.mark.parametrize("gated", [False, True])
def test_abmil_is_its_formula(gated):
    head = make("abmil", {"gated": gated, "hidden": 5})
    x = torch.randn(6, 12)
    s = head.scorer
    e = []
    for h in x:  # one instance at a time, from the equation
        t = torch.tanh(s.tanh.weight @ h + s.tanh.bias)
        if gated:
            t = t * torch.sigmoid(s.gate.weight @ h + s.gate.bias)
        e.append(s.out.weight[0] @ t + s.out.bias[0])
    alpha = torch.exp(torch.stack(e)) / torch.exp(torch.stack(e)).sum()
    z = sum(a * h for a, h in zip(alpha, x))
    out = head(x)
    torch.testing.assert_close(out.attention, alpha, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(out.logits, head.classifier.weight @ z + head.classifier.bias, atol=1e-5, rtol=1e-5)


def test_abmil_finds_the_informative_instances():
    """Bags of 20-40 standard normal instances, 3 of them shifted in positive bags: AUC 0.95 and the right ones first."""
    from lrmil_cli.training.loop import TrainSettings, fit_head, predict_bags
    from lrmil_cli.training.metrics import auc

    torch.manual_seed(0)
    shift = torch.nn.functional.normalize(torch.randn(16), dim=0) * 6
    bags, labels = [], []
    for i in range(180):
        bag = torch.randn(int(torch.randint(20, 41, ())), 16)
        labels.append(i % 2)
        if i % 2:
            bag[:3] += shift
        bags.append(bag)
    head = build_head("abmil", 16, 2, {"hidden": 32})
    fit = fit_head(head, bags, labels, range(80), range(80, 100), TrainSettings(lr=2e-3, epochs=8))
    import numpy as np

    assert auc(np.array(labels[100:]), predict_bags(fit.head, bags[100:])) >= 0.95
    first = [int(fit.head(b).scores.argmax()) < 3 for b, y in zip(bags[100:], labels[100:]) if y]
    assert sum(first) / len(first) >= 0.9
