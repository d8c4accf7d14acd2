"""Tissue is told from glass, pen, borders, dust and glare; tiles get their exact share of it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lrmil_cli.slides.tissue import TissueSettings, tissue_fractions, tissue_mask

SHARED = Path(__file__).resolve().parents[4] / "shared"
HEIGHT, WIDTH, MPP = 320, 400, 8.0  # 2.6 x 3.2 mm
WHITE_GLASS = (243, 241, 243)
PINK_TISSUE = (205, 140, 185)


def glass(colour=WHITE_GLASS, grain=1.5):
    noise = np.random.default_rng(0).normal(0, grain, (HEIGHT, WIDTH, 3))
    return np.full((HEIGHT, WIDTH, 3), colour, float) + noise


def tissue(colour=PINK_TISSUE, contrast=18.0):
    """Texture at the scale of nuclei (8 um) and of glands (24 um)."""
    rng = np.random.default_rng(1)
    layers = [cv2.GaussianBlur(rng.normal(size=(HEIGHT, WIDTH)), (0, 0), sigma) for sigma in (1.0, 3.0)]
    pattern = sum(layer / layer.std() for layer in layers) * 0.7
    return np.array(colour, float) + contrast * pattern[..., None] * np.array([0.6, 1.0, 0.5])


def ellipse(x=200, y=160, radius_x=110, radius_y=70):
    return cv2.ellipse(np.zeros((HEIGHT, WIDTH), np.uint8), (x, y), (radius_x, radius_y), 0, 0, 360, 1, -1) > 0


def line(*points, width):
    return cv2.polylines(np.zeros((HEIGHT, WIDTH), np.uint8), [np.array(points)], False, 1, width) > 0


def put(image, where, what):
    """``what`` on ``image``, with the soft edge of an averaged scan."""
    share = cv2.GaussianBlur(where.astype(np.float32), (0, 0), 0.7)[..., None]
    return image * (1 - share) + what * share


def scan(image, quality=80):
    """uint8 with the colour blocks of JPEG."""
    image = np.ascontiguousarray(np.clip(image, 0, 255).astype(np.uint8)[..., ::-1])
    return cv2.imdecode(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1], 1)[..., ::-1]


def iou(mask, truth):
    return (mask & truth).sum() / (mask | truth).sum()


def vignette(image):
    rows, cols = np.mgrid[-1 : 1 : HEIGHT * 1j, -1 : 1 : WIDTH * 1j]
    return image * (1 - 0.12 * (rows**2 + cols**2))[..., None]


def pink_glare(image, x=300, y=160):
    rows, cols = np.mgrid[:HEIGHT, :WIDTH]
    light = np.exp(-(((cols - x) / 70) ** 2) - ((rows - y) / 60) ** 2)
    return image - light[..., None] * np.array([0, 50, 20])


INKS = {
    "blue": (30, 60, 180),
    "light blue": (90, 140, 215),
    "navy": (25, 35, 110),
    "green": (30, 130, 70),
    "light green": (110, 190, 140),
    "black": (30, 28, 32),
    "blue-black": (40, 40, 70),
    "grey": (70, 68, 72),
    "red": (205, 30, 45),
    "dark red": (170, 20, 40),
}


@pytest.mark.parametrize("colour", [WHITE_GLASS, (255, 255, 255), (238, 222, 232), (222, 229, 240), (190, 188, 190)])
@pytest.mark.parametrize("grain", [0.0, 3.0, 8.0])
def test_pure_glass_is_empty(colour, grain):
    assert not tissue_mask(scan(glass(colour, grain), quality=60), MPP).any()
    assert not tissue_mask(np.clip(glass(colour, grain), 0, 255).astype(np.uint8), MPP).any()
    assert not tissue_mask(scan(vignette(glass(colour, grain))), MPP).any()


@pytest.mark.parametrize("level", [0, 128, 255])
def test_blank_image_is_empty(level):
    assert not tissue_mask(np.full((HEIGHT, WIDTH, 3), level, np.uint8), MPP).any()


TINTS = {"yellow": (0, 0.15, 1), "pink": (0.1, 1, 0.4), "blue": (1, 0.45, 0), "green": (1, 0, 0.8), "grey": (1, 1, 1)}


@settings(max_examples=30, deadline=None)
@given(
    tint=st.sampled_from(sorted(TINTS)),
    strength=st.floats(0, 110),
    stain=st.sampled_from([PINK_TISSUE, (150, 90, 160), (228, 205, 220)]),
    margin=st.sampled_from([0, 30]),
)
def test_glass_of_any_tint_is_glass(tint, strength, stain, margin):
    """Glass absorbs as the tissue on it does: the stain is seen through it. Without tissue the mask is empty."""
    colour = np.array((242.0, 241.0, 243.0)) - strength * np.array(TINTS[tint])
    truth, empty = ellipse() | line((40, 40), (90, 70), width=30), glass(colour)
    image = empty * (1 - truth[..., None]) + truth[..., None] * empty * tissue(stain, 12) / 243
    for picture in (image, empty):
        picture[:, :margin] = 255  # stitched
    assert not tissue_mask(scan(empty), MPP).any()
    assert iou(tissue_mask(scan(image), MPP), truth) > 0.9


def test_tint_over_part_of_the_border_is_no_glass():
    """A field of smooth pink colloid in tissue: the brightest and smoothest there is, and tissue all the same."""
    image = put(tissue(contrast=14), ellipse(150, 150, 60, 50) | ellipse(300, 60, 50, 40), np.array((225, 150, 190)))
    assert tissue_mask(scan(image), MPP).mean() > 0.99


@pytest.mark.parametrize("mpp", [4.0, 8.0, 16.0, 32.0])
def test_grain_is_not_tissue_at_any_mpp(mpp):
    assert not tissue_mask(np.clip(glass(grain=6), 0, 255).astype(np.uint8), mpp).any()


def test_pink_glare_of_glass_is_empty():
    assert not tissue_mask(scan(pink_glare(glass((236, 218, 230)))), MPP).any()


def test_pink_glare_beside_tissue_adds_no_more_than_a_rim():
    truth = ellipse(160)
    image = scan(pink_glare(put(glass(), truth, tissue()), x=275))
    mask = tissue_mask(image, MPP)
    assert iou(mask, truth) > 0.9
    assert mask[truth].mean() > 0.99


def test_dust_and_grey_edges_are_empty():
    image, rng = glass(), np.random.default_rng(2)
    for x, y in rng.integers(0, (WIDTH, HEIGHT), (120, 2)).tolist():
        shade = (rng.integers(60, 200) + rng.integers(-10, 10, 3)).tolist()
        cv2.circle(image, (x, y), int(rng.integers(1, 5)), shade, -1)
    cv2.line(image, (0, 100), (WIDTH, 130), (120, 118, 122), 4)  # a coverslip
    assert not tissue_mask(scan(image), MPP).any()


@pytest.mark.parametrize("ink", INKS.values(), ids=INKS.keys())
def test_pen_on_glass_is_empty(ink):
    strokes = line((40, 250), (150, 270), (360, 240), width=50) | line((40, 40), (200, 60), width=14)
    assert not tissue_mask(scan(put(glass(), strokes, np.array(ink))), MPP).any()


@pytest.mark.parametrize("ink", INKS.values(), ids=INKS.keys())
@pytest.mark.parametrize("mpp", [8.0, 16.0])
def test_pen_beside_tissue_is_left_out(ink, mpp):
    truth = ellipse(200, 160, 80, 60)
    around = cv2.ellipse(np.zeros((HEIGHT, WIDTH), np.uint8), (200, 160), (150, 120), 0, 0, 360, 1, 24) > 0
    image = put(put(glass(), truth, tissue()), around, np.array(ink))
    size = round(WIDTH * MPP / mpp), round(HEIGHT * MPP / mpp)
    mask = tissue_mask(scan(cv2.resize(image, size, interpolation=cv2.INTER_AREA)), mpp)
    truth = cv2.resize(truth.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST) > 0
    assert iou(mask, truth) > 0.92


OTHER_INKS = {"crimson": (165, 15, 55), "brown": (110, 60, 30), "orange": (240, 120, 20)}


@pytest.mark.parametrize("ink", ["blue", "navy", "red", "black", "green", *OTHER_INKS])
@pytest.mark.parametrize("strength", [0.3, 0.6, 1.0], ids=["faded", "half", "fresh"])
@pytest.mark.parametrize("width", [22, 60])
def test_ink_is_left_out_however_faded(ink, strength, width):
    """A film of one dye of uneven thickness, darker at its rims, that absorbs over glass."""
    truth, stroke = ellipse(260, 120, 90, 60), line((50, 30), (50, 270), (350, 290), width=width) & ~ellipse()
    cloud = cv2.GaussianBlur(np.random.default_rng(4).normal(size=truth.shape), (0, 0), 7.5)
    film = strength * stroke * (1 + 0.12 * cloud / cloud.std())
    film += 0.15 * (stroke & ~(cv2.erode(stroke.astype(np.uint8), np.ones((3, 3))) > 0))
    density = -np.log10(np.array((INKS | OTHER_INKS)[ink]) / 255) * cv2.GaussianBlur(film, (0, 0), 0.8)[..., None]
    mask = tissue_mask(scan(put(glass(), truth, tissue()) * 10**-density), MPP)
    assert mask[stroke].mean() < 0.05
    assert mask[truth].mean() > 0.98


def test_rims_of_bubbles_take_no_tissue_away():
    """Black rings across the border of tissue: what is on glass goes, what is on tissue stays."""
    truth = ellipse()
    rims = np.zeros(truth.shape, np.uint8)
    for x, y in ((110, 120), (200, 95), (290, 200), (200, 160)):
        cv2.circle(rims, (x, y), 40, 1, 7)
    mask = tissue_mask(scan(put(put(glass(), truth, tissue()), rims > 0, np.array((30, 28, 32)))), MPP)
    assert mask[truth].mean() > 0.97
    assert mask[(rims > 0) & ~truth].mean() < 0.15


@pytest.mark.parametrize("contrast", [14, 24])
@pytest.mark.parametrize("mpp", [8.0, 16.0])
def test_grey_tissue_is_tissue(contrast, mpp):
    """A silver stain, or a slide in grey; ink, dust and cracks beside it have no colour either."""
    truth, ink = ellipse(230, 140, 100, 70), line((40, 30), (40, 280), width=50)
    image = put(glass(), truth, tissue((190, 190, 190), contrast).mean(axis=2, keepdims=True))
    image = put(image, ink, np.array((120, 120, 121)))
    cv2.line(image, (0, 290), (WIDTH, 240), (120, 120, 120), 4)
    for x, y in np.random.default_rng(2).integers(0, (WIDTH, HEIGHT), (60, 2)).tolist():
        cv2.circle(image, (x, y), 3, (90, 90, 90), -1)
    size = round(WIDTH * MPP / mpp), round(HEIGHT * MPP / mpp)
    mask = tissue_mask(scan(cv2.resize(image, size, interpolation=cv2.INTER_AREA)), mpp)
    mask = cv2.resize(mask.astype(np.uint8), (WIDTH, HEIGHT), interpolation=cv2.INTER_NEAREST) > 0
    assert mask[truth].mean() > 0.93
    assert mask[~cv2.dilate(truth.astype(np.uint8), np.ones((9, 9))).astype(bool)].mean() < 0.01


def test_pen_that_touches_tissue_is_left_out():
    truth, stroke = ellipse(), line((20, 160), (380, 160), width=30)
    mask = tissue_mask(scan(put(put(glass(), truth, tissue()), stroke, np.array(INKS["blue"]))), MPP)
    assert mask[stroke & ~truth].mean() < 0.02
    assert mask[truth & ~cv2.dilate(stroke.astype(np.uint8), np.ones((25, 25))).astype(bool)].mean() > 0.99


def test_pen_removal_can_be_turned_off_for_green_stains():
    truth = ellipse()
    image = scan(put(glass(), truth, tissue((110, 190, 140), 10)))
    assert not tissue_mask(image, MPP).any()
    assert iou(tissue_mask(image, MPP, TissueSettings(remove_pen=False)), truth) > 0.95


@pytest.mark.parametrize(
    "colour",
    [(236, 216, 230), (230, 205, 222), (225, 215, 235), (238, 222, 215)],
    ids=["very pale pink", "pale pink", "pale violet", "pale buff"],
)
@pytest.mark.parametrize("mpp", [4.0, 8.0, 16.0])
def test_pale_biopsy_is_kept(colour, mpp):
    core = line((140, 130), (250, 190), width=38)  # 1 mm long, 300 um wide
    image = put(glass(), core, tissue(colour, 6))
    size = round(WIDTH * MPP / mpp), round(HEIGHT * MPP / mpp)
    truth = cv2.resize(core.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST) > 0
    image = cv2.resize(image, size, interpolation=cv2.INTER_AREA if mpp > MPP else cv2.INTER_LINEAR)
    mask = tissue_mask(scan(image), mpp)
    assert iou(mask, truth) > 0.75
    assert mask[truth].mean() > 0.85


def test_fat_is_filled():
    rng, fine = np.random.default_rng(3), 4
    cells = cv2.Subdiv2D((0, 0, WIDTH * fine, HEIGHT * fine))
    cells.insert([(float(x), float(y)) for x, y in rng.uniform(0, (WIDTH * fine, HEIGHT * fine), (3500, 2))])
    membranes = np.zeros((HEIGHT * fine, WIDTH * fine), np.uint8)
    cv2.polylines(membranes, [facet.astype(np.int32) for facet in cells.getVoronoiFacetList([])[0]], True, 255, 2)
    share = cv2.resize(membranes, (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA)[..., None] / 255
    truth, image = ellipse(), glass()
    lobule = image * (1 - share) + np.array([205, 120, 170]) * share
    image[truth] = lobule[truth]
    assert iou(tissue_mask(scan(image), MPP), truth) > 0.93


def test_small_holes_are_filled_and_large_ones_kept():
    truth = ellipse()
    small, large = ellipse(140, 160, 15, 15), ellipse(240, 160, 35, 35)  # 0.045 and 0.25 mm2
    image = put(put(glass(), truth, tissue()), small | large, glass())
    mask = tissue_mask(scan(image), MPP)
    assert mask[small].all()
    assert not mask[ellipse(240, 160, 30, 30)].any()
    filled = tissue_mask(scan(image), MPP, TissueSettings(max_hole_um2=400_000))
    assert filled[large].all()


def test_small_pieces_are_dropped():
    speck, piece = ellipse(60, 60, 7, 7), ellipse(300, 200, 14, 14)  # 0.010 and 0.039 mm2
    mask = tissue_mask(scan(put(glass(), speck | piece, tissue())), MPP)
    assert not mask[speck].any()
    assert mask[piece].mean() > 0.95


DARK = {
    "haemorrhage": (110, 20, 35),
    "lymphocytes": (80, 50, 125),
    "very dark lymphocytes": (55, 35, 85),
    "DAB": (90, 60, 42),
}


@pytest.mark.parametrize("colour", DARK.values(), ids=DARK.keys())
def test_dark_tissue_is_kept_alone_and_within_tissue(colour):
    truth, inner = ellipse(), ellipse(200, 160, 50, 35)
    assert iou(tissue_mask(scan(put(glass(), truth, tissue(colour, 5))), MPP), truth) > 0.95
    image = put(put(glass(), truth, tissue()), inner, tissue(colour, 5))
    assert tissue_mask(scan(image), MPP)[truth].mean() > 0.99


@pytest.mark.parametrize("colour", [(40, 28, 22), (150, 25, 45)], ids=["pigment", "bright blood"])
def test_what_looks_like_pen_is_kept_within_tissue(colour):
    truth, inner = ellipse(), ellipse(200, 160, 50, 35)
    image = put(put(glass(), truth, tissue()), inner, tissue(colour, 5))
    assert tissue_mask(scan(image), MPP)[truth].mean() > 0.98


def test_ihc_keeps_brown_and_weakly_counterstained_parts():
    truth, brown = ellipse(), ellipse(150, 160, 40, 40)
    image = put(put(glass(), truth, tissue((209, 211, 218), 15)), brown, tissue((160, 115, 80)))
    mask = tissue_mask(scan(image), MPP)
    assert mask[brown].mean() > 0.99
    assert iou(mask, truth) > 0.93


@pytest.mark.parametrize(
    "stain",
    [(171, 120, 150), (120, 100, 140), (120, 80, 175), (90, 50, 90), (160, 115, 175), (225, 130, 170)],
)
def test_field_without_glass_is_full_whatever_the_stain(stain):
    assert tissue_mask(scan(tissue(stain)), MPP).mean() > 0.99


@pytest.mark.parametrize("stain", [(225, 170, 205), (150, 90, 160), (230, 120, 165), (95, 60, 130)])
@pytest.mark.parametrize("background", [WHITE_GLASS, (255, 255, 255), (236, 218, 232)])
def test_stain_and_glass_may_vary(stain, background):
    truth = ellipse()
    assert iou(tissue_mask(scan(put(glass(background), truth, tissue(stain))), MPP), truth) > 0.93


def test_pale_tissue_is_kept_beside_dark_tissue():
    pale, dark = ellipse(110, 160, 70, 60), ellipse(300, 160, 70, 60)
    image = put(put(glass(), pale, tissue((228, 205, 220), 8)), dark, tissue((80, 40, 110)))
    mask = tissue_mask(scan(image), MPP)
    assert mask[pale].mean() > 0.93  # what is missing is the soft rim
    assert mask[dark].mean() > 0.99


def test_black_and_white_margins_are_not_tissue():
    truth, image = ellipse(), put(glass((238, 222, 232)), ellipse(), tissue())
    image[:, :40], image[:30], image[:, -30:], image[-40:] = 0, 255, 255, 0
    assert iou(tissue_mask(scan(image), MPP), truth) > 0.95


def test_flat_drawing_of_tissue_is_kept():
    for truth in (ellipse(), ellipse(10, 160, 110, 90)):
        assert iou(tissue_mask(scan(put(glass(), truth, np.array(PINK_TISSUE))), MPP), truth) > 0.93


@pytest.mark.parametrize("mpp", [4.0, 16.0, 32.0])
def test_area_does_not_depend_on_mpp_of_the_image(mpp):
    pieces = ellipse(120, 110, 80, 60) | line((240, 60), (360, 260), width=44)
    image = put(glass(), pieces, tissue())
    size = round(WIDTH * MPP / mpp), round(HEIGHT * MPP / mpp)
    other = cv2.resize(image, size, interpolation=cv2.INTER_AREA if mpp > MPP else cv2.INTER_LINEAR)
    expected = tissue_mask(scan(image), MPP).sum() * MPP**2
    assert tissue_mask(scan(other), mpp).sum() * mpp**2 == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize("shape", [(0, 0), (1, 1), (2, 5), (3, 400)])
def test_tiny_images_do_not_fail(shape):
    for level in (0, 200, 255):
        mask = tissue_mask(np.full((*shape, 3), level, np.uint8), MPP)
        assert mask.shape == shape and mask.dtype == bool and not mask.any()


def test_input_is_left_alone_and_may_be_a_view():
    image = scan(put(glass(), ellipse(), tissue()))
    view, before = image[::-1, ::-1], image.copy()
    assert iou(tissue_mask(view, MPP), tissue_mask(np.ascontiguousarray(view), MPP)) == 1.0
    assert (image == before).all()


@pytest.mark.parametrize("image", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4, 3))])
def test_wrong_image_is_refused(image):
    with pytest.raises(ValueError, match="uint8 image"):
        tissue_mask(image, MPP)


@pytest.mark.parametrize("mpp", [0.0, -8.0, float("nan")])
def test_wrong_mpp_is_refused(mpp):
    with pytest.raises(ValueError, match="mpp"):
        tissue_mask(np.zeros((4, 4, 3), np.uint8), mpp)


def test_settings_pass_through_json():
    recorded = json.loads(json.dumps(dataclasses.asdict(TissueSettings())))
    assert TissueSettings(**recorded) == TissueSettings()


def brute_force_fraction(mask, scale_x, scale_y, x, y, width, height):
    """Sum over mask pixels of the area they share with the rectangle."""
    total = 0.0
    for row, col in zip(*np.nonzero(mask), strict=True):
        overlap_x = min(x + width, (col + 1) * scale_x) - max(x, col * scale_x)
        overlap_y = min(y + height, (row + 1) * scale_y) - max(y, row * scale_y)
        total += max(overlap_x, 0) * max(overlap_y, 0)
    return total / (width * height)


lengths = st.floats(0.5, 200)
places = st.floats(-150, 250)
scales = st.floats(0.7, 20)


@settings(max_examples=60, deadline=None)
@given(
    size=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    seed=st.integers(0, 2**16),
    scale=st.tuples(scales, scales),
    tiles=st.lists(st.tuples(places, places, lengths, lengths), min_size=1, max_size=6),
)
def test_fractions_are_exact_areas(size, seed, scale, tiles):
    mask = np.random.default_rng(seed).random(size) < 0.5
    expected = [brute_force_fraction(mask, *scale, *tile) for tile in tiles]
    assert tissue_fractions(mask, *scale, *np.array(tiles).T) == pytest.approx(expected, abs=1e-9)


def test_fractions_count_outside_as_no_tissue():
    mask = np.ones((10, 20), bool)
    x, y = np.array([0.0, -50.0, 150.0, 500.0]), np.array([0.0, -50.0, 0.0, 0.0])
    assert tissue_fractions(mask, 10, 10, x, y, 100.0, 100.0).tolist() == pytest.approx([1.0, 0.25, 0.5, 0.0])


def test_fractions_of_no_tiles_and_of_an_empty_mask():
    none = np.zeros(0)
    assert tissue_fractions(np.ones((3, 3), bool), 1, 1, none, none, none, none).shape == (0,)
    assert tissue_fractions(np.ones((0, 0), bool), 1, 1, np.zeros(2), np.zeros(2), 1.0, 1.0).tolist() == [0, 0]


def test_fractions_are_exact_on_large_masks():
    mask = np.ones((3000, 3000), bool)
    assert tissue_fractions(mask, 16, 16, np.array([40000.0]), np.array([40000.0]), 128.0, 128.0) == pytest.approx(1)


def shared_image(name):
    path = SHARED / "data" / name
    if not path.exists():
        pytest.skip(f"the shared data folder has no {name}")
    return cv2.imread(str(path))[..., ::-1]


def shrink(image, factor):
    size = round(image.shape[1] / factor), round(image.shape[0] / factor)
    return cv2.resize(np.ascontiguousarray(image), size, interpolation=cv2.INTER_AREA)


@pytest.mark.parametrize("centre", ["0_patient_006_node_1", "1_patient_024_node_2", "2_patient_056_node_1",
                                    "3_patient_066_node_1", "4_patient_097_node_3"])  # fmt: skip
def test_real_lymph_nodes_of_five_hospitals_are_all_tissue(centre):
    image = shared_image(f"camelyon17_centres/centre_{centre}.jpeg")
    assert tissue_mask(shrink(image, 8 / 0.25), 8.0).mean() > 0.99


@pytest.mark.parametrize("section", ["C2", "C4"])
def test_real_section_with_array_spots_and_pink_glare(section):
    mask = tissue_mask(shrink(shared_image(f"her2st/{section}.jpg"), 8 / 0.68), 8.0)
    count, _, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8))
    assert count == 2  # the glass and one piece of tissue
    assert 0.16 < mask.mean() < 0.19
