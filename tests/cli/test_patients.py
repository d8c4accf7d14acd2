"""``--bag patient``: the slides of a patient as one bag, from training to the answer."""

import json

import numpy as np
import pandas as pd
import pytest
import torch

import lrmil_cli as api
from lrmil_cli.app import run
from lrmil_cli.files.features import read_features
from lrmil_cli.files.tables import read_table
from lrmil_cli.files.tensors import load_tensors
from lrmil_cli.heads.checkpoint import load_head
from lrmil_cli.models.model_file import load_model
from tests.cli.made_cohort import make_cohort
from tests.conftest import blob_image, write_tiff

pytestmark = pytest.mark.usefixtures("all_unpainted")

HEAD = ["--epochs", "3", "--lr", "1e-3", "--quiet"]
STUDENT = ["--tiles", "lr-tiles", "--pairs", "pairs", "--encoder", "demo-vit", "--lr-features", "lr", "--no-baseline"]
NUMBER = ["--task", "regression", "--label", "severity"]


def train(at, *lines):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(at)
        for line in (["match", "lr-tiles", "hr-tiles", "-o", "pairs", "--quiet"], *lines):
            assert run([*line]) == 0, line
    return at


def teacher(name, *options):
    return ["train-teacher", "slides.csv", "--features", "hr", "--folds", "2", *options, *HEAD, "-o", name]


def student(name, of, *options):
    return ["distill-student", "slides.csv", *STUDENT, "--teacher", of, *options, *HEAD, "-o", f"{name}.safetensors"]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """A cohort with a slide a patient, and of both kinds of bags a teacher and its student."""
    at = make_cohort(tmp_path_factory.mktemp("alone"), 24)
    rows = pd.read_csv(at / "slides.csv")
    rows.assign(label=np.where(rows["severity"] > 0.5, "high", "low")).to_csv(at / "slides.csv", index=False)
    kinds = [[teacher(f"t-{b}", "--bag", b), student(b, f"t-{b}", "--no-onnx")] for b in ("slide", "patient")]
    return train(at, *(line for lines in kinds for line in lines))


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """A cohort with two slides a patient, the second of them far from the first in the table; teacher and student of
    patients."""
    at = make_cohort(tmp_path_factory.mktemp("pairs"), 72, per_patient=2)
    rows = pd.read_csv(at / "slides.csv")
    pd.concat([rows[::2], rows[1::2]]).to_csv(at / "slides.csv", index=False)
    lines = [teacher("t", *NUMBER, "--bag", "patient"), student("m", "t")]
    for bag in ("slide", "patient"):
        lines.append(teacher(f"survival-{bag}", "--task", "survival", "--bag", bag))
    return train(at, *lines, student("survival", "survival-patient", "--no-onnx"))


@pytest.fixture(scope="module")
def two_slides(tmp_path_factory):
    """Two slides that differ, and the table that makes them one patient's."""
    at = tmp_path_factory.mktemp("two")
    write_tiff(at / "a.svs", blob_image())
    write_tiff(at / "b.svs", np.ascontiguousarray(blob_image()[::-1, :, ::-1]))
    (at / "slides.csv").write_text("slide,patient_id,severity\na.svs,p,0.5\nb.svs,p,0.5\n")
    return at


def test_one_slide_a_patient_is_what_slides_are_to_the_last_digit(alone, slide, tmp_path, lrmil):
    for table in ("t-{}/predictions.csv", "{}.predictions.csv", "{}.curves.csv", "{}.agreement.csv"):
        one, other = (pd.read_csv(alone / table.format(b), comment="#") for b in ("slide", "patient"))
        same = [c for c in one if c != "slide_id"]
        pd.testing.assert_frame_equal(one[same], other[same], check_exact=True)
    known = pd.read_csv(alone / "slides.csv").set_index("slide_id")["patient_id"]
    both = [pd.read_csv(alone / f"{b}.predictions.csv", comment="#") for b in ("slide", "patient")]
    assert both[1]["slide_id"].tolist() == known[both[0]["slide_id"]].tolist() == both[1]["patient_id"].tolist()
    assert both[1]["slides"].tolist() == both[0]["slide_id"].tolist()
    (one, weights), (other, same) = (load_tensors(alone / f"{b}.safetensors", "model") for b in ("slide", "patient"))
    assert all(torch.equal(weights[name], same[name]) for name in weights) and "bag" not in one
    assert other["bag"] == "patient" and other["slides"] == one["slides"] and other["data"] == one["data"]

    said = []
    for bag in ("slide", "patient"):
        out = lrmil("predict", slide, "-m", alone / f"{bag}.safetensors", "-o", tmp_path / bag)
        assert out.code == 0, out.err
        record = json.loads((tmp_path / bag / "blob.prediction.json").read_text())
        said.append((record["folds_raw"], read_table(tmp_path / bag / "blob.attention.csv", "attention")[1]))
    assert record["bag"] == "patient" and [s["attention"] for s in record["slides"]] == [1.0]
    assert said[0][0] == said[1][0]
    pd.testing.assert_frame_equal(said[0][1], said[1][1], check_exact=True)


def test_teacher_and_student_learn_from_all_slides_of_a_patient(pairs):
    slides = pd.read_csv(pairs / "slides.csv")
    own = slides.groupby("patient_id", sort=False)["slide_id"].agg(list)
    header, rows = read_table(pairs / "t" / "predictions.csv", "predictions")
    assert header["bag"] == "patient" and sorted(rows["slide_id"]) == sorted(own.index)
    assert rows["slides"].tolist() == ["|".join(own[p]) for p in rows["slide_id"]]
    about, head = load_head(pairs / "t" / "fold1" / "head.safetensors")
    for _, row in rows[rows["fold"] == 1].iterrows():
        union = np.concatenate([read_features(pairs / "hr" / f"{s}.h5").features for s in own[row["slide_id"]]])
        with torch.inference_mode():
            out = head(torch.from_numpy(union))
        assert len(own[row["slide_id"]]) == 2 and float(out.attention.sum()) == pytest.approx(1)
        by_hand = about["outputs"]["mean"] + about["outputs"]["sd"] * float(out.logits)
        assert row["predicted"] == pytest.approx(by_hand, rel=1e-5)
    curves = pd.read_csv(pairs / "m.curves.csv", comment="#")
    assert {"train_bag_kd", "train_soft", "train_hard"} <= set(curves)
    regions = pd.read_csv(pairs / "m.agreement.csv", comment="#")["regions"]
    one = len(read_features(pairs / "lr" / "s000.h5").features)
    assert len(regions) == len(own) and (regions > 1.5 * one).all()  # of both slides
    receipt = json.loads((pairs / "m.receipt.json").read_text())
    assert (receipt["slides"], receipt["patients"], receipt["level"]) == (72, 36, "patient")
    model = load_tensors(pairs / "m.safetensors", "model")[0]
    assert model["slides"] == slides["slide_id"].tolist() and model["data"]["slides"] == 72


def test_stage_1_keeps_the_slides_of_a_patient_on_one_side_of_a_fold(pairs):
    from lrmil_cli.distill.distill_encoder import collect
    from lrmil_cli.files.manifest import Labels, read_manifest
    from lrmil_cli.targets.task import make_task

    labels = Labels("severity", task=make_task("regression", label="severity"), asked=True)
    manifest = read_manifest(pairs / "slides.csv", labels=labels, need_slides=False)
    folds = read_table(pairs / "t" / "folds.csv", "folds")[1].set_index("slide_id")["fold_1"]
    patient = {e.slide_id: e.patient_id for e in manifest}
    known = {f"s{n:03d}": pairs / "slides.csv" for n in range(72)}  # no pixel is read
    own = collect([str(pairs / "pairs")], manifest, 1, 2, str(pairs / "t"), 0, known)
    for part, found in (("train", own.train), ("val", own.val)):
        asked = [s for s, p in patient.items() if folds[p] == part]
        assert sorted(s.slide_id for s in found) == sorted(asked) and len(asked) == 2 * (folds == part).sum()


def harrell_by_hand(rows):
    """Harrell's C of pairs within folds: who has the event sooner should have the higher risk."""
    right = pairs = 0.0
    for _, fold in rows.groupby("fold"):
        for _, first in fold[fold["event"] == 1].iterrows():
            later = fold[(fold["time"] > first["time"]) | ((fold["time"] == first["time"]) & (fold["event"] == 0))]
            pairs += len(later)
            right += (first["risk"] > later["risk"]).sum() + (first["risk"] == later["risk"]).sum() / 2
    return right / pairs


def test_survival_with_several_slides_a_patient(pairs, two_slides, tmp_path, lrmil):
    known = pd.read_csv(pairs / "slides.csv").groupby("patient_id").first()
    for bag, count in (("slide", 72), ("patient", 36)):
        rows = read_table(pairs / f"survival-{bag}" / "predictions.csv", "predictions")[1]
        assert len(rows) == count and rows.groupby("patient_id")["fold"].nunique().max() == 1
        assert (rows["time"].to_numpy() == known.loc[rows["patient_id"], "time"].to_numpy()).all()
        about = json.loads((pairs / f"survival-{bag}" / "teacher.json").read_text())["metrics"]
        assert about["c_harrell"] == pytest.approx(harrell_by_hand(rows), abs=1e-9)
        out = lrmil("evaluate", pairs / f"survival-{bag}", "--slides", pairs / "slides.csv", "-o", tmp_path / bag,
                             "--bootstrap", "20")  # fmt: skip
        assert out.code == 0, out.err
        judged = json.loads((tmp_path / bag / "evaluation.json").read_text())["models"][0]
        assert judged["metrics"]["c_harrell"]["value"] == pytest.approx(about["c_harrell"], abs=1e-9)
    receipt = json.loads((pairs / "survival.receipt.json").read_text())
    assert (receipt["slides"], receipt["patients"], receipt["level"]) == (72, 36, "patient")
    out = lrmil("predict", two_slides / "slides.csv", "-m", pairs / "survival.safetensors", "-o", tmp_path / "p")
    record = json.loads((tmp_path / "p" / "p.prediction.json").read_text())
    assert out.code == 0 and record["group"] in ("high", "low") and [s["id"] for s in record["slides"]] == ["a", "b"]
    assert record["risk"] == pytest.approx(np.mean(record["folds"])) and len(record["survival"]) == 3


@pytest.mark.parametrize("runtime", ["torch", "onnx"])
def test_a_patient_gets_one_answer_and_each_slide_its_share(pairs, two_slides, tmp_path, lrmil, runtime):
    model, table = pairs / "m.safetensors", two_slides / "slides.csv"
    line = ["predict", table, "-m", model, "--runtime", runtime, "-o", tmp_path, "--geojson", tmp_path]
    out = lrmil(*line, "--overlay", tmp_path)
    assert out.code == 0 and "one answer a patient" in out.err, out.err
    card = lrmil("info", model, "--card", "-o", "-").out
    assert " of patients from tiles of " in card and "px at 2 um/px of all their slides together" in card
    assert "held-out patients are marked as unlike the training patients" in card
    record = json.loads((tmp_path / "p.prediction.json").read_text())
    tables = [read_table(tmp_path / f"{s}.attention.csv", "attention") for s in "ab"]
    shares = [s["attention"] for s in record["slides"]]
    assert sum(shares) == pytest.approx(1) and [s["id"] for s in record["slides"]] == ["a", "b"]
    assert [rows["attention"].sum() for _, rows in tables] == pytest.approx(shares)
    assert [header["patient"] for header, _ in tables] == ["p", "p"]
    assert all(
        (tmp_path / f"{s}.heatmap.geojson.gz").exists() and (tmp_path / f"{s}.overlay.png").exists() for s in "ab"
    )

    opened = load_model(model)
    union = []
    for name in "ab":
        with api.open_slide(two_slides / f"{name}.svs") as slide:
            tiles = api.find_tiles(slide, mpp=opened.tiles.mpp, tile_px=opened.tiles.tile_px)
            union.append(api.embed(slide, tiles, "demo-vit", device="cpu"))
    with torch.inference_mode():
        outs = [head(torch.from_numpy(np.concatenate(union))) for head in opened.heads]
    scales = opened.header["outputs"]
    by_hand = [s["mean"] + s["sd"] * float(o.logits) for s, o in zip(scales, outs)]
    assert record["folds"] == pytest.approx(by_hand, rel=1e-4)
    attention = np.mean([o.attention.numpy() for o in outs], axis=0)
    np.testing.assert_allclose(np.concatenate([rows["attention"] for _, rows in tables]), attention, rtol=1e-3)

    rows = read_table(tmp_path / "predictions.csv", "answers")[1]
    assert rows["slide_id"].tolist() == ["p"] and lrmil(*line).err.count("up to date") == 1
    if runtime == "torch":
        out = lrmil("evaluate", tmp_path, "--slides", table, "-o", tmp_path / "e", "--bootstrap", "20", "--json")
        assert out.code == 0 and "patients unknown" not in out.err, out.err
        assert lrmil("report", tmp_path).code == 0
        page, index = ((tmp_path / name).read_text(encoding="utf-8") for name in ("a.html", "index.html"))
        assert f"for patient p, by 2 slides together; this slide holds {shares[0]:.0%} of the attention" in page
        assert "2 slides of 1 patient, each answered as a whole" in index and index.count("patient p</small>") == 2
        before = page
        assert (
            lrmil(*line, "--report", "--top-tiles", tmp_path / "top").code == 0
        )  # the same page, by the other command
        assert (tmp_path / "a.html").read_text(encoding="utf-8") == before and (
            tmp_path / "top" / "b.tiles.png"
        ).exists()


def test_a_slide_that_fails_fails_its_patient_by_name(pairs, two_slides, glass, tmp_path, lrmil):
    table = tmp_path / "slides.csv"
    table.write_text(f"slide,patient_id\n{two_slides / 'a.svs'},p\n{glass},p\n{two_slides / 'b.svs'},q\n")
    out = lrmil("predict", table, "-m", pairs / "m.safetensors", "-o", tmp_path / "r")
    assert out.code == 4 and "p: no_tissue: slide glass:" in out.err and "1 of 2 patients failed" in out.err
    assert not (tmp_path / "r" / "p.prediction.json").exists() and (tmp_path / "r" / "q.prediction.json").exists()


def test_what_cannot_be_of_patients_is_refused_by_name(alone, pairs, two_slides, tmp_path, lrmil, monkeypatch):
    model, table = pairs / "m.safetensors", two_slides / "slides.csv"
    for option in (["--fine", "2"], ["-m", alone / "slide.safetensors"]):
        out = lrmil("predict", table, "-m", model, "-o", tmp_path / "r", *option)
        assert out.code == 2 and "answers for patients" in out.err.splitlines()[-1], option
    out = lrmil("predict", two_slides, "-m", model, "-o", tmp_path / "r")
    assert out.code == 2 and "nobody names that of a; give a table" in out.err
    monkeypatch.chdir(pairs)
    out = lrmil(*student("x", "t"), "--bag", "slide")
    assert out.code == 3 and "a bag of the teacher is a patient, of the student a slide" in out.err
    line = ["distill-student", "slides.csv", "--tiles", "lr-tiles", "--encoder", "demo-vit", "-o", "x.safetensors"]
    out = lrmil(*line, "--method", "zoommil", "--teacher", "t")
    assert out.code == 2 and "a teacher of patients" in out.err
    assert "--bag does nothing with --method eagle" in lrmil(*line, "--method", "eagle", "--bag", "patient").err
    rows = pd.read_csv("slides.csv")
    rows.loc[0, "severity"] = 0.25
    rows.to_csv(tmp_path / "torn.csv", index=False)
    out = lrmil("train-teacher", tmp_path / "torn.csv", "--features", "hr", *NUMBER, "--bag", "patient", "-o", "x")
    assert out.code == 3 and "patient 'p0' has slides with different labels (s000 0.25, s001" in out.err
    evaluated = [pairs / "m.safetensors", alone / "slide.safetensors"]
    assert lrmil("evaluate", *evaluated, "-o", tmp_path / "e").code == 3
