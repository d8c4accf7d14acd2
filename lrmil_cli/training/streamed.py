"""Bags that stay on disk: read when they are asked for, ahead of their turn, and kept while there is room.

A cohort of 1,000 slides with 12,000 tiles of 1,536 features is 37 GB in float16 and does not fit (training/README 1.1).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, overload

import torch
from torch import Tensor

from lrmil_cli.ahead import Prefetch
from lrmil_cli.device import available_memory, device_memory, give_back_memory, send

#: NamedTuples of tensors, or of tuples of them: a bag, a pyramid.
B = TypeVar("B", bound=tuple[Any, ...], covariant=True)
T = TypeVar("T", bound=tuple[Any, ...])
#: Bags read before their turn.
AHEAD = 2


@dataclass
class Room:
    """Memory that bags may be kept in between epochs, in bytes, shared by all bags of a run: on the device, then beside
    it."""

    on_device: int
    in_memory: int

    def take(self, nbytes: int) -> str | None:
        """``on_device`` or ``in_memory`` for ``nbytes`` more, None where there is no room left."""
        where = "on_device" if nbytes <= self.on_device else "in_memory" if nbytes <= self.in_memory else None
        if where is not None:
            setattr(self, where, getattr(self, where) - nbytes)
        return where

    def give_back(self, where: str, nbytes: int) -> None:
        """Undo a :meth:`take`."""
        setattr(self, where, getattr(self, where) + nbytes)


def room_for(device: torch.device, memory: int | None = None) -> Room:
    """Half of what is free, on the device and beside it; or ``memory`` bytes beside it."""
    give_back_memory()
    half = memory if memory is not None else available_memory() // 2
    return Room(device_memory(device) // 2, half)


class Streamed(Sequence[B], Generic[B]):
    """Bags of a cohort, on ``device`` and in float32 when they are asked for.

    What is read first stays as long as there is room, in the type that it is stored in, and nothing is thrown out: an
    epoch asks for every bag once, so that what was used last is no likelier to be wanted next.

    Args:
        load: index -> bag in memory, as it is stored; counts: instances of each bag; dim: width of the features.
    """

    def __init__(self, load: Callable[[int], B], counts: Sequence[int], dim: int, room: Room, device: torch.device):
        self._load, self._room = load, room
        self.counts, self.dim, self.device = list(counts), dim, device
        self._kept: dict[int, tuple[B, str, int]] = {}

    def __len__(self) -> int:
        return len(self.counts)

    @overload
    def __getitem__(self, index: int) -> B: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[B]: ...
    def __getitem__(self, index: int | slice) -> B | Sequence[B]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if index not in self._kept:
            bag = self._load(index)
            nbytes = sum(t.nbytes for t in _tensors(bag))
            where = self._room.take(nbytes)
            if where is None:
                return _ready(bag, self.device)
            self._kept[index] = (
                (_mapped(bag, lambda t: send(t, self.device)) if where == "on_device" else bag),
                where,
                nbytes,
            )
        return _ready(self._kept[index][0], self.device)

    def stored(self, index: int) -> B:
        """A bag in memory, in the type that it is stored in, and not kept."""
        return self._load(index)

    def once(self, index: int) -> B:
        """A bag that is not worth keeping, since it is asked for once."""
        return _ready(self._kept[index][0] if index in self._kept else self._load(index), self.device)

    def in_order(self, order: Sequence[int]) -> Iterator[B]:
        """Bags one after the other, those that are not kept read ahead of their turn."""
        with Prefetch((self[i] for i in order), AHEAD if any(i not in self._kept for i in order) else 0) as bags:
            yield from bags

    def forget(self) -> None:
        """Make room for others."""
        for _, where, nbytes in self._kept.values():
            self._room.give_back(where, nbytes)
        self._kept.clear()


def in_order(bags: Sequence[B], order: Sequence[int]) -> Iterator[B]:
    """``bags[i]`` for each i of ``order``, read ahead where they stay on disk."""
    return bags.in_order(order) if isinstance(bags, Streamed) else (bags[i] for i in order)


def counts_of(bags: Sequence[Any]) -> list[int]:
    """Instances of each bag, without reading those that stay on disk."""
    return bags.counts if isinstance(bags, Streamed) else [len(b.features) for b in bags]


def _tensors(bag: tuple[Any, ...]) -> Iterator[Tensor]:
    for part in bag:
        if isinstance(part, Tensor):
            yield part
        elif part is not None:
            yield from _tensors(part)


def _mapped(bag: T, change: Callable[[Tensor], Tensor]) -> T:
    """A bag of the same type with every tensor changed."""
    parts: list[Any] = [
        change(part) if isinstance(part, Tensor) else part if part is None else _mapped(part, change) for part in bag
    ]
    return type(bag)(*parts) if hasattr(bag, "_fields") else type(bag)(parts)


def _ready(bag: T, device: torch.device) -> T:
    """A bag on ``device``, its features in float32."""

    def ready(tensor: Tensor) -> Tensor:
        there = send(tensor, device)
        return there.float() if there.dtype == torch.float16 else there

    return _mapped(bag, ready)
