"""What a batch keeps of the items that it is done with."""

import gc
import weakref
from dataclasses import dataclass

import pytest

from lrmil_cli.commands.batch import run_batch
from lrmil_cli.commands.report import Report
from lrmil_cli.errors import NoTissueError


@dataclass
class Item:
    path: str
    slide_id: str


class Pixels:
    """Stands for what a failed slide held."""


def test_a_slide_that_failed_leaves_no_pixels_behind():
    held = []

    def work(item):
        gc.collect()
        assert all(h() is None for h in held)
        pixels = Pixels()
        held.append(weakref.ref(pixels))
        raise NoTissueError(f"{item.path}: no tissue")

    with pytest.raises(NoTissueError, match="3 of 3 slides failed; the first: 0.svs: no tissue"):
        run_batch("tile", "tiling", [Item(f"{n}.svs", str(n)) for n in range(3)], work, Report(False))
    assert len(held) == 3
