"""Files of TRIDENT, CLAM and STAMP: what is read of them, what is refused, and pairing on grids that are not ours."""

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lrmil_cli.errors import InputError, UsageError
from lrmil_cli.files.foreign import ForeignTiles, level0, open_bag, read_bag, read_foreign
from lrmil_cli.files.header import last_digest, make_header, step
from lrmil_cli.files.repack import repack
from lrmil_cli.files.tables import write_table
from lrmil_cli.matching.paired_slide import one_tile_a_cell, read_pairs
from lrmil_cli.matching.pairs import match_foreign, match_tables
from lrmil_cli.matching.tile_rows import region_parents
from lrmil_cli.slides.grid import loose_ratio, match_boxes
from tests.layouts import write_atlaspatch, write_clam_coords, write_clam_features, write_stamp, write_trident
from tests.unit.distill.test_teacher_targets import tile_table

AT = np.array([[0, 0], [512, 0], [0, 512], [512, 1024]])
X = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)


def no_slide():
    raise AssertionError("the slide is not needed")


# ---- reading -----------------------------------------------------------------------
@pytest.mark.parametrize("batch_axis", [False, True])
def test_trident(tmp_path, batch_axis):
    path = write_trident(tmp_path / "s.h5", AT, X, source=40, size=(9000, 8000), batch_axis=batch_axis)
    bag = read_bag(path, no_slide)
    np.testing.assert_array_equal(bag.coords, AT)
    np.testing.assert_array_equal(bag.features, X)
    assert bag.coords.dtype == np.int64 and bag.features.dtype == np.float32
    assert bag.header["made_by"] == "trident" and bag.header["encoder"] == {
        "name": "uni_v1",
        "embedding": None,
        "made_by": "trident",
    }
    assert bag.header["tiles"] == {
        "tile_px": 256,
        "side_level0_px": 512,
        "magnification": 20,
        "overlap": 0,
        "mpp": None,
    }
    alone = read_foreign(write_trident(tmp_path / "patches/s_patches.h5", AT, source=40, size=(9000, 8000)))
    assert alone.width is None and alone.side == 512 and alone.size == (9000, 8000) and alone.name == "s"


def test_trident_before_it_wrote_the_side(tmp_path):
    path = write_trident(tmp_path / "s.h5", AT, X, source=40, target=10)
    with h5py.File(path, "a") as h5:
        del h5["coords"].attrs["patch_size_level0"]
    assert read_foreign(path).side == 1024  # 256 px at 10x of a 40x slide


def test_clam(tmp_path):
    at = read_foreign(write_clam_coords(tmp_path / "patches/s.h5", AT, level=1, downsample=4.0))
    assert (at.made_by, at.side, at.tile_px, at.level, at.size) == ("clam", 1024, 256, 1, (10000, 10000))
    bare = read_bag(write_clam_features(tmp_path / "h5_files/s.h5", AT, X), no_slide)
    np.testing.assert_array_equal(bare.coords, AT)
    assert (
        bare.header["made_by"] == "clam"
        and bare.header["tiles"]["side_level0_px"] is None
        and bare.header["tiles"]["tile_px"] is None
    )


def test_clam_without_downsample_asks_the_slide(tmp_path):
    tiles = read_foreign(write_clam_coords(tmp_path / "s.h5", AT, level=1, downsample=None))
    assert tiles.side is None and level0(tiles, None)[1] is None
    assert level0(tiles, None, lambda: [1.0, 4.0])[1] == 1024
    with pytest.raises(InputError, match="level 1.*levels 0 to 0"):
        level0(tiles, None, lambda: [1.0])
    assert read_foreign(write_clam_coords(tmp_path / "t.h5", AT, level=0, downsample=None)).side == 256


def test_stamp_of_both_kinds(tmp_path):
    new = read_bag(write_stamp(tmp_path / "s.h5", AT * 0.5, X), lambda: 0.5)
    np.testing.assert_array_equal(new.coords, AT)
    np.testing.assert_array_equal(new.features, X.astype(np.float16).astype(np.float32))
    assert new.header["tiles"] == {
        "tile_px": 224,
        "side_level0_px": 512,
        "magnification": None,
        "overlap": 0,
        "mpp": 256 / 224,
    }
    assert new.header["encoder"]["name"] == "uni2"
    old = read_bag(write_stamp(tmp_path / "t.h5", AT * 0.5, X, tile_px=None), 0.5)
    np.testing.assert_array_equal(old.coords, AT)
    assert old.header["tiles"]["tile_px"] is None and old.header["tiles"]["mpp"] is None


@given(st.floats(0.1, 1.2), st.sampled_from([112.0, 224.0, 256.0]), st.integers(0, 2**32 - 1))
def test_stamp_corners_come_back_to_the_pixel(mpp, tile_um, seed):
    """STAMP cuts blocks of n x n tiles of ceil(tile_um / mpp) px and inside of them counts on in um, stored as
    float32."""
    side = int(np.ceil(tile_um / mpp))
    n = max(1, int(1024 * mpp // tile_um))
    rng = np.random.default_rng(seed)
    block, inner = rng.integers(0, 100_000 // (side * n), (30, 2)), rng.integers(0, n, (30, 2))
    um = (block * side * n * mpp + inner * tile_um).astype(np.float32)
    tiles = ForeignTiles("s.h5", "stamp", "um", um.astype(np.float64), None, 224, tile_um, "d")
    if (n - 1) * (side - tile_um / mpp) > 0.9:
        return  # beyond what counts as rounding
    coords, found = level0(tiles, mpp)
    assert np.abs(coords - (block * n + inner) * side).max() == 0 and found == side


def test_stamp_with_another_mpp_is_not_guessed(tmp_path):
    with pytest.raises(InputError, match="off every grid of whole pixels.*--slide-mpp"):
        read_bag(write_stamp(tmp_path / "s.h5", AT * 40 * 0.5, X), 0.49)


def test_atlaspatch(tmp_path):
    path = write_atlaspatch(tmp_path / "s.h5", AT, {"uni_v1": X})
    bag = read_bag(path, no_slide)
    np.testing.assert_array_equal(bag.coords, AT)
    np.testing.assert_array_equal(bag.features, X)
    assert bag.header["made_by"] == "atlaspatch" and bag.header["encoder"]["name"] == "uni_v1"
    assert (bag.header["tiles"]["side_level0_px"], bag.header["tiles"]["tile_px"]) == (128, 128)
    alone = read_foreign(write_atlaspatch(tmp_path / "t.h5", AT, {}))
    assert alone.dataset is None and alone.size == (10000, 9000)


@pytest.mark.parametrize("dtype", [None, "float16"])
def test_repacked_files_say_the_same_in_one_piece(tmp_path, dtype):
    rows = np.stack([np.arange(400) * 256, np.zeros(400)], 1)
    x = np.random.default_rng(1).normal(size=(400, 6)).astype(np.float32)
    for n, path in enumerate(
        (
            write_trident(tmp_path / "trident.h5", rows, x, source=40, size=(9000, 8000)),
            write_clam_features(tmp_path / "clam.h5", rows, x),
            write_atlaspatch(tmp_path / "atlas.h5", rows, {"uni_v1": x, "conch": x[:, :3]}),
        )
    ):
        size = repack(path, tmp_path / "new" / path.name, feature_set="uni_v1" if n == 2 else None, dtype=dtype)
        new = open_bag(tmp_path / "new" / path.name, no_slide)
        assert not new.in_chunks and (tmp_path / "new" / path.name).stat().st_size == size
        bag = new.read()
        np.testing.assert_array_equal(bag.features, x if dtype is None else x.astype(np.float16))
        np.testing.assert_array_equal(bag.coords, rows)
        if n < 2:
            old = open_bag(path, no_slide)
            assert old.in_chunks and {**old.header, "history": 0} == {**new.header, "history": 0}
    with pytest.raises(UsageError, match="has conch, uni_v1"):
        repack(tmp_path / "atlas.h5", tmp_path / "x.h5", feature_set="gigapath")
    write_trident(tmp_path / "big.h5", rows, x + 1e6)
    with pytest.raises(UsageError, match="which float16 cannot hold"):
        repack(tmp_path / "big.h5", tmp_path / "x.h5", dtype="float16")
    assert not (tmp_path / "x.h5").exists()


def test_features_of_half_precision_and_with_axes_of_one(tmp_path):
    path = write_trident(tmp_path / "s.h5", AT, X.astype(np.float16)[:, :, None, None])
    bag = read_bag(path, no_slide)
    assert bag.features.shape == (4, 6) and bag.features.dtype == np.float32
    np.testing.assert_array_equal(bag.features, X.astype(np.float16).astype(np.float32))
    assert read_bag(write_trident(tmp_path / "one.h5", AT[:1], X[:1]), no_slide).features.shape == (1, 6)


def test_the_digest_is_of_the_content(tmp_path):
    def key(path):
        return last_digest(open_bag(path, no_slide).header)

    first = write_trident(tmp_path / "a/s.h5", AT, X)
    assert key(write_trident(tmp_path / "b/s.h5", AT, X)) == key(first)
    others = [
        write_trident(tmp_path / "c/s.h5", AT, X + 1),
        write_trident(tmp_path / "d/s.h5", AT + 1, X),
        write_trident(tmp_path / "e/s.h5", AT, X, source=40),
    ]
    assert len({key(first), *(key(p) for p in others)}) == 4
    assert read_foreign(others[0]).digest == read_foreign(first).digest  # what pairs hang on: places alone


def plain(path, **datasets):
    """A HDF5 file without any attribute."""
    with h5py.File(path, "w") as h5:
        for key, values in datasets.items():
            h5[key] = values


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda p: p.write_bytes(b"not HDF5 at all"), "not an HDF5 file"),
        (lambda p: p.write_bytes(write_trident(p, AT, X).read_bytes()[:-700]), "cut short|cannot be read"),
        (lambda p: write_trident(p, AT, np.where(X > 1, np.nan, X)), r"\d+ of its feature values are not finite"),
        (lambda p: write_trident(p, AT, X[0]), "do not fit its 4 coordinates.*whole slide"),
        (lambda p: write_trident(p, AT, X[:3]), "do not fit"),
        (lambda p: write_trident(p, AT[:0], X[:0]), "no tiles in it"),
        (lambda p: write_trident(p, AT[:, :1], X), r"coords of shape \(4, 1\)"),
        (lambda p: write_trident(p, AT, (X * 100).astype(np.int32)), "floats are needed"),
        (lambda p: write_trident(p, AT), "coordinates of TRIDENT without features"),
        (lambda p: write_stamp(p, AT, X, unit=None), "STAMP 2"),
        (lambda p: write_stamp(p, AT, X, feat_type="slide"), "features of a whole slide"),
        (lambda p: plain(p, embeddings=X), r"not a feature or coordinate file .*\(it holds embeddings;"),
        (lambda p: plain(p, coords=AT, imgs=X), "not a feature or coordinate file"),
        (lambda p: plain(p, coords=AT), "do not say how large a tile is"),
        (lambda p: plain(p, coords=AT + 0.5, features=X), "no level-0 pixels"),
    ],
)
def test_what_cannot_be_used_is_refused(tmp_path, make, says):
    path = tmp_path / "s.h5"
    make(path)
    with pytest.raises(InputError, match=says) as e:
        read_bag(path, lambda: 0.5)
    assert str(path) in str(e.value) and "\n" not in str(e.value)


# ---- pairing -----------------------------------------------------------------------
def overlap(a, side_a, b, side_b):
    """Area that two squares (corner, side) share."""
    return np.prod([max(0.0, min(a[i] + side_a, b[i] + side_b) - max(a[i], b[i])) for i in (0, 1)])


@settings(max_examples=80, deadline=None)
@given(st.integers(2, 8), st.floats(-0.019, 0.019), st.floats(37, 900), st.integers(0, 2**32 - 1))
def test_an_hr_tile_belongs_to_the_lr_tile_and_the_cell_it_overlaps_most(ratio, misfit, step_l, seed):
    """Against rectangles and areas: any offset, sides that do not quite fit, LR tiles missing, tiles on top of each
    other."""
    rng = np.random.default_rng(seed)
    side = step_l / ratio / (1 + misfit)
    every = [(r, c) for r in range(5) for c in range(5)]
    kept = [every[i] for i in rng.permutation(25)[:14]]
    xy = rng.uniform(-side, 5.2 * step_l, (40, 2))
    parent, cell, offset = match_boxes(
        [c for _, c in kept], [r for r, _ in kept], step_l, xy[:, 0], xy[:, 1], side, ratio
    )
    assert loose_ratio(step_l, side) == ratio
    for n, at in enumerate(xy):
        areas = {(r, c): overlap(at, side, (c * step_l, r * step_l), step_l) for r, c in every}
        best = max(areas, key=areas.get)
        centre = at + side / 2
        if not (centre >= 0).all() or not (centre < 5 * step_l).all() or best not in kept:
            assert parent[n] == -1
            continue
        assert kept[parent[n]] == best
        corner = np.array([best[1], best[0]]) * step_l
        cells = {
            (a, b): overlap(at, side, corner + np.array([b, a]) * step_l / ratio, step_l / ratio)
            for a in range(ratio)
            for b in range(ratio)
        }
        near = max(cells, key=cells.get)
        if cells[near] - cells[divmod(int(cell[n]), ratio)] > 1e-9 * side**2:
            raise AssertionError((near, divmod(int(cell[n]), ratio)))
        # the offset leads from the cell's centre to the tile's
        a, b = divmod(int(cell[n]), ratio)
        np.testing.assert_allclose(
            corner + (np.array([b, a]) + 0.5) * step_l / ratio + offset[n], centre, atol=1e-6 * step_l
        )


def test_a_tile_left_of_the_slide_is_nobodys():
    parent, _, _ = match_boxes(
        [1], [0], 512.0, np.array([-100.0]), np.array([600.0]), 128.0, 4
    )  # not of the last tile one row up
    assert parent.tolist() == [-1]


def foreign(coords, side=128, tile_px=128, **changes):
    return ForeignTiles(
        "hr.h5", "trident", "px", np.asarray(coords, np.int64), None, tile_px, side, "d" * 32, **changes
    )


def test_a_foreign_grid_that_is_ours_gives_our_pairs():
    lr_header, lr = tile_table(3, 2, 2.0)
    hr_header, hr = tile_table(12, 8, 0.5)
    rows, about = match_tables(lr_header, lr, hr_header, hr)
    other, said, header = match_foreign(lr_header, lr, foreign(hr[["x", "y"]]))
    assert other.equals(rows.drop(columns="hr_tissue")) and said["ratio"] == 4  # other tools say nothing of tissue
    same = {k: v for k, v in about["counts"].items() if k != "scale_error_px"}
    assert said["counts"] == {**same, "straddling": 0, "shared": 0, "misaligned": 0, "offset": 0}
    assert header["settings"]["mpp"] == 0.5 and header["slide"] == lr_header["slide"]


def test_a_shifted_grid_is_counted_by_hand():
    lr_header, lr = tile_table(2, 1, 2.0)  # two LR tiles of 512 px
    x = np.arange(0, 1024, 128) + 32  # a quarter of a side off: the fourth tile of each LR tile sticks out by 32 px
    at = [(a, b) for b in (0, 128) for a in x]
    rows, about, _ = match_foreign(lr_header, lr, foreign(at))
    c = about["counts"]
    assert (c["pairs"], c["straddling"], c["misaligned"], c["offset"], c["shared"]) == (16, 4, 0, 0.25, 0)
    assert (
        rows["cell_col"].tolist() == [0, 1, 2, 3] * 4
        and rows["lr_index"].tolist() == [0] * 4 + [1] * 4 + [0] * 4 + [1] * 4
    )
    c = match_foreign(lr_header, lr, foreign([(a + 1, b) for a, b in at]))[1]["counts"]
    assert c["misaligned"] == 16 and c["offset"] == pytest.approx(33 / 128, abs=1e-3)


@pytest.mark.parametrize(
    ("tiles", "says"),
    [
        (foreign([(0, 0)], side=118), "holds 4.339 of its tiles.*--mpp 1.844"),
        (foreign([(0, 0)], side=512), "swapped"),
        (foreign([(0, 0), (4096, 0)]), "beyond the 4096 x 4096 px"),
        (foreign([(0, 0)], size=(9000, 4096)), "of a slide of 9000 x 4096"),
        (foreign([(2048, 2048)]), "none of its tiles lies in an LR tile"),
        (foreign([(0, 0)], side=None), "match its coordinate file"),
    ],
)
def test_tiles_that_do_not_fit_the_lr_side(tiles, says):
    lr_header, lr = tile_table(2, 2, 2.0)
    with pytest.raises(InputError, match=says):
        match_foreign(lr_header, lr, tiles)


def written(tmp_path, tiles, cols=2, rows=2):
    lr_header, lr = tile_table(cols, rows, 2.0)
    lr_header["settings"]["allow_upsample"] = False
    table, about, hr = match_foreign(lr_header, lr, tiles)
    write_table(
        tmp_path / "s.pairs.csv",
        make_header(
            "pairs",
            slide=lr_header["slide"],
            settings={},
            **about,
            lr=lr_header,
            hr=hr,
            history=[step("match", {}, {})],
        ),
        table,
    )
    return read_pairs(tmp_path / "s.pairs.csv"), table


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([1, 7, 32, 64]))
def test_tiles_in_one_cell_the_nearest_teaches_stage_1_and_all_teach_stage_2(tmp_path_factory, seed, grain):
    rng = np.random.default_rng(seed)
    xy = rng.integers(0, 1024 // grain, (200, 2)) * grain
    paired, table = written(tmp_path_factory.mktemp("p"), foreign(xy))
    # stage 2: every tile of the table has its parent
    parent = region_parents(paired, len(xy))
    want = np.full(len(xy), -1)
    want[table["hr_index"]] = table["lr_index"]
    np.testing.assert_array_equal(parent, want)
    # stage 1: brute force over the cells
    best = {}
    for n, r in table.iterrows():
        off = (
            max(abs(r["hr_x"] - r["lr_x"] - r["cell_col"] * 128), abs(r["hr_y"] - r["lr_y"] - r["cell_row"] * 128))
            / 128
        )
        key = (r["lr_index"], r["cell_row"] * 4 + r["cell_col"])
        if key not in best or off < best[key][0]:
            best[key] = (off, n)
    got = {(paired.lr_index[g], k): paired.children[g, k] for g, k in zip(*np.nonzero(paired.children >= 0))}
    assert got == {k: n for k, (_, n) in best.items()}
    full = np.bincount([r for r, _ in best], minlength=4)
    counts = paired.header["counts"]
    assert counts["shared"] == len(table) - len(best) and counts["pairs"] == len(table)
    assert (counts["matched"], counts["incomplete"], counts["unmatched"]) == (
        (full > 0).sum(),
        ((full > 0) & (full < 16)).sum(),
        (full == 0).sum(),
    )
    aligned = {k: int(table["hr_index"][n]) for k, (off, n) in best.items() if off <= 0.25}
    if not aligned:
        with pytest.raises(InputError, match="more than 0.25 of their side off"):
            one_tile_a_cell(paired)
        return
    few = one_tile_a_cell(paired)
    assert {
        (few.lr_index[g], k): few.hr_index[few.children[g, k]] for g, k in zip(*np.nonzero(few.children >= 0))
    } == aligned
    assert (few.children >= 0).any(axis=1).all() and len(few.hr_index) == len(aligned)
    np.testing.assert_array_equal(few.hr_boxes[:, :2], xy[few.hr_index])
    np.testing.assert_array_equal(few.lr_boxes[few.region, 0], table.set_index("hr_index").loc[few.hr_index, "lr_x"])


def test_tiles_on_the_lr_grid_all_stay_for_stage_1(tmp_path):
    paired, _ = written(tmp_path, foreign([(x, y) for x in range(0, 1024, 128) for y in range(0, 1024, 128)]))
    assert one_tile_a_cell(paired) is paired


def test_a_grid_off_everywhere_names_the_way_out_for_stage_1(tmp_path):
    paired, _ = written(tmp_path, foreign([(x + 40, y) for x in range(0, 896, 128) for y in range(0, 1024, 128)]))
    with pytest.raises(InputError, match=r"lrmil tile --mpp 0.5 --tile-px 128"):
        one_tile_a_cell(paired)
