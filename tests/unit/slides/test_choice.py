"""Who reads a file: by what it is, whatever it is called; the colours are those that OpenSlide gives."""

import shutil
import sys

import cv2
import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image

from lrmil_cli.errors import InputError, MachineError, UsageError
from lrmil_cli.slides.choice import RULES, Facts, choose, refusal
from lrmil_cli.slides.reader import iter_batches
from lrmil_cli.slides.slide import open_slide
from lrmil_cli.slides.tiff import aperio_values
from lrmil_cli.slides.tiff_header import is_ndpi
from tests.conftest import blob_image, write_tiff
from tests.dicom_slides import write_level

IMAGE = blob_image(320, 256)
SCALE = {"resolution": (20000, 20000), "resolutionunit": "CENTIMETER"}
PIXELS = {"tile": (64, 64), "photometric": "rgb", "compression": "deflate", **SCALE}
ABOUT = "Aperio Image Library v10\n320x256 (64x64) J2K/YUV16 Q=30|AppMag = 20|MPP = 0.5"


@pytest.fixture
def openslide():
    return pytest.importorskip("openslide", reason="OpenSlide is not installed")


def write(path, image=IMAGE, **options):
    with tifffile.TiffWriter(path) as out:
        out.write(image, metadata=None, **{**PIXELS, **options})
    return path


def jpeg2000(path, compression, photometric, convert, **options):
    def tiles():
        for y in range(0, 256, 64):
            for x in range(0, 320, 64):
                yield imagecodecs.jpeg2k_encode(
                    np.ascontiguousarray(convert(IMAGE[y : y + 64, x : x + 64])), level=0, codecformat="j2k", **options
                )

    with tifffile.TiffWriter(path) as out:
        out.write(
            tiles(),
            shape=IMAGE.shape,
            dtype=np.uint8,
            tile=(64, 64),
            photometric=photometric,
            compression=compression,
            description=ABOUT,
            metadata=None,
        )
    return path


def ycbcr(tile):
    return cv2.cvtColor(tile, cv2.COLOR_RGB2YCrCb)[..., [0, 2, 1]]


@pytest.mark.parametrize("tag", ["rgb", "ycbcr"])
def test_aperios_jpeg_2000_in_ycbcr_has_openslides_colours(tmp_path, openslide, tag):
    path = jpeg2000(tmp_path / "s.svs", 33003, tag, ycbcr, mct=False)
    theirs = np.asarray(openslide.OpenSlide(str(path)).read_region((0, 0), 0, (320, 256)))[..., :3]
    with open_slide(path) as slide:
        assert slide.reader == "openslide" and "33003" in slide.source.choice.why
        pixels = slide.read(0, 0, 0, 320, 256).astype(int)
    assert np.abs(pixels - theirs).max() <= 2 and np.abs(pixels - IMAGE).mean() <= 2
    with open_slide(path, reader="tiffslide") as slide:  # for people who know; the table says so
        assert slide.read_as == {"reader": "tiffslide"} and np.abs(slide.read(0, 0, 0, 320, 256) - IMAGE).mean() > 20


@pytest.mark.parametrize("mct", [True, False])
def test_aperios_jpeg_2000_in_rgb_is_read_by_blocks(tmp_path, mct):
    with open_slide(jpeg2000(tmp_path / "s.svs", 33005, "rgb", lambda t: t, mct=mct)) as slide:
        assert slide.reader == "tiffslide" and np.abs(slide.read(0, 0, 0, 320, 256).astype(int) - IMAGE).max() <= 2


def odd_colours():
    gray = cv2.cvtColor(IMAGE, cv2.COLOR_RGB2GRAY)
    quantized = Image.fromarray(IMAGE).quantize(64)
    colours = np.array(quantized.getpalette(), np.uint8).reshape(-1, 3)
    table = np.zeros((3, 256), np.uint16)
    table[:, : len(colours)] = colours.T.astype(np.uint16) * 257
    inverse = 255 - IMAGE.astype(int)
    black = inverse.min(2, keepdims=True)
    cmyk = np.concatenate([inverse - black, black], 2).astype(np.uint8)
    as_rgb = np.asarray(quantized.convert("RGB"))
    return {
        "white is 0": (255 - gray, {"photometric": "miniswhite"}, np.repeat(gray[..., None], 3, 2)),
        "palette": (np.asarray(quantized), {"photometric": "palette", "colormap": table}, as_rgb),
        "CMYK": (cmyk, {"photometric": "separated"}, None),
    }


@pytest.mark.parametrize("name", ["white is 0", "palette", "CMYK"])
def test_other_colours_are_openslides(tmp_path, openslide, name):
    image, options, wanted = odd_colours()[name]
    path = write(tmp_path / "s.tif", image, **options)
    theirs = np.asarray(openslide.OpenSlide(str(path)).read_region((0, 0), 0, (320, 256)))[..., :3]
    with open_slide(path) as slide:
        assert slide.reader == "openslide" and name in slide.source.choice.why and slide.mpp == pytest.approx(0.5)
        pixels = slide.read(0, 0, 0, 320, 256).astype(int)
    assert np.abs(pixels - theirs).max() <= 2 and (wanted is None or np.abs(pixels - wanted).max() <= 2)
    with pytest.raises(InputError, match=rf"s\.tif: colours are .*{name}.*tiled RGB TIFF"):
        open_slide(write(tmp_path / "s.tif", image, **options, tile=None))  # OpenSlide opens no strips


def test_where_openslide_is_missing_tiffs_are_read_and_the_rest_names_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "openslide", None)
    with open_slide(write(tmp_path / "s.tif")) as slide:
        assert np.array_equal(slide.read(0, 0, 0, 320, 256), IMAGE) and "OpenSlide" not in slide.source.choice.why
    image, options, _ = odd_colours()["palette"]
    for path, says in (
        (write(tmp_path / "p.tif", image, **options), "colours are palette"),
        (write_level(tmp_path / "d.dcm", IMAGE, series="1.2", uid="1.2.3", mpp=0.5), "no TIFF"),
    ):
        with pytest.raises(
            MachineError, match=rf"{path.name}: .*{says}.*needs OpenSlide; pip install openslide-python"
        ):
            open_slide(path)


def test_the_name_does_not_count(tmp_path, openslide):
    dicom = write_level(tmp_path / "slide.svs", IMAGE, series="1.2", uid="1.2.3", mpp=0.5)
    with open_slide(dicom) as slide:
        assert slide.reader == "openslide" and slide.source.facts.format == "DICOM"
    for name in ("tiff.dcm", "tiff.mrxs", "no-suffix", "two::colons.tif", "tiff.ndpi"):
        with open_slide(write(tmp_path / name)) as slide:
            assert slide.reader == "tiffslide" and slide.mpp == pytest.approx(0.5)
            assert np.array_equal(slide.read(0, 0, 0, 320, 256), IMAGE)


def test_readers_that_people_ask_for(tmp_path, openslide):
    path = write(tmp_path / "s.tif")
    with open_slide(path) as auto, open_slide(path, reader="openslide") as other:
        assert other.read_as == {"reader": "openslide"} and auto.read_as == {}
        assert np.array_equal(auto.read(0, 5, 5, 200, 200), other.read(0, 5, 5, 200, 200))
        assert auto.made_of == {"slide": auto.fingerprint, "mpp": "0.5"} and "read_as" in other.made_of
        assert "read_as" not in auto.describe() and other.describe()["read_as"] == {"reader": "openslide"}
    with pytest.raises(UsageError, match="auto, tiffslide, openslide"):
        open_slide(path, reader="bioformats")
    dicom = write_level(tmp_path / "d.dcm", IMAGE, series="1.2", uid="1.2.3", mpp=0.5)
    with pytest.raises(InputError, match="no TIFF, and tiffslide reads nothing else"):
        open_slide(dicom, reader="tiffslide")
    with pytest.raises(InputError, match="--image"):
        open_slide(dicom, image=1)


def test_codecs_without_a_decoder_are_named_and_not_called_damaged(tmp_path):
    path = write(tmp_path / "s.tif")
    with tifffile.TiffFile(path) as tiff:
        tag = tiff.pages[0].tags["Compression"]
        at, order = tag.valueoffset, tiff.byteorder
    with open(path, "r+b") as fh:
        fh.seek(at)
        fh.write((34999).to_bytes(2, "little" if order == "<" else "big"))
    with pytest.raises((InputError, MachineError), match=r"s\.tif: tifffile cannot decode compression 34999"):
        open_slide(path)


def test_pixels_in_one_huge_strip(tmp_path, monkeypatch):
    from lrmil_cli.slides import choice

    monkeypatch.setattr(choice, "MAX_BLOCK_BYTES", 100_000)
    plain = write(tmp_path / "plain.tif", tile=None, rowsperstrip=256, compression=None)
    with open_slide(plain) as slide:  # without compression any rows can be read
        assert slide.blocks(0).height == 64 and np.array_equal(slide.read(0, 7, 100, 99, 90), IMAGE[100:190, 7:106])
    with pytest.raises(InputError, match=r"packed\.tif: .*strips of .* GB.*vips tiffsave"):
        open_slide(write(tmp_path / "packed.tif", tile=None, rowsperstrip=256))


@pytest.mark.parametrize("rows", [1, 5, 64, 256])
@pytest.mark.parametrize("dtype", ["<u1", "<u2", ">u2"])
def test_strips_without_compression_are_read_by_rows(tmp_path, rows, dtype):
    image = IMAGE.astype(np.dtype(dtype)) * (257 if "2" in dtype else 1)
    with tifffile.TiffWriter(tmp_path / "s.tif", byteorder=dtype[0]) as out:
        out.write(image, photometric="rgb", rowsperstrip=rows, metadata=None, **SCALE)
    with open_slide(tmp_path / "s.tif") as slide:
        assert np.array_equal(slide.read(0, 3, 60, 200, 150), IMAGE[60:210, 3:203])


def test_descriptions_that_are_no_text(tmp_path):
    for number, word in enumerate((b"\x8d\x03", b"Andr\xe9", "Łódź".encode())):
        path = tmp_path / f"{number}.svs"
        write_tiff(path, IMAGE, description=ABOUT + "|User = " + "x" * len(word))
        path.write_bytes(path.read_bytes().replace(b"User = " + b"x" * len(word), b"User = " + word))
        with open_slide(path) as slide:
            assert (slide.mpp, slide.vendor, slide.objective, len(slide.levels)) == (0.5, "aperio", 20, 2)
    assert aperio_values("Aperio\n1x1|MPP = 0.5|Key = a = b|MPP = 0,25|odd") == {"MPP": "0,25", "Key": "a = b"}


def patched(path, change):
    """The file with values of tags of its first page written over: name -> bytes."""
    write(path)
    with tifffile.TiffFile(path) as tiff:
        places = {name: tiff.pages[0].tags[name].valueoffset for name in change}
    with open(path, "r+b") as fh:
        for name, value in change.items():
            fh.seek(places[name])
            fh.write(value)
    return path


@pytest.mark.parametrize(
    "change",
    [
        {"XResolution": bytes(8), "YResolution": bytes(8)},
        {"XResolution": b"\1\0\0\0" + bytes(4)},
        {"XResolution": bytes(4) + b"\1\0\0\0"},
        {"ResolutionUnit": b"\0\0"},
        {"ResolutionUnit": b"\7\0"},
        {"ResolutionUnit": b"\1\0"},
    ],
)
def test_resolution_tags_that_make_no_sense_are_no_scale_and_no_obstacle(tmp_path, lrmil, change):
    path = patched(tmp_path / "s.tif", change)
    with pytest.raises(InputError, match=r"does not say its mpp.*--slide-mpp"):
        open_slide(path)
    with open_slide(path, slide_mpp=0.25) as slide:
        assert np.array_equal(slide.read(0, 0, 0, 320, 256), IMAGE) and slide.mpp == 0.25
    said = lrmil("info", path, "--json")
    assert said.code == 0 and said.records[0]["mpp"] is None and "--slide-mpp" in said.records[0]["mpp_missing"]
    assert said.records[0]["levels"][0]["width"] == 320


@pytest.mark.parametrize(("unit", "um"), [("um", 1), ("micron", 1), ("\\u00B5m", 1), ("mm", 1000)])
def test_imagejs_unit_is_read(tmp_path, unit, um):
    about = f"ImageJ=1.53c\nunit={unit}\nmin=0.0\n"
    path = write(tmp_path / "s.tif", description=about, resolution=(2 * um, 2 * um), resolutionunit="NONE")
    with open_slide(path) as slide:
        assert slide.mpp == pytest.approx(0.5) and "ImageJ" in slide.source.mpp[2]


def test_a_renamed_ndpi_is_one(tmp_path):
    assert not is_ndpi(write(tmp_path / "plain.ndpi"))
    shutil.copy(tmp_path / "plain.ndpi", tmp_path / "plain.tif")
    assert not is_ndpi(tmp_path / "plain.tif")


def test_the_table():
    assert choose(Facts("TIFF")).reader == "tiffslide" and refusal(Facts("TIFF")) is None
    through = [
        Facts("DICOM"),
        Facts("other"),
        *(Facts("TIFF", vendor) for vendor in ("ventana", "trestle", "leica", "philips")),
        Facts("TIFF", compression=33003),
        Facts("TIFF", photometric=6, compression=5),
        Facts("TIFF", photometric=8),
        Facts("TIFF", codec=False),
    ]
    for facts in through:
        assert choose(facts).reader == "openslide" and "{" not in choose(facts).why
    assert all(any(holds(facts) for facts in through) for holds, _, _ in RULES)
    for facts in (
        Facts("TIFF", photometric=6, compression=7),
        Facts("TIFF", compression=33005),
        Facts("TIFF", "aperio"),
    ):
        assert choose(facts).reader == "tiffslide"


def test_openslide_reads_on_after_damage(tmp_path, openslide):
    """By itself it answers every later call with the first error."""
    path = write_tiff(tmp_path / "s.svs", IMAGE, tile=(64, 64), compression="jpeg")
    page = tifffile.TiffFile(path).pages[0]
    with open(path, "r+b") as fh:
        fh.seek(page.dataoffsets[6])
        fh.write(b"\0" * page.databytecounts[6])
    boxes = np.array([[x, y, 64, 64] for y in range(0, 256, 64) for x in range(0, 320, 64)])
    for workers in (1, 4):
        with open_slide(path, reader="openslide", on_bad_tile="skip", workers=workers) as slide:
            bad: list[int] = []
            read = {int(r) for rows, _ in iter_batches(slide, boxes, 0, 64, 4, bad) for r in rows}
            assert bad == [6] and read == set(range(20)) - {6}
