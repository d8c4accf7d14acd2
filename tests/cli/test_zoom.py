"""``distill-student --method zoommil`` and its prediction on small slides: HR tiles are read only under the tiles that
were picked."""

import json
import shutil

import pytest
import torch

from lrmil_cli.app import run
from lrmil_cli.files.features import open_features, read_features
from lrmil_cli.files.tables import read_table
from lrmil_cli.heads import Bag
from lrmil_cli.matching.paired_slide import read_pairs
from lrmil_cli.selective.model_parts import load_zoom
from lrmil_cli.selective.train_zoommil import make_pyramid
from lrmil_cli.slides.slide import open_slide
from tests.cli.test_bad_tiles import damage

pytestmark = pytest.mark.usefixtures("all_unpainted")

HEAD = [
    "--head-option",
    "embed_dim=16",
    "--head-option",
    "hidden=8",
    "--head-option",
    "k=2",
    "--epochs",
    "2",
    "--lr",
    "1e-3",
]


def bag_of(features):
    return Bag(torch.from_numpy(features.features), torch.from_numpy(features.coords))


def student(chain, output, *more):
    return [
        "distill-student",
        chain.manifest,
        "--method",
        "zoommil",
        "--tiles",
        chain.tiles_lr,
        "--pairs",
        chain.pairs,
        "--encoder",
        "demo-vit",
        "--teacher",
        chain.teacher,
        *HEAD,
        "--dtype",
        "float32",
        "-o",
        output,
        *more,
    ]


@pytest.fixture(scope="module")
def zoom(chain, tmp_path_factory):
    at = tmp_path_factory.mktemp("zoom") / "z.safetensors"
    assert run([str(a) for a in student(chain, at, "-q")]) == 0
    return at


def test_prediction_reads_only_children_of_picked_tiles_and_equals_the_whole_pyramid(
    chain, zoom, tmp_path, lrmil, monkeypatch
):
    from lrmil_cli.inference import zoomed as zooming

    boxes, encoded = [], []
    ahead, embed = zooming.read_ahead, zooming.embed_tiles
    monkeypatch.setattr(zooming, "read_ahead", lambda slide, b, *a, **k: boxes.append(b) or ahead(slide, b, *a, **k))
    monkeypatch.setattr(
        zooming, "embed_tiles", lambda e, tiles, count, **k: encoded.append(count) or embed(e, tiles, count, **k)
    )
    slide = chain.manifest.parent / "slides" / "s13.svs"
    said = lrmil("predict", slide, "-m", zoom, "-o", tmp_path, "--geojson", tmp_path / "maps")
    assert said.code == 0, said.err
    record = json.loads((tmp_path / "s13.prediction.json").read_text())
    paired, lr = read_pairs(chain.pairs / "s13.pairs.csv"), read_features(zoom.with_suffix(".features") / "s13.h5")
    pyramid = make_pyramid(bag_of(lr), [open_features(chain.teacher / "features" / "s13.h5")], [paired])
    head = load_zoom(zoom).base.heads[0]
    with torch.inference_mode():
        out = head(*pyramid)
    expected = torch.softmax(out.logits.double(), 0).numpy()
    assert [record["probabilities"][c] for c in ("normal", "tumor")] == pytest.approx(expected.tolist(), abs=1e-5)
    picked = out.extra["selected0"].numpy()
    assert len(picked) == 2
    corners = {tuple(c) for c in lr.coords[picked].tolist()}
    inside = [any(x <= b[0] < x + 512 and y <= b[1] < y + 512 for x, y in corners) for b in paired.hr_boxes]
    assert {tuple(b) for b in boxes[1].tolist()} == {tuple(b) for b, i in zip(paired.hr_boxes.tolist(), inside) if i}
    assert encoded == [len(lr.coords), sum(inside)] and record["tiles_read"] == {
        "lr": len(lr.coords),
        "hr": sum(inside),
    }
    _, rows = read_table(tmp_path / "s13.attention.csv", "attention")
    assert rows["attention"].to_numpy() == pytest.approx(out.attention.numpy(), abs=1e-6)
    _, deep = read_table(tmp_path / "s13.hr.attention.csv", "attention")
    assert len(deep) == sum(inside) and len(list((tmp_path / "maps").iterdir())) == 2
    there, features = out.extra["looked1"] >= 0, read_features(chain.teacher / "features" / "s13.h5")
    own = {
        tuple(features.coords[row].tolist()): a
        for row, a in zip(out.extra["looked1"][there].tolist(), out.extra["attention1"][there].tolist())
    }
    assert deep["attention"].to_numpy() == pytest.approx(
        [own[c] for c in zip(deep["x"], deep["y"])], abs=1e-5
    ) and deep["attention"].sum() == pytest.approx(1)
    assert "flat" not in said.err
    assert {"tissue", "read_0", "encode_0", "read_1", "encode_1", "head"} <= record["seconds"].keys()
    dry = lrmil("predict", slide, "-m", zoom, "-o", tmp_path / "new", "--dry-run", "--json")
    assert dry.code == 0 and dry.records[0]["tiles"] >= len(lr.coords)


def test_three_levels(chain, tmp_path, lrmil):
    mid = tmp_path / "mid"
    for line in (
        ["tile", chain.manifest, "--mpp", "1.0", "--tile-px", "128", "-o", mid],
        ["match", chain.tiles_lr, mid, "-o", tmp_path / "low"],
        ["match", mid, chain.tiles_hr, "-o", tmp_path / "high"],
        ["embed", mid, "--encoder", "demo-vit", "--dtype", "float32", "-o", tmp_path / "mid-features"],
    ):
        said = lrmil(*line)
        assert said.code == 0, said.err
    line = student(
        chain, tmp_path / "z.safetensors", "--mid-pairs", tmp_path / "high", "--mid-features", tmp_path / "mid-features"
    )
    line[line.index("--pairs") + 1] = tmp_path / "low"
    said = lrmil(*line, "--json")
    assert said.code == 0, said.err
    assert len(load_zoom(tmp_path / "z.safetensors").levels) == 2
    said = lrmil(
        "predict", chain.manifest.parent / "slides" / "s13.svs", "-m", tmp_path / "z.safetensors", "-o", tmp_path / "p"
    )
    assert said.code == 0, said.err
    record = json.loads((tmp_path / "p" / "s13.prediction.json").read_text())
    assert 0 < record["tiles_read"]["mid"] <= 2 * 4 and 0 < record["tiles_read"]["hr"] <= 2 * 4
    judged = lrmil(
        "evaluate", tmp_path / "p", "--slides", chain.manifest, "-o", tmp_path / "e", "--bootstrap", "0", "--json"
    ).records[0]["models"][0]["reading"]
    assert [judged[f"{k}_tiles"] for k in ("lr", "mid", "hr")] == [record["tiles_read"][k] for k in ("lr", "mid", "hr")]
    low, high = (read_pairs(tmp_path / n / "s13.pairs.csv") for n in ("low", "high"))
    bag = make_pyramid(
        bag_of(read_features(tmp_path / "z.features" / "s13.h5")),
        [open_features(tmp_path / "mid-features" / "s13.h5"), open_features(chain.teacher / "features" / "s13.h5")],
        [low, high],
    )
    with torch.inference_mode():
        p = torch.softmax(load_zoom(tmp_path / "z.safetensors").base.heads[0](*bag).logits.double(), 0)
    assert list(record["probabilities"].values()) == pytest.approx(p.tolist(), abs=1e-5)


def test_pyramids_follow_the_pairs(chain):
    paired, features = read_pairs(chain.pairs / "s13.pairs.csv"), open_features(chain.teacher / "features" / "s13.h5")
    _, lr = read_table(chain.tiles_lr / "s13.tiles.csv", "tiles")
    bag = make_pyramid(Bag(torch.zeros(len(lr), 3), torch.from_numpy(lr[["x", "y"]].to_numpy())), [features], [paired])
    _, pairs = read_table(chain.pairs / "s13.pairs.csv", "pairs")
    for p in pairs.itertuples():
        row = bag.children[0][p.lr_index, p.cell_row * 4 + p.cell_col]
        assert row >= 0 and (features.coords()[row] == [p.hr_x, p.hr_y]).all()
    assert int((bag.children[0] >= 0).sum()) == len(pairs)


def test_what_cannot_be_done_is_said(chain, zoom, tmp_path, lrmil):
    out = tmp_path / "m.safetensors"
    for more, code, words in (
        (("--k", "3"), 2, "--k does nothing with --method zoommil"),
        (("--head-option", "levels=3"), 2, "--mid-pairs three"),
        (("--mid-pairs", "x"), 2, "go together"),
        (("--features", tmp_path), 3, "lrmil embed"),
        (("--input-size", "64"), 3, "give features of that encoder"),
    ):
        said = lrmil(*student(chain, out, *more))
        assert said.code == code and words in said.err, said.err
    said = lrmil(
        "train-teacher",
        chain.manifest,
        "--features",
        chain.teacher / "features",
        "--head",
        "zoommil",
        "-o",
        tmp_path / "t",
    )
    assert said.code == 2 and "--method zoommil" in said.err
    assert lrmil(*student(chain, zoom, "--json")).records[0]["status"] == "skipped"
    assert "zoommil" in lrmil("info", zoom).out and lrmil("doctor", "-m", zoom).code in (0, 4)
    said = lrmil("evaluate", zoom, "--receipt", "-o", tmp_path / "e")
    assert said.code == 3 and "of zoommil" in said.err
    assert not out.exists() and json.loads(lrmil("info", zoom, "--json").out)["calibration"]["heads"]


def test_where_the_children_of_a_pick_are_damaged_the_next_best_is_read(chain, tmp_path, lrmil):
    """Never a tile that was not read: the answer is the head's on the pyramid without the damaged tiles."""
    slide = tmp_path / "s13.svs"
    shutil.copy(chain.manifest.parent / "slides" / "s13.svs", slide)
    model = tmp_path / "z.safetensors"
    assert run(["k=1" if a == "k=2" else str(a) for a in student(chain, model, "-q")]) == 0
    assert lrmil("predict", slide, "-m", model, "-o", tmp_path / "whole").code == 0
    _, first = read_table(tmp_path / "whole" / "s13.hr.attention.csv", "attention")
    paired = read_pairs(chain.pairs / "s13.pairs.csv")
    parents = [
        next(b for b in paired.lr_boxes.tolist() if (b[0] <= x < b[0] + b[2]) and (b[1] <= y < b[1] + b[3]))
        for x, y in first[["x", "y"]].to_numpy()
    ]
    assert len({tuple(p) for p in parents}) == 1
    x, y, side, _ = parents[0]
    with open_slide(slide) as opened:
        blocks = opened.blocks(0)
    damage(
        slide,
        0,
        [
            row * blocks.cols + col
            for row in range(y // 256, (y + side) // 256)
            for col in range(x // 256, (x + side) // 256)
        ],
    )
    skip, exact = ["--on-bad-tile", "skip"], ["--dtype", "float32"]
    said = lrmil("predict", slide, "-m", model, "-o", tmp_path / "p", *skip)
    assert said.code == 0, said.err
    record = json.loads((tmp_path / "p" / "s13.prediction.json").read_text())
    assert record["bad_tiles"] == len(first) and 0 < record["tiles_read"]["hr"] <= 16
    features = {}
    for name, mpp in (("lr", "2.0"), ("hr", "0.5")):
        for line in (
            ["tile", slide, "--mpp", mpp, "--tile-px", "128", "-o", tmp_path / name / "s13.tiles.csv", *skip],
            [
                "embed",
                tmp_path / name / "s13.tiles.csv",
                "--encoder",
                "demo-vit",
                *exact,
                "-o",
                tmp_path / f"{name}.h5",
                *skip,
            ],
        ):
            said = lrmil(*line)
            assert said.code == 0, said.err
        features[name] = open_features(tmp_path / f"{name}.h5")
    assert (
        lrmil(
            "match", tmp_path / "lr" / "s13.tiles.csv", tmp_path / "hr" / "s13.tiles.csv", "-o", tmp_path / "pairs.csv"
        ).code
        == 0
    )
    pyramid = make_pyramid(bag_of(features["lr"].read()), [features["hr"]], [read_pairs(tmp_path / "pairs.csv")])
    with torch.inference_mode():
        out = load_zoom(model).base.heads[0](*pyramid)
    assert list(record["probabilities"].values()) == pytest.approx(
        torch.softmax(out.logits.double(), 0).tolist(), abs=1e-5
    )
    assert record["tiles_read"]["hr"] == int((pyramid.children[0][out.extra["selected0"]] >= 0).sum())


def test_slides_that_are_tiled_differently_are_refused(chain, tmp_path, lrmil):
    slide = chain.manifest.parent / "slides" / "s13.svs"
    shutil.copytree(chain.pairs, tmp_path / "pairs")
    features = shutil.copytree(chain.teacher / "features", tmp_path / "features")
    for line in (
        ["tile", slide, "--mpp", "0.5", "--tile-px", "64", "-o", tmp_path / "hr.csv"],
        [
            "match",
            chain.tiles_lr / "s13.tiles.csv",
            tmp_path / "hr.csv",
            "-o",
            tmp_path / "pairs" / "s13.pairs.csv",
            "--overwrite",
        ],
    ):
        said = lrmil(*line)
        assert said.code == 0, said.err
    line = student(chain, tmp_path / "z.safetensors", "--features", features)
    line[line.index("--pairs") + 1] = tmp_path / "pairs"
    said = lrmil(*line)
    assert said.code == 3 and "tile all slides alike" in said.err, said.err
