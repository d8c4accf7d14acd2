"""SIGKILL at random moments: what is left behind is never taken for whole, and a rerun gives what an undisturbed run
gives.

Few kills by default; ``LRMIL_KILLS=50`` kills each command that often.
"""

import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lrmil_cli.errors import InputError
from lrmil_cli.files.features import read_features
from lrmil_cli.files.header import check_seal, parse_header
from lrmil_cli.files.tables import SCHEMAS, read_table, read_table_header
from lrmil_cli.files.tensors import load_tensors, read_tensor_metadata

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
KILLS = int(os.environ.get("LRMIL_KILLS", "1"))
ROOT = Path(__file__).resolve().parents[2]
#: What differs between two good runs: when, how fast, where.
VARYING = {"date", "argv", "seconds", "cost", "features", "path", "device", "image", "content"}


@pytest.fixture(scope="module")
def killer():
    """``killer(args, kill_after=None)`` -> {"code", "seconds"}."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.killing"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=env,
    )
    assert process.stdout.readline() == "ready\n"

    def call(args, kill_after=None):
        process.stdin.write(json.dumps({"args": [str(a) for a in args], "kill_after": kill_after}) + "\n")
        process.stdin.flush()
        return json.loads(process.stdout.readline())

    yield call
    process.stdin.close()
    process.wait(timeout=30)


def plain(value):
    """Without what varies between good runs."""
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items() if k not in VARYING}
    return [plain(v) for v in value] if isinstance(value, (list, tuple)) else value


def kind_of_table(path):
    for kind in SCHEMAS:
        try:
            read_table_header(path, kind)
            return kind
        except Exception as e:
            if "this is a" not in str(e):
                raise
    raise AssertionError(path)


def content(path: Path):
    """What a reader gets of a file of ours; raises where it is damaged."""
    if path.suffix == ".csv":
        header, rows = read_table(path, kind_of_table(path))
        return plain(header), rows.drop(columns=[c for c in rows if "seconds" in c]).to_csv()
    if path.suffix == ".h5":
        bag = read_features(path)
        return plain(bag.header), bag.features.tobytes(), bag.coords.tobytes()
    if path.suffix == ".safetensors":
        header, tensors = load_tensors(path, json.loads(read_tensor_metadata(path)["lrmil"])["kind"])
        return plain(header), {k: v.tolist() for k, v in tensors.items()}
    if path.suffix == ".json":
        text = path.read_text()
        found = json.loads(text)
        return plain(
            check_seal(parse_header(text, found["kind"], str(path)), str(path)) if "history" in found else found
        )
    if path.suffix == ".png":
        import cv2

        assert cv2.imread(str(path)) is not None, path
        return "picture"
    if path.suffix == ".npy":
        import numpy as np

        return np.load(path).tobytes()
    return path.name  # pages and checkpoints: their presence


def contents(folder: Path):
    """Of all files under a name that a command gives; a kill may leave hidden temporary files."""
    return {
        str(p.relative_to(folder)): content(p)
        for p in sorted(folder.rglob("*"))
        if p.is_file() and not p.name.startswith(".")
    }


@pytest.fixture
def commands(chain):
    slides = [chain.manifest.parent / "slides" / f"s{i:02d}.svs" for i in range(3)]
    few = ["--epochs", "3", "--lr", "1e-3"]
    return {
        "tile": lambda o: ["tile", *slides, "--mpp", "0.5", "--tile-px", "128", "--thumbnail", "-o", f"{o}/"],
        "embed": lambda o: [
            "embed",
            *(chain.tiles_hr / f"{s.stem}.tiles.csv" for s in slides),
            "--encoder",
            "demo-vit",
            "-o",
            o,
        ],
        "distill-encoder": lambda o: [
            "distill-encoder",
            *(chain.pairs / f"{s.stem}.pairs.csv" for s in slides),
            "--encoder",
            "demo-vit",
            "--epochs",
            "2",
            "--lr",
            "1e-4",
            "--batch-size",
            "32",
            "--max-tiles-per-slide",
            "2",
            "--cache",
            o / "c",
            "-o",
            o / "e.safetensors",
        ],
        "train-teacher": lambda o: [
            "train-teacher",
            chain.manifest,
            "--features",
            chain.teacher / "features",
            *few,
            "-o",
            o,
        ],
        "distill-student": lambda o: [
            "distill-student",
            "--no-onnx",
            chain.manifest,
            "--tiles",
            chain.tiles_lr,
            "--pairs",
            chain.pairs,
            "--encoder",
            chain.encoder,
            "--teacher",
            chain.teacher,
            "--lr-features",
            chain.model.with_suffix(".features"),
            "--no-baseline",
            *few,
            "-o",
            o / "m.safetensors",
        ],
        "predict": lambda o: ["predict", *slides, "-m", chain.model, "--geojson", f"{o}/", "-o", f"{o}/"],
    }


@pytest.mark.parametrize("name", ["tile", "embed", "distill-encoder", "train-teacher", "distill-student", "predict"])
def test_killed_anywhere_and_run_again(name, killer, commands, tmp_path):
    line, rng = commands[name], random.Random(name)
    whole, out = tmp_path / "whole", tmp_path / "out"
    first = killer(line(whole))
    assert first["code"] == 0
    wanted = contents(whole)
    assert wanted
    for _ in range(KILLS):
        shutil.rmtree(out, ignore_errors=True)
        # Once or twice in the same folder, so that a kill also meets what an earlier one left.
        for _ in range(rng.choice((1, 1, 2))):
            after = rng.uniform(0.05, 1.0) * first["seconds"]
            while killer(line(out), after)["code"] != -9:  # it was quicker this time
                shutil.rmtree(out)
                after /= 2
            contents(out)  # whatever stands there under its name is whole
        assert killer(line(out))["code"] == 0
        assert contents(out) == wanted
        before = {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.is_file()}
        assert (
            killer(line(out))["code"] == 0
            and {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.is_file()} == before
        )


def test_a_damaged_head_of_a_finished_teacher_is_made_again(chain, tmp_path, lrmil):
    teacher = tmp_path / "t"
    line = ["train-teacher", chain.manifest, "--features", chain.teacher / "features", "--epochs", "2", "-o", teacher]
    assert lrmil(*line).code == 0
    wanted, head = contents(teacher), teacher / "fold1" / "head.safetensors"
    data = bytearray(head.read_bytes())
    data[-5] ^= 4
    head.write_bytes(data)
    said = lrmil(*line)
    assert (
        said.code == 0 and "head.safetensors: changed after it was written" in said.err and contents(teacher) == wanted
    )
    assert "up to date" in lrmil(*line).err


def test_damaged_outputs_are_not_up_to_date(chain, tmp_path, lrmil):
    slide = chain.manifest.parent / "slides" / "s00.svs"
    line = ["tile", slide, "--mpp", "2.0", "--tile-px", "128", "-o", tmp_path / "t.csv"]
    assert lrmil(*line).code == 0
    good = (tmp_path / "t.csv").read_text()
    (tmp_path / "t.csv").write_text(good.rsplit("\n", 2)[0] + "\n")
    said = lrmil(*line)
    assert said.code == 2 and "damaged" in said.err
    assert lrmil(*line, "--overwrite").code == 0
    h5 = ["embed", tmp_path / "t.csv", "--encoder", "demo-vit", "--dtype", "float32", "-o", tmp_path / "f.h5"]
    assert lrmil(*h5).code == 0
    x = read_features(tmp_path / "f.h5").features
    data = (tmp_path / "f.h5").read_bytes()
    at = data.index(x[0, :8].tobytes())
    (tmp_path / "f.h5").write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    # Whether it is up to date is in its header; what is inside is held against the checksum where it is read.
    assert lrmil(*h5).code == 0
    with pytest.raises(InputError, match="changed after it was written"):
        read_features(tmp_path / "f.h5")
    assert lrmil(*h5, "--overwrite").code == 0 and (read_features(tmp_path / "f.h5").features == x).all()


def test_a_prediction_and_a_teacher_with_a_changed_digit_are_refused(chain, tmp_path, lrmil):
    slide = chain.manifest.parent / "slides" / "s13.svs"
    assert lrmil("predict", slide, "-m", chain.model, "-o", tmp_path / "p").code == 0
    path = tmp_path / "p" / "s13.prediction.json"
    path.write_text(path.read_text().replace('"mpp": 0.5', '"mpp": 0.6', 1))
    said = lrmil("evaluate", tmp_path / "p", "--slides", chain.manifest, "-o", tmp_path / "e")
    assert said.code == 3 and "changed after it was written" in said.err
    shutil.copytree(chain.teacher, tmp_path / "t", ignore=shutil.ignore_patterns("features"))
    about = tmp_path / "t" / "teacher.json"
    about.write_text(about.read_text().replace('"folds": 1', '"folds": 2'))
    said = lrmil("info", tmp_path / "t")
    assert said.code == 3 and "changed after it was written" in said.err


def test_the_receipt_of_an_overwritten_model_is_not_taken_for_its_own(chain, tmp_path, lrmil, monkeypatch):
    from lrmil_cli.distill import distill_student as stage2

    line = [
        "distill-student",
        "--no-onnx",
        chain.manifest,
        "--tiles",
        chain.tiles_lr,
        "--preset",
        "patch",
        "--encoder",
        chain.encoder,
        "--no-baseline",
        "--lr-features",
        chain.model.with_suffix(".features"),
        "-o",
        tmp_path / "m.safetensors",
        "--overwrite",
    ]
    assert lrmil(*line, "--epochs", "1").code == 0
    receipt = tmp_path / "m.receipt.json"
    first = receipt.read_text()

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(stage2, "write_receipt", stop)
    assert lrmil(*line, "--epochs", "30", "--lr", "1e-2").code == 130
    monkeypatch.undo()
    said = lrmil(*line, "--epochs", "30", "--lr", "1e-2")
    assert said.code == 0 and "up to date" in said.err and receipt.read_text() != first


def test_heads_that_a_stopped_run_left_are_removed_by_the_next(commands, tmp_path, lrmil, monkeypatch):
    from lrmil_cli.distill import distill_student as stage2

    def stop(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as stopped:
        stopped.setattr(stage2.shutil, "rmtree", stop)
        assert lrmil(*commands["distill-student"](tmp_path)).code == 130
    assert (tmp_path / "m.folds" / "fold1" / "distilled.safetensors").exists()
    said = lrmil(*commands["distill-student"](tmp_path))
    assert said.code == 0 and "up to date" in said.err and not (tmp_path / "m.folds").exists()
