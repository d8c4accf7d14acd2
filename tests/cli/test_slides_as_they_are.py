"""Slides as scanners and converters leave them, by the commands: what is said, what is written, what is refused."""

import json

import numpy as np
import pandas as pd
import pytest
import tifffile

from lrmil_cli.files.tables import read_table_header
from lrmil_cli.slides.slide import open_slide, reopening
from tests.conftest import blob_image

PIXELS = {"tile": (64, 64), "photometric": "rgb", "compression": "deflate", "metadata": None}
SCALE = {"resolution": (20000, 20000), "resolutionunit": "CENTIMETER"}
SMALL = ("--mpp", "2.0", "--tile-px", "64")


@pytest.fixture
def sections(tmp_path):
    """Two sections in one file: tissue in the middle, and in the upper left corner."""
    with tifffile.TiffWriter(tmp_path / "two.tif") as out:
        for image in (blob_image(800, 600), np.roll(blob_image(800, 600, seed=3), (-150, -180), (0, 1))):
            out.write(image, **PIXELS, **SCALE)
    return tmp_path / "two.tif"


def test_a_second_section_is_said_and_read_when_asked_for(tmp_path, lrmil, sections):
    first = lrmil("tile", sections, *SMALL, "-o", tmp_path / "0.csv")
    assert first.code == 0 and "warning: two: holds more than one large image" in first.err
    second = lrmil("tile", sections, *SMALL, "--image", 1, "-o", tmp_path / "1.csv")
    assert second.code == 0 and "warning" not in second.err
    tables = [pd.read_csv(tmp_path / f"{k}.csv", comment="#")[["x", "y"]].values.tolist() for k in (0, 1)]
    assert tables[0] != tables[1]
    headers = [read_table_header(tmp_path / f"{k}.csv", "tiles") for k in (0, 1)]
    assert "read_as" not in headers[0]["slide"] and headers[1]["slide"]["read_as"] == {"image": 1}
    # The table of one is not up to date for the other, and what reads the slide again reads the same image.
    assert lrmil("tile", sections, *SMALL, "--image", 1, "-o", tmp_path / "0.csv").code == 2
    assert "up to date" in lrmil("tile", sections, *SMALL, "--image", 1, "-o", tmp_path / "1.csv").err
    with open_slide(sections, **reopening(headers[1]["slide"])) as slide:
        assert slide.source.image == 1
    refused = lrmil("tile", sections, *SMALL, "--image", 2, "-o", tmp_path / "2.csv")
    assert refused.code == 3 and "no image 2; it has 2" in refused.err and not (tmp_path / "2.csv").exists()
    assert lrmil("tile", sections, *SMALL, "--reader", "vips", "-o", tmp_path / "2.csv").code == 2


def test_features_are_those_of_the_image_that_was_tiled(tmp_path, lrmil, sections):
    import h5py

    features = []
    for image in (0, 1):
        table = tmp_path / f"{image}.csv"
        assert lrmil("tile", sections, *SMALL, "--image", image, "-o", table).code == 0
        assert lrmil("embed", table, "--encoder", "demo-vit", "-o", tmp_path / f"{image}.h5").code == 0
        with h5py.File(tmp_path / f"{image}.h5") as h5:
            features.append(h5["features"][:].mean(0))
    assert np.abs(features[0] - features[1]).max() > 1e-3


def test_info_says_images_levels_coding_reader_and_scale(lrmil, sections):
    said = lrmil("info", sections, "--json").records[0]
    assert (said["format"], said["compression"], said["colours"], said["bits"]) == ("TIFF", "deflate", "RGB", 8)
    assert said["reader"] == "tiffslide" and said["mpp_from"] == "resolution tags" and said["image"] == 0
    assert [(i["image"], i["width"], i["kind"]) for i in said["images"]] == [(0, 800, "slide"), (1, 800, "slide")]
    assert said["levels"] == [{"level": 0, "width": 800, "height": 600, "downsample": 1.0, "mpp": 0.5}]
    text = lrmil("info", sections).out
    assert "image 1: slide, 800 x 600 px" in text and "note: holds more than one" in text and "why: TIFF" in text
    doctor = lrmil("doctor", "--quick", sections)
    assert "image 0 of 2" in " ".join(doctor.out.split()) and "WARN" in doctor.out


def scn(path, regions, size=(900, 700), mpp_nm=2000):
    """A Leica slide of (x, y, image) regions in px of the slide, in two levels."""
    image = (
        '<image uuid="urn:{n}"><creationDate>2020-08-19T12:06:35Z</creationDate><device model="SCN400" version="1"/>'
        '<pixels sizeX="{w}" sizeY="{h}">{levels}</pixels>'
        '<view sizeX="{vw}" sizeY="{vh}" offsetX="{x}" offsetY="{y}" spacingZ="0"/><scanSettings><objectiveSettings>'
        "<objective>20</objective></objectiveSettings><illuminationSettings><numericalAperture>0.4</numericalAperture>"
        "<illuminationSource>brightfield</illuminationSource></illuminationSettings></scanSettings></image>"
    )
    xml = (
        '<?xml version="1.0"?><scn xmlns="http://www.leica-microsystems.com/scn/2010/10/01"><collection name="c" '
        f'sizeX="{size[0] * mpp_nm}" sizeY="{size[1] * mpp_nm}"><barcode>b</barcode>'
    )
    level = '<dimension sizeX="{w}" sizeY="{h}" r="{r}" ifd="{ifd}"/>'
    macro = np.full((size[1] // 16, size[0] // 16, 3), 225, np.uint8)
    pages: list[np.ndarray] = []
    for n, (x, y, pixels) in enumerate([(0, 0, macro), *regions]):
        own = [pixels] if not n else [pixels, np.ascontiguousarray(pixels[::4, ::4])]
        levels = "".join(level.format(w=p.shape[1], h=p.shape[0], r=r, ifd=len(pages) + r) for r, p in enumerate(own))
        h, w = pixels.shape[:2]
        view = {"vw": w * mpp_nm, "vh": h * mpp_nm} if n else {"vw": size[0] * mpp_nm, "vh": size[1] * mpp_nm}
        xml += image.format(w=w, h=h, n=n, levels=levels, x=x * mpp_nm, y=y * mpp_nm, **view)
        pages += own
    xml += "</collection></scn>"
    with tifffile.TiffWriter(path, bigtiff=True) as out:
        for n, pixels in enumerate(pages):
            options = {**PIXELS, "compression": "jpeg", "compressionargs": {"level": 95}}
            out.write(pixels, description=None if n else xml, **options)
    return path


def test_between_the_regions_of_a_leica_slide_is_glass(tmp_path, lrmil):
    pytest.importorskip("openslide", reason="OpenSlide is not installed")
    tissue = blob_image(320, 256)
    path = scn(tmp_path / "s.scn", [(64, 64, tissue), (512, 384, tissue)])
    with open_slide(path) as slide:
        assert slide.reader == "openslide" and "Leica" in slide.source.choice.why and slide.mpp == pytest.approx(2.0)
        whole = slide.read(0, 0, 0, 900, 700)
        assert (whole[:64] == 255).all() and (whole[330:380] == 255).all()  # no black anywhere
        for x, y in ((64, 64), (512, 384)):
            assert np.abs(whole[y : y + 256, x : x + 320].astype(int) - tissue).mean() < 3
    assert lrmil("tile", path, "--mpp", "2", "--tile-px", "64", "-o", tmp_path / "t.csv").code == 0
    rows = pd.read_csv(tmp_path / "t.csv", comment="#")
    inside = ((rows.x < 384) & (rows.y < 320)) | ((rows.x + 64 > 512) & (rows.y + 64 > 384))
    assert len(rows) > 2 and inside.all()
    refused = lrmil("info", path, "--image", 1)
    assert refused.code == 3 and "put together" in refused.err


def test_a_bad_slide_of_a_batch_says_its_own_trouble(tmp_path, lrmil):
    folder = tmp_path / "in"
    folder.mkdir()
    image = blob_image(800, 600)
    tifffile.imwrite(folder / "float.tif", image.astype(np.float32), **PIXELS, **SCALE)
    tifffile.imwrite(folder / "noscale.tif", image, **PIXELS)
    tifffile.imwrite(folder / "ok.tif", image, **PIXELS, **SCALE)
    said = lrmil("tile", folder, *SMALL, "-o", tmp_path / "out", "--json")
    errors = {r["slide_id"]: r["error"] for r in said.records}
    assert said.code == 4 and errors["ok"] is None
    assert "floating-point" in errors["float"] and "does not say its mpp" in errors["noscale"]
    assert json.dumps(errors).count("internal") == 0 and (tmp_path / "out" / "failures.csv").exists()
