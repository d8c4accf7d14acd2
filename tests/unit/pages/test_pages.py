"""Pages after ``predict``: what they show, that they are safe and load nothing, what is made anew."""

import re
import shutil
from html.parser import HTMLParser
from urllib.parse import unquote

import numpy as np
import pytest
from PIL import Image

from lrmil_cli.files.header import step
from lrmil_cli.files.tables import read_table, write_table
from lrmil_cli.pages.attention_map import attention_picture, jpeg, view_of_slide
from lrmil_cli.pages.results import page_name, read_result
from lrmil_cli.pages.tile_pictures import chosen_rows
from lrmil_cli.qupath.colours import colours, multiples
from lrmil_cli.slides.given import read_mask
from lrmil_cli.slides.slide import open_slide
from tests.conftest import blob_image, not_on_windows
from tests.unit.pages.conftest import ATTENTION, BOXES

PAGE_BYTES = 2_000_000


class Page(HTMLParser):
    """Tags with their attributes, and the text of a page, as a browser would see them."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.text, self.path = [], "", path
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data

    def all(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]

    def check_safe(self, scripts=0):
        """Nothing is loaded, nothing runs that the policy does not name, links lead to what is there."""
        assert len(self.all("script")) == scripts and not self.all("iframe") and not self.all("link")
        for tag, attrs in self.tags:
            assert not [name for name in attrs if name.startswith("on")], (tag, attrs)
            assert (attrs.get("src") or "data:").startswith("data:image/jpeg;base64,") or "src" not in attrs
            target = attrs.get("href")
            assert target is None or (self.path.parent / unquote(target)).exists(), target
        policy = next(a["content"] for a in self.all("meta") if a.get("http-equiv"))
        assert policy.startswith("default-src 'none'") and ("script-src" in policy) == bool(scripts)
        assert "url(" not in self.path.read_text(encoding="utf-8")


# ---- colours and tiles -----------------------------------------------------------------------------------------------
def test_attention_is_shown_as_multiples_of_an_even_share():
    assert np.allclose(multiples(np.array([0.1, 0.1, 0.3, 0.5])), [0.4, 0.4, 1.2, 2.0])
    assert np.allclose(multiples(np.full(7, 1 / 7)), 1)


def test_colours_are_anchored_and_the_same_for_every_slide():
    wanted = {
        1: (None, 0),
        2: ((235.5, 145.5, 46.5), 0.4),  # half of the way from yellow to orange
        4: ((217, 95, 14), 0.8),
        16: ((102, 37, 6), 0.8),
        500: ((102, 37, 6), 0.8),
        0.5: ((33, 102, 172), 0.4 / 3),
        0.125: ((33, 102, 172), 0.4),
        0: ((33, 102, 172), 0.4),
    }
    for times, (colour, cover) in wanted.items():
        found = colours(np.array([times, 3.0]))[0]
        assert found[3] == pytest.approx(cover) and (colour is None or found[:3] == pytest.approx(colour)), times
        assert np.array_equal(found, colours(np.array([0.2, 900.0, times]))[2]), (
            "not stretched to the slide's own range"
        )


def test_the_picture_has_these_colours_over_pale_grey(put, slide, tmp_path):
    record = put(tmp_path / "out", "a")
    result = read_result(tmp_path / "out", "a")
    with open_slide(slide) as opened:
        view = view_of_slide(opened, record)
    assert view.of_slide and view.outlines
    even = attention_picture(view, result.rows, np.ones(len(BOXES)))
    assert np.array_equal(even[..., 0], even[..., 1]) and np.array_equal(even[..., 0], even[..., 2])
    times = np.ones(len(BOXES))
    times[4] = 16  # x 1024 to 1280, y 0 to 256
    painted = attention_picture(view, result.rows, times)
    at = (round(10 / view.scale_y), round(1150 / view.scale_x))
    assert painted[at] == pytest.approx(even[at] * 0.2 + np.array([102, 37, 6]) * 0.8, abs=1)
    outside = (slice(None), slice(0, round(1000 / view.scale_x)))
    assert np.array_equal(painted[outside], even[outside])
    # The outline is that of the disc that was painted.
    ring = max(view.outlines, key=len) * [view.scale_x, view.scale_y]
    radius = np.hypot(ring[:, 0] - 1600 * 0.45, ring[:, 1] - 600)
    assert abs(np.median(radius) - 0.36 * 1200) < 40


def test_tiles_shown_are_the_ends_of_the_table():
    names = chosen_rows(ATTENTION)
    assert [n for n, _ in names] == [f"top{n}" for n in range(1, 7)] + [f"bottom{n}" for n in range(1, 4)]
    assert [r for _, r in names] == [5, 10, 9, 11, 8, 7, 0, 1, 2], "of equal ones the first of the table"
    assert chosen_rows(np.ones(1)) == [("top1", 0)]
    assert [r for _, r in chosen_rows(np.arange(7.0))] == [6, 5, 4, 3, 2, 1, 0], "none twice"


def test_pictures_keep_to_their_size():
    noise = np.random.default_rng(0).integers(0, 255, (900, 700, 3), np.uint8)
    assert len(jpeg(noise, 60_000)) <= 60_000


# ---- the page of a slide ---------------------------------------------------------------------------------------------
def test_page_of_a_slide(put, lrmil, tmp_path):
    out = tmp_path / "out"
    put(out, "a", uncertain="the heads disagree", bad_tiles=2)
    said = lrmil("report", out)
    assert said.code == 0 and "index.html" in said.err
    page = Page(out / "a.html")
    page.check_safe()
    assert (out / "a.html").stat().st_size < PAGE_BYTES
    shown = " ".join(page.text.split())
    assert "tumor probability 0.75" in shown and "uncertain: the heads disagree" in shown
    assert "2 tiles could not be decoded" in shown and "research use only" in shown
    assert "1: 3.6× x 1280, y 0" in shown and "0.65 to 0.85, sd 0.10" in shown
    assert "1.2 s (open 0.25, encode 1.00)" in shown
    assert len(page.all("img")) == 2 + 9 and len(page.all("circle")) == 4
    # A tile of 256 px at 0.5 um/px is 128 um wide.
    assert {"class": "scale", "style": "width:15.62%"} in page.all("span")
    assert (
        "prefers-color-scheme: dark" in (out / "a.html").read_text() and "@media print" in (out / "a.html").read_text()
    )


def test_further_tables_and_promises_are_shown(put, lrmil, tmp_path):
    out = tmp_path / "out"
    record = put(
        out,
        "a",
        calibration={"of": "validation", "heads": ["temperature", "none"]},
        probabilities_raw={"normal": 0.1, "tumor": 0.9},
        prediction_set={"classes": ["tumor", "normal"], "coverage": 0.9, "by": "all", "patients": 40},
    )
    header, rows = read_table(out / "a.attention.csv", "attention")
    own = header | {"tables": ["screen"]}
    write_table(out / "a.attention.csv", own, rows)
    kept = (rows.index < 3).astype(float)
    write_table(out / "a.screen.attention.csv", own, rows.assign(kept=kept, screening=kept, attention=kept / 3))
    fine = own | {"history": [*header["history"], step("predict", {"fine": 2}, {})], "tables": []}
    write_table(out / "a.fine.attention.csv", fine, rows.assign(multiple=2.0, tiles=4))
    assert lrmil("report", out).code == 0
    page = Page(out / "a.html")
    page.check_safe()
    shown = " ".join(page.text.split())
    assert "Finer map" in shown and "What was read at 20x green: read; blue: a candidate, not read. 3 of 12." in shown
    assert len(page.all("img")) == 4 + 9 and (out / "a.html").stat().st_size < PAGE_BYTES
    assert "probability 0.75, not calibrated" in shown and "1 of 2 heads not, for lack of slides" in shown
    assert "before calibration" in shown and "The set for 90% of new patients: tumor, normal" in shown
    # One that is of another prediction is none of this one.
    put(out, "a", p=0.6)
    assert lrmil("report", out).code == 0 and "Finer map" not in Page(out / "a.html").text
    assert record["slide"]["id"] == "a"


def test_a_mask_that_was_given_is_outlined_while_it_is_there(put, slide, tmp_path):
    mask = np.zeros((120, 160), np.uint8)
    mask[30:90, 40:120] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    with open_slide(slide) as opened:
        given = read_mask(tmp_path / "mask.png", opened.width, opened.height)
        view = view_of_slide(opened, put(tmp_path / "out", "a", given=given.about))
    (ring,) = view.outlines
    box = np.concatenate([ring.min(0), ring.max(0)]) * np.array([view.scale_x, view.scale_y] * 2)
    assert box == pytest.approx([400, 300, 1200, 900], abs=25)
    Image.fromarray(255 - mask).save(tmp_path / "mask.png")
    with open_slide(slide) as opened:
        assert not view_of_slide(opened, put(tmp_path / "out", "a", given=given.about)).outlines


@not_on_windows
def test_names_of_slides_and_classes_are_no_markup(put, lrmil, tmp_path):
    out, bad = tmp_path / 'r<i>&"s', """x<img src='h' onerror=alert(1)>"'&é"""
    put(out, bad, classes=("<script>alert(1)</script>", '"><b onclick=x>'), uncertain="<u>why</u>")
    (out / "failures.csv").write_text("slide,slide_id,status,error\nx,<b>,failed,<script>bad</script>\n")
    assert lrmil("report", out).code == 0
    page, index = Page(out / f"{bad}.html"), Page(out / "index.html")
    page.check_safe()
    index.check_safe(scripts=1)
    assert bad in page.text and '"><b onclick=x>' in page.text and "<u>why</u>" in page.text
    assert bad in index.text and "<script>bad</script>" in index.text
    assert not page.all("b onclick") and not index.all("u")


def test_a_slide_that_is_gone_has_a_page_from_its_tables(put, lrmil, slide, tmp_path):
    out, copy = tmp_path / "out", tmp_path / "s.svs"
    shutil.copy(slide, copy)
    put(out, "s", slide=copy)
    copy.rename(tmp_path / "moved.svs")
    said = lrmil("report", out)
    page = Page(out / "s.html")
    assert said.code == 0 and "made from the tables alone" in said.err and "made from the tables alone" in page.text
    assert len(page.all("img")) == 2 and "1280" in page.text
    # Told where it is, the page is made anew, without --overwrite.
    (tmp_path / "there").mkdir()
    (tmp_path / "moved.svs").rename(tmp_path / "there" / "s.svs")
    said = lrmil("report", out, "--slides", tmp_path / "there", "--top-tiles", tmp_path / "tiles")
    assert said.code == 0 and len(Page(out / "s.html").all("img")) == 11
    assert len(list((tmp_path / "tiles").glob("s.*.png"))) == 10


def test_top_tiles_are_pixels_of_the_slide(put, lrmil, tmp_path):
    out, tiles = tmp_path / "out", tmp_path / "tiles"
    put(out, "a")
    assert lrmil("report", out, "--top-tiles", tiles).code == 0
    x, y, side, _ = BOXES[10]  # the second most attended
    with Image.open(tiles / "a.top2.png") as picture:
        assert np.array_equal(np.asarray(picture), blob_image()[y : y + side, x : x + side])
    before = (tiles / "a.tiles.png").read_bytes()
    again = lrmil("report", out, "--top-tiles", tiles)
    assert again.code == 0 and "up to date" in again.err and (tiles / "a.tiles.png").read_bytes() == before
    put(out, "a", p=0.6)
    said = lrmil("report", out, "--top-tiles", tiles)
    assert said.code == 2 and "add --overwrite" in said.err
    assert lrmil("report", out, "--top-tiles", tiles, "--overwrite").code == 0


def test_pages_follow_what_they_show_and_replace_nothing_else(put, lrmil, tmp_path):
    out = tmp_path / "out"
    put(out, "a")
    assert lrmil("report", out).code == 0
    first = (out / "a.html").read_bytes()
    assert "a: up to date" in lrmil("report", out).err and (out / "a.html").read_bytes() == first
    (out / "a.heatmap.geojson.gz").touch()
    assert lrmil("report", out).code == 0 and "a.heatmap.geojson.gz" in Page(out / "a.html").text
    put(out, "a", p=0.9)
    assert lrmil("report", out).code == 0 and "probability 0.90" in Page(out / "a.html").text
    (out / "index.html").write_text("<p>mine</p>")
    said = lrmil("report", out)
    assert (
        said.code == 2 and "not a page made by lrmil" in said.err and (out / "index.html").read_text() == "<p>mine</p>"
    )
    assert lrmil("report", out, "--overwrite").code == 0 and "1 slide" in Page(out / "index.html").text
    assert lrmil("report", tmp_path / "none").code == 3 and lrmil("report", tmp_path).code == 3


# ---- the index -------------------------------------------------------------------------------------------------------
def test_a_slide_that_fails_stops_nothing_and_stands_in_the_index(put, lrmil, tmp_path):
    out = tmp_path / "out"
    for n, slide_id in enumerate(("a", "b", "index")):
        put(out, slide_id, p=0.3 + 0.25 * n)
    (out / "b.attention.csv").write_text("nothing")
    (out / "failures.csv").write_text("slide,slide_id,status,error\nc.svs,c,failed,the file is truncated\n")
    said = lrmil("report", out)
    index = Page(out / "index.html")
    index.check_safe(scripts=1)
    assert said.code == 4 and "3 slides: 1 normal, 2 tumor" in index.text
    assert "the file is truncated" in index.text and "b.attention.csv" in index.text
    assert {a["href"] for a in index.all("a")} == {"a.html", "index.slide.html"} and page_name("Index") != "Index.html"


def test_index_of_many_slides_is_small_and_carries_what_it_sorts_by(many):
    index = Page(many / "index.html")
    index.check_safe(scripts=1)
    assert len(index.all("tr")) == 201 and len(index.all("img")) == 200
    assert (many / "index.html").stat().st_size < PAGE_BYTES
    numbers = [float(a["data-v"]) for a in index.all("td") if "data-v" in a][0::3]
    wanted = [max(0.8 - n / 300, 0.2 + n / 300) for n in range(200)]
    assert numbers == pytest.approx(wanted), "of the class that the record says"
    assert re.search(r"<script>[^<]*addEventListener", (many / "index.html").read_text())
