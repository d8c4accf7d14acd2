"""``lrmil evaluate`` and the receipt on made predictions of numbers and of survival."""

import json

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import r2_score

from tests.cli.target_tables import (
    TIMES,
    cohort,
    numbers,
    risks,
    write_answers,
    write_student,
    write_target,
)
from tests.cli.test_evaluate import TRUTH, write_predictions

lifelines = pytest.importorskip("lifelines")

FAST = ["--bootstrap", "40"]


def slides_of(tmp_path, known, name="slides.csv"):
    path = tmp_path / name
    known.drop(columns="severity").assign(slide=known["slide_id"] + ".svs").to_csv(path, index=False)
    return path


def test_numbers_of_two_models(tmp_path, lrmil):
    known = cohort()
    good, poor = numbers(known, 0.2), numbers(known, 2.0)
    write_target(tmp_path / "good.predictions.csv", good, "regression")
    write_target(tmp_path / "poor.predictions.csv", poor, "regression")
    out = tmp_path / "out"
    said = lrmil("evaluate", tmp_path / "good.predictions.csv", tmp_path / "poor.predictions.csv", "-o", out, "--by",
                 "stage", "--slides", slides_of(tmp_path, known), "--json", *FAST)  # fmt: skip
    assert said.code == 0, said.err
    (record,) = said.records
    first, second = record["models"]
    assert first["metrics"]["r2"]["value"] == pytest.approx(r2_score(good["label"], good["predicted"]))
    mae = np.abs(good["predicted"] - good["label"]).groupby(good["fold"]).mean()
    assert first["metrics"]["mae"]["mean"] == pytest.approx(mae.mean()) and first["metrics"]["mae"]["of_folds"] == 3
    assert first["regression"]["bland_altman"]["bias"] == pytest.approx((good["predicted"] - good["label"]).mean())
    by = {d["metric"]: d for d in record["differences"]}
    assert by["mae"]["value"] == pytest.approx(second["metrics"]["mae"]["value"] - first["metrics"]["mae"]["value"])
    assert by["mae"]["low"] > 0 and by["r2"]["high"] < 0
    assert {g["name"]: g["n"] for g in first["groups"]["stage"]} == known["stage"].value_counts().to_dict()
    page = (out / "evaluation.md").read_text()
    assert "poor against good: MAE: good is better" in page and "Bland" in page and "![" in page
    assert {p.name for p in out.iterdir()} == {f"evaluation.{e}" for e in ("html", "md", "json", "png")} | {
        "metrics.csv", "differences.csv"}  # fmt: skip
    assert lrmil("evaluate", tmp_path / "good.predictions.csv", tmp_path / "poor.predictions.csv", "-o", out, "--by",
                 "stage", "--slides", tmp_path / "slides.csv", *FAST).err.count("up to date") == 1  # fmt: skip


def test_survival_with_curves_ratios_and_a_checklist(tmp_path, lrmil):
    known = cohort(80)
    known.loc[3, "age"] = "NA"
    rows = risks(known, 0.3)
    table = write_target(tmp_path / "m.predictions.csv", rows, "survival")
    more = ["--slides", slides_of(tmp_path, known), "--adjust", "age,stage", "--checklist", "remark", "--json", *FAST]
    said = lrmil("evaluate", table, "-o", tmp_path / "out", "--horizon", "10", "--horizon", "30", *more)
    assert said.code == 0, said.err
    m = said.records[0]["models"][0]
    each = [
        lifelines.utils.concordance_index(own["time"], -own["risk"], own["event"]) for _, own in rows.groupby("fold")
    ]
    assert m["metrics"]["c_harrell"]["mean"] == pytest.approx(np.mean(each))
    assert m["metrics"]["c_harrell"]["low"] < m["metrics"]["c_harrell"]["value"] < m["metrics"]["c_harrell"]["high"]
    assert m["metrics"]["auc_at_30"]["value"] > 0.5
    assert m["metrics"]["brier_at_30"]["reason"] == f"the curves end at {TIMES[-1]:g}"
    d = m["survival"]
    high = rows["group"] == "high"
    fitted = lifelines.KaplanMeierFitter().fit(rows["time"][high], rows["event"][high])
    assert d["groups"][0]["name"] == "high" and d["groups"][0]["median"] == pytest.approx(fitted.median_survival_time_)
    assert d["groups"][0]["at_risk"] == [int((rows["time"][high] >= t).sum()) for t in d["ticks"]]
    test = lifelines.statistics.logrank_test(
        rows["time"][high], rows["time"][~high], rows["event"][high], rows["event"][~high]
    )
    assert d["log_rank"] == pytest.approx(test.p_value)
    table = pd.DataFrame({"high": high.astype(float), "t": rows["time"], "e": rows["event"], "fold": rows["fold"]})
    cox = lifelines.CoxPHFitter().fit(table, "t", "e", strata=["fold"])
    assert d["ratios"][0]["rows"][0]["hazard_ratio"] == pytest.approx(cox.hazard_ratios_["high"], rel=1e-6)
    assert [v["name"] for v in d["ratios"][2]["rows"]] == ["group", "age", "stage II", "stage III"]
    assert d["adjust"] == {"columns": ["age", "stage"], "left_out": 1} and d["ratios"][2]["n"] == 79
    page = (tmp_path / "out" / "evaluation.md").read_text()
    assert "adjusted for age, stage; 1 patient left out" in page and "no slide that is judged has a say in it" in page
    remark = (tmp_path / "out" / "checklist.remark.md").read_text()
    assert "| 11 | cut points | high and low risk by the median risk of the training slides" in remark
    assert "| 16 | multivariable results | hazard ratios of 79 patients: group" in remark and "follow-up" in remark


def test_those_who_are_judged_have_no_say_in_the_cut(tmp_path, lrmil, unpainted):
    """All of these lie above the median of the training slides; a cut of their own would part them in halves."""
    known = cohort()
    rows = risks(known, 0.3)
    rows["group"] = np.where(np.arange(len(rows)) < 55, "high", "low")
    for n, own in enumerate((rows, rows.assign(risk=-rows["risk"]))):  # nor has their risk
        table = write_target(tmp_path / f"m{n}.predictions.csv", own, "survival")
        said = lrmil("evaluate", table, "-o", tmp_path / f"out{n}", "--json", *FAST)
        groups = said.records[0]["models"][0]["survival"]["groups"]
        assert [(g["name"], g["n"]) for g in groups] == [("high", 55), ("low", 5)]


@pytest.mark.parametrize("kind", ["regression", "survival"])
def test_the_answers_of_predict_by_the_table_of_slides(kind, tmp_path, lrmil, unpainted):
    known = cohort(40)
    rows = (numbers if kind == "regression" else risks)(known, 0.5).assign(fold=1)
    rows = rows.assign(risk=rows["risk"] if kind == "survival" else 0)
    folder = write_answers(tmp_path / "answers", rows, kind)
    table = write_target(tmp_path / "t.predictions.csv", rows, kind)
    slides = slides_of(tmp_path, known.rename(columns={"amount": "size", "months": "os", "died": "dead"}).drop(index=7))
    named = ["--label", "size"] if kind == "regression" else ["--time", "os", "--event", "dead"]
    said = lrmil("evaluate", folder, "-o", tmp_path / "out", "--slides", slides, *named, "--json", *FAST)
    assert said.code == 0, said.err
    assert "1 slide left out: no label in slides.csv" in said.err
    read = said.records[0]["models"][0]["reading"]
    assert (read["lr_tiles"], read["seconds"], read["uncertain"], read["unlike_training"]) == (10, 1.5, 19, 12)
    assert read["hr_tiles"] == pytest.approx(30 * 19 / 39)
    assert "| model | 10.0 | 14.6 | 1.50 | 19 | 12 |" in (tmp_path / "out" / "evaluation.md").read_text()
    both = lrmil("evaluate", table, "-o", tmp_path / "both", "--slides", slides, *named, "--json", *FAST)
    mine, theirs = (r.records[0]["models"][0]["metrics"] for r in (said, both))
    for name, own in mine.items():
        assert own["value"] == pytest.approx(theirs[name]["value"], rel=1e-6)
    assert lrmil("evaluate", folder, "-o", tmp_path / "x", *FAST).code == 2
    wrong = slides_of(tmp_path, known.assign(amount=known["amount"] + 1, months=known["months"] * 2), "wrong.csv")
    said = lrmil("evaluate", table, "-o", tmp_path / "x", "--slides", wrong)
    assert said.code == 3 and "correct one of them" in said.err and "slide 's0' is " in said.err


def test_patients_with_several_slides(tmp_path, lrmil, unpainted):
    """Curves and ratios are of patients; two slides that say the same are one patient's."""
    rows = risks(cohort(40), 0.5)
    twice = pd.concat([rows, rows.assign(slide_id=rows["slide_id"] + "b")])
    found = []
    for name, own, level in (("one", rows, "slide"), ("two", twice, "slide"), ("mean", twice, "patient")):
        table = write_target(tmp_path / f"{name}.predictions.csv", own, "survival")
        said = lrmil("evaluate", table, "-o", tmp_path / name, "--level", level, "--json", *FAST)
        found.append(said.records[0]["models"][0])
    one, two, mean = found
    assert (one["n"], two["n"], mean["n"]) == (40, 80, 40) and two["patients"] == 40
    assert one["survival"] == two["survival"] == mean["survival"]
    assert mean["metrics"]["c_uno"]["value"] == pytest.approx(one["metrics"]["c_uno"]["value"])
    torn = twice.assign(time=np.arange(80.0))
    said = lrmil("evaluate", write_target(tmp_path / "torn.predictions.csv", torn, "survival"), "-o", tmp_path / "x")
    assert said.code == 3 and "differ in time or event" in said.err


def test_what_is_refused(tmp_path, lrmil, monkeypatch, unpainted):
    known = cohort(30)
    number = write_target(tmp_path / "n.predictions.csv", numbers(known, 1), "regression")
    risk = write_target(tmp_path / "r.predictions.csv", risks(known, 1), "survival")
    classes = write_predictions(tmp_path / "c.predictions.csv", TRUTH, [0.1, 0.2, 0.6, 0.55, 0.8, 0.9])
    out = ["-o", tmp_path / "x", *FAST]
    bare = tmp_path / "bare.csv"
    bare.write_text("slide,label\ns0.svs,tumor\n")
    for arguments, code, says in (
        ((number, risk), 3, "predictions of months and died (survival), but"),
        ((number, classes), 3, "compare models of one task"),
        ((number, "--horizon", "3"), 2, "--horizon is about survival"),
        ((classes, "--adjust", "age"), 2, "--adjust is about survival"),
        ((risk, "--positive", "high"), 2, "--positive is about classification"),
        ((risk, "--profile", "external", "--slides", bare), 2, "--profile is about classification"),
        ((risk, "--metric", "mae"), 2, "choose one of c_harrell"),
        ((risk, "--horizon", "-1"), 2, "give a time after the start"),
        ((risk, "--adjust", "age"), 2, "add --slides"),
        ((risk, "--adjust", "grade", "--slides", slides_of(tmp_path, known)), 2, "no such column"),
        ((number, "--by", "label", "--slides", tmp_path / "slides.csv"), 2, "that is what is predicted"),
        ((risk, "--slides", bare), 3, "no column 'months'"),
        ((number, "--slides", bare, "--label", "label"), 3, "tumor"),
    ):
        said = lrmil("evaluate", *arguments, *out)
        assert said.code == code and says in said.err and said.err.strip().count("\n") <= 1, (arguments, said.err)
    model = write_student(tmp_path / "m.safetensors", known, "regression", {"distilled": 1})
    said = lrmil("calibrate", model, model, "-o", tmp_path / "new.safetensors")
    assert said.code == 3 and "only probabilities of classes are calibrated" in said.err
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    said = lrmil("evaluate", risk, *out)
    assert said.code == 5 and "pip install 'lrmil-cli[survival]'" in said.err
    assert lrmil("evaluate", number, *out).code == 0  # which needs no such library


def test_few_events_are_warned_of_in_the_report(tmp_path, lrmil, unpainted):
    known = cohort(30)
    known["died"] = (np.arange(30) < 9).astype(int)
    table = write_target(tmp_path / "r.predictions.csv", risks(known, 1), "survival")
    said = lrmil("evaluate", table, "-o", tmp_path / "o", *FAST)
    assert said.code == 0 and "only 9 events" in said.err
    assert "Warning: r: only 9 events among those who are judged" in (tmp_path / "o" / "evaluation.md").read_text()


@pytest.mark.parametrize(("kind", "metric", "better"), [("regression", "mae", -1), ("survival", "c_harrell", 1)])
def test_the_receipt(kind, metric, better, tmp_path, lrmil, monkeypatch, unpainted):
    known = cohort(150)
    noise = {"teacher": 0.1, "lr_only": 4.0, "distilled": 0.4}
    model = write_student(tmp_path / "m.safetensors", known, kind, noise, seeds=(0.4, 0.6))
    said = lrmil("evaluate", model, "-o", tmp_path / "out", "--receipt", *FAST)
    assert said.code == 0, said.err
    receipt = json.loads((tmp_path / "out" / "m.receipt.json").read_text())
    assert list(receipt["models"]) == ["teacher", "lr_only", "distilled"] and receipt["target"]["kind"] == kind
    own = {n: m["metrics"][metric]["value"] for n, m in receipt["models"].items()}
    gain = {(d["a"], d["b"]): d[metric] for d in receipt["differences"]}["distilled", "lr_only"]
    assert gain["value"] == pytest.approx(own["distilled"] - own["lr_only"]) and better * gain["value"] > 0
    assert receipt["seeds"]["count"] == 2 and set(receipt["seeds"]["models"]) == {"distilled", "lr_only"}
    page = (tmp_path / "out" / "m.receipt.md").read_text()
    assert "Against the LR-only student the distilled student has " in page and "(better)" in page
    shown = "| distilled student | high |" if kind == "survival" else "| distilled student | "
    assert shown in page and ("Hazard ratios" in page) == (kind == "survival")
    same = {"lr_only": 0.5, "distilled": 0.5}
    write_student(tmp_path / "s.safetensors", known, kind, same)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    from lrmil_cli.evaluation.receipt import write_receipt

    alike = write_receipt(tmp_path / "s.safetensors", draws=40)
    assert list(alike["models"]) == ["lr_only", "distilled"] and alike["seeds"] is None
    page = (tmp_path / "s.receipt.md").read_text()
    assert ("Not computed: curves and hazard ratios need lifelines" in page) == (kind == "survival")
    write_target(tmp_path / "s.teacher.predictions.csv", risks(known, 1), "survival", of="another run")
    with pytest.raises(Exception, match="not of the run that made the model"):
        write_receipt(tmp_path / "s.safetensors", draws=4)
