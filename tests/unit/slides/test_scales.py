"""Factors of levels: by size where that says them, else by what the pixels show."""

import cv2
import numpy as np
import pytest

from lrmil_cli.slides.scales import settle_levels

RNG = np.random.default_rng(1)
FULL = cv2.GaussianBlur(RNG.integers(0, 256, (1200, 1600, 3)).astype(np.uint8), (0, 0), 6)
FULL = cv2.normalize(FULL, None, 0, 255, cv2.NORM_MINMAX)


def resized(width, height):
    return cv2.resize(FULL, (width, height), interpolation=cv2.INTER_AREA)


def settle(*levels, spacings=None):
    read = lambda i, x, y, w, h: levels[i][y : y + h, x : x + w]  # noqa: E731
    found, dropped = settle_levels([l.shape[1::-1] for l in levels], spacings or [None] * len(levels), read)
    return [(round(l.downsample_x, 3), round(l.downsample_y, 3)) for l in found], dropped


def canvas(image, width, height):
    out = np.full((height, width, 3), 255, np.uint8)
    out[: image.shape[0], : image.shape[1]] = image
    return out


def test_whole_factors_need_no_look():
    refuse = lambda *_: pytest.fail("pixels were read")  # noqa: E731
    sizes = [(1600, 1200), (533, 400), (267, 200), (100, 75), (3, 2)]
    found, dropped = settle_levels(sizes, [None] * 5, refuse)
    assert [l.downsample_x for l in found[:4]] == [1, 3, 6, 16] and dropped == []


def test_levels_that_were_resized_to_odd_sizes():
    assert settle(FULL, resized(640, 480), resized(256, 192)) == ([(1, 1), (2.5, 2.5), (6.25, 6.25)], [])
    factors, _ = settle(FULL, resized(396, 296))  # 4 px less than a quarter
    assert factors[1] == pytest.approx((1600 / 396, 1200 / 296), abs=0.01)
    factors, _ = settle(FULL, resized(390, 308))  # not by the same along x and y
    assert factors[1] == pytest.approx((1600 / 390, 1200 / 308), abs=0.01)


def test_levels_that_were_padded_or_cut():
    assert settle(FULL, canvas(resized(400, 300), 512, 512))[0][1] == (4, 4)
    assert settle(FULL, resized(800, 600)[:592, :792])[0][1] == (2, 2)
    assert settle(FULL, canvas(resized(800, 600), 1024, 768), canvas(resized(200, 150), 256, 256))[0] == [
        (1, 1),
        (2, 2),
        (8, 8),
    ]


def test_spacings_count_where_they_explain_the_size_and_are_measured_where_they_do_not():
    level = canvas(resized(400, 300), 512, 512)
    assert settle(FULL, level, spacings=[(1, 1), (4.0, 4.0)])[0][1] == (4, 4)
    assert settle(FULL, level, spacings=[(1, 1), (3.125, 2.34)])[0][1] == (4, 4)  # as a header that divides by the size
    size = settle_levels([(1600, 1200), (512, 512)], [None, (4.0, 4.0)], lambda i, x, y, w, h: np.zeros((h, w, 3)))[0][
        1
    ]
    assert (size.width, size.height) == (400, 300)  # the padding is no part of the slide


def test_what_shows_something_else_is_no_level():
    other = np.random.default_rng(2).integers(0, 256, (310, 396, 3)).astype(np.uint8)
    factors, dropped = settle(FULL, cv2.GaussianBlur(other, (0, 0), 3), resized(200, 150))
    assert dropped == [1] and factors == [(1, 1), (8, 8)]


def test_a_level_far_below_the_others_costs_little():
    """Measured against level 0 it would be, whole, which is gigabytes."""
    asked = []

    def read(level, x, y, width, height):
        asked.append(width * height)
        return np.tile(RNG.integers(0, 256, (1, width, 3)).astype(np.uint8), (height, 1, 1))

    found, dropped = settle_levels([(150_000, 120_000), (1_234, 1_000)], [None] * 2, read)
    assert len(found) + len(dropped) == 2 and max(asked, default=0) <= 2200**2
