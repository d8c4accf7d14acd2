"""Random labels of patients with two slides each: a head that knows the patient knows the label."""

import json

import numpy as np
import pytest

from tests.layouts import write_trident

HEAD = ["--head", "meanpool", "--lr", "3e-2", "--epochs", "12", "--folds", "3"]


@pytest.fixture(scope="module")
def features(tmp_path_factory):
    """Two slides of each of 30 patients, alike within a patient, and a label per patient drawn by chance.

    ``plain`` has ids that say nothing, ``tcga`` the same slides under ids of TCGA.
    """
    rng = np.random.default_rng(5)
    folder, tables = tmp_path_factory.mktemp("random"), {"plain": "slide_id,label\n", "tcga": "slide_id,label\n"}
    labels = rng.permutation(np.repeat(["x", "y"], 15))
    for p, label in enumerate(labels):
        centre = rng.normal(size=32)
        for s in range(2):
            bag = (centre + 0.1 * rng.normal(size=(4, 32))).astype(np.float32)
            names = {"plain": f"slide{p * 7 % 30:02d}-{s}", "tcga": f"TCGA-A1-{p:04d}-01Z-00-DX{s + 1}.UUID"}
            for kind, name in names.items():
                write_trident(folder / kind / f"{name}.h5", np.arange(8).reshape(4, 2) * 256, bag)
                tables[kind] += f"{name},{label}\n"
    for kind, text in tables.items():
        (folder / f"{kind}.csv").write_text(text)
    return folder


def judge(lrmil, features, kind, tmp_path):
    table = features / f"{kind}.csv"
    trained = lrmil("train-teacher", table, "--features", features / kind, *HEAD, "-o", tmp_path / "t")
    assert trained.code == 0, trained.err
    judged = lrmil("evaluate", tmp_path / "t", "--slides", table, "-o", tmp_path / "e")
    assert judged.code == 0, judged.err
    about = json.loads((tmp_path / "e" / "evaluation.json").read_text())
    page = (tmp_path / "e" / "evaluation.md").read_text()
    return trained, judged, about["models"][0]["metrics"]["auc"], page


def test_unknown_patients_are_said_in_every_report(lrmil, features, tmp_path):
    trained, judged, auc, page = judge(lrmil, features, "plain", tmp_path)
    assert "warning" in trained.err and "patients unknown: slides are taken for patients" in trained.err
    assert "patients unknown" in judged.err and "patients unknown" in page
    assert auc["value"] > 0.7  # the trap: chance labels look learned


def test_ids_of_tcga_keep_patients_together(lrmil, features, tmp_path):
    trained, judged, auc, page = judge(lrmil, features, "tcga", tmp_path)
    assert "30 patients by their TCGA ids" in trained.err and "patients unknown" not in trained.err + judged.err + page
    assert auc["low"] < 0.5 < auc["high"]
