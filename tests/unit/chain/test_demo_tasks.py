"""The demo of numbers and survival: what its run is told, and how its summary judges, beside what was planted."""

import numpy as np
import pandas as pd
import pytest

from lrmil_cli.chain.demo import demo_settings, demo_task, summarize, table
from lrmil_cli.demo.severity import plan_severity
from lrmil_cli.errors import UsageError
from lrmil_cli.files.header import make_header, step
from lrmil_cli.files.manifest import read_manifest
from lrmil_cli.files.manifest_rows import Labels
from lrmil_cli.files.tables import write_table

FILES = ("teacher/predictions.csv", "model.lr-only.predictions.csv", "model.predictions.csv")


def test_what_a_run_is_told(tmp_path):
    number, survival = (demo_settings(tmp_path / "s.csv", 0, demo_task(k)).options for k in ("regression", "survival"))
    assert (number["task"], number["label"], number["loss"]) == ("regression", "severity", "huber")
    assert (survival["task"], survival["loss"], survival["risk-set"]) == ("survival", "cox", 8)
    assert "task" not in demo_settings(tmp_path / "s.csv", 0).options
    with pytest.raises(UsageError, match="--task grading: choose one of classification, regression, survival"):
        demo_task("grading")


@pytest.mark.parametrize("kind", ["regression", "survival"])
def test_the_summary_judges_by_the_task(tmp_path, kind):
    """A teacher that knows the severity, students that know it with noise; nothing has a lesion to look at."""
    rows = pd.DataFrame(plan_severity(30, 0, kind))
    cohort = tmp_path / "cohort"
    (cohort / "truth").mkdir(parents=True)
    rows.drop(columns="share").to_csv(cohort / "slides.csv", index=False)
    rows[["slide_id", "share"]].to_csv(cohort / "truth" / "severity.csv", index=False)
    for slide_id in rows["slide_id"]:
        (cohort / "truth" / f"{slide_id}.geojson").write_text('{"type": "FeatureCollection", "features": []}')
    task, test = demo_task(kind), rows[rows["split"] == "test"]
    header = make_header("predictions", settings={}, history=[step("t", {}, {})], target=task.as_json())
    for n, name in enumerate(FILES):
        said = test["share"] + n * np.random.default_rng(n).normal(size=len(test))
        risk = {"risk": said, "group": "low"}
        own = {"label": test["severity"], "predicted": 36 * said} if kind == "regression" else risk
        own |= {c: test[c] for c in ("time", "event") if c in test}
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write_table(tmp_path / name, header, test[["slide_id", "patient_id"]].assign(fold=1, **own))
    for side in ("hr", "lr"):
        (tmp_path / f"tiles-{side}").mkdir()
    manifest = read_manifest(cohort / "slides.csv", labels=Labels(task.label, task=task, asked=True), need_slides=False)
    summary = summarize(tmp_path, manifest, 0, {"tile-lr": 1.0})
    metric = "r2" if kind == "regression" else "c_harrell"
    assert summary["target"]["kind"] == kind and summary["attention_auc"] is None
    assert summary["teacher"][metric] > 0.8 > summary["distilled"][metric]
    lines = table(summary).splitlines()
    assert lines[0].split()[-4:-2] == (["R2", "MAE"] if kind == "regression" else ["C-index", "Uno's"])
    if kind == "survival":
        assert summary["planted"] == summary["teacher"] and "planted severity itself" in lines[-2]
