"""``lrmil benchmark``: its numbers add up, say what was measured and what extrapolated, and every reader reads the same tiles."""

import numpy as np
import pytest

from lrmil_cli.benchmark.readers import compare_readers, middle_part, open_by, shifted
from tests.unit.slides.test_reader import boxes_of, write

SMALL = ["--tile-px", "64", "--rounds", "1", "--max-tiles", "10"]


def test_hr_against_lr(lrmil, slide, tmp_path):
    said = lrmil("benchmark", slide, "--encoder", "demo-vit", *SMALL, "--plot", tmp_path / "b.png", "--json")
    assert said.code == 0, said.err
    (record,) = said.records
    for side in (record["lr"], record["hr"]):
        assert set(side) == {"tiles", "measured", "tissue", "read", "encode", "head", "total", "encoder_floor"}
        assert side["total"] == pytest.approx(side["tissue"] + side["read"] + side["encode"] + side["head"], abs=1e-4)
        assert min(side[k] for k in ("tissue", "read", "encode", "head", "encoder_floor")) > 0
        assert side["measured"] == min(10, side["tiles"])
    lr, hr = record["lr"], record["hr"]
    assert (
        record["ratio"] == pytest.approx(hr["total"] / lr["total"], rel=1e-3)
        and record["tile_ratio"] == hr["tiles"] / lr["tiles"] > 4
    )
    assert record["lr_overhead"] == pytest.approx(lr["total"] / lr["encoder_floor"], rel=1e-3)
    assert hr["tiles"] > 100
    assert record["encoder"].startswith("demo") and record["device"].startswith("cpu") and record["status"] == "ok"
    assert {"lrmil, 1 thread", "tiffslide, 1 thread"} <= set(record["readers"]) and min(record["readers"].values()) > 0
    assert record["gflops"].keys() == {"encoder", "matrix_product", "share"} and min(record["gflops"].values()) > 0
    assert (tmp_path / "b.png").read_bytes()[:4] == b"\x89PNG"


def test_a_model_brings_its_own_scale_and_the_table_fits_a_terminal(lrmil, chain, slide):
    said = lrmil("benchmark", slide, "-m", chain.model, "--rounds", "1", "--max-tiles", "3")
    assert said.code == 0, said.err
    assert "LR, 2 um/px" in said.out and "HR, 0.5 um/px" in said.out and "* measured on 3 LR and 3 HR tiles" in said.out
    assert max(map(len, said.out.splitlines())) <= 80


def test_read_only_compares_readers_on_and_off_the_blocks(lrmil, slide):
    said = lrmil("benchmark", slide, "--read-only", "--tile-px", "64", "--max-tiles", "16", "--json")
    (record,) = said.records
    assert said.code == 0 and record["hr"] is None and record["lr"] is None
    assert record["readers"].keys() == record["readers_shifted"].keys() == record["readers_hr"].keys()
    assert (
        max(map(len, lrmil("benchmark", slide, "--read-only", "--tile-px", "64", "--max-tiles", "16").out.splitlines()))
        <= 80
    )


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--model", "m", "--encoder", "e"], "not both"),
        (["--read-only", "--encoder", "demo-vit"], "encodes nothing"),
        (["--plot", "b.pdf"], ".png"),
        (["--encoder", "demo-vit", "--mpp", "0.5"], "must be finer"),
    ],
)
def test_what_makes_no_sense_is_refused(lrmil, slide, args, says):
    said = lrmil("benchmark", slide, *args)
    assert said.code == 2 and says in said.err


def test_a_slide_too_coarse_for_hr_is_said(lrmil, slide):
    said = lrmil("benchmark", slide, "--encoder", "demo-vit", "--slide-mpp", "1.0", *SMALL)
    assert said.code == 3 and "0.5 um/px was asked for" in said.err


def test_all_readers_read_the_same_tiles(tmp_path):
    path = write(tmp_path, "jpeg ycbcr")
    boxes = boxes_of(64, 64, 0, 0)
    assert len(middle_part(boxes, 5)) == 5 and np.array_equal(middle_part(boxes, 10**6), boxes)
    assert np.array_equal(shifted(boxes, 4.0)[:, :2] - boxes[:, :2], np.full((len(boxes), 2), 400))
    rates, notes = compare_readers(path, 0.5, boxes, 0, 64, workers=3, rounds=1)
    assert list(rates)[:3] == ["lrmil, 1 thread", "lrmil, 3 threads", "tiffslide, 1 thread"]
    assert [n for n in notes if not n.startswith("openslide")] == []  # which need not be installed
    pixels = []
    for reader in ("lrmil", "tiffslide"):
        with open_by(reader, path, 0.5, 1) as slide:
            assert (slide.blocks(0) is None) == (reader == "tiffslide")
            pixels.append(slide.read(0, 10, 10, 200, 200))
    assert np.array_equal(*pixels)


def test_operations_are_counted_as_by_hand():
    """A linear layer of 64 x 32 on 10 rows is 2 * 10 * 64 * 32; attention is two products of 50 x 16 by 16 x 50 a head."""
    import torch

    from lrmil_cli.benchmark.speed import operations

    q = torch.zeros(1, 2, 50, 16)
    with torch.inference_mode():
        assert operations(lambda: torch.nn.Linear(64, 32)(torch.zeros(10, 64))) == 2 * 10 * 64 * 32
        assert operations(lambda: torch.nn.functional.scaled_dot_product_attention(q, q, q)) == 2 * 2 * (
            2 * 50 * 50 * 16
        )
