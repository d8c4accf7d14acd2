"""A second look: when an answer is in doubt, calibration, and what reading more buys."""

import numpy as np
import pytest

from lrmil_cli.errors import UsageError
from lrmil_cli.evaluation.calibration import HIGHEST, LOWEST, calibrated, fit_temperature
from lrmil_cli.evaluation.tiles_read import Reading, cascade_curve, read_reading
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


def test_calibration_by_hand():
    p = np.array([[0.8, 0.2], [0.5, 0.5]])
    assert calibrated(p, 1.0) == pytest.approx(p)
    assert calibrated(p, 2.0)[0, 0] == pytest.approx(2 / 3)  # 0.8 : 0.2 = 4 : 1, its root 2 : 1
    assert (calibrated(np.eye(3), 5.0).argmax(1) == np.arange(3)).all() and np.isfinite(
        calibrated(np.eye(3), 0.2)
    ).all()


def test_the_temperature_is_the_best_of_a_fine_grid():
    rng = np.random.default_rng(0)
    truth = rng.dirichlet([1, 1, 1], 400)
    labels = np.array([rng.choice(3, p=t) for t in truth])
    found = fit_temperature(labels, calibrated(truth, 1 / 3))  # three times too sure
    n = np.bincount(labels, minlength=3)[labels]
    targets = np.tile(1 / (n + 3), (3, 1)).T
    targets[np.arange(400), labels] = (n + 1) / (n + 3)
    grid = np.linspace(LOWEST, HIGHEST, 8000)
    losses = [-(targets * np.log(calibrated(calibrated(truth, 1 / 3), t))).sum(1).mean() for t in grid]
    assert found == pytest.approx(grid[int(np.argmin(losses))], abs=0.01) and 2.5 < found < 4


def test_few_slides_that_are_all_right_do_not_make_a_model_sure_of_everything():
    labels = np.array([0, 0, 1, 1])
    p = np.where(np.eye(2)[labels] > 0, 0.7, 0.3)
    own = fit_temperature(labels, p)  # the smoothed target is 3 / 4, not 1
    assert calibrated(p, own).max() == pytest.approx(0.75, abs=1e-3)
    assert fit_temperature(np.zeros(0, int), np.zeros((0, 2))) == 1.0


def slow_curve(labels, first, second, agree, confidence, hr):
    """By a list of slides, one at a time."""
    order = sorted(
        (i for i in range(len(labels)) if np.isfinite(second[i]).all()), key=lambda i: (agree[i], confidence[i])
    )
    points = []
    for k in range(len(order) + 1):
        read = set(order[:k])
        right = [(second if i in read else first)[i].argmax() == labels[i] for i in range(len(labels))]
        points.append((k, sum(hr[i] for i in read) / len(labels), np.mean(right)))
    return points


def test_the_curve_equals_reading_one_slide_after_the_other():
    rng = np.random.default_rng(3)
    n = 40
    first, second = rng.dirichlet([1, 1], n), rng.dirichlet([1, 1], n)
    second[rng.random(n) < 0.3] = np.nan
    labels, agree, confidence, hr = rng.integers(0, 2, n), rng.random(n) < 0.6, rng.random(n), rng.integers(1, 50, n)
    curve = cascade_curve(labels, Reading(hr, hr, hr * 1.0, agree, first, second, agree, confidence))
    assert list(zip(curve.escalated, curve.hr_tiles, curve.accuracy)) == [
        pytest.approx(p) for p in slow_curve(labels, first, second, agree, confidence, hr)
    ]


def test_nothing_read_is_no_curve_and_records_without_counts_are_no_reading():
    one = np.ones(2)
    assert cascade_curve(one.astype(int), Reading(one, one, one, one > 1)) is None
    assert (
        cascade_curve(
            one.astype(int), Reading(one, one, one, one > 1, np.ones((2, 2)), np.full((2, 2), np.nan), one > 0, one)
        )
        is None
    )
    assert read_reading([{"seconds": {}}], ["a", "b"]) is None
    plain = read_reading(
        [{"seconds": {"a": 1, "b": 2}, "tiles_read": {"lr": 3}, "settings": {"tiles": {"mpp": 2.0}}}], ["a", "b"]
    )
    fine = read_reading(
        [{"seconds": {"a": 1}, "tiles_read": {"lr": 3}, "settings": {"tiles": {"mpp": 0.5}}}], ["a", "b"]
    )
    assert (fine.lr.tolist(), fine.hr.tolist(), fine.mid) == ([0], [3], None)
    assert (plain.lr, plain.hr, plain.seconds, plain.uncertain) == ([3], [0], [3.0], [False]) and plain.first is None


def test_no_hr_tile_under_a_tile_is_no_box(tmp_path):
    """The teacher's rule for tissue may be the stricter one."""
    with open_slide(write_tiff(tmp_path / "a.svs", blob_image(700, 600))) as slide:
        high = HighResolution(None, None, [], TileSettings(mpp=0.5, tile_px=512, min_tissue=1.0), 4)
        boxes, _ = tiles_under(slide, {"col": np.array([0]), "row": np.array([0])}, np.array([0]), high)
    assert boxes.shape == (0, 4)
