"""The receipt that distill-student ends in, against the commands and numbers it sums up."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest

from lrmil_cli.evaluation.metrics import evaluate
from lrmil_cli.files.tables import read_table


def receipt_of(model):
    return json.loads(model.with_name(model.stem + ".receipt.json").read_text())


def student(chain, *more):
    return [
        "distill-student",
        "--no-onnx",
        chain.manifest,
        "--tiles",
        chain.tiles_lr,
        "--pairs",
        chain.pairs,
        "--teacher",
        chain.teacher,
        "--lr-features",
        chain.model.with_suffix(".features"),
        "--epochs",
        "8",
        "--lr",
        "1e-3",
        *more,
    ]


def test_the_metrics_are_those_of_the_three_models_on_the_same_slides(chain):
    receipt = receipt_of(chain.model)
    assert list(receipt["models"]) == ["teacher", "lr_only", "distilled"] and receipt["slides"] == 4
    for name, file in (
        ("teacher", chain.teacher / "predictions.csv"),
        ("lr_only", chain.folder / "model.lr-only.predictions.csv"),
        ("distilled", chain.folder / "model.predictions.csv"),
    ):
        _, rows = read_table(file, "predictions")
        own = evaluate((rows["label"] == "tumor").astype(int), rows[["prob_normal", "prob_tumor"]].to_numpy())
        for metric, value in own.items():
            assert receipt["models"][name]["metrics"][metric]["value"] == pytest.approx(value, abs=1e-6), (name, metric)
    by = {(d["a"], d["b"]): d for d in receipt["differences"]}
    assert set(by) == {("distilled", "lr_only"), ("distilled", "teacher"), ("lr_only", "teacher")}
    m = receipt["models"]
    assert by["distilled", "teacher"]["brier"]["value"] == pytest.approx(
        m["distilled"]["metrics"]["brier"]["value"] - m["teacher"]["metrics"]["brier"]["value"]
    )


def test_the_lr_only_student_is_the_one_that_the_preset_trains(chain, tmp_path, lrmil):
    said = lrmil(
        *student(chain, "--preset", "lr-only", "--encoder", "demo-vit", "-o", tmp_path / "plain.safetensors"),
        "--lr-features",
        chain.model.with_suffix(".features") / "lr-only",
    )
    assert said.code == 0, said.err
    _, mine = read_table(tmp_path / "plain.predictions.csv", "predictions")
    _, beside = read_table(chain.folder / "model.lr-only.predictions.csv", "predictions")
    pd.testing.assert_frame_equal(mine, beside)
    assert list(receipt_of(tmp_path / "plain.safetensors")["models"]) == [
        "teacher",
        "distilled",
    ]  # it is its own baseline
    assert "LR-only student" in (tmp_path / "plain.receipt.md").read_text()


def test_tiles_seconds_and_agreement(chain):
    receipt = receipt_of(chain.model)
    for side, folder in (("hr", chain.tiles_hr), ("lr", chain.tiles_lr)):
        own = [len(read_table(folder / f"s{i}.tiles.csv", "tiles")[1]) for i in (12, 13, 14, 15)]
        assert receipt["cost"][side]["tiles"] == pytest.approx(np.mean(own))
        assert receipt["cost"][side]["seconds"] > 0 and receipt["cost"][side]["timed"] == 4
    assert receipt["cost"]["tile_ratio"] == pytest.approx(
        receipt["cost"]["hr"]["tiles"] / receipt["cost"]["lr"]["tiles"]
    )
    _, rows = read_table(chain.folder / "model.agreement.csv", "agreement")
    assert sorted(rows["slide_id"].unique()) == ["s12", "s13", "s14", "s15"] and set(rows["student"]) == {
        "distilled",
        "lr_only",
    }
    for who, part in rows.groupby("student"):
        assert receipt["agreement"][who]["overlap"] == pytest.approx(part["overlap"].mean())
        assert part["overlap"].between(0, 1).all() and part["rank_correlation"].between(-1, 1).all()


def test_agreement_against_an_independent_computation(chain):
    """Teacher's softmax attention averaged per LR tile through the pairs table, ranks by pandas."""
    import torch

    from lrmil_cli.files.features import read_features
    from lrmil_cli.heads.checkpoint import load_head
    from lrmil_cli.models.model_file import load_model

    _, teacher = load_head(chain.teacher / "fold1" / "head.safetensors")
    model = load_model(chain.model)
    _, pairs = read_table(chain.pairs / "s13.pairs.csv", "pairs")
    hr = read_features(chain.teacher / "features" / "s13.h5")
    lr = read_features(chain.model.with_suffix(".features") / "s13.h5")
    with torch.inference_mode():
        pairs["attention"] = teacher(torch.from_numpy(hr.features)).attention.numpy()[pairs["hr_index"]]
        own = model.heads[0](torch.from_numpy(lr.features)).attention.numpy()
    region = pairs.groupby("lr_index")["attention"].mean()
    want = region.corr(pd.Series(own).loc[region.index], method="spearman")
    _, rows = read_table(chain.folder / "model.agreement.csv", "agreement")
    got = rows[(rows["slide_id"] == "s13") & (rows["student"] == "distilled")].iloc[0]
    assert got["rank_correlation"] == pytest.approx(want, abs=1e-4) and got["regions"] == len(region)


def test_the_page_stands_alone_and_says_the_numbers(chain):
    page = (chain.folder / "model.receipt.html").read_text()
    assert page.startswith("<!doctype html>") or page.startswith("<!DOCTYPE html>")
    assert (
        "http://" not in page and "https://" not in page and "<script" not in page and "data:image/png;base64," in page
    )
    receipt = receipt_of(chain.model)
    text = (chain.folder / "model.receipt.md").read_text()
    for title in ("HR teacher", "LR-only student", "distilled student", "rank correlation", "tiles read and encoded"):
        assert title in page and title in text
    assert f"{receipt['models']['distilled']['metrics']['brier']['value']:.3f}" in text


def test_without_a_baseline_or_without_its_encoder(chain, tmp_path, lrmil):
    said = lrmil(*student(chain, "--encoder", chain.encoder, "--no-baseline", "-o", tmp_path / "m.safetensors"))
    assert said.code == 0 and list(receipt_of(tmp_path / "m.safetensors")["models"]) == ["teacher", "distilled"]
    said = lrmil(
        *student(
            chain,
            "--encoder",
            chain.encoder,
            "--baseline-encoder",
            tmp_path / "gone.safetensors",
            "-o",
            tmp_path / "n.safetensors",
        )
    )
    assert said.code == 3 and "--no-baseline" in said.err and "gone.safetensors" in said.err
    said = lrmil(
        *student(
            chain,
            "--encoder",
            chain.encoder,
            "--no-baseline",
            "--baseline-encoder",
            "demo-vit",
            "-o",
            tmp_path / "n.safetensors",
        )
    )
    assert said.code == 2 and not (tmp_path / "n.safetensors").exists()
    said = lrmil(
        *student(chain, "--preset", "patch", "--encoder", chain.encoder, "-o", tmp_path / "m.safetensors"),
        "--overwrite",
    )
    assert (
        said.code == 0 and (tmp_path / "m.lr-only.predictions.csv").exists()
    )  # what an earlier run lacked is there now


def test_evaluate_writes_it_again_from_what_stands_beside_the_model(chain, tmp_path, lrmil):
    for path in chain.folder.glob("model*"):
        if path.is_file():
            shutil.copy(path, tmp_path)
    for path in tmp_path.glob("*.receipt.*"):
        path.unlink()
    said = lrmil("evaluate", tmp_path / "model.safetensors", "--receipt", "-o", tmp_path / "out")
    assert said.code == 0, said.err
    again, first = json.loads((tmp_path / "out" / "model.receipt.json").read_text()), receipt_of(chain.model)
    assert again == first
    assert lrmil("evaluate", chain.teacher, "--receipt", "-o", tmp_path / "no").code == 2
    (tmp_path / "model.predictions.csv").unlink()
    assert lrmil("evaluate", tmp_path / "model.safetensors", "--receipt", "-o", tmp_path / "no").code == 3


def test_without_test_slides_there_is_a_model_and_no_receipt(chain, tmp_path, lrmil):
    """A split of train and val only, as for the model that goes into use."""
    rows = pd.read_csv(chain.manifest)
    rows["slide"] = [str(chain.manifest.parent / s) for s in rows["slide"]]
    rows[rows["split"] != "test"].to_csv(tmp_path / "slides.csv", index=False)
    said = lrmil(
        "train-teacher",
        tmp_path / "slides.csv",
        "--tiles",
        chain.tiles_hr,
        "--encoder",
        "demo-vit",
        "--features",
        chain.teacher / "features",
        "--epochs",
        "2",
        "-o",
        tmp_path / "teacher",
    )
    assert said.code == 0 and "AUC undefined" in said.err, said.err
    args = [
        "distill-student",
        "--no-onnx",
        tmp_path / "slides.csv",
        "--tiles",
        chain.tiles_lr,
        "--pairs",
        chain.pairs,
        "--teacher",
        tmp_path / "teacher",
        "--encoder",
        chain.encoder,
        "--lr-features",
        chain.model.with_suffix(".features"),
        "--epochs",
        "2",
        "-o",
        tmp_path / "m.safetensors",
    ]
    for _ in range(2):  # made, then up to date
        said = lrmil(*args)
        assert said.code == 0 and "no test slides" in said.err, said.err
        assert not list(tmp_path.glob("*.receipt.*"))
    assert (
        lrmil(
            "predict",
            chain.manifest.parent / "slides" / "s13.svs",
            "-m",
            tmp_path / "m.safetensors",
            "-o",
            tmp_path / "p",
        ).code
        == 0
    )
    assert lrmil("evaluate", tmp_path / "m.safetensors", "--receipt", "-o", tmp_path / "e").code == 3


def test_a_receipt_is_written_into_its_folder_alone(chain, tmp_path, lrmil):
    said = lrmil("evaluate", f"../out={chain.model}", "--receipt", "-o", tmp_path / "e")
    assert said.code == 2 and "cannot name files in" in said.err and not list(tmp_path.iterdir())
