"""Tiles that do not decode: an error by default, left out and counted with ``--on-bad-tile skip``, through the whole
chain."""

import json
import shutil

import numpy as np
import pytest
import tifffile
import torch

from lrmil_cli.app import run
from lrmil_cli.files.features import open_features, read_features, write_features
from lrmil_cli.files.tables import read_table
from lrmil_cli.files.tensors import read_tensor_header
from lrmil_cli.heads import Bag
from lrmil_cli.matching.paired_slide import read_pairs
from lrmil_cli.selective.train_zoommil import make_pyramid
from lrmil_cli.slides.reader import iter_batches, overview, read_rows
from lrmil_cli.slides.slide import open_slide
from lrmil_cli.training.teacher import read_teacher
from tests.conftest import blob_image, write_tiff
from tests.unit.files.test_files import features_header

pytestmark = pytest.mark.usefixtures("all_unpainted")


def damage(path, level, blocks):
    """Overwrite blocks of a level with bytes that no codec takes."""
    with tifffile.TiffFile(path) as tiff:
        page = tiff.series[0].levels[level].pages[0]
        places = [(page.dataoffsets[b], page.databytecounts[b]) for b in blocks]
        rects = [
            (
                b % -(-page.imagewidth // page.tilewidth) * page.tilewidth,
                b // -(-page.imagewidth // page.tilewidth) * page.tilelength,
                page.tilewidth,
                page.tilelength,
            )
            for b in blocks
        ]
    with open(path, "r+b") as fh:
        for offset, count in places:
            fh.seek(offset)
            fh.write(b"\xa5" * count)
    return rects


@pytest.fixture
def bad(tmp_path):
    """A slide with two damaged blocks in the tissue of level 0, and their rectangles."""
    path = write_tiff(tmp_path / "bad.svs", blob_image())
    return path, damage(path, 0, [16, 17])


def under(rows, rects):
    """Which tiles touch a rectangle, by plain geometry."""
    return np.any(
        [
            (rows["x"] < x + w)
            & (rows["x"] + rows["width"] > x)
            & (rows["y"] < y + h)
            & (rows["y"] + rows["height"] > y)
            for x, y, w, h in rects
        ],
        axis=0,
    )


@pytest.mark.parametrize("reader", [None, "openslide"])
@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("side", [64, 100])
def test_exactly_the_tiles_on_damaged_blocks_are_left_out_and_the_others_keep_their_pixels(bad, reader, workers, side):
    path, rects = bad
    x, y = (a.ravel() * side for a in np.meshgrid(np.arange(1600 // side), np.arange(1200 // side)))
    boxes = np.stack([x, y, np.full_like(x, side), np.full_like(x, side)], 1)
    broken = under({"x": x, "y": y, "width": side, "height": side}, rects)
    with open_slide(path, workers=workers, reader=reader, on_bad_tile="skip") as slide:
        left: list[int] = []
        found = {
            int(r): p for rows, pixels in iter_batches(slide, boxes, 0, side, 16, left) for r, p in zip(rows, pixels)
        }
        if reader is None:  # OpenSlide takes a damaged block for an empty one, or not, as its codec does
            assert sorted(left) == np.flatnonzero(broken).tolist()
        assert set(found) == set(range(len(boxes))) - set(left)
    image = blob_image()
    for row in np.flatnonzero(~broken):
        assert (found[row] == image[y[row] : y[row] + side, x[row] : x[row] + side]).all()
    with open_slide(path, workers=workers) as slide, pytest.raises(Exception, match="damaged at level 0"):
        read_rows(slide, boxes, 0, side)


def test_predict_and_embed_fail_by_default_and_count_what_they_skip(chain, tmp_path, lrmil):
    slide = tmp_path / "s13.svs"
    shutil.copy(chain.manifest.parent / "slides" / "s13.svs", slide)
    whole = tmp_path / "whole"
    assert lrmil("predict", slide, "-m", chain.model, "-o", whole).code == 0
    _, rows = read_table(whole / "s13.attention.csv", "attention")
    with open_slide(slide) as opened:
        level = [l.downsample for l in opened.levels].index(4.0)
        block = opened.blocks(level)
        middle = rows.iloc[len(rows) // 2]
        index = int(middle.y / 4 // block.height) * block.cols + int(middle.x / 4 // block.width)
    rects = [tuple(4 * v for v in r) for r in damage(slide, level, [index])]
    gone = under(rows, rects)
    assert 0 < gone.sum() < len(gone)
    said = lrmil("predict", slide, "-m", chain.model, "-o", tmp_path / "p")
    assert (
        said.code == 3
        and "damaged at level" in said.err
        and "Traceback" not in said.err
        and not (tmp_path / "p" / "s13.attention.csv").exists()
    )
    dry = [
        lrmil(
            "predict",
            slide,
            "-m",
            chain.model,
            "-o",
            tmp_path / "p",
            "--dry-run",
            "--json",
            "--batch-size",
            "99",
            *more,
        )
        for more in ([], ["--on-bad-tile", "skip"])
    ]
    assert [d.code for d in dry] == [3, 0] and dry[1].records[0]["tiles"] == len(
        rows
    )  # the dry run looked at all tiles
    said = lrmil("predict", slide, "-m", chain.model, "--on-bad-tile", "skip", "-o", tmp_path / "p", "--json")
    assert said.code == 0 and f"{gone.sum()} of {len(rows)} tiles cannot be decoded" in said.err
    record = json.loads((tmp_path / "p" / "s13.prediction.json").read_text())
    assert record["bad_tiles"] == gone.sum() and record["tiles_read"]["lr"] == record["tiles"] == (~gone).sum()
    _, left = read_table(tmp_path / "p" / "s13.attention.csv", "attention")
    assert (left[["x", "y"]].to_numpy() == rows[["x", "y"]].to_numpy()[~gone]).all() and left[
        "attention"
    ].sum() == pytest.approx(1)
    # asked for again, but strictly
    said = lrmil("predict", slide, "-m", chain.model, "-o", tmp_path / "p")
    assert said.code == 3 and "--on-bad-tile skip" in said.err
    assert (
        lrmil("predict", slide, "-m", chain.model, "--on-bad-tile", "skip", "-o", tmp_path / "p", "--json").records[0][
            "status"
        ]
        == "skipped"
    )
    assert lrmil("predict", slide, "-m", chain.model, "--on-bad-tile", "perhaps", "-o", tmp_path / "q").code == 2


def test_the_chain_runs_over_slides_with_damaged_tiles(cohort, tmp_path, lrmil):
    shutil.copytree(cohort.parent / "slides", tmp_path / "slides")
    shutil.copy(cohort, tmp_path / "slides.csv")
    names = ["s00", "s13"]  # one trains, one is tested
    for name in names:
        with open_slide(tmp_path / "slides" / f"{name}.svs") as opened:
            blocks = opened.blocks(0)
        damage(tmp_path / "slides" / f"{name}.svs", 0, [blocks.cols * 2 + 2, blocks.cols * 2 + 3])
    at = {k: tmp_path / k for k in ("lr", "hr", "pairs", "teacher")}
    skip = ["--on-bad-tile", "skip"]
    heads = ["--epochs", "2", "--lr", "1e-3"]
    manifest = tmp_path / "slides.csv"
    for line in (
        ["tile", manifest, "--mpp", "2.0", "--tile-px", "128", "-o", at["lr"]],
        ["tile", manifest, "--mpp", "0.5", "--tile-px", "128", "-o", at["hr"]],
        ["match", at["lr"], at["hr"], "-o", at["pairs"]],
    ):
        assert lrmil(*line).code == 0
    teacher = ["train-teacher", manifest, "--tiles", at["hr"], "--encoder", "demo-vit", *heads, "-o", at["teacher"]]
    said = lrmil(*teacher)
    assert said.code == 3 and "s00.svs: damaged at level 0" in said.err
    said = lrmil(*teacher, *skip)
    assert said.code == 0 and "that cannot be decoded left out" in said.err
    gone = {}
    for name in names:
        bag, (_, rows) = (
            read_features(at["teacher"] / "features" / f"{name}.h5"),
            read_table(at["hr"] / f"{name}.tiles.csv", "tiles"),
        )
        gone[name] = len(rows) - len(bag.coords)
        assert bag.header["bad_tiles"] == gone[name] > 0 and np.isfinite(bag.features).all()
    said = lrmil(*teacher)  # strictly again: the features that lack tiles are not good enough
    assert said.code == 3 and "--on-bad-tile skip" in said.err
    encoder = [
        "distill-encoder",
        at["pairs"],
        "--encoder",
        "demo-vit",
        "--epochs",
        "1",
        "-o",
        tmp_path / "e.safetensors",
        "--cache",
        tmp_path / "cache",
    ]
    said = lrmil(*encoder)
    assert said.code == 3 and "damaged" in said.err
    said = lrmil(*encoder, *skip)
    assert said.code == 0 and f"s00: 0 LR and {gone['s00']} HR tiles cannot be decoded" in said.err
    student = [
        "distill-student",
        "--no-onnx",
        manifest,
        "--tiles",
        at["lr"],
        "--pairs",
        at["pairs"],
        "--teacher",
        at["teacher"],
        "--encoder",
        tmp_path / "e.safetensors",
        "--no-baseline",
        *heads,
    ]
    said = lrmil(*student, "-o", tmp_path / "m.safetensors")
    assert said.code == 0, said.err
    # LR tiles of a slide that are gone, too
    with open_slide(tmp_path / "slides" / "s00.svs") as opened:
        level = [l.downsample for l in opened.levels].index(4.0)
    damage(tmp_path / "slides" / "s00.svs", level, [0])
    for line in (
        ["tile", manifest, "--mpp", "2.0", "--tile-px", "128", "-o", at["lr"], "--overwrite", *skip],
        ["tile", manifest, "--mpp", "0.5", "--tile-px", "128", "-o", at["hr"], "--overwrite", *skip],
        ["match", at["lr"], at["hr"], "-o", at["pairs"], "--overwrite"],
        [*teacher, *skip, "--overwrite"],
    ):
        said = lrmil(*line)
        assert said.code == 0, said.err
    said = lrmil(*student, *skip, "--overwrite", "-o", tmp_path / "m.safetensors")
    assert said.code == 0, said.err
    lr = read_features(tmp_path / "m.features" / "s00.h5")
    assert lr.header["bad_tiles"] > 0
    regions = read_tensor_header(tmp_path / "m.safetensors", "model")["regions"]
    counted = 0
    for name in (f"s{i:02d}" for i in range(8)):
        _, pairs = read_table(at["pairs"] / f"{name}.pairs.csv", "pairs")
        hr = {tuple(c) for c in read_features(at["teacher"] / "features" / f"{name}.h5").coords.tolist()}
        own = {tuple(c) for c in read_features(tmp_path / "m.features" / f"{name}.h5").coords.tolist()}
        counted += len(
            {(p.lr_x, p.lr_y) for p in pairs.itertuples() if (p.hr_x, p.hr_y) in hr and (p.lr_x, p.lr_y) in own}
        )
    assert regions["matched"] == counted


def test_a_damaged_level_that_is_not_needed_does_no_harm(tmp_path, lrmil, chain):
    path = write_tiff(tmp_path / "middle.svs", blob_image(3200, 2400), levels=(1, 4, 16))
    damage(path, 1, range(12))
    for mpp, code in (("0.5", 0), ("8.0", 0), ("2.0", 3)):
        said = lrmil("tile", path, "--mpp", mpp, "--tile-px", "64", "-o", tmp_path / f"{mpp}.csv")
        assert said.code == code, said.err
    assert "level 1" in said.err
    said = lrmil("doctor", path, "--json")
    assert (
        any("level 1 is damaged" in c["found"] for r in said.records for c in r["checks"] if c["status"] == "WARN")
        or "level 1" in said.out + said.err
    )


def test_a_damaged_overview_is_glass_where_tiles_are_skipped(tmp_path):
    path = write_tiff(tmp_path / "o.svs", blob_image(3200, 2400))
    rects = damage(path, 1, [0])
    for reader in (None, "openslide"):
        with open_slide(path, reader=reader, on_bad_tile="skip") as slide:
            image = overview(slide, 8.0)[0]
        assert (image[: rects[0][3] // 4 - 1, : rects[0][2] // 4 - 1] == 255).all() and image.min() < 200
    with open_slide(path) as slide, pytest.raises(Exception, match="damaged at level 1"):
        overview(slide, 8.0)


def test_nothing_but_damage_is_an_error(chain, tmp_path, lrmil):
    slide = tmp_path / "s13.svs"
    shutil.copy(chain.manifest.parent / "slides" / "s13.svs", slide)
    with open_slide(slide) as opened:
        level = [l.downsample for l in opened.levels].index(4.0)
        count = opened.blocks(level).cols * opened.blocks(level).rows
    assert lrmil("tile", slide, "--mpp", "2.0", "--tile-px", "128", "-o", tmp_path / "t.csv").code == 0
    damage(slide, level, range(count))
    said = lrmil("predict", slide, "-m", chain.model, "--on-bad-tile", "skip", "-o", tmp_path / "p")
    assert said.code == 3 and not (tmp_path / "p" / "s13.attention.csv").exists()


@pytest.fixture
def damaged(cohort, tmp_path):
    """A tiled cohort of which s00 and s13 have a damaged block in the LR level and one in level 0, under tissue, and
    these rectangles."""
    shutil.copytree(cohort.parent / "slides", tmp_path / "slides")
    manifest = shutil.copy(cohort, tmp_path / "slides.csv")
    at, rects = {k: tmp_path / k for k in ("lr", "hr", "pairs")}, {}
    for name in ("s00", "s13"):
        path = tmp_path / "slides" / f"{name}.svs"
        assert (
            run(
                [
                    "tile",
                    str(path),
                    "--mpp",
                    "2.0",
                    "--tile-px",
                    "128",
                    "-o",
                    str(tmp_path / "whole.csv"),
                    "--overwrite",
                    "-q",
                ]
            )
            == 0
        )
        _, rows = read_table(tmp_path / "whole.csv", "tiles")
        rects[name] = {}
        for kind, downsample, one in (("lr", 4.0, rows.iloc[len(rows) // 2]), ("hr", 1.0, rows.iloc[0])):
            with open_slide(path) as opened:
                level = [l.downsample for l in opened.levels].index(downsample)
                blocks = opened.blocks(level)
            x, y = ((one[k] + 256) / downsample for k in ("x", "y"))
            rects[name][kind] = [
                tuple(int(downsample) * v for v in r)
                for r in damage(path, level, [int(y // blocks.height) * blocks.cols + int(x // blocks.width)])
            ]
    for line in (
        ["tile", manifest, "--mpp", "2.0", "-o", at["lr"]],
        ["tile", manifest, "--mpp", "0.5", "-o", at["hr"]],
    ):
        assert run([*map(str, line), "--tile-px", "128", "--on-bad-tile", "skip", "-q"]) == 0
    assert run([str(a) for a in ["match", at["lr"], at["hr"], "-o", at["pairs"], "-q"]]) == 0
    return manifest, at, rects


@pytest.mark.parametrize("method", ["hdmil", "zoommil"])
def test_methods_that_read_both_magnifications_leave_out_what_they_cannot_decode(damaged, tmp_path, lrmil, method):
    manifest, at, rects = damaged
    skip, small = ["--on-bad-tile", "skip"], ["--head-option", "embed_dim=16", "--head-option", "hidden=8"]
    head = ["--head", "dmin", *small] if method == "hdmil" else []
    said = lrmil(
        "train-teacher",
        manifest,
        "--tiles",
        at["hr"],
        "--encoder",
        "demo-vit",
        *head,
        "--epochs",
        "2",
        "--dtype",
        "float32",
        *skip,
        "-o",
        tmp_path / "teacher",
    )
    assert said.code == 0, said.err
    model = tmp_path / "m.safetensors"
    line = [
        "distill-student",
        manifest,
        "--method",
        method,
        "--tiles",
        at["lr"],
        "--pairs",
        at["pairs"],
        "--teacher",
        tmp_path / "teacher",
        "--encoder",
        "demo-vit",
        "--epochs",
        "2",
        *(small if method == "zoommil" else []),
        "-o",
        model,
    ]
    said = lrmil(*line)
    assert said.code == 3 and "damaged at level" in said.err and not model.exists()
    said = lrmil(*line, *skip)
    assert said.code == 0, said.err
    assert "cannot be decoded" in said.err
    tables = {
        name: {
            k: read_table(at[k] / f"{name}.{kind}.csv", kind)[1]
            for k, kind in (("lr", "tiles"), ("hr", "tiles"), ("pairs", "pairs"))
        }
        for name in rects
    }
    gone = {name: {k: under(tables[name][k], rects[name][k]) for k in ("lr", "hr")} for name in rects}
    pairs = tables["s13"]["pairs"]
    usable = ~gone["s13"]["lr"][pairs["lr_index"]] & ~gone["s13"]["hr"][pairs["hr_index"]]
    assert 0 < usable.sum() < len(pairs)
    slide = tmp_path / "slides" / "s13.svs"
    said = lrmil("predict", slide, "-m", model, "-o", tmp_path / "p")
    assert said.code == 3 and "damaged at level" in said.err and not (tmp_path / "p" / "s13.prediction.json").exists()
    said = lrmil("predict", slide, "-m", model, "-o", tmp_path / "p", *skip, "--geojson", tmp_path / "maps")
    assert said.code == 0, said.err
    record = json.loads((tmp_path / "p" / "s13.prediction.json").read_text())
    assert (
        record["tiles_read"]["lr"] == (~gone["s13"]["lr"]).sum() and record["bad_tiles"] >= gone["s13"]["lr"].sum() > 0
    )
    assert sum(record["probabilities"].values()) == pytest.approx(1)
    read = "s13" if method == "hdmil" else "s13.hr"
    _, rows = read_table(tmp_path / "p" / f"{read}.attention.csv", "attention")
    allowed = set(map(tuple, pairs.loc[usable, ["hr_x", "hr_y"]].to_numpy().tolist()))
    assert (
        0 < len(rows) == record["tiles_read"]["hr"] and set(map(tuple, rows[["x", "y"]].to_numpy().tolist())) <= allowed
    )
    if (
        method == "hdmil"
    ):  # what cannot be screened is no candidate; HR tiles are known to be bad only where they are read
        assert record["candidates"] == (~gone["s13"]["lr"][pairs["lr_index"]]).sum()
        by_hand = read_table(tmp_path / "m.predictions.csv", "predictions")[1].set_index("slide_id")
        assert by_hand.loc["s13", "hr_tiles"] == usable.sum()
        # the rest of the tiles keep the features that are theirs: training saw what prediction sees
        assert by_hand.loc["s13", "prob_tumor"] == pytest.approx(record["probabilities"]["tumor"], abs=1e-5)


def test_a_middle_level_that_lacks_tiles_keeps_its_children(damaged, tmp_path):
    """Rows of features are not rows of tables where tiles were left out."""
    _, at, _ = damaged
    paired, tables = (
        read_pairs(at["pairs"] / "s13.pairs.csv"),
        {k: read_table(at[k] / "s13.tiles.csv", "tiles")[1][["x", "y"]].to_numpy() for k in ("lr", "hr")},
    )
    lr, hr = (np.delete(tables[k], gone, axis=0) for k, gone in (("lr", [0, 3]), ("hr", [1, 5, 6])))
    write_features(tmp_path / "hr.h5", {**features_header(), "bad_tiles": 3}, np.zeros((len(hr), 2)), hr)
    features = open_features(tmp_path / "hr.h5")
    pyramid = make_pyramid(Bag(torch.zeros(len(lr), 2), torch.from_numpy(lr)), [features], [paired])
    children = pyramid.children[0].numpy()
    for row, kin in enumerate(children):
        for own in hr[kin[kin >= 0]]:
            assert (lr[row] <= own).all() and (own < lr[row] + 512).all()
    assert (children >= 0).sum() == sum(((hr >= c) & (hr < c + 512)).all(1).sum() for c in lr)


def test_attention_stays_with_its_tiles_where_some_are_left_out(damaged, tmp_path, lrmil, monkeypatch):
    from lrmil_cli.distill import distill_encoder as stage1

    manifest, at, _ = damaged
    skip = ["--on-bad-tile", "skip"]
    assert (
        lrmil(
            "train-teacher",
            manifest,
            "--tiles",
            at["hr"],
            "--encoder",
            "demo-vit",
            "--epochs",
            "1",
            *skip,
            "-o",
            tmp_path / "teacher",
        ).code
        == 0
    )
    seen = {}
    real = stage1.distill
    monkeypatch.setattr(
        stage1,
        "distill",
        lambda teacher, train, val, *a, **k: (
            seen.update(slides=train, attention=k["attention"]) or real(teacher, train, val, *a, **k)
        ),
    )
    said = lrmil(
        "distill-encoder",
        at["pairs"],
        "--slides",
        manifest,
        "--fold",
        "1",
        "--teacher",
        tmp_path / "teacher",
        "--encoder",
        "demo-vit",
        "--epochs",
        "1",
        "--final-loss",
        "attention",
        "--max-tiles-per-slide",
        "2",
        "-o",
        tmp_path / "e.safetensors",
        *skip,
    )
    assert said.code == 0 and "teach nothing" in said.err, said.err
    paired = next(p for p in seen["slides"] if p.slide_id == "s00").read()
    assert len(paired.children) == 2
    bag = read_features(tmp_path / "teacher" / "features" / "s00.h5")
    _, head = read_teacher(tmp_path / "teacher").head(1)
    with torch.inference_mode():
        whole = dict(zip(map(tuple, bag.coords.tolist()), head(torch.from_numpy(bag.features)).attention.tolist()))
    assert seen["attention"]["s00"] == pytest.approx(
        [whole[tuple(b)] for b in paired.hr_boxes[:, :2].tolist()], abs=1e-6
    )


def test_a_lenient_tile_table_is_not_good_enough_for_a_strict_run(tmp_path, lrmil):
    path = write_tiff(tmp_path / "o.svs", blob_image(3200, 2400))
    line = ["tile", path, "--mpp", "0.5", "--tile-px", "64", "-o", tmp_path / "t.csv"]
    damage(path, 1, [0])
    said = lrmil(*line)
    assert said.code == 3 and not (tmp_path / "t.csv").exists()
    skip = ["--on-bad-tile", "skip"]
    assert lrmil(*line, *skip).code == 0 and read_table(tmp_path / "t.csv", "tiles")[0]["damaged"] is True
    said = lrmil(*line)
    assert said.code == 3 and "passed for glass" in said.err
    assert lrmil(*line, *skip, "--json").records[0]["status"] == "skipped"
