"""``train-teacher --head dmin`` and ``distill-student --method ahdmil|hdmil`` on small slides."""

import gzip
import json

import numpy as np
import pandas as pd
import pytest
import torch

from lrmil_cli.app import run
from lrmil_cli.evaluation import unlike_training
from lrmil_cli.files.features import read_features
from lrmil_cli.files.tables import list_tables, read_table
from lrmil_cli.matching.paired_slide import read_pairs
from lrmil_cli.selective.model_parts import load_screened
from lrmil_cli.selective.screener import screen
from lrmil_cli.selective.screening_images import make_images
from tests.layouts import write_trident

pytestmark = pytest.mark.usefixtures("all_unpainted")


@pytest.fixture(scope="module")
def dmin(chain, tmp_path_factory):
    """A teacher with DMIN heads on the features of the chain's teacher."""
    at = tmp_path_factory.mktemp("dmin") / "teacher"
    line = [
        "train-teacher",
        chain.manifest,
        "--features",
        chain.teacher / "features",
        "--tiles",
        chain.tiles_hr,
        "--encoder",
        "demo-vit",
        "--head",
        "dmin",
        "--head-option",
        "embed_dim=32",
        "--head-option",
        "hidden=16",
        "--epochs",
        "4",
        "--lr",
        "1e-3",
        "-o",
        at,
        "-q",
    ]
    assert run([str(a) for a in line]) == 0
    return at


def student(chain, teacher, output, *more):
    return [
        "distill-student",
        chain.manifest,
        "--tiles",
        chain.tiles_lr,
        "--pairs",
        chain.pairs,
        "--encoder",
        "demo-vit",
        "--teacher",
        teacher,
        "--epochs",
        "1",
        "-o",
        output,
        *more,
    ]


def test_hdmil_from_slides_to_a_model_file(chain, dmin, tmp_path, lrmil):
    model = tmp_path / "h.safetensors"
    said = lrmil(*student(chain, dmin, model, "--method", "hdmil", "--json"))
    assert said.code == 0, said.err
    (record,) = said.records
    assert record["method"] == "hdmil" and 0 <= record["kept_rate"] <= 1
    table = pd.read_csv(tmp_path / "h.predictions.csv", comment="#")
    assert (table["hr_read"] <= table["hr_tiles"]).all() and (table["hr_read"] > 0).all() and len(table) == 4
    assert {"val_kept", "train_kept", "train_hard"} <= set(pd.read_csv(tmp_path / "h.curves.csv", comment="#")) and (
        tmp_path / "h.curves.png"
    ).exists()
    loaded = load_screened(model)
    assert (
        loaded.base.header["method"] == "hdmil"
        and loaded.hr_tiles.mpp == 0.5
        and loaded.base.tiles.mpp == 2.0
        and loaded.ratio == 4
    )
    again = lrmil(*student(chain, dmin, model, "--method", "hdmil", "--json"))
    assert again.records[0]["status"] == "skipped" and again.records[0]["metrics"] == record["metrics"]
    assert "hdmil" in lrmil("info", model).out
    assert json.loads(lrmil("info", model, "--json").out)["screen"] == {"px": 16, "source": "lr-tiles", "branches": 1}


def test_both_sources_show_the_same_tissue(chain):
    paired = read_pairs(next(iter(list_tables(chain.pairs, "pairs").values())))
    tiles, thumbnail = (make_images(paired, 16, source, 1)[0].astype(float) for source in ("lr-tiles", "thumbnail"))
    assert tiles.shape == (len(paired.hr_index), 16, 16, 3) == thumbnail.shape
    assert np.abs(tiles - thumbnail).mean() < 3 < np.abs(tiles - np.roll(thumbnail, 1, 0)).mean()


def test_what_cannot_be_done_is_said(chain, dmin, tmp_path, lrmil):
    out = tmp_path / "m.safetensors"
    for more, code, words in (
        (("--method", "ahdmil", "--k", "3"), 2, "--k does nothing with --method ahdmil"),
        (("--p-soft", "0.3"), 2, "--p-soft does nothing with --method lrmil"),
        (("--method", "hadmil"), 2, "lrmil, ahdmil, hdmil"),
        (("--method", "ahdmil", "--screen-px", "33"), 2, "use 32 or less"),
        (("--method", "ahdmil", "--keep-rate-window", "much"), 2, "two shares"),
    ):
        said = lrmil(*student(chain, dmin, out, *more))
        assert said.code == code and words in said.err, said.err
    said = lrmil(*student(chain, chain.teacher, out, "--method", "ahdmil"))
    assert said.code == 3 and "--head dmin" in said.err
    said = lrmil(*[a if a != "demo-vit" else chain.encoder for a in student(chain, dmin, out, "--method", "ahdmil")])
    assert said.code == 3 and "not of" in said.err
    # features of another tool, although the teacher's are ours
    own = read_features(chain.teacher / "features" / "s13.h5")
    for name in list_tables(chain.tiles_hr, "tiles"):
        table = read_table(chain.tiles_hr / f"{name}.tiles.csv", "tiles")[1]
        write_trident(
            tmp_path / "trident" / f"{name}.h5",
            table[["x", "y"]].to_numpy(),
            np.zeros((len(table), own.features.shape[1]), np.float32),
            patch_size=128,
            size=(1536, 1536),
        )
    assert lrmil("match", chain.tiles_lr, tmp_path / "trident", "-o", tmp_path / "pairs").code == 0
    line = student(chain, dmin, out, "--method", "hdmil", "--features", tmp_path / "trident")
    line[line.index("--pairs") + 1] = tmp_path / "pairs"
    said = lrmil(*line)
    assert said.code == 3 and "those that lrmil made" in said.err, said.err
    # a manifest without the validation slides of the teacher's fold
    lines = chain.manifest.read_text().splitlines()
    part = tmp_path / "part.csv"
    part.write_text(
        "\n".join(f"{chain.manifest.parent / row}" if n else row for n, row in enumerate(lines) if ",val" not in row)
        + "\n"
    )
    line = student(chain, dmin, out, "--method", "hdmil")
    line[1] = part
    said = lrmil(*line)
    assert said.code == 3 and "no val slides" in said.err and "teacher" in said.err, said.err
    assert not out.exists()


@pytest.fixture(scope="module")
def hdmil(chain, dmin, tmp_path_factory):
    """A model of HDMIL whose screener was moved so that it keeps about half of the tiles of a slide."""
    from lrmil_cli.models.model_file import save_model

    at = tmp_path_factory.mktemp("hdmil")
    assert run([str(a) for a in student(chain, dmin, at / "h.safetensors", "--method", "hdmil", "-q")]) == 0
    m = load_screened(at / "h.safetensors")
    rng = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for s in m.screeners:
            for branch in s.branches:
                branch.out.weight.copy_(torch.randn(branch.out.weight.shape, generator=rng) * 0.3)
                branch.out.bias.zero_()
    paired = read_pairs(chain.pairs / "s13.pairs.csv")
    scores = screen(m.screeners[0], torch.from_numpy(make_images(paired, 16, "lr-tiles", 1)[0])).scores
    with torch.no_grad():
        for branch in m.screeners[0].branches:
            branch.out.bias -= scores.quantile(0.7, dim=1)
    tensors = {f"screen{n}.{k}": v for n, s in enumerate(m.screeners) for k, v in s.state_dict().items()}
    save_model(at / "m.safetensors", m.base.header, m.base.encoders, m.base.heads, m.base.encoder_of, tensors)
    return at / "m.safetensors"


def predicted(folder, name="s13"):
    return json.loads((folder / f"{name}.prediction.json").read_text()), read_table(
        folder / f"{name}.attention.csv", "attention"
    )[1]


def test_prediction_reads_exactly_the_union_of_the_kept_tiles_and_equals_dmin_on_all_with_the_same_mask(
    chain, hdmil, tmp_path, lrmil, monkeypatch
):
    from lrmil_cli.inference import screened as ondemand

    encoded, boxes = [], []
    embed, ahead = ondemand.embed_tiles, ondemand.read_ahead
    monkeypatch.setattr(
        ondemand, "embed_tiles", lambda e, tiles, count, **k: encoded.append(count) or embed(e, tiles, count, **k)
    )
    monkeypatch.setattr(ondemand, "read_ahead", lambda slide, b, *a, **k: boxes.append(b) or ahead(slide, b, *a, **k))
    slide = chain.manifest.parent / "slides" / "s13.svs"
    said = lrmil("predict", slide, "-m", hdmil, "-o", tmp_path, "--geojson", tmp_path / "maps", "--json")
    assert said.code == 0, said.err
    record, rows = predicted(tmp_path)
    m, paired = load_screened(hdmil), read_pairs(chain.pairs / "s13.pairs.csv")
    decision = screen(m.screeners[0], torch.from_numpy(make_images(paired, 16, "lr-tiles", 1)[0]))
    kept = decision.used.any(0).numpy()
    assert 0 < kept.sum() < len(kept)
    # the candidates of prediction, which come from LR pixels alone, are the pairs of the table
    assert record["candidates"] == len(paired.hr_index) and record["tiles_read"]["hr"] == kept.sum() == sum(
        encoded
    ) == sum(map(len, boxes))
    assert (
        {tuple(b) for b in boxes[0]}
        == {tuple(b) for b in paired.hr_boxes[kept]}
        == {tuple(b) for b in rows[["x", "y", "width", "height"]].to_numpy()}
    )
    assert (
        record["kept_rate"] == pytest.approx(kept.mean(), abs=1e-6)
        and {"tissue", "lr_read", "screen", "read", "encode", "head"} <= record["seconds"].keys()
    )
    features = read_features(chain.teacher / "features" / "s13.h5").features[paired.hr_index]
    with torch.inference_mode():
        out = m.heads[0].select(torch.from_numpy(features), decision.used)
    expected = torch.softmax(out.logits.double(), 0).numpy()
    assert [record["probabilities"][c] for c in ("normal", "tumor")] == pytest.approx(expected.tolist(), abs=1e-5)
    # all candidates in a file of their own, with what the screener said
    _, screened = read_table(tmp_path / "s13.screen.attention.csv", "attention")
    assert (
        len(screened) == record["candidates"]
        and screened["kept"].sum() == kept.sum()
        and screened["attention"].sum() == pytest.approx(1, abs=1e-6)
    )
    assert ((screened["screening"] > 0.5) == decision.mask.any(0).numpy()).all()
    maps = {f.name: json.loads(gzip.decompress(f.read_bytes())) for f in (tmp_path / "maps").iterdir()}
    assert {n: len(d["features"]) for n, d in maps.items()} == {
        "s13.heatmap.geojson.gz": kept.sum(),
        "s13.screen.heatmap.geojson.gz": len(kept),
    }
    assert {"LRMIL kept (0-1)", "LRMIL screening (0-1)"} == maps["s13.screen.heatmap.geojson.gz"]["features"][0][
        "properties"
    ]["measurements"].keys()
    assert lrmil("predict", slide, "-m", hdmil, "-o", tmp_path, "--json").records[0]["status"] == "skipped"


@pytest.mark.parametrize(
    ("more", "least", "most"),
    [
        (["--keep-max", "0.1"], 0.0, 0.1),
        (["--keep-min", "0.9"], 0.9, 1.0),
        (["--keep-min", "1"], 1.0, 1.0),
        (["--keep-min", "0.5", "--keep-max", "0.5"], 0.0, 0.5),
    ],
)
def test_a_budget_holds(chain, hdmil, tmp_path, lrmil, more, least, most):
    slide = chain.manifest.parent / "slides" / "s13.svs"
    assert lrmil("predict", slide, "-m", hdmil, "-o", tmp_path, *more).code == 0
    record, _ = predicted(tmp_path)
    n = record["candidates"]
    assert np.ceil(least * n) <= record["tiles_read"]["hr"] <= max(1, np.floor(most * n))
    _, screened = read_table(tmp_path / "s13.screen.attention.csv", "attention")
    read = screened["kept"] == 1
    assert (
        not (~read).any() or screened["screening"][read].min() >= screened["screening"][~read].max() - 1e-6 or least
    )  # the best by score


def test_nothing_kept_takes_the_fallback_and_says_so(chain, hdmil, tmp_path, lrmil):
    slide = chain.manifest.parent / "slides" / "s13.svs"
    assert lrmil("predict", slide, "-m", hdmil, "--keep-threshold", "0.999999", "-o", tmp_path).code == 0
    record, _ = predicted(tmp_path)
    assert record["fallback"] == {"empty_classes": ["normal", "tumor"], "empty_folds": 1} and record["tiles_read"][
        "hr"
    ] == np.ceil(0.05 * record["candidates"])


def test_options_of_screened_models_are_refused_elsewhere(chain, hdmil, tmp_path, lrmil):
    slide = chain.manifest.parent / "slides" / "s13.svs"
    for model, more, words in (
        (chain.model, ["--keep-max", "0.5"], "models that pick HR tiles"),
        (hdmil, ["--keep-min", "0.8", "--keep-max", "0.2"], "--keep-min 0.8"),
        (hdmil, ["--escalate", str(chain.teacher)], "reads HR tiles by itself"),
        (hdmil, ["--keep-threshold", "1"], "--keep-threshold"),
    ):
        said = lrmil("predict", slide, "-m", model, "-o", tmp_path / "p", *more)
        assert said.code == 2 and words in said.err, said.err


def test_the_curves_of_dmin_show_the_kept_share_of_training_and_of_evaluation(dmin):
    """The rate loss steers the random masks of training; the hard mask of evaluation can keep another share
    (heads/README 3.7)."""
    curves = pd.read_csv(dmin / "curves.csv", comment="#")
    assert curves["train_kept"].between(0, 1).all() and curves["val_kept"].between(0, 1).all()
    # The mean of (rho - r)^2 over slides is (mean rho - r)^2 and their variance.
    assert (curves["train_rate"] >= (curves["train_kept"] - 0.6) ** 2 - 1e-9).all()
    assert not curves["train_kept"].equals(curves["val_kept"])


@pytest.mark.parametrize("more", [("--screen-source", "thumbnail"), ("--screen-px", "32")])
def test_prediction_from_pixels_is_what_training_said_of_the_test_slide(chain, dmin, tmp_path, lrmil, more):
    model = tmp_path / "h.safetensors"
    said = lrmil(*student(chain, dmin, model, "--method", "hdmil", *more))
    assert said.code == 0, said.err
    said = lrmil("predict", chain.manifest.parent / "slides" / "s13.svs", "-m", model, "-o", tmp_path / "p")
    assert said.code == 0, said.err
    record, _ = predicted(tmp_path / "p")
    own = read_table(tmp_path / "h.predictions.csv", "predictions")[1].set_index("slide_id").loc["s13"]
    assert record["probabilities"]["tumor"] == pytest.approx(own["prob_tumor"], abs=1e-5)
    assert record["tiles_read"]["hr"] == own["hr_read"] and record["candidates"] == own["hr_tiles"]
    assert record["kept_rate"] == pytest.approx(own["kept_rate"], abs=1e-5)
    assert f"{record['tiles_read']['lr']} LR tiles and {record['tiles_read']['hr']} HR tiles" in said.err


def test_training_slides_are_described_by_the_tiles_that_prediction_reads(chain, dmin, tmp_path, lrmil, monkeypatch):
    monkeypatch.setattr(unlike_training, "FEWEST", 2)
    model = tmp_path / "h.safetensors"
    assert lrmil(*student(chain, dmin, model, "--method", "hdmil")).code == 0
    header = load_screened(model).base.header
    assert header["site_probe"] is None  # no sites
    folds = read_table(chain.teacher / "folds.csv", "folds")[1]
    names = folds.loc[folds["fold_1"] == "train", "slide_id"]
    means = []
    for name in names:
        said = lrmil("predict", chain.manifest.parent / "slides" / f"{name}.svs", "-m", model, "-o", tmp_path / "p")
        assert said.code == 0, said.err
        record, rows = predicted(tmp_path / "p", name)
        bag = read_features(chain.teacher / "features" / f"{name}.h5")
        read = set(zip(rows["x"], rows["y"]))
        means.append(bag.features[[(x, y) in read for x, y in bag.coords.tolist()]].mean(0, dtype=np.float64))
        assert record["unlike_training"].keys() >= {"unlike", "distance", "bound"}
    known = unlike_training.training_features(header, "h")
    assert known.slides == len(names) and np.allclose(known.slide.mean, np.mean(means, 0), atol=1e-4)
    slide = chain.manifest.parent / "slides" / "s13.svs"
    said = lrmil("predict", slide, "-m", model, "--keep-max", "0.5", "-o", tmp_path / "half")
    assert said.code == 0 and "whether a slide is unlike these is not looked at" in said.err
    card = lrmil("info", model, "--card", "-o", "-").out
    assert "are marked as unlike the training slides, by the HR tiles that are read; with --keep-min" in card
    assert "unlike_training" not in predicted(tmp_path / "half")[0]


def test_abstaining_leaves_what_was_read_as_it_is(chain, hdmil, tmp_path, lrmil):
    slide = chain.manifest.parent / "slides" / "s13.svs"
    assert lrmil("predict", slide, "-m", hdmil, "-o", tmp_path / "plain").code == 0
    said = lrmil("predict", slide, "-m", hdmil, "--abstain", "--confidence", "1", "-o", tmp_path / "p", "--json")
    assert said.code == 0 and said.records[0]["status"] == "uncertain"
    (plain, _), (own, _) = predicted(tmp_path / "plain"), predicted(tmp_path / "p")
    assert own["tiles_read"] == plain["tiles_read"] and own["tiles_read"]["hr"] > 0 and "answered_at" not in own
