"""A lab's old features in the chain: our own HR features written as TRIDENT, CLAM and STAMP lay them out, and the same
results."""

import json
import shutil

import h5py
import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import load_file

from lrmil_cli.app import run
from lrmil_cli.files.features import read_features
from lrmil_cli.files.tables import read_table, write_table
from tests.layouts import write_atlaspatch, write_clam_coords, write_clam_features, write_stamp, write_trident

pytestmark = pytest.mark.usefixtures("all_unpainted")

HEADS = ["--epochs", "8", "--lr", "1e-3"]  # as the chain's own
SHORT = ["--epochs", "1"]


def only_patients_unknown(err):
    """Nothing is warned of but that the table names no patients."""
    return all("patients unknown" in line for line in err.splitlines() if line.startswith("warning: "))


@pytest.fixture(scope="module")
def old(chain, tmp_path_factory):
    """Folders ``trident``, ``trident-patches``, ``clam``, ``clam-patches``, ``stamp`` with the HR features of the
    chain."""
    at = tmp_path_factory.mktemp("old")
    for path in sorted((chain.teacher / "features").glob("*.h5")):
        bag = read_features(path)
        size = bag.header["slide"]["width"], bag.header["slide"]["height"]
        write_trident(at / "trident" / path.name, bag.coords, bag.features, patch_size=128, size=size)
        write_trident(at / "trident-patches" / f"{path.stem}_patches.h5", bag.coords, patch_size=128, size=size)
        write_clam_features(at / "clam" / path.name, bag.coords, bag.features)
        write_clam_coords(
            at / "clam-patches" / path.name, bag.coords, patch_size=32, level=1, downsample=4.0, size=size
        )
        write_stamp(at / "stamp" / path.name, bag.coords * 0.5, bag.features, tile_um=64.0, tile_px=128)
    return at


@pytest.fixture(scope="module")
def moved(chain, old):
    """The manifest without its slides: what is left when only features were kept."""
    shutil.copy(chain.manifest, old / "slides.csv")
    return old / "slides.csv"


@pytest.fixture(scope="module")
def teachers(old, moved):
    """Teachers of the TRIDENT and CLAM copies, by the settings of the chain's own."""
    for make in ("trident", "clam"):
        assert (
            run(
                [
                    "train-teacher",
                    str(moved),
                    "--features",
                    str(old / make),
                    *HEADS,
                    "-o",
                    str(old / "teachers" / make),
                    "-q",
                ]
            )
            == 0
        )
    return old / "teachers"


def same_tables(a, b):
    """Of ours and of another tool's tiles, which say nothing of tissue."""
    ours, theirs = (read_table(path, "pairs")[1] for path in (a, b))
    pd.testing.assert_frame_equal(ours.drop(columns="hr_tissue"), theirs)


@pytest.mark.parametrize("hr", ["trident", "trident-patches", "clam-patches", "stamp"])
def test_pairs_of_the_same_tiles_are_the_same(chain, old, tmp_path, lrmil, hr):
    said = lrmil("match", chain.tiles_lr, old / hr, "-o", tmp_path / "pairs")
    assert said.code == 0 and only_patients_unknown(said.err), said.err
    for path in sorted(chain.pairs.glob("*.pairs.csv")):
        same_tables(path, tmp_path / "pairs" / path.name)
    again = lrmil("match", chain.tiles_lr, old / hr, "-o", tmp_path / "pairs")
    assert again.code == 0 and again.err.count("up to date") == 16
    one = lrmil("match", chain.tiles_lr / "s00.tiles.csv", next((old / hr).glob("s00*.h5")), "-o", "-")
    assert one.code == 0 and one.out.count("\n") == len(read_table(chain.pairs / "s00.pairs.csv", "pairs")[1]) + 2


@pytest.mark.parametrize(("make", "tool"), [("trident", "TRIDENT"), ("clam", "CLAM")])
def test_a_teacher_of_old_features_is_the_teacher_of_our_own(chain, old, moved, teachers, lrmil, make, tool):
    for name in ("metrics", "predictions", "curves"):
        pd.testing.assert_frame_equal(
            read_table(chain.teacher / f"{name}.csv", name)[1], read_table(teachers / make / f"{name}.csv", name)[1]
        )
    about = json.loads((teachers / make / "teacher.json").read_text())
    assert (
        about["made_by"] == make
        and about["metrics"] == json.loads((chain.teacher / "teacher.json").read_text())["metrics"]
    )
    assert about["encoder"]["name"] == ("uni_v1" if make == "trident" else None)
    assert (
        sorted(about["feature_digests"]) == [f"s{i:02d}" for i in range(16)]
        and len(set(about["feature_digests"].values())) == 16
    )
    assert not (teachers / make / "features").exists()
    again = lrmil("train-teacher", moved, "--features", old / make, *HEADS, "-o", teachers / make)
    assert again.code == 0 and "up to date" in again.err and f"as they are in {old / make}: {tool}" in again.err


def test_the_student_and_its_prediction_are_those_of_our_own_features(chain, old, teachers, tmp_path, lrmil):
    assert lrmil("match", chain.tiles_lr, old / "clam-patches", "-o", tmp_path / "pairs", "-q").code == 0
    student = [
        "distill-student",
        "--no-onnx",
        chain.manifest,
        "--tiles",
        chain.tiles_lr,
        "--pairs",
        tmp_path / "pairs",
        "--encoder",
        chain.encoder,
        "--teacher",
        teachers / "clam",
        "--lr-features",
        chain.model.with_suffix(".features"),
    ]
    said = lrmil(*student, *HEADS, "-o", tmp_path / "m.safetensors")
    assert said.code == 0 and only_patients_unknown(said.err) and said.err.count("do not say what embedding") == 1, (
        said.err
    )
    ours, theirs = load_file(chain.model), load_file(tmp_path / "m.safetensors")
    assert ours.keys() == theirs.keys() and all(np.array_equal(ours[k], theirs[k]) for k in ours)
    slide = chain.manifest.parent / "slides" / "s13.svs"
    assert lrmil("predict", slide, "-m", tmp_path / "m.safetensors", "-o", tmp_path / "p").code == 0


def test_stamp_features_take_the_scale_from_the_manifest_or_the_slide(chain, old, moved, tmp_path, lrmil):
    said = lrmil("train-teacher", moved, "--features", old / "stamp", *SHORT, "-o", tmp_path / "t")
    assert said.code == 3 and "no such file" in said.err  # the slide, for its mpp
    with_mpp = tmp_path / "slides.csv"
    rows = moved.read_text().splitlines()
    with_mpp.write_text("\n".join([rows[0] + ",mpp", *(r + ",0.5" for r in rows[1:])]))
    assert lrmil("train-teacher", with_mpp, "--features", old / "stamp", *SHORT, "-o", tmp_path / "t").code == 0
    about = json.loads((tmp_path / "t" / "teacher.json").read_text())
    assert (
        about["made_by"] == "stamp"
        and about["encoder"]["name"] == "uni2"
        and about["tiles"]["mpp"] == 0.5
        and about["tiles"]["side_level0_px"] == 128
    )
    assert (
        lrmil("train-teacher", chain.manifest, "--features", old / "stamp", *SHORT, "-o", tmp_path / "t").code == 0
    )  # from the slides: the same
    said = lrmil(
        "distill-student",
        "--no-onnx",
        chain.manifest,
        "--tiles",
        chain.tiles_lr,
        "--pairs",
        chain.pairs,
        "--encoder",
        chain.encoder,
        "--teacher",
        tmp_path / "t",
        "--lr-features",
        chain.model.with_suffix(".features"),
        *SHORT,
        "--crossfit",
        "2",
        "-o",
        tmp_path / "m.safetensors",
    )
    assert said.code == 0 and "not those that the teacher" not in said.err


def test_our_own_features_need_no_tiles_either(chain, tmp_path, lrmil):
    said = lrmil("train-teacher", chain.manifest, "--features", chain.teacher / "features", *HEADS, "-o", chain.teacher)
    assert said.code == 0 and "up to date" in said.err


def test_stage_1_from_overlapping_foreign_tiles_equals_stage_1_from_our_tiles(chain, tmp_path, lrmil):
    """The HR tiles are read from the slide again, at the side that the foreign file gives; of several in a cell the
    nearest counts."""
    header, rows = read_table(chain.pairs / "s00.pairs.csv", "pairs")
    few = rows[rows["lr_index"].isin(rows["lr_index"].unique()[:3])].reset_index(drop=True)
    write_table(tmp_path / "ours" / "s00.pairs.csv", header, few)
    at = few[["hr_x", "hr_y"]].to_numpy()
    write_trident(tmp_path / "s00_patches.h5", np.concatenate([at + [48, 0], at]), patch_size=128, overlap=80)
    said = lrmil(
        "match",
        chain.tiles_lr / "s00.tiles.csv",
        tmp_path / "s00_patches.h5",
        "-o",
        tmp_path / "theirs" / "s00.pairs.csv",
        "--json",
    )
    assert said.code == 0 and said.records[0]["shared"] > 0
    pairs = said.records[0]["pairs"]
    for kind, left_out in (("ours", 0), ("theirs", pairs - len(at))):
        said = lrmil(
            "distill-encoder",
            tmp_path / kind,
            "--encoder",
            "demo-vit",
            "--epochs",
            "1",
            "--warmup",
            "1",
            "--lr",
            "1e-4",
            "--batch-size",
            "2",
            "-o",
            tmp_path / f"{kind}.safetensors",
        )
        assert said.code == 0 and (f"warning: {left_out} of {pairs} HR tiles are left out" in said.err) == bool(
            left_out
        ), said.err
    a, b = load_file(tmp_path / "ours.safetensors"), load_file(tmp_path / "theirs.safetensors")
    assert a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)


def test_a_shifted_grid_teaches_stage_2_and_not_stage_1(chain, old, teachers, tmp_path, lrmil):
    for path in sorted((old / "trident").glob("*.h5")):
        with h5py.File(path) as h5:
            write_trident(tmp_path / "hr" / path.name, h5["coords"][:] + [40, 24], h5["features"][:], patch_size=128)
    said = lrmil("match", chain.tiles_lr, tmp_path / "hr", "-o", tmp_path / "pairs", "--json")
    assert (
        said.code == 0
        and "0.31 of their side off the LR cells" in said.err
        and "distill-encoder leaves those out" in said.err
    )
    assert all(r["offset"] == 0.312 and r["misaligned"] == r["pairs"] and r["straddling"] for r in said.records)
    refused = lrmil("distill-encoder", tmp_path / "pairs", "--encoder", "demo-vit", "-o", tmp_path / "e.safetensors")
    assert (
        refused.code == 3
        and "lrmil tile --mpp 0.5 --tile-px 128" in refused.err
        and not (tmp_path / "e.safetensors").exists()
    )
    said = lrmil(
        "distill-student",
        "--no-onnx",
        chain.manifest,
        "--tiles",
        chain.tiles_lr,
        "--pairs",
        tmp_path / "pairs",
        "--encoder",
        chain.encoder,
        "--teacher",
        teachers / "trident",
        "--features",
        tmp_path / "hr",
        "--lr-features",
        chain.model.with_suffix(".features"),
        *SHORT,
        "-o",
        tmp_path / "m.safetensors",
        "-q",
    )
    # not the tiles that the teacher learned from, and it says so
    assert said.code == 0 and "are not those that the teacher was trained on" in said.err


def test_wrong_usage(chain, old, tmp_path, lrmil):
    base = ["train-teacher", chain.manifest, "-o", tmp_path / "t"]
    for args, says in (
        ([], "--tiles and --encoder to embed the slides, or --features"),
        (["--tiles", chain.tiles_hr], "go together"),
        (["--encoder", "demo-vit", "--features", old / "trident"], "go together"),
        (["--features", old / "trident", "--embedding", "cls"], "--embedding belongs to --encoder"),
        (["--features", old / "trident", "--random-init"], "--random-init belongs to --encoder"),
    ):
        said = lrmil(*base, *args)
        assert said.code == 2 and says in said.err and not (tmp_path / "t").exists(), said.err
    # features of another tool are nobody's to overwrite
    before = (old / "trident" / "s00.h5").read_bytes()
    said = lrmil(
        *base, "--features", old / "trident", "--tiles", chain.tiles_hr, "--encoder", "demo-vit", "--overwrite"
    )
    assert said.code == 2 and "made by another tool" in said.err and (old / "trident" / "s00.h5").read_bytes() == before
    said = lrmil(
        "match", chain.tiles_lr / "s00.tiles.csv", chain.teacher / "features" / "s00.h5", "-o", tmp_path / "p.csv"
    )
    assert said.code == 3 and "give the tile table" in said.err


def test_folders_that_cannot_be_trained_on(chain, old, tmp_path, lrmil):
    def train(folder):
        said = lrmil("train-teacher", chain.manifest, "--features", folder, *HEADS, "-o", tmp_path / "t")
        assert (
            said.code == 3
            and said.err.count("error: ") == 1
            and only_patients_unknown(said.err)
            and not (tmp_path / "t").exists()
        ), said.err
        return said.err

    mixed = shutil.copytree(old / "trident", tmp_path / "mixed")
    shutil.copy(old / "clam" / "s03.h5", mixed / "s03.h5")
    assert "s03.h5: made by CLAM, but TRIDENT in most of the others" in train(mixed)
    with h5py.File(old / "trident" / "s03.h5") as h5:
        at, x = h5["coords"][:], h5["features"][:]
    write_trident(mixed / "s03.h5", at, x[:, :-1], patch_size=128)
    assert "s03.h5: width" in train(mixed)
    write_trident(mixed / "s03.h5", at, x, patch_size=256)
    assert "s03.h5: tile size in px 256, but 128" in train(mixed)
    (mixed / "s03.h5").write_bytes((old / "trident" / "s03.h5").read_bytes()[:5000])
    assert "s03.h5: not an HDF5 file, or cut short" in train(mixed)
    (mixed / "s03.h5").rename(mixed / "s03.pt")
    assert "s03.h5: no such file; the .pt file there holds no coordinates" in train(mixed)
    # all in one go, and left out on request
    write_trident(mixed / "s03.h5", at, np.where(x > x.mean(), np.nan, x), patch_size=128)
    write_trident(mixed / "s05.h5", at, np.full(x.shape, np.inf, np.float16), patch_size=128)
    write_trident(mixed / "s06.h5", at[:0], x[:0], patch_size=128)
    write_trident(mixed / "s08.h5", at, x[:, :-1], patch_size=128)
    write_atlaspatch(mixed / "s09.h5", at, {"uni_v1": x, "conch": x})
    said = train(mixed)
    assert "3 of 16 feature files cannot be used" in said and all(f"s{n}.h5" in said for n in ("06", "08", "09"))
    assert "s09.h5: holds 2 sets of features (conch, uni_v1)" in said
    said = lrmil(
        "train-teacher", chain.manifest, "--features", mixed, *HEADS, "--on-bad-slide", "skip", "-o", tmp_path / "t"
    )
    assert said.code == 0, said.err
    assert "5 of 16 slides left out" in said.err and said.err.count("warning: left out: ") == 5
    assert "of its feature values are not finite" in said.err and "no tiles in it" in said.err
    assert len(pd.read_csv(tmp_path / "t" / "folds.csv", comment="#")) == 11
    shutil.rmtree(tmp_path / "t")
    assert "without features" in train(_renamed(old / "trident-patches", tmp_path / "coords"))


def _renamed(source, target):
    target.mkdir()
    for path in source.iterdir():
        shutil.copy(path, target / path.name.replace("_patches", ""))
    return target


def test_the_student_is_not_taught_from_features_of_another_width(chain, old, teachers, tmp_path, lrmil):
    for path in sorted((old / "trident").glob("*.h5")):
        with h5py.File(path) as h5:
            write_trident(tmp_path / "wide" / path.name, h5["coords"][:], np.tile(h5["features"][:], 2), patch_size=128)
    said = lrmil(
        "distill-student",
        "--no-onnx",
        chain.manifest,
        "--tiles",
        chain.tiles_lr,
        "--pairs",
        chain.pairs,
        "--encoder",
        chain.encoder,
        "--teacher",
        teachers / "trident",
        "--features",
        tmp_path / "wide",
        "-o",
        tmp_path / "m.safetensors",
    )
    assert (
        said.code == 3 and "wide, the teacher was trained on" in said.err and not (tmp_path / "m.safetensors").exists()
    )


def test_info_says_what_a_foreign_file_is(old, lrmil):
    with h5py.File(old / "trident" / "s00.h5") as h5:
        width = h5["features"].shape[1]
    about = lrmil("info", old / "trident" / "s00.h5", "--json").records[0]
    assert (
        about["kind"] == "features"
        and about["made_by"] == "TRIDENT"
        and about["width"] == width
        and about["tile_side"] == "128 level-0 px"
        and about["encoder"] == "uni_v1"
    )
    assert lrmil("info", old / "clam-patches" / "s00.h5", "--json").records[0]["tile_side"] == "128 level-0 px"
    assert lrmil("info", old / "clam" / "s00.h5", "--json").records[0]["tile_side"] == "not in this file"
    stamp = lrmil("info", old / "stamp" / "s00.h5", "--json").records[0]
    assert stamp["tile_side"] == "64 um" and stamp["mpp"] == 0.5 and "um" in stamp["coords"]
    shown = lrmil("info", old / "trident-patches" / "s00_patches.h5").out
    assert (
        "coordinates" in shown
        and "TRIDENT" in shown
        and "slide_size_px: 1536, 1536" in shown
        and max(map(len, shown.splitlines())) < 200
    )
