"""``predictions.csv`` of a results folder."""

from concurrent.futures import ThreadPoolExecutor

import pandas as pd
import pytest

from lrmil_cli.errors import UsageError
from lrmil_cli.files.tables import read_table
from lrmil_cli.inference.answers import answer_row, note_answers, read_answers


def record(slide_id: str, p: float, digest: str = "d", **more) -> dict:
    return {
        "slide": {"id": slide_id, "path": f"/slides/{slide_id}.svs"},
        "predicted": "b, so" if p > 0.5 else "a",
        "probabilities": {"a": 1 - p, "b, so": p},
        "tiles": 12,
        "seconds": {"read": 1.0, "encode": 0.5},
        "model": {"path": "/models/m.safetensors"},
        "history": [{"digest": digest}],
        **more,
    }


def test_rows_of_other_runs_stay_and_those_of_a_slide_are_replaced(tmp_path):
    def note(*records, files=()):
        note_answers(tmp_path, [answer_row(r, files, tmp_path) for r in records])

    note(record("s2", 0.75), record("s1", 0.25), files=[tmp_path / "s2.prediction.json"])
    note(record("s1", 0.875, digest="e", uncertain="heads, that disagree"))
    note(record("s2", 0.75), files=[tmp_path / "maps" / "s2.geojson.gz"])
    header, rows = read_table(tmp_path / "predictions.csv", "answers")
    assert header["history"][-1]["command"] == "predict"
    assert rows["slide_id"].tolist() == ["s1", "s2"] and rows["predicted"].tolist() == ["b, so"] * 2
    assert rows["probability"].tolist() == [0.875, 0.75] and rows["prob_b, so"].tolist() == [0.875, 0.75]
    assert (
        rows["uncertain"].fillna("").tolist() == ["heads, that disagree", ""] and rows["seconds"].tolist() == [1.5] * 2
    )
    assert rows["files"].tolist()[1] == "maps/s2.geojson.gz|s2.prediction.json", "what earlier runs made of the same"
    assert pd.read_csv(tmp_path / "predictions.csv", comment="#")["tiles"].tolist() == [12, 12]


def test_jobs_that_end_at_once_lose_no_row(tmp_path):
    rows = [answer_row(record(f"s{n}", n / 20), [], tmp_path) for n in range(12)]
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda row: note_answers(tmp_path, [row]), rows))
    assert sorted(read_answers(tmp_path)[0]) == sorted(f"s{n}" for n in range(12))


@pytest.mark.parametrize(
    "text", ["slide,mine\n", '# lrmil {"kind": "predictions", "version": 1, "history": []}\nslide_id\n']
)
def test_a_table_of_somebody_else_is_not_replaced_unasked(tmp_path, text):
    (tmp_path / "predictions.csv").write_text(text)
    row = answer_row(record("s", 0.5), [], tmp_path)
    with pytest.raises(UsageError, match="add --overwrite"):
        note_answers(tmp_path, [row])
    assert (tmp_path / "predictions.csv").read_text() == text
    note_answers(tmp_path, [row], overwrite=True)
    assert list(read_answers(tmp_path)[0]) == ["s"]
