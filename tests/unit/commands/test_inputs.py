"""Which slides were named, and which names of outputs cannot be meant."""

import io
import json
import sys

import pytest

from lrmil_cli.commands import batch, inputs, overlays
from lrmil_cli.commands.batch import output_path
from lrmil_cli.commands.inputs import expand_slides
from lrmil_cli.errors import InputError
from lrmil_cli.files.names import as_file


def test_ids_that_differ_by_case_would_be_one_file_on_some_systems(monkeypatch):
    slides = ["x/S1.svs", "y/s1.svs"]
    monkeypatch.setattr(inputs, "as_file", lambda i: as_file(i, caseless=False))
    assert len(expand_slides(slides)) == 2
    monkeypatch.setattr(inputs, "as_file", lambda i: as_file(i, caseless=True))
    with pytest.raises(InputError, match="two slides have the id 'S1'"):
        expand_slides(slides)


@pytest.mark.parametrize("slide_id", ["../evil", "a/b", "a\\b", ".."])
def test_an_id_on_stdin_that_would_leave_the_folder_is_refused(monkeypatch, slide_id):
    monkeypatch.setattr(sys, "stdin", io.StringIO(json.dumps({"slide": "a.svs", "slide_id": slide_id}) + "\n"))
    with pytest.raises(InputError, match="cannot be part of a file name"):
        expand_slides(["-"])


def test_an_id_on_stdin_names_the_outputs(monkeypatch):
    lines = [{"slide": "x/a.svs", "slide_id": "b"}, {"slide": "x/c.svs"}]
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(json.dumps(line) + "\n" for line in lines)))
    assert [s.slide_id for s in expand_slides(["-"])] == ["b", "c"]


def test_a_line_says_all_that_a_row_of_a_manifest_says(monkeypatch, tmp_path):
    (tmp_path / "roi.geojson").write_text("{}")
    (tmp_path / "mask.png").write_bytes(b"")
    (tmp_path / "slides.csv").write_text(
        "slide,label,slide_id,mpp,roi,mask,min_tissue\na.svs,x,own,0.25,roi.geojson,,0.3\nb.svs,y,,,,mask.png,\n"
    )
    listed = expand_slides([str(tmp_path / "slides.csv")])
    lines = [{**vars(s), "slide": s.path} for s in listed]
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(json.dumps(l, default=str) + "\n" for l in lines)))
    assert expand_slides(["-"]) == listed


def test_a_backslash_ends_the_name_of_a_folder_on_windows(monkeypatch):
    for module in (batch, overlays):
        monkeypatch.setattr(module, "SEPARATORS", ("/", "\\"))
    assert output_path("results.v2\\", "s", "tiles", False).name == "s.tiles.csv"
    assert overlays.is_folder("maps.v2\\") and not overlays.is_folder("a.geojson")
