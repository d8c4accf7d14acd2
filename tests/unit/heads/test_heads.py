"""Promises of every head (all that are registered); each head against its formulas is in test_head_formulas.py."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from lrmil_cli import heads
from lrmil_cli.errors import InputError, UsageError
from lrmil_cli.evaluation.metrics import auc
from lrmil_cli.files.header import make_header, step
from lrmil_cli.heads import Bag, build_head, head_defaults, head_names, head_sources
from lrmil_cli.heads.checkpoint import load_head, save_head
from lrmil_cli.training.loop import TrainSettings, fit_head, predict_bags
from lrmil_cli.training.objectives import Classes

SMALL = {"embed_dim": 16, "hidden": 8}
VARIANTS = [
    ("abmil", {}),
    ("abmil", {"gated": True}),
    ("abmil", {"embed_dim": 16}),
    ("abmil", {"embed_dim": 16, "gated": True, "dropout": 0.25}),
    ("meanpool", {"embed_dim": 16}),
    ("meanpool", {"embed_dim": None}),
    ("maxpool", {"embed_dim": 16}),
    ("maxpool", {"embed_dim": 16, "mode": "feature"}),
    ("clam_sb", SMALL),
    ("clam_sb", {**SMALL, "subtyping": True, "inst_loss": "svm", "init": "xavier"}),
    ("clam_mb", SMALL),
    ("clam_mb", {**SMALL, "subtyping": True, "inst_loss": "svm", "init": "xavier", "dropout": 0.0}),
    ("abmil", {"classifier": "cka", "degree": 4}),
    ("clam_sb", {**SMALL, "classifier": "cka"}),
    ("clam_mb", {**SMALL, "classifier": "cka"}),
    ("dmin", SMALL),
    ("dmin", {**SMALL, "classifier": "linear", "subtyping": True, "dropout": 0.0, "detach_teacher": True}),
    ("dsmil", {"query_dim": 8}),
    (
        "dsmil",
        {"query_dim": 8, "nonlinear_q": False, "passing_v": True, "loss": "bce", "init": "default", "average": True},
    ),
    ("dsmil", {"query_dim": 8, "drop_instances": 0.5}),
    ("transmil", {"embed_dim": 16, "heads": 2}),
    ("transmil", {"embed_dim": 16, "heads": 2, "attention": "nystrom"}),
    ("dtfd", SMALL),
    ("dtfd", {**SMALL, "distill": "maxs"}),
    ("dtfd", {**SMALL, "distill": "maxmins", "residual_blocks": 1}),
    ("dtfd", {**SMALL, "inference_groupings": 3, "groups": 2}),
]
ONE_EACH = [v for i, v in enumerate(VARIANTS) if v[0] not in {w[0] for w in VARIANTS[:i]}]
every_variant = pytest.mark.parametrize(
    ("name", "options"), VARIANTS, ids=lambda v: v if isinstance(v, str) else ",".join(map(str, v.values()))
)
every_head = pytest.mark.parametrize(("name", "options"), ONE_EACH, ids=[v[0] for v in ONE_EACH])


def make(name, options, dim=12, classes=3):
    torch.manual_seed(0)
    return build_head(name, dim, classes, options).eval()


def loss_of(head, out, label=1):
    return sum(w * t for w, t in head.loss_terms(out, torch.tensor(label)).values())


def test_all_registered_heads_are_tested():
    assert set(head_names()) == {name for name, _ in VARIANTS}


@every_variant
def test_attention_is_the_softmax_of_scores(name, options):
    head = make(name, options)
    for n in (1, 2, 3, 5, 17, 64, 65, 1000):
        for scale in (1.0, 1e3):
            with torch.no_grad():
                out = head(torch.randn(n, 12) * scale)
            assert out.logits.shape == (3,) and out.scores.shape == (n,) and out.attention.shape == (n,)
            torch.testing.assert_close(out.attention, torch.softmax(out.scores, 0))
            assert out.attention.min() >= 0 and out.attention.sum().item() == pytest.approx(1, abs=1e-5)
            assert torch.isfinite(out.logits).all() and torch.isfinite(out.scores).all()
            assert len(out.extra["instances"]) == n
            if out.class_scores is not None:
                assert out.class_scores.shape == (3, n)
                assert torch.equal(out.scores, out.class_scores[out.logits.argmax()])


@every_variant
def test_one_instance_trains(name, options):
    head = make(name, options).train()
    out = head(torch.randn(1, 12))
    assert out.attention.item() == 1
    loss_of(head, out).backward()
    assert all(torch.isfinite(p.grad).all() for p in head.parameters() if p.grad is not None)


@every_variant
def test_order_does_not_matter(name, options):
    head, x, p = make(name, options), torch.randn(20, 12), torch.randperm(20)
    coords = torch.stack([torch.arange(20) % 5, torch.arange(20) // 5], 1) * 256
    a = head(x, coords)
    if name == "dtfd":  # its grouping is part of the input and moves along
        deal, back = head.deal, p.argsort()
        head.deal = lambda n, generator: [back[chunk] for chunk in deal(n, generator)]
    b = head(x[p], coords[p])
    torch.testing.assert_close(a.logits, b.logits, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(a.scores[p], b.scores, atol=1e-4, rtol=1e-4)


# Neither promises it: transmil sees positions, dtfd deals the copies apart.
@pytest.mark.parametrize(("name", "options"), [v for v in VARIANTS if v[0] not in ("transmil", "dtfd")])
def test_a_doubled_bag_gives_the_same_logits_and_half_the_attention(name, options):
    head, x = make(name, options), torch.randn(9, 12)
    one, two = head(x), head(torch.cat([x, x]))
    torch.testing.assert_close(one.logits, two.logits, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(one.attention / 2, two.attention[:9], atol=1e-6, rtol=1e-4)


@every_variant
def test_deterministic_and_empty_bag(name, options):
    head, x = make(name, options), torch.randn(23, 12)
    torch.manual_seed(1)
    first = head(x)
    torch.manual_seed(2)  # what the rest of the program draws must not matter
    assert torch.equal(first.logits, head(x).logits) and torch.equal(first.scores, head(x).scores)
    with pytest.raises(ValueError, match="N >= 1"):
        head(torch.zeros(0, 12))


@every_variant
def test_every_parameter_learns_but_the_bias_that_softmax_ignores(name, options):
    head = make(name, options).train()
    loss_of(head, head(torch.randn(40, 12))).backward()
    for key, p in head.named_parameters():
        # attention ignores a shift of all scores; instance classifiers of classes that take no part rest
        if key.endswith("out.bias") and "scorer" in key and name != "dmin":  # whose masks go by the score itself
            assert p.grad.abs().max() < 1e-6
        elif key.startswith("instance_classifiers") and not options.get("subtyping") and ".1." not in key:
            assert p.grad is None
        else:
            assert p.grad is not None and p.grad.abs().sum() > 0, key


@every_variant
def test_the_scores_carry_a_gradient_for_distillation(name, options):
    head = make(name, options).train()
    out = head(torch.randn(30, 12))
    (torch.log_softmax(out.scores, 0) * torch.randn(30)).sum().backward()
    moved = {k.split(".")[0] for k, p in head.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    reached = {
        "abmil": "scorer",
        "clam_sb": "scorer",
        "clam_mb": "scorer",
        "dmin": "scorer",
        "dtfd": "scorer",
        "dsmil": "query",
        "transmil": "layer2",
        "meanpool": "classifier",
        "maxpool": "classifier",
    }
    assert reached[name] in moved and (
        "project" in moved or not hasattr(head, "project") or not list(head.project.parameters())
    )


@every_variant
def test_a_file_rebuilds_the_head(name, options, tmp_path):
    head, x = make(name, options), torch.randn(7, 12)
    save_head(tmp_path / "h.safetensors", head, make_header("head", settings={}, history=[step("t", {}, {})]))
    _, back = load_head(tmp_path / "h.safetensors")
    assert torch.equal(back(x).logits, head(x).logits) and back.config() == head.config()


ANY_TARGET = [v for v in VARIANTS if v[0] in ("abmil", "meanpool", "dmin", "transmil")]


@pytest.mark.parametrize("outputs", [1, 4])
@pytest.mark.parametrize(("name", "options"), ANY_TARGET, ids=lambda v: v if isinstance(v, str) else None)
def test_outputs_that_are_no_classes(name, options, outputs, tmp_path):
    """One attention for all of them, whose order says nothing; a loss reaches every parameter; the file says so."""
    torch.manual_seed(0)
    head = build_head(name, 12, outputs, options, of_classes=False)
    out = head(torch.randn(40, 12))
    assert out.logits.shape == (outputs,) and out.class_scores is None
    torch.testing.assert_close(out.attention, torch.softmax(out.scores, 0))
    assert out.attention.sum().item() == pytest.approx(1, abs=1e-5)
    terms = head.target_terms(out, (out.logits**2).sum(), lambda student, teacher: ((student - teacher) ** 2).sum())
    assert {"bag"} <= terms.keys() <= {"bag", "kl", "embed", "rate"}
    (sum(w * t for w, t in terms.values()) + (torch.log_softmax(out.scores, 0) * torch.randn(40)).sum()).backward()
    for key, p in head.named_parameters():
        assert p.grad is not None and (p.grad.abs().sum() > 0 or key.endswith("out.bias")), key
    head.eval()
    save_head(tmp_path / "h.safetensors", head, make_header("head", settings={}, history=[step("t", {}, {})]))
    _, back = load_head(tmp_path / "h.safetensors")
    x = torch.randn(7, 12)
    assert back.config() == head.config() and torch.equal(back(x).scores, head(x).scores)
    scores = head(x).scores
    with torch.no_grad():
        for p in (p for p in head.parameters() if outputs > 1 and p.ndim and p.shape[0] == outputs):
            p.copy_(p.flip(0))
    torch.testing.assert_close(head(x).scores, scores, atol=1e-5, rtol=1e-5)


def test_what_learns_classes_alone_says_why_and_what_to_take(lrmil):
    rows = {r["name"]: r["classes_only"] for r in lrmil("info", "--heads", "--json").records}
    assert {name for name, why in rows.items() if not why} == {name for name, _ in ANY_TARGET}
    shown = " ".join(lrmil("info", "--heads").out.split())
    for name, why in rows.items():
        said = re.search(rf"\b{name}: .*? attention, (classes only|any target)\)", shown)
        assert said and said[1] == ("classes only" if why else "any target")
        if why:
            with pytest.raises(UsageError, match=f"--head {name} learns classes only: .*take (abmil|meanpool)"):
                build_head(name, 8, 1, of_classes=False)


def bags_with_a_cue(dim=16, count=180):
    """Bags of 20-40 standard normal instances, the first 3 of them shifted by a vector of norm 6 in positive bags."""
    torch.manual_seed(0)
    shift = torch.nn.functional.normalize(torch.randn(dim), dim=0) * 6
    bags = [torch.randn(int(torch.randint(20, 41, ())), dim) for _ in range(count)]
    for bag in bags[1::2]:
        bag[:3] += shift
    return [Bag(b) for b in bags], [i % 2 for i in range(count)]


@every_head
def test_every_head_learns_and_finds_the_informative_instances(name, options):
    bags, labels = bags_with_a_cue()
    narrow = {
        k: v
        for k, v in {"embed_dim": 32, "hidden": 32, "query_dim": 32}.items()
        if k in head_defaults(name) and (name, k) != ("abmil", "embed_dim")
    }
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        torch.manual_seed(0)
        head = build_head(name, 16, 2, {**narrow, **({"heads": 4} if name == "transmil" else {})})
        fit = fit_head(
            head,
            bags,
            Classes(labels, 2),
            range(80),
            range(80, 100),
            TrainSettings(lr=1e-3 if name == "transmil" else 2e-3, epochs=8),
        )
        assert (
            auc(np.array(labels[100:]), predict_bags(fit.head, bags, Classes(labels, 2), range(100, len(bags)))) >= 0.95
        )
        first = [int(fit.head(*b).scores.argmax()) < 3 for b, y in zip(bags[100:], labels[100:]) if y]
    finally:
        torch.set_num_threads(threads)
    if name != "transmil":  # after layer 1 a token stands for more than one instance
        assert np.mean(first) >= 0.9


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


def test_options_are_checked():
    for name, options, words in [
        ("maxpool", {"mode": "sum"}, "instance or feature"),
        ("clam_sb", {"size": "huge"}, "small, big"),
        ("dsmil", {"loss": "mse"}, "ce, bce"),
        ("dtfd", {"distill": "top"}, "afs, maxs, maxmins"),
        ("transmil", {"embed_dim": 30}, "multiple of heads"),
        ("clam_mb", {"k": "8"}, "must be int"),
        ("dmin", {"retention": 0.0}, "retention"),
        ("abmil", {"classifier": "kan"}, "linear, cka"),
        ("clam_sb", {"degree": 5}, "belongs to classifier=cka"),
        ("abmil", {"gated": 1}, "must be bool"),
        ("dtfd", {"groups": 0}, "at least 1"),
        ("clam_sb", {"embed_dim": -4}, "cannot be built"),
    ]:
        with pytest.raises(UsageError, match=words):
            build_head(name, 8, 2, options)


def door_plate():
    """Rows of three cells in the tables of heads/README."""
    text = Path(heads.__file__).with_name("README.md").read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]
    return [row for row in rows if len(row) == 3]


def test_every_default_has_a_source_and_stands_on_the_door_plate():
    told = {name: {} for name in (*head_names(), "zoommil")}
    for names, options, source in door_plate():
        for option, value in re.findall(r"`(\w+)=([^`]*)`", options):
            for name in names.split(", "):
                told[name][option] = (value, source)
    for name, options in told.items():
        shown = {k: v if isinstance(v, str) else json.dumps(v) for k, v in head_defaults(name).items()}
        assert options == {k: (v, head_sources(name)[k]) for k, v in shown.items()}, name
        for source in head_sources(name).values():
            assert re.fullmatch(r"(paper|official code)( \(.+\))?|ours: .+", source), source


@pytest.mark.parametrize(
    "row", [r for r in door_plate() if re.fullmatch(r"[\d,]+", r[2])], ids=lambda r: f"{r[0]} {r[1]}"
)
def test_parameter_counts_of_the_published_sizes(row):
    names, option, count = row
    key, _, value = option.partition("=")
    for name in names.split(", "):
        head = build_head(name, 512, 2, {key: json.loads(value)} if key else {})
        assert f"{sum(p.numel() for p in head.parameters()):,}" == count


def test_a_chebyshev_classifier_takes_the_place_of_the_linear_one():
    linear, cka = (build_head("abmil", 512, 2, {"classifier": c}) for c in ("linear", "cka"))
    size = [sum(p.numel() for p in head.parameters()) for head in (linear, cka)]
    assert size[1] == size[0] - (512 * 2 + 2) + 512 * 2 * 13


def test_help_names_every_head():
    from lrmil_cli.commands.head_options import Head

    text = Head.__metadata__[0].help
    assert all(name in text for name in head_names())


def test_info_lists_every_head_with_its_options(lrmil):
    said = lrmil("info", "--heads")
    assert said.code == 0 and all(len(line) <= 80 for line in said.out.splitlines())
    rows = {r["name"]: r for r in lrmil("info", "--heads", "--json").records}
    assert list(rows) == head_names()
    for name, row in rows.items():
        assert row["options"] == head_defaults(name) and f"{name}: {row['what']}"[:40] in said.out
        build_head(name, 8, 2, row["options"])  # what is listed can be set
