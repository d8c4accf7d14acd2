"""``predict --escalate``: the teacher reads 20x under the most attended 5x tiles, and only there."""

import gzip
import json
import shutil

import numpy as np
import pytest
import torch

from lrmil_cli.files.features import read_features
from lrmil_cli.files.tables import read_table
from lrmil_cli.heads.checkpoint import load_head
from lrmil_cli.slides.slide import open_slide
from tests.cli.test_bad_tiles import damage
from tests.conftest import blob_image, write_tiff


@pytest.fixture(scope="module")
def slides(chain):
    return [chain.manifest.parent / "slides" / f"s{i}.svs" for i in (12, 13)]


def record(folder, slide):
    return json.loads((folder / f"{slide.stem}.prediction.json").read_text())


def test_the_second_answer_is_the_teachers_on_the_tiles_under_the_budget(chain, slides, tmp_path, lrmil, monkeypatch):
    from lrmil_cli.inference import second_look as cascade

    encoded = []
    real = cascade.embed_tiles
    monkeypatch.setattr(
        cascade,
        "embed_tiles",
        lambda encoders, tiles, count, **k: encoded.append(count) or real(encoders, tiles, count, **k),
    )
    said = lrmil(
        "predict",
        *slides,
        "-m",
        chain.model,
        "--escalate",
        chain.teacher,
        "--budget",
        "3",
        "--confidence",
        "1",
        "-o",
        tmp_path,
        "--json",
        "--geojson",
        tmp_path / "maps",
    )
    assert said.code == 0, said.err
    for slide, out in zip(slides, said.records):
        own, lr = record(tmp_path, slide), read_table(tmp_path / f"{slide.stem}.attention.csv", "attention")[1]
        top = lr.sort_values("attention", ascending=False, kind="stable").head(3)
        _, hr = read_table(chain.tiles_hr / f"{slide.stem}.tiles.csv", "tiles")
        centre_x, centre_y = hr["x"] + hr["width"] / 2, hr["y"] + hr["height"] / 2
        under = np.any(
            [
                (centre_x > t.x) & (centre_x < t.x + t.width) & (centre_y > t.y) & (centre_y < t.y + t.height)
                for t in top.itertuples()
            ],
            axis=0,
        )
        bag = read_features(chain.teacher / "features" / f"{slide.stem}.h5")
        _, head = load_head(chain.teacher / "fold1" / "head.safetensors")
        with torch.inference_mode():
            expected = head(torch.from_numpy(bag.features[under]))
        p = torch.softmax(expected.logits.double(), 0).numpy()
        assert (
            own["answered_at"] == "hr"
            and own["tiles_read"] == {"lr": len(lr), "hr": int(under.sum())}
            and encoded.pop(0) == under.sum()
        )
        assert [own["probabilities"][c] for c in ("normal", "tumor")] == pytest.approx(p.tolist(), abs=1e-5)
        assert own["escalation"]["lr"]["probabilities"] != own["probabilities"]
        assert {"hr_tissue", "hr_read", "hr_encode", "hr_head"} < own["seconds"].keys()
        _, second = read_table(tmp_path / f"{slide.stem}.hr.attention.csv", "attention")
        assert (second[["x", "y"]].to_numpy() == hr[["x", "y"]].to_numpy()[under]).all()
        assert second["attention"].to_numpy() == pytest.approx(expected.attention.numpy(), abs=1e-6)
        assert out["prediction"]["answered_at"] == "hr" and set(out["files"]) == {"tiles", "hr.tiles"}
        document = json.loads(gzip.decompress((tmp_path / "maps" / f"{slide.stem}.hr.heatmap.geojson.gz").read_bytes()))
        assert len(document["features"]) == under.sum()
    again = lrmil(
        "predict",
        *slides,
        "-m",
        chain.model,
        "--escalate",
        chain.teacher,
        "--budget",
        "3",
        "--confidence",
        "1",
        "-o",
        tmp_path,
        "--json",
    )
    assert [r["status"] for r in again.records] == ["skipped"] * 2
    (tmp_path / "s12.hr.attention.csv").unlink()
    again = lrmil(
        "predict",
        *slides,
        "-m",
        chain.model,
        "--escalate",
        chain.teacher,
        "--budget",
        "3",
        "--confidence",
        "1",
        "-o",
        tmp_path,
        "--json",
    )
    assert [r["status"] for r in again.records] == ["ok", "skipped"] and (tmp_path / "s12.hr.attention.csv").exists()
    assert lrmil("predict", *slides, "-m", chain.model, "-o", tmp_path).code != 0  # other settings need --overwrite


def test_a_sure_answer_reads_nothing_more_and_is_the_plain_one(chain, slides, tmp_path, lrmil):
    assert lrmil("predict", slides[0], "-m", chain.model, "-o", tmp_path / "plain").code == 0
    assert (
        lrmil(
            "predict",
            slides[0],
            "-m",
            chain.model,
            "--escalate",
            chain.teacher,
            "--confidence",
            "0.01",
            "-o",
            tmp_path / "two",
        ).code
        == 0
    )
    plain, two = record(tmp_path / "plain", slides[0]), record(tmp_path / "two", slides[0])
    assert (
        two["answered_at"] == "lr" and two["tiles_read"]["hr"] == 0 and two["probabilities"] == plain["probabilities"]
    )
    assert (
        two["escalation"]["reason"] is None
        and "answered_at" not in plain
        and plain["tiles_read"] == {"lr": plain["tiles"]}
    )


def test_abstaining_is_a_status_of_its_own_and_evaluate_counts_it(chain, slides, tmp_path, lrmil):
    said = lrmil(
        "predict", *slides, "-m", chain.model, "--abstain", "--confidence", "1", "-o", tmp_path / "a", "--json"
    )
    assert said.code == 0 and [r["status"] for r in said.records] == ["uncertain"] * 2
    assert "below 1" in record(tmp_path / "a", slides[0])["uncertain"]
    said = lrmil(
        "predict", slides[0], "-m", chain.model, "--abstain", "--confidence", "0.01", "-o", tmp_path / "b", "--json"
    )
    assert said.records[0]["status"] == "ok" and record(tmp_path / "b", slides[0])["uncertain"] is None
    said = lrmil(
        "evaluate", tmp_path / "a", "--slides", chain.manifest, "-o", tmp_path / "e", "--json", "--bootstrap", "0"
    )
    assert said.code == 0, said.err
    reading = said.records[0]["models"][0]["reading"]
    assert reading["uncertain"] == 2 and reading["accuracy_of_the_sure"] is None and reading["curve"] is None
    assert "What was read" in (tmp_path / "e" / "evaluation.html").read_text()


def test_evaluate_draws_accuracy_against_tiles(chain, slides, tmp_path, lrmil):
    more = [chain.manifest.parent / "slides" / f"s{i}.svs" for i in (14, 15)]
    assert (
        lrmil(
            "predict",
            *slides,
            *more,
            "-m",
            chain.model,
            "--escalate",
            chain.teacher,
            "--confidence",
            "1",
            "-o",
            tmp_path / "p",
        ).code
        == 0
    )
    said = lrmil(
        "evaluate",
        f"cascade={tmp_path / 'p'}",
        "--slides",
        chain.manifest,
        "-o",
        tmp_path / "e",
        "--json",
        "--bootstrap",
        "0",
    )
    assert said.code == 0, said.err
    curve = said.records[0]["models"][0]["reading"]["curve"]
    records = [record(tmp_path / "p", s) for s in (*slides, *more)]
    assert curve["escalated"] == [0, 1, 2, 3, 4] and curve["hr_tiles"][-1] == pytest.approx(
        np.mean([r["tiles_read"]["hr"] for r in records])
    )
    truth = ["normal", "tumor", "normal", "tumor"]
    for end, side in ((0, "lr"), (-1, "hr")):
        said_there = [max(r["escalation"][side]["probabilities"].items(), key=lambda kv: kv[1])[0] for r in records]
        assert curve["accuracy"][end] == pytest.approx(np.mean([a == b for a, b in zip(said_there, truth)]))
    assert (tmp_path / "e" / "evaluation.reading.png").exists() and "HR tiles" in (
        tmp_path / "e" / "evaluation.md"
    ).read_text()


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--budget", "3"], "--escalate"),
        (["--max-spread", "1"], "--escalate"),
        (["--max-spread", "1", "--abstain", "--max-error", "0.1"], "--max-spread is about heads of a number"),
        (["--hr-encoder", "demo-vit"], "--escalate"),
        (["--confidence", "0.5"], "--abstain"),
        (["--abstain", "--confidence", "1.5"], "--confidence 1.5"),
    ],
)
def test_options_that_would_do_nothing_are_refused(chain, slides, tmp_path, lrmil, more, says):
    said = lrmil("predict", slides[0], "-m", chain.model, "-o", tmp_path / "p", *more)
    assert said.code == 2 and says in said.err and not (tmp_path / "p").exists()


def test_a_teacher_that_does_not_fit_is_refused_before_any_slide(chain, slides, tmp_path, lrmil):
    said = lrmil("predict", slides[0], "-m", chain.model, "-o", tmp_path / "p", "--escalate", tmp_path)
    assert said.code == 3 and "no teacher.json" in said.err
    said = lrmil(
        "predict",
        slides[0],
        "-m",
        chain.model,
        "-o",
        tmp_path / "p",
        "--escalate",
        chain.teacher,
        "--hr-encoder",
        chain.encoder,
    )
    assert said.code == 3 and "--hr-encoder" in said.err and not (tmp_path / "p").exists()


def test_where_no_hr_tile_can_be_decoded_the_first_answer_stays(chain, slides, tmp_path, lrmil):
    slide = tmp_path / "s13.svs"
    shutil.copy(slides[1], slide)
    with open_slide(slide) as opened:
        count = opened.blocks(0).rows * opened.blocks(0).cols
    # Corners stay: a slide whose first level does not even begin is no slide.
    damage(slide, 0, range(1, count - 1))
    args = ["predict", slide, "-m", chain.model, "--escalate", chain.teacher, "--confidence", "1", "--budget", "2"]
    assert lrmil(*args, "-o", tmp_path / "strict").code == 3
    said = lrmil(*args, "--on-bad-tile", "skip", "-o", tmp_path / "p")
    assert said.code == 0, said.err
    assert lrmil("predict", slide, "-m", chain.model, "-o", tmp_path / "plain").code == 0
    own, plain = record(tmp_path / "p", slide), record(tmp_path / "plain", slide)
    assert (
        own["answered_at"] == "lr"
        and own["escalation"]["hr"] is None
        and own["bad_tiles"] > 0
        and own["probabilities"] == plain["probabilities"]
    )


def test_upsampling_is_allowed_at_both_magnifications(chain, tmp_path, lrmil):
    slide = write_tiff(tmp_path / "coarse.svs", blob_image(1200, 900), mpp=1.0)
    args = ["predict", slide, "-m", chain.model, "--escalate", chain.teacher, "--confidence", "1", "--budget", "2"]
    said = lrmil(*args, "-o", tmp_path / "strict")
    assert said.code == 3 and "--allow-upsample" in said.err
    said = lrmil(*args, "--allow-upsample", "-o", tmp_path / "p")
    assert said.code == 0 and record(tmp_path / "p", slide)["tiles_read"]["hr"] > 0, said.err
