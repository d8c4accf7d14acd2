"""Many processes that embed into one folder: who takes what, what is said, the numbers of one process."""

import shutil
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from lrmil_cli.app import run
from lrmil_cli.encoders.spec import load_encoder
from lrmil_cli.files.features import read_features
from lrmil_cli.files.locks import claimed
from lrmil_cli.files.manifest import read_manifest
from lrmil_cli.progress import listening
from lrmil_cli.training.bags import embed_cohort, tile_tables
from lrmil_cli.training.streamed import Room

pytestmark = pytest.mark.usefixtures("all_unpainted")

IDS = ["a", "b", "c", "d"]
EMBED = ["--encoder", "demo-vit", "--dtype", "float32"]


@pytest.fixture(scope="module")
def tiled(slide, tmp_path_factory) -> Path:
    """Four slides, their 5x tiles, and a manifest."""
    folder = tmp_path_factory.mktemp("together")
    for name in IDS:
        shutil.copy(slide, folder / f"{name}.svs")
    (folder / "slides.csv").write_text("slide,label\n" + "".join(f"{n}.svs,{n}\n" for n in IDS))
    line = ["tile", folder / "slides.csv", "--mpp", "2.0", "--tile-px", "128", "-o", folder / "tiles", "-q"]
    assert run([str(word) for word in line]) == 0
    return folder


def test_a_process_a_device_gives_the_numbers_of_one(tiled, tmp_path, lrmil):
    tiles, apart, one = tmp_path / "tiles", tmp_path / "apart", tmp_path / "one"
    shutil.copytree(tiled / "tiles", tiles)
    with open(tiles / "c.tiles.csv", "a") as fh:
        fh.write("0,0\n")  # no row of its kind
    said = lrmil("embed", tiles, *EMBED, "--devices", "cpu,cpu", "-o", apart, "--json")
    assert said.code == 4 and [r["slide_id"] for r in said.records] == IDS, said.err
    assert [r["status"] for r in said.records] == ["ok", "ok", "failed", "ok"]
    alone = lrmil("embed", tiles, *EMBED, "--device", "cpu", "-o", one, "--json")
    assert alone.code == 4
    assert (apart / "failures.csv").read_text() == (one / "failures.csv").read_text()
    assert said.err.count("1 of 4 slides failed") == 1
    for name in ("a", "b", "d"):
        bags = [read_features(folder / f"{name}.h5") for folder in (apart, one)]
        np.testing.assert_allclose(bags[0].features, bags[1].features, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(bags[0].coords, bags[1].coords)


def test_devices_that_make_no_sense(tiled, tmp_path, lrmil):
    tiles = tiled / "tiles"
    both = lrmil("embed", tiles, *EMBED, "--devices", "cpu,cpu", "--device", "cpu", "-o", tmp_path)
    assert both.code == 2 and "--devices and --device exclude each other" in both.err
    wrong = lrmil("embed", tiles, *EMBED, "--devices", "cpu,gpu", "-o", tmp_path)
    assert wrong.code == 2 and "gpu: choose" in wrong.err and not list(tmp_path.iterdir())


def test_what_another_process_is_at_is_left_to_it(tiled, tmp_path, lrmil):
    with claimed(tmp_path / "b.h5") as mine:
        assert mine
        said = lrmil("embed", tiled / "tiles", *EMBED, "-o", tmp_path, "--json")
    assert said.code == 0 and [r["status"] for r in said.records] == ["ok", "skipped", "ok", "ok"]
    assert "b: left to another process" in said.err and "1 of 4 slides were left" in said.err
    (tmp_path / ".b.h5.lock").touch()  # what a process that was killed leaves
    again = lrmil("embed", tiled / "tiles", *EMBED, "-o", tmp_path, "--json")
    assert again.code == 0 and [r["status"] for r in again.records] == ["skipped", "ok", "skipped", "skipped"]
    assert not (tmp_path / ".b.h5.lock").exists()


@pytest.mark.parametrize("ended", ["before", "after"])
def test_jobs_of_a_training_share_the_work(tiled, tmp_path, ended):
    """What is free is taken first; what another job is at is waited for, and made where that job ended before."""
    manifest, said = read_manifest(tiled / "slides.csv"), []
    elsewhere, here = tmp_path / "elsewhere", tmp_path / "here"
    entered, waited_for = threading.Event(), threading.Event()

    def embed(folder, say):
        tables = tile_tables(manifest, tiled / "tiles")
        room, device = Room(2**20, 0), torch.device("cpu")
        return embed_cohort(load_encoder("demo-vit"), manifest, tables, folder, device=device, room=room, say=say)

    embed(elsewhere, str)

    def other_job():
        with claimed(here / "b.h5"):
            entered.set()
            assert waited_for.wait(60)
            if ended == "after":
                shutil.move(elsewhere / "b.h5", here / "b.h5")  # at once, as a job gives a file its name

    def say(text):
        said.append(text)
        if "waiting" in text:
            waited_for.set()

    job = threading.Thread(target=other_job)
    job.start()
    assert entered.wait(60)
    with listening(SimpleNamespace(opened=str, closed=str, noted=say)):
        bags = embed(here, say)
    job.join()
    made = [text.split()[1].rstrip(":") for text in said if text.startswith("embedded")]
    assert made == ["a", "c", "d"] + (["b"] if ended == "before" else [])
    assert [header["slide"]["id"] for header in bags.headers] == IDS
    assert any("other jobs are at 1 of the slides" in text for text in said)
