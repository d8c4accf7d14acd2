"""What a demanding reader asks of a model, from the command line, with the small models of the archive."""

import json
import shutil

import h5py
import numpy as np
import pytest

from lrmil_cli.evaluation.unlike_training import describe_training
from lrmil_cli.files.tensors import load_tensors, save_tensors
from tests.archive.test_archive import HERE

ARCHIVE = HERE / "v0.1.0"


@pytest.fixture
def at(tmp_path):
    for name in ("lrmil", "zoommil"):
        shutil.copy(ARCHIVE / f"{name}.safetensors", tmp_path)
    shutil.copytree(ARCHIVE / "slides", tmp_path / "slides")
    return tmp_path


def changed(path, **entries):
    """The model with other entries in its header."""
    header, tensors = load_tensors(path, "model")
    save_tensors(path, tensors, {**header, **entries})


def answers(folder):
    return {r["slide"]["id"]: r for r in (json.loads(p.read_text()) for p in sorted(folder.glob("*.prediction.json")))}


def training_slides_like_the_archive(shift):
    """``training_features`` of slides whose features are those of the archive's slides, moved by ``shift``."""
    own = []
    for path in sorted((ARCHIVE / "lrmil.features").glob("*.h5")):
        with h5py.File(path) as f:
            own.append(np.array(f["features"], np.float32).reshape(-1, f["features"].shape[-1]))
    rng = np.random.default_rng(0)
    slides = [own[i % len(own)] + shift + rng.normal(0, 0.05, own[i % len(own)].shape) for i in range(24)]
    return describe_training(lambda i: slides[i], [(range(12), range(12, 24)), (range(12, 24), range(12))])


@pytest.mark.parametrize("name", ["lrmil", "zoommil"])
def test_a_slide_unlike_the_training_slides_is_marked(name, at, lrmil):
    model, slides = at / f"{name}.safetensors", at / "slides"
    changed(model, training_features={"reason": "few"})
    assert lrmil("predict", slides, "-m", model, "-o", at / "none").code == 0
    assert all("unlike_training" not in r for r in answers(at / "none").values())
    if name == "lrmil":
        changed(model, training_features=training_slides_like_the_archive(0.0))
        said = lrmil("predict", slides, "-m", model, "--abstain", "--confidence", "0.01", "-o", at / "like")
        assert said.code == 0 and "unlike" not in said.err
        assert not any(r["unlike_training"]["unlike"] for r in answers(at / "like").values())
    changed(model, training_features=training_slides_like_the_archive(50.0))
    said = lrmil("predict", slides, "-m", model, "--abstain", "--report", "-o", at / "unlike")
    assert said.code == 0 and said.err.count("unlike the training slides") >= 2
    for slide, r in answers(at / "unlike").items():
        found = r["unlike_training"]
        assert found["unlike"] and found["by"] == ["slide", "tiles"] and found["tiles_beyond"] == 1
        assert "unlike the training slides" in r["uncertain"]
        page = (at / "unlike" / f"{slide}.html").read_text()
        assert page.count("unlike the training slides") >= 2
    again = lrmil("predict", slides, "-m", model, "--abstain", "-o", at / "unlike")
    assert "up to date" in again.err and again.err.count("unlike the training slides") >= 2


def test_graphs_measure_alike(at, lrmil):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    model = at / "lrmil.safetensors"
    changed(model, training_features=training_slides_like_the_archive(0.5))
    assert lrmil("export-onnx", model).code == 0
    for runtime in ("torch", "onnx"):
        assert lrmil("predict", at / "slides", "-m", model, "--runtime", runtime, "-o", at / runtime).code == 0
    for slide, own in answers(at / "torch").items():
        other = answers(at / "onnx")[slide]["unlike_training"]
        assert own["unlike_training"]["distance"] == pytest.approx(other["distance"], rel=1e-3)
        assert own["unlike_training"]["by"] == other["by"]
    info = lrmil("info", model, "--json")
    assert json.loads(info.out)["training_features"].keys() == {
        "slide_bound", "tile_bound", "share_bound", "slides", "held_out"
    }  # fmt: skip
    changed(model, training_features={"slide": {}})
    assert lrmil("predict", at / "slides", "-m", model, "--runtime", "torch", "-o", at / "torch2").code == 3
