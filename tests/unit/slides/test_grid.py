"""The grid, the level rule and matching, against brute force."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lrmil_cli.errors import InputError
from lrmil_cli.slides.grid import choose_level, corners, inside_share, make_grid, match_tiles, split_ratio, tile_boxes
from lrmil_cli.slides.scales import snap_downsample

MPPS = st.floats(0.1, 1.0)


@given(
    MPPS,
    st.sampled_from([2, 4, 8]),
    st.integers(300, 60_000),
    st.integers(300, 60_000),
    st.sampled_from([128, 224, 256]),
)
def test_hr_tiles_nest_in_their_lr_tile_to_within_a_pixel(slide_mpp, ratio, width, height, tile_px):
    lr = make_grid(width, height, slide_mpp, 0.5 * ratio, tile_px)
    hr = make_grid(width, height, slide_mpp, 0.5, tile_px)
    col = np.arange(hr.cols)
    x = corners(col, hr.step)
    parent = corners(col // ratio, lr.step)
    nominal = parent + (col % ratio) * hr.step
    assert np.abs(x - nominal).max() <= 1.0
    # and the last one has not drifted, however far from the origin
    assert abs(corners(np.array([hr.cols]), hr.step)[0] - hr.cols * hr.step) <= 0.5


@given(MPPS, st.integers(1, 40_000), st.integers(1, 40_000), st.floats(0.2, 8.0))
def test_tiles_cover_the_slide_without_gap_or_overlap(slide_mpp, width, height, mpp):
    grid = make_grid(width, height, slide_mpp, mpp, 256)
    col = np.arange(grid.cols)
    boxes = tile_boxes(grid, col, np.zeros_like(col))
    assert boxes["x"][0] == 0
    assert (boxes["x"][:-1] + boxes["width"][:-1] == boxes["x"][1:]).all()
    assert boxes["x"][-1] + boxes["width"][-1] >= width - 1
    assert boxes["x"][-1] < width


def brute_force_pairs(lr, hr, step_l, step_h):
    """HR (row, col) lies in the LR tile that holds its centre: rectangles, no index arithmetic."""
    out = {}
    for n, (r, c) in enumerate(hr):
        cy, cx = (r + 0.5) * step_h, (c + 0.5) * step_h
        for m, (lr_r, lr_c) in enumerate(lr):
            if lr_r * step_l <= cy < (lr_r + 1) * step_l and lr_c * step_l <= cx < (lr_c + 1) * step_l:
                out[n] = (m, int((cy - lr_r * step_l) // step_h), int((cx - lr_c * step_l) // step_h))
    return out


@settings(max_examples=60)
@given(st.integers(2, 8), st.integers(0, 2**32 - 1), st.floats(0.21, 0.61))
def test_matching_equals_rectangle_containment(ratio, seed, slide_mpp):
    rng = np.random.default_rng(seed)
    step_l = 128 * 0.5 * ratio / slide_mpp
    step_h = step_l / ratio
    lr = np.unique(rng.integers(0, 6, (12, 2)), axis=0)
    rng.shuffle(lr)
    hr = np.unique(rng.integers(0, 6 * ratio, (60, 2)), axis=0)
    parent, cell = match_tiles(lr[:, 1], lr[:, 0], hr[:, 1], hr[:, 0], ratio)
    expected = brute_force_pairs(lr, hr, step_l, step_h)
    for n in range(len(hr)):
        if n in expected:
            m, a, b = expected[n]
            assert (parent[n], cell[n]) == (m, a * ratio + b)
        else:
            assert parent[n] == -1


def test_matching_rejects_a_repeated_lr_tile():
    with pytest.raises(InputError, match="twice"):
        match_tiles(np.array([1, 1]), np.array([2, 2]), np.array([4]), np.array([8]), 4)


def test_matching_nothing():
    parent, _ = match_tiles(np.array([], int), np.array([], int), np.array([1, 2]), np.array([0, 0]), 4)
    assert parent.tolist() == [-1, -1]


@pytest.mark.parametrize(
    ("downsamples", "slide_mpp", "mpp", "level"),
    [
        ([1, 4, 16], 0.5, 2.0, 1),  # fits exactly
        ([1, 4, 16], 0.25, 2.0, 1),  # 1.0 um/px read and halved, never 4.0 um/px
        ([1, 4, 16], 0.499, 2.0, 1),
        ([1, 4, 16], 0.5031, 2.0, 1),  # within the tolerance of a scanner's "20x"
        ([1, 4.3, 16], 0.5, 2.0, 0),  # 2.15 um/px is coarser: not taken
        ([1], 0.25, 2.0, 0),
        ([1, 2, 4, 8], 0.5, 2.0, 2),
    ],
)
def test_level_is_never_coarser(downsamples, slide_mpp, mpp, level):
    assert choose_level(downsamples, slide_mpp, mpp) == level


def test_too_coarse_slide_is_an_error_unless_allowed():
    with pytest.raises(InputError, match="--allow-upsample"):
        choose_level([1, 4], 0.68, 0.5)
    assert choose_level([1, 4], 0.68, 0.5, allow_upsample=True) == 0
    assert choose_level([1, 4], 0.52, 0.5) == 0  # 4 % is no enlarging worth the name


@pytest.mark.parametrize(
    ("full", "reduced", "downsample"),
    [(4443, 2221, 2.0), (10000, 625, 16.0), (5000, 312, 16.0), (1000, 400, 2.5), (2220, 2220, 1.0)],
)
def test_downsample_is_whole_where_a_whole_factor_explains_it(full, reduced, downsample):
    assert snap_downsample(full, reduced) == downsample


def test_ratio():
    assert split_ratio(256, 2.0, 256, 0.5) == 4
    assert split_ratio(512, 1.0, 256, 0.5) == 4
    with pytest.raises(InputError, match="swapped"):
        split_ratio(256, 0.5, 256, 2.0)
    with pytest.raises(InputError, match="whole number"):
        split_ratio(256, 1.7, 256, 0.5)


def test_inside_share_by_hand():
    grid = make_grid(300, 100, 0.5, 0.5, 200)  # tiles of 200 px: the second column has 100 of 200 px, rows 100 of 200
    assert inside_share(grid, np.array([0, 1]), np.array([0, 0])).tolist() == [0.5, 0.25]
