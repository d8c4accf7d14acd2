"""Versions of the format: files of an older one are read as ones of this, and their checksum is that of what was
written."""

import json

import numpy as np
import pytest
import torch

from lrmil_cli.errors import InputError
from lrmil_cli.files import header as header_module
from lrmil_cli.files.features import read_features, write_features
from lrmil_cli.files.graphs import read_graph, write_graph
from lrmil_cli.files.header import check_header, make_header, step
from lrmil_cli.files.tables import read_table, read_table_header, write_table
from lrmil_cli.files.tensors import load_tensors, read_tensor_header, save_tensors

SLIDE = {"id": "s", "mpp": 0.5, "width": 4000, "height": 3000}


def header_of(kind, **extra):
    return make_header(kind, slide=SLIDE, settings={"um": 2.125}, history=[step("x", {}, {})], **extra)


def read_2(header):
    """Version 3, let us say, calls ``mpp`` what versions 1 and 2 called ``um``."""
    settings = dict(header["settings"])
    return {**header, "settings": {"mpp": settings.pop("um"), **settings}}


@pytest.fixture
def next_version(tmp_path, monkeypatch):
    """A file of each form, written by this version and read by the next."""
    write_table(tmp_path / "t.csv", header_of("folds"), {"slide_id": np.arange(2), **columns()})
    write_table(tmp_path / "t.parquet", header_of("folds"), {"slide_id": np.arange(2), **columns()})
    tiles = {"tiles": {"mpp": 2.0, "tile_px": 256}, "encoder": {"name": "e"}}
    write_features(tmp_path / "f.h5", header_of("features", **tiles), np.ones((2, 3)), np.ones((2, 2)))
    save_tensors(tmp_path / "e.safetensors", {"a": torch.ones(3)}, header_of("encoder"))
    write_graph(tmp_path / "g.onnx", b"body", header_of("graph"))
    monkeypatch.setattr(header_module, "FORMAT_VERSION", 3)
    monkeypatch.setattr(header_module, "READERS", {1: read_2, 2: read_2, 3: lambda header: header})
    monkeypatch.setattr(header_module, "with_version", lambda header: {**header, "version": 3})
    return tmp_path


def columns():
    return {"patient_id": np.arange(2), "label": np.arange(2)}


READ = {
    "t.csv": lambda p: read_table(p, "folds")[0],
    "t.parquet": lambda p: read_table(p, "folds")[0],
    "f.h5": lambda p: read_features(p).header,
    "e.safetensors": lambda p: load_tensors(p, "encoder")[0],
    "g.onnx": lambda p: read_graph(p)[0],
}


@pytest.mark.parametrize("name", READ)
def test_an_older_file_is_read_as_one_of_this_version(next_version, name):
    header = READ[name](next_version / name)
    assert header["settings"] == {"mpp": 2.125} and header["version"] == 3
    json.dumps(header)  # nothing of how it was read is left in it
    assert type(header) is dict and "content" not in header


@pytest.mark.parametrize("name", [n for n in READ if n != "t.parquet"])  # its header stands there in base 64
def test_damage_of_an_older_file_is_seen_all_the_same(next_version, name):
    path = next_version / name
    data = path.read_bytes()
    assert data.count(b"2.125") == 1
    path.write_bytes(data.replace(b"2.125", b"2.625"))
    with pytest.raises(InputError, match="changed after it was written"):
        READ[name](path)


def test_headers_alone_are_brought_up_too(next_version):
    for header in (
        read_table_header(next_version / "t.csv", "folds"),
        read_tensor_header(next_version / "e.safetensors", "encoder"),
    ):
        assert header["settings"] == {"mpp": 2.125} and header["version"] == 3


def test_what_the_next_version_writes_is_refused_by_this_one(next_version, monkeypatch):
    write_table(next_version / "new.csv", header_of("folds"), {"slide_id": np.arange(2), **columns()})
    assert read_table(next_version / "new.csv", "folds")[0]["version"] == 3
    monkeypatch.undo()
    with pytest.raises(InputError, match=r"newer lrmil \(format 3, this one reads up to 2\)"):
        read_table(next_version / "new.csv", "folds")


@pytest.mark.parametrize("entry, version", [({}, 1), ({"target": {"kind": "regression"}}, 2), ({"bag": "patient"}, 2)])
def test_a_file_says_the_lowest_version_that_understands_it(entry, version, tmp_path, monkeypatch):
    write_table(tmp_path / "t.csv", header_of("folds", **entry), {"slide_id": np.arange(2), **columns()})
    assert read_table(tmp_path / "t.csv", "folds")[0]["version"] == version
    monkeypatch.setattr(header_module, "READERS", {1: lambda header: header})  # as the tool of version 1 had them
    if version == 1:
        assert len(read_table(tmp_path / "t.csv", "folds")[1]["label"]) == 2
    else:
        with pytest.raises(InputError, match=r"written by a newer lrmil \(format 2"):
            read_table(tmp_path / "t.csv", "folds")


def test_there_is_a_reader_for_every_version_up_to_this_one():
    assert sorted(header_module.READERS) == list(range(1, header_module.FORMAT_VERSION + 1))
    now = header_of("folds")
    assert check_header(now, "folds", "t.csv") is now


@pytest.mark.parametrize("slide_id", ["../x", "a/b", "..", "a\\b"])
def test_a_slide_whose_id_would_leave_the_folder_is_refused(slide_id):
    header = make_header("tiles", slide={**SLIDE, "id": slide_id}, settings={}, history=[step("x", {}, {})])
    with pytest.raises(InputError, match="cannot be part of a file name"):
        check_header(header, "tiles", "t.csv")
