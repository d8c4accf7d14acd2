"""Tables, folders and batches as people have them, by the commands."""

import csv
import os
import shutil
import subprocess
import sys

import pytest

from tests.conftest import blob_image, not_on_windows, write_tiff


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """``a.svs`` and ``b.svs``, small and good."""
    at = tmp_path_factory.mktemp("slides")
    for name in ("a", "b"):
        write_tiff(at / f"{name}.svs", blob_image(700, 600))
    return at


def failures(at):
    with open(at / "failures.csv", encoding="utf-8", newline="") as fh:
        return {row["slide_id"]: row for row in csv.DictReader(fh)}


def test_a_table_is_understood_aloud(folder, tmp_path, lrmil):
    table = tmp_path / "slides.csv"
    table.write_text(f"Slide;Diagnosis;PATIENT;age\n{folder}/a.svs;NA;p;60\n{folder}/b.svs;x;p;61\n")
    said = lrmil("tile", table, "-o", tmp_path / "o")
    assert said.code == 0 and "2 slides, 1 patient; read as: separated by semicolon, PATIENT as patient_id" in said.err
    assert "ignored: Diagnosis, age" in said.err
    about = lrmil("info", table, "--json").records[0]
    assert about["found"] == 2 and about["patients"] == 1 and about["ignored"] == ["Diagnosis", "age"]
    assert about["patients_with_several_slides"] == 1 and not about["missing"]
    said = lrmil("train-teacher", table, "--tiles", tmp_path / "o", "--encoder", "demo-vit", "-o", tmp_path / "t")
    assert said.code == 3 and "no column `label` (found: Slide, Diagnosis, PATIENT, age)" in said.err
    said = lrmil(
        "train-teacher",
        table,
        "--label",
        "diagnosis",
        "--tiles",
        tmp_path,
        "--encoder",
        "demo-vit",
        "-o",
        tmp_path / "t",
    )
    assert said.code == 3 and "row 2 (NA)" in said.err and "--drop-missing" in said.err
    said = lrmil("train-teacher", table, "--class-map", "x", "--tiles", "o", "--encoder", "demo-vit", "-o", "t")
    assert said.code == 2 and "give OLD=NEW" in said.err


def test_a_table_is_shown_and_judged_before_a_run(tmp_path, lrmil):
    """As comma-separated text and as a workbook, to the same effect, in 80 columns."""
    openpyxl = pytest.importorskip("openpyxl")
    rows = [["Slide", "Diagnosis", "PATIENT", "Fold", "a column of a very long name that nobody has asked for"]]
    rows += [[f"slides/{n}.svs", "MSI" if n % 2 else "MSS", f"p{n // 2}", n // 4, "?"] for n in range(8)]
    rows += [["slides/8.svs", "msi", "p9", 0, ""], ["slides/gone.svs", "NA", "p0", 1, ""]]
    for n in range(9):
        write_tiff(tmp_path / "slides" / f"{n}.svs", blob_image(300, 300, seed=n))
    with open(tmp_path / "t.csv", "w", newline="") as fh:
        csv.writer(fh).writerows(rows)
    book = openpyxl.Workbook()
    for row in rows:
        book.active.append(row)
    book.save(tmp_path / "t.xlsx")
    seen = {}
    for name in ("t.csv", "t.xlsx"):
        said = lrmil("info", tmp_path / name, "--label", "diagnosis")
        assert said.code == 3 and "patient 'p0' is in two parts" in said.err  # of a column, so by every command
        assert all(len(line) <= 80 or " " not in line.strip() for line in said.out.splitlines()[1:])
        judged = lrmil("doctor", tmp_path / name, "--label", "diagnosis", "--table-only", "--json")
        assert "speed" not in [c["name"] for c in judged.records[0]["checks"]]  # nothing will be encoded
        table = judged.records[1]
        assert judged.code == 3 and table["kind"] == "table" and len(judged.records) == 2
        form = table["checks"][0]["found"].partition(";")[0]
        seen[name] = said.out.partition("columns")[2], table["checks"][1:]
        assert form == ("UTF-8 text, separated by comma" if name == "t.csv" else "Excel workbook, sheet 'Sheet'")
    assert seen["t.csv"] == seen["t.xlsx"]
    shown, checks = seen["t.csv"]
    for text in (
        "9 of 10 found",
        "row 11:",
        "5 by column PATIENT, 4 with several slides",
        "MSS: 4 slides, 4 patients",
        "1 slide without label: row 11 (NA)",
        "fold: 0 (5 slides), 1 (5 slides)",
        "-> write them alike, or say --class-map msi=MSI",
    ):
        assert text in shown, shown
    assert [c["name"] for c in checks if c["status"] == "FAIL"] == ["slides", "patients", "labels", "labels", "classes"]

    rows[-1:] = []
    with open(tmp_path / "t.csv", "w", newline="") as fh:
        csv.writer(fh).writerows(rows)
    mended = ["--label", "diagnosis", "--class-map", "msi=MSI", "--quick"]
    said = lrmil("info", tmp_path / "t.csv", *mended[:-1])
    assert said.code == 0 and "refused" not in said.out and "all 9 found" in said.out
    said = lrmil("doctor", tmp_path / "t.csv", *mended, "--json")
    assert [r["kind"] for r in said.records] == ["machine", "table"] + ["slide"] * 9
    assert said.records[1]["status"] == "pass" and said.records[1]["checks"][-1]["found"] == "2 folds, as given"


def test_options_of_labels_are_about_tables(folder, tmp_path, lrmil):
    assert lrmil("info", folder / "a.svs", "--label", "x").code == 2
    assert lrmil("doctor", folder / "a.svs", "--drop-missing").code == 2
    assert lrmil("doctor", "--table-only").code == 2


def test_whatever_one_slide_raises_the_batch_goes_on(folder, tmp_path, lrmil, monkeypatch):
    from lrmil_cli.slides import slide as module

    real = module.Slide.describe

    def broken(self):
        if self.slide_id == "a":
            raise ZeroDivisionError("header of a kind nobody foresaw")
        return real(self)

    monkeypatch.setattr(module.Slide, "describe", broken)
    said = lrmil("tile", folder, "-o", tmp_path / "o", "--json")
    assert said.code == 4 and [r["status"] for r in said.records] == ["failed", "ok"]
    error = failures(tmp_path / "o")["a"]["error"]
    assert "a.svs: internal error: ZeroDivisionError: header of a kind nobody foresaw" in error
    alone = lrmil("tile", folder / "a.svs", "-o", tmp_path / "alone.tiles.csv")
    assert alone.code == 1 and "ZeroDivisionError" in alone.err


@not_on_windows
def test_links_that_lead_nowhere_are_failed_slides(folder, tmp_path, lrmil):
    shutil.copy(folder / "a.svs", tmp_path / "a.svs")
    os.symlink(tmp_path / "gone.svs", tmp_path / "link.svs")
    said = lrmil("tile", tmp_path, "-o", tmp_path / "o")
    assert said.code == 4 and "link.svs: no such file" in said.err and list(failures(tmp_path / "o")) == ["link"]
    (tmp_path / "only").mkdir()
    os.symlink(tmp_path / "gone.svs", tmp_path / "only" / "link.svs")
    said = lrmil("tile", tmp_path / "only", "-o", tmp_path / "p")
    assert said.code == 3 and "no such file" in said.err


def test_sub_folders_are_said_or_taken(folder, tmp_path, lrmil):
    for case in ("c1", "c2"):
        (tmp_path / "in" / case).mkdir(parents=True)
        shutil.copy(folder / "a.svs", tmp_path / "in" / case / "a.svs")
    shutil.copy(folder / "b.svs", tmp_path / "in" / "c1" / "b.x.svs")
    said = lrmil("tile", tmp_path / "in", "-o", tmp_path / "o")
    assert said.code == 3 and "but 3 slides in its sub-folders; add --recursive" in said.err
    said = lrmil("tile", tmp_path / "in", "-o", tmp_path / "o", "--recursive", "--json")
    assert said.code == 0 and [r["slide_id"] for r in said.records] == ["c1__a", "b.x", "c2__a"]
    shutil.copy(folder / "a.svs", tmp_path / "in" / "top.svs")
    said = lrmil("tile", tmp_path / "in", "-o", tmp_path / "p", "--json")
    assert [r["slide_id"] for r in said.records] == ["top"] and "3 slides in its sub-folders left out" in said.err


def test_jobs_of_an_array_keep_each_others_failures(folder, tmp_path, lrmil):
    """Each job has its own slides and all share a folder: one that succeeds clears its own rows alone."""
    out = tmp_path / "o"
    for name in ("bad1", "bad2"):
        (tmp_path / f"{name}.svs").write_bytes(b"no slide")
    assert lrmil("tile", folder / "a.svs", tmp_path / "bad1.svs", "-o", out).code == 4
    assert lrmil("tile", folder / "b.svs", "-o", f"{out}/").code == 0
    assert lrmil("tile", tmp_path / "bad2.svs", "-o", f"{out}/").code == 3
    assert set(failures(out)) == {"bad1", "bad2"}
    shutil.copy(folder / "a.svs", tmp_path / "bad1.svs")
    assert lrmil("tile", tmp_path / "bad1.svs", "-o", f"{out}/").code == 0
    assert set(failures(out)) == {"bad2"}
    shutil.copy(folder / "a.svs", tmp_path / "bad2.svs")
    assert lrmil("tile", tmp_path / "bad2.svs", "-o", f"{out}/").code == 0
    assert not (out / "failures.csv").exists()


ENDING = """
import sys
from pathlib import Path
from lrmil_cli.commands.batch import run_batch
from lrmil_cli.commands.inputs import SlideInput
from lrmil_cli.commands.report import Report
from lrmil_cli.errors import InputError

def fail(item):
    raise InputError(f"{item.path}: torn")

print("ready", flush=True)
sys.stdin.readline()
for n in range(int(sys.argv[3])):
    item = SlideInput(Path(f"{sys.argv[2]}-{n}.svs"), f"{sys.argv[2]}-{n}")
    try:
        run_batch("tile", "tiling", [item], fail, Report(), failures_in=Path(sys.argv[1]))
    except InputError:
        pass
"""


def test_jobs_that_end_in_the_same_moment_lose_no_row(tmp_path):
    jobs, each = 4, 25
    started = [
        subprocess.Popen(
            [sys.executable, "-c", ENDING, str(tmp_path / "o"), f"job{n}", str(each)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for n in range(jobs)
    ]
    assert [job.stdout.readline() for job in started] == ["ready\n"] * jobs
    for job in started:
        job.stdin.write("\n")
        job.stdin.flush()
    for job in started:
        job.communicate(timeout=120)
        assert job.returncode == 0
    assert set(failures(tmp_path / "o")) == {f"job{n}-{k}" for n in range(jobs) for k in range(each)}
    assert [p.name for p in (tmp_path / "o").iterdir()] == ["failures.csv"]
