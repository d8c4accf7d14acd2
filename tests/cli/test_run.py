"""``lrmil run``: the chain by one command, the same as its single commands, taken up again, repeated from its file."""

import contextlib
import io
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lrmil_cli.app import run
from lrmil_cli.files.features import read_features
from lrmil_cli.files.locks import claimed
from tests.cli.test_kill import plain
from tests.conftest import not_on_windows

pytestmark = pytest.mark.usefixtures("all_unpainted")

STAGE1 = ["--lr", "3e-4", "--warmup", "4", "--batch-size", "16"]
FURTHER = [f"--set=distill-encoder.{name[2:]}={value}" for name, value in zip(STAGE1[::2], STAGE1[1::2])]
SETTINGS = ["--encoder", "demo-vit", "--tile-px", "128", "--folds", "2", "--epochs", "2", "--stage1-epochs", "2"]


def line_of(slides: Path, out: Path) -> list[str]:
    return ["run", str(slides), *SETTINGS, *FURTHER, "-o", str(out)]


def files_in(folder: Path) -> dict[Path, int]:
    return {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}


def receipt(out: Path) -> dict:
    return plain(json.loads((out / "model.receipt.json").read_text()))


@pytest.fixture(scope="module")
def table(cohort, tmp_path_factory) -> Path:
    """Eight slides of the cohort, without a split: two folds are drawn."""
    rows = cohort.read_text().splitlines()[1:9]
    path = tmp_path_factory.mktemp("table") / "slides.csv"
    path.write_text("\n".join(["slide,label", *(f"{cohort.parent}/{r.rpartition(',')[0]}" for r in rows)]) + "\n")
    return path


@pytest.fixture(scope="module")
def ran(table, tmp_path_factory):
    """The folder of a run, and what it said."""
    out, said = tmp_path_factory.mktemp("run") / "out", io.StringIO()
    with contextlib.redirect_stderr(said):
        code = run(line_of(table, out))
    assert code == 0, said.getvalue()
    return out, said.getvalue()


def test_a_run_ends_in_the_receipt_of_the_single_commands(ran, table, tmp_path, lrmil):
    out, _ = ran
    heads = ["--epochs", "2"]
    for side, mpp in (("lr", "2.0"), ("hr", "0.5")):
        lrmil("tile", table, "--mpp", mpp, "--tile-px", "128", "-o", tmp_path / side)
    lrmil("match", tmp_path / "lr", tmp_path / "hr", "-o", tmp_path / "pairs")
    own = ["--tiles", tmp_path / "hr", "--encoder", "demo-vit", "--folds", "2", "--features", tmp_path / "features"]
    shutil.copytree(out / "teacher" / "features", tmp_path / "features")  # what is encoded there is taken as it is
    lrmil("train-teacher", table, *own, *heads, "-o", tmp_path / "teacher")
    encoder = tmp_path / "encoder{fold}.safetensors"
    for fold in (1, 2):
        own = ["--slides", table, "--fold", fold, "--teacher", tmp_path / "teacher", "--encoder", "demo-vit", *STAGE1]
        kept = ["--epochs", "2", "--cache", out / "targets"]
        lrmil("distill-encoder", tmp_path / "pairs", *own, *kept, "-o", encoder)
    own = ["--tiles", tmp_path / "lr", "--pairs", tmp_path / "pairs", "--teacher", tmp_path / "teacher"]
    said = lrmil(
        "distill-student", "--no-onnx", table, *own, "--encoder", encoder, *heads, "-o", tmp_path / "model.safetensors"
    )
    assert said.code == 0, said.err
    assert receipt(tmp_path) == receipt(out) and receipt(out)["folds"] == 2
    assert receipt(out)["models"].keys() >= {"teacher", "lr_only", "distilled"}


def test_a_run_says_and_keeps_what_it_does(ran, table):
    out, said = ran
    results = {p.name for p in (out / "results").iterdir()}
    assert {f"s0{i}.{kind}" for i in range(8) for kind in ("prediction.json", "heatmap.geojson.gz")} <= results
    log = [line[21:] for line in (out / "log.txt").read_text(encoding="utf-8").splitlines()]
    assert all(time.strptime(line[:19], "%Y-%m-%d %H:%M:%S") for line in (out / "log.txt").read_text().splitlines())
    told = [line for line in said.splitlines() if line.strip() and not line[:2].isdigit()]  # but how far it was when
    assert set(told[2:]) <= set(log)  # before these, the table was read
    steps = [line for line in told if line.startswith("step ")]
    assert len(steps) == 10 and steps[0] == "step 1 of 10: tile-lr" and "left" in steps[5], steps


def test_a_second_run_does_nothing(ran, table, lrmil):
    out, _ = ran
    before = files_in(out)
    said = lrmil(*line_of(table, out), "--json")
    assert said.code == 0 and said.records[0]["status"] == "ok" and said.err.count("up to date") > 8 * 4
    after = files_in(out)
    assert {p.name for p in after if after[p] != before.get(p)} == {"run.toml", "log.txt"}


def test_a_folder_is_of_one_run_at_a_time(ran, table, lrmil):
    out, _ = ran
    with claimed(out / "run.toml"):
        said = lrmil(*line_of(table, out))
    assert said.code == 2 and f"another lrmil is at work in {out}" in said.err.splitlines()[-1]


def test_its_file_repeats_the_lines_and_a_dry_run_writes_nothing(ran, table, tmp_path, lrmil, monkeypatch):
    out, told = ran
    monkeypatch.chdir(tmp_path)
    said = lrmil("run", "--config", out / "run.toml", "-o", "other", "--dry-run", "--json")
    assert said.code == 0 and not list(tmp_path.iterdir()), said.err
    lines = [[l for l in text.splitlines() if l.startswith("$ lrmil")] for text in (told, said.err)]
    assert [l.replace(str(out), "other") for l in lines[0]] == lines[1] and len(lines[1]) == 10
    plan = said.records[0]
    for side in ("lr", "hr"):
        rows = [len(p.read_text().splitlines()) - 2 for p in (out / f"tiles-{side}").glob("*.tiles.csv")]
        assert plan["tiles"][side] == sum(rows)
    names = {line.split()[-1] for line in (w.partition(",")[0] for w in told.splitlines()) if line[:5] == "step "}
    assert plan["status"] == "planned" and plan["bytes"].keys() == names
    untimed = {name for name in names if not plan["expected_seconds"].get(name)}
    assert untimed <= {"match", "export-geojson", "report"}
    features = sum(read_features(p).features.size * 2 for p in (out / "teacher" / "features").glob("*.h5"))
    assert plan["bytes"]["train-teacher"] == features
    assert "nothing was written" in said.err and "GB" in said.err
    # What is said on the command line wins.
    said = lrmil("run", "--config", out / "run.toml", "--stage1-epochs", "7", "-o", "other", "--dry-run")
    assert said.err.count("--epochs 7") == 2 and not list(tmp_path.iterdir())


@not_on_windows
def test_a_run_ended_in_the_middle_of_stage_1_goes_on(ran, table, tmp_path, lrmil):
    out = tmp_path / "out"
    shutil.copytree(ran[0], out)
    for path in [*out.glob("lr-encoder.*"), *out.glob("model.*")]:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    shutil.rmtree(out / "results")
    process = subprocess.Popen(
        [sys.executable, "-m", "lrmil_cli", *line_of(table, out)], stderr=subprocess.PIPE, text=True
    )
    while not list((out / "targets").glob("checkpoint.*.pt")) and process.poll() is None:
        time.sleep(0.002)
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=60)[1].splitlines()
    assert process.returncode == 130 and "interrupted" in said[-2], said
    assert said[-1].startswith("error: step 5 of 10 ended with exit code 130: `lrmil distill-encoder ")
    assert "`lrmil run` goes on from there" in said[-1] and not (out / "model.safetensors").exists()
    again = lrmil(*line_of(table, out))
    assert again.code == 0 and "resumed after epoch 1" in again.err, again.err
    assert receipt(out) == receipt(ran[0])


def test_other_settings_and_slides_that_cannot_be_tiled(ran, table, tmp_path, lrmil):
    out = tmp_path / "out"
    shutil.copytree(ran[0], out)
    before = files_in(out)
    said = lrmil(*line_of(table, out), "--epochs", "1")
    assert said.code == 2 and "other settings (epochs)" in said.err and "--overwrite" in said.err
    assert {p.name for p, t in files_in(out).items() if t != before[p]} == {"log.txt"}
    (tmp_path / "bad.svs").write_bytes(b"")
    (tmp_path / "slides.csv").write_text(table.read_text() + f"{tmp_path / 'bad.svs'},tumor\n")
    line = [*line_of(tmp_path / "slides.csv", out), "--epochs", "1", "--stage1-epochs", "1", "--overwrite"]
    said = lrmil(*line, "--one-encoder")
    assert said.code == 4 and "step 1 of 9 ended with exit code 4" in said.err and "failures.csv" in said.err
    said = lrmil(*line, "--one-encoder", "--on-bad-slide", "skip")
    assert said.code == 0 and "1 of 9 slides cannot be tiled and are left out" in said.err, said.err
    assert "not quite inductive" in said.err and "bad" not in (out / "slides.csv").read_text()
    assert receipt(out)["slides"] == 8 and (out / "lr-encoder.safetensors").exists()
    after = files_in(out)
    redone = {p.relative_to(out).as_posix() for p in after if after[p] != before.get(p)}
    assert {"model.safetensors", "teacher/teacher.json", "results/s00.attention.csv", "run.toml"} <= redone
    kept = ("tiles-", "pairs", "targets", "teacher/features")  # only what the settings change is made again
    assert not {p for p in redone if p.startswith(kept)} - {f"tiles-{side}/failures.csv" for side in ("lr", "hr")}


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--set", "tile.mpp=1"], "itself gives tile its --mpp"),
        (["--set", "distill-student.method=ahdmil"], "itself gives distill-student its --method"),
        (["--set", "predict.json=true"], "itself gives predict its --json"),
        (["--set", "train-teacher.learning=1"], "`lrmil train-teacher` has no option --learning"),
        (["--set", "distill-encoder.epoch=1"], "did you mean epochs?"),
        (["--set", "train.lr=1"], "no step 'train'"),
        (["--set", "distill-encoder.epochs=0"], "0 is not at least 1"),
        (["--set", "distill-encoder.lr=fast"], "fast is not a number"),
        (["--set", "train-teacher.lr=1", "--set", "train-teacher.lr=2"], "give one value"),
        (["--set", "tile.keep-pen=maybe"], "give true or false"),
        (["--set", "lr=1"], "give STEP.OPTION=VALUE"),
        (["--head", "abmill"], "abmill"),
        (["--preset", "lr-only"], "distils nothing"),
        (["--on-bad-slide", "maybe"], "choose fail or skip"),
        (["--dtype", "float64"], "float16 or float32"),
    ],
)
def test_what_no_step_takes_is_refused_before_any_work(options, says, table, tmp_path, lrmil):
    said = lrmil("run", table, "--encoder", "demo-vit", *options, "-o", tmp_path / "out")
    assert said.code in (2, 3) and says in said.err and len(said.err.splitlines()) == 1, said.err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("epoch = 3", "epoch: `lrmil run` has no such setting; did you mean epochs?"),
        ("output = 'x'", "output: `lrmil run` has no such setting"),
        ("epochs = '3x'", "epochs: 3x is not a whole number"),
        ("head = 3", "head: give text, in quotes"),
        ("[tiles]\nkeep-pen = true", "no step 'tiles'"),
        ("[tile]\nkeep_pen = true", "`lrmil tile` has no option --keep_pen; did you mean keep-pen?"),
        ("[predict]\nmodel = 'm'", "itself gives predict its --model"),
        ("epochs = 3", "give a table of slides"),
        ("slides = 's.csv'", "give --encoder"),
        ("epochs =", "not a file of settings"),
        (None, "cannot be read"),
    ],
)
def test_a_file_with_what_is_no_setting_is_refused_by_name(text, says, tmp_path, lrmil):
    if text is not None:
        (tmp_path / "run.toml").write_text(text)
    said = lrmil("run", "--config", tmp_path / "run.toml", "-o", tmp_path / "out")
    assert said.code in (2, 3) and says in said.err and len(said.err.splitlines()) == 1, said.err
    assert not (tmp_path / "out").exists()
