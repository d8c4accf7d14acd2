"""``lrmil benchmark``: its numbers add up, say what was measured and what extrapolated, and every reader reads the
same tiles."""

import pytest

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


def test_each_side_with_an_encoder_of_its_own(lrmil, slide):
    args = ["--encoder", "demo-vit", "--hr-encoder", "vit_tiny_patch16_224", "--random-init", *SMALL]
    said = lrmil("benchmark", slide, *args, "--json")
    assert said.code == 0, said.err
    (record,) = said.records
    assert record["encoder"].startswith("demo") and record["hr_encoder"] == "vit_tiny_patch16_224, random weights"
    per_tile = [record[side]["encoder_floor"] / record[side]["tiles"] for side in ("hr", "lr")]
    assert per_tile[0] > 2 * per_tile[1]  # 12 blocks at 256 px against 6 narrower ones
    assert record["ratio"] > record["tile_ratio"]


def test_lr_by_graphs_made_for_it_beside_hr_by_torch(lrmil, slide):
    pytest.importorskip("onnxscript")
    args = ["--rounds", "1", "--max-tiles", "4", "--encoder", "demo-vit", "--runtime", "onnx-int8"]
    said = lrmil("benchmark", slide, *args)
    assert said.code == 0 and "by ONNX Runtime in int8; cpu" in said.out and "GFLOP" not in said.out, said.err


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
        (["--read-only", "--hr-encoder", "demo-vit"], "encodes nothing"),
        (["--read-only", "--runtime", "onnx"], "encodes nothing"),
        (["--runtime", "tvm"], "choose one of torch, onnx, onnx-int8"),
        (["--runtime", "onnx", "--device", "cuda"], "runs on the CPU"),
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
