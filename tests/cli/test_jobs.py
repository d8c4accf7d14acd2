"""Folds as jobs of their own: the numbers of one run, and gaps by name."""

import json
import shutil

import pandas as pd
import pytest

from lrmil_cli.app import run
from lrmil_cli.files.locks import claimed
from lrmil_cli.models.model_file import load_model

pytestmark = pytest.mark.usefixtures("all_unpainted")

FOLDS = ("--folds", "3", "--epochs", "3", "--lr", "1e-3")


def rows(path):
    return pd.read_csv(path, comment="#")


def teacher_line(chain, out, *more):
    return ["train-teacher", out.parent / "all.csv", "--features", chain.teacher / "features", *FOLDS, "-o", out, *more]


def write_manifest(chain, folder):
    """The cohort without its split."""
    table = rows(chain.manifest).drop(columns="split")
    table["slide"] = [str(chain.manifest.parent / s) for s in table["slide"]]
    table["patient_id"] = [f"p{n}" for n in range(len(table))]
    table.to_csv(folder / "all.csv", index=False)


@pytest.fixture(scope="module")
def teachers(chain, tmp_path_factory):
    """A teacher trained in one go, and one by jobs, the folds in any order."""
    at = tmp_path_factory.mktemp("jobs")
    write_manifest(chain, at)
    for line in (
        teacher_line(chain, at / "one"),
        *(teacher_line(chain, at / "jobs", "--fold", fold) for fold in "231"),
        teacher_line(chain, at / "jobs"),
    ):
        assert not (at / "jobs" / "teacher.json").exists()
        assert run([str(word) for word in line]) == 0
    return at


def test_a_teacher_of_jobs_is_that_of_one_run(teachers):
    pd.testing.assert_frame_equal(*(rows(teachers / n / "predictions.csv") for n in ("one", "jobs")))
    a, b = (json.loads((teachers / n / "teacher.json").read_text()) for n in ("one", "jobs"))
    assert a["metrics"] == b["metrics"] and a["calibration"] == b["calibration"]


def test_gaps_and_folds_of_other_settings_are_named(chain, teachers, lrmil, tmp_path):
    write_manifest(chain, tmp_path)
    shutil.copytree(teachers / "jobs", tmp_path / "t")
    (tmp_path / "t" / "teacher.json").unlink()
    shutil.rmtree(tmp_path / "t" / "fold2")
    assert lrmil(*teacher_line(chain, tmp_path / "t", "--fold", "3", "--weight-decay", "0.1")).code == 0
    said = lrmil(*teacher_line(chain, tmp_path / "t"))
    assert said.code == 3 and not (tmp_path / "t" / "teacher.json").exists()
    assert "fold 2 is missing and fold 3 is of other inputs or settings" in said.err and "--fold 2`, `lrmil" in said.err
    for fold in ("2", "3"):
        assert lrmil(*teacher_line(chain, tmp_path / "t", "--fold", fold)).code == 0
    assert lrmil(*teacher_line(chain, tmp_path / "t")).code == 0


def test_one_job_a_fold(chain, lrmil, tmp_path):
    write_manifest(chain, tmp_path)
    with claimed(tmp_path / "t" / "fold2" / "head.safetensors") as mine:
        assert mine
        said = lrmil(*teacher_line(chain, tmp_path / "t", "--fold", "2"))
        assert said.code == 2 and "fold 2 is being trained by another job" in said.err
    said = lrmil(*teacher_line(chain, tmp_path / "t", "--fold", "2", "--json"))
    assert said.code == 0 and said.records[0]["fold"] == 2
    said = lrmil(*teacher_line(chain, tmp_path / "t", "--fold", "4"))
    assert said.code == 2 and "there are folds 1 to 3" in said.err


def test_a_student_of_jobs_is_that_of_one_run(chain, teachers, lrmil, tmp_path):
    """With an encoder a fold, of which a job needs its own alone."""

    def line(out, *more):
        options = {"--tiles": chain.tiles_lr, "--pairs": chain.pairs, "--teacher": teachers / "one"}
        options |= {"--encoder": tmp_path / "{fold}.safetensors", "--features": chain.teacher / "features"}
        words = [word for option in options.items() for word in option]
        return [
            "distill-student",
            "--no-onnx",
            teachers / "all.csv",
            *words,
            *FOLDS,
            "-o",
            out / "m.safetensors",
            *more,
        ]

    for fold in ("3", "1", "2"):
        shutil.copy(chain.encoder, tmp_path / f"{fold}.safetensors")
        said = lrmil(*line(tmp_path / "jobs", "--fold", fold))
        assert said.code == 0, said.err
        (tmp_path / f"{fold}.safetensors").rename(tmp_path / f"{fold}.away")
    assert not (tmp_path / "jobs" / "m.safetensors").exists()
    for fold in ("1", "2", "3"):
        (tmp_path / f"{fold}.away").rename(tmp_path / f"{fold}.safetensors")
    said = lrmil(*line(tmp_path / "jobs"))
    assert said.code == 0 and said.err.count("taken over") == 6, said.err  # distilled and LR-only
    assert not (tmp_path / "jobs" / "m.folds").exists()
    said = lrmil(*line(tmp_path / "one"))
    assert said.code == 0, said.err
    for kind in ("predictions", "lr-only.predictions", "agreement"):
        pd.testing.assert_frame_equal(*(rows(tmp_path / n / f"m.{kind}.csv") for n in ("one", "jobs")))
    receipts = [json.loads((tmp_path / n / "m.receipt.json").read_text()) for n in ("one", "jobs")]
    same = [{k: v for k, v in r.items() if k not in ("cost", "trained")} for r in receipts]  # those say when
    assert same[0] == same[1]
    assert len(load_model(tmp_path / "jobs" / "m.safetensors").heads) == 3
    said = lrmil(*line(tmp_path / "jobs"))
    assert said.code == 0 and "up to date" in said.err
