"""What QuPath gets from the commands and gives to them: files, regions of interest, scripts, pictures."""

import gzip
import json
import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from shapely import unary_union
from shapely.geometry import box, shape

from lrmil_cli.files.header import make_header, step
from lrmil_cli.files.tables import read_table, write_table
from lrmil_cli.slides.slide import Slide
from tests.conftest import blob_image, shell, without_checksum
from tests.mirax import write_mirax
from tests.unit.qupath.test_geojson import check_contract


def roi_file(path, *boxes, **properties):
    """GeoJSON as QuPath exports it, one annotation a box (left, top, right, bottom)."""
    features = [
        {
            "type": "Feature",
            "geometry": {"type": "Polygon", "coordinates": [[[l, t], [r, t], [r, b], [l, b], [l, t]]]},
            "properties": {"objectType": "annotation", **properties},
        }
        for l, t, r, b in boxes
    ]
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return path


def attention_of(tiles, path, score=lambda rows: rows["tissue"] + 0.01 * rows["col"]):
    """An attention table over the tiles of a tile table, as predict would leave it."""
    header, rows = read_table(tiles, "tiles")
    values = score(rows).to_numpy()
    table = rows[["x", "y", "width", "height"]].assign(
        attention=values / values.sum(), percentile=100 * np.argsort(np.argsort(values)) / max(1, len(values) - 1)
    )
    prediction = {"predicted": "tumor", "probabilities": {"normal": 0.1, "tumor": 0.9}, "tiles": len(rows)}
    write_table(
        path,
        make_header(
            "attention",
            slide=header["slide"],
            settings={},
            prediction=prediction,
            history=[step("predict", {}, {"x": "y"})],
        ),
        table,
    )
    return path


@pytest.fixture
def attention(slide, tmp_path, lrmil):
    """Attention table of the blob slide."""
    assert lrmil("tile", slide, "--mpp", "1", "--tile-px", "64", "-o", tmp_path / "blob.tiles.csv").code == 0
    return attention_of(tmp_path / "blob.tiles.csv", tmp_path / "blob.attention.csv")


# ---- export ------------------------------------------------------------------------
def test_both_styles_as_two_files_up_to_date_and_in_the_way(attention, tmp_path, lrmil):
    args = [
        "export-geojson",
        attention,
        "-o",
        tmp_path / "a.heatmap.geojson.gz",
        "--style",
        "both",
        "--threshold",
        "0.5",
    ]
    said = lrmil(*args, "--json")
    assert said.code == 0 and said.records[0]["files"] == {
        "tiles": str(tmp_path / "a.heatmap.geojson.gz"),
        "regions": str(tmp_path / "a.regions.geojson.gz"),
    }
    tiles = check_contract(gzip.decompress((tmp_path / "a.heatmap.geojson.gz").read_bytes()).decode(), 1600, 1200)
    regions = json.loads(gzip.decompress((tmp_path / "a.regions.geojson.gz").read_bytes()))
    high = [
        shape(f["geometry"])
        for f in tiles["features"]
        if f["properties"]["measurements"]["LRMIL attention (0-1)"] >= 0.5
    ]
    assert unary_union([shape(f["geometry"]) for f in regions["features"]]).equals(unary_union(high))
    again = lrmil(*args)
    assert again.code == 0 and again.err.count("up to date") == 2
    other = lrmil(*args[:-1], "0.7")
    assert other.code == 2 and "a.regions.geojson.gz exists" in other.err and "--overwrite" in other.err
    assert lrmil(*args[:-1], "0.7", "--overwrite").code == 0


def test_stdout_gets_the_same_as_a_file(attention, tmp_path, lrmil):
    assert lrmil("export-geojson", attention, "-o", tmp_path / "a.geojson").code == 0
    piped = shell(f"cat '{attention}' | lrmil export-geojson - -o - --style tiles", tmp_path)
    assert piped.returncode == 0 and not piped.stderr, piped.stderr
    assert json.loads(piped.stdout)["features"] == json.loads((tmp_path / "a.geojson").read_text())["features"]


def test_the_example_prints_how_much_faster_it_is_than_the_obvious_way():
    script = Path(__file__).resolve().parents[2] / "examples" / "geojson_speed.py"
    done = subprocess.run([sys.executable, script, "5000"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert (
        float(re.search(r"ratio ([\d.]+) for 5000 tiles", done.stdout)[1]) < 0.6
    )  # 0.25 for 100,000 on an idle machine


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--style", "bands"], "choose tiles, regions, both"),
        (["--top", "0.1"], "--style regions"),
        (["--style", "regions", "--top", "2"], "1 at most"),
        (["--style", "regions", "--top", "0.1", "--threshold", "0.5"], "not both"),
        (["--colormap", "magma"], "QuPath colours tiles itself"),
        (["--style", "regions", "--colormap", "jet"], "colour-blind"),
        (["--slide", "x.svs"], "--slide is for --picture"),
        (["--origin", "corner"], "auto, bounds or full"),
        (["--png", "x.jpg"], "ends in .png, .svg or .pdf"),
        (["--style", "both", "-o", "-"], "two files"),
    ],
)
def test_options_that_mean_nothing_are_wrong_usage(attention, tmp_path, lrmil, args, says):
    said = lrmil("export-geojson", attention, *([] if "-o" in args else ["-o", tmp_path / "x.geojson"]), *args)
    assert said.code == 2 and says in said.err and len(said.err.strip().splitlines()) == 1, said.err


def test_a_picture_says_which_slide_and_what_was_predicted(attention, tmp_path, lrmil, slide):
    args = [
        "export-geojson",
        attention,
        "-o",
        tmp_path / "a.geojson",
        "--png",
        tmp_path / "a.png",
        "--colormap",
        "cividis",
    ]
    assert lrmil(*args).code == 0
    picture = cv2.imread(str(tmp_path / "a.png"))
    assert picture.shape[1] > 1000 and (np.ptp(picture.astype(int), axis=2) > 60).mean() > 0.05
    said = lrmil(*args)
    assert said.code == 0 and said.err.count("up to date") == 2
    assert lrmil(*args[:-1], "magma").code == 2
    moved = tmp_path / "moved.svs"
    moved.write_bytes(slide.read_bytes())
    text = without_checksum(attention.read_text()).replace(
        json.dumps(str(slide)), json.dumps(str(tmp_path / "gone.svs"))
    )
    attention.write_text(text)  # it lies beside all the same
    beside = ["export-geojson", attention, "-o", tmp_path / "beside.geojson", "--png", tmp_path / "beside.png"]
    assert lrmil(*beside).code == 0
    attention.write_text(re.sub(r', "beside": "[^"]*"', "", text))
    gone = lrmil("export-geojson", attention, "-o", tmp_path / "b.geojson", "--png", tmp_path / "b.png")
    assert gone.code == 3 and "--slide" in gone.err
    assert (
        lrmil(
            "export-geojson", attention, "-o", tmp_path / "b.geojson", "--png", tmp_path / "b.png", "--slide", moved
        ).code
        == 0
    )
    moved.write_bytes(slide.read_bytes() + b"x")
    other = lrmil(
        "export-geojson", attention, "-o", tmp_path / "c.geojson", "--png", tmp_path / "c.png", "--slide", moved
    )
    assert other.code == 3 and "not the slide of the attention table" in other.err and not (tmp_path / "c.png").exists()


def test_info_says_what_qupath_will_make_of_a_file(attention, tmp_path, lrmil):
    assert lrmil("export-geojson", attention, "-o", tmp_path / "a.geojson.gz").code == 0
    said = lrmil("info", tmp_path / "a.geojson.gz")
    assert (
        said.code == 0
        and "QuPath 0.5 to 0.7 opens it" in said.out
        and "LRMIL attention (0-1)" in said.out
        and "made by: export-geojson" in said.out
    )
    document = json.loads(gzip.decompress((tmp_path / "a.geojson.gz").read_bytes()))
    document["features"][3]["properties"]["classification"] = {"name": "X"}
    (tmp_path / "bad.json").write_text(json.dumps(document))
    said = lrmil("info", tmp_path / "bad.json")
    assert (
        said.code == 3
        and "import NOTHING" in said.out
        and "feature 4: a classification without name or color" in said.err
    )
    said = lrmil("info", tmp_path / "bad.json", "--json")
    assert (
        said.code == 3
        and said.records[0]["opens"] is False
        and said.records[0]["objects"] == {"tile": len(document["features"])}
    )
    (tmp_path / "cut.geojson").write_text('{"type":"FeatureCollection","features":[')
    said = lrmil("info", tmp_path / "cut.geojson")
    assert said.code == 3 and "truncated" in said.err
    assert lrmil("info", roi_file(tmp_path / "roi.geojson", (0, 0, 9, 9))).code == 0


# ---- regions of interest -----------------------------------------------------------
def test_tiles_are_kept_by_how_much_of_them_lies_inside(slide, tmp_path, lrmil):
    """Tiles of 128 level-0 px; the region takes 50 % of column 4 (512..640), all of 5 and a quarter of 6."""
    roi = roi_file(tmp_path / "r.geojson", (576, 300, 800, 900))
    base = ["tile", slide, "--mpp", "1", "--tile-px", "64"]
    assert lrmil(*base, "-o", tmp_path / "all.csv").code == 0
    _, everything = read_table(tmp_path / "all.csv", "tiles")
    for more, columns in (
        ([], {4, 5}),
        (["--min-inside", "0.51"], {5}),
        (["--min-inside", "0.2"], {4, 5, 6}),
        (["--min-inside", "0"], {4, 5, 6}),
    ):
        said = lrmil(*base, "--roi", roi, *more, "-o", tmp_path / "r.csv", "--overwrite", "--thumbnail")
        header, rows = read_table(tmp_path / "r.csv", "tiles")
        assert said.code == 0 and set(rows["col"]) == columns
        least = 0.5 if not more else float(more[1])
        inside = [
            box(x, y, x + w, y + h).intersection(box(576, 300, 800, 900)).area / (w * h)
            for x, y, w, h in everything[["x", "y", "width", "height"]].to_numpy()
        ]
        expected = everything[[s >= least and s > 0 for s in inside]]
        assert rows[["x", "y"]].to_numpy().tolist() == expected[["x", "y"]].to_numpy().tolist()
        assert (
            header["roi"]["min_inside"] == least and header["roi"]["file"] == str(roi) and header["roi"]["regions"] == 1
        )
    assert (tmp_path / "r.png").exists()
    same = lrmil(*base, "--roi", roi, "--min-inside", "0", "-o", tmp_path / "r.csv")
    assert same.code == 0 and "up to date" in same.err
    roi_file(roi, (576, 300, 801, 900))  # another region in the file of that name
    changed = lrmil(*base, "--roi", roi, "--min-inside", "0", "-o", tmp_path / "r.csv")
    assert changed.code == 2 and "--overwrite" in changed.err


def test_regions_without_tiles_are_no_tissue_with_the_reason(slide, tmp_path, lrmil):
    base = ["tile", slide, "--mpp", "1", "--tile-px", "64", "-o", tmp_path / "t.csv", "--json"]
    thin = roi_file(tmp_path / "thin.geojson", (640, 500, 660, 700))
    said = lrmil(*base, "--roi", thin)
    assert (
        said.code == 3
        and said.records[0]["status"] == "no_tissue"
        and "the best 16%" in said.err
        and "--min-inside" in said.err
    )
    said = lrmil(*base, "--roi", roi_file(tmp_path / "glass.geojson", (1400, 1000, 1600, 1200)))
    assert said.code == 3 and said.records[0]["status"] == "no_tissue" and "the best 0%" in said.err
    said = lrmil(*base, "--roi", roi_file(tmp_path / "off.geojson", (5000, 0, 6000, 100)))
    assert said.code == 3 and said.records[0]["status"] == "failed" and "wholly outside" in said.err
    assert not (tmp_path / "t.csv").exists()


def test_options_about_regions_need_regions_and_one_file_is_for_one_slide(slide, tmp_path, lrmil):
    base = ["tile", slide, "--mpp", "1", "-o", tmp_path / "out"]
    for more, says in (
        (["--roi-class", "Tumor"], "give that too"),
        (["--min-inside", "0.5"], "give that too"),
        (["--origin", "full"], "--roi"),
        (["--image-size", "1x1"], "--roi"),
    ):
        said = lrmil(*base, *more)
        assert said.code == 2 and says in said.err
    other = tmp_path / "other.svs"
    other.write_bytes(slide.read_bytes())
    rois = tmp_path / "rois"
    rois.mkdir()
    roi_file(rois / "blob.geojson", (500, 300, 900, 900), classification={"name": "Tumor", "color": [200, 0, 0]})
    two = ["tile", slide, other, "--mpp", "1", "--tile-px", "64", "-o", tmp_path / "out", "--json"]
    said = lrmil(*two, "--roi", rois / "blob.geojson")
    assert said.code == 2 and "give a folder" in said.err
    said = lrmil(*two, "--roi", rois, "--roi-class", "Tumor")
    assert (
        said.code == 4
        and {r["slide_id"]: r["status"] for r in said.records} == {"blob": "ok", "other": "failed"}
        and "no other.geojson" in said.err
    )


def test_what_was_exported_comes_back_as_the_same_tiles(attention, tmp_path, lrmil, slide, monkeypatch):
    """Regions of the export, read as regions of interest, hold the tiles they were made of; with bounds and without."""
    for bounds in (None, [130, 70, 1300, 1100]):
        if bounds:
            monkeypatch.setattr(Slide, "bounds", bounds)  # stands in for the properties of OpenSlide
        tiles = tmp_path / f"{'cropped' if bounds else 'full'}.csv"
        assert lrmil("tile", slide, "--mpp", "1", "--tile-px", "64", "-o", tiles).code == 0
        table = attention_of(tiles, tmp_path / "a.csv")
        out = tmp_path / "back.geojson"
        assert lrmil("export-geojson", table, "-o", out, "--style", "regions", "--top", "0.5", "--overwrite").code == 0
        document = json.loads(out.read_text())
        assert document["lrmil"]["offset"] == (bounds[:2] if bounds else [0, 0])
        assert (
            lrmil(
                "tile",
                slide,
                "--mpp",
                "1",
                "--tile-px",
                "64",
                "--roi",
                out,
                "--min-inside",
                "0.99",
                "-o",
                tmp_path / f"back-{tiles.name}",
            ).code
            == 0
        )
        _, all_rows = read_table(table, "attention")
        header, back = read_table(tmp_path / f"back-{tiles.name}", "tiles")
        high = all_rows[all_rows["attention"] >= np.sort(all_rows["attention"])[-int(np.ceil(len(all_rows) / 2))]]
        assert set(zip(back["x"], back["y"])) == set(zip(high["x"], high["y"]))
        assert header["roi"]["offset"] == document["lrmil"]["offset"]


# ---- a slide that has bounds -------------------------------------------------------
def test_mirax_lands_where_qupath_shows_it(tmp_path, lrmil):
    """Tissue scanned at level-0 (256, 512); QuPath shows 1024 x 768 px from there."""
    pytest.importorskip("openslide", reason="MIRAX needs the extra openslide")
    mirax = write_mirax(tmp_path / "m" / "a.mrxs", blob_image(1024, 768), (6, 5), (1, 2))
    about = lrmil("info", mirax, "--json").records[0]
    assert about["bounds"] == [256, 512, 1024, 768] and (about["width"], about["height"]) == (1536, 1280)
    base = ["tile", mirax, "--mpp", "1", "--tile-px", "64"]
    assert lrmil(*base, "-o", tmp_path / "t.csv").code == 0
    table = attention_of(tmp_path / "t.csv", tmp_path / "a.csv")
    assert lrmil("export-geojson", table, "-o", tmp_path / "a.geojson", "--png", tmp_path / "a.png").code == 0
    document = check_contract((tmp_path / "a.geojson").read_text(), 1024, 768)
    tissue = blob_image(1024, 768).min(2) < 230
    covered = np.zeros_like(tissue)
    for f in document["features"]:  # each tile lies on tissue of the picture that QuPath shows
        l, t, r, b = map(int, shape(f["geometry"]).bounds)
        assert tissue[t:b, l:r].any()
        covered[t:b, l:r] = True
    assert covered[tissue].mean() > 0.97 and tissue[covered].mean() > 0.5
    for size, offset in (("1024x768", [256, 512]), ("1536x1280", [0, 0])):
        assert (
            lrmil("export-geojson", table, "-o", tmp_path / "s.geojson", "--image-size", size, "--overwrite").code == 0
        )
        assert json.loads((tmp_path / "s.geojson").read_text())["lrmil"]["offset"] == offset
    assert (
        lrmil("export-geojson", table, "-o", tmp_path / "s.geojson", "--image-size", "768x1024", "--overwrite").code
        == 3
    )
    # a region drawn in QuPath around the right half of the disc
    roi = roi_file(tmp_path / "r.geojson", (461, 0, 1024, 768))
    assert lrmil(*base, "--roi", roi, "-o", tmp_path / "r.csv").code == 0
    header, rows = read_table(tmp_path / "r.csv", "tiles")
    assert header["roi"]["offset"] == [256, 512] and rows["x"].min() + 64 >= 461 + 256
    assert lrmil(*base, "--roi", roi, "--origin", "full", "-o", tmp_path / "f.csv").code == 0
    assert read_table(tmp_path / "f.csv", "tiles")[0]["roi"]["offset"] == [0, 0]


# ---- predict -----------------------------------------------------------------------
def test_predict_inside_a_region_with_all_that_shows_it(chain, tmp_path, lrmil):
    slide = chain.manifest.parent / "slides" / "s13.svs"
    roi = roi_file(tmp_path / "r.geojson", (0, 0, 1536, 800))
    args = ["predict", slide, "-m", chain.model, "-o", tmp_path / "p", "--json"]
    whole = lrmil(*args).records[0]["prediction"]
    refused = lrmil(*args, "--roi", roi)
    assert refused.code == 2 and "--overwrite" in refused.err
    shown = ["--roi", roi, "--geojson", tmp_path / "q/", "--style", "both", "--overlay", tmp_path / "q/"]
    said = lrmil(*args, *shown, "--overwrite")
    assert said.code == 0, said.err
    header, rows = read_table(tmp_path / "p" / "s13.attention.csv", "attention")
    record = json.loads((tmp_path / "p" / "s13.prediction.json").read_text())
    assert (
        header["roi"] == record["roi"]
        and record["tiles"] == len(rows) < whole["tiles"]
        and (rows["y"] + rows["height"] / 2 <= 800).all()
    )
    files = said.records[0]["files"]
    assert {k: f.rsplit("/", 1)[1] for k, f in files.items()} == {
        "tiles": "s13.heatmap.geojson.gz",
        "regions": "s13.regions.geojson.gz",
        "overlay": "s13.overlay.png",
    }
    document = check_contract(
        gzip.decompress((tmp_path / "q" / "s13.heatmap.geojson.gz").read_bytes()).decode(), 1536, 1536
    )
    assert document["lrmil"]["roi"]["digest"] == header["roi"]["digest"]
    again = lrmil(*args, *shown)
    assert again.code == 0 and again.records[0]["status"] == "skipped"
    # what export-geojson makes of the table is the same file
    said = lrmil(
        "export-geojson", tmp_path / "p" / "s13.attention.csv", "-o", tmp_path / "q" / "s13.heatmap.geojson.gz"
    )
    assert said.code == 0 and "up to date" in said.err


def test_a_map_that_is_missing_is_made_from_the_table_without_predicting_again(chain, tmp_path, lrmil, monkeypatch):
    slide = chain.manifest.parent / "slides" / "s13.svs"
    args = ["predict", slide, "-m", chain.model, "-o", tmp_path / "p"]
    assert lrmil(*args).code == 0
    from lrmil_cli.inference.low_resolution import LowResolutionPredictor

    monkeypatch.setattr(LowResolutionPredictor, "predict", lambda *a, **k: 1 / 0)
    said = lrmil(*args, "--overlay", tmp_path / "o.png", "--geojson", tmp_path / "g.geojson", "--json")
    assert (
        said.code == 0
        and said.records[0]["status"] == "ok"
        and (tmp_path / "o.png").exists()
        and (tmp_path / "g.geojson").exists()
    )
    piped = lrmil(*args, "--geojson", "-")
    assert (
        piped.code == 0
        and json.loads(piped.out)["features"] == json.loads((tmp_path / "g.geojson").read_text())["features"]
    )
    assert lrmil(*args, "--geojson", "-", "--json").code == 2


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--style", "regions"], "give --geojson too"),
        (["--top", "0.1"], "give --geojson too"),
        (["--colormap", "magma"], "QuPath colours tiles itself"),
        (["--origin", "full"], "--geojson and --roi"),
        (["--image-size", "5x5"], "--geojson and --roi"),
        (["--min-inside", "0.4"], "--roi"),
    ],
)
def test_predict_refuses_options_that_would_do_nothing(slide, tmp_path, lrmil, more, says):
    said = lrmil("predict", slide, "-m", "no-model.safetensors", "-o", tmp_path / "p", *more)
    assert said.code == 2 and says in said.err and not (tmp_path / "p").exists()
