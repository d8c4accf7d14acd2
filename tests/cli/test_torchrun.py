"""``torchrun ... -m lrmil_cli distill-encoder``: two processes take the steps of one with the doubled batch."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from lrmil_cli.distill.encoder_training import own_part, step_scale
from lrmil_cli.distill.losses import masked_region_mean
from lrmil_cli.distributed import World
from lrmil_cli.encoders.spec import load_encoder
from lrmil_cli.files.tables import read_table
from tests.conftest import not_on_windows

ROOT = Path(__file__).resolve().parents[2]


def torchrun(*args):
    env = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}", "OMP_NUM_THREADS": "1"}
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "-m",
        "lrmil_cli",
        *map(str, args),
    ]
    return subprocess.run(command, capture_output=True, text=True, env=env, timeout=240)


@not_on_windows  # torch is built without the store that torchrun asks for there
@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no torch.distributed")
def test_two_processes_walk_the_path_of_one_with_the_doubled_batch(chain, tmp_path, lrmil):
    more = ["--weighting", "child", "--augment", "--final-loss", "uniform", "--layers", "0,3"]
    # the last batch is a small one, whose parts differ in size; the last two blocks get no gradient of the layers'
    # losses
    args = [
        "distill-encoder",
        chain.pairs,
        "--encoder",
        "demo-vit",
        "--epochs",
        "2",
        "--lr",
        "3e-4",
        "--warmup",
        "4",
        "--device",
        "cpu",
        "--cache",
        tmp_path / "cache",
        *more,
    ]
    said = lrmil(*args, "--batch-size", "14", "-o", tmp_path / "one.safetensors")
    assert said.code == 0, said.err
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "cache").glob("*.npy")}
    done = torchrun(*args, "--batch-size", "7", "-o", tmp_path / "two.safetensors", "--json")
    assert done.returncode == 0, done.stderr
    assert (
        len(done.stdout.splitlines()) == 1
        and "epoch 2: validation" in done.stderr
        and done.stderr.count("epoch 1: ") == 1
    )
    assert (
        before and {p: p.stat().st_mtime_ns for p in (tmp_path / "cache").glob("*.npy")} == before
    )  # targets were taken from the cache
    one, two = (read_table(tmp_path / f"{n}.curves.csv", "curves")[1] for n in ("one", "two"))
    assert list(one) == list(two) and two.to_numpy() == pytest.approx(one.to_numpy(), rel=2e-3, abs=1e-6, nan_ok=True)
    a, b = (load_encoder(str(tmp_path / f"{n}.safetensors")).weights() for n in ("one", "two"))
    moved = max(float((a[k] - v).abs().max()) for k, v in load_encoder("demo-vit", tile_px=128).weights().items())
    apart = max(float((a[k] - b[k]).abs().max()) for k in a)
    assert apart < 0.2 * moved
    assert not list((tmp_path / "cache").glob("checkpoint*"))


def test_a_process_that_fails_ends_all_and_leaves_nothing(chain, tmp_path):
    done = torchrun(
        "distill-encoder",
        tmp_path / "nothing.pairs.csv",
        "--encoder",
        "demo-vit",
        "-o",
        tmp_path / "e.safetensors",
        "--device",
        "cpu",
    )
    assert done.returncode != 0 and "no such file" in done.stderr and not (tmp_path / "e.safetensors").exists()


@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize("n", [1, 2, 7, 12])
def test_parts_cover_a_batch_once(size, n):
    group = np.arange(n) + 10
    parts = [own_part(group, World(r, size)) for r in range(size)]
    assert np.concatenate([p for p, counts in parts if counts]).tolist() == group.tolist() and all(
        len(p) for p, _ in parts
    )


@pytest.mark.parametrize("weighting", ["region", "child"])
def test_scaled_means_of_parts_average_to_the_mean_of_the_whole(weighting, monkeypatch):
    rng = torch.Generator().manual_seed(0)
    errors, mask = torch.rand(7, 4, generator=rng), torch.rand(7, 4, generator=rng) < 0.6
    mask[:, 0] = True
    parts = [own_part(np.arange(7), World(r, 3)) for r in range(3)]
    own = [[mask[p].sum() if weighting == "child" else len(p), len(p)] for p, _ in parts]
    whole = torch.tensor(own).sum(0).float()
    monkeypatch.setattr(World, "sum", lambda self, values: whole.clone())
    means = [
        step_scale(mask[p], weighting, c, World(r, 3))[0] * masked_region_mean(errors[p], mask[p], weighting)
        for r, (p, c) in enumerate(parts)
    ]
    assert float(sum(means) / 3) == pytest.approx(float(masked_region_mean(errors, mask, weighting)), rel=1e-6)
    assert float(step_scale(mask[:1], weighting, False, World(0, 3))[0]) == 0
