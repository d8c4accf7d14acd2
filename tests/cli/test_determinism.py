"""The same inputs, settings and seed give the same bytes and numbers, whatever the threads, the batches, or who else
is writing."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lrmil_cli.files.tables import read_table
from lrmil_cli.files.tensors import load_tensors

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def slide(chain):
    return chain.manifest.parent / "slides" / "s13.svs"


def test_tables_are_the_same_to_the_byte_and_models_to_the_number(chain, slide, tmp_path, lrmil, monkeypatch):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    made = []
    for n in (1, 2):
        at = tmp_path / str(n)
        at.mkdir()
        monkeypatch.chdir(at)  # the command line stands in the history
        for line in (
            ["tile", slide, "--mpp", "2.0", "--tile-px", "128", "-o", "lr.csv"],
            ["tile", slide, "--mpp", "0.5", "--tile-px", "128", "-o", "hr.csv.gz"],
            ["match", "lr.csv", "hr.csv.gz", "-o", "p.csv"],
            ["predict", slide, "-m", chain.model, "-o", "out", "--geojson", "m.geojson.gz"],
            ["train-teacher", chain.manifest, "--features", chain.teacher / "features", "--epochs", "3", "-o", "t"],
        ):
            said = lrmil(*line)
            assert said.code == 0, said.err
        files = [
            "lr.csv",
            "hr.csv.gz",
            "p.csv",
            "out/s13.attention.csv",
            "m.geojson.gz",
            "t/folds.csv",
            "t/predictions.csv",
            "t/metrics.csv",
            "t/curves.csv",
        ]
        made.append(
            (
                {f: Path(f).read_bytes() for f in files},
                {k: v.numpy() for k, v in load_tensors("t/fold1/head.safetensors", "head")[1].items()},
            )
        )
    (a, heads_a), (b, heads_b) = made
    assert [f for f in a if a[f] != b[f]] == []
    assert all(np.array_equal(heads_a[k], heads_b[k]) for k in heads_a)


def test_threads_and_batches_change_no_prediction(chain, slide, tmp_path, lrmil):
    found = []
    for workers, batch in ((1, 1), (2, 3), (5, 16), (1, 64)):
        at = tmp_path / f"{workers}-{batch}"
        assert (
            lrmil("predict", slide, "-m", chain.model, "--workers", workers, "--batch-size", batch, "-o", at).code == 0
        )
        record = json.loads((at / "s13.prediction.json").read_text())
        found.append(
            np.concatenate(
                [
                    list(record["probabilities"].values()),
                    read_table(at / "s13.attention.csv", "attention")[1]["attention"],
                ]
            )
        )
    assert all(np.abs(f - found[0]).max() <= 1e-5 for f in found)


def test_memory_that_runs_out_takes_smaller_batches_and_says_so(chain, slide, tmp_path, lrmil, monkeypatch):
    from lrmil_cli.encoders.vit import Encoder

    assert lrmil("predict", slide, "-m", chain.model, "-o", tmp_path / "a").code == 0
    forward, sizes = Encoder.forward, []

    def small(self, tiles, *args, **kwargs):
        if len(tiles) > 2:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 99999999999 bytes")
        sizes.append(len(tiles))
        return forward(self, tiles, *args, **kwargs)

    monkeypatch.setattr(Encoder, "forward", small)
    said = lrmil("predict", slide, "-m", chain.model, "--batch-size", "16", "-o", tmp_path / "b")
    assert said.code == 0 and "out of memory" in said.err and "going on with" in said.err and max(sizes) <= 2
    a, b = (read_table(tmp_path / n / "s13.attention.csv", "attention")[1]["attention"].to_numpy() for n in "ab")
    assert b == pytest.approx(a, abs=1e-5)


def test_two_processes_writing_one_output_leave_a_whole_one(chain, slide, tmp_path):
    command = [
        sys.executable,
        "-m",
        "lrmil_cli",
        "predict",
        str(slide),
        "-m",
        str(chain.model),
        "-o",
        str(tmp_path / "p"),
        "--overwrite",
        "-q",
    ]
    running = [subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = [(p.wait(timeout=120), p.stderr.read()) for p in running]
    assert {code for code, _ in said} == {0}, said
    _, rows = read_table(tmp_path / "p" / "s13.attention.csv", "attention")
    assert rows["attention"].sum() == pytest.approx(1) and {p.name for p in (tmp_path / "p").iterdir()} == {
        "predictions.csv",
        "s13.attention.csv",
        "s13.prediction.json",
    }
