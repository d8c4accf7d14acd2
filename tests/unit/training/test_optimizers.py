"""Steps of training: Lookahead, decoupled decay, several bags a step, gradients clipped part by part."""

import pytest
import torch

from lrmil_cli.heads import Bag, build_head
from lrmil_cli.training.loop import TrainSettings, fit_head, settings_of
from lrmil_cli.training.objectives import Classes
from lrmil_cli.training.optimizers import head_optimizer, look_ahead


def test_lookahead_as_in_algorithm_1():
    fast = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
    optimizer = torch.optim.SGD([fast], lr=0.1)
    look_ahead(optimizer, k=5, alpha=0.5)
    slow = inner = [1.0, -2.0]
    for step in range(1, 13):
        optimizer.zero_grad()
        (fast**2).sum().backward()
        optimizer.step()
        inner = [w - 0.1 * 2 * w for w in inner]
        if step % 5 == 0:
            slow = inner = [s + 0.5 * (w - s) for s, w in zip(slow, inner)]
        assert fast.tolist() == pytest.approx(inner, abs=1e-6)


def test_decay_is_taken_off_the_weights_and_not_off_biases():
    head = build_head("transmil", 6, 2, {"embed_dim": 32, "heads": 2})
    before = {n: p.detach().clone() for n, p in head.named_parameters()}
    optimizer = head_optimizer(
        "lookahead-radam", head, torch.device("cpu"), lr=0.1, betas=(0.9, 0.999), weight_decay=0.5
    )
    for p in head.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    for n, p in head.named_parameters():  # with the decay in the gradient, the step would be of the size of lr
        torch.testing.assert_close(p, before[n] * (1 - 0.1 * 0.5) if p.ndim > 1 else before[n])


def test_a_step_over_two_bags_is_one_of_their_mean(monkeypatch):
    torch.manual_seed(0)
    bags = [Bag(torch.randn(4, 6)) for _ in range(6)]
    labels = [0, 1] * 3
    torch.manual_seed(1)
    first = build_head("abmil", 6, 2)
    start = {k: v.clone() for k, v in first.state_dict().items()}
    from lrmil_cli.training import loop

    order = [0, 1, 2, 3, 4]  # the fifth is alone in the last step
    monkeypatch.setattr(loop, "draw_order", lambda *_: order)
    fit_head(first, bags, Classes(labels, 2), order, [5], TrainSettings(lr=1e-2, epochs=1, accumulate=2))
    second = build_head("abmil", 6, 2)
    second.load_state_dict(start)
    optimizer = torch.optim.Adam(second.parameters(), lr=1e-2)
    for step in ([0, 1], [2, 3], [4]):
        optimizer.zero_grad()
        losses = [
            torch.nn.functional.cross_entropy(second(*bags[i]).logits[None], torch.tensor([labels[i]])) for i in step
        ]
        (sum(losses) / 2).backward()
        optimizer.step()
    for name, value in second.state_dict().items():
        torch.testing.assert_close(first.state_dict()[name], value, atol=1e-6, rtol=1e-4)


def test_settings_without_accumulation_are_those_of_before():
    assert "accumulate" not in TrainSettings().as_json()
    for settings in (TrainSettings(), TrainSettings(accumulate=2, optimizer="lookahead-radam")):
        assert settings_of(settings.as_json()) == settings


def test_dtfd_clips_each_part_by_itself(monkeypatch):
    torch.manual_seed(0)
    head = build_head("dtfd", 6, 2, {"embed_dim": 16, "hidden": 8})
    parts = head.clipped_parts()
    assert sorted(map(id, (p for part in parts for p in part))) == sorted(map(id, head.parameters()))
    norms = []

    def clip(part, limit):
        before = sum(float(p.grad.norm()) for p in part)
        norms.append((len(part), limit, before))

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", clip)
    fit_head(head, [Bag(torch.randn(9, 6))] * 2, Classes([0, 1], 2), [0], [1], TrainSettings(epochs=1, clip=5.0))
    assert [(n, limit) for n, limit, _ in norms] == [(1, 5.0), (6, 5.0), (2, 5.0), (8, 5.0)]
    assert all(norm > 0 for *_, norm in norms)
    assert [len(part) for part in build_head("abmil", 6, 2).clipped_parts()] == [6]
