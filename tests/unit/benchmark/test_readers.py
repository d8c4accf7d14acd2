"""Every reader reads the same tiles."""

import numpy as np

from lrmil_cli.benchmark.readers import compare_readers, middle_part, open_by, shifted
from tests.unit.slides.test_reader import boxes_of, write


def test_all_readers_read_the_same_tiles(tmp_path):
    path = write(tmp_path, "jpeg ycbcr")
    boxes = boxes_of(64, 64, 0, 0)
    assert len(middle_part(boxes, 5)) == 5 and np.array_equal(middle_part(boxes, 10**6), boxes)
    assert np.array_equal(shifted(boxes, 4.0)[:, :2] - boxes[:, :2], np.full((len(boxes), 2), 400))
    rates, notes = compare_readers(path, 0.5, boxes, 0, 64, workers=3, rounds=1)
    assert list(rates)[:3] == ["lrmil, 1 thread", "lrmil, 3 threads", "tiffslide, 1 thread"]
    assert [n for n in notes if not n.startswith("openslide")] == []  # which need not be installed
    pixels = []
    for reader in ("lrmil", "tiffslide"):
        with open_by(reader, path, 0.5, 1) as slide:
            assert (slide.blocks(0) is None) == (reader == "tiffslide")
            pixels.append(slide.read(0, 10, 10, 200, 200))
    assert np.array_equal(*pixels)
