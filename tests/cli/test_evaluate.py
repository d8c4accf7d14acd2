"""``lrmil evaluate`` on hand-written predictions: what it computes, writes, warns of and refuses."""

import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from lrmil_cli.evaluation.training_slides import saw_in_training
from lrmil_cli.files.header import make_header, step
from lrmil_cli.files.tables import dumps_csv, write_table
from lrmil_cli.files.tensors import read_tensor_header, save_tensors
from tests.conftest import without_checksum

FAST = ["--bootstrap", "50"]
ALL = {"evaluation.html", "evaluation.md", "evaluation.json", "evaluation.png", "metrics.csv"}


def rows_of(labels, probabilities, classes=("normal", "tumor"), folds=None, patients=None, ids=None):
    p = np.asarray(probabilities, float)
    p = np.stack([1 - p, p], 1) if p.ndim == 1 else p
    ids = ids or [f"s{i}" for i in range(len(labels))]
    return pd.DataFrame(
        {
            "slide_id": ids,
            "patient_id": patients or ids,
            "label": labels,
            "fold": folds or [1] * len(labels),
            "predicted": [classes[i] for i in p.argmax(1)],
            **{f"prob_{c}": p[:, n] for n, c in enumerate(classes)},
        }
    )


def write_predictions(path, *args, digest_of="a", **kwargs):
    rows = rows_of(*args, **kwargs)
    write_table(
        path, make_header("predictions", settings={}, history=[step("train-teacher", {"of": digest_of}, {})]), rows
    )
    return path


def write_records(
    folder, probabilities, model="model.safetensors", of="m", ids=None, classes=("normal", "tumor"), saw=None
):
    folder.mkdir(exist_ok=True)
    for n, p in enumerate(probabilities):
        slide = ids[n] if ids else f"s{n}"
        record = make_header(
            "prediction",
            slide={"id": slide},
            settings={},
            history=[step("predict", {"slide": slide}, {})],
            model={
                "path": str(model),
                "digest": step("distill-student", {"of": of}, {})["digest"],
                **({"saw": saw[n]} if saw else {}),
            },
            predicted=classes[p > 0.5],
            probabilities={classes[0]: 1 - p, classes[1]: p},
        )
        (folder / f"{slide}.prediction.json").write_text(json.dumps(record))
    return folder


def write_model(path, slides, heads=1, of="m", pixels=(), saw=False):
    import torch

    header = make_header(
        "model",
        settings={},
        history=[step("distill-student", {"of": of}, {})],
        slides=list(slides),
        heads=[{}] * heads,
        encoders=[{"distilled": {"slides": list(pixels)}}],
        encoder_saw_test_pixels=saw,
    )
    save_tensors(path, {"x": torch.zeros(1)}, header)
    return path


def write_manifest(path, labels, patients=None, ids=None):
    ids = ids or [f"s{i}" for i in range(len(labels))]
    lines = ["slide,slide_id,label" + (",patient_id" if patients else "")]
    lines += [f"{s}.svs,{s},{y}" + (f",{patients[i]}" if patients else "") for i, (s, y) in enumerate(zip(ids, labels))]
    path.write_text("\n".join(lines) + "\n")
    return path


TRUTH = ["normal", "normal", "normal", "tumor", "tumor", "tumor"]
GOOD = [0.1, 0.2, 0.6, 0.55, 0.8, 0.9]  # one pair of nine in the wrong order
POOR = [0.4, 0.6, 0.7, 0.3, 0.6, 0.8]


# ---- what comes out ----------------------------------------------------------------
def test_two_models_are_judged_and_compared(tmp_path, lrmil):
    folds = [1, 2, 1, 2, 1, 2]
    good = write_predictions(tmp_path / "good.predictions.csv", TRUTH, GOOD, folds=folds)
    poor = write_predictions(tmp_path / "poor.predictions.csv", TRUTH, POOR, folds=folds)
    out = tmp_path / "out"
    said = lrmil("evaluate", good, poor, "-o", out, "--json", *FAST)
    assert said.code == 0, said.err
    (record,) = said.records
    assert {p.name for p in out.iterdir()} == ALL | {"differences.csv"}
    assert (record["command"], record["status"], record["output"]) == ("evaluate", "ok", str(out))
    kept = json.loads((out / "evaluation.json").read_text())
    assert kept["kind"] == "evaluation" and kept["models"] == record["models"]
    first, second = record["models"]
    assert (first["name"], second["name"], first["n"], first["patients"]) == ("good", "poor", 6, 6)
    m = first["metrics"]
    assert m["auc"]["value"] == pytest.approx(8 / 9) and m["accuracy"]["value"] == pytest.approx(5 / 6)
    assert m["auc"]["low"] <= 8 / 9 <= m["auc"]["high"] and m["auc"]["undefined_draws"] > 0
    assert m["accuracy"]["mean"] == pytest.approx(5 / 6) and m["accuracy"]["sd"] == pytest.approx(
        np.std([2 / 3, 1], ddof=1)
    )
    assert (
        first["majority_rate"] == 0.5 and first["confusion"] == [[2, 1], [0, 3]] and sum(first["calibration"]["n"]) == 6
    )
    assert second["metrics"]["auc"]["value"] == pytest.approx(4.5 / 9)
    by = {d["metric"]: d for d in record["differences"]}
    assert set(by) == {"auc", "accuracy", "brier", "log_loss"} and by["auc"]["n"] == 6
    assert (by["auc"]["model"], by["auc"]["reference"]) == ("poor", "good") and by["auc"]["value"] == pytest.approx(
        (4.5 - 8) / 9
    )

    table = pd.read_csv(out / "metrics.csv", comment="#").set_index(["model", "metric"])
    assert (
        table.loc[("good", "auc"), "value"] == pytest.approx(8 / 9)
        and table.loc[("poor", "majority_rate"), "value"] == 0.5
    )
    assert len(table) == 14 and set(table["level"]) == {"slide"}
    assert len(pd.read_csv(out / "differences.csv", comment="#")) == 4
    page = (out / "evaluation.html").read_text()
    assert "data:image/png;base64," in page and "http:" not in page and "https:" not in page and 'src="data:' in page
    assert "poor - good" in page and "majority rate" in page and (out / "evaluation.png").read_bytes()[:4] == b"\x89PNG"
    assert "![" in (out / "evaluation.md").read_text() and "| AUC |" in (out / "evaluation.md").read_text()


def test_tables_fit_a_terminal_and_a_second_run_is_up_to_date(tmp_path, lrmil, unpainted):
    args = [
        write_predictions(tmp_path / f"{n}.predictions.csv", TRUTH, p, folds=[1, 2] * 3)
        for n, p in (("a-model-of-a-long-name", GOOD), ("b", POOR))
    ]
    first = lrmil("evaluate", *args, "-o", tmp_path / "out", *FAST)
    assert first.code == 0 and max(map(len, first.out.splitlines())) <= 80
    for text in ("AUC", "0.889", "majority rate", "always normal", "difference, 6 slides", "over folds (sd)"):
        assert text in first.out
    stamps = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "out").iterdir()}
    second = lrmil("evaluate", *args, "-o", tmp_path / "out", *FAST)
    assert second.code == 0 and "up to date" in second.err and second.out == first.out
    assert {p.name: p.stat().st_mtime_ns for p in (tmp_path / "out").iterdir()} == stamps
    other = lrmil("evaluate", *args, "-o", tmp_path / "out", "--seed", "1", *FAST)
    assert other.code == 2 and "--overwrite" in other.err
    single = lrmil("evaluate", args[0], "-o", tmp_path / "out", "--overwrite", "--quiet", *FAST)
    assert (single.code, single.out, single.err) == (0, "", "") and not (tmp_path / "out" / "differences.csv").exists()
    (tmp_path / "out" / "evaluation.html").unlink()
    assert (
        lrmil("evaluate", args[0], "-o", tmp_path / "out", *FAST).code == 0
        and (tmp_path / "out" / "evaluation.html").exists()
    )
    args[0].write_text(
        without_checksum(args[0].read_text()).replace("tumor,0.45,0.55", "tumor,0.35,0.65")
    )  # the same file name, other content
    assert lrmil("evaluate", args[0], "-o", tmp_path / "out", *FAST).code == 2


def test_three_classes(tmp_path, lrmil):
    p = [[0.7, 0.2, 0.1], [0.3, 0.4, 0.3], [0.1, 0.8, 0.1], [0.2, 0.5, 0.3], [0.1, 0.2, 0.7], [0.3, 0.3, 0.4]]
    path = write_predictions(tmp_path / "x.predictions.csv.gz", list("aabbcc"), p, classes=("a", "b", "c"))
    said = lrmil("evaluate", path, f"y={path}", "-o", tmp_path / "out", "--json", *FAST)
    model, again = said.records[0]["models"]
    assert {**again, "name": "x"} == model
    # Against the rest: a 7.5 of 8 pairs (0.3 meets 0.3), b and c all 8.
    assert [c["auc"] for c in model["per_class"]] == [7.5 / 8, 1.0, 1.0] and model["metrics"]["auc"][
        "value"
    ] == pytest.approx((7.5 / 8 + 2) / 3)
    assert [c["sensitivity"] for c in model["per_class"]] == [0.5, 1.0, 1.0] and model["per_class"][1][
        "specificity"
    ] == 0.75
    assert model["name"] == "x" and said.records[0]["positive"] is None


def test_a_missing_class_makes_the_auc_undefined_with_the_reason(tmp_path, lrmil):
    path = write_predictions(tmp_path / "x.predictions.csv", ["tumor"] * 4, [0.2, 0.8, 0.6, 0.9])
    said = lrmil("evaluate", path, "-o", tmp_path / "out", *FAST)
    assert said.code == 0 and "undefined" in said.out and "no slide of class normal" in said.out
    m = json.loads((tmp_path / "out" / "evaluation.json").read_text())["models"][0]["metrics"]
    assert (
        m["auc"]["value"] is None
        and m["auc"]["reason"] == "no slide of class normal"
        and m["accuracy"]["value"] == 0.75
    )
    assert "undefined: no slide of class normal" in (tmp_path / "out" / "evaluation.html").read_text()
    row = pd.read_csv(tmp_path / "out" / "metrics.csv", comment="#").set_index("metric").loc["auc"]
    assert pd.isna(row["value"]) and row["reason"] == "no slide of class normal"


@pytest.mark.parametrize(
    ("labels", "p", "patients"),
    [
        (["normal", "tumor"], [0.2, 0.8], None),
        (["tumor"], [0.2], None),
        (["normal", "tumor", "tumor"], [0.5, 0.5, 0.5], ["p", "p", "p"]),
        (["normal", "normal"], [0.0, 1.0], ["p", "q"]),
    ],
)
def test_tiny_cohorts_do_not_crash(tmp_path, lrmil, labels, p, patients):
    paths = [write_predictions(tmp_path / f"{n}.predictions.csv", labels, p, patients=patients) for n in "ab"]
    said = lrmil("evaluate", *paths, "-o", tmp_path / "out", *FAST)
    assert said.code == 0, said.err
    one = len(set(patients or labels)) == 1
    assert ("only one patient" in (tmp_path / "out" / "evaluation.html").read_text()) == one


def test_patient_level_by_hand(tmp_path, lrmil, unpainted):
    # p: (0.75 + 0.125) / 2 = 0.4375, normal, right; q: (0.25 + 0.875) / 2 = 0.5625, tumor, right; r: 0.625, normal,
    # wrong.
    path = write_predictions(
        tmp_path / "x.predictions.csv",
        ["normal", "normal", "tumor", "tumor", "normal"],
        [0.75, 0.125, 0.25, 0.875, 0.625],
        patients=list("ppqqr"),
    )
    out = lrmil("evaluate", path, "-o", tmp_path / "out", "--level", "patient", "--json", *FAST)
    (model,) = out.records[0]["models"]
    assert (model["n"], model["slides"], model["patients"]) == (3, 5, 3) and model["counts"] == {
        "normal": 2,
        "tumor": 1,
    }
    assert model["metrics"]["accuracy"]["value"] == pytest.approx(2 / 3) and model["metrics"]["auc"]["value"] == 0.5
    assert model["majority_rate"] == pytest.approx(2 / 3)


def test_metric_and_positive(tmp_path, lrmil, unpainted):
    paths = [write_predictions(tmp_path / f"{n}.predictions.csv", TRUTH, p) for n, p in (("a", GOOD), ("b", POOR))]
    record = lrmil(
        "evaluate",
        *paths,
        "-o",
        tmp_path / "out",
        "--metric",
        "brier",
        "--metric",
        "auc",
        "--positive",
        "normal",
        "--json",
        *FAST,
    ).records[0]
    assert list(record["models"][0]["metrics"]) == ["auc", "brier"] and [
        d["metric"] for d in record["differences"]
    ] == ["auc", "brier"]
    assert (
        record["positive"] == "normal"
        and "| a | normal | 3 | 0.667 | 1.000 | 0.889 |" in (tmp_path / "out" / "evaluation.md").read_text()
    )


def test_slides_tested_in_several_folds_are_compared_fold_by_fold(tmp_path, lrmil, unpainted):
    ids, folds, labels = ["s0", "s1", "s0", "s1"], [1, 1, 2, 2], ["normal", "tumor"] * 2
    a = write_predictions(tmp_path / "a.predictions.csv", labels, [0.2, 0.8, 0.4, 0.3], ids=ids, folds=folds)
    b = write_predictions(
        tmp_path / "b.predictions.csv", labels[::-1], [0.3, 0.4, 0.8, 0.2], ids=ids[::-1], folds=folds[::-1]
    )
    c = write_predictions(tmp_path / "c.predictions.csv", labels[:2], [0.4, 0.6])
    said = lrmil("evaluate", a, b, c, "-o", tmp_path / "out", "--metric", "brier", "--json", *FAST)
    assert said.code == 0, said.err
    record = said.records[0]
    assert (record["models"][0]["n"], record["models"][0]["slides"]) == (4, 2) and record["models"][0]["leaks"] == []
    assert record["differences"][0]["value"] == pytest.approx(0, abs=1e-12) and record["differences"][0]["n"] == 4
    own = 2 * np.mean([0.04, 0.04, 0.16, 0.49])
    assert record["differences"][1]["value"] == pytest.approx(2 * 0.16 - own)


def test_survival_status_is_called_what_it_is(tmp_path, lrmil, unpainted):
    classes = ("alive", "dead")
    path = write_predictions(
        tmp_path / "x.predictions.csv", ["alive"] * 4 + ["dead"], [0.2, 0.3, 0.1, 0.2, 0.4], classes=classes
    )
    assert lrmil("evaluate", path, "-o", tmp_path / "out", *FAST).code == 0
    page = (tmp_path / "out" / "evaluation.html").read_text()
    assert "Follow-up time and censoring are ignored" in page and "80.0%" in page
    other = write_predictions(tmp_path / "y.predictions.csv", TRUTH, GOOD)
    assert lrmil("evaluate", other, "-o", tmp_path / "other", *FAST).code == 0
    assert "Follow-up" not in (tmp_path / "other" / "evaluation.html").read_text()


# ---- what goes in ------------------------------------------------------------------
def test_every_file_that_holds_predictions(tmp_path, lrmil, unpainted):
    teacher = tmp_path / "the-teacher"
    teacher.mkdir()
    write_predictions(teacher / "predictions.csv", TRUTH, GOOD)
    (teacher / "teacher.json").write_text("{}")
    model = write_model(tmp_path / "student.safetensors", [f"s{i}" for i in range(6)], saw=True)
    write_table(
        tmp_path / "student.predictions.csv",
        make_header("predictions", settings={}, history=[step("distill-student", {"of": "m"}, {})]),
        rows_of(TRUTH, POOR),
    )
    predicted = write_records(tmp_path / "predicted", GOOD, model="nowhere/net.safetensors", of="other")
    slides = write_manifest(tmp_path / "slides.csv", TRUTH)
    said = lrmil(
        "evaluate",
        teacher,
        model,
        predicted,
        f"one={predicted / 's0.prediction.json'}",
        f"again={teacher / 'predictions.csv'}",
        "--slides",
        slides,
        "-o",
        tmp_path / "out",
        "--json",
        *FAST,
    )
    assert said.code == 0, said.err
    models = {m["name"]: m for m in said.records[0]["models"]}
    assert {n: (m["kind"], m["n"]) for n, m in models.items()} == {
        "the-teacher": ("out-of-fold", 6),
        "student": ("out-of-fold", 6),
        "net": ("predict", 6),
        "one": ("predict", 1),
        "again": ("out-of-fold", 6),
    }
    for name, m in models["net"]["metrics"].items():
        assert (m["of_folds"], m["mean"]) == (0, None) and [m[k] for k in ("value", "low", "high")] == pytest.approx(
            [models["again"]["metrics"][name][k] for k in ("value", "low", "high")]
        )
    assert "pixels (not labels) of test slides" in models["student"]["remarks"][0]
    assert (
        "not found" in models["net"]["remarks"][0]
        and "5 slides of slides.csv not predicted" in models["one"]["remarks"]
    )
    assert (
        len(said.records[0]["differences"]) == 4 * 4 and said.records[0]["differences"][0]["n"] == 1
    )  # the one slide that all predicted


def test_labels_and_patients_come_from_the_manifest(tmp_path, lrmil, unpainted):
    path = write_predictions(tmp_path / "x.predictions.csv", TRUTH, GOOD, patients=list("abcdef"))
    slides = write_manifest(
        tmp_path / "slides.csv",
        TRUTH[1:] + ["tumor"],
        patients=["p", "q", "q", "r", "r", "t"],
        ids=["s1", "s2", "s3", "s4", "s5", "s9"],
    )
    said = lrmil("evaluate", path, "--slides", slides, "-o", tmp_path / "a", "--json", *FAST)
    (model,) = said.records[0]["models"]
    assert (model["n"], model["patients"]) == (5, 3)
    assert model["remarks"] == ["1 slide left out: no label in slides.csv", "1 slide of slides.csv not predicted"]
    plain = write_manifest(tmp_path / "plain.csv", TRUTH)
    assert (
        lrmil("evaluate", path, "--slides", plain, "-o", tmp_path / "b", "--json", *FAST).records[0]["models"][0][
            "patients"
        ]
        == 6
    )


def test_slides_the_model_was_trained_on_are_a_leak(tmp_path, lrmil, unpainted):
    """Two folds: s0..s3 were test in one of them, so the other head trained on them; s4 is in neither; s5 in the
    cohort of no model."""
    model = write_model(tmp_path / "model.safetensors", ["s0", "s1", "s2", "s3"], heads=2, pixels=["s4"])
    predicted = write_records(tmp_path / "predicted", GOOD, model=model)
    slides = write_manifest(tmp_path / "slides.csv", TRUTH, patients=["a", "b", "c", "d", "e", "d"])
    said = lrmil("evaluate", predicted, "--slides", slides, "-o", tmp_path / "out", "--json", *FAST)
    assert said.code == 0 and said.err.count("warning") == 2
    leaks, remarks = (said.records[0]["models"][0][k] for k in ("leaks", "remarks"))
    assert (
        "trained or selected on 4 of these 6 slides (the first: s0)" in leaks[0]
        and "1 slide (the first: s5)" in leaks[1]
    )
    assert "distilled on the pixels (not the labels) of 1 slide" in remarks[0]
    assert (
        "Warning: model: the model was trained or selected on 4" in (tmp_path / "out" / "evaluation.html").read_text()
    )


def test_predictions_say_themselves_what_their_model_saw(tmp_path, lrmil, unpainted):
    saw = ["labels"] * 3 + ["pixels"] * 2 + ["nothing"]
    predicted = write_records(tmp_path / "predicted", GOOD, model="gone.safetensors", saw=saw)
    slides = write_manifest(tmp_path / "slides.csv", TRUTH, patients=list("abcdef"))
    said = lrmil("evaluate", predicted, "--slides", slides, "-o", tmp_path / "out", "--json", *FAST)
    (leak,), remarks = (said.records[0]["models"][0][k] for k in ("leaks", "remarks"))
    assert "trained or selected on 3 of these 6 slides (the first: s0)" in leak
    assert "gone.safetensors was not found" in remarks[0] and "other slides of the same patients" in remarks[0]
    assert "distilled on the pixels (not the labels) of 2 slides" in remarks[1]


def test_slides_held_out_of_every_fold_are_no_leak(tmp_path, lrmil, unpainted):
    ids = [f"s{i}" for i in range(9)]
    model = write_model(tmp_path / "model.safetensors", ids, heads=1)
    history = [step("distill-student", {"of": "m"}, {})]
    held = rows_of(TRUTH, POOR)  # s0..s5 were the test part of the only fold
    write_table(tmp_path / "model.predictions.csv", make_header("predictions", settings={}, history=history), held)
    predicted = write_records(
        tmp_path / "predicted", GOOD, model="moved/away/model.safetensors"
    )  # found beside the folder
    said = lrmil(
        "evaluate",
        predicted,
        "--slides",
        write_manifest(tmp_path / "slides.csv", TRUTH),
        "-o",
        tmp_path / "out",
        "--json",
        *FAST,
    )
    assert said.code == 0 and said.err.count("warning") == 0
    judged = said.records[0]["models"][0]
    assert judged["leaks"] == [] and all(r.startswith("patients unknown") for r in judged["remarks"])
    header = read_tensor_header(model, "model")
    assert [saw_in_training(s, model, header) for s in ("s0", "s8", "other")] == ["nothing", "labels", "nothing"]
    assert saw_in_training("s0", tmp_path / "model.int8.onnx", header) == "nothing"
    write_model(model, ids, heads=2)  # of two folds, one trained on them
    assert (
        "trained or selected on 6"
        in lrmil("evaluate", predicted, "--slides", tmp_path / "slides.csv", "-o", tmp_path / "two", *FAST).err
    )
    write_model(model, ids, of="another model of that name")
    assert (
        "not checked"
        in lrmil("evaluate", predicted, "--slides", tmp_path / "slides.csv", "-o", tmp_path / "three", *FAST).err
    )


def test_a_patient_torn_between_folds_is_a_leak(tmp_path, lrmil, unpainted):
    path = write_predictions(tmp_path / "x.predictions.csv", TRUTH, GOOD, folds=[1, 2] * 3, patients=list("aabbcd"))
    said = lrmil("evaluate", path, "-o", tmp_path / "out", *FAST)
    assert said.code == 0 and "slides of 2 patient(s) were tested in different folds (the first: a)" in said.err


def test_it_reads_a_pipe_and_imports_no_torch(tmp_path):
    path = write_predictions(tmp_path / "x.predictions.csv", TRUTH, GOOD)
    code = (
        "import sys; from lrmil_cli.app import run; code = run(['evaluate', '-', '-o', 'out', '--bootstrap', '50']);"
        "sys.exit(code or 9 * ('torch' in sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, input=path.read_text(), capture_output=True, text=True
    )
    assert done.returncode == 0 and "0.889" in done.stdout, done.stderr
    assert "<h1>Evaluation of stdin</h1>" in (tmp_path / "out" / "evaluation.html").read_text()


# ---- what is refused ---------------------------------------------------------------
def bad_inputs(at):
    """name -> (arguments, exit code, what the error says)."""
    good = write_predictions(at / "good.predictions.csv", TRUTH, GOOD)
    three = write_predictions(at / "three.predictions.csv", ["a", "b", "c"], np.eye(3), classes=("a", "b", "c"))
    twice = write_predictions(at / "twice.predictions.csv", TRUTH, GOOD, ids=["s0", "s0", "s2", "s3", "s4", "s5"])
    sums = write_predictions(at / "sums.predictions.csv", TRUTH, np.array([[0.5, 0.6]] * 6))
    words = at / "words.predictions.csv"
    words.write_text(without_checksum(good.read_text()).replace("0.55", "high"))
    other = write_predictions(at / "other.predictions.csv", ["tumor"] * 6, GOOD)
    mixed = write_predictions(at / "mixed.predictions.csv", TRUTH, GOOD, patients=["p"] * 6)
    records = write_records(at / "records", GOOD)
    two = write_records(at / "two", GOOD[:1])
    write_records(two, GOOD[:1], of="n", ids=["s1"])
    same = write_records(at / "same", GOOD[:1])
    (same / "copy.prediction.json").write_text((same / "s0.prediction.json").read_text())
    broken = write_records(at / "broken", GOOD[:1])
    (broken / "s0.prediction.json").write_text(
        (broken / "s0.prediction.json").read_text().replace('"probabilities"', '"chances"')
    )
    (at / "empty").mkdir()
    (at / "text.txt").write_text("hello")
    lone = write_model(at / "lone.safetensors", ["s0"])
    stale = write_model(at / "stale.safetensors", ["s0"])
    write_predictions(at / "stale.predictions.csv", TRUTH, GOOD)
    teacher = at / "teacher"
    teacher.mkdir()
    write_table(teacher / "metrics.csv", make_header("metrics", settings={}, history=[]), pd.DataFrame({"fold": ["1"]}))
    slides = write_manifest(at / "slides.csv", TRUTH)
    strange = write_manifest(at / "strange.csv", ["normal"] * 5 + ["stroma"])
    changed = write_manifest(at / "changed.csv", ["tumor"] + TRUTH[1:])
    foreign = write_manifest(at / "foreign.csv", TRUTH, ids=[f"x{i}" for i in range(6)])
    out = ["-o", at / "out"]
    return {
        "no such file": ([at / "no.predictions.csv", *out], 3, "no such file"),
        "no such folder": ([at / "nothing", *out], 3, "no such file or folder"),
        "no predictions": ([at / "text.txt", *out], 3, "holds no predictions"),
        "empty folder": ([at / "empty", *out], 3, "no predictions in it"),
        "a manifest as predictions": ([slides, *out], 3, "not a predictions table"),
        "no such manifest": ([good, "--slides", at / "no.csv", *out], 3, "no such file"),
        "a slide twice": ([twice, *out], 3, "'s0' is predicted twice"),
        "a slide twice in a folder": ([same, "--slides", slides, *out], 3, "'s0' is predicted twice"),
        "sum": ([sums, *out], 3, "sum to 1"),
        "words": ([words, *out], 3, "sum to 1"),
        "label unknown to the model": ([records, "--slides", strange, *out], 3, "'s5' is of class 'stroma'"),
        "label differs": ([good, "--slides", changed, *out], 3, "'s0' is 'normal' there, but 'tumor'"),
        "no slide in common": ([good, "--slides", foreign, *out], 3, "none of its 6 slides has a label"),
        "classes differ": ([good, three, *out], 3, "knows the classes a, b, c"),
        "labels differ between tables": ([good, other, *out], 3, "another label or patient"),
        "two models in a folder": ([two, "--slides", slides, *out], 3, "another model"),
        "damaged prediction": ([broken, "--slides", slides, *out], 3, "damaged"),
        "model without predictions": ([lone, *out], 3, "not beside it"),
        "predictions of another model": ([stale, *out], 3, "not the predictions of stale.safetensors"),
        "two labels of a patient": ([mixed, "--level", "patient", *out], 3, "patient 'p'"),
        "predict's folder without labels": ([records, *out], 2, "add --slides"),
        "one name twice": ([good, good, *out], 2, "called 'good'"),
        "level": ([good, "--level", "tile", *out], 2, "slide, patient"),
        "metric": ([good, "--metric", "f2", *out], 2, "f1_weighted"),
        "positive": ([good, "--positive", "stroma", *out], 2, "normal, tumor"),
        "positive of three": ([three, "--positive", "a", *out], 2, "two classes"),
        "output is a file": ([good, "-o", at / "text.txt"], 2, "give a folder"),
        "output is stdout": ([good, "-o", "-"], 2, "give a folder"),
        "output holds a teacher": ([good, "-o", teacher, "--overwrite"], 2, "not made by this command"),
        "no output": ([good], 2, "-o is missing"),
    }


@pytest.fixture(scope="module")
def refused(tmp_path_factory):
    at = tmp_path_factory.mktemp("refused")
    return at, bad_inputs(at)


def test_wrong_inputs_are_one_line_and_leave_nothing(refused, lrmil):
    at, cases = refused
    before = {p: p.stat().st_mtime_ns for p in at.rglob("*") if p.is_file()}
    for name, (args, code, says) in cases.items():
        said = lrmil("evaluate", *args, *FAST)
        errors = [l for l in said.err.splitlines() if l.startswith("error: ")]
        assert said.code == code and len(errors) == 1 and says in errors[0] and said.out == "", (name, said)
    assert {p: p.stat().st_mtime_ns for p in at.rglob("*") if p.is_file()} == before


def test_a_truncated_table_is_refused(tmp_path, lrmil):
    header = make_header("predictions", settings={}, history=[])
    text = dumps_csv(header, rows_of(TRUTH, GOOD))
    (tmp_path / "x.predictions.csv").write_text("\n".join(text.splitlines()[:-2]) + "\n")
    said = lrmil("evaluate", tmp_path / "x.predictions.csv", "-o", tmp_path / "out")
    assert said.code == 3 and "truncated" in said.err
