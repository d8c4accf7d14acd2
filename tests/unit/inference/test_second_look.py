"""A second look: when an answer is in doubt, and which tiles are read then."""

import numpy as np
import pytest

from lrmil_cli.errors import UsageError
from lrmil_cli.inference.doubt import Rule, doubt_of_number, make_rule
from lrmil_cli.inference.doubt import doubt_of_classes as doubt
from lrmil_cli.inference.second_look import HighResolution, tiles_under
from lrmil_cli.slides.slide import open_slide
from lrmil_cli.slides.tiles import TileSettings
from tests.conftest import blob_image, write_tiff


def test_doubt_is_disagreement_or_a_calibrated_probability_in_the_grey_zone():
    assert doubt(np.array([[0.9, 0.1], [0.95, 0.05]]), 0.8, 1.0) == (None, pytest.approx(0.925), True)
    reason, sure, agree = doubt(np.array([[0.9, 0.1], [0.4, 0.6]]), 0.1, 1.0)
    assert reason == "the fold heads disagree" and sure == pytest.approx(0.65) and not agree
    reason, sure, agree = doubt(np.array([[0.9, 0.1]]), 0.8, 3.0)  # a temperature of 3 makes 0.9 to 9^(1/3) : 1
    assert (
        reason == "probability 0.6753 is below 0.8"
        and sure == pytest.approx(9 ** (1 / 3) / (9 ** (1 / 3) + 1))
        and agree
    )
    assert doubt(np.array([[1.0, 0.0]]), 1.0, 1.0)[0] is not None  # 1 means always


def test_a_number_is_in_doubt_where_its_heads_differ_by_more_than_a_share_of_its_spread():
    header = {"target": {"kind": "regression", "loss": "huber", "label": "x"}, "outputs": [{"mean": 0, "sd": 8.0}] * 2}
    rule = make_rule(header, "m", 0.8, None)
    assert rule.max_spread == 2.0  # a quarter
    assert doubt_of_number(np.array([5.0, 9.0]), rule.max_spread) is None
    assert "deviation of 2.05, more than 2" in doubt_of_number(np.array([5.0, 9.1]), rule.max_spread)
    assert doubt_of_number(np.array([5.0, 5.0]), 0.0) is not None  # 0 means always
    with pytest.raises(UsageError, match="m has one head"):
        make_rule({**header, "outputs": header["outputs"][:1]}, "m", 0.8, 1.0)
    with pytest.raises(UsageError, match="--max-spread -1"):
        make_rule(header, "m", 0.8, -1.0)


@pytest.mark.parametrize("confidence", [0.0, -1.0, 1.01])
def test_a_confidence_that_is_no_probability_is_refused(confidence):
    with pytest.raises(UsageError, match="--confidence"):
        Rule(confidence)


def test_no_hr_tile_under_a_tile_is_no_box(tmp_path):
    """The teacher's rule for tissue may be the stricter one."""
    with open_slide(write_tiff(tmp_path / "a.svs", blob_image(700, 600))) as slide:
        high = HighResolution(None, None, [], [], TileSettings(mpp=0.5, tile_px=512, min_tissue=1.0), 4, None, None)
        boxes, _ = tiles_under(slide, {"col": np.array([0]), "row": np.array([0])}, np.array([0]), high)
    assert boxes.shape == (0, 4)
