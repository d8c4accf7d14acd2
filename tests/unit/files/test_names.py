"""Names and places of files on systems with other rules than the one the tests run on."""

import io
import os
import sys

import numpy as np
import pytest

from lrmil_cli.errors import InputError, MachineError
from lrmil_cli.files import atomic, manifest_checks
from lrmil_cli.files.atomic import write_text
from lrmil_cli.files.header import make_header, step
from lrmil_cli.files.manifest import read_manifest
from lrmil_cli.files.names import as_file, fits_file_name
from lrmil_cli.files.tables import read_table, write_table


@pytest.mark.parametrize(
    ("slide_id", "anywhere", "on_windows"),
    [
        ("TCGA-A1-A0SB-01Z-00-DX1.UUID", True, True),
        ("Größe 1, links", True, True),
        ("console", True, True),
        ("a:b", True, False),
        ("a?", True, False),
        ("a|b", True, False),
        ("nul", True, False),
        ("COM3.2024", True, False),
        ("a/b", False, False),
        ("a\\b", False, False),
        ("..", False, False),
        ("a\0", False, False),
    ],
)
def test_which_ids_can_be_names_of_files(slide_id, anywhere, on_windows):
    assert fits_file_name(slide_id, windows=False) == anywhere
    assert fits_file_name(slide_id, windows=True) == on_windows


def test_ids_that_differ_by_case_are_one_file_on_some_systems(tmp_path, monkeypatch):
    (tmp_path / "slides.csv").write_text("slide,slide_id\na.svs,S1\nb.svs,s1\n")
    monkeypatch.setattr(manifest_checks, "as_file", lambda i: as_file(i, caseless=False))
    assert len(read_manifest(tmp_path / "slides.csv")) == 2
    monkeypatch.setattr(manifest_checks, "as_file", lambda i: as_file(i, caseless=True))
    with pytest.raises(InputError, match="slide_id 'S1' stands in 2 rows"):
        read_manifest(tmp_path / "slides.csv")


def held_open(monkeypatch, refusals):
    """As on Windows: ``os.replace`` is refused so often, because somebody has the file open."""
    left, replace = [refusals], os.replace

    def refuse(*args):
        left[0] -= 1
        if left[0] >= 0:
            raise PermissionError(13, "Access is denied")
        replace(*args)

    monkeypatch.setattr(os, "replace", refuse)
    monkeypatch.setattr(atomic, "_PATIENCE", (0.001,) * 4)


def test_a_file_that_is_open_for_a_moment_is_waited_for(tmp_path, monkeypatch):
    held_open(monkeypatch, 3)
    write_text(tmp_path / "t.csv", "new")
    assert (tmp_path / "t.csv").read_text() == "new" and len(list(tmp_path.iterdir())) == 1


def test_a_file_that_stays_open_is_said_and_left_as_it_was(tmp_path, monkeypatch):
    (tmp_path / "t.csv").write_text("old")
    held_open(monkeypatch, 99)
    with pytest.raises(MachineError, match="t.csv: Access is denied; close it where it is open in another program"):
        write_text(tmp_path / "t.csv", "new")
    assert (tmp_path / "t.csv").read_text() == "old" and len(list(tmp_path.iterdir())) == 1


def test_a_pipe_carries_every_letter_whatever_the_console_can_show(tmp_path, monkeypatch):
    columns = {k: np.array([1, 2]) for k in ("x", "y", "width", "height")}
    columns |= {"attention": np.array([0.25, 0.75]), "percentile": np.array([0.0, 100.0]), "score_良性": np.ones(2)}
    out = io.TextIOWrapper(io.BytesIO(), encoding="cp1252", newline="\r\n")
    monkeypatch.setattr(sys, "stdout", out)
    write_table("-", make_header("attention", settings={}, history=[step("x", {}, {})]), columns)
    monkeypatch.undo()
    (tmp_path / "t.csv").write_bytes(out.buffer.getvalue())
    assert "score_良性" in read_table(tmp_path / "t.csv", "attention")[1]
