"""CKA classifier: a Kolmogorov-Arnold layer of Chebyshev polynomials in place of a linear one (Dong et al., HDMIL)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lrmil_cli.device import full_precision
from lrmil_cli.errors import UsageError

CLASSIFIERS = ("linear", "cka")
#: Degree of the polynomials where nothing else is asked for.
DEGREE = 12


class Chebyshev(nn.Module):
    """``y_o = sum_i sum_d theta[i, o, d] T_d(tanh x_i)``, degrees d = 0 to K; ``T_0`` stands for a bias.

    Args:
        degree: K; separate: the outputs are layers of one output each, and are initialised as such.
    """

    def __init__(self, in_dim: int, out_dim: int, degree: int = DEGREE, *, separate: bool = False):
        super().__init__()
        if degree < 1:
            raise UsageError(f"degree={degree}: the polynomials of a cka classifier have degree 1 or more")
        self.theta = nn.Parameter(torch.empty(in_dim, out_dim, degree + 1))
        # Xavier-normal as PyTorch has it for 3-D tensors: fan_in = O (K + 1), fan_out = I (K + 1).
        nn.init.normal_(self.theta, std=(2 / ((in_dim + (1 if separate else out_dim)) * (degree + 1))) ** 0.5)

    def basis(self, x: Tensor) -> Tensor:
        """``T_d(tanh x)``: [..., I] -> float32 [..., I, K + 1], by the recurrence ``T_d = 2 x T_{d-1} - T_{d-2}``.

        Not by ``cos(d arccos x)``, whose gradient breaks near 1; in float32 because ``T_d'`` grows like d squared.
        """
        t = torch.tanh(x.float())
        terms = [torch.ones_like(t), t]
        for _ in range(self.theta.shape[2] - 2):
            terms.append(2 * t * terms[-1] - terms[-2])
        return torch.stack(terms, dim=-1)

    def forward(self, x: Tensor) -> Tensor:
        """[..., I] -> [..., O]."""
        with full_precision(x.device):
            return torch.einsum("...id,iod->...o", self.basis(x), self.theta.float())

    def own(self, x: Tensor) -> Tensor:
        """Output o of input row o: [O, I] -> [O]."""
        with full_precision(x.device):
            return torch.einsum("oid,iod->o", self.basis(x), self.theta.float())


def make_classifier(
    kind: str, in_dim: int, out_dim: int, degree: int, *, separate: bool = False
) -> Chebyshev | nn.Linear:
    """A linear or a CKA classifier.

    Raises:
        UsageError: another kind, or a degree for a linear one.
    """
    if kind not in CLASSIFIERS:
        raise UsageError(f"classifier={kind}: choose one of {', '.join(CLASSIFIERS)}")
    if kind == "cka":
        return Chebyshev(in_dim, out_dim, degree, separate=separate)
    if degree != DEGREE:
        raise UsageError(f"degree={degree} belongs to classifier=cka; a linear classifier has no degree")
    return nn.Linear(in_dim, out_dim)


def own_logits(classifier: Chebyshev | nn.Linear, bags: Tensor) -> Tensor:
    """Logit c from the embedding of class c: [C, L] -> [C]."""
    if isinstance(classifier, Chebyshev):
        return classifier.own(bags)
    return (classifier.weight * bags).sum(1) + classifier.bias
