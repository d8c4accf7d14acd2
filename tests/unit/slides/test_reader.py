"""Reading tiles block by block: the same pixels as tiffslide's ``read_region`` and the same resampling, whatever the
file."""

import os
from functools import lru_cache

import cv2
import numpy as np
import pytest
import tifffile
import tiffslide
from hypothesis import given, settings
from hypothesis import strategies as st

from lrmil_cli.errors import InputError
from lrmil_cli.slides import blocks as blocks_module
from lrmil_cli.slides import reader
from lrmil_cli.slides.reader import iter_batches, overview, read_rows, read_tile
from lrmil_cli.slides.slide import open_slide
from tests.conftest import write_tiff

WIDTH, HEIGHT = 700, 500


def picture(width=WIDTH, height=HEIGHT, seed=0):
    """Smooth colours with some noise: every pixel tells where it is, and JPEG has something to do."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    image = np.stack([40 + x * 180 / width, 40 + y * 180 / height, 120 + 60 * np.sin((x + y) / 17)], 2) + rng.normal(
        0, 6, (height, width, 1)
    )
    return np.clip(image, 0, 255).astype(np.uint8)


FORMATS = {
    "jpeg ycbcr": {"compression": "jpeg", "photometric": "ycbcr", "subsampling": (2, 1), "tile": (64, 64)},
    "jpeg ycbcr 420, blocks of 48": {
        "compression": "jpeg",
        "photometric": "ycbcr",
        "subsampling": (2, 2),
        "tile": (48, 48),
    },
    "jpeg rgb": {
        "compression": "jpeg",
        "photometric": "rgb",
        "tile": (64, 64),
        "compressionargs": {"outcolorspace": "rgb"},
    },
    "jpeg 2000": {"compression": "jpeg2000", "tile": (128, 128)},
    "lzw": {"compression": "lzw", "tile": (64, 64), "predictor": True},
    "deflate, wide blocks": {"compression": "deflate", "tile": (32, 256)},
    "zstd, blocks larger than tiles": {"compression": "zstd", "tile": (256, 256)},
    "blocks larger than the slide": {"compression": "deflate", "tile": (1024, 1024)},
    "not compressed": {"compression": None, "tile": (64, 64)},
    "strips": {"compression": "deflate", "rowsperstrip": 24},
    "strips of jpeg": {"compression": "jpeg", "photometric": "ycbcr", "rowsperstrip": 16},
    "strips, not compressed": {"compression": None, "rowsperstrip": 24},
    "one strip": {"compression": "lzw", "rowsperstrip": HEIGHT},
    "gray": {"compression": "jpeg", "photometric": "minisblack", "tile": (64, 64)},
    "16 bit": {"compression": "deflate", "tile": (64, 64)},
    "rgba": {"compression": "deflate", "tile": (64, 64), "extrasamples": ("unassalpha",)},
    "ome": {"compression": "deflate", "tile": (64, 64)},
}


def write(folder, name):
    image, options = picture(), {k: v for k, v in FORMATS[name].items() if v is not None}
    if name == "gray":
        image = image[..., 0]
    elif name == "16 bit":
        image = image.astype(np.uint16) * 257
    elif name == "rgba":
        image = np.dstack([image, (picture(seed=1)[..., 0] > 90).astype(np.uint8) * 200])
    options = {"tile": None, "compression": None, **options}
    ome = options["tile"] is None or name == "ome"  # tifffile takes no Aperio slide without tiles any more
    return write_tiff(folder / ("s.ome.tiff" if ome else "s.svs"), image, levels=(1, 2, 4), ome=ome, **options)


@lru_cache(maxsize=4)
def library(path):
    return tiffslide.TiffSlide(str(path))


def by_region(slide, level, box, tile_px):
    """One tile by the slow way: tiffslide's own region, pasted on white, resampled."""
    of, handle = slide.levels[level], library(slide.path)
    x0, x1, y0, y1 = (
        round(v)
        for v in (
            box[0] / of.downsample_x,
            (box[0] + box[2]) / of.downsample_x,
            box[1] / of.downsample_y,
            (box[1] + box[3]) / of.downsample_y,
        )
    )
    x1, y1 = max(x1, x0 + 1), max(y1, y0 + 1)
    canvas = np.full((y1 - y0, x1 - x0, 3), 255, np.uint8)
    left, top, right, bottom = max(x0, 0), max(y0, 0), min(x1, of.width), min(y1, of.height)
    if left < right and top < bottom:
        own = handle.level_downsamples[level]
        pixels = handle.read_region(
            (int(np.ceil(left * own)), int(np.ceil(top * own))), level, (right - left, bottom - top), as_array=True
        )
        if pixels.dtype == np.uint16:
            pixels = (pixels // 256).astype(np.uint8)
        if pixels.shape[2] == 4:
            alpha = pixels[..., 3:] / 255
            pixels = np.floor(pixels[..., :3] * alpha + 255 * (1 - alpha) + 0.5).astype(np.uint8)
        canvas[top - y0 : bottom - y0, left - x0 : right - x0] = pixels
    if canvas.shape[:2] == (tile_px, tile_px):
        return canvas
    shrink = canvas.shape[0] >= tile_px and canvas.shape[1] >= tile_px
    return cv2.resize(canvas, (tile_px, tile_px), interpolation=cv2.INTER_AREA if shrink else cv2.INTER_CUBIC)


def boxes_of(step, width, x, y):
    """A grid of boxes from (x, y) on that sticks out on all sides, in an order of no use, one of them twice."""
    at = [
        [x + i * step, y + j * step, width, width]
        for j in range(-1, HEIGHT // step + 2)
        for i in range(-1, WIDTH // step + 2)
    ]
    return np.random.default_rng(5).permutation(np.array([*at, at[len(at) // 2]]))


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("name", FORMATS)
def test_tiles_are_those_of_read_region(tmp_path, name, workers):
    cases = [  # level, side in level-0 px, side of the tile, offset of the grid
        (0, 64, 64, (0, 0)),
        (0, 64, 64, (13, 7)),
        (0, 128, 64, (0, 0)),
        (0, 128, 32, (6, 2)),
        (0, 256, 64, (0, 0)),
        (0, 150, 64, (0, 0)),
        (1, 128, 64, (0, 0)),
        (1, 130, 64, (11, 0)),
        (1, 63 * 2, 64, (0, 0)),
        (2, 256, 32, (0, 0)),
    ]
    with open_slide(write(tmp_path, name), workers=workers) as slide:
        for level, side, tile_px, (x, y) in cases:
            assert slide.blocks(level) is not None
            boxes = boxes_of(side, side, x, y)
            pixels = read_rows(slide, boxes, level, tile_px)
            for box, tile in zip(boxes[:12].tolist(), pixels):  # the slow way is slow
                assert np.array_equal(tile, by_region(slide, level, box, tile_px)), (level, box, tile_px)
            box = boxes[len(boxes) // 2].tolist()
            assert np.array_equal(read_tile(slide, level, *box, tile_px), by_region(slide, level, box, tile_px))


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    folder = tmp_path_factory.mktemp("any")
    (folder / "strips").mkdir()
    with (
        open_slide(write(folder, "jpeg ycbcr 420, blocks of 48"), workers=2) as tiled,
        open_slide(write(folder / "strips", "strips"), workers=2) as strips,
    ):
        yield tiled, strips


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_boxes(opened, data):
    slide = data.draw(st.sampled_from(opened))
    number = st.integers(-300, 900)
    boxes = data.draw(
        st.lists(st.tuples(number, number, st.integers(1, 300), st.integers(1, 300)), min_size=1, max_size=12)
    )
    level, tile_px = data.draw(st.integers(0, 2)), data.draw(st.integers(8, 80))
    pixels = read_rows(slide, np.array(boxes), level, tile_px)
    assert all(np.array_equal(p, by_region(slide, level, b, tile_px)) for b, p in zip(boxes, pixels))


def test_threads_share_a_file_where_the_system_has_no_pread(tmp_path, monkeypatch):
    """As on Windows: one position in the file for all threads."""
    monkeypatch.delattr(os, "pread", raising=False)
    with open_slide(write(tmp_path, "jpeg ycbcr"), workers=4) as slide:
        boxes = boxes_of(64, 64, 13, 7)
        assert slide.blocks(0) is not None
        for _ in range(5):
            for box, tile in zip(boxes[:12].tolist(), read_rows(slide, boxes, 0, 64)):
                assert np.array_equal(tile, by_region(slide, 0, box, 64))


def test_batches_are_of_the_size_asked_for_and_name_their_rows(opened):
    slide = opened[0]
    boxes = boxes_of(64, 64, 0, 0)
    batches = list(iter_batches(slide, boxes, 0, 64, 7))
    assert [len(r) for r, _ in batches[:-1]] == [7] * (len(batches) - 1)
    assert sorted(np.concatenate([r for r, _ in batches]).tolist()) == list(range(len(boxes)))
    assert list(iter_batches(slide, np.zeros((0, 4), np.int64), 0, 64, 7)) == []


@pytest.mark.parametrize("workers", [1, 4])
def test_every_block_is_decoded_once_and_memory_does_not_grow_with_the_slide(tmp_path, monkeypatch, workers):
    monkeypatch.setattr(reader, "TASK_TILES", 2)
    made, decoded = [], []
    decode, make = blocks_module.Blocks.decode, reader.new_block
    monkeypatch.setattr(
        blocks_module.Blocks,
        "decode",
        lambda self, index, out=None: (decoded.append(index), decode(self, index, out))[1],
    )
    monkeypatch.setattr(reader, "new_block", lambda h, w: (made.append((h, w)), make(h, w))[1])
    counts = []
    for height in (640, 5120):
        path = write_tiff(tmp_path / f"{height}.svs", picture(640, height), levels=(1,), tile=(64, 64))
        with open_slide(path, workers=workers) as slide:
            boxes = np.array([[x + 20, y + 20, 80, 80] for y in range(0, height, 80) for x in range(0, 640, 80)])
            slide.blocks(0)
            made.clear(), decoded.clear()
            for _ in iter_batches(slide, boxes, 0, 64, 16):
                pass
        assert sorted(decoded) == list(range(10 * height // 64))
        counts.append(made.count((64, 64)))
    # What is read at a time are at most 32 tiles, four rows of them, on six rows of ten blocks; one row is kept from
    # before.
    assert max(counts) <= 80 < 10 * 5120 // 64 / 8


def test_few_large_tiles_are_read_at_a_time(opened, monkeypatch):
    slide, made = opened[0], []
    make = reader.new_block
    monkeypatch.setattr(reader, "new_block", lambda h, w: (made.append(h * w * 3), make(h, w))[1])
    monkeypatch.setattr(reader, "CHUNK_BYTES", 10 * 64 * 64 * 3)
    for batch in (4, 20):
        made.clear()
        sizes = [len(r) for r, _ in iter_batches(slide, boxes_of(64, 64, 0, 0), 0, 64, batch)]
        assert max(made) == max(8, batch) * 64 * 64 * 3 and max(sizes) == batch


def test_a_wide_slide_is_read_in_stripes(opened, monkeypatch):
    slide = opened[0]
    boxes = boxes_of(50, 50, 3, 3)
    whole = read_rows(slide, boxes, 0, 50)
    monkeypatch.setattr(reader, "KEPT_BYTES", 1000)
    first = next(iter_batches(slide, boxes, 0, 50, 10_000))[0]
    assert 0 < len(first) < len(boxes) and boxes[first][:, 0].max() < 4 * 48
    assert np.array_equal(read_rows(slide, boxes, 0, 50), whole)


def sparse(path, image, skipped, description):
    """A slide of 64-px blocks, two levels; ``skipped`` (level, row, column) are not in the file."""

    def blocks(level, pixels):
        for y in range(0, pixels.shape[0], 64):
            for x in range(0, pixels.shape[1], 64):
                yield (
                    None
                    if (level, y // 64, x // 64) in skipped
                    else np.ascontiguousarray(pixels[y : y + 64, x : x + 64])
                )

    options = {
        "tile": (64, 64),
        "compression": "jpeg",
        "photometric": "rgb",
        "metadata": None,
        "software": False,
        "dtype": np.uint8,
    }
    half = cv2.resize(image, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    with tifffile.TiffWriter(path) as tiff:
        tiff.write(blocks(0, image), shape=image.shape, description=description, **options)
        if "Aperio" in description:
            tiff.write(image[:32, :32], metadata=None, software=False, photometric="rgb")
        tiff.write(
            blocks(1, half),
            shape=half.shape,
            description=description,
            subfiletype=0 if "Aperio" in description else 1,
            **options,
        )
    return path


@pytest.mark.parametrize("aperio", [True, False])
def test_blocks_that_the_file_leaves_out_look_as_in_a_viewer(tmp_path, aperio):
    openslide = pytest.importorskip("openslide", reason="OpenSlide is not installed")
    image = picture(256, 256)
    path = sparse(
        tmp_path / ("s.svs" if aperio else "s.tif"),
        image,
        {(0, 1, 1), (1, 0, 1)},
        "Aperio Image Library (test)\n256x256|AppMag = 20|MPP = 0.5" if aperio else "any",
    )
    viewer = openslide.OpenSlide(str(path))
    with open_slide(path, slide_mpp=0.5) as slide:
        for level in (0, 1):
            size = 256 >> level
            theirs = np.asarray(viewer.read_region((0, 0), level, (size, size))).astype(float)
            theirs = theirs[..., :3] + 255 - theirs[..., 3:]  # what is transparent shows the white page
            ours = slide.read(level, 0, 0, size, size)
            assert np.abs(ours - theirs).mean() < 2 and np.abs(ours - theirs).max() <= 40, level
            tiles = read_rows(slide, np.array([[0, 0, 256, 256], [128, 0, 128, 128]]), level, size)
            assert np.array_equal(tiles[0], ours)
        assert (slide.read(0, 64, 64, 64, 64) == 255).all()
        assert (slide.read(1, 64, 0, 64, 64) == 255).all() != aperio
        assert (slide.read(1, 32, 32, 32, 32) == 255).all() == aperio  # over the missing block of level 0


def test_a_decoder_that_is_wrong_about_the_colours_is_found_out_at_opening(tmp_path, monkeypatch):
    openslide = pytest.importorskip("openslide", reason="OpenSlide is not installed")
    path = write(tmp_path, "jpeg ycbcr")
    wrong = lambda page: {"tables": page.jpegtables, "colorspace": 2, "outcolorspace": 2}  # noqa: E731
    monkeypatch.setattr(blocks_module, "_direct_jpeg", wrong)
    with open_slide(path) as slide:
        assert slide.reader == "openslide" and "gray levels" in slide.source.choice.why
        assert slide.read_as == {"reader": "openslide"} and slide.blocks(0) is None
        theirs = np.asarray(openslide.OpenSlide(str(path)).read_region((100, 50), 0, (300, 200)))[..., :3]
        assert np.array_equal(slide.read(0, 100, 50, 300, 200), theirs)
    with open_slide(path, reader="tiffslide") as slide:  # asked for, it is not judged
        assert slide.reader == "tiffslide" and slide.blocks(0) is not None


def test_openslide_formats_are_read_the_same_with_threads(tmp_path):
    pytest.importorskip("openslide", reason="OpenSlide is not installed")
    path, boxes = write(tmp_path, "jpeg ycbcr"), boxes_of(100, 100, 0, 0)
    one, four = (open_slide(path, reader="openslide", workers=w) for w in (1, 4))
    with one, four:
        assert one.blocks(0) is None and np.array_equal(read_rows(one, boxes, 0, 50), read_rows(four, boxes, 0, 50))


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("name", ["jpeg ycbcr", "lzw"])
def test_a_damaged_block_is_named_and_the_others_can_be_read(tmp_path, name, workers):
    path = write(tmp_path, name)
    page = tifffile.TiffFile(path).pages[0]
    with open(path, "r+b") as fh:  # column 3, row 2 of blocks of 64 px
        fh.seek(page.dataoffsets[2 * 11 + 3])
        fh.write(b"\x00" * page.databytecounts[2 * 11 + 3])
    with open_slide(path, workers=workers) as slide:
        good = np.array([[0, 0, 128, 128], [320, 128, 64, 64]])
        assert all(
            np.array_equal(p, by_region(slide, 0, b, 64)) for b, p in zip(good.tolist(), read_rows(slide, good, 0, 64))
        )
        for bad in ([[200, 130, 64, 64]], [[0, 0, 64, 64], [192, 128, 64, 64]]):
            with pytest.raises(InputError, match=r"s\.svs: damaged at level 0, x=192, y=128 \(.*copy or export"):
                read_rows(slide, np.array(bad), 0, 64)
        with pytest.raises(InputError, match="x=192, y=128"):
            slide.read(0, 100, 100, 300, 100)


@pytest.mark.parametrize("band", [WIDTH * 20, 500, 30])  # bands end with blocks, then not, then are parted
def test_overview_by_blocks_is_that_of_the_whole_level(tmp_path, monkeypatch, band):
    path = write(tmp_path, "jpeg ycbcr 420, blocks of 48")
    monkeypatch.setattr(reader, "BAND_PIXELS", band)
    with open_slide(path, workers=3) as slide:
        small, sx, sy = overview(slide, 6.0)  # level 2 is at 2 um/px: shrunk by 3
        whole = library(path).read_region((0, 0), 2, (174, 123), as_array=True)
    assert (sx, sy) == (12, 12) and small.shape == (42, 59, 3)
    assert np.array_equal(small[:41, :58], cv2.resize(whole, (58, 41), interpolation=cv2.INTER_AREA))


@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("byteorder", ["<", ">"])
def test_a_slide_that_lost_levels_at_its_end_is_truncated(tmp_path, big, byteorder):
    """It would open, with fewer levels."""
    path, image = tmp_path / "a.tiff", picture(800, 600)
    with tifffile.TiffWriter(path, bigtiff=big, byteorder=byteorder) as out:
        for side in (800, 400, 200):
            out.write(
                image[:: 800 // side, :: 800 // side],
                tile=(64, 64),
                photometric="rgb",
                subfiletype=int(side < 800),
                resolution=(20000, 20000),
                resolutionunit="CENTIMETER",
            )
    with tifffile.TiffFile(path) as tiff:
        last = tiff.pages[2].offset
    whole = path.read_bytes()
    with open_slide(path) as slide:
        assert len(slide.levels) == 3
    cut = tmp_path / "cut.tiff"
    cut.write_bytes(whole[:last])
    with pytest.raises(InputError, match="truncated"):
        open_slide(cut)
