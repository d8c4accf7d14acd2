"""Every head through the same commands: teacher, student, prediction, attention for QuPath."""

import json

import pytest

from lrmil_cli.files.tables import read_table

pytestmark = pytest.mark.usefixtures("all_unpainted")

SMALL = {
    "abmil": ["gated=true"],
    "meanpool": ["embed_dim=32"],
    "maxpool": ["embed_dim=32"],
    "clam_sb": ["embed_dim=32", "hidden=16", "subtyping=true"],
    "clam_mb": ["embed_dim=32", "hidden=16", "inst_loss=svm"],
    "dsmil": ["query_dim=16"],
    "transmil": ["embed_dim=32", "heads=4"],
    "dtfd": ["embed_dim=32", "hidden=16", "distill=maxmins"],
}

#: What ``--recipe published`` must have set, of those that are trained by it here.
PUBLISHED = {
    "clam_sb": {"options": {"embed_dim": 32, "hidden": 16, "subtyping": True, "inst_loss": "svm"}},
    "transmil": {"optimizer": "lookahead-radam", "accumulate": 2, "weight_decay": 1e-5},
    "dtfd": {"clip": 5.0, "accumulate": 1},
}


@pytest.mark.parametrize("head", SMALL)
def test_every_head_is_teacher_and_student_and_shows_its_attention(head, chain, tmp_path, lrmil):
    own = [v for o in SMALL[head] for v in ("--head-option", o)]
    common = ["--head", head, *own, "--epochs", "2", "--lr", "1e-3"]
    common += ["--recipe", "published" if head in PUBLISHED else "common"]
    said = lrmil(
        "train-teacher",
        chain.manifest,
        "--tiles",
        chain.tiles_hr,
        "--encoder",
        "demo-vit",
        "--features",
        chain.teacher / "features",
        *common,
        "-o",
        tmp_path / "teacher",
    )
    assert said.code == 0, said.err
    settings = json.loads((tmp_path / "teacher" / "teacher.json").read_text())["settings"]
    assert {"accumulate": 1, **settings}.items() >= PUBLISHED.get(head, {}).items()
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
        tmp_path / "teacher",
        "--lr-features",
        chain.model.with_suffix(".features"),
        *common,
        "-o",
        tmp_path / "m.safetensors",
    )
    assert said.code == 0, said.err
    derived = head in ("meanpool", "maxpool", "transmil")
    assert ("a derived one is distilled" in said.err) == derived
    _, curves = read_table(tmp_path / "m.curves.csv", "curves")
    assert {"train_bag_kd", "train_soft", "train_hard"} <= set(curves.columns)  # all three terms reach every head
    slide = chain.manifest.parent / "slides" / "s13.svs"
    assert (
        lrmil(
            "predict", slide, "-m", tmp_path / "m.safetensors", "-o", tmp_path, "--geojson", tmp_path / "s13.geojson"
        ).code
        == 0
    )
    header, attention = read_table(tmp_path / "s13.attention.csv", "attention")
    assert attention["attention"].sum() == pytest.approx(1, abs=1e-6) and header["attention_kind"] == (
        "derived" if derived else "native"
    )
    assert ({"score_normal", "score_tumor"} <= set(attention.columns)) == (head in ("clam_mb", "dsmil"))
    assert len(json.loads((tmp_path / "s13.geojson").read_text())["features"]) == len(attention)


def test_teacher_and_student_may_have_different_heads(chain, tmp_path, lrmil):
    features = ["--lr-features", chain.model.with_suffix(".features"), "--epochs", "2"]
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
        chain.teacher,
        *features,
        "--head",
        "dsmil",
        "-o",
        tmp_path / "m.safetensors",
    )
    assert said.code == 0, said.err
    assert lrmil("info", tmp_path / "m.safetensors", "--json").records[0]["heads"][0]["name"] == "dsmil"


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--head", "abmill"], "choose one of abmil, clam_mb"),
        (["--head-option", "gate=true"], "has no option 'gate'"),
        (["--head-option", "gated"], "give KEY=VALUE"),
        (["--head-option", "gated=yes"], "must be bool"),
        (["--gated", "--head-option", "gated=false"], "given twice"),
        (["--head", "meanpool", "--gated"], "meanpool has no option 'gated'"),
    ],
)
def test_a_wrong_head_is_said_before_any_work(args, words, chain, tmp_path, lrmil):
    said = lrmil(
        "train-teacher", chain.manifest, "--tiles", chain.tiles_hr, "--encoder", "demo-vit", *args, "-o", tmp_path / "t"
    )
    assert said.code == 2 and words in said.err and not (tmp_path / "t").exists()


@pytest.mark.parametrize(
    "options",
    [
        ("clam_sb", "embed_dim=0"),
        ("clam_mb", "k=-3"),
        ("transmil", "landmarks=-1"),
        ("abmil", "dropout=NaN"),
        ("dsmil", "query_dim=0"),
    ],
)
def test_options_that_no_bag_goes_through_are_said_before_any_tile_is_encoded(chain, tmp_path, lrmil, options):
    head, option = options
    said = lrmil(
        "train-teacher",
        chain.manifest,
        "--tiles",
        chain.tiles_hr,
        "--encoder",
        "demo-vit",
        "--head",
        head,
        "--head-option",
        option,
        "-o",
        tmp_path / "t",
    )
    assert said.code == 2 and "Traceback" not in said.err and not (tmp_path / "t").exists(), said.err


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_numbers_that_are_none_are_refused(chain, tmp_path, lrmil, value):
    said = lrmil(
        "train-teacher",
        chain.manifest,
        "--tiles",
        chain.tiles_hr,
        "--encoder",
        "demo-vit",
        "--lr",
        value,
        "-o",
        tmp_path / "t",
    )
    assert said.code == 2 and "--lr" in said.err, said.err
