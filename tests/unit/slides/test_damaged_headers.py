"""Headers that claim what cannot be: refused by our own errors, before anybody takes memory by them."""

import re
import struct
import tracemalloc

import numpy as np
import pytest
import tifffile

from lrmil_cli.errors import InputError
from lrmil_cli.slides.slide import open_slide
from tests.dicom_slides import write_level
from tests.fuzz_slides import MPP, write_ndpi
from tests.mirax import write_mirax

IMAGE = np.random.default_rng(0).integers(90, 250, (320, 384, 3)).astype(np.uint8)
PLAIN = {"photometric": "rgb", "metadata": None, "tile": (64, 64)}
MOST_BYTES = 60_000_000


def refusal(path):
    """What is said of a slide that must not open, nor take memory."""
    tracemalloc.start()
    try:
        with pytest.raises(InputError) as caught:
            open_slide(path, slide_mpp=MPP)
        assert tracemalloc.get_traced_memory()[1] < MOST_BYTES
    finally:
        tracemalloc.stop()
    return str(caught.value)


def changed(path, tag, *, value=None, count=None, page=0):
    """A TIFF in which one tag says something else."""
    with tifffile.TiffFile(path) as tiff:
        entry, order = tiff.pages[page].tags[tag], tiff.byteorder
    with open(path, "r+b") as fh:
        if count is not None:
            fh.seek(entry.offset + 4)
            fh.write(struct.pack(order + "I", count))
        if value is not None:
            fh.seek(entry.offset + 2)
            fh.write(struct.pack(order + "HII", 4, 1, value))
    return path


def plain(path, **options):
    tifffile.imwrite(path, IMAGE, **{**PLAIN, **options})
    return path


@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize(("tag", "value"), [("ImageWidth", 0x86000180), ("ImageLength", 0x01000140)])
@pytest.mark.parametrize("tile", [(64, 64), None])
def test_more_blocks_than_are_listed(tmp_path, byteorder, tag, value, tile):
    path = plain(tmp_path / "s.tif", byteorder=byteorder, tile=tile, compression="deflate", rowsperstrip=16)
    said = refusal(changed(path, tag, value=value))
    assert (f"{value:,}" in said and "blocks, and lists" in said) or ("in strips of" in said and "convert it" in said)


def test_a_few_blocks_too_many_are_damage_too(tmp_path):
    said = refusal(changed(plain(tmp_path / "s.tif"), "ImageLength", value=500))
    assert "384 x 500 px are 48 blocks, and it lists 30" in said


def test_tiles_larger_than_any_memory(tmp_path):
    path = changed(changed(plain(tmp_path / "s.tif"), "TileWidth", value=60_000), "TileLength", value=60_000)
    assert "tiles of 60,000 x 60,000 px" in refusal(path)


@pytest.mark.parametrize(("tag", "kind"), [("TileOffsets", "324"), ("ImageDescription", "270"), ("Software", "305")])
def test_tags_of_gigabytes(tmp_path, tag, kind):
    """In a file that is large enough for them, as slides are."""
    path = changed(plain(tmp_path / "s.tif", description="x" * 99, software="y" * 99), tag, count=0x30000000)
    with open(path, "r+b") as fh:
        fh.truncate(20 << 30)  # takes no room on the disk
    assert f"805,306,368 values of tag {kind}" in refusal(path)


def test_pages_in_a_circle(tmp_path):
    path = tmp_path / "s.tif"
    with tifffile.TiffWriter(path) as out:
        for _ in range(120):  # tifffile sees shorter circles itself
            out.write(IMAGE[:32, :32], photometric="rgb", metadata=None)
    with tifffile.TiffFile(path) as tiff:
        first, last = tiff.pages[0].offset, tiff.pages[-1].offset
    with open(path, "r+b") as fh:
        fh.seek(last)
        fh.seek(12 * struct.unpack("<H", fh.read(2))[0], 1)
        fh.write(struct.pack("<I", first))
    assert "in a circle" in refusal(path)


@pytest.mark.parametrize(
    ("compression", "marker", "numbers"),
    [("jpeg", b"\xff\xc0\0\x11\x08", ">HH"), ("aperio_jp2000_rgb", b"\xff\x4f\xff\x51\0\x2f\0\0", ">II")],
)
def test_blocks_that_claim_to_be_larger_than_they_are(tmp_path, compression, marker, numbers):
    path = plain(tmp_path / "s.tif", compression=compression)
    data = bytearray(path.read_bytes())
    struct.pack_into(numbers, data, data.index(marker) + len(marker), 60_000, 60_000)
    path.write_bytes(data)
    assert "damaged at level 0, x=0, y=0" in refusal(path)


def test_hamamatsus_pages_have_few_bytes_a_pixel(tmp_path):
    path = write_ndpi(tmp_path / "s.ndpi", [IMAGE])
    with open_slide(path) as slide:
        assert (slide.vendor, slide.mpp) == ("hamamatsu", MPP)
    data = bytearray(path.read_bytes())
    at = data.index(struct.pack("<HHI", 256, 4, 1))
    struct.pack_into("<I", data, at + 8, 0x70000000)
    path.write_bytes(data)
    assert "bytes can hold" in refusal(path)


@pytest.mark.parametrize("group", [b"\x48\0\6\0UL", b"\x48\0\7\0UL"])
def test_dicom_slides_with_more_tiles_than_frames(tmp_path, group):
    path = write_level(tmp_path / "s.dcm", IMAGE, series="1.2.3", uid="1.2.3.4", mpp=MPP)
    other = write_level(tmp_path / "t.dcm", IMAGE[::2, ::2], series="1.2.3", uid="1.2.3.5", mpp=2 * MPP)
    data = bytearray(other.read_bytes())
    struct.pack_into("<I", data, data.index(group) + 8, 0x01000100)
    other.write_bytes(data)
    said = refusal(path)  # OpenSlide opens the whole series
    assert str(other) in said and "16,777,472" in said and "has 9 of them" in said


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("IMAGENUMBER_X", 2_000_000),
        ("IMAGENUMBER_Y", 40_000),
        ("FILE_COUNT", 10**9),
        ("CameraImageDivisionsPerSide", 10**5),
    ],
)
def test_mirax_slides_that_claim_too_much(tmp_path, key, value):
    """OpenSlide would be killed by some of these."""
    path = write_mirax(tmp_path / "s.mrxs", IMAGE[:256, :256], (4, 4), (1, 1), mpp=MPP)
    with open_slide(path) as slide:
        assert (slide.width, slide.height) == (1024, 1024)
    ini = tmp_path / "s" / "Slidedat.ini"
    text = ini.read_text()
    ini.write_text(re.sub(rf"^{key} = .*$", f"{key} = {value}", text, flags=re.MULTILINE))
    assert "damaged" in refusal(path)
