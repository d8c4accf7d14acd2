"""Slides that come into a folder: when one is whole, that each is taken once, what failed, what is away for a while."""

import configparser
import shlex
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import typer

from lrmil_cli.app import app
from lrmil_cli.commands import watch
from lrmil_cli.commands.batch import Outcome
from lrmil_cli.commands.report import Report
from lrmil_cli.errors import InputError, MachineError
from tests.dicom_slides import write_level


class Inbox:
    """A folder that is watched: between two looks the next of ``acts`` is done."""

    def __init__(self, folder: Path, monkeypatch):
        self.folder, self.out = folder / "inbox", folder / "out"
        self.folder.mkdir()
        self.out.mkdir()
        self.taken: list[str] = []  # ids, in the order in which they were worked on
        self.bad: set[str] = set()
        self.refreshed = 0
        self.monkeypatch = monkeypatch

    def work(self, item):
        self.taken.append(item.slide_id)
        if item.slide_id in self.bad:
            raise InputError(f"{item.path}: cannot be opened")
        return Outcome(str(item.path))

    def kept(self):
        self.refreshed += 1

    def look(self, *acts, looks=None, recursive=False):
        left = list(acts)
        self.monkeypatch.setattr(watch.time, "sleep", lambda seconds: left.pop(0)() if left else None)
        watch.watch_folders(
            "predict",
            [str(self.folder)],
            self.work,
            Report(),
            failures_in=self.out,
            kept=self.kept,
            recursive=recursive,
            interval=0.1,
            looks=looks or len(acts) + 3,
        )
        return self.taken

    def write(self, name: str, size: int):
        def act():
            (self.folder / name).parent.mkdir(exist_ok=True)
            (self.folder / name).write_bytes(b"x" * size)

        return act

    def failures(self):
        path = self.out / "failures.csv"
        return [line.split(",")[1] for line in path.read_text().splitlines()[1:]] if path.exists() else []


def nothing():
    pass


@pytest.fixture
def inbox(tmp_path, monkeypatch):
    return Inbox(tmp_path, monkeypatch)


def test_a_slide_is_taken_once_and_only_when_it_has_stopped_growing(inbox):
    seen = []
    watching = lambda: seen.append(list(inbox.taken))
    grow = [inbox.write("a.svs", n) for n in (1, 2, 3)]
    inbox.look(*grow, watching, watching, nothing, inbox.write("b.tiff", 4), nothing, nothing)
    # Of the last size two looks tell: the one before the first ``watching`` and the one after it.
    assert seen == [[], ["a"]] and inbox.taken == ["a", "b"] and inbox.refreshed == 2
    assert inbox.failures() == []


def test_what_failed_is_listed_and_tried_again_only_when_it_has_changed(inbox):
    inbox.bad = {"a"}
    inbox.write("a.svs", 5)()
    inbox.write("b.svs", 5)()
    assert inbox.look(looks=8) == ["a", "b"] and inbox.failures() == ["a"]
    inbox.taken.clear()

    def mend():
        inbox.bad = set()
        inbox.write("a.svs", 9)()

    assert inbox.look(nothing, nothing, mend, nothing) == ["a", "b", "a"]  # a new watch tries what failed once more
    assert inbox.failures() == []


def test_what_the_machine_lacks_ends_it(inbox):
    inbox.write("a.svs", 5)()

    def full(item):
        raise MachineError("no space left on device")

    inbox.work = full
    with pytest.raises(MachineError, match="no space"):
        inbox.look(looks=4)
    assert inbox.refreshed == 1 and inbox.failures() == []


def test_a_mirax_slide_waits_for_the_whole_of_its_folder(inbox):
    acts = [inbox.write("m.mrxs", 3), nothing, nothing, inbox.write("m/Data0000.dat", 9), inbox.write("m/Index.dat", 2)]
    seen = []
    inbox.look(*acts, lambda: seen.append(list(inbox.taken)), nothing)
    assert seen == [[]] and inbox.taken == ["m"]


def test_a_dicom_slide_waits_for_all_its_files_and_is_one(inbox):
    image = np.zeros((128, 128, 3), np.uint8)
    folder = inbox.folder / "case"
    folder.mkdir()

    def level(n):
        pixels, names = image[:: n + 1, :: n + 1], {"series": "1.2.3", "uid": f"1.2.3.{n}"}
        return lambda: write_level(folder / f"{n}.dcm", pixels, mpp=0.5 * (n + 1), **names)

    seen = []
    inbox.look(level(1), level(0), lambda: seen.append(list(inbox.taken)), nothing, nothing, recursive=True)
    assert seen == [[]] and inbox.taken == ["case__0"]


def test_slides_of_one_id_and_a_share_that_is_away(inbox, capsys):
    inbox.write("a.svs", 1)()
    inbox.write("a.tif", 1)()
    away = inbox.folder.with_name("away")
    leave, come = (lambda: inbox.folder.rename(away)), (lambda: away.rename(inbox.folder))
    assert inbox.look(nothing, leave, nothing, come, nothing) == ["a"]
    said = capsys.readouterr().err
    assert "a.tif: a.svs has the id 'a' too; give one another name" in said and inbox.failures() == ["a"]
    assert said.count("cannot be read now; waiting for it") == 1


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--interval", "3"], "--interval is between two looks of --watch"),
        (["--watch", "--dry-run"], "leave out --dry-run"),
        (["--watch", "--interval", "0"], "give seconds above 0"),
        (["--watch", "-o", "-"], "give -o a folder"),
    ],
)
def test_what_cannot_be_meant(lrmil, tmp_path, args, says):
    model = tmp_path / "m.safetensors"
    model.touch()
    said = lrmil("predict", tmp_path, "-m", model, "-o", tmp_path, *args)
    assert said.code == 2 and says in said.err
    said = lrmil("predict", tmp_path / "none", "-m", model, "-o", tmp_path, "--watch")
    assert said.code == 3 and "no such folder" in said.err


EXAMPLES = Path(__file__).parents[3] / "examples" / "watch"


def test_the_service_and_the_task_run_a_line_that_parses():
    unit = (EXAMPLES / "lrmil-watch.service").read_text(encoding="utf-8")
    service = configparser.ConfigParser(interpolation=None)
    service.read_string(unit)
    linux = shlex.split(service["Service"]["ExecStart"])
    assert service["Service"]["SuccessExitStatus"] == "130"
    task = ElementTree.parse(EXAMPLES / "lrmil-watch.xml")
    windows = task.find(".//{*}Arguments").text.split()
    assert task.find(".//{*}Command").text.endswith("lrmil.exe") and linux[0].endswith("lrmil")
    for args in (linux[1:], windows):
        own = typer.main.get_command(app).commands[args[0]].make_context(args[0], args[1:]).params
        assert own["watch"] and own["pages"] and own["interval"] == 30 and own["log"]
