"""The user knows better where the tissue is: masks, regions, the least share of tissue; for all slides or some."""

import json

import cv2
import numpy as np
import pandas as pd
import pytest

from lrmil_cli.files.tables import read_table
from tests.conftest import blob_image, write_tiff

WIDTH, HEIGHT, SIDE = 1600, 1200, 256  # level-0 px; of a tile
LEFT = [0, 0, 512, 1024]  # glass, and a bit of the disc


def rows_of(path):
    header, rows = read_table(path, "tiles")
    return header, pd.DataFrame(rows)


def draw(path, x, y, width, height):
    ring = [[x, y], [x + width, y], [x + width, y + height], [x, y + height], [x, y]]
    geometry = {"type": "Polygon", "coordinates": [ring]}
    one = {"type": "Feature", "geometry": geometry, "properties": {"objectType": "annotation"}}
    path.write_text(json.dumps({"type": "FeatureCollection", "features": [one]}))
    return path


def paint(path, x, y, width, height, scale=8):
    """A mask of one rectangle, at 1 : ``scale``."""
    mask = np.zeros((HEIGHT // scale, WIDTH // scale), np.uint8)
    mask[y // scale : (y + height) // scale, x // scale : (x + width) // scale] = 1
    assert cv2.imwrite(str(path), mask)
    return path


@pytest.fixture(scope="module")
def line(slide):
    return ["tile", slide, "--mpp", "0.5", "--tile-px", str(SIDE)]


def corners(rows):
    return set(zip(rows.x, rows.y))


EVERY = {(x, y) for x in range(0, 512, SIDE) for y in range(0, 1024, SIDE)}


def test_all_of_a_region_with_no_tissue_asked_for(line, tmp_path, lrmil):
    roi = draw(tmp_path / "r.geojson", *LEFT)
    out = tmp_path / "a.csv"
    assert lrmil(*line, "--roi", roi, "-o", out).code == 0
    with_tissue = corners(rows_of(out)[1])
    assert 0 < len(with_tissue) < len(EVERY)
    said = lrmil(*line, "--roi", roi, "--min-tissue", "0", "-o", out, "--overwrite")
    header, rows = rows_of(out)
    assert said.code == 0 and corners(rows) == EVERY and (rows.tissue == 0).any()
    assert header["settings"]["min_tissue"] == 0
    bare = draw(tmp_path / "bare.geojson", 0, 0, SIDE, SIDE)
    said = lrmil(*line, "--roi", bare, "-o", tmp_path / "b.csv")
    assert said.code == 3 and "--min-tissue 0" in said.err
    assert lrmil(*line, "--roi", bare, "--min-tissue", "0", "-o", tmp_path / "b.csv").code == 0
    assert corners(rows_of(tmp_path / "b.csv")[1]) == {(0, 0)}
    # Without a region it still means: any tissue at all.
    assert lrmil(*line, "--min-tissue", "0", "-o", tmp_path / "c.csv").code == 0
    assert (rows_of(tmp_path / "c.csv")[1].tissue > 0).all()


@pytest.mark.parametrize("scale", [4, 16])
def test_a_mask_takes_the_place_of_what_would_be_found(line, tmp_path, lrmil, scale):
    out, mask = tmp_path / "a.csv", paint(tmp_path / "m.png", 512, 256, 512, 512, scale)
    said = lrmil(*line, "--mask", mask, "-o", out)
    header, rows = rows_of(out)
    assert said.code == 0 and corners(rows) == {(512, 256), (768, 256), (512, 512), (768, 512)}
    assert (rows.tissue == 1).all() and header["given"]["mask_file"] == str(mask)
    assert "up to date" in lrmil(*line, "--mask", mask, "-o", out).err
    for other in ([], ["--mask", paint(mask, 512, 256, 512, 256, scale)]):
        assert lrmil(*line, *other, "-o", out).code == 2  # made by another mask
    said = lrmil(*line, "--mask", paint(tmp_path / "empty.png", 0, 0, 0, 0), "-o", tmp_path / "e.csv")
    assert said.code == 3 and "0.0% of the slide is tissue" in said.err


def test_masks_that_do_not_fit(line, tmp_path, lrmil):
    cv2.imwrite(str(tmp_path / "square.png"), np.ones((50, 50), np.uint8))
    (tmp_path / "text.png").write_text("no picture")
    for name, says in (("square", "another shape"), ("text", "no picture"), ("gone", "cannot be read")):
        said = lrmil(*line, "--mask", tmp_path / f"{name}.png", "-o", tmp_path / "x.csv")
        assert said.code == 3 and says in said.err and f"{name}.png" in said.err
    said = lrmil(*line, "--mask", tmp_path, "-o", tmp_path / "x.csv")
    assert said.code == 3 and "holds no blob.png" in said.err


def test_a_thumbnail_shows_that_there_is_no_tissue(glass, tmp_path, lrmil):
    line = ["tile", glass, "--mpp", "0.5", "--tile-px", "128", "-o", tmp_path / "a.csv"]
    assert lrmil(*line).code == 3 and not (tmp_path / "a.png").exists()
    said = lrmil(*line, "--thumbnail")
    assert said.code == 3 and "what was found is in" in said.err and not (tmp_path / "a.csv").exists()
    assert cv2.imread(str(tmp_path / "a.png")).mean() > 230


def test_a_slide_that_is_all_tissue_is_said_to_be(tmp_path, lrmil):
    """5 x 5 mm; a crop of 4 x 4 mm may well be."""
    patch = blob_image(1600, 1200)[360:840, 480:960]
    large = write_tiff(tmp_path / "large.svs", cv2.resize(patch, (640, 640)), mpp=8.0)
    small = write_tiff(tmp_path / "small.svs", cv2.resize(patch, (500, 500)), mpp=8.0)
    line = ["--mpp", "8", "--tile-px", "64", "-o", tmp_path / "o"]
    said = lrmil("tile", large, small, *line)
    assert said.code == 0 and "large: 100% of it is tissue, which is much" in said.err and "small: 100%" not in said.err
    said = lrmil("doctor", large, "--quick", "--mpp", "8")
    assert "which is much" in said.err + said.out


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """Four slides: by itself, with a mask, with a region and all of it, with more tissue a tile."""
    at = tmp_path_factory.mktemp("told")
    for name in "abcd":
        write_tiff(at / f"{name}.svs", blob_image())
    (at / "own").mkdir()
    paint(at / "own" / "b.png", 512, 256, 512, 512)
    draw(at / "own" / "c.geojson", *LEFT)
    (at / "s.csv").write_text(
        "slide,mask,roi,min_tissue\na.svs,,,\nb.svs,own/b.png,,\nc.svs,,own/c.geojson,0\nd.svs,,,0.5\n"
    )
    return at / "s.csv"


def test_a_table_says_it_for_single_slides(table, tmp_path, lrmil, monkeypatch):
    monkeypatch.chdir(tmp_path)
    line = ["tile", table, "--mpp", "0.5", "--tile-px", str(SIDE), "-o", "o", "--min-tissue", "0.2"]
    said = lrmil(*line)
    assert said.code == 0, said.err
    assert "mask of 1 slide, roi of 1 slide, min_tissue of 2 slides" in said.err
    a, b, c, d = (rows_of(f"o/{name}.tiles.csv") for name in "abcd")
    assert a[0]["settings"]["min_tissue"] == 0.2 and a[1].tissue.between(0.2, 1).all() and a[1].tissue.min() < 1
    assert len(b[1]) == 4 and corners(c[1]) == EVERY and len(d[1]) and d[1].tissue.min() >= 0.5
    assert [r["status"] for r in lrmil(*line, "--json").records] == ["skipped"] * 4
    said = lrmil("doctor", table, "--quick", "--mpp", "0.5", "--json").out
    assert said.count("13.7% of the slide") == 1  # b, by its mask; found, it is more
    folder = tmp_path / "masks"
    folder.mkdir()
    for name in "abcd":
        paint(folder / f"{name}.png", 0, 0, SIDE, SIDE)
    line = [*line[:-4], "-o", "p", "--mask", folder]
    assert lrmil(*line).code == 0
    assert [len(rows_of(f"p/{name}.tiles.csv")[1]) for name in "abcd"] == [1, 4, 8, 1]  # the table wins


def test_predictions_hold_to_it(chain, table, tmp_path, lrmil):
    line = ["predict", table, "--model", chain.model, "-o", tmp_path / "p"]
    assert lrmil(*line).code == 0
    b, c = (read_table(tmp_path / "p" / f"{name}.attention.csv", "attention")[1] for name in "bc")
    assert set(zip(b["x"], b["y"])) == {(512, 0), (512, 512)}  # what the mask covers
    assert set(zip(c["x"], c["y"])) == {(0, 0), (0, 512)}  # all of the region
    about = json.loads((tmp_path / "p" / "b.prediction.json").read_text())["given"]
    assert about["mask_file"].endswith("b.png")
    alone = lrmil("predict", table.parent / "b.svs", "--model", chain.model, "-o", tmp_path / "p")
    assert alone.code == 2  # another answer is there
    assert [r["status"] for r in lrmil(*line, "--json").records] == ["skipped"] * 4
