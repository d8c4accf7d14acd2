"""Published encoders through the chain, as stand-ins with random weights."""

from dataclasses import replace

import torch
from safetensors.torch import save_file

from lrmil_cli.encoders import aliases
from lrmil_cli.encoders.aliases import ALIASES
from lrmil_cli.encoders.build import create_vit


def test_conch_through_both_stages(chain, tmp_path, lrmil, monkeypatch):
    args = {"embed_dim": 32, "depth": 3, "num_heads": 2, "pool_dim": 24, "pool_heads": 4}
    monkeypatch.setitem(aliases.ALIASES, "conch", replace(ALIASES["conch"], arch_args=args))
    torch.manual_seed(0)
    names = {
        "attn_pool.ln_out.": "visual.ln_contrast.",
        "attn_pool.": "visual.attn_pool_contrast.",
        "": "visual.trunk.",
    }
    state = create_vit("conch", 448, args).state_dict()
    save_file(
        {next(new + k[len(old) :] for old, new in names.items() if k.startswith(old)): v for k, v in state.items()},
        tmp_path / "conch.safetensors",
    )
    spec = ["--encoder", f"conch@{tmp_path / 'conch.safetensors'}", "--input-size", "128"]

    said = lrmil(
        "distill-encoder",
        chain.pairs,
        *spec,
        "--embedding",
        "pool",
        "--final-loss",
        "uniform",
        "--epochs",
        "1",
        "--lr",
        "1e-3",
        "--warmup",
        "1",
        "--batch-size",
        "32",
        "-o",
        tmp_path / "lr.safetensors",
        "--max-tiles-per-slide",
        "8",
    )
    assert (
        said.code == 0
        and "warning: hf-hub:MahmoodLab/conch is under CC-BY-NC-ND-4.0" in said.err
        and "must not be passed on" in said.err
    )
    about = lrmil("info", tmp_path / "lr.safetensors", "--json").records[0]
    assert (about["architecture"], about["arch_args"], about["embedding"], about["image_size"]) == (
        "conch",
        args,
        "pool",
        128,
    )
    assert (about["base"], about["license"]) == ("hf-hub:MahmoodLab/conch", "CC-BY-NC-ND-4.0")

    said = lrmil(
        "distill-student",
        "--no-onnx",
        chain.manifest,
        "--tiles",
        chain.tiles_lr,
        "--preset",
        "patch",
        "--encoder",
        tmp_path / "lr.safetensors",
        "--epochs",
        "1",
        "-o",
        tmp_path / "model.safetensors",
    )
    assert said.code == 0 and "must not be passed on" in said.err
    assert lrmil("info", tmp_path / "model.safetensors", "--json").records[0]["encoders"][0]["embedding"] == "pool"
    said = lrmil(
        "predict",
        chain.manifest.parent / "slides" / "s00.svs",
        "-m",
        tmp_path / "model.safetensors",
        "-o",
        tmp_path / "out",
    )
    assert said.code == 0, said.err

    said = lrmil("embed", chain.tiles_lr / "s00.tiles.csv", *spec, "-o", tmp_path / "cls.h5", "--verbose")
    assert said.code == 0 and "its authors use --embedding pool for MIL" in said.err and "passed on" not in said.err
    assert lrmil("info", tmp_path / "cls.h5", "--json").records[0]["shape"][1] == 32
    assert (
        lrmil("embed", chain.tiles_lr / "s00.tiles.csv", *spec, "-o", tmp_path / "cls.h5", "--embedding", "pool").code
        == 2
    )  # not the same features
