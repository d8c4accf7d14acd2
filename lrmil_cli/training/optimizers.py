"""What takes the steps of a head's training."""

from __future__ import annotations

from typing import Any

import torch

from lrmil_cli.device import optimizer_for
from lrmil_cli.heads import MILHead


def head_optimizer(
    name: str, head: MILHead, device: torch.device, *, weight_decay: float, **settings: Any
) -> torch.optim.Optimizer:
    """The optimizer ``name`` of a head's parameters: ``adam``, ``radam`` or ``lookahead-radam``.

    ``adam`` and ``radam`` add the weight decay to the gradient; ``lookahead-radam`` takes it off the weights, but
    not off biases and norms (decoupled, Loshchilov and Hutter 2019; as TransMIL's code does), and :func:`look_ahead`.

    Args:
        settings: ``lr`` and ``betas``.
    """
    if name != "lookahead-radam":
        return optimizer_for(name, head.parameters(), device, weight_decay=weight_decay, **settings)
    groups = [
        {"params": [p for p in head.parameters() if (p.ndim > 1) == decays], "weight_decay": weight_decay * decays}
        for decays in (True, False)
    ]
    optimizer = torch.optim.RAdam(groups, decoupled_weight_decay=True, **settings)
    look_ahead(optimizer)
    return optimizer


def look_ahead(optimizer: torch.optim.Optimizer, *, k: int = 5, alpha: float = 0.5) -> None:
    """Lookahead around an optimizer (Zhang et al. 2019, algorithm 1, their ``k`` and ``alpha``): after every ``k`` of
    its steps the slow weights go ``alpha`` of the way to where it got, and it goes on from there."""
    fast = [p for group in optimizer.param_groups for p in group["params"]]
    slow = [p.detach().clone() for p in fast]
    steps = 0

    def follow(*_: Any) -> None:
        nonlocal steps
        steps += 1
        if steps % k == 0:
            with torch.no_grad():
                for s, f in zip(slow, fast):
                    f.copy_(s.lerp_(f, alpha))

    optimizer.register_step_post_hook(follow)
