"""DB-LIPN, the dual-branch lightweight instance pre-screening network: which HR tiles to read, from LR pixels.

Layout, fusion and what it costs: selective/README 3.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lrmil_cli.heads.dmin import FALLBACK_SHARE, settle

#: Screening images that go through the network at a time, in evaluation.
CHUNK = 4096


def _conv(
    channels: int, out: int, kernel: int, stride: int = 1, *, depthwise: bool = False, relu: bool = True
) -> nn.Sequential:
    """Convolution without bias, batch norm, and ReLU."""
    layer = nn.Conv2d(channels, out, kernel, stride, (kernel - 1) // 2, groups=channels if depthwise else 1, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(out), *([nn.ReLU()] if relu else []))


def _bottleneck(channels: int, out: int, kernel: int) -> nn.Sequential:
    """Universal inverted bottleneck of stride 2, expansion 2, without residual."""
    wide = 2 * channels
    return nn.Sequential(
        _conv(channels, channels, kernel, depthwise=True, relu=False),
        _conv(channels, wide, 1),
        _conv(wide, wide, kernel, 2, depthwise=True),
        _conv(wide, out, 1, relu=False),
    )


class Branch(nn.Module):
    """One branch: MobileNetV4-Conv in tiny, stride 32, 33,898 parameters for two classes.

    [N, 3, s, s] -> raw scores [N, C].
    """

    def __init__(self, classes: int):
        super().__init__()
        self.trunk = nn.Sequential(
            _conv(3, 16, 3, 2),
            _conv(16, 16, 3, 2),
            _conv(16, 16, 1),
            _conv(16, 48, 3, 2),
            _conv(48, 24, 1),
            _bottleneck(24, 48, 5),
            _bottleneck(48, 64, 3),
        )
        self.neck = _conv(64, 64, 1)
        self.out = nn.Linear(64, classes)
        for m in self.modules():
            if isinstance(m, nn.Conv2d):
                nn.init.normal_(m.weight, std=(2 / (m.kernel_size[0] ** 2 * m.out_channels)) ** 0.5)
        nn.init.normal_(self.out.weight, std=0.01)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.neck(self.trunk(x).mean((2, 3), keepdim=True)).flatten(1))


class Screener(nn.Module):
    """Branches of one layout that share nothing. uint8 images [N, s, s, 3] -> raw scores [B, C, N]."""

    def __init__(self, classes: int, branches: int = 2):
        super().__init__()
        self.branches = nn.ModuleList(Branch(classes) for _ in range(branches))

    def forward(self, images: Tensor) -> Tensor:
        x = images.permute(0, 3, 1, 2).float() / 255 - 0.5
        return torch.stack([b(x).T.float() for b in self.branches])


def seeded_screener(classes: int, branches: int, seed: int) -> Screener:
    """A new screener whose random weights depend on ``seed`` only."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Screener(classes, branches)


@dataclass
class Screening:
    """What the screener says of a slide.

    Attributes:
        scores: fused, [C, N]; mask: bool [C, N], as it came; used: the same without empty classes.
        empty: bool [C], classes that kept nothing; all of them: the union was empty.
    """

    scores: Tensor
    mask: Tensor
    used: Tensor
    empty: Tensor

    @property
    def kept_rate(self) -> float:
        """Share of the instances that any class keeps, before fallbacks."""
        return float(self.mask.any(0).float().mean())


@torch.no_grad()
def screen(screener: Screener, images: Tensor) -> Screening:
    """Fused scores and mask of a slide, in the mode the screener is in.

    Raw scores are averaged over the branches; what is above 0 is kept.

    Args:
        images: uint8 [N, s, s, 3].
    """
    if screener.training:  # batch statistics are of the whole slide
        scores = screener(images).mean(0)
    else:
        scores = torch.cat([screener(part).mean(0) for part in images.split(CHUNK)], dim=1)
    return screening_of(scores)


def screening_of(scores: Tensor, threshold: float = 0.0) -> Screening:
    """Mask ``scores > threshold`` [C, N] and its fallbacks."""
    mask = scores > threshold
    used, empty = settle(mask.to(scores.dtype), scores, FALLBACK_SHARE)
    return Screening(scores, mask, used > 0.5, empty)


@torch.no_grad()
def refresh_statistics(screener: Screener, slides: Iterable[Tensor]) -> None:
    """Running statistics of batch norm as the mean over slides, each a batch, of what they are with the weights of now.

    The moving average that training keeps lags behind weights that move fast, and the screener then keeps all or
    nothing of a slide in evaluation (our choice; the method is silent).

    Args:
        slides: screening images uint8 [N, s, s, 3] each, with N > 1.
    """
    norms = [m for m in screener.modules() if isinstance(m, nn.BatchNorm2d)]
    usual = [m.momentum for m in norms]
    for m in norms:
        m.reset_running_stats()
        m.momentum = None  # a plain mean
    screener.train()
    for images in slides:
        screener(images)
    for m, momentum in zip(norms, usual):
        m.momentum = momentum


@torch.no_grad()
def cross_ema(screener: Screener, share: float) -> None:
    """Each of two branches takes over ``share`` of the other's parameters (as they were); batch-norm buffers stay."""
    if not share:
        return
    first, second = screener.branches
    for a, b in zip(first.parameters(), second.parameters()):
        old = a.clone()
        a.mul_(1 - share).add_(b, alpha=share)
        b.mul_(1 - share).add_(old, alpha=share)
