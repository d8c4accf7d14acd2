"""EAGLE: a picker's attention, the tiles it picks, exactly those read, and their mean classified."""

import json
import shutil

import numpy as np
import pytest
import torch

from lrmil_cli.files.features import read_features
from lrmil_cli.files.tables import read_table, write_table
from lrmil_cli.files.tensors import read_tensor_header
from lrmil_cli.models.model_file import load_model, load_parts
from lrmil_cli.slides import reader

pytestmark = pytest.mark.usefixtures("all_unpainted")

TOP = 5


def train(chain, out, *more, picker=None, pairs=None, tiles=None):
    sides = ["--tiles", tiles or chain.tiles_lr, "--pairs", pairs or chain.pairs, "--teacher", chain.teacher]
    few = ["--epochs", "3", "--lr", "1e-3", "--top", TOP, "--encoder", "demo-vit"]
    own = ["--method", "eagle", "--picker", picker or chain.model]
    return ["distill-student", chain.manifest, *own, *sides, *few, *more, "-o", out]


@pytest.fixture(scope="module")
def model(chain, tmp_path_factory):
    from lrmil_cli.app import run

    path = tmp_path_factory.mktemp("eagle") / "eagle.safetensors"
    assert run([*map(str, train(chain, path)), "-q"]) == 0
    return path


def picks(chain, slide_id):
    """By the tables alone: HR rows under the LR tiles that the picker attends to most, those with most tissue last."""
    picker = load_model(chain.model)
    lr = read_features(chain.model.with_suffix(".features") / f"{slide_id}.h5")
    with torch.inference_mode():
        attention = picker.heads[0](torch.from_numpy(lr.features), torch.from_numpy(lr.coords)).attention.numpy()
    _, pairs = read_table(chain.pairs / f"{slide_id}.pairs.csv", "pairs")
    _, hr = read_table(chain.tiles_hr / f"{slide_id}.tiles.csv", "tiles")
    pairs["attention"] = attention[pairs["lr_index"]]
    pairs["tissue"] = hr["tissue"].to_numpy()[pairs["hr_index"]]
    order = pairs.sort_values(["attention", "lr_index", "tissue"], ascending=[False, True, False], kind="stable")
    return pairs.loc[order.index, ["hr_x", "hr_y"]].to_numpy()[:TOP], len(pairs)


def test_exactly_the_picked_tiles_are_read_and_their_mean_is_judged(chain, model, tmp_path, lrmil, monkeypatch):
    slide = chain.manifest.parent / "slides" / "s13.svs"
    read, whole = [], reader.iter_batches

    def counted(slide, boxes, *args, **kwargs):
        read.append(np.asarray(boxes))
        return whole(slide, boxes, *args, **kwargs)

    monkeypatch.setattr("lrmil_cli.encoders.pipeline.iter_batches", counted)
    said = lrmil("predict", slide, "-m", model, "-o", tmp_path, "--device", "cpu", "--json")
    assert said.code == 0, said.err
    want, candidates = picks(chain, "s13")
    lr, hr = read
    assert {tuple(b[:2]) for b in hr} == set(map(tuple, want)) and len(hr) == TOP
    record = json.loads((tmp_path / "s13.prediction.json").read_text())
    assert record["tiles_read"] == {"lr": len(lr), "hr": TOP} and record["candidates"] == candidates > TOP

    features = read_features(chain.teacher / "features" / "s13.h5")
    at = {tuple(c): n for n, c in enumerate(features.coords.tolist())}
    mean = torch.from_numpy(features.features[[at[tuple(map(int, c))] for c in want]]).float().mean(0, keepdim=True)
    (head,) = load_parts(model)[0].heads
    with torch.inference_mode():
        own = torch.softmax(head(mean).logits, 0).numpy()
    assert list(record["probabilities_raw"].values()) == pytest.approx(own, abs=1e-4)
    _, rows = read_table(tmp_path / "s13.hr.attention.csv", "attention")
    assert set(map(tuple, rows[["x", "y"]].to_numpy())) == set(map(tuple, want))


def test_more_than_there_are_reads_all(chain, tmp_path, lrmil):
    path = tmp_path / "all.safetensors"
    said = lrmil(*train(chain, path, "--top", "10000", "--head-option", "embed_dim=16"))
    assert said.code == 0, said.err
    header = read_tensor_header(path, "model")
    assert header["settings"]["top"] == 10000 and header["heads"][0]["name"] == "meanpool"
    slide = chain.manifest.parent / "slides" / "s13.svs"
    said = lrmil("predict", slide, "-m", path, "-o", tmp_path / "p", "--json")
    record = json.loads((tmp_path / "p" / "s13.prediction.json").read_text())
    assert record["tiles_read"]["hr"] == record["candidates"] == picks(chain, "s13")[1]


def test_again_is_up_to_date_and_the_picker_is_in_the_file(chain, model, lrmil):
    said = lrmil(*train(chain, model))
    assert said.code == 0 and "up to date" in said.err
    header = read_tensor_header(model, "model")
    assert lrmil("verify", model).code == 0
    assert header["method"] == "eagle" and header["picker"]["encoders"][0]["name"] == chain.encoder.name


def test_what_does_not_fit_is_one_line(chain, tmp_path, lrmil):
    out = tmp_path / "m.safetensors"
    alone = tmp_path / "alone.safetensors"
    shutil.copy(chain.model, alone)
    folds = tmp_path / "folds.csv"
    text = chain.manifest.read_text().replace("slides/", f"{chain.manifest.parent}/slides/")
    folds.write_text(text.replace(",test", ",x").replace(",val", ",test").replace(",x", ",val"))
    other = [*train(chain, out)]
    other[1] = folds
    del other[other.index("--teacher") : other.index("--teacher") + 2]
    other += ["--features", chain.teacher / "features"]
    old = tmp_path / "pairs"
    old.mkdir()
    for path in chain.pairs.glob("*.csv"):
        header, rows = read_table(path, "pairs")
        write_table(old / path.name, header, rows.drop(columns="hr_tissue"))
    for args, code, says in (
        (train(chain, out, picker=alone), 3, "its predictions are not beside it"),
        (other, 3, "the picker has other folds than this cohort"),
        (train(chain, out, tiles=chain.tiles_hr), 3, "the picker looks at tiles of 128 px at 2 um/px"),
        (train(chain, out, pairs=old), 3, "do not say how much of an HR tile is tissue"),
        (train(chain, out, "--no-onnx"), 2, "--no-onnx does nothing with --method eagle"),
        ([a for a in train(chain, out) if a not in ("--picker", chain.model)], 2, "--method eagle needs --picker"),
    ):
        said = lrmil(*args)
        assert said.code == code and says in said.err, (says, said.err)
        assert sum(line.startswith("error") for line in said.err.splitlines()) == 1 and not out.exists()
