"""Each head against its formulas: one instance at a time, in plain loops, or worked out by hand."""

import math

import pytest
import torch
import torch.nn.functional as F

from lrmil_cli.heads import build_head
from lrmil_cli.heads.base import Scorer
from lrmil_cli.heads.parts import log_odds, smooth_svm
from lrmil_cli.heads.transmil import NystromAttention, pseudo_inverse


def make(name, options=None, dim=12, classes=3):
    torch.manual_seed(0)
    return build_head(name, dim, classes, options).eval()


def softmax(values):
    e = [math.exp(v - max(values)) for v in values]
    return [v / sum(e) for v in e]


def scores_by_loop(scorer: Scorer, h):
    """[K][N] from the equation, one instance at a time."""
    out = []
    for row in h:
        t = torch.tanh(scorer.tanh.weight @ row + scorer.tanh.bias)
        if scorer.gate is not None:
            t = t * torch.sigmoid(scorer.gate.weight @ row + scorer.gate.bias)
        out.append((scorer.out.weight @ t + scorer.out.bias).tolist())
    return [list(r) for r in zip(*out)]


def embedded(head, x):
    layer = head.project[0]
    return torch.stack([torch.relu(layer.weight @ row + (0 if layer.bias is None else layer.bias)) for row in x])


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


def test_log_odds_and_svm_by_hand():
    z = torch.tensor([[1.0, 3.0], [2.0, -1.0]])
    torch.testing.assert_close(log_odds(z, 1), torch.tensor([2.0, -3.0]))
    three = torch.tensor([[0.0, 1.0, 2.0]])
    assert log_odds(three, 2).item() == pytest.approx(2 - math.log(1 + math.e))
    assert log_odds(three + 5, 2).item() == pytest.approx(log_odds(three, 2).item(), abs=1e-5)  # a shift means nothing
    assert smooth_svm(torch.tensor([[0.3, 0.1]]), torch.tensor([1])).item() == pytest.approx(
        math.log(1 + math.exp(1 + 0.3 - 0.1))
    )
    both = smooth_svm(torch.tensor([[0.3, 0.1], [0.0, 2.0]]), torch.tensor([1, 1])).item()
    assert both == pytest.approx((math.log(1 + math.exp(1.2)) + math.log(1 + math.exp(-1))) / 2)
    easy = torch.tensor([[0.0, 8.0]], requires_grad=True)
    loss = smooth_svm(easy, torch.tensor([1]))
    loss.backward()
    assert loss.item() == 0 and easy.grad.abs().sum() == 0  # the hard form
    assert smooth_svm(torch.tensor([[8.0, 0.0]]), torch.tensor([1])).item() == 9
    with pytest.raises(ValueError, match="targets"):
        smooth_svm(torch.zeros(2, 2), torch.zeros(2, 1, dtype=torch.long))


def test_meanpool_is_the_mean_of_its_instance_logits():
    head, x = make("meanpool", {"embed_dim": 8}), torch.randn(6, 12)
    out = head(x)
    h = embedded(head, x)
    z = torch.stack([head.classifier.weight @ row + head.classifier.bias for row in h])
    torch.testing.assert_close(out.logits, z.mean(0))
    torch.testing.assert_close(out.scores, log_odds(z, int(out.logits.argmax())))
    assert torch.equal(out.extra["pool_weights"], torch.full((6,), 1 / 6))
    bare = make("meanpool", {"embed_dim": None})
    torch.testing.assert_close(bare(x).logits, bare.classifier(x.mean(0)))


def test_maxpool_takes_one_instance():
    for classes in (2, 3):
        head, x = make("maxpool", {"embed_dim": 8}, classes=classes), torch.randn(9, 12)
        z = head.classifier(embedded(head, x)).detach()
        p = [softmax(row.tolist()) for row in z]
        best = max(range(9), key=lambda i: p[i][1]) if classes == 2 else max(range(9), key=lambda i: max(p[i]))
        out = head(x)
        assert out.extra["top_index"] == best
        torch.testing.assert_close(out.logits, z[best])
        loss = head.loss_terms(head.eval()(x.requires_grad_()), torch.tensor(0))["bag"][1]
        assert torch.autograd.grad(loss, x)[0].abs().sum(1).nonzero().flatten().tolist() == [best]
    head = make("maxpool", {"embed_dim": 8, "mode": "feature"})
    torch.testing.assert_close(head(x).logits, head.classifier(embedded(head, x).max(0).values))


def clam_by_loop(head, x, label):
    """Logits, rows and both loss terms from the equations."""
    h = embedded(head, x)
    rows = scores_by_loop(head.scorer, h)
    logits = []
    for c in range(head.num_classes):
        alpha = softmax(rows[c if len(rows) > 1 else 0])
        bag = sum(a * v for a, v in zip(alpha, h))
        logits.append(head.classifier.weight[c] @ bag + head.classifier.bias[c])
    k, total = min(head.k, len(x) // 2), 0.0
    for c in range(head.num_classes):
        row = rows[c if len(rows) > 1 else 0]
        order = sorted(range(len(x)), key=lambda i: -row[i])
        if c == label:
            picked = [(i, 1) for i in order[:k]] + [(i, 0) for i in order[-k:]]
        elif head.subtyping:
            picked = [(i, 0) for i in order[:k]]
        else:
            continue
        layer = head.instance_classifiers[c]
        losses = []
        for i, target in picked:
            z = (layer.weight @ h[i] + layer.bias).tolist()
            losses.append(
                -math.log(softmax(z)[target])
                if head.inst_loss == "ce"
                else math.log1p(math.exp(1 + z[1 - target] - z[target]))
            )
        total += sum(losses) / len(losses)
    return torch.stack(logits), rows, total / head.num_classes if head.subtyping else total


@pytest.mark.parametrize("name", ["clam_sb", "clam_mb"])
@pytest.mark.parametrize("subtyping", [False, True])
@pytest.mark.parametrize("inst_loss", ["ce", "svm"])
def test_clam_is_its_formulas(name, subtyping, inst_loss):
    head = make(name, {"embed_dim": 8, "hidden": 5, "k": 2, "subtyping": subtyping, "inst_loss": inst_loss})
    x = torch.randn(6, 12)
    out = head(x)
    logits, rows, inst = clam_by_loop(head, x, 2)
    torch.testing.assert_close(out.logits, logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(out.extra["rows"], torch.tensor(rows), atol=1e-5, rtol=1e-5)
    terms = head.loss_terms(out, torch.tensor(2))
    assert [w for w, _ in terms.values()] == [0.7, pytest.approx(0.3)]
    assert terms["instance"][1].item() == pytest.approx(inst, abs=1e-5)
    assert terms["bag"][1].item() == pytest.approx(-math.log(softmax(out.logits.tolist())[2]), abs=1e-5)


@pytest.mark.parametrize("name", ["clam_sb", "clam_mb"])
def test_clam_instance_loss_trains_the_embedding_and_not_the_scorer(name):
    for subtyping, trained in ((True, 3), (False, 1)):
        head = make(name, {"embed_dim": 8, "hidden": 5, "subtyping": subtyping}).train()
        head.loss_terms(head(torch.randn(40, 12)), torch.tensor(1))["instance"][1].backward()
        assert all(p.grad is None or p.grad.abs().sum() == 0 for p in head.scorer.parameters())
        assert head.project[0].weight.grad.abs().sum() > 0
        assert sum(c.weight.grad is not None for c in head.instance_classifiers) == trained
    one = head(torch.randn(1, 12))
    assert head.loss_terms(one, torch.tensor(1))["instance"][1].item() == 0
    few = make(name, {"embed_dim": 8, "hidden": 5, "k": 8})  # k <= N < 2k: no instance is in both sets
    x = torch.randn(9, 12)
    assert few.loss_terms(few(x), torch.tensor(0))["instance"][1].item() == pytest.approx(
        clam_by_loop(few, x, 0)[2], abs=1e-5
    )


def test_clam_mb_rows_are_separate():
    head, x = make("clam_mb", {"embed_dim": 8, "hidden": 5}), torch.randn(9, 12)
    before = head(x).logits
    with torch.no_grad():
        head.scorer.out.weight[1] += 1
    after = head(x).logits
    assert torch.equal(before[[0, 2]], after[[0, 2]]) and before[1] != after[1]


@pytest.mark.parametrize("nonlinear_q", [True, False])
@pytest.mark.parametrize("passing_v", [True, False])
def test_dsmil_is_its_formulas(nonlinear_q, passing_v):
    head, x = make("dsmil", {"query_dim": 5, "nonlinear_q": nonlinear_q, "passing_v": passing_v}), torch.randn(7, 12)
    z = [(head.instance_classifier.weight @ r + head.instance_classifier.bias).tolist() for r in x]

    def query(r):
        if not nonlinear_q:
            return head.query.weight @ r + head.query.bias
        a, b = head.query[0], head.query[2]
        return torch.tanh(b.weight @ torch.relu(a.weight @ r + a.bias) + b.bias)

    value = lambda r: torch.relu(head.value[1].weight @ r + head.value[1].bias) if passing_v else r
    bags, rows = [], []
    for c in range(3):
        m = max(range(7), key=lambda i: z[i][c])
        row = [(query(r) @ query(x[m])).item() / math.sqrt(5) for r in x]
        rows.append(row)
        bags.append(sum(a * value(r) for a, r in zip(softmax(row), x)))
    logits = [sum((head.fuse.weight[k, c] * bags[c]).sum() for c in range(3)) + head.fuse.bias[k] for k in range(3)]
    out = head(x)
    torch.testing.assert_close(out.class_scores, torch.tensor(rows), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(out.logits, torch.stack(logits), atol=1e-5, rtol=1e-5)
    terms = head.loss_terms(out, torch.tensor(1))
    top = [max(z[i][c] for i in range(7)) for c in range(3)]
    assert terms["max"][1].item() == pytest.approx(-math.log(softmax(top)[1]), abs=1e-5) and terms["max"][0] == 0.5
    bce = make("dsmil", {"loss": "bce"})
    out = bce(x)
    want = F.binary_cross_entropy(torch.sigmoid(out.logits), torch.tensor([0.0, 1.0, 0.0]))
    torch.testing.assert_close(bce.loss_terms(out, torch.tensor(1))["bag"][1], want)


def test_dsmil_logits_see_every_class_and_only_the_choice_of_the_instance_stream():
    head, x = make("dsmil"), torch.randn(9, 12)
    before = head(x).logits
    with torch.no_grad():
        head.instance_classifier.weight *= 2
        head.instance_classifier.bias *= 2
    assert torch.equal(head(x).logits, before)
    with torch.no_grad():
        head.fuse.weight[0, 1] = 0
    after = head(x).logits
    assert after[0] != before[0] and torch.equal(after[1:], before[1:])


def test_nystrom_with_a_landmark_a_row_is_softmax_attention():
    torch.manual_seed(0)
    layer = NystromAttention(8, 2, 16, 20, 0.0).double().eval()
    y = torch.randn(11, 8, dtype=torch.float64)
    padded = torch.cat([torch.zeros(5, 8, dtype=torch.float64), y])
    q, k, v = (padded @ layer.qkv.weight[i * 8 : (i + 1) * 8].T for i in range(3))
    parts = []
    for j in range(2):
        cols = slice(j * 4, j * 4 + 4)
        attended = torch.softmax(q[:, cols] @ k[:, cols].T / 2, -1) @ v[:, cols]
        taps = layer.mix.weight[j, 0, :, 0]
        wide = torch.cat([torch.zeros(16, 4), v[:, cols], torch.zeros(16, 4)])
        mixed = torch.stack([sum(taps[t] * wide[i + t] for t in range(33)) for i in range(16)])
        parts.append(attended + mixed)
    want = (torch.cat(parts, 1) @ layer.out.weight.T + layer.out.bias)[5:]
    torch.testing.assert_close(layer(y), want, atol=1e-6, rtol=1e-6)
    layer.iterations = 6
    assert (layer(y) - want).abs().max() < 0.1


def test_pseudo_inverse_inverts():
    torch.manual_seed(0)
    g = torch.softmax(torch.randn(3, 6, 6, dtype=torch.float64), -1)
    torch.testing.assert_close(pseudo_inverse(g, 30), torch.linalg.pinv(g), atol=1e-6, rtol=1e-6)


def test_transmil_counts_copies_for_their_original_and_reads_row_by_row():
    head, x = make("transmil", {"embed_dim": 16, "heads": 2}), torch.randn(6, 12)  # 3 x 3: three copies
    seen = {}
    first = head.layer2.first_token
    head.layer2.first_token = lambda y, how: seen.setdefault("w", first(y, how))
    out = head(x)
    w = seen["w"]
    assert len(w) == 9 and w.sum().item() == pytest.approx(1, abs=1e-5)
    torch.testing.assert_close(out.attention, torch.cat([w[:3] + w[6:], w[3:6]]), atol=1e-6, rtol=1e-5)
    grid = torch.tensor([[256, 0], [0, 0], [0, 256], [256, 256], [512, 0], [512, 256]])
    order = [1, 0, 4, 2, 3, 5]
    seen.clear()
    torch.testing.assert_close(head(x, grid).logits, head(x[order]).logits)
    assert not torch.allclose(head(x).logits, head(x[order]).logits)  # the grid is the order


def test_transmil_exact_attention_is_the_class_tokens_softmax():
    torch.manual_seed(0)
    layer = NystromAttention(8, 2, 4, 6, 0.0).eval()
    y = torch.randn(6, 8)
    q, k = y @ layer.qkv.weight[:8].T, y @ layer.qkv.weight[8:16].T
    want = (
        sum(
            torch.tensor(softmax([(q[0, c] @ k[i, c]).item() / 2 for i in range(1, 6)]))
            for c in (slice(0, 4), slice(4, 8))
        )
        / 2
    )
    torch.testing.assert_close(layer.first_token(y, "exact"), want)
    f, z, b = layer.factors(*layer.split(y)[:2])
    row = (f @ z @ b)[:, 2].mean(0)[3:].clamp(min=0)  # two rows of padding, then the class token
    torch.testing.assert_close(layer.first_token(y, "nystrom"), row / row.sum())


@pytest.mark.parametrize("distill", ["afs", "maxs", "maxmins"])
def test_dtfd_is_its_formulas(distill):
    head, x = (
        make("dtfd", {"embed_dim": 8, "hidden": 5, "groups": 3, "distill": distill, "total_instances": 6}),
        torch.randn(10, 12),
    )
    out = head(x)
    h = embedded(head, x)
    s = scores_by_loop(head.scorer, h)[0]
    chunks = [c.tolist() for c in head.deal(10, torch.Generator().manual_seed(0))]
    assert sorted(map(len, chunks)) == [3, 3, 4] and sorted(sum(chunks, [])) == list(range(10))
    rows, tier1 = [], []
    for chunk in chunks:
        alpha = softmax([s[i] for i in chunk])
        f = [a * h[i] for a, i in zip(alpha, chunk)]
        b = sum(f)
        t = head.classifier.weight @ b + head.classifier.bias
        tier1.append(t)
        label = int(t.argmax())
        keys = [softmax((head.classifier.weight @ v).tolist())[label] for v in f]
        order = sorted(range(len(chunk)), key=lambda i: -keys[i])
        if distill == "afs":
            rows.append(b)
        else:
            rows += [h[chunk[i]] for i in order[:2]] + (
                [h[chunk[i]] for i in order[-2:]] if distill == "maxmins" else []
            )
    beta = softmax(scores_by_loop(head.scorer2, rows)[0])
    bag = sum(w * r for w, r in zip(beta, rows))
    torch.testing.assert_close(out.logits, head.classifier2.weight @ bag + head.classifier2.bias, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(out.extra["tier1_logits"], torch.stack(tier1), atol=1e-5, rtol=1e-5)
    terms = head.loss_terms(out, torch.tensor(1))
    assert terms["tier1"][1].item() == pytest.approx(
        sum(-math.log(softmax(t.tolist())[1]) for t in tier1) / 3, abs=1e-5
    )
    if distill == "afs":
        torch.testing.assert_close(out.extra["effective"] @ h, bag, atol=1e-5, rtol=1e-5)


def test_dtfd_tiers_learn_apart():
    head = make("dtfd", {"embed_dim": 8, "hidden": 5}).train()
    head.loss_terms(head(torch.randn(20, 12)), torch.tensor(1))["tier2"][1].backward()
    tier1 = [*head.project.parameters(), *head.scorer.parameters(), *head.classifier.parameters()]
    assert all(p.grad is None or p.grad.abs().sum() == 0 for p in tier1)
    assert head.classifier2.weight.grad.abs().sum() > 0


def test_dtfd_with_one_group_is_abmil_and_a_tier_2_that_sees_one_row():
    head, x = make("dtfd", {"embed_dim": 8, "hidden": 5, "groups": 1}), torch.randn(20, 12)
    out = head(x)
    bag = out.attention @ out.extra["instances"]
    torch.testing.assert_close(out.extra["tier1_logits"][0], head.classifier(bag), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(out.logits, head.classifier2(bag), atol=1e-5, rtol=1e-5)


def test_dtfd_averages_groupings_as_probabilities():
    one = make("dtfd", {"embed_dim": 8, "hidden": 5})
    three = make("dtfd", {"embed_dim": 8, "hidden": 5, "inference_groupings": 3})
    three.load_state_dict(one.state_dict())
    x, generator = torch.randn(20, 12), torch.Generator().manual_seed(0)
    want = torch.stack([torch.softmax(one(x, generator=generator).logits, 0) for _ in range(3)]).mean(0)
    torch.testing.assert_close(torch.softmax(three(x).logits, 0), want)
