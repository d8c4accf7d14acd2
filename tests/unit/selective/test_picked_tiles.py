"""Which HR tiles EAGLE's attention picks."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from lrmil_cli.selective.picked_tiles import pick_tiles


def test_all_tiles_of_an_lr_tile_before_the_next_and_the_last_cut_by_tissue():
    attention = np.array([0.2, 0.5, 0.3])
    parent = np.array([0, 0, 1, 1, 2, 2, 2, -1])
    cell = np.array([0, 3, 1, 2, 0, 1, 2, 0])
    tissue = np.array([1.0, 1.0, 0.2, 0.9, 0.5, 0.7, 0.7, 1.0])
    for top, rows in ((1, [3]), (2, [3, 2]), (4, [3, 2, 5, 6]), (5, [3, 2, 5, 6, 4]), (25, [3, 2, 5, 6, 4, 0, 1])):
        assert pick_tiles(attention, parent, cell, tissue, top).tolist() == rows


@given(st.data())
def test_never_a_less_attended_parent_and_exactly_as_many_as_there_are(data):
    lr = data.draw(st.integers(1, 8))
    children = data.draw(st.lists(st.tuples(st.integers(-1, lr - 1), st.floats(0, 1)), min_size=1, max_size=40))
    attention = np.array(data.draw(st.lists(st.sampled_from([0.0, 0.1, 0.2, 0.7]), min_size=lr, max_size=lr)))
    parent, tissue = np.array([p for p, _ in children]), np.array([t for _, t in children])
    top = data.draw(st.integers(1, 50))
    rows = pick_tiles(attention, parent, np.arange(len(parent)), tissue, top)
    assert len(rows) == len(set(rows.tolist())) == min(top, (parent >= 0).sum())
    left = np.setdiff1d(np.flatnonzero(parent >= 0), rows)
    if len(rows) and len(left):
        assert attention[parent[rows]].min() >= attention[parent[left]].max()
        # Of the tiles that share the last LR tile, those left have no more tissue.
        last = parent[rows[-1]]
        same = [tissue[some[parent[some] == last]] for some in (rows, left)]
        assert not len(same[1]) or same[0].min() >= same[1].max()
        # No other LR tile is only partly read.
        assert set(parent[left]) & set(parent[rows]) <= {last}
