"""The interface of every MIL head, the parts they share, and the registry.

A head is one file that defines a :class:`MILHead` decorated with :func:`register`, and one import line in
``lrmil_cli/heads/__init__.py``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NamedTuple, TypeVar, get_args, get_type_hints

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lrmil_cli.errors import UsageError


class Bag(NamedTuple):
    """One slide for a head, called as ``head(*bag)``: features [N, D], and the level-0 corners [N, 2] of its tiles."""

    features: Tensor
    coords: Tensor | None = None

    def to(self, device: torch.device) -> Bag:
        """The bag on another device."""
        return Bag(self.features.to(device), None if self.coords is None else self.coords.to(device))


class PyramidBag(NamedTuple):
    """One slide at several magnifications, for a head that zooms.

    Attributes:
        levels: features [N_t, D] of each level from the lowest.
        children: of each level but the last the rows int64 [N_t, r_t] of its tiles' children in the next one, -1 for a
            child that is not there.
    """

    levels: tuple[Tensor, ...]
    children: tuple[Tensor, ...]

    @property
    def features(self) -> Tensor:
        """Of the lowest level."""
        return self.levels[0]

    def to(self, device: torch.device) -> PyramidBag:
        """The bag on another device."""
        return PyramidBag(tuple(v.to(device) for v in self.levels), tuple(v.to(device) for v in self.children))


#: (student's logits, teacher's) [C] each -> how far they lie apart, scalar.
Apart = Callable[[Tensor, Tensor], Tensor]


@dataclass
class MILOutput:
    """What a head says of one bag of N instances: C classes, or C other outputs (heads/README 1.5).

    Attributes:
        logits: [C].
        scores: [N], pre-softmax attention.
        attention: [N], always ``softmax(scores)``.
        embedding: [L] bag embedding, or [C, L] with one a class.
        class_scores: [C, N] for heads with one attention row a class.
        instance_logits: [N, C] for heads with an instance classifier.
        extra: what ``loss_terms`` needs besides.
    """

    logits: Tensor
    scores: Tensor
    attention: Tensor
    embedding: Tensor | None = None
    class_scores: Tensor | None = None
    instance_logits: Tensor | None = None
    extra: dict[str, Tensor] = field(default_factory=dict)


class MILHead(nn.Module):
    """Base of all heads (heads/README 1).

    ``attention_kind`` is "native" where the head pools with its attention, "derived" where the attention is defined
    for it afterwards.
    """

    attention_kind: Literal["native", "derived"] = "native"
    name: str = ""
    #: What it is called with: a ``bag`` or a ``pyramid``.
    takes: Literal["bag", "pyramid"] = "bag"
    #: Why it learns classes alone, and what to take in its place, as half a sentence; empty where it takes any target.
    classes_only: ClassVar[str] = "its loss is written for classes; take abmil"
    #: Of each option, where its default comes from: "paper", "official code" (of the head, or of the work named), each
    #: perhaps with a remark in brackets; or "ours: " and why.
    sources: ClassVar[dict[str, str]] = {}
    #: Called as ``head(*bag, generator=...)``; it never sees the label. ``generator`` makes what it draws reproducible.
    forward: Callable[..., MILOutput]

    def __init__(self, in_dim: int, num_classes: int, of_classes: bool = True):
        """``of_classes``: each of the ``num_classes`` outputs is the logit of a class; else the task says what."""
        super().__init__()
        self.in_dim = in_dim
        self.num_classes = num_classes
        self.of_classes = of_classes
        self.options: dict[str, Any] = {}

    def loss_terms(
        self, out: MILOutput, label: Tensor, class_weights: Tensor | None = None
    ) -> dict[str, tuple[float, Tensor]]:
        """``{name: (weight, loss)}``; the supervised loss is the weighted sum. Default: cross-entropy on the logits.

        Args:
            label: int64 scalar; class_weights: [C] or None.
        """
        return {"bag": (1.0, bag_cross_entropy(out.logits, label, class_weights))}

    def target_terms(self, out: MILOutput, loss: Tensor, apart: Apart) -> dict[str, tuple[float, Tensor]]:
        """As :meth:`loss_terms`, for a label that is no class.

        Args:
            loss: of the logits, scalar; apart: how far two logits of this bag lie apart, for heads with two branches.
        """
        return {"bag": (1.0, loss)}

    def notes(self, out: MILOutput) -> dict[str, Tensor]:
        """Scalars of one bag that the training curves show beside the losses, such as the share of instances kept."""
        return {}

    def clipped_parts(self) -> list[list[nn.Parameter]]:
        """Parameters whose gradients are clipped together, where training clips; all of them by default."""
        return [list(self.parameters())]

    def config(self) -> dict[str, Any]:
        """All that rebuilds the head: ``build_head(**config)``."""
        return {
            "name": self.name,
            "in_dim": self.in_dim,
            "num_classes": self.num_classes,
            "options": dict(self.options),
            **({} if self.of_classes else {"of_classes": False}),
        }


def bag_cross_entropy(logits: Tensor, label: Tensor, class_weights: Tensor | None = None) -> Tensor:
    """Cross-entropy of one bag: logits [C], label scalar; a class weight scales the bag's loss."""
    loss = F.cross_entropy(logits.float().unsqueeze(0), label.view(1))
    return loss if class_weights is None else loss * class_weights[label]


def check_bag(features: Tensor, in_dim: int) -> None:
    """A bag is [N, D] with N >= 1.

    Raises:
        ValueError: it is not.
    """
    if features.ndim != 2 or features.shape[0] < 1 or features.shape[1] != in_dim:
        raise ValueError(f"a bag must be [N >= 1, {in_dim}], got {tuple(features.shape)}")


class Scorer(nn.Module):
    """Attention scorer ``A(L -> H -> K)``, plain (tanh) or gated (tanh * sigmoid); returns scores [K, N]."""

    def __init__(self, in_dim: int, hidden: int, rows: int = 1, *, gated: bool = False, dropout: float = 0.0):
        super().__init__()
        self.tanh = nn.Linear(in_dim, hidden)
        self.gate = nn.Linear(in_dim, hidden) if gated else None
        self.out = nn.Linear(hidden, rows)
        self.dropout = nn.Dropout(dropout)

    def forward(self, h: Tensor) -> Tensor:
        t = self.dropout(torch.tanh(self.tanh(h)))
        if self.gate is not None:
            t = t * self.dropout(torch.sigmoid(self.gate(h)))
        return self.out(t).T


_REGISTRY: dict[str, type[MILHead]] = {}


Head = TypeVar("Head", bound=MILHead)


def register(name: str) -> Callable[[type[Head]], type[Head]]:
    """Class decorator: make a head known as ``--head NAME``."""

    def add(cls: type[Head]) -> type[Head]:
        cls.name = name
        _REGISTRY[name] = cls
        return cls

    return add


def head_names() -> list[str]:
    """Names of all heads that take a bag, sorted."""
    return sorted(n for n, head in _REGISTRY.items() if head.takes == "bag")


def build_head(
    name: str, in_dim: int, num_classes: int, options: dict[str, Any] | None = None, *, of_classes: bool = True
) -> MILHead:
    """Build a head from its name and options.

    Args:
        num_classes: outputs; of_classes: each is the logit of a class. Else they are a number, hazards or a log risk.

    Raises:
        UsageError: unknown head or option; the message lists those there are. Or a head that learns classes alone.
    """
    if name not in _REGISTRY:
        raise UsageError(f"--head {name}: there is no such head; choose one of {', '.join(head_names())}")
    cls = _REGISTRY[name]
    if not of_classes and cls.classes_only:
        raise UsageError(f"--head {name} learns classes only: {cls.classes_only}")
    options = dict(options or {})
    known = head_defaults(name)
    hints = get_type_hints(cls.__init__)
    for key, value in options.items():
        if key not in known:
            raise UsageError(f"head {name} has no option {key!r}; it has {', '.join(known)}")
        kinds = get_args(hints[key]) or (hints[key],)
        if not (type(value) in kinds or (type(value) is int and float in kinds)):
            wanted = " or ".join("null" if k is type(None) else k.__name__ for k in kinds)
            raise UsageError(f"head {name}: option {key}={value!r} must be {wanted}")
    try:
        # A head that learns classes alone has no such argument.
        head = cls(in_dim, num_classes, **options, **({} if of_classes else {"of_classes": False}))
    except (RuntimeError, ValueError, ZeroDivisionError) as e:
        raise UsageError(f"head {name} cannot be built with {options} ({' '.join(str(e).split())[:120]})") from e
    head.options = options
    return head


def head_table() -> list[dict[str, Any]]:
    """Every head: ``name``, ``what`` it is, ``attention_kind``, ``classes_only`` (why, or empty), defaults of its
    ``options``."""
    return [
        {
            "name": n,
            "what": (_REGISTRY[n].__doc__ or "").strip().split("\n")[0].split(". ")[0].rstrip(".:"),
            "attention_kind": _REGISTRY[n].attention_kind,
            "classes_only": _REGISTRY[n].classes_only,
            "options": head_defaults(n),
        }
        for n in head_names()
    ]


def head_defaults(name: str) -> dict[str, Any]:
    """Options of a head and their default values."""
    parameters = inspect.signature(_REGISTRY[name].__init__).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


def head_sources(name: str) -> dict[str, str]:
    """Where the default of each option of a head comes from, in the order of :func:`head_defaults`."""
    return {option: _REGISTRY[name].sources[option] for option in head_defaults(name)}
