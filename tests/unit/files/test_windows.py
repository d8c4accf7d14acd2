"""What Windows, and file systems that ignore case, ask for; the platform is patched, so that these run everywhere."""

import errno
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from lrmil_cli.commands import batch, overlays
from lrmil_cli.errors import InputError, MachineError
from lrmil_cli.files import atomic, names
from lrmil_cli.files.atomic import remove, write_text
from lrmil_cli.files.manifest import read_manifest


@pytest.fixture
def windows(monkeypatch):
    monkeypatch.setattr(names, "WINDOWS", True)
    monkeypatch.setattr(names, "sys", SimpleNamespace(platform="win32"))
    monkeypatch.setattr(atomic, "_PAUSES", (0, 0, 0))


def held(monkeypatch, name, tries):
    """Another program has a file open: ``os.<name>`` is not permitted so many times. Returns the list of calls."""
    own, calls = getattr(os, name), []

    def refuse(*args, **kwargs):
        calls.append(args)
        if len(calls) <= tries:
            raise PermissionError(errno.EACCES, "Access is denied")
        return own(*args, **kwargs)

    monkeypatch.setattr(os, name, refuse)
    return calls


def test_a_file_that_is_open_for_a_moment_is_replaced_all_the_same(tmp_path, monkeypatch, windows):
    write_text(tmp_path / "t.csv", "old")
    calls = held(monkeypatch, "replace", 3)
    write_text(tmp_path / "t.csv", "new")
    assert (tmp_path / "t.csv").read_text() == "new" and len(calls) == 4
    assert [p.name for p in tmp_path.iterdir()] == ["t.csv"]


def test_a_file_that_stays_open_is_kept_and_named(tmp_path, monkeypatch, windows):
    write_text(tmp_path / "t.csv", "old")
    held(monkeypatch, "replace", 99)
    with pytest.raises(MachineError, match="t.csv: Access is denied; close the program that has it open, or choose"):
        write_text(tmp_path / "t.csv", "new")
    assert (tmp_path / "t.csv").read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["t.csv"]


def test_elsewhere_what_is_not_permitted_is_said_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(names, "WINDOWS", False)
    calls = held(monkeypatch, "replace", 99)
    with pytest.raises(MachineError, match="Access is denied; choose"):
        write_text(tmp_path / "t.csv", "new")
    assert len(calls) == 1


def test_a_file_that_cannot_be_removed_is_no_internal_error(tmp_path, monkeypatch, windows):
    write_text(tmp_path / "t.csv", "x")
    remove(tmp_path / "t.csv")
    remove(tmp_path / "t.csv")
    write_text(tmp_path / "t.csv", "x")

    def refuse(path):
        raise PermissionError(errno.EACCES, "Access is denied")

    monkeypatch.setattr(type(tmp_path), "unlink", refuse)
    with pytest.raises(MachineError, match="cannot remove .*t.csv: Access is denied; close the program"):
        remove(tmp_path / "t.csv")


def test_nobody_is_asked_whether_he_lives(tmp_path, monkeypatch, windows):
    """On Windows ``os.kill(pid, 0)`` ends the process."""
    monkeypatch.setattr(os, "kill", lambda *args: pytest.fail("a process was killed"))
    (tmp_path / f".x.{atomic._machine()}-{os.getppid()}-{'0' * 12}.tmp.csv").write_text("half")
    write_text(tmp_path / "t.csv", "x")
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(
    "slide_id", ["a:b", "what?", "a*", "a|b", "<a>", 'a"b', "CON", "nul", "com1", "Lpt9.x", "aux .y"]
)
def test_ids_that_windows_cannot_write(tmp_path, monkeypatch, slide_id):
    monkeypatch.setattr(names, "WINDOWS", False)
    assert names.fits_in_name(slide_id)
    monkeypatch.setattr(names, "WINDOWS", True)
    assert not names.fits_in_name(slide_id)
    quoted = slide_id.replace('"', '""')
    (tmp_path / "s.csv").write_text(f'slide,slide_id\na.svs,"{quoted}"\n')
    with pytest.raises(InputError, match="cannot be part of a file name"):
        read_manifest(tmp_path / "s.csv")


@pytest.mark.parametrize("slide_id", ["a", "conus", "S 12.3", "slide=1", "Łódź", "com10", "a;b,c"])
def test_ids_that_windows_can_write(slide_id, windows):
    assert names.fits_in_name(slide_id)


def test_ids_that_differ_by_case_alone(tmp_path, monkeypatch):
    (tmp_path / "s.csv").write_text("slide,slide_id\na.svs,S1\nb.svs,s1\n")
    for platform, good in (("linux", True), ("win32", False), ("darwin", False)):
        monkeypatch.setattr(names, "sys", SimpleNamespace(platform=platform))
        if good:
            assert len(read_manifest(tmp_path / "s.csv")) == len(batch.expand_slides(["x/S1.svs", "y/s1.svs"])) == 2
            continue
        with pytest.raises(InputError, match="slide_id 'S1' stands in 2 rows"):
            read_manifest(tmp_path / "s.csv")
        with pytest.raises(InputError, match="two slides have the id"):
            batch.expand_slides(["x/S1.svs", "y/s1.svs"])


def test_a_backslash_ends_the_name_of_a_folder(monkeypatch):
    for module in (batch, overlays):
        monkeypatch.setattr(module, "SEPARATORS", ("/", "\\"))
    assert batch.output_path("results.v2\\", "s", "tiles", False).name == "s.tiles.csv"
    assert overlays.is_folder("maps.v2\\") and not overlays.is_folder("a.geojson")


def test_a_closed_pipe_by_its_other_name():
    code = """
import errno, io, sys
from lrmil_cli import app
from lrmil_cli.files import names

class Gone(io.TextIOWrapper):
    def write(self, text):
        raise OSError(errno.EINVAL, "Invalid argument")

names.WINDOWS = sys.argv[1] == "windows"
sys.stdout = Gone(io.FileIO(1, "w"))
sys.exit(app.run(["--version"]))
"""
    for system, expected in (("windows", (141, "")), ("linux", (1, "error: internal error: OSError"))):
        said = subprocess.run([sys.executable, "-c", code, system], capture_output=True, text=True)
        assert said.returncode == expected[0] and said.stderr.startswith(expected[1]), said.stderr
        assert expected[1] or not said.stderr
