"""A second look: when an answer is in doubt, and which tiles are read then."""

import numpy as np
import pytest

from lrmil_cli.errors import UsageError
from lrmil_cli.inference.second_look import Escalation, HighResolution, doubt, tiles_under
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


@pytest.mark.parametrize("confidence", [0.0, -1.0, 1.01])
def test_a_confidence_that_is_no_probability_is_refused(confidence):
    with pytest.raises(UsageError, match="--confidence"):
        Escalation(4, confidence, 1.0)


def test_no_hr_tile_under_a_tile_is_no_box(tmp_path):
    """The teacher's rule for tissue may be the stricter one."""
    with open_slide(write_tiff(tmp_path / "a.svs", blob_image(700, 600))) as slide:
        high = HighResolution(None, None, [], TileSettings(mpp=0.5, tile_px=512, min_tissue=1.0), 4, None, None)
        boxes, _ = tiles_under(slide, {"col": np.array([0]), "row": np.array([0])}, np.array([0]), high)
    assert boxes.shape == (0, 4)
