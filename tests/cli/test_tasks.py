"""Numbers and survival from the table of slides to the answer: teacher, student, receipt, prediction."""

import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from lrmil_cli.app import run
from lrmil_cli.files.tables import read_table
from lrmil_cli.files.tensors import load_tensors
from lrmil_cli.heads.checkpoint import load_head
from tests.cli.made_cohort import make_cohort

pytestmark = pytest.mark.usefixtures("all_unpainted")

TASKS = {
    "reg": ["--task", "regression", "--label", "severity"],
    "nll": ["--task", "survival"],
    "cox": ["--task", "survival", "--loss", "cox", "--risk-set", "8"],
}
#: One with an LR-only student, and one without graphs, which take seconds.
STUDENT = {"reg": ["--no-baseline"], "nll": ["--baseline-encoder", "demo-vit"], "cox": ["--no-baseline", "--no-onnx"]}
HEAD = ["--epochs", "6", "--lr", "1e-3", "--quiet"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A cohort; of each task a teacher and a distilled student of two folds."""
    at = make_cohort(tmp_path_factory.mktemp("tasks"), 48)
    lines = [["match", "lr-tiles", "hr-tiles", "-o", "pairs", "--quiet"]]
    for name, task in TASKS.items():
        lines.append(["train-teacher", "slides.csv", "--features", "hr", "--folds", "2", *task, *HEAD, "-o", name])
        lines.append(["distill-student", "slides.csv", "--tiles", "lr-tiles", "--pairs", "pairs", "--encoder",
                      "demo-vit", "--teacher", name, "--lr-features", "lr", *HEAD, *STUDENT[name],
                      "-o", f"{name}.safetensors"])  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(at)
        for line in lines:
            assert run(line) == 0, line
    return at


def heads_by_hand(made, name, fold):
    """Header and logits [n, K] of a teacher's head for the test slides of a fold, by torch alone."""
    from lrmil_cli.files.features import read_features

    header, head = load_head(made / name / f"fold{fold}" / "head.safetensors")
    rows = read_table(made / name / "predictions.csv", "predictions")[1]
    rows = rows[rows["fold"] == fold]
    with torch.inference_mode():
        bags = [read_features(made / "hr" / f"{s}.h5").features for s in rows["slide_id"]]
        return header, rows, np.array([head(torch.from_numpy(b)).logits.double().numpy() for b in bags])


def test_the_out_of_fold_table_holds_what_the_heads_say(made):
    known = pd.read_csv(made / "slides.csv").set_index("slide_id")
    header, rows, logits = heads_by_hand(made, "reg", 1)
    own = header["outputs"]
    train = known.loc[header["train"], "severity"]
    assert own == pytest.approx({"mean": train.mean(), "sd": train.std(ddof=0)})
    np.testing.assert_allclose(rows["predicted"], own["mean"] + own["sd"] * logits[:, 0], rtol=1e-5)
    assert rows["label"].tolist() == known.loc[rows["slide_id"], "severity"].tolist()

    header, rows, logits = heads_by_hand(made, "nll", 2)
    own, train = header["outputs"], known.loc[header["train"]]
    np.testing.assert_allclose(
        own["borders"], np.quantile(train.loc[train["event"] == 1, "time"], [0.25, 0.5, 0.75]), rtol=1e-9
    )
    alive = np.cumprod(1 - 1 / (1 + np.exp(-(logits + own["offset"]))), axis=1)
    np.testing.assert_allclose(rows["risk"], -alive.sum(1), rtol=1e-5)
    assert (rows["group"] == np.where(rows["risk"] > own["cut"], "high", "low")).all()
    about, _ = read_table(made / "nll" / "predictions.csv", "predictions")
    columns = [f"survival_{t:.6g}" for t in about["times"]]
    last = min(load_head(made / "nll" / f"fold{k}" / "head.safetensors")[0]["outputs"]["borders"][-1] for k in (1, 2))
    assert about["times"][-1] == last and (np.diff(rows[columns], axis=1) <= 0).all()
    by_hand = [np.interp(about["times"], [0, *own["borders"]], [1, *s[:-1]]) for s in alive]
    np.testing.assert_allclose(rows[columns], by_hand, rtol=1e-5)

    header, rows, logits = heads_by_hand(made, "cox", 1)
    own = header["outputs"]
    np.testing.assert_allclose(rows["risk"], logits[:, 0] - own["centre"], rtol=1e-4, atol=1e-6)
    hazard = np.exp(rows["risk"].to_numpy())[:, None] * np.array(own["baseline"])
    about, _ = read_table(made / "cox" / "predictions.csv", "predictions")
    by_hand = [np.interp(about["times"], [0, *own["borders"]], [1, *s]) for s in np.exp(-hazard)]
    np.testing.assert_allclose(rows[[f"survival_{t:.6g}" for t in about["times"]]], by_hand, rtol=1e-4)


def test_teachers_learn_and_students_follow(made):
    for name, metric, least in (("reg", "r2", 0.3), ("nll", "c_harrell", 0.6), ("cox", "c_harrell", 0.6)):
        teacher = json.loads((made / name / "teacher.json").read_text())["metrics"][metric]
        header = load_tensors(made / f"{name}.safetensors", "model")[0]
        assert teacher > least and header["classes"] == [] and len(header["outputs"]) == 2, name
        for k, own in enumerate(header["outputs"], 1):  # the student speaks of the teacher's intervals, in its unit
            theirs = load_head(made / name / f"fold{k}" / "head.safetensors")[0]["outputs"]
            same = ("mean", "sd") if name == "reg" else ("borders",)
            assert [own[n] for n in same] == [theirs[n] for n in same]
        curves = pd.read_csv(made / f"{name}.curves.csv", comment="#")
        assert {"train_bag", "train_bag_kd", "train_soft", "train_hard"} <= set(curves)
        assert (made / f"{name}.receipt.html").exists()


@pytest.mark.parametrize("name", TASKS)
def test_a_slide_gets_an_answer_the_same_by_torch_and_onnx(made, name, slide, tmp_path, lrmil):
    model = str(made / f"{name}.safetensors")
    for runtime in ("torch", "auto"):  # graphs on a CPU, where there are any
        out = lrmil("predict", slide, "-m", model, "--runtime", runtime, "-o", tmp_path / runtime, "--report",
                             "--overlay", tmp_path / runtime / "a.png", "--geojson", tmp_path / runtime)  # fmt: skip
        assert out.code == 0, out.err
    onnx, by_torch = (json.loads(next((tmp_path / r).glob("*.prediction.json")).read_text()) for r in ("auto", "torch"))
    assert onnx["runtime"] == ("torch" if name == "cox" else "onnx")
    assert "probabilities" not in onnx and onnx["target"]["kind"] in TASKS[name]
    told = ("predicted", "folds") if name == "reg" else ("risk", "folds", "survival", "times", "cut")
    for key in told:
        assert onnx[key] == pytest.approx(by_torch[key], abs=1e-4), key
    page = next(p for p in (tmp_path / "auto").glob("*.html") if p.name != "index.html").read_text(encoding="utf-8")
    if name == "reg":
        assert onnx["predicted"] == pytest.approx(np.mean(onnx["folds"])) and f"{onnx['predicted']:.4g}" in page
    else:
        assert onnx["risk"] == pytest.approx(np.mean(onnx["folds"]))
        assert onnx["group"] == ("high" if onnx["risk"] > onnx["cut"] else "low") and f"{onnx['group']} risk" in page
        assert all(a >= b for a, b in zip([1.0, *onnx["survival"]], onnx["survival"]))
    rows = read_table(tmp_path / "auto" / "predictions.csv", "answers")[1]
    assert rows["predicted"].tolist() == [str(onnx["predicted"])] or name == "reg"
    assert lrmil("verify", model).code == 0 and lrmil("info", model).code == 0


def test_what_speaks_of_classes_is_refused_by_name(made, slide, tmp_path, lrmil):
    model = made / "cox.safetensors"
    for option in (["--coverage", "0.9"], ["--confidence", "0.9", "--abstain"], ["--max-spread", "1", "--abstain"]):
        out = lrmil("predict", slide, "-m", model, "-o", tmp_path, *option)
        assert out.code == 2 and option[0] in out.err and "learned time and event (survival)" in out.err
    out = lrmil("predict", slide, "-m", model, "-o", tmp_path, "--escalate", made / "reg", "--hr-encoder", "demo-vit")
    assert out.code == 3 and "the teacher learned severity (regression), the model time and event" in out.err


def teacher_by_hand(made, name, slide, tmp_path, lrmil):
    """Rows of the HR tiles that a second look read, and what each of the teacher's heads says of them, by torch."""
    from lrmil_cli.files.features import read_features

    assert lrmil("tile", slide, "--mpp", "0.5", "--tile-px", "64", "-o", tmp_path / "t.csv").code == 0
    assert lrmil("embed", tmp_path / "t.csv", "--encoder", "demo-vit", "-o", tmp_path / "f.h5").code == 0
    hr = read_table(next(tmp_path.glob("looked/*.hr.attention.csv")), "attention")[1]
    bag, corners = read_features(tmp_path / "f.h5"), {(int(x), int(y)) for x, y in zip(hr["x"], hr["y"])}
    read = [tuple(map(int, xy)) in corners for xy in bag.coords]
    heads = [load_head(made / name / f"fold{k}" / "head.safetensors") for k in (1, 2)]
    with torch.inference_mode():
        logits = [head(torch.from_numpy(bag.features[read])).logits.double().numpy() for _, head in heads]
    return hr, [(header["outputs"], z) for (header, _), z in zip(heads, logits)]


def looked_again(made, name, slide, tmp_path, lrmil, *options):
    """The prediction of a slide whose first answer is in doubt."""
    out = lrmil("predict", slide, "-m", made / f"{name}.safetensors", "--escalate", made / name,
                         "--hr-encoder", "demo-vit", "--budget", "2", "-o", tmp_path / "looked", *options)  # fmt: skip
    assert out.code == 0, out.err
    return json.loads(next((tmp_path / "looked").glob("*.prediction.json")).read_text())


def test_a_number_whose_heads_differ_is_asked_of_the_teacher(made, slide, tmp_path, lrmil):
    assert lrmil("predict", slide, "-m", made / "reg.safetensors", "-o", tmp_path / "plain").code == 0
    plain = json.loads(next((tmp_path / "plain").glob("*.prediction.json")).read_text())
    sure = looked_again(made, "reg", slide, tmp_path, lrmil, "--max-spread", "1e6", "--abstain")
    assert sure["answered_at"] == "lr" and "differ" not in sure["uncertain"]
    again = looked_again(made, "reg", slide, tmp_path, lrmil, "--max-spread", "0", "--abstain", "--overwrite")
    hr, heads = teacher_by_hand(made, "reg", slide, tmp_path, lrmil)
    assert again["answered_at"] == "hr" and again["tiles_read"]["hr"] == len(hr) > 0
    folds = [own["mean"] + own["sd"] * z[0] for own, z in heads]
    assert again["folds"] == pytest.approx(folds, rel=1e-4) and again["predicted"] == pytest.approx(
        np.mean(again["folds"])
    )
    assert again["escalation"]["lr"]["predicted"] == pytest.approx(plain["predicted"], rel=1e-4)
    assert again["escalation"]["hr"]["predicted"] == again["predicted"]
    assert "differ by a standard deviation of" in again["uncertain"] and "more than 0" in again["uncertain"]


def test_a_survival_in_doubt_is_told_with_the_teachers_curves_and_cuts(made, slide, tmp_path, lrmil, monkeypatch):
    from lrmil_cli.inference import second_look

    real, asked = second_look.in_doubt, []

    def first_time(*args):
        reason, said = real(*args)
        asked.append(reason)
        return ("asked for" if len(asked) == 1 else reason), said

    monkeypatch.setattr(second_look, "in_doubt", first_time)
    again = looked_again(made, "nll", slide, tmp_path, lrmil)
    hr, heads = teacher_by_hand(made, "nll", slide, tmp_path, lrmil)
    assert again["answered_at"] == "hr" and len(asked) == 2
    risks = [-np.cumprod(1 - 1 / (1 + np.exp(-(z + own["offset"])))).sum() for own, z in heads]
    assert again["folds"] == pytest.approx(risks, rel=1e-4)
    assert again["cut"] == pytest.approx(np.mean([own["cut"] for own, _ in heads]))
    groups = {risk > own["cut"] for risk, (own, _) in zip(risks, heads)}
    assert (asked[1] is None) == (len(groups) == 1) == again["escalation"]["hr"]["agree"]


@pytest.fixture
def table(made, tmp_path):
    """Runs train-teacher on a changed table."""
    rows = pd.read_csv(made / "slides.csv")

    def train(changed, *options, lrmil):
        changed(rows)
        rows.to_csv(tmp_path / "slides.csv", index=False)
        line = ["train-teacher", tmp_path / "slides.csv", "--features", made / "hr", "-o", tmp_path / "t"]
        return lrmil(*line, *options)

    return SimpleNamespace(rows=rows, train=train)


def set_cell(column, value, count=1):
    def change(rows):
        rows[column] = rows[column].astype(object)
        rows.loc[: count - 1, column] = value

    return change


@pytest.mark.parametrize(
    "change, options, said",
    [
        (set_cell("time", -3), ["--task", "survival"], "row 2, time -3 is negative"),
        (set_cell("event", 2), ["--task", "survival"], "row 2, event 2 is neither 1"),
        (set_cell("event", "dead"), ["--task", "survival"], "'dead' is not a number; write 1 (it happened) or 0"),
        (set_cell("time", ""), ["--task", "survival"], "1 slide without time or event, row 2"),
        (set_cell("event", 0, 48), ["--task", "survival"], "all 48 slides are censored"),
        (set_cell("event", 0, 40), ["--task", "survival", "--folds", "2"], "at least 10 are needed"),
        (set_cell("patient_id", "p1", 2), ["--task", "survival"], "patient 'p1' has slides with different times"),
        (set_cell("severity", 0.5, 48), ["--task", "regression", "--label", "severity"], "is 0.5 for all slides"),
        (set_cell("severity", "x"), ["--task", "regression", "--label", "severity"], "severity 'x' is not a number"),
        (lambda rows: None, ["--label", "severity"], "say --task regression"),
        (lambda rows: None, ["--task", "survival", "--time", "months"], "no column `months`"),
        (lambda rows: None, ["--task", "survival", "--head", "clam_sb"], "--head clam_sb"),
        (lambda rows: None, ["--task", "survival", "--loss", "huber"], "--loss huber"),
        (lambda rows: None, ["--task", "regression", "--time", "time"], "--time belongs to --task survival"),
        (lambda rows: None, ["--task", "survival", "--class-weights"], "--class-weights"),
    ],
)  # fmt: skip
def test_tables_that_cannot_be_learned_from(table, lrmil, change, options, said):
    out = table.train(change, *options, lrmil=lrmil)
    last = out.err.strip().splitlines()[-1]
    assert out.code in (2, 3) and said in last, out.err


def test_a_student_of_another_task_than_its_teacher_is_refused(made, tmp_path, lrmil):
    line = ["distill-student", made / "slides.csv", "--tiles", made / "lr-tiles", "--pairs", made / "pairs",
            "--encoder", "demo-vit", "--teacher", made / "nll", "--lr-features", made / "lr"]  # fmt: skip
    out = lrmil(*line, "-o", tmp_path / "m.safetensors", *TASKS["reg"])
    assert out.code == 3 and "learned time and event (survival)" in out.err
