"""``examples/Snakefile``: from slides to the receipt, a job killed on the way, nothing to do afterwards."""

import gzip
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from lrmil_cli.demo.slides import make_slide

ROOT = Path(__file__).resolve().parents[2]
WHERE = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
SNAKEMAKE = shutil.which("snakemake", path=WHERE)
pytestmark = [
    pytest.mark.skipif(SNAKEMAKE is None, reason="Snakemake is not on this machine"),
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork"),
]
NAMES = ["it's ümläut", "semi;colon & co", "c", "d", "e", "f"]
CONFIG = """
slides: slides.csv
encoder: demo-vit
out: run
folds: 2
options:
  tile: --tile-px 128
  train-teacher: --epochs 2 --lr 1e-3
  distill-encoder: --epochs 8 --lr 3e-4 --warmup 2 --batch-size 8
  distill-student: --epochs 2 --lr 1e-3
"""


@pytest.fixture(scope="module")
def start():
    """``start(folder, *words)``: Snakemake as a process, with an ``lrmil`` on its PATH that starts at once."""
    with tempfile.TemporaryDirectory() as folder:  # names of sockets are short
        env = {**os.environ, "PATH": f"{folder}{os.pathsep}{WHERE}", "OMP_NUM_THREADS": "1"}
        env["PYTHONPATH"] = f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
        command = [sys.executable, "-m", "tests.forked_lrmil", folder]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT, env=env, text=True)
        assert server.stdout.readline() == "ready\n"

        started = []

        def call(cwd, *words):
            line = [SNAKEMAKE, "-s", str(ROOT / "examples" / "Snakefile"), *words]
            streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
            started.append(subprocess.Popen(line, cwd=cwd, env=env, **streams))
            return started[-1]

        yield call
        for process in started:
            process.kill()
        server.kill()
        server.wait()


def ended(process):
    said = process.communicate(timeout=600)[0]
    return process.returncode, said


def kill_in_the_middle(snakemake, word, fold, log):
    """SIGKILL to a command of a fold in its third epoch."""
    deadline, job = time.monotonic() + 240, None
    while time.monotonic() < deadline and snakemake.poll() is None:
        if job is None:
            for p in psutil.Process(snakemake.pid).children(recursive=True):
                with suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
                    line = p.cmdline()
                    if line and "python" in line[0] and word in line and line[line.index("--fold") + 1] == fold:
                        job = p
        elif log.exists() and len(re.findall("^epoch", log.read_text(), re.MULTILINE)) > 2:
            return job.kill()
        time.sleep(0.002 if job else 0.05)
    raise AssertionError(f"{word} --fold {fold} was not met: {ended(snakemake)}")


def test_from_slides_to_the_receipt(start, tmp_path):
    (tmp_path / "slides").mkdir()
    rows = ["slide,label,patient_id"]
    for i, name in enumerate(NAMES):
        make_slide(tmp_path / "slides" / f"{name}.svs", seed=100 + i, positive=bool(i % 2), size_px=1024)
        rows.append(f"slides/{name}.svs,{'tumor' if i % 2 else 'normal'},p{i}")
    (tmp_path / "slides.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    (tmp_path / "config.yaml").write_text(CONFIG)
    maps = [f"run/results/{name}.heatmap.geojson.gz" for name in NAMES[:2]]
    line = ["run/model.receipt.html", *maps, "--configfile", "config.yaml", "--cores", "2", "--resources", "gpu=1"]
    run = tmp_path / "run"

    first = start(tmp_path, *line)
    log = run / "logs" / "distill-encoder" / "fold1.log"
    kill_in_the_middle(first, "distill-encoder", "1", log)
    code, said = ended(first)
    assert code == 1 and "Error in rule distill_encoder" in said, said
    assert not (run / "lr-encoder.fold1.safetensors").exists()
    tiled = (run / "tiles-hr" / "e.tiles.csv").stat().st_mtime_ns

    code, said = ended(start(tmp_path, *line))
    assert code == 0, said
    assert "resumed after epoch" in log.read_text()
    assert (run / "tiles-hr" / "e.tiles.csv").stat().st_mtime_ns == tiled
    receipt = json.loads((run / "model.receipt.json").read_text())
    assert receipt["slides"] == 6 and receipt["folds"] == 2 and not receipt["encoder_saw_test_pixels"]
    for name in NAMES[:2]:
        document = json.loads(gzip.decompress((run / "results" / f"{name}.heatmap.geojson.gz").read_bytes()))
        assert document["features"] and document["lrmil"]["slide_id"] == name
    logs, benchmarks = (
        {p.relative_to(run / k).with_suffix("") for p in (run / k).rglob("*.*")} for k in ("logs", "benchmarks")
    )
    assert (
        logs == benchmarks and len(logs) == 6 * 4 + 2 * 2 + 2 * 3 + 2
    )  # jobs of slides, of folds, and those that collect

    code, said = ended(start(tmp_path, *line))
    assert code == 0 and "Nothing to be done" in said, said

    code, said = ended(start(tmp_path, "-n", "--config", "slides=slides", "model=run/model.safetensors", "out=new"))
    counts = dict(re.findall(r"^(\w+) +(\d+)$", said, re.MULTILINE))
    assert code == 0 and counts == {"all": "1", "predict": "6", "export_geojson": "6", "total": "13"}, said


def test_a_table_of_many_slides(start, tmp_path):
    """By the Slurm profile, where its executor is installed."""
    rows = [f"s{i}.svs,{'ab'[i % 2]}" for i in range(100)]
    for i in range(100):
        (tmp_path / f"s{i}.svs").touch()
    (tmp_path / "slides.csv").write_text("\n".join(["slide,label", *rows]) + "\n")
    for name in ("config.yaml", "profiles/slurm/config.yaml"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / "examples" / name, tmp_path / name)
    small = ["--printshellcmds", "--config", "student=vit_tiny_patch16_224@tiny.safetensors"]
    code, said = ended(start(tmp_path, "-n", "--configfile", "config.yaml", "--profile", "profiles/slurm", *small))
    if "invalid choice: 'slurm'" in said:
        pytest.skip("snakemake-executor-plugin-slurm is not on this machine")
    counts = dict(re.findall(r"^(\w+) +(\d+)$", said, re.MULTILINE))
    assert code == 0 and counts["total"] == str(6 * 100 + 4 * 5 - 5 + 2 + 3), said
    assert counts["embed"] == "100" and counts["tile"] == "200" and counts["distill_encoder"] == "5"
    assert re.search(r"rule embed:[^#]*?gpu=1", said)
    line = r"distill-encoder .*--encoder hf-hub:MahmoodLab/UNI --student vit_tiny_patch16_224@tiny.safetensors +--cache"
    assert len(re.findall(line, said)) == 5
