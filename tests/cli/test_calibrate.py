"""Calibrated probabilities, sets and abstaining from the command line, with the small models of the archive.

Their heads were made before heads were calibrated; here they get calibrations, and patients, by the test itself.
"""

import json
import shutil

import numpy as np
import pytest

from lrmil_cli.evaluation.head_calibration import HeadCalibration
from lrmil_cli.files.tensors import load_tensors, read_tensor_header, save_tensors
from tests.archive.test_archive import HERE

ARCHIVE = HERE / "v0.1.0"


@pytest.fixture
def at(tmp_path):
    for name in ("lrmil", "ahdmil", "zoommil"):
        shutil.copy(ARCHIVE / f"{name}.safetensors", tmp_path)
    shutil.copytree(ARCHIVE / "slides", tmp_path / "slides")
    return tmp_path


def answers(folder):
    return {r["slide"]["id"]: r for r in (json.loads(p.read_text()) for p in sorted(folder.glob("*.prediction.json")))}


def with_calibration(path, patients=0, wrong=0):
    """The model with a calibration of each head by hand, and calibration patients, sure ones, so many of them wrong."""
    header, tensors = load_tensors(path, "model")
    heads = [HeadCalibration("platt", (0.5 + k, 0.5 + k), (0.0, 0.3), 30) for k in range(len(header["heads"]))]
    header["calibration"] = {"of": "validation", "slides": 60, "heads": [h.as_json() for h in heads]}
    if patients:
        truth = np.arange(patients) % 2
        said = np.where(np.arange(patients) < wrong, 1 - truth, truth)
        p = np.where(np.eye(2)[said] > 0, 0.9, 0.1)
        header["calibration_patients"] = {
            "of": "test",
            "head": (np.arange(patients) % len(heads)).tolist(),
            "class": truth.tolist(),
            "probabilities": p.tolist(),
        }
    save_tensors(path, tensors, header)
    return heads


@pytest.mark.parametrize("name", ["lrmil", "ahdmil", "zoommil"])
def test_the_answer_is_the_mean_of_the_calibrated_heads(name, at, lrmil):
    model = at / f"{name}.safetensors"
    assert lrmil("predict", at / "slides", "-m", model, "-o", at / "before").code == 0
    heads = with_calibration(model)
    said = lrmil("predict", at / "slides", "-m", model, "-o", at / "after")
    assert said.code == 0 and "not calibrated" not in said.err
    before, after = answers(at / "before"), answers(at / "after")
    for slide, old in before.items():
        new = after[slide]
        assert old["calibration"] is None and new["calibration"]["heads"] == ["platt"] * len(heads)
        assert old["probabilities"] == old["probabilities_raw"] == pytest.approx(new["probabilities_raw"], abs=1e-9)
        raw = np.array(list(new["folds_raw"].values())).T
        own = [np.exp(np.array(h.scale) * np.log(p) + np.array(h.offset)) for h, p in zip(heads, raw)]
        expected = np.mean([p / p.sum() for p in own], 0)
        assert list(new["probabilities"].values()) == pytest.approx(expected, abs=1e-6)
        assert new["predicted"] == list(new["probabilities"])[int(expected.argmax())]


def test_sets_and_abstaining_and_what_evaluate_makes_of_them(at, lrmil):
    model, slides = at / "lrmil.safetensors", at / "slides.csv"
    with_calibration(model, 100, wrong=1)
    said = lrmil(
        "predict",
        at / "slides",
        "-m",
        model,
        "--coverage",
        "0.995",
        "--abstain",
        "--max-error",
        "0.05",
        "-o",
        at / "out",
    )
    assert said.code == 2 and "needs 199 calibration patients; the model has 100" in said.err
    line = ["predict", at / "slides", "-m", model, "--coverage", "0.9", "--abstain", "--max-error", "0.05"]
    said = lrmil(*line, "-o", at / "out", "--json")
    assert said.code == 0, said.err
    for record in answers(at / "out").values():
        sure = max(record["probabilities"].values())
        assert record["abstaining"]["confidence"] == 0.9 and record["abstaining"]["answered"] == 100
        assert (record["uncertain"] is None) == (sure >= 0.9) and record["confidence"] == pytest.approx(sure, abs=1e-6)
        # 99 of 100 patients were strange to 0.1: of a class in the set, some head is as sure as that.
        heads = np.array(list(record["folds"].values())).T
        names = [c for n, c in enumerate(record["probabilities"]) if (1 - heads[:, n] <= 0.1).any()]
        assert record["prediction_set"]["classes"] == names
    assert lrmil(*line, "-o", at / "out").code == 0  # up to date
    slides.write_text("slide,label,patient_id\nslides/n1.svs,normal,a\nslides/t1.svs,tumor,b\n")
    said = lrmil("evaluate", at / "out", "--slides", slides, "-o", at / "e", "--bootstrap", "20", "--json")
    assert said.code == 0, said.err
    own = said.records[0]["models"][0]
    right = [r["slide"]["id"][0] == "t" and "tumor" in r["prediction_set"]["classes"]
             or r["slide"]["id"][0] == "n" and "normal" in r["prediction_set"]["classes"]
             for r in answers(at / "out").values()]  # fmt: skip
    assert own["prediction_sets"]["reached"]["value"] == np.mean(right) and own["prediction_sets"]["promised"] == 0.9
    assert {"given", "raw"} <= own["calibration"].keys() and own["calibration"]["raw"]["ece"]["value"] >= 0
    page = (at / "e" / "evaluation.html").read_text(encoding="utf-8")
    assert "Prediction sets" in page and "before calibration" in page


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--coverage", "1.5"], "between 0 and 1"),
        (["--coverage-by", "class"], "give --coverage"),
        (["--coverage", "0.9", "--coverage-by", "site"], "all, class"),
        (["--max-error", "0.05"], "give --abstain"),
        (["--abstain", "--max-error", "0.05", "--confidence", "0.9"], "leave out --confidence"),
        (["--coverage", "0.9", "--escalate", "teacher"], "leave out --escalate"),
        (["--coverage", "0.95", "--coverage-by", "class"], "19 calibration patients of each class"),
        (["--abstain", "--max-error", "0.01"], "the lowest they show is"),
    ],
)
def test_promises_that_cannot_be_made_are_refused(options, message, at, lrmil):
    model = at / "lrmil.safetensors"
    with_calibration(model, 30)
    said = lrmil("predict", at / "slides", "-m", model, "-o", at / "out", *options)
    assert said.code == 2 and message in said.err and not (at / "out").exists()


def test_models_of_earlier_versions_hold_no_patients(at, lrmil):
    said = lrmil("predict", at / "slides", "-m", at / "lrmil.safetensors", "--coverage", "0.9", "-o", at / "out")
    assert said.code == 3 and "lrmil calibrate" in said.err


def new_slides(at, lrmil, count):
    """Predictions of an old model of slides that it never saw: those of the archive under other names."""
    said = lrmil("predict", at / "slides", "-m", at / "lrmil.safetensors", "-o", at / "one")
    assert said.code == 0 and "earlier version" in said.err
    from lrmil_cli.files.header import sealed

    (at / "new").mkdir()
    rows, rng = ["slide_id,label,patient_id"], np.random.default_rng(0)
    record = answers(at / "one")["n1"]
    for i in range(count):
        p = rng.uniform(0.05, 0.95, 2)
        own = {k: v for k, v in record.items() if k != "content"}
        own["slide"] = {**own["slide"], "id": f"x{i}"}
        own["folds_raw"] = {"normal": (1 - p).round(6).tolist(), "tumor": p.round(6).tolist()}
        own["model"] = {**own["model"], "saw": "nothing"}
        (at / "new" / f"x{i}.prediction.json").write_text(json.dumps(sealed(own)))
        rows.append(f"x{i},{'tumor' if rng.random() < p.mean() else 'normal'},p{i // 2}")
    (at / "new.csv").write_text("\n".join(rows) + "\n")


def test_calibrate_makes_an_old_model_one_that_promises(at, lrmil):
    model, new = at / "lrmil.safetensors", at / "new.safetensors"
    new_slides(at, lrmil, 40)
    line = ["calibrate", model, at / "new", "--slides", at / "new.csv", "-o", new]
    said = lrmil(*line, "--json")
    assert said.code == 0, said.err
    assert "head 1: as it was ->" in said.err and "40 slides of 20 patients" in said.err
    about = read_tensor_header(new, "model")["calibration"]
    assert (about["of"], about["slides"], about["patients"]) == ("named", 40, 20) and about["digest"] and about["date"]
    old_tensors, tensors = load_tensors(model, "model")[1], load_tensors(new, "model")[1]
    assert all((tensors[k] == v).all() for k, v in old_tensors.items()) and len(tensors) == len(old_tensors)
    assert "up to date" in lrmil(*line).err
    said = lrmil("predict", at / "slides", "-m", new, "--coverage", "0.9", "-o", at / "out")
    assert said.code == 0, said.err
    heads = [HeadCalibration(**h) for h in about["heads"]]
    for slide, record in answers(at / "out").items():
        assert record["probabilities_raw"] == pytest.approx(answers(at / "one")[slide]["probabilities"], abs=1e-6)
        raw = np.array(list(record["folds_raw"].values())).T
        expected = np.mean([h.apply(p) for h, p in zip(heads, raw)], 0)
        assert list(record["probabilities"].values()) == pytest.approx(expected, abs=1e-6)
        assert record["prediction_set"]["patients"] == len(
            read_tensor_header(new, "model")["calibration_patients"]["head"]
        )
    assert "named" in lrmil("info", new).out


def test_calibrate_refuses_what_would_not_be_true(at, lrmil):
    model = at / "lrmil.safetensors"
    new_slides(at, lrmil, 10)
    for predictions, slides, message in (
        (at / "new", at / "new.csv", "no head can be calibrated: 10 calibration slides, 20 are needed"),
        (ARCHIVE / "zoommil.predictions.csv", None, "not predicted by"),
        (at / "one", ARCHIVE / "slides.csv", "trained"),
        (ARCHIVE / "lrmil.predictions.csv", None, "20 are needed"),
    ):
        given = ["--slides", slides] if slides else []
        said = lrmil("calibrate", model, predictions, *given, "-o", at / "new.safetensors")
        assert said.code == 3 and message in said.err, said.err
    assert lrmil("calibrate", model, at / "new", "-o", model).code == 2
