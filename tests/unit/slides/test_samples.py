"""What samples mean: alpha by its tag, depth by tags or by what is met, channels that are no RGB refused by name."""

import numpy as np
import pytest
import tifffile

from lrmil_cli.errors import InputError
from lrmil_cli.slides.samples import Samples, depth_of, to_rgb8
from lrmil_cli.slides.slide import open_slide
from tests.conftest import blob_image

IMAGE = blob_image(320, 256)
SCALE = {"resolution": (20000, 20000), "resolutionunit": "CENTIMETER"}
PIXELS = {"tile": (64, 64), "photometric": "rgb", "compression": "deflate", **SCALE}


def write(path, *images, **options):
    with tifffile.TiffWriter(path) as out:
        for image in images:
            out.write(image, metadata=None, **{**PIXELS, **options})
    return path


def read(path):
    with open_slide(path) as slide:
        return slide.read(0, 0, 0, slide.width, slide.height), slide


def with_sample(sample):
    return np.dstack([IMAGE, np.broadcast_to(sample, IMAGE.shape[:2]).astype(np.uint8)])


def test_a_fourth_sample_that_nobody_calls_alpha_is_none(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, IMAGE.shape[:2])
    for number, sample in enumerate((0, 255, noise)):
        pixels, slide = read(write(tmp_path / f"{number}.tif", with_sample(sample), extrasamples=[0]))
        assert np.array_equal(pixels, IMAGE) and slide.read_as == {"alpha": "none"} and not slide.notes


def test_alpha_is_laid_over_white_multiplied_in_or_not(tmp_path):
    alpha = np.zeros(IMAGE.shape[:2])
    alpha[50:200, 60:250] = 128
    wanted = np.floor(IMAGE * (alpha / 255)[..., None] + 255 * (1 - alpha / 255)[..., None] + 0.5)
    pixels, slide = read(write(tmp_path / "u.tif", with_sample(alpha), extrasamples=[2]))
    assert np.abs(pixels - wanted).max() <= 1 and slide.read_as == {}  # as it always was
    multiplied = with_sample(alpha)
    multiplied[..., :3] = np.rint(IMAGE * (alpha / 255)[..., None])
    pixels, slide = read(write(tmp_path / "a.tif", multiplied, extrasamples=[1]))
    assert np.abs(pixels - wanted).max() <= 1 and slide.read_as == {"alpha": "associated"}


def test_alpha_that_is_zero_everywhere_is_no_alpha_and_that_is_said(tmp_path):
    pixels, slide = read(write(tmp_path / "s.tif", with_sample(0), extrasamples=[2]))
    assert np.array_equal(pixels, IMAGE) and "alpha is 0" in slide.notes[0] and slide.read_as == {"alpha": "none"}


@pytest.mark.parametrize(("bits", "said"), [(8, True), (10, True), (12, True), (14, True), (16, False)])
def test_16_bit_samples_are_scaled_by_what_they_hold(tmp_path, bits, said):
    deep = np.rint(IMAGE / 255 * (2**bits - 1)).astype(np.uint16)
    deep[0, 0] = 2**bits - 1
    small = np.full((64, 80, 3), 3, np.uint16)  # a dark level does not change the scale
    pixels, slide = read(write(tmp_path / "s.tif", deep, small))
    assert np.abs(pixels.astype(int)[1:] - IMAGE[1:]).max() <= 1
    assert slide.read_as == ({"depth": bits} if said else {}) and bool(slide.notes) == said
    assert not said or f"hold {bits} bits" in slide.notes[0]


def test_16_bit_samples_whose_tag_says_how_many_bits_they_hold(tmp_path):
    dark = (IMAGE // 2).astype(np.uint16)  # by what is met these would be 8 bits
    path = write(tmp_path / "s.tif", dark * 16, extratags=[(281, 3, 3, (4095,) * 3, True)])
    pixels, slide = read(path)
    assert np.array_equal(pixels, IMAGE // 2) and "as its tags say" in slide.notes[0]
    assert to_rgb8(np.full((1, 1, 3), 5000, np.uint16), Samples("none", 12)).tolist() == [[[255] * 3]]
    assert [depth_of(v) for v in (255, 256, 1023, 4095, 4096, 65535)] == [8, 10, 10, 12, 14, 16]


def channels(path, count, names=None, dtype=np.uint8):
    stack = np.stack([IMAGE[..., k % 3] for k in range(count)]).astype(dtype)
    more = {} if names is None else {"Channel": {"Name": names}}
    with tifffile.TiffWriter(path, ome=True) as out:
        out.write(
            stack,
            metadata={"axes": "CYX", "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5, **more},
            **{**PIXELS, "photometric": "minisblack"},
        )
    return path


@pytest.mark.parametrize("count", [2, 3, 4, 7])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_fluorescence_is_refused_by_name(tmp_path, count, dtype):
    names = [f"DAPI {k}" for k in range(count)]
    with pytest.raises(InputError, match=rf"s\.ome\.tif: {count} channels \(DAPI 0, DAPI 1.*fluorescence.*RGB"):
        open_slide(channels(tmp_path / "s.ome.tif", count, names, dtype))


def test_channels_called_red_green_and_blue_are_rgb_in_any_order(tmp_path):
    pixels, _ = read(channels(tmp_path / "s.ome.tif", 3, ["Red", "Green", "Blue"]))
    assert np.array_equal(pixels, IMAGE)
    pixels, _ = read(channels(tmp_path / "t.ome.tif", 3, ["blue", "green", "red"]))
    assert np.array_equal(pixels, IMAGE[..., ::-1])


@pytest.mark.parametrize("tile", [(64, 64), None])
def test_planar_rgb_is_read(tmp_path, tile):
    options = {"planarconfig": "separate", "tile": tile, **({} if tile else {"rowsperstrip": 24})}
    pixels, slide = read(write(tmp_path / "s.tif", np.ascontiguousarray(IMAGE.transpose(2, 0, 1)), **options))
    assert np.array_equal(pixels, IMAGE) and slide.reader == "tiffslide"


REFUSED = {
    "floating-point": (IMAGE.astype(np.float32) / 255, {}),
    "signed": (IMAGE.astype(np.int16), {}),
    "32-bit|32 bits": (IMAGE.astype(np.uint32), {}),
    "4 samples a pixel that are tagged as gray": (
        with_sample(9),
        {"photometric": "minisblack", "planarconfig": "contig", "extrasamples": [0, 0, 0]},
    ),
}


@pytest.mark.parametrize("says", REFUSED)
def test_what_is_no_8_bit_picture_is_refused_by_name(tmp_path, says):
    image, options = REFUSED[says]
    with pytest.raises(InputError, match=rf"s\.tif: .*({says})"):
        open_slide(write(tmp_path / "s.tif", image, **options))
