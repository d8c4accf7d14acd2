"""The pairs of a slide as stage 1 holds them: how many there are and which of them teach; the pairs stay on disk.

A thousand slides of 10,000 HR tiles are 700 MB of boxes and indices, which are wanted one slide at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from lrmil_cli.encoders.embed import open_tiled_slide
from lrmil_cli.errors import InputError
from lrmil_cli.files.header import digest, last_digest
from lrmil_cli.matching.paired_slide import PairedSlide, keep_targets, one_tile_a_cell, read_pairs
from lrmil_cli.slides.slide import Slide


@dataclass(frozen=True)
class SlidePairs:
    """A slide of stage 1.

    Attributes:
        path: of its pairs table; header: of it, with ``readable`` or ``drawn`` where that leaves out some of its tiles.
        regions, targets: how many LR and HR tiles teach.
        slide_path: where the slide may be now, if not where it was.
        rows: int32, which rows of the table do; None for all.
        piped: the pairs themselves, where they came from standard input and cannot be read again.
    """

    path: Path
    header: dict[str, Any]
    regions: int
    targets: int
    slide_path: Path | None = None
    rows: np.ndarray | None = None
    piped: PairedSlide | None = None

    @property
    def slide_id(self) -> str:
        return str(self.header["slide"]["id"])

    @property
    def ratio(self) -> int:
        return int(self.header["ratio"])

    def open_slide(self, side: str, workers: int | None = None) -> Slide:
        """As of :meth:`lrmil_cli.matching.paired_slide.PairedSlide.open_slide`."""
        return open_tiled_slide(self.header[side], self.path, self.slide_path, workers)

    def read(self) -> PairedSlide:
        """The pairs that teach.

        Raises:
            InputError: the table cannot be read, or is another than it was.
        """
        paired = self.piped or read_pairs(self.path, self.slide_path)
        if last_digest(paired.header) != last_digest(self.header):
            raise InputError(f"{self.path}: changed while it was in use (does another job write there?); run it again")
        if self.rows is not None:
            paired = keep_targets(paired, self.rows)
            paired.header = self.header
        return paired

    def narrowed(self, narrow: Callable[[PairedSlide], PairedSlide]) -> SlidePairs:
        """With what ``narrow`` leaves of the pairs; it gives back what it was given where that is all."""
        before = self.read()
        return self._with(before, narrow(before))

    def _with(self, before: PairedSlide, left: PairedSlide) -> SlidePairs:
        if left is before:
            return self
        rows = np.arange(len(before.hr_index)) if self.rows is None else self.rows
        rows = rows[np.isin(before.hr_index, left.hr_index)].astype(np.int32)
        return replace(self, header=left.header, regions=len(left.children), targets=len(left.hr_index), rows=rows)


def find_pairs(path: Path, places: Mapping[str, Path]) -> tuple[SlidePairs, int]:
    """What stage 1 learns from (:func:`lrmil_cli.matching.paired_slide.one_tile_a_cell`), and how many HR tiles it
    leaves out.

    Args:
        places: where slides may be now, by their ids.

    Raises:
        InputError: the table cannot be read, or nothing in it can be learned from.
    """
    whole = read_pairs(path)
    whole.slide_path = places.get(whole.slide_id)
    piped = whole if str(path) == "-" else None
    slide = SlidePairs(path, whole.header, len(whole.children), len(whole.hr_index), whole.slide_path, piped=piped)
    slide = slide._with(whole, one_tile_a_cell(whole))
    return slide, len(whole.hr_index) - slide.targets


def drawn(paired: PairedSlide, regions: int, seed: int) -> PairedSlide:
    """At most so many regions of a slide, drawn by seed and slide id, with the targets under them."""
    if len(paired.children) <= regions:
        return paired
    rng = np.random.default_rng((seed, *paired.slide_id.encode("utf-8", "surrogatepass")))
    chosen = rng.choice(len(paired.children), regions, replace=False)
    rows = np.flatnonzero(np.isin(paired.region, chosen))
    left = keep_targets(paired, rows)
    left.header = {**paired.header, "drawn": digest({"rows": rows.tolist()}, {})}  # its targets are not the whole's
    return left
