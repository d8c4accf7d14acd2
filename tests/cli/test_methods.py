"""Every method on three classes, and on slides of one tile."""

import json

import numpy as np
import pytest

from lrmil_cli.app import run
from lrmil_cli.files.tables import read_table
from tests.conftest import blob_image, write_tiff

pytestmark = pytest.mark.usefixtures("all_unpainted")

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


@pytest.fixture(scope="module")
def numbers(chain, tmp_path_factory):
    """A table whose slides have a number, and teachers of it by ABMIL and DMIN."""
    at = tmp_path_factory.mktemp("numbers")
    header, *lines = chain.manifest.read_text().splitlines()
    rows = [line.split(",") for line in lines]
    table = [f"{chain.manifest.parent / slide},{10 + 3 * n % 7},{split}" for n, (slide, _, split) in enumerate(rows)]
    (at / "slides.csv").write_text("\n".join(["slide,ki67,split", *table]) + "\n")
    task = ["--task", "regression", "--label", "ki67", "--epochs", "2", "--dtype", "float32"]
    sides = ["--tiles", chain.tiles_hr, "--features", chain.teacher / "features", "--encoder", "demo-vit"]
    for head, more in (("abmil", []), ("dmin", SMALL)):
        line = ["train-teacher", at / "slides.csv", *sides, *task, "--head", head, *more, "-o", at / head]
        assert run([*map(str, line), "-q"]) == 0
    return at


@pytest.mark.parametrize(
    ("method", "teacher", "more"),
    [
        ("ahdmil", "dmin", ["--keep-rate-window", "none"]),
        ("zoommil", "abmil", [*SMALL, "--dtype", "float32"]),
        ("eagle", "abmil", ["--top", "5", "--dtype", "float32"]),
    ],
)
def test_a_number_is_learned_from_some_tiles_and_predicted_alike(
    chain, numbers, tmp_path, lrmil, method, teacher, more
):
    """The student takes the task of its teacher; prediction says of a held-out slide what training said of it."""
    sides = ["--tiles", chain.tiles_lr, "--pairs", chain.pairs, "--encoder", "demo-vit", "--teacher", numbers / teacher]
    own = ["--picker", chain.model] if method == "eagle" else []
    model = tmp_path / f"{method}.safetensors"
    said = lrmil(
        "distill-student", numbers / "slides.csv", "--method", method, *sides, *own, *more, "--epochs", "2", "-o", model
    )
    assert said.code == 0 and "R2" in said.err, said.err
    header, rows = read_table(tmp_path / f"{method}.predictions.csv", "predictions")
    assert header["target"]["kind"] == "regression" and list(rows["slide_id"]) == ["s12", "s13", "s14", "s15"]
    slide = chain.manifest.parent / "slides" / "s13.svs"
    assert lrmil("predict", slide, "-m", model, "-o", tmp_path / "p", "--device", "cpu").code == 0
    record = json.loads((tmp_path / "p" / "s13.prediction.json").read_text())
    assert record["predicted"] == pytest.approx(float(rows.set_index("slide_id").at["s13", "predicted"]), rel=2e-3)
