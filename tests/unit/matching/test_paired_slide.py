"""Pairs as arrays, and what is left of them when tiles go."""

import numpy as np

from lrmil_cli.matching.paired_slide import PairedSlide, keep_targets, one_tile_a_cell
from lrmil_cli.matching.tile_rows import find_rows, region_parents


def paired():
    """Three regions of r = 2: two children, one, and one of which only a tile far off its cell is there."""
    children = np.array([[0, 1, -1, -1], [-1, 2, -1, -1], [-1, -1, -1, 3]])
    boxes = np.array([[n * 10, 0, 10, 10] for n in range(4)])
    header = {"ratio": 2}
    return PairedSlide(
        "s",
        header,
        "s.pairs.csv",
        None,
        hr_boxes=boxes,
        lr_boxes=boxes[:3] * 2,
        children=children,
        lr_index=np.array([4, 5, 9]),
        hr_index=np.array([7, 8, 11, 12]),
        region=np.array([0, 0, 1, 2]),
        offset=np.array([0.0, 0.1, 0.2, 0.4]),
        cell=np.array([0, 1, 1, 3]),
        tissue=np.array([0.9, 0.8, 0.7, 0.6]),
    )


def test_targets_and_regions_that_go_leave_no_gap():
    left = keep_targets(paired(), np.array([1, 3]))
    assert left.children.tolist() == [[-1, 0, -1, -1], [-1, -1, -1, 1]]
    assert left.region.tolist() == [0, 1] and left.region.dtype == np.int64
    assert left.cell.tolist() == [1, 3] and left.tissue.tolist() == [0.8, 0.6]
    assert left.lr_index.tolist() == [4, 9] and left.hr_index.tolist() == [8, 12]
    assert left.hr_boxes[:, 0].tolist() == [10, 30] and left.lr_boxes[:, 0].tolist() == [0, 40]


def test_stage_1_learns_from_tiles_near_their_cell():
    left = one_tile_a_cell(paired())
    assert left.hr_index.tolist() == [7, 8, 11] and left.lr_index.tolist() == [4, 5]


def test_parents_by_the_rows_of_a_table_or_of_a_file():
    assert region_parents(paired(), 14)[[7, 8, 11, 12]].tolist() == [4, 4, 5, 9]
    assert region_parents(paired(), 3, np.array([2, -1, 0, 1])).tolist() == [5, 9, 4]
    assert find_rows(np.array([[3, 4], [9, 9]]), np.array([[1, 2], [3, 4]])).tolist() == [1, -1]
