"""Every method on three classes, and on slides of one tile."""

import json

import numpy as np
import pytest

from lrmil_cli.app import run
from tests.conftest import blob_image, write_tiff

SMALL = ["--head-option", "embed_dim=16", "--head-option", "hidden=8"]


@pytest.fixture(scope="module")
def three(chain, tmp_path_factory):
    """Models of three classes by each method, on the chain's features: what they learn is nothing, that they run is
    the point."""
    at = tmp_path_factory.mktemp("three")
    lines = chain.manifest.read_text().splitlines()
    rows = [line.split(",") for line in lines[1:]]
    (at / "slides.csv").write_text(
        "\n".join(
            [
                lines[0],
                *(
                    f"{chain.manifest.parent / slide},{'abc'[i % 3]},{split}"
                    for i, (slide, _, split) in enumerate(rows)
                ),
            ]
        )
        + "\n"
    )
    common = ["--tiles", chain.tiles_lr, "--pairs", chain.pairs, "--encoder", "demo-vit"]
    teacher = [
        "train-teacher",
        at / "slides.csv",
        "--features",
        chain.teacher / "features",
        "--tiles",
        chain.tiles_hr,
        "--encoder",
        "demo-vit",
        "--epochs",
        "2",
    ]
    for line in (
        [*teacher, "-o", at / "abmil"],
        [*teacher, "--head", "dmin", *SMALL, "-o", at / "dmin"],
        [
            "distill-student",
            "--no-onnx",
            at / "slides.csv",
            *common[:4],
            "--encoder",
            chain.encoder,
            "--teacher",
            at / "abmil",
            "--epochs",
            "2",
            "--no-baseline",
            "-o",
            at / "lrmil.safetensors",
        ],
        *(
            [
                "distill-student",
                at / "slides.csv",
                "--method",
                m,
                *common,
                "--teacher",
                at / "dmin",
                "--epochs",
                "2",
                *more,
                "-o",
                at / f"{m}.safetensors",
            ]
            for m, more in (("hdmil", []), ("ahdmil", ["--keep-rate-window", "none"]))
        ),
        [
            "distill-student",
            at / "slides.csv",
            "--method",
            "zoommil",
            *common,
            "--teacher",
            at / "abmil",
            "--epochs",
            "2",
            *SMALL,
            "-o",
            at / "zoommil.safetensors",
        ],
    ):
        assert run([*map(str, line), "-q"]) == 0, line
    return at


@pytest.mark.parametrize("method", ["lrmil", "hdmil", "ahdmil", "zoommil"])
def test_three_classes_and_one_tile(chain, three, tmp_path, lrmil, method):
    # an LR tile is 512 px of level 0 wide, so this slide has one
    tiny = write_tiff(tmp_path / "tiny.svs", blob_image(500, 500))
    whole = chain.manifest.parent / "slides" / "s13.svs"
    said = lrmil(
        "predict",
        whole,
        tiny,
        "-m",
        three / f"{method}.safetensors",
        "-o",
        tmp_path / "p",
        "--geojson",
        tmp_path / "maps",
    )
    assert said.code == 0, said.err
    for name in ("s13", "tiny"):
        record = json.loads((tmp_path / "p" / f"{name}.prediction.json").read_text())
        assert list(record["probabilities"]) == ["a", "b", "c"] and sum(
            record["probabilities"].values()
        ) == pytest.approx(1)
        assert record["tiles"] >= 1 and np.isfinite(list(record["probabilities"].values())).all()
    assert record["tiles_read"]["lr"] == 1
    said = lrmil("evaluate", three / f"{method}.safetensors", "-o", tmp_path / "e", "--bootstrap", "0", "--json")
    assert said.code == 0 and said.records[0]["classes"] == ["a", "b", "c"], said.err
    for path in (tmp_path / "maps").iterdir():
        assert lrmil("info", path, "--json").records[0]["opens"]
