"""``--compile``: the same numbers, or one line that says that no compiler works."""

import shutil

import pytest

from lrmil_cli.files.features import read_features


@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler on this machine")
def test_a_compiled_encoder_gives_the_same_features(chain, tmp_path, lrmil):
    table = chain.tiles_lr / "s00.tiles.csv"
    for name, more in (("plain", []), ("compiled", ["--compile"])):
        said = lrmil("embed", table, "--encoder", "demo-vit", "--device", "cpu", "-o", tmp_path / f"{name}.h5", *more)
        assert said.code == 0, said.err
    a, b = (read_features(tmp_path / f"{n}.h5").features for n in ("plain", "compiled"))
    assert b == pytest.approx(a, abs=1e-4)


def test_no_compiler_is_said_in_one_line(chain, tmp_path, lrmil, monkeypatch):
    monkeypatch.setattr("lrmil_cli.encoders.vit.Encoder.forward", lambda *a, **k: 1 / 0)
    said = lrmil(
        "embed",
        chain.tiles_lr / "s00.tiles.csv",
        "--encoder",
        "demo-vit",
        "--device",
        "cpu",
        "--compile",
        "-o",
        tmp_path / "x.h5",
    )
    assert said.code == 5 and "no compiler works" in said.err and not (tmp_path / "x.h5").exists()


def test_where_it_would_do_nothing_it_is_refused(chain, tmp_path, lrmil):
    slide = chain.manifest.parent / "slides" / "s13.svs"
    assert lrmil("predict", slide, "-m", chain.model, "--runtime", "onnx", "--compile", "-o", tmp_path).code == 2
    assert lrmil("train-teacher", chain.manifest, "--features", tmp_path, "--compile", "-o", tmp_path / "t").code == 2
