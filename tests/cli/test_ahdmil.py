"""``train-teacher --head dmin`` and ``distill-student --method ahdmil|hdmil`` on small slides."""

import json

import numpy as np
import pandas as pd
import pytest

from lrmil_cli.app import run
from lrmil_cli.distill.screened import load_screened
from lrmil_cli.distill.targets import read_pairs
from lrmil_cli.distill.windows import make_images
from lrmil_cli.training.bags import list_tables


@pytest.fixture(scope="module")
def dmin(chain, tmp_path_factory):
    """A teacher with DMIN heads on the features of the chain's teacher."""
    at = tmp_path_factory.mktemp("dmin") / "teacher"
    line = ["train-teacher", chain.manifest, "--features", chain.teacher / "features", "--tiles", chain.tiles_hr, "--encoder", "demo-vit", "--head", "dmin",
            "--head-option", "embed_dim=32", "--head-option", "hidden=16", "--epochs", "4", "--lr", "1e-3", "-o", at, "-q"]
    assert run([str(a) for a in line]) == 0
    return at


def student(chain, teacher, output, *more):
    return ["distill-student", chain.manifest, "--tiles", chain.tiles_lr, "--pairs", chain.pairs, "--encoder", "demo-vit", "--teacher", teacher,
            "--epochs", "1", "-o", output, *more]


def test_hdmil_from_slides_to_a_model_file(chain, dmin, tmp_path, lrmil):
    model = tmp_path / "h.safetensors"
    said = lrmil(*student(chain, dmin, model, "--method", "hdmil", "--json"))
    assert said.code == 0, said.err
    (record,) = said.records
    assert record["method"] == "hdmil" and 0 <= record["kept_rate"] <= 1
    table = pd.read_csv(tmp_path / "h.predictions.csv", comment="#")
    assert (table["hr_read"] <= table["hr_tiles"]).all() and (table["hr_read"] > 0).all() and len(table) == 4
    assert {"val_kept", "train_kept", "train_hard"} <= set(pd.read_csv(tmp_path / "h.curves.csv", comment="#")) and (tmp_path / "h.curves.png").exists()
    loaded = load_screened(model)
    assert loaded.base.header["method"] == "hdmil" and loaded.hr_tiles.mpp == 0.5 and loaded.base.tiles.mpp == 2.0 and loaded.ratio == 4
    again = lrmil(*student(chain, dmin, model, "--method", "hdmil", "--json"))
    assert again.records[0]["status"] == "skipped" and again.records[0]["metrics"] == record["metrics"]
    assert "hdmil" in lrmil("info", model).out
    assert json.loads(lrmil("info", model, "--json").out)["screen"] == {"px": 16, "source": "lr-tiles", "branches": 1}


def test_both_sources_show_the_same_tissue(chain):
    paired = read_pairs(next(iter(list_tables(chain.pairs, "pairs").values())))
    tiles, thumbnail = (make_images(paired, 16, source, None, 1).astype(float) for source in ("lr-tiles", "thumbnail"))
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
    assert not out.exists()
