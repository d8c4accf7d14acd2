"""``predict`` with what is to be looked at after it, and ``evaluate`` of the same folder."""

import json

import pandas as pd
import pytest


def test_predict_leaves_a_table_and_pages(lrmil, chain, cohort, tmp_path):
    out = tmp_path / "results"
    slides = [cohort.parent / "slides" / f"s{n}.svs" for n in (12, 13)]
    said = lrmil("predict", *slides, "-m", chain.model, "-o", out, "--report", "--geojson", out, "--top-tiles", out)
    assert said.code == 0 and "index.html" in said.err
    rows = pd.read_csv(out / "predictions.csv", comment="#").set_index("slide_id")
    for slide_id in ("s12", "s13"):
        record = json.loads((out / f"{slide_id}.prediction.json").read_text())
        assert rows.loc[slide_id, "probability"] == pytest.approx(record["probabilities"][record["predicted"]])
        assert rows.loc[slide_id, "tiles"] == record["tiles"]
        assert all((out / name).is_file() for name in rows.loc[slide_id, "files"].split("|"))
        page = (out / f"{slide_id}.html").read_text(encoding="utf-8")
        assert f"{slide_id}.heatmap.geojson.gz" in page and len(page) < 2_000_000
        assert f'href="{slide_id}.html"' in (out / "index.html").read_text(encoding="utf-8")
    # Another run into the folder: its row comes in, those that are there stay, pages that are up to date too.
    before = {p.name: p.read_bytes() for p in out.glob("s*")}
    more = cohort.parent / "slides" / "s14.svs"
    said = lrmil("predict", *slides, more, "-m", chain.model, "-o", out, "--report", "--json")
    assert [r["status"] for r in said.records] == ["skipped", "skipped", "ok"]
    assert before == {name: (out / name).read_bytes() for name in before}
    assert len(pd.read_csv(out / "predictions.csv", comment="#")) == 3
    # The records are evaluated, whichever of both is named.
    for source in (out, out / "predictions.csv"):
        judged = lrmil(
            "evaluate", source, "--slides", cohort, "--bootstrap", 20, "-o", tmp_path / f"judged-{source.name}"
        )
        assert judged.code == 0, judged.err
    # Nothing is written where nothing is to be, and a teacher keeps its predictions.
    assert lrmil("predict", more, "-m", chain.model, "-o", "-", "--report").code == 2
    table = (chain.teacher / "predictions.csv").read_bytes()
    said = lrmil("predict", more, "-m", chain.model, "-o", chain.teacher)
    assert said.code == 2 and "predictions.csv" in said.err and not (chain.teacher / "s14.prediction.json").exists()
    assert (chain.teacher / "predictions.csv").read_bytes() == table
