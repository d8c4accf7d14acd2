"""Which checkpoint stage 1 goes on from, and what it draws of a big slide."""

import numpy as np
import pytest
import torch

from lrmil_cli.app import run
from lrmil_cli.distill.distill_encoder import collect
from lrmil_cli.distill.encoder_training import _capped, distill
from lrmil_cli.distill.settings import Stage1Settings
from lrmil_cli.encoders.spec import load_encoder


@pytest.fixture(scope="module")
def cohort(slide, tmp_path_factory):
    """The pairs of one small slide."""
    at = tmp_path_factory.mktemp("stage1")
    for line in (
        ["tile", slide, "--mpp", "2.0", "--tile-px", "128", "-o", at / "lr.csv"],
        ["tile", slide, "--mpp", "0.5", "--tile-px", "128", "-o", at / "hr.csv"],
        ["match", at / "lr.csv", at / "hr.csv", "-o", at / "blob.pairs.csv"],
    ):
        assert run([*map(str, line), "--quiet"]) == 0
    return collect([str(at / "blob.pairs.csv")], None, None, 5, None, 0)


def train(cohort, cache, epochs, key="a" * 16):
    said = []
    encoder = load_encoder("demo-vit", tile_px=128, ratio=4)
    settings = Stage1Settings((0, 1), lr=1e-3, epochs=epochs, batch_size=4, warmup=3)
    args = dict(cache=cache, key=key, device=torch.device("cpu"), say=said.append)
    return distill(encoder, cohort.train, cohort.val, settings, **args), said


def test_the_checkpoint_of_another_run_or_a_damaged_one_is_not_used(cohort, tmp_path):
    one, _ = train(cohort, tmp_path, 1)
    own, said = train(cohort, tmp_path, 1)
    assert any("resumed after epoch 1" in s for s in said) and own.curves == one.curves
    other, said = train(cohort, tmp_path, 1, key="a" * 16 + "b")  # the same file name, another digest
    assert not any("resumed" in s for s in said) and other.curves == one.curves
    one.checkpoint.write_bytes(one.checkpoint.read_bytes()[:1000])
    again, said = train(cohort, tmp_path, 1)
    assert not any("resumed" in s for s in said) and again.curves == one.curves


def test_tiles_drawn_of_a_big_slide_depend_on_seed_and_slide():
    settings = Stage1Settings(max_tiles_per_slide=5)
    drawn = _capped(40, settings, "a")
    assert len(drawn) == 5 and np.array_equal(drawn, _capped(40, settings, "a"))
    assert not np.array_equal(drawn, _capped(40, settings, "b"))
    assert not np.array_equal(drawn, _capped(40, Stage1Settings(max_tiles_per_slide=5, seed=1), "a"))
    assert _capped(4, settings, "a").tolist() == [0, 1, 2, 3]
    assert len(_capped(40, settings, "not UTF-8: \udcff")) == 5  # as Python reads such a file name
