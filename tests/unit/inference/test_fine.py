"""The finer map against rectangles: each cell is the mean of the tiles of all grids that lie over it."""

from contextlib import contextmanager

import numpy as np
import pytest
import shapely

from lrmil_cli.errors import UsageError
from lrmil_cli.inference.fine import fine_map, plan_fine, shiftable
from lrmil_cli.inference.plain import finished, plan_together, predict_plain, predict_together
from lrmil_cli.slides.region import Region
from lrmil_cli.slides.slide import open_slide
from lrmil_cli.slides.tiles import TileSettings, boxes_of, find_tiles


class Model:
    """A model whose attention is a number of where a tile lies; it notes what it reads and encodes."""

    path, header, device, runtime = "m", {}, "none", "torch"

    def __init__(self, tiles, encoder_key="e", scale=1):
        self.tiles, self.encoder_key, self.scale, self.log = tiles, encoder_key, scale, []

    @contextmanager
    def reading(self, slide, boxes, level, bad):
        self.log.append(("read", len(boxes)))
        yield boxes

    def encode_for(self, models, batches, count, seconds):
        own = {m.encoder_key: np.asarray(batches, np.float32) for m in models}
        self.log.append(("encode", *own))
        return [[own[m.encoder_key]] for m in models]

    def classify(self, features, boxes):
        assert np.array_equal(features[0], boxes), "the features of these tiles"
        weight = 1.0 + (boxes[:, 0] // 16 * 7 + boxes[:, 1] // 16 * 3) % 11
        return np.array([[0.2, 0.8 * self.scale]]), weight / weight.sum(), None

    def plan(self, slide, region):
        return 10, 2.0

    def predict(self, slide, region):
        return (yield from predict_plain([self], slide, region))[0]


@pytest.mark.parametrize("pieces", [2, 4])
@pytest.mark.parametrize("region", [None, Region(shapely.box(300, 200, 1100, 1000), 0.5, {})])
def test_cells_are_means_over_the_tiles_of_all_shifted_grids(slide, pieces, region):
    model = Model(TileSettings(mpp=2.0, tile_px=80))  # 320 px of level 0, so that the last column sticks out
    with open_slide(slide) as opened:
        base, _, tissue = find_tiles(opened, model.tiles, region)
        _, attention, _ = model.classify([boxes_of(base).astype(np.float32)], boxes_of(base))
        plan = plan_fine(model, opened, region, pieces)
        rows, _ = fine_map(model, opened, plan, {**base, "attention": attention})
    step = 320 / pieces
    assert set(rows["width"]) == {step}
    total, count = np.zeros(len(rows["x"])), np.zeros(len(rows["x"]), int)
    centre = np.stack([rows["x"], rows["y"]], 1) + step / 2
    for down in range(pieces):
        for right in range(pieces):
            x, y = (
                g.ravel() for g in np.meshgrid(np.arange(right * step, 1600, 320), np.arange(down * step, 1200, 320))
            )
            share = np.array([
                tissue.mask[int(b // tissue.scale_y) : int((b + 320) // tissue.scale_y),
                            int(a // tissue.scale_x) : int((a + 320) // tissue.scale_x)].sum()
                * tissue.scale_x * tissue.scale_y / 320**2
                for a, b in zip(x, y)
            ])  # fmt: skip
            keep = share >= 0.1
            if region is not None:
                keep &= [
                    shapely.box(a, b, min(a + 320, 1600), min(b + 320, 1200)).intersection(region.area).area
                    >= 0.5 * (min(320, 1600 - a) * min(320, 1200 - b))
                    for a, b in zip(x, y)
                ]
            boxes = np.stack([x, y, x * 0 + 320, y * 0 + 320], 1)[keep].astype(np.int64)
            _, a, _ = model.classify([boxes.astype(np.float32)], boxes)
            for (left, top, *_), times in zip(boxes, a * len(a)):
                over = ((centre > [left, top]) & (centre < [left + 320, top + 320])).all(1)
                total += over * times
                count += over
    assert np.array_equal(rows["tiles"], count) and count.min() >= 1 and count.max() == pieces**2
    assert rows["multiple"] == pytest.approx(total / count)
    assert rows["attention"] == pytest.approx(rows["multiple"] / rows["multiple"].sum())
    assert plan.more == model.log[0][1] and len(plan.tiles["x"]) - plan.more == len(base["x"])


def test_a_model_that_picks_its_tiles_has_no_finer_map():
    class Picky:
        path, header, base = "a.safetensors", {"method": "ahdmil"}, None

    with pytest.raises(UsageError, match="ahdmil"):
        shiftable(Picky())


def test_models_that_share_tiles_read_once_and_those_that_share_an_encoder_encode_once(slide):
    tiles = TileSettings(mpp=2.0, tile_px=128)
    models = [Model(tiles), Model(tiles, "other"), Model(tiles, scale=0.5), Model(TileSettings(mpp=2.0, tile_px=64))]
    with open_slide(slide) as opened:
        together = finished(predict_together(models, opened, None))
        assert [m.log for m in models] == [[("read", len(together[0].attention)), ("encode", "e", "other")], [], [],
                                           [("read", len(together[3].attention)), ("encode", "e")]]  # fmt: skip
        for model, p in zip(models, together):
            alone = finished(model.predict(opened, None))
            assert np.array_equal(alone.attention, p.attention) and np.array_equal(alone.raw, p.raw)
        # By the first of each encoder: twice for the three that read together, once for the other.
        assert plan_together(models, opened, None) == (10 + 10, 2 * 2.0 + 2.0)
