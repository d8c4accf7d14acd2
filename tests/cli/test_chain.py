"""The whole chain at the seam users see: command lines on slides, with files, folders, manifests and pipes."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest

from lrmil_cli.encoders.encoder_file import load_encoder_file
from lrmil_cli.files.tables import read_table
from tests.conftest import shell
from tests.unit.qupath.test_geojson import check_contract


def test_every_step_left_what_the_next_one_reads(chain):
    header, pairs = read_table(next(chain.pairs.glob("*.pairs.csv")), "pairs")
    assert header["ratio"] == 4 and [h["command"] for h in header["history"]] == ["tile", "tile", "match"]
    assert set(p.name for p in chain.teacher.iterdir()) == {
        "fold1",
        "folds.csv",
        "predictions.csv",
        "metrics.csv",
        "curves.csv",
        "curves.png",
        "teacher.json",
        "features",
    }
    _, oof = read_table(chain.teacher / "predictions.csv", "predictions")
    assert sorted(oof["slide_id"]) == ["s12", "s13", "s14", "s15"]  # the test split and nothing else
    np.testing.assert_allclose(oof["prob_normal"] + oof["prob_tumor"], 1, atol=1e-6)
    _, curves = read_table(chain.teacher / "curves.csv", "curves")
    assert curves["epoch"].tolist() == list(range(1, len(curves) + 1))


def test_stage_1_brings_the_lr_tokens_closer_to_the_hr_class_tokens(chain):
    _, curves = read_table(chain.encoder.with_name("lr-encoder.curves.csv"), "curves")
    assert curves["val_loss"].iloc[-1] < 0.7 * curves["val_loss"].iloc[0]
    assert curves["epoch"].tolist() == [0, 1, 2]


def test_the_encoder_file_says_which_slides_it_saw(chain, lrmil):
    about = lrmil("info", chain.encoder, "--json").records[0]
    assert sorted(about["distilled"]["slides"]) == [f"s{i:02d}" for i in range(12)]  # no test slide
    assert about["distilled"]["layers"] == [0, 1, about["arch_args"]["depth"] - 2] and about["mpp"] == 2.0
    model = lrmil("info", chain.model, "--json").records[0]
    assert model["encoder_saw_test_pixels"] is False and model["classes"] == ["normal", "tumor"]


def test_predict_reads_low_resolution_only(chain, tmp_path, lrmil):
    """With HR tiles, pairs, teacher and HR features gone, and no level-0 block needed, prediction works the same."""
    before = lrmil(
        "predict", chain.manifest.parent / "slides" / "s13.svs", "-m", chain.model, "-o", tmp_path / "a", "--json"
    ).records[0]
    alone = tmp_path / "alone"
    alone.mkdir()
    shutil.copy(chain.model, alone / "m.safetensors")
    shutil.copy(chain.manifest.parent / "slides" / "s13.svs", alone / "s13.svs")
    import tifffile

    with tifffile.TiffFile(alone / "s13.svs") as tif:
        page = tif.pages[0]
        blocks = list(zip(page.dataoffsets, page.databytecounts))
    with open(
        alone / "s13.svs", "r+b"
    ) as fh:  # the middle of level 0 turns to garbage; its corners are looked at when opening
        for offset, count in blocks[1:-1]:
            fh.seek(offset)
            fh.write(b"\x00" * count)
    after = lrmil("predict", alone / "s13.svs", "-m", alone / "m.safetensors", "-o", tmp_path / "b", "--json").records[
        0
    ]
    assert after["status"] == "ok" and after["prediction"]["probabilities"] == before["prediction"]["probabilities"]
    assert lrmil("tile", alone / "s13.svs", "--mpp", "0.5", "--tile-px", "128", "-o", tmp_path / "hr.csv").code == 0
    refused = lrmil("embed", tmp_path / "hr.csv", "--encoder", "demo-vit", "-o", tmp_path / "hr.h5")
    assert refused.code == 3 and "damaged at level 0" in refused.err and not (tmp_path / "hr.h5").exists()


def test_prediction_of_a_test_slide_equals_the_out_of_fold_prediction(chain, tmp_path, lrmil):
    _, oof = read_table(f"{chain.model.with_suffix('')}.predictions.csv", "predictions")
    for slide_id, p in zip(oof["slide_id"], oof["prob_tumor"]):
        record = lrmil(
            "predict", chain.manifest.parent / "slides" / f"{slide_id}.svs", "-m", chain.model, "-o", tmp_path, "--json"
        ).records[0]
        assert record["prediction"]["probabilities"]["tumor"] == pytest.approx(p, abs=1e-5)


def test_predict_writes_all_it_is_asked_for(chain, tmp_path, lrmil):
    slide = chain.manifest.parent / "slides" / "s13.svs"
    args = [
        "predict",
        slide,
        "-m",
        chain.model,
        "-o",
        tmp_path / "out",
        "--overlay",
        tmp_path / "o.png",
        "--geojson",
        tmp_path / "h.geojson.gz",
    ]
    said = lrmil(*args)
    assert said.code == 0 and "seconds:" in said.err and "cpu" in said.err
    record = json.loads((tmp_path / "out" / "s13.prediction.json").read_text())
    header, rows = read_table(tmp_path / "out" / "s13.attention.csv", "attention")
    assert rows["attention"].sum() == pytest.approx(1, abs=1e-6) and rows["percentile"].between(0, 100).all()
    assert header["prediction"]["predicted"] == record["predicted"] and record["tiles"] == len(rows)
    assert set(record["seconds"]) == {"open", "tissue", "read", "encode", "head"}
    import gzip

    check_contract(gzip.decompress((tmp_path / "h.geojson.gz").read_bytes()).decode(), 1536, 1536)
    assert (tmp_path / "o.png").read_bytes()[:4] == b"\x89PNG"
    again = lrmil(*args)
    assert again.code == 0 and "up to date" in again.err


def test_the_pipe_from_slide_to_qupath(chain, tmp_path):
    slide = chain.manifest.parent / "slides" / "s13.svs"
    done = shell(f"lrmil predict '{slide}' -m '{chain.model}' -o - | lrmil export-geojson - -o slide.geojson", tmp_path)
    assert done.returncode == 0, done.stderr
    doc = check_contract((tmp_path / "slide.geojson").read_text(), 1536, 1536)
    to_stdout = shell(
        f"lrmil predict '{slide}' -m '{chain.model}' -o - -q | lrmil export-geojson - -o - | cat", tmp_path
    )
    assert len(json.loads(to_stdout.stdout)["features"]) == len(doc["features"]) and not to_stdout.stderr


def test_lists_on_stdin_manifests_and_folders_give_the_same(chain, tmp_path):
    slides = chain.manifest.parent / "slides"
    line = (
        f"ls '{slides}'/s0[0-2].svs | lrmil tile - --mpp 2.0 --tile-px 128 -o a --json "
        f"| lrmil predict - -m '{chain.model}' -o p --json"
    )
    done = shell(line, tmp_path)
    assert done.returncode == 0, done.stderr
    records = [json.loads(x) for x in done.stdout.splitlines()]
    assert [r["slide_id"] for r in records] == ["s00", "s01", "s02"] and all(r["status"] == "ok" for r in records)
    assert (
        shell(
            f"lrmil tile '{slides}' --mpp 2.0 --tile-px 128 -o b -q && lrmil tile '{chain.manifest}' --mpp 2.0 "
            "--tile-px 128 -o c -q",
            tmp_path,
        ).returncode
        == 0
    )
    for name in ("s00", "s01", "s02"):
        tables = [pd.read_csv(tmp_path / d / f"{name}.tiles.csv", comment="#") for d in "abc"]
        assert tables[0].equals(tables[1]) and tables[0].equals(tables[2])
    streamed = (
        shell(
            f"lrmil tile '{slides}/s00.svs' --mpp 2.0 --tile-px 128 -o - | lrmil match - hr.csv -o pairs.csv", tmp_path
        )
        if shutil.copy(chain.tiles_hr / "s00.tiles.csv", tmp_path / "hr.csv")
        else None
    )
    assert streamed.returncode == 0, streamed.stderr
    assert pd.read_csv(tmp_path / "pairs.csv", comment="#").equals(
        pd.read_csv(chain.pairs / "s00.pairs.csv", comment="#")
    )


def test_a_second_run_changes_nothing_and_says_so(chain, lrmil):
    for args in (
        ["tile", chain.manifest, "--mpp", "2.0", "--tile-px", "128", "-o", chain.tiles_lr],
        ["match", chain.tiles_lr, chain.tiles_hr, "-o", chain.pairs],
        [
            "train-teacher",
            chain.manifest,
            "--tiles",
            chain.tiles_hr,
            "--encoder",
            "demo-vit",
            "--epochs",
            "8",
            "--lr",
            "1e-3",
            "-o",
            chain.teacher,
        ],
        [
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
            "--epochs",
            "8",
            "--lr",
            "1e-3",
            "-o",
            chain.model,
        ],
        [
            "distill-encoder",
            chain.pairs,
            "--slides",
            chain.manifest,
            "--fold",
            "1",
            "--encoder",
            "demo-vit",
            "--epochs",
            "2",
            "--lr",
            "3e-4",
            "--warmup",
            "4",
            "--batch-size",
            "32",
            "-o",
            chain.encoder,
        ],
    ):
        before = {p: p.stat().st_mtime_ns for p in chain.folder.rglob("*") if p.is_file()}
        said = lrmil(*args)
        assert said.code == 0 and "up to date" in said.err, said.err
        assert {p: p.stat().st_mtime_ns for p in chain.folder.rglob("*") if p.is_file()} == before


def test_other_settings_are_not_silently_mixed_in(chain, tmp_path, lrmil):
    out = tmp_path / "t.csv"
    slide = chain.manifest.parent / "slides" / "s00.svs"
    assert lrmil("tile", slide, "--mpp", "2.0", "-o", out).code == 0
    first = out.read_text()
    refused = lrmil("tile", slide, "--mpp", "1.0", "-o", out)
    assert refused.code == 2 and "--overwrite" in refused.err and out.read_text() == first
    assert lrmil("tile", slide, "--mpp", "1.0", "-o", out, "--overwrite").code == 0
    refused = lrmil(
        "train-teacher",
        chain.manifest,
        "--tiles",
        chain.tiles_hr,
        "--encoder",
        "demo-vit",
        "--epochs",
        "9",
        "-o",
        chain.teacher,
    )
    assert refused.code == 2 and "--overwrite" in refused.err


def test_presets_train_and_the_distillation_terms_are_logged(chain, tmp_path, lrmil):
    common = [
        chain.manifest,
        "--tiles",
        chain.tiles_lr,
        "--pairs",
        chain.pairs,
        "--teacher",
        chain.teacher,
        "--epochs",
        "2",
        "--lr-features",
        chain.folder / "model.features",
    ]
    seen = {}
    for preset in ("patch", "bag", "bag-soft", "bag-hard", "official-code"):
        said = lrmil(
            "distill-student",
            "--no-onnx",
            *common,
            "--encoder",
            chain.encoder,
            "--preset",
            preset,
            "-o",
            tmp_path / f"{preset}.safetensors",
        )
        assert said.code == 0, said.err
        _, curves = read_table(tmp_path / f"{preset}.curves.csv", "curves")
        seen[preset] = {c.removeprefix("train_") for c in curves if c.startswith("train_")} - {"total", "bag"}
        assert ("changes neither attention nor prediction" in said.err) == (preset == "official-code")
    assert seen == {
        "patch": set(),
        "bag": {"bag_kd"},
        "bag-soft": {"bag_kd", "soft"},
        "bag-hard": {"bag_kd", "hard"},
        "official-code": {"bag_kd", "soft", "hard"},
    }
    wrong = lrmil(
        "distill-student",
        "--no-onnx",
        *common,
        "--encoder",
        chain.encoder,
        "--preset",
        "lr-only",
        "-o",
        tmp_path / "l.safetensors",
    )
    assert wrong.code == 0 and "was distilled" in wrong.err
    fitted = lrmil(
        "distill-student",
        "--no-onnx",
        *common,
        "--encoder",
        chain.encoder,
        "--crossfit",
        "2",
        "--gated",
        "--proj-dim",
        "16",
        "--hard",
        "feature",
        "-o",
        tmp_path / "x.safetensors",
    )
    assert fitted.code == 0, fitted.err
    assert (
        lrmil(
            "predict",
            chain.manifest.parent / "slides" / "s13.svs",
            "-m",
            tmp_path / "x.safetensors",
            "-o",
            tmp_path / "p",
        ).code
        == 0
    )


def test_folds_one_encoder_a_fold_and_the_ensemble(chain, tmp_path, lrmil):
    """Cross-validation: fold 2's encoder is the same whether or not fold 1's was made before; the model holds both."""
    manifest = tmp_path / "slides.csv"
    rows = pd.read_csv(chain.manifest).drop(columns="split")
    rows["slide"] = [str(chain.manifest.parent / s) for s in rows["slide"]]
    rows.to_csv(manifest, index=False)
    teacher = [
        "train-teacher",
        manifest,
        "--tiles",
        chain.tiles_hr,
        "--encoder",
        "demo-vit",
        "--features",
        chain.teacher / "features",
        "--folds",
        "2",
        "--epochs",
        "3",
        "-o",
        tmp_path / "t",
    ]
    assert lrmil(*teacher).code == 0
    stage1 = [
        "distill-encoder",
        chain.pairs,
        "--slides",
        manifest,
        "--teacher",
        tmp_path / "t",
        "--encoder",
        "demo-vit",
        "--epochs",
        "1",
        "--lr",
        "1e-4",
        "--warmup",
        "1",
        "--cache",
        tmp_path / "cache",
        "--final-loss",
        "attention",
    ]
    for fold in (1, 2):
        said = lrmil(*stage1, "--fold", fold, "-o", tmp_path / "e{fold}.safetensors")
        assert said.code == 0, said.err
    assert lrmil(*stage1, "--fold", 2, "-o", tmp_path / "again.safetensors").code == 0
    from safetensors.numpy import load_file

    a, b = load_file(tmp_path / "e2.safetensors"), load_file(tmp_path / "again.safetensors")
    assert all(np.array_equal(a[k], b[k]) for k in a)
    student = [
        "distill-student",
        "--no-onnx",
        manifest,
        "--tiles",
        chain.tiles_lr,
        "--pairs",
        chain.pairs,
        "--teacher",
        tmp_path / "t",
        "--epochs",
        "3",
    ]
    said = lrmil(*student, "--encoder", tmp_path / "e{fold}.safetensors", "-o", tmp_path / "m.safetensors")
    assert said.code == 0, said.err
    # The encoder of fold 1 learned from the teacher's attention, so from labels of fold 2's test slides.
    said = lrmil(*student, "--encoder", tmp_path / "e1.safetensors", "-o", tmp_path / "leak.safetensors")
    assert said.code == 3 and "from its label" in said.err and "fold 2" in said.err, said.err
    about = lrmil("info", tmp_path / "m.safetensors", "--json").records[0]
    assert len(about["encoders"]) == 2 and len(about["heads"]) == 2 and about["encoder_saw_test_pixels"] is False
    _, oof = read_table(tmp_path / "m.predictions.csv", "predictions")
    assert sorted(oof["slide_id"]) == [f"s{i:02d}" for i in range(16)]
    record = lrmil(
        "predict",
        chain.manifest.parent / "slides" / "s03.svs",
        "-m",
        tmp_path / "m.safetensors",
        "-o",
        tmp_path / "p",
        "--json",
    ).records[0]["prediction"]
    assert len(record["folds"]["tumor"]) == 2
    assert record["probabilities"]["tumor"] == pytest.approx(np.mean(record["folds"]["tumor"]), abs=1e-5)
    # a shared encoder that saw test pixels is said to have done so
    shared = lrmil(*student, "--encoder", chain.encoder, "-o", tmp_path / "shared.safetensors")
    assert shared.code == 0 and "saw the pixels" in shared.err
    # a student whose folds are not the teacher's would be taught by heads that saw its test labels
    header = json.loads((tmp_path / "t" / "teacher.json").read_text())
    assert header["kind"] == "teacher"


def test_stage_1_goes_on_where_it_stopped(chain, tmp_path, lrmil, monkeypatch):
    from lrmil_cli.distill import encoder_training as encoder

    args = [
        "distill-encoder",
        chain.pairs,
        "--encoder",
        "demo-vit",
        "--epochs",
        "3",
        "--lr",
        "1e-4",
        "--warmup",
        "1",
        "--batch-size",
        "16",
        "--cache",
        tmp_path / "cache",
        "--max-tiles-per-slide",
        "3",
    ]
    assert lrmil(*args, "-o", tmp_path / "whole.safetensors").code == 0
    original, saved = encoder.save_checkpoint, []

    def stop_after_two(*a):
        original(*a)
        saved.append(1)
        if len(saved) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(encoder, "save_checkpoint", stop_after_two)
    stopped = lrmil(*args, "-o", tmp_path / "part.safetensors")
    assert stopped.code == 130 and not (tmp_path / "part.safetensors").exists()
    monkeypatch.setattr(encoder, "save_checkpoint", original)
    resumed = lrmil(*args, "-o", tmp_path / "part.safetensors")
    assert resumed.code == 0 and "resumed after epoch 2" in resumed.err
    from safetensors.numpy import load_file

    a, b = load_file(tmp_path / "whole.safetensors"), load_file(tmp_path / "part.safetensors")
    assert all(np.array_equal(a[k], b[k]) for k in a)


def test_another_split_is_another_encoder(chain, tmp_path, lrmil):
    rows = pd.read_csv(chain.manifest)
    rows["slide"] = [str(chain.manifest.parent / s) for s in rows["slide"]]
    stage1 = [
        "distill-encoder",
        chain.pairs,
        "--slides",
        tmp_path / "slides.csv",
        "--fold",
        "1",
        "--encoder",
        "demo-vit",
        "--epochs",
        "1",
        "--lr",
        "1e-4",
        "--warmup",
        "1",
        "--cache",
        chain.encoder.with_suffix(".cache"),
        "--max-tiles-per-slide",
        "2",
        "-o",
        tmp_path / "e.safetensors",
    ]
    rows.to_csv(tmp_path / "slides.csv", index=False)
    assert lrmil(*stage1).code == 0
    swapped = rows.copy()
    swapped.loc[[6, 8], "split"] = ["val", "train"]
    swapped.to_csv(tmp_path / "slides.csv", index=False)
    said = lrmil(*stage1)
    assert said.code == 2 and "--overwrite" in said.err, said.err


def test_an_encoder_remembers_what_the_one_before_it_saw(chain, tmp_path, lrmil):
    said = lrmil(
        "distill-encoder",
        chain.pairs / "s15.pairs.csv",
        "--encoder",
        chain.encoder,
        "--epochs",
        "1",
        "--lr",
        "1e-4",
        "-o",
        tmp_path / "e.safetensors",
    )
    assert said.code == 0, said.err
    seen = [load_encoder_file(e).info.distilled["slides"] for e in (chain.encoder, tmp_path / "e.safetensors")]
    assert set(seen[1]) == {*seen[0], "s15"} and "s15" not in seen[0]
