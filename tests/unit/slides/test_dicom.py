"""DICOM slides: a series is one slide, and a level's scale is that of its pixels, not of its padded size."""

import cv2
import numpy as np
import pytest

from lrmil_cli.slides.dicom import one_per_series, read_dicom, series_of, series_spacings
from lrmil_cli.slides.reader import read_tile
from lrmil_cli.slides.slide import open_slide
from tests.conftest import blob_image
from tests.dicom_slides import write_level

IMAGE = blob_image(1100, 900)


def shrunk(factor):
    size = -(-IMAGE.shape[1] // factor), -(-IMAGE.shape[0] // factor)
    return IMAGE if factor == 1 else cv2.resize(IMAGE, size, interpolation=cv2.INTER_AREA)


def padded(image, tile=64):
    return tuple(-(-n // tile) * tile for n in image.shape[1::-1])


def write_series(folder, series="1.2.9", factors=(1, 2, 4, 8), pad=True, spacing=True, extras=False):
    for k, factor in enumerate(factors):
        image = shrunk(factor)
        write_level(
            folder / f"L{k}.dcm",
            image,
            series=series,
            uid=f"{series}.5.{k}",
            mpp=0.5 * (factor if spacing else 1),
            size=padded(image) if pad and k else None,
            resampled=k > 0,
        )
    if extras:
        for k, kind in enumerate(("LABEL", "OVERVIEW")):
            picture = np.full((64, 64, 3), 100, np.uint8)
            write_level(folder / f"a-{kind}.dcm", picture, series=series, uid=f"{series}.6.{k}", mpp=20, kind=kind)
    return folder


def test_headers_are_read_without_the_pixels(tmp_path):
    folder = write_series(tmp_path / "s")
    header = read_dicom(folder / "L1.dcm")
    assert (header.series, header.image_type, header.width, header.height) == ("1.2.9", "VOLUME", 576, 512)
    assert header.spacing == pytest.approx((1.0, 1.0))
    assert series_spacings(series_of(folder / "L0.dcm"))[(1100, 900)] == pytest.approx((0.5, 0.5))
    (tmp_path / "no.dcm").write_bytes(b"\0" * 128 + b"DICM" + b"\2\0")
    (tmp_path / "text.dcm").write_text("nothing")
    assert read_dicom(tmp_path / "no.dcm") is None and read_dicom(tmp_path / "text.dcm") is None


@pytest.mark.parametrize("spacing", [True, False])
@pytest.mark.parametrize("pad", [True, False])
def test_tiles_of_padded_levels_lie_where_those_of_level_0_do(tmp_path, pad, spacing):
    """With a spacing that says nothing the factor is measured."""
    pytest.importorskip("openslide", reason="OpenSlide is not installed")
    folder = write_series(tmp_path / "s", pad=pad, spacing=spacing)
    with open_slide(folder / "L2.dcm", slide_mpp=0.5) as slide:
        assert slide.reader == "openslide" and [l.downsample for l in slide.levels] == [1, 2, 4, 8]
        assert [(l.width, l.height) for l in slide.levels] == [(1100, 900), (550, 450), (275, 225), (138, 113)]
        assert ("levels" in slide.read_as) == pad
        gray = lambda tile: cv2.cvtColor(tile, cv2.COLOR_RGB2GRAY).astype(np.float32)  # noqa: E731
        for level in (1, 2):
            for x, y in ((300, 200), (600, 500)):
                fine, coarse = (gray(read_tile(slide, k, x, y, 256, 256, 128)) for k in (0, level))
                shift, _ = cv2.phaseCorrelate(cv2.GaussianBlur(fine, (0, 0), 2), cv2.GaussianBlur(coarse, (0, 0), 2))
                assert np.hypot(*shift) * 2 <= 1.0 + slide.levels[level].downsample / 2, (level, x, y, shift)
        for level in (1, 2, 3):  # wherever a rectangle begins, it shows the pixels that stand there
            size = slide.levels[level]
            whole = slide.read(level, 0, 0, size.width, size.height).astype(int)
            for x, y in ((13, 9), (50, 47), (71, 30)):
                part = slide.read(level, x, y, 60, 50)
                off = np.abs(part - whole[y : y + 50, x : x + 60]).mean()
                assert off < (0.2 if pad else 1.0), (level, x, y)  # OpenSlide blurs where its own factor is odd


def test_a_folder_of_instances_is_one_slide_a_series(tmp_path, lrmil):
    pytest.importorskip("openslide", reason="OpenSlide is not installed")
    write_series(tmp_path / "in", "1.2.9", factors=(1, 4), extras=True)
    other = write_series(tmp_path / "other", "1.2.10", factors=(1,))
    (other / "L0.dcm").rename(tmp_path / "in" / "Z0.dcm")
    (tmp_path / "in" / "notes.dcm").write_text("no slide at all")
    files = sorted((tmp_path / "in").iterdir())
    assert [p.name for p in one_per_series(files)] == ["L0.dcm", "Z0.dcm", "notes.dcm"]
    assert [p.name for p in one_per_series(files[:2])] == ["L0.dcm"]
    (tmp_path / "in" / "notes.dcm").unlink()
    files.remove(tmp_path / "in" / "notes.dcm")
    said = lrmil("tile", tmp_path / "in", "--mpp", "1", "--tile-px", "64", "-o", tmp_path / "out", "--json")
    assert said.code == 0 and [r["slide_id"] for r in said.records] == ["L0", "Z0"]
    said = lrmil(
        "tile",
        *(f for f in files if f.name != "Z0.dcm"),
        "--mpp",
        "1",
        "--tile-px",
        "64",
        "-o",
        tmp_path / "out",
        "--json",
    )
    assert [r["slide_id"] for r in said.records] == ["L0"]
