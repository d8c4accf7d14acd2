"""Every fold several times: teacher and student by two seeds, in one run and by jobs, and what the receipt says."""

import json

import numpy as np
import pandas as pd
import pytest

from lrmil_cli.files.tables import read_table
from lrmil_cli.files.tensors import load_tensors
from lrmil_cli.heads.checkpoint import load_head

pytestmark = pytest.mark.usefixtures("all_unpainted")


@pytest.fixture(scope="module")
def by_seeds(chain, tmp_path_factory):
    """A teacher and a student of two seeds on the features that are there already."""
    from lrmil_cli.app import run

    at = tmp_path_factory.mktemp("seeds")
    heads = ["--epochs", "1", "--lr", "1e-3", "--dtype", "float32", "--seeds", "2", "--quiet"]
    teacher = ["train-teacher", chain.manifest, "--tiles", chain.tiles_hr, "--encoder", "demo-vit", "--features",
               chain.teacher / "features", *heads, "-o", at / "teacher"]  # fmt: skip
    student = ["distill-student", chain.manifest, "--tiles", chain.tiles_lr, "--pairs", chain.pairs, "--encoder",
               chain.encoder, "--teacher", at / "teacher", "--lr-features", chain.model.with_suffix(".features"),
               *heads]  # fmt: skip
    job = [*student, "--no-onnx", "-o", at / "job.safetensors"]
    best = [*student, "--no-onnx", "--keep", "best", "-o", at / "best.safetensors"]
    for line in (teacher, [*student, "-o", at / "all.safetensors"], [*job, "--fold", "1"], job, best):
        assert run([*map(str, line)]) == 0, line
    return at


def test_the_teacher_of_a_fold_is_the_best_of_its_seeds(by_seeds):
    folder = by_seeds / "teacher"
    best = load_head(folder / "fold1" / "head.safetensors")[1].state_dict()
    scores, heads = [], []
    for n in (1, 2):
        header, head = load_head(folder / "fold1" / f"head.seed{n}.safetensors")
        row = header["curves"][header["best_epoch"] - 1]
        scores.append((row["val_auc"], -row["val_ce"]))
        heads.append(head.state_dict())
    own = heads[int(np.argmax([s[0] + 1e-6 * s[1] for s in scores]))]
    assert all((own[k] == v).all() for k, v in best.items())
    assert any((heads[0][k] != heads[1][k]).any() for k in best)
    assert json.loads((folder / "teacher.json").read_text())["seeds"] == {"count": 2, "keep": "best"}
    rows = read_table(folder / "seeds.csv", "seeds")[1]
    assert sorted(set(rows["seed"])) == [1, 2] and set(rows["student"]) == {"teacher"}


def test_an_ensemble_answers_as_the_mean_of_its_heads(by_seeds, chain, lrmil, tmp_path):
    model = by_seeds / "all.safetensors"
    header = load_tensors(model, "model")[0]
    assert header["fold_of"] == [0, 0] and len(header["heads"]) == len(header["calibration"]["heads"]) == 2
    slide = next(chain.manifest.parent.glob("slides/s15.svs"))
    assert lrmil("predict", slide, "-m", model, "-o", tmp_path).code == 0
    record = json.loads((tmp_path / "s15.prediction.json").read_text())
    # One fold of two heads: the answer is the mean of both, as their out-of-fold predictions say.
    rows = read_table(by_seeds / "all.seeds.csv", "seeds")[1]
    own = rows[(rows["slide_id"] == "s15") & (rows["student"] == "distilled")]
    assert len(own) == 2 and len(record["folds_raw"]["tumor"]) == 2 and len(record["folds"]["tumor"]) == 1
    assert record["probabilities"]["tumor"] == pytest.approx(own["prob_tumor"].mean(), abs=1e-4)
    table = read_table(by_seeds / "all.predictions.csv", "predictions")[1].set_index("slide_id")
    assert table.loc["s15", "prob_tumor"] == pytest.approx(own["prob_tumor"].mean(), abs=1e-6)
    assert record["model"]["saw"] == "pixels" or record["model"]["saw"] == "nothing"
    assert lrmil("verify", model).code == 0


def test_jobs_of_folds_give_the_same_and_best_keeps_one(by_seeds):
    tables = [read_table(by_seeds / f"{n}.seeds.csv", "seeds")[1] for n in ("all", "job", "best")]
    for other in tables[1:]:
        pd.testing.assert_frame_equal(tables[0], other, rtol=1e-5)
    header = load_tensors(by_seeds / "best.safetensors", "model")[0]
    assert "fold_of" not in header and len(header["heads"]) == 1 and header["seeds"] == {"count": 2, "keep": "best"}


def test_the_receipt_keeps_the_two_doubts_apart(by_seeds):
    receipt = json.loads((by_seeds / "all.receipt.json").read_text())
    about = receipt["seeds"]
    assert about["count"] == 2 and set(about["models"]) == {"distilled", "lr_only"}
    rows = read_table(by_seeds / "all.seeds.csv", "seeds")[1]
    briers = [
        float((2 * (own["prob_tumor"] - (own["label"] == "tumor")) ** 2).mean())
        for _, own in rows[rows["student"] == "distilled"].groupby("seed")
    ]
    assert about["models"]["distilled"]["brier"]["mean"] == pytest.approx(np.mean(briers))
    assert about["models"]["distilled"]["brier"]["sd"] == pytest.approx(np.std(briers, ddof=1))
    text = (by_seeds / "all.receipt.md").read_text()
    assert "## Seeds" in text and "over 2 seeds" in text
