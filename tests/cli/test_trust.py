"""What a demanding reader asks of a model, from the command line, with the small models of the archive."""

import json
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest

from lrmil_cli.evaluation.unlike_training import describe_training
from lrmil_cli.files.graphs import read_graph, write_graph
from lrmil_cli.files.tables import read_table, write_table
from lrmil_cli.files.tensors import load_tensors, save_tensors
from lrmil_cli.models.model_file import load_parts, save_model
from lrmil_cli.training.fixture import add_fixture, painted
from tests.archive.test_archive import HERE
from tests.cli.test_calibrate import with_calibration

ARCHIVE = HERE / "v0.1.0"


@pytest.fixture
def at(tmp_path):
    for name in ("lrmil", "zoommil"):
        shutil.copy(ARCHIVE / f"{name}.safetensors", tmp_path)
    shutil.copytree(ARCHIVE / "slides", tmp_path / "slides")
    return tmp_path


def changed(path, **entries):
    """The model with other entries in its header."""
    header, tensors = load_tensors(path, "model")
    save_tensors(path, tensors, {**header, **entries})


def answers(folder):
    return {r["slide"]["id"]: r for r in (json.loads(p.read_text()) for p in sorted(folder.glob("*.prediction.json")))}


def training_slides_like_the_archive(shift):
    """``training_features`` of slides whose features are those of the archive's slides, moved by ``shift``."""
    own = []
    for path in sorted((ARCHIVE / "lrmil.features").glob("*.h5")):
        with h5py.File(path) as f:
            own.append(np.array(f["features"], np.float32).reshape(-1, f["features"].shape[-1]))
    rng = np.random.default_rng(0)
    slides = [own[i % len(own)] + shift + rng.normal(0, 0.05, own[i % len(own)].shape) for i in range(24)]
    return describe_training(lambda i: slides[i], [(range(12), range(12, 24)), (range(12, 24), range(12))])


@pytest.mark.parametrize("name", ["lrmil", "zoommil"])
def test_a_slide_unlike_the_training_slides_is_marked(name, at, lrmil):
    model, slides = at / f"{name}.safetensors", at / "slides"
    changed(model, training_features={"reason": "few"})
    assert lrmil("predict", slides, "-m", model, "-o", at / "none").code == 0
    assert all("unlike_training" not in r for r in answers(at / "none").values())
    if name == "lrmil":
        changed(model, training_features=training_slides_like_the_archive(0.0))
        said = lrmil("predict", slides, "-m", model, "--abstain", "--confidence", "0.01", "-o", at / "like")
        assert said.code == 0 and "unlike the training" not in said.err
        assert not any(r["unlike_training"]["unlike"] for r in answers(at / "like").values())
    changed(model, training_features=training_slides_like_the_archive(50.0))
    said = lrmil("predict", slides, "-m", model, "--abstain", "--report", "-o", at / "unlike")
    assert said.code == 0 and said.err.count("unlike the training slides") >= 2
    for slide, r in answers(at / "unlike").items():
        found = r["unlike_training"]
        assert found["unlike"] and found["by"] == ["slide", "tiles"] and found["tiles_beyond"] == 1
        assert "unlike the training slides" in r["uncertain"]
        page = (at / "unlike" / f"{slide}.html").read_text()
        assert page.count("unlike the training slides") >= 2
    again = lrmil("predict", slides, "-m", model, "--abstain", "-o", at / "unlike")
    assert "up to date" in again.err and again.err.count("unlike the training slides") >= 2


def test_graphs_say_the_same_and_are_verified(at, lrmil):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    model = at / "lrmil.safetensors"
    with_calibration(model, 40)
    changed(model, training_features=training_slides_like_the_archive(0.5))
    with_fixture(model)
    assert lrmil("export-onnx", model, "--int8").code == 0
    for runtime in ("onnx", "onnx-int8"):
        said = lrmil("verify", model, "--runtime", runtime)
        assert said.code == 0 and f"; {runtime} on cpu" in said.err, said.err
    for runtime in ("torch", "onnx"):
        run = ["predict", at / "slides", "-m", model, "--coverage", "0.9", "--runtime", runtime, "-o", at / runtime]
        assert lrmil(*run).code == 0
    for slide, own in answers(at / "torch").items():
        other = answers(at / "onnx")[slide]
        assert other["probabilities"] == pytest.approx(own["probabilities"], abs=1e-4)
        assert other["prediction_set"] == own["prediction_set"] and own["prediction_set"]["patients"] == 40
        looks = own["unlike_training"], other["unlike_training"]
        assert looks[0]["distance"] == pytest.approx(looks[1]["distance"], rel=1e-3)
        assert looks[0]["by"] == looks[1]["by"]
    about, body = read_graph(at / "lrmil.int8.onnx")
    write_graph(at / "lrmil.int8.onnx", body, {**about, "verify_int8": dict.fromkeys(about["verify_int8"], 1e-9)})
    assert "differs from where it was made" in refused(lrmil("verify", model, "--runtime", "onnx-int8"), 3)
    info = lrmil("info", model, "--json")
    assert json.loads(info.out)["training_features"].keys() == {
        "slide_bound", "tile_bound", "share_bound", "slides", "held_out"
    }  # fmt: skip
    changed(model, training_features={"slide": {}})
    assert lrmil("predict", at / "slides", "-m", model, "--runtime", "torch", "-o", at / "torch2").code == 3


def refused(said, code):
    """What a command that ended with ``code`` says."""
    assert said.code == code, said.err
    return said.err


def with_fixture(path):
    """The model with painted tiles, and what it says of them."""
    model, tensors = load_parts(path)
    rest = {k: v for k, v in tensors.items() if k.startswith("screen")}
    header = {k: v for k, v in model.header.items() if k != "content"}
    rest |= add_fixture(header, model.encoders, model.heads, model.encoder_of, painted(model.tiles.tile_px))
    save_model(path, header, model.encoders, model.heads, model.encoder_of, rest)


def flipped(tensors, header):
    name = next(k for k in tensors if k.endswith("blocks.0.attn.qkv.weight"))
    tensors[name][0, 0] += 0.5


def swapped_colours(tensors, header):
    name = next(k for k in tensors if k.endswith("patch_embed.proj.weight"))
    tensors[name] = tensors[name][:, [2, 1, 0]].contiguous()


def other_head(tensors, header):
    name = next(k for k in tensors if k.startswith("head0.classifier") and k.endswith("bias"))
    tensors[name][0] += 0.01


def other_calibration(tensors, header):
    header["calibration"] = {"of": "validation", "slides": 40, "heads": [
        {"method": "temperature", "scale": [2.0, 2.0], "offset": [0.0, 0.0], "slides": 20}] * 2}  # fmt: skip


def other_mpp(tensors, header):
    header["tiles"] = {**header["tiles"], "mpp": 1.0}


DAMAGES = [
    (flipped, "embeddings"),
    (swapped_colours, "embeddings"),
    (other_head, "probabilities"),
    (other_calibration, "probabilities"),
    (other_mpp, "otherwise than when it was made (mpp)"),
]


@pytest.mark.parametrize("name", ["lrmil", "zoommil", "ahdmil"])
def test_a_model_is_verified_and_what_differs_is_found(name, at, lrmil):
    model = at / f"{name}.safetensors"
    shutil.copy(ARCHIVE / model.name, model)
    assert "holds no tiles to verify it by" in refused(lrmil("verify", model), 3)
    with_fixture(model)
    said = lrmil("verify", model, "--json")
    found = json.loads(said.out)
    assert found["status"] == "ok" and found["of"] == "painted" and max(found["found"].values()) < 1e-6
    assert said.err.count("\n") == 1 and "computes here what it computed" in said.err
    if name != "lrmil":
        return
    assert "PASS  verify" in lrmil("doctor", model, "--quick").out
    for damage, what in DAMAGES:
        header, tensors = load_tensors(model, "model")
        damage(tensors, header)
        save_tensors(at / "bad.safetensors", tensors, header)  # with a checksum that is right: the file is whole
        said = refused(lrmil("verify", at / "bad.safetensors"), 3)
        assert what in said and said.count("\n") == 1, damage.__name__
    assert "FAIL  verify" in lrmil("doctor", "--quick", "-m", at / "bad.safetensors").out
    header, tensors = load_tensors(model, "model")
    save_tensors(at / "bad.safetensors", {k: v for k, v in tensors.items() if k != "fixture.tiles"}, header)
    assert "are damaged" in refused(lrmil("verify", at / "bad.safetensors"), 3)


def test_the_audit_trail_has_a_line_an_answer(at, lrmil):
    trail, model = at / "answers.jsonl", at / "lrmil.safetensors"
    for _ in range(2):
        assert lrmil("predict", at / "slides", "-m", model, "-o", at / "out", "--audit", trail).code == 0
    lines = [json.loads(line) for line in trail.read_text().splitlines()]
    assert [line["status"] for line in lines] == ["predicted"] * 2 + ["up to date"] * 2
    for line in lines:
        own = answers(at / "out")[line["slide_id"]]
        assert line["prediction"] == own["history"][-1]["digest"] and line["probabilities"] == own["probabilities"]
        assert line["model"]["digest"] == own["model"]["digest"] and line["user"] and line["time"].endswith("Z")
    for wrong, why in ((at / "x.csv", "ends in .jsonl"), (at, "is a folder")):
        assert why in refused(lrmil("predict", at / "slides", "-m", model, "-o", at / "o", "--audit", wrong), 2)


def test_the_card_says_what_is_known_and_what_is_not(at, lrmil):
    for name in ("lrmil.safetensors", "lrmil.receipt.json"):
        shutil.copy(ARCHIVE / name, at)
    model, card = at / "lrmil.safetensors", at / "CARD.md"
    assert lrmil("info", model, "--card", "-o", card).code == 0
    text = card.read_text()
    assert text.startswith("NOT COMPLETE: intended use") and "6 slides" in text
    assert "0.750 (0.250 to 1.000)" in text and "On 4 held-out slides" in text
    changed(model, data={"slides": 6, "patients": 5, "classes": {"normal": {"slides": 3, "patients": 2},
            "tumor": {"slides": 3, "patients": 3}}, "sites": {"A": 6}, "sites_from": "column",
            "scanners": {"aperio": 6}, "mpp": [0.25, 0.5, 0.5]}, patients={"from": "slides"})  # fmt: skip
    with_fixture(model)
    (at / "said.toml").write_text('intended_use = "To teach."\ncontact = ["A.", "B."]\n')
    assert "add --overwrite" in refused(lrmil("info", model, "--card", "-o", card), 2)
    assert lrmil("info", model, "--card", "-o", card, "--statement", at / "said.toml", "--overwrite").code == 0
    text = card.read_text()
    assert text.startswith("NOT COMPLETE: nobody says not_for,") and "To teach." in text
    for part in ("6 slides of 5 patients", "aperio 6", "All slides are of one site", "slides were taken for patients",
                 "0.25 to 0.5, median 0.5", "8 painted tiles"):  # fmt: skip
        assert part in text, part
    (at / "said.toml").write_text("purpose = 1")
    said = lrmil("info", model, "--card", "-o", "-", "--statement", at / "said.toml")
    assert "its keys are intended_use" in refused(said, 3)
    assert "lrmil info MODEL.safetensors --card -o" in refused(lrmil("info", model, "--card"), 2)
    assert "are about --card" in refused(lrmil("info", model, "-o", card), 2)


def test_a_new_model_holds_tiles_of_a_validation_slide(chain, lrmil, tmp_path):
    header, tensors = load_tensors(chain.model, "model")
    assert header["fixture"]["of"] == "slide" and tensors["fixture.tiles"].shape[1:] == (128, 128, 3)
    assert header["data"]["classes"]["tumor"] == {"slides": 8, "patients": 8} and header["data"]["sites"] is None
    assert lrmil("verify", chain.model).code == 0
    assert "8 training and 8 held-out slides, 10 of each" in header["training_features"]["reason"]


def test_evaluate_and_receipt_judge_sites_and_other_parts(at, lrmil):
    for path in filter(Path.is_file, ARCHIVE.glob("lrmil.*")):
        shutil.copy(path, at)
    table = at / "lrmil.predictions.csv"
    ids = read_table(table, "predictions")[1]["slide_id"].tolist()
    rows = [f"{s},{'tumor' if s[0] == 't' else 'normal'},{'AB'[n % 2]},{n % 2},{n}.5" for n, s in enumerate(ids)]
    (at / "slides.csv").write_text("\n".join(["slide_id,label,site,sex,age", *rows]) + "\n")
    said = lrmil("evaluate", table, "--slides", at / "slides.csv", "--by", "sex", "-o", at / "e", "--json")
    assert said.code == 0, said.err
    groups = json.loads(said.out)["models"][0]["groups"]
    assert {k: [g["n"] for g in own] for k, own in groups.items()} == {"site": [2, 2], "sex": [2, 2]}
    page = (at / "e" / "evaluation.html").read_text()
    assert "By site" in page and "By sex" in page
    for by, what in (("ward", "has no such column"), ("site", "add the column `site`")):
        text = (at / "slides.csv").read_text().replace("site", "hospital")
        (at / "other.csv").write_text(text)
        said = lrmil("evaluate", table, "--slides", at / "other.csv", "--by", by, "-o", at / "f")
        assert what in refused(said, 2)
    assert "add --slides" in refused(lrmil("evaluate", table, "--by", "sex", "-o", at / "f"), 2)
    # A table that knows sites brings them into the receipt.
    for path in at.glob("lrmil*.predictions.csv"):
        header, own = read_table(path, "predictions")
        write_table(path, header, own.assign(site=["AB"[n % 2] for n in range(len(own))]))
    probe = {"auc": {"value": 0.97, "low": 0.9, "high": 1.0, "undefined": 0}, "slides": 6, "patients": 6, "classes": 2}
    changed(at / "lrmil.safetensors", data={"sites_apart": False}, site_probe={"site": probe, "label": {"reason": "x"}})
    said = lrmil("evaluate", at / "lrmil.safetensors", "--receipt", "-o", at / "g")
    assert said.code == 0, said.err
    receipt = json.loads((at / "g" / "lrmil.receipt.json").read_text())
    assert receipt["sites"]["apart"] is False and set(receipt["sites"]["models"]) == set(receipt["models"])
    text = (at / "g" / "lrmil.receipt.md").read_text()
    assert "sites that they were trained on" in text and "macro AUC of 0.970 (0.900 to 1.000) (2 sites" in text


def test_an_outside_cohort_is_judged_as_one(at, lrmil):
    model, out = at / "lrmil.safetensors", at / "out"
    truth = np.arange(60) % 2
    p = np.clip(0.5 + 0.3 * (truth - 0.5) + np.random.default_rng(0).normal(0, 0.2, 60), 0.01, 0.99)
    heads = [{"method": "temperature", "scale": [1.0, 1.0], "offset": [0.0, 0.0], "slides": 30}] * 2
    record = {
        "of": "test",
        "head": [0, 1] * 30,
        "class": truth.tolist(),
        "probabilities": np.stack([1 - p, p], 1).tolist(),
    }
    changed(model, slides=[], calibration={"of": "validation", "heads": heads}, calibration_patients=record,
            training_features=training_slides_like_the_archive(50.0),
            encoders=[{**e, "distilled": None} for e in load_tensors(model, "model")[0]["encoders"]])  # fmt: skip
    (at / "slides" / "broken.svs").write_bytes(b"II*\0 and no more")
    assert lrmil("predict", at / "slides", "-m", model, "-o", out).code == 4
    said = {s: r["predicted"] for s, r in answers(out).items()}
    wrong = {"normal": "tumor", "tumor": "normal"}
    lines = [f"slides/n1.svs,{wrong[said['n1']]},p1,x", f"slides/t1.svs,{said['t1']},p2,y",
             "slides/broken.svs,tumor,p3,x", "slides/lost.svs,tumor,p4,x", "slides/open.svs,,p5,x"]  # fmt: skip
    (at / "slides.csv").write_text("\n".join(["slide,label,patient_id,sex", *lines]) + "\n")
    run = ["evaluate", out, "--slides", at / "slides.csv", "--profile", "external", "--json"]
    result = lrmil(*run, "--threshold", "youden", "--by", "sex", "-o", at / "e", "--checklist", "tripod-ai")
    assert result.code == 0, result.err
    found = json.loads(result.out)["models"][0]["external"]
    flow = {f["what"]: f["slides"] for f in found["flow"]}
    assert flow == {"given in slides.csv": 5, "unreadable": 1, "no tissue": 0, "without label": 1,
                    "not predicted, nobody says why": 1, "judged": 2, "of these unlike the training slides": 2,
                    "of these uncertain": 0}  # fmt: skip
    assert found["threshold"]["rule"] == "youden" and found["threshold"]["patients"] == 60
    shares = found["operating_point"]["tumor"]
    assert sum(shares[k]["n"] for k in ("sensitivity", "specificity")) == 2 == shares["accuracy"]["n"]
    assert found["worst_errors"][0]["slide_id"] == "n1" and found["worst_errors"][0]["unlike_training"]
    page = (at / "e" / "evaluation.html").read_text()
    for part in ("on the 60 held-out patients of the training record", "Decision curve", "Flow of participants",
                 "Worst errors", "n1: the slide, and where the model looked", "By sex"):  # fmt: skip
        assert part in page, part
    assert (at / "e" / "evaluation.error.1.png").read_bytes()[:4] == b"\x89PNG"
    text = (at / "e" / "checklist.tripod-ai.md").read_text()
    assert (
        "| 20a | flow of participants | given in slides.csv 5, unreadable 1" in text and "to be written by you" in text
    )
    for name in ("stard-ai", "claim", "remark"):
        assert lrmil(*run, "-o", at / name, "--checklist", name).code == 0
        assert "items are answered from the record" in (at / name / f"checklist.{name}.md").read_text()
    for options, code, what in (
        (["--threshold", "sensitivity=0.99"], 3, "100 positive patients at least are needed to see it"),
        (["--threshold", "2"], 2, "give a number between 0 and 1"),
        (["--interval", "wald"], 2, "choose one of wilson, clopper-pearson"),
    ):
        assert what in refused(lrmil(*run, *options, "-o", at / "f"), code)
    assert "give that too" in refused(lrmil("evaluate", out, "--threshold", "0.4", "-o", at / "f"), 2)
    table = ["evaluate", ARCHIVE / "lrmil.predictions.csv", "--profile", "external", "-o", at / "f"]
    assert "an out-of-fold table" in refused(lrmil(*table), 2)
    changed(model, slides=["n1"])  # another digest would be needed to tell: the records say what the model saw
    shutil.rmtree(out)
    assert lrmil("predict", at / "slides", "-m", model, "-o", out).code == 4
    assert "no external validation: the model was trained" in refused(lrmil(*run, "-o", at / "g"), 3)
