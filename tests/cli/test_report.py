"""``predict`` with what is to be looked at after it, and ``evaluate`` of the same folder."""

import json

import numpy as np
import pandas as pd
import pytest
from PIL import Image


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


def test_an_interrupt_while_the_index_is_written_leaves_one_of_all_that_is_done(
    lrmil, chain, cohort, tmp_path, monkeypatch
):
    from lrmil_cli.commands import report_pages

    out, slides = tmp_path / "results", cohort.parent / "slides"
    line = ["predict", "-m", chain.model, "-o", out, "--report"]
    assert lrmil(*line, slides / "s12.svs").code == 0
    whole, calls = report_pages.write_index, []

    def stopped(*args):
        calls.append(args)
        if len(calls) == 1:
            raise KeyboardInterrupt
        whole(*args)

    monkeypatch.setattr(report_pages, "write_index", stopped)
    assert lrmil(*line, slides / "s13.svs").code == 130
    assert list(pd.read_csv(out / "predictions.csv", comment="#")["slide_id"]) == ["s12", "s13"]
    page = (out / "index.html").read_text(encoding="utf-8")
    assert 'href="s12.html"' in page and 'href="s13.html"' in page


@pytest.fixture
def others(chain, tmp_path):
    """Two further models beside the chain's: of the same encoder, and of another one."""
    from lrmil_cli.models.model_file import load_model, save_model

    paths = []
    for name in ("second", "third"):
        model = load_model(chain.model)
        for p in model.heads[0].parameters():
            p.data *= 0.7
        if name == "third":
            for p in model.encoders[0].parameters():
                p.data *= 1.01
        header = {k: v for k, v in model.header.items() if k not in ("encoders", "heads", "encoder_of", "content")}
        header["history"] = [*header["history"][:-1], header["history"][-1] | {"digest": name * 4}]
        paths.append(tmp_path / f"{name}.safetensors")
        save_model(paths[-1], header, model.encoders, model.heads, model.encoder_of)
    return paths


def test_several_models_answer_from_one_reading(lrmil, chain, cohort, others, tmp_path, monkeypatch):
    from lrmil_cli.inference import low_resolution

    calls = []
    embed = low_resolution.embed_tiles
    monkeypatch.setattr(low_resolution, "embed_tiles", lambda e, *a, **k: calls.append(len(e)) or embed(e, *a, **k))
    out, slides = tmp_path / "results", [cohort.parent / "slides" / f"s{n}.svs" for n in (12, 13)]
    models = [w for m in (chain.model, *others) for w in ("-m", m)]
    line = ["predict", *slides, *models, "-o", out, "--report", "--geojson", tmp_path / "maps", "--runtime", "torch"]
    said = lrmil(*line, "--json")
    assert said.code == 0, said.err
    assert calls == [2, 2], "two encoders of three models, once a slide"
    names = ["model", "second", "third"]
    for name, path in zip(names, (chain.model, *others)):
        alone = tmp_path / "alone" / name
        assert lrmil("predict", *slides, "-m", path, "-o", alone, "--runtime", "torch").code == 0
        for slide_id in ("s12", "s13"):
            one, own = (json.loads((f / f"{slide_id}.prediction.json").read_text()) for f in (alone, out / name))
            assert one["probabilities"] == own["probabilities"] and one["folds_raw"] == own["folds_raw"]
            tables = [(f / f"{slide_id}.attention.csv").read_text().partition("\n")[2] for f in (alone, out / name)]
            assert tables[0] == tables[1]
            assert (tmp_path / "maps" / name / f"{slide_id}.heatmap.geojson.gz").exists()
    rows = pd.read_csv(out / "predictions.csv", comment="#")
    wide = rows.pivot(index="slide_id", columns="model", values="prob_tumor")
    assert list(wide.columns) == names and wide.notna().all(axis=None) and len(rows) == 6
    assert all((out / f).is_file() for files in rows["files"] for f in files.split("|") if ".." not in f)
    assert said.records[0]["models"]["third"]["prediction"]["probabilities"]["tumor"] == pytest.approx(
        wide.loc["s12", "third"]
    )
    page = (out / "s12.html").read_text(encoding="utf-8")
    assert len(page) < 2_000_000 and all(page.count(f">{name}</") >= 2 for name in names)
    index = (out / "index.html").read_text(encoding="utf-8")
    assert all(f'<button type="button">{name}</button>' in index for name in names)
    # Again: nothing to do; what is gone of one model is made by that one alone.
    calls.clear()
    assert "second: " in lrmil(*line).err and not calls
    (out / "second" / "s13.attention.csv").unlink()
    assert lrmil(*line).code == 0 and calls == [1]
    assert lrmil("report", out).code == 0
    judged = lrmil("evaluate", out / "second", "--slides", cohort, "--bootstrap", 20, "-o", tmp_path / "judged")
    assert judged.code == 0, judged.err
    both = lrmil("evaluate", out, "--slides", cohort, "-o", tmp_path / "both")
    assert both.code == 3 and f"give the folder of one, such as {out / 'model'}" in both.err
    # What cannot be meant.
    twice = tmp_path / "copy" / chain.model.name
    for more, says in (
        (["-m", chain.model, "-m", chain.model, "-o", tmp_path / "x"], "both be called"),
        ([*models, "-o", "-"], "of one model"),
        ([*models, "-o", tmp_path / "x", "--overlay", tmp_path / "x.png"], "several models"),
        ([*models, "-o", tmp_path / "x", "--escalate", chain.teacher], "one --model"),
        (["-m", chain.model, "-o", out], "of the models model, second, third"),
    ):
        refused = lrmil("predict", slides[0], *more)
        assert refused.code == 2 and says in refused.err, refused.err
    assert not twice.exists() and not (tmp_path / "x").exists()


def test_a_finer_map_beside_the_answer(lrmil, chain, cohort, tmp_path):
    slide = cohort.parent / "slides" / "s13.svs"
    plain, fine = tmp_path / "plain", tmp_path / "fine"
    assert lrmil("predict", slide, "-m", chain.model, "-o", plain).code == 0
    line = ["predict", slide, "-m", chain.model, "-o", fine, "--fine", "2", "--geojson", fine, "--report"]
    line += ["--overlay", fine, "--format", "svg"]
    said = lrmil(*line)
    assert said.code == 0 and "the finer map reads" in said.err, said.err
    tables = [(f / "s13.attention.csv").read_text().partition("\n")[2] for f in (plain, fine)]
    assert tables[0] == tables[1]
    cells = pd.read_csv(fine / "s13.fine.attention.csv", comment="#")
    tiles = pd.read_csv(fine / "s13.attention.csv", comment="#")
    assert set(cells["width"]) == {256} and set(tiles["width"]) == {512} and cells["tiles"].max() == 4
    assert cells["attention"].sum() == pytest.approx(1) and np.isclose(cells["multiple"].mean(), 1, atol=0.35)
    for name in ("s13.fine.heatmap.geojson.gz", "s13.fine.overlay.svg", "s13.overlay.svg", "s13.heatmap.geojson.gz"):
        assert (fine / name).is_file(), name
    page = (fine / "s13.html").read_text(encoding="utf-8")
    assert "Finer map" in page and "s13.fine.overlay.svg" in page
    again = lrmil(*line, "--json")
    assert again.records[0]["status"] == "skipped" and "fine" in again.records[0]["files"]
    dry = [lrmil("predict", slide, "-m", chain.model, "-o", tmp_path / "x", "--dry-run", "--json", *more).records[0]
           for more in ([], ["--fine", "2"])]  # fmt: skip
    assert dry[1]["tiles"] > 3 * dry[0]["tiles"] and dry[1]["expected_seconds"] > dry[0]["expected_seconds"]
    for more, says in ((["--fine", "3", "-o", fine], "2 or 4"), (["--fine", "2", "-o", "-"], "a folder")):
        refused = lrmil("predict", slide, "-m", chain.model, *more)
        assert refused.code == 2 and says in refused.err


@pytest.mark.parametrize("format", ["png", "svg", "pdf"])
def test_pictures_in_every_format_know_how_they_were_made(lrmil, chain, cohort, tmp_path, format):
    slide = cohort.parent / "slides" / "s13.svs"
    line = ["predict", slide, "-m", chain.model, "-o", tmp_path / "out", "--overlay", tmp_path / f"a.{format}"]
    assert lrmil(*line, "--dpi", "60").code == 0
    data = (tmp_path / f"a.{format}").read_bytes()
    assert data.startswith({"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}[format])
    if format == "png":
        with Image.open(tmp_path / "a.png") as picture:
            assert picture.width == 12 * 60
    assert lrmil(*line, "--dpi", "60").code == 0 and (tmp_path / f"a.{format}").read_bytes() == data
    other = lrmil(*line, "--dpi", "70")
    assert other.code == 2 and "--overwrite" in other.err
    assert lrmil(*line, "--dpi", "70", "--overwrite").code == 0 and (tmp_path / f"a.{format}").read_bytes() != data
