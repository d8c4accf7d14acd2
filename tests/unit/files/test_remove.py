"""Removing a file that somebody else holds, as Windows has it."""

import pytest

from lrmil_cli.errors import MachineError
from lrmil_cli.files import atomic
from lrmil_cli.files.atomic import remove


def held_open(monkeypatch, path, refusals):
    """As on Windows: a file cannot be removed so often, because somebody has it open."""
    left, unlink = [refusals], type(path).unlink

    def refuse(self, **options):
        left[0] -= 1
        if left[0] >= 0:
            raise PermissionError(13, "Access is denied")
        unlink(self, **options)

    monkeypatch.setattr(type(path), "unlink", refuse)
    monkeypatch.setattr(atomic, "_PATIENCE", (0.001,) * 4)


def test_a_file_that_is_open_for_a_moment_is_waited_for(tmp_path, monkeypatch):
    (tmp_path / "t.csv").write_text("old")
    held_open(monkeypatch, tmp_path, 3)
    remove(tmp_path / "t.csv")
    remove(tmp_path / "t.csv")  # gone already
    assert not list(tmp_path.iterdir())


def test_a_file_that_stays_open_is_no_internal_error(tmp_path, monkeypatch):
    (tmp_path / "t.csv").write_text("old")
    held_open(monkeypatch, tmp_path, 99)
    with pytest.raises(MachineError, match="cannot remove .*t.csv: Access is denied; close it where it is open"):
        remove(tmp_path / "t.csv")


def test_elsewhere_what_is_not_permitted_is_said_at_once(tmp_path, monkeypatch):
    (tmp_path / "t.csv").write_text("old")
    held_open(monkeypatch, tmp_path, 1)
    monkeypatch.setattr(atomic, "_PATIENCE", ())
    with pytest.raises(MachineError, match="Access is denied; choose another"):
        remove(tmp_path / "t.csv")
