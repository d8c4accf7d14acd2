"""The command contract: exit codes, one-line errors, nothing left behind, for bad input of every kind."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from lrmil_cli.commands.all_commands import COMMANDS
from tests.conftest import SHARED, WINDOWS, blob_image, needs_shared, not_on_windows, shell, write_tiff


def check_failed(said, code, says, folder: Path, allowed=()):
    assert said.code == code, said.err
    lines = [l for l in said.err.splitlines() if l.strip()]
    # What a table was understood as, and warned of, may stand before it.
    assert [l for l in lines if l.startswith("error: ")] == lines[-1:], said.err
    assert all(l.startswith("warning: ") or "slides, " in l for l in lines[:-1]), said.err
    assert says in lines[-1], lines[-1]
    left = {p.name for p in folder.rglob("*") if p.is_file()} - set(allowed)
    assert not left, left


# ---- start-up ----------------------------------------------------------------------
def test_help_imports_nothing_heavy():
    code = (
        "import sys; from lrmil_cli.app import run; from lrmil_cli.commands.all_commands import COMMANDS\n"
        "codes = [run([*name, '--help']) for name in [[], *([n] for n in COMMANDS)]]\n"
        "heavy = {'torch', 'timm', 'pandas', 'tiffslide', 'sklearn', 'matplotlib', 'h5py', 'shapely', 'cv2'}\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)\n"
        "sys.exit(any(codes) or bool(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Usage: ") == len(COMMANDS) + 1
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_export_geojson_runs_without_torch(tmp_path):
    code = "import sys; sys.modules['torch'] = None; from lrmil_cli.app import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "export-geojson", "no.csv", "-o", "x.geojson"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 3 and "no such file" in done.stderr


def test_module_and_version():
    done = subprocess.run([sys.executable, "-m", "lrmil_cli", "--version"], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith("lrmil 0.")


def test_no_arguments_show_the_help_and_are_wrong_usage(lrmil):
    said = lrmil()
    assert said.code == 2 and "Usage" in said.err + said.out


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("tile", "SLIDE|DIR|slides.csv|-... is missing: slides, folders"),
        (
            "tile a.svs",
            "-o is missing: FILE|DIR|- (tile table of one slide, a folder, or - for stdout); as in `lrmil",
        ),
        ("tile --nope", "--nope: no such option of `lrmil tile`; see `lrmil tile --help`"),
        ("tile a.svs -o t --thumbnial", "did you mean --thumbnail?"),
        ("nope", "'nope'"),
        ("til a.svs", "Did you mean 'tile'"),
        ("tile a.svs -o x.csv --mpp two", "--mpp two: give a number"),
        ("tile a.svs -o x.csv --tile-px=3", "--tile-px 3: give a whole number from 16 to 4096"),
        ("tile a.svs -o x.csv --mpp", "--mpp needs a value; see `lrmil tile --help`"),
        ("tile a.svs -o x.csv --mpp -1", "--mpp and --mag must be above 0"),
        ("tile a.svs -o x.csv --mpp 2 --mag 5", "give --mpp or --mag, not both"),
        ("tile a.svs -o x.csv --mag five", "--mag five: give a number, such as 5 or 5x"),
        ("predict a.svs -m m.safetensors -output o4", "-output: long options have two dashes; say --output"),
        ("predict a.svs -m m.safetensors -output=o4", "say --output=o4"),
        (
            "predict a.svs -m slide.svs -o o",
            "-m slide.svs: a slide; give the .safetensors that `lrmil distill-student` made",
        ),
        ("match a b c -o o", "c: one too many, `lrmil match` takes LR HR"),
    ],
)
def test_wrong_usage_is_one_line_that_says_what_to_type_and_exit_2(line, says, lrmil, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = lrmil(*line.split())
    assert said.code == 2 and len(said.err.strip().splitlines()) == 1 and said.err.startswith("error: ")
    assert says in said.err and not list(tmp_path.iterdir())


def test_the_name_that_was_meant_and_a_magnification_as_it_is_said(lrmil, slide, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = lrmil("tile", slide, "-o", "five/", "--mag", "5x")
    assert said.code == 0 and "2 um/px" in said.err
    (tmp_path / "model.safetensors").touch()
    for name, meant in (("modle.safetensors", "did you mean model.safetensors?"), ("five", "-m five: a folder; give")):
        said = lrmil("predict", slide, "-m", name, "-o", "o")
        assert said.code == 3 and meant in said.err and not (tmp_path / "o").exists()
    said = lrmil("tile", tmp_path / "none" / "a.svs", "-o", "t/")
    assert said.code == 3 and "no such file, nor a folder" in said.err


# ---- slides ------------------------------------------------------------------------
@pytest.mark.parametrize(
    "change",
    [
        ("no such file", lambda p: p.unlink()),
        ("empty", lambda p: p.write_bytes(b"")),
        ("cannot be opened", lambda p: p.write_text("hello " * 50)),
        ("cannot be opened", lambda p: p.write_bytes(b"IJ" + p.read_bytes()[2:])),
        ("cannot be opened", lambda p: p.write_bytes(p.read_bytes()[:8])),
        ("truncated", lambda p: p.write_bytes(p.read_bytes()[:-3000])),
    ],
)
def test_broken_slides(tmp_path, lrmil, change):
    says, break_it = change
    folder = tmp_path / "in"
    bad = write_tiff(folder / "bad.tiff", blob_image(700, 600), mpp=None)
    # tags first, pixels last, so that cutting the tail cuts pixels
    break_it(bad)
    said = lrmil("tile", bad, "--slide-mpp", "0.5", "-o", tmp_path / "out" / "t.csv")
    check_failed(said, 3, "", tmp_path, allowed=["bad.tiff"])
    assert says in said.err or "cannot be opened" in said.err


@needs_shared
@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("empty.svs", "empty"),
        ("text_renamed.svs", "cannot be opened"),
        ("bad_magic.svs", "cannot be opened"),
        ("header_only.svs", "cannot be opened"),
        ("truncated_quarter.svs", "cannot be opened"),
        ("no_mpp_no_mag.svs", "--slide-mpp"),
        ("tile_garbage.svs", "damaged"),
        ("dicom_wsi_not_tiff.dcm", ""),
    ],
)
def test_real_bad_slides(tmp_path, lrmil, name, says):
    said = lrmil("tile", SHARED / "data/wsi/bad" / name, "-o", tmp_path / "t.csv")
    assert said.code == (5 if "openslide" in said.err else 3)
    check_failed(said, said.code, says, tmp_path)


@needs_shared
def test_real_slides_with_awkward_scales(tmp_path, lrmil):
    wsi = SHARED / "data/wsi"
    said = lrmil("tile", wsi / "bad/mpp_comma.svs", "-o", tmp_path / "a.csv", "--json")
    assert said.code == 0 and said.records[0]["mpp"] == 0.499
    check_failed(
        lrmil("tile", wsi / "yb10kx5k.zstd.tiff", "-o", tmp_path / "b.csv"), 3, "makes no sense", tmp_path, ["a.csv"]
    )
    check_failed(
        lrmil("tile", wsi / "TCGA-CR-7395-01A-01-TS1.svs", "-o", tmp_path / "c.csv"),
        3,
        "--slide-mpp",
        tmp_path,
        ["a.csv"],
    )
    said = lrmil(
        "tile",
        wsi / "TCGA-CR-7395-01A-01-TS1.svs",
        "--slide-mpp",
        "0.5",
        "-o",
        tmp_path / "c.csv",
        "--thumbnail",
        "--json",
    )
    assert said.code == 0 and said.records[0]["mpp_source"] == "option" and (tmp_path / "c.png").exists()


def test_glass_is_no_tissue_not_a_crash(tmp_path, lrmil, glass, chain):
    said = lrmil("tile", glass, "-o", tmp_path / "t.csv", "--json")
    assert said.code == 3 and said.records[0]["status"] == "no_tissue" and not list(tmp_path.iterdir())
    said = lrmil("predict", glass, "-m", chain.model, "-o", tmp_path / "p", "--json")
    assert said.code == 3 and said.records[0]["status"] == "no_tissue" and not (tmp_path / "p").exists()


def test_damage_in_the_middle_names_the_place(tmp_path, lrmil, slide):
    import tifffile

    bad = tmp_path / "bad.svs"
    bad.write_bytes(slide.read_bytes())
    with tifffile.TiffFile(bad) as tif:
        page = tif.pages[0]
        offset, count = page.dataoffsets[len(page.dataoffsets) // 2], page.databytecounts[len(page.dataoffsets) // 2]
    with open(bad, "r+b") as fh:
        fh.seek(offset)
        fh.write(bytes(range(256)) * (count // 256))
    assert lrmil("tile", bad, "--mpp", "0.5", "-o", tmp_path / "t.csv").code == 0
    said = lrmil("embed", tmp_path / "t.csv", "--encoder", "demo-vit", "-o", tmp_path / "f.h5")
    check_failed(said, 3, "damaged at level 0, x=", tmp_path, ["bad.svs", "t.csv"])


def test_a_slide_that_changed_after_tiling_is_refused(tmp_path, lrmil, slide):
    copy = tmp_path / "s.svs"
    copy.write_bytes(slide.read_bytes())
    assert lrmil("tile", copy, "--mpp", "0.5", "-o", tmp_path / "t.csv").code == 0
    write_tiff(copy, blob_image(seed=9))
    check_failed(
        lrmil("embed", tmp_path / "t.csv", "--encoder", "demo-vit", "-o", tmp_path / "f.h5"),
        3,
        "has changed",
        tmp_path,
        ["s.svs", "t.csv"],
    )


def test_too_coarse_a_slide(tmp_path, lrmil):
    coarse = write_tiff(tmp_path / "c.svs", blob_image(), mpp=0.68)
    check_failed(
        lrmil("tile", coarse, "--mpp", "0.5", "-o", tmp_path / "t.csv"), 3, "--allow-upsample", tmp_path, ["c.svs"]
    )
    assert lrmil("tile", coarse, "--mpp", "0.5", "--allow-upsample", "-o", tmp_path / "t.csv").code == 0


# ---- batches -----------------------------------------------------------------------
def test_one_bad_slide_does_not_stop_the_rest(tmp_path, lrmil, slide, glass):
    folder = tmp_path / "in"
    folder.mkdir()
    for name, source in (("a.svs", slide), ("c.svs", slide), ("glass.svs", glass)):
        (folder / name).write_bytes(source.read_bytes())
    (folder / "b.svs").write_bytes(b"not a slide")
    said = lrmil("tile", folder, "-o", tmp_path / "out", "--json")
    assert said.code == 4
    assert {r["slide_id"]: r["status"] for r in said.records} == {
        "a": "ok",
        "b": "failed",
        "c": "ok",
        "glass": "no_tissue",
    }
    listed = (tmp_path / "out" / "failures.csv").read_text().splitlines()
    assert listed[0] == "slide,slide_id,status,error" and len(listed) == 3
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["a.tiles.csv", "c.tiles.csv", "failures.csv"]
    assert lrmil("tile", folder, "-o", tmp_path / "fast", "--fail-fast").code == 4
    assert not (tmp_path / "fast" / "c.tiles.csv").exists()


def test_inputs_that_hold_no_slides(tmp_path, lrmil, monkeypatch):
    (tmp_path / "empty").mkdir()
    check_failed(lrmil("tile", tmp_path / "empty", "-o", tmp_path / "o"), 3, "no slides in this folder", tmp_path)
    done = shell(f"printf '' | {sys.executable} -m lrmil_cli tile - -o o", tmp_path)
    assert done.returncode == 3 and "no slides came in" in done.stderr
    done = shell(f"echo '{{\"path\": 1}}' | {sys.executable} -m lrmil_cli tile - -o o", tmp_path)
    assert done.returncode == 3 and "'slide' key" in done.stderr


def test_a_manifest_with_a_missing_file_fails_that_slide_by_name(tmp_path, lrmil, slide):
    manifest = tmp_path / "slides.csv"
    manifest.write_text(f"slide,label\n{slide},a\nmissing.svs,b\n")
    said = lrmil("tile", manifest, "-o", tmp_path / "o")
    assert said.code == 4 and "missing.svs: no such file" in said.err
    said = lrmil("train-teacher", manifest, "--tiles", tmp_path / "o", "--encoder", "demo-vit", "-o", tmp_path / "t")
    assert said.code == 3 and "one slide only" in said.err and not (tmp_path / "t").exists()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("slide,label\na.svs,x\na.svs,y\n", "slide_id 'a'"),
        ("slide,label,patient_id,split\na.svs,x,p,train\nb.svs,y,p,test\n", "patient 'p'"),
        ("slide,label\na.svs,x\nb.svs,x\nc.svs,y\n", "one slide only"),
    ],
)
def test_bad_manifests_stop_training_before_anything_is_written(tmp_path, lrmil, text, says):
    (tmp_path / "slides.csv").write_text(text)
    check_failed(
        lrmil(
            "train-teacher", tmp_path / "slides.csv", "--tiles", tmp_path, "--encoder", "demo-vit", "-o", tmp_path / "t"
        ),
        3,
        says,
        tmp_path,
        ["slides.csv"],
    )


def test_a_manifest_that_is_not_utf8(tmp_path, lrmil):
    (tmp_path / "slides.csv").write_bytes("slide,label\nM\xfcller.svs,x\n".encode("latin1"))
    check_failed(
        lrmil("tile", tmp_path / "slides.csv", "-o", tmp_path / "o"), 3, "line 2 is not UTF-8", tmp_path, ["slides.csv"]
    )


# ---- files of the wrong kind -------------------------------------------------------
def test_swapped_and_foreign_tables(chain, tmp_path, lrmil):
    lr, hr = chain.tiles_lr / "s00.tiles.csv", chain.tiles_hr / "s00.tiles.csv"
    check_failed(lrmil("match", hr, lr, "-o", tmp_path / "p.csv"), 3, "swapped", tmp_path)
    check_failed(
        lrmil("match", lr, chain.tiles_hr / "s01.tiles.csv", "-o", tmp_path / "p.csv"), 3, "one slide", tmp_path
    )
    check_failed(
        lrmil("match", lr, chain.pairs / "s00.pairs.csv", "-o", tmp_path / "p.csv"), 3, "this is a pairs file", tmp_path
    )
    check_failed(lrmil("export-geojson", lr, "-o", tmp_path / "x.geojson"), 3, "this is a tiles file", tmp_path)


def test_an_encoder_where_a_model_is_wanted_and_the_other_way_round(chain, tmp_path, lrmil):
    slide = chain.manifest.parent / "slides" / "s00.svs"
    check_failed(
        lrmil("predict", slide, "-m", chain.encoder, "-o", tmp_path / "p"),
        3,
        "this is an encoder file, but a model file",
        tmp_path,
    )
    check_failed(
        lrmil("embed", chain.tiles_lr / "s00.tiles.csv", "--encoder", chain.model, "-o", tmp_path / "f.h5"),
        3,
        "this is a model file",
        tmp_path,
    )


def test_a_grid_that_does_not_divide(chain, tmp_path, lrmil):
    said = lrmil(
        "distill-encoder",
        chain.pairs,
        "--encoder",
        "vit_tiny_patch16_224",
        "--random-init",
        "--input-size",
        "224",
        "-o",
        tmp_path / "e.safetensors",
    )
    check_failed(said, 2, "do not divide", tmp_path)


def test_random_weights_are_asked_for_and_said(chain, tmp_path, lrmil):
    said = lrmil(
        "embed",
        chain.tiles_lr / "s00.tiles.csv",
        "--encoder",
        "vit_tiny_patch16_224",
        "--random-init",
        "--input-size",
        "64",
        "-o",
        tmp_path / "f.h5",
    )
    assert said.code == 0
    about = lrmil("info", tmp_path / "f.h5", "--json").records[0]
    assert about["encoder"]["random_init"] is True and "random" in about["encoder"]["note"]


def test_teacher_and_student_must_fit(chain, tmp_path, lrmil):
    common = [
        "distill-student",
        "--no-onnx",
        chain.manifest,
        "--tiles",
        chain.tiles_lr,
        "--encoder",
        chain.encoder,
        "-o",
        tmp_path / "m.safetensors",
        "--lr-features",
        chain.folder / "model.features",
    ]
    check_failed(lrmil(*common), 2, "give --teacher and --pairs", tmp_path)
    check_failed(lrmil(*common, "--teacher", tmp_path / "no", "--pairs", chain.pairs), 3, "no teacher.json", tmp_path)
    check_failed(
        lrmil(*common, "--teacher", chain.teacher, "--pairs", tmp_path), 3, "no pairs table of slide s00", tmp_path
    )
    said = lrmil(
        *common, "--teacher", chain.teacher, "--pairs", chain.pairs, "--features", chain.folder / "model.features"
    )
    check_failed(said, 3, "HR tiles are not those of the pairs table", tmp_path)


def test_a_device_that_is_not_there(chain, tmp_path, lrmil):
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    slide = chain.manifest.parent / "slides" / "s00.svs"
    check_failed(
        lrmil("predict", slide, "-m", chain.model, "-o", tmp_path / "p", "--device", "cuda"),
        5,
        "no CUDA device",
        tmp_path,
    )
    check_failed(
        lrmil("predict", slide, "-m", chain.model, "-o", tmp_path / "p", "--device", "gpu"),
        2,
        "auto, cpu, cuda",
        tmp_path,
    )


# ---- the machine gets in the way ---------------------------------------------------
def test_output_that_cannot_be_written(tmp_path, lrmil, slide):
    (tmp_path / "file").write_text("x")
    check_failed(lrmil("tile", slide, "-o", tmp_path / "file" / "t.csv"), 5, "cannot write", tmp_path, ["file"])


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="mounting a small file system needs root")
def test_a_full_disk(tmp_path, chain):
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", small]).returncode:
        pytest.skip("no tmpfs can be mounted here")
    try:
        (small / "filler").write_bytes(b"x" * 60_000)
        slide = chain.manifest.parent / "slides" / "s00.svs"
        for line in (
            f"tile '{slide}' --mpp 0.1 --tile-px 64 --allow-upsample -o small/t.csv",
            f"embed '{chain.tiles_hr}/s00.tiles.csv' --encoder demo-vit -o small/f.h5",
            f"distill-student '{chain.manifest}' --tiles '{chain.tiles_lr}' --preset patch --encoder "
            f"'{chain.encoder}' --epochs 1 --lr-features '{chain.folder}/model.features' -o small/m.safetensors",
            f"predict '{slide}' -m '{chain.model}' -o small/p --overlay small/o.png",
        ):
            done = shell(f"{sys.executable} -m lrmil_cli {line}", tmp_path)
            errors = [l for l in done.stderr.splitlines() if l.startswith("error:")]
            assert done.returncode == 5 and len(errors) == 1 and "No space left" in errors[0], done.stderr
            # a prediction that was finished before its picture did not fit is whole, and is kept
            assert [
                p.name
                for p in small.rglob("*")
                if p.is_file() and p.stat().st_size and p.name.endswith((".h5", ".safetensors", "t.csv", ".png"))
            ] == []
            assert all(json.loads(p.read_text())["kind"] == "prediction" for p in small.rglob("*.json"))
            assert not [p for p in small.rglob("*.tmp*")]
            for left in small.rglob("*.csv"):
                left.unlink()
    finally:
        subprocess.run(["umount", small])


def interrupt(args, folder, when, cwd):
    """Start a command, send SIGINT as soon as ``when`` says so, return (exit code, stderr)."""
    process = subprocess.Popen(
        [sys.executable, "-m", "lrmil_cli", *map(str, args)],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        cwd=cwd,
        # A test run in the background of a shell inherits "ignore SIGINT", and so would the command.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.time() + 120
    lines = []
    while time.time() < deadline and process.poll() is None:
        line = process.stderr.readline()
        lines.append(line)
        if when in line:
            process.send_signal(signal.SIGINT)
            break
    _, rest = process.communicate(timeout=60)
    return process.returncode, "".join(lines) + rest


@not_on_windows
@pytest.mark.parametrize("command", ["tile", "embed", "distill-encoder", "train-teacher", "distill-student", "predict"])
def test_ctrl_c(command, chain, tmp_path):
    slides, many = chain.manifest.parent / "slides", ["--epochs", "100000", "--patience", "100000"]
    args, when = {
        "tile": (["tile", slides, "--mpp", "0.5", "--tile-px", "32", "-o", tmp_path], "s01"),
        "embed": (["embed", chain.tiles_hr, "--encoder", "demo-vit", "-o", tmp_path], "s01"),
        "distill-encoder": (
            [
                "distill-encoder",
                chain.pairs,
                "--encoder",
                "demo-vit",
                *many,
                "--lr",
                "1e-4",
                "-o",
                tmp_path / "e.safetensors",
                "--cache",
                tmp_path / "c",
            ],
            "epoch 1",
        ),
        "train-teacher": (
            [
                "train-teacher",
                chain.manifest,
                "--tiles",
                chain.tiles_hr,
                "--encoder",
                "demo-vit",
                "-o",
                tmp_path / "t",
                *many,
                "--verbose",
            ],
            "embedded s01",
        ),
        "distill-student": (
            [
                "distill-student",
                "--no-onnx",
                chain.manifest,
                "--tiles",
                chain.tiles_lr,
                "--pairs",
                chain.pairs,
                "--teacher",
                chain.teacher,
                "--encoder",
                chain.encoder,
                "-o",
                tmp_path / "m.safetensors",
                *many,
            ],
            "regions",
        ),
        "predict": (["predict", slides, "-m", chain.model, "-o", tmp_path], "s01"),
    }[command]
    for _ in range(3):
        code, err = interrupt(args, tmp_path, when, tmp_path)
        if code:
            break
        for left in (
            tmp_path.iterdir()
        ):  # the signal fell into a callback of HDF5, which swallows it; once more, from the start
            shutil.rmtree(left) if left.is_dir() else left.unlink()
    assert code == 130, (code, err)
    assert "interrupted" in err and "Traceback" not in err
    assert not [p for p in tmp_path.rglob("*.tmp*")]
    for final in ("e.safetensors", "m.safetensors", "t/teacher.json"):
        assert not (tmp_path / final).exists()


def test_internal_errors_are_one_line_and_debug_shows_the_trace(lrmil, slide, tmp_path, monkeypatch):
    from lrmil_cli.slides import tiles

    monkeypatch.setattr(tiles, "find_tissue", lambda *a: 1 / 0)
    check_failed(lrmil("tile", slide, "-o", tmp_path / "t.csv"), 1, "internal error: ZeroDivisionError", tmp_path)
    with pytest.raises(ZeroDivisionError):
        lrmil("tile", slide, "-o", tmp_path / "t.csv", "--debug")


def test_json_is_one_object_a_slide_on_stdout_and_quiet_is_quiet(lrmil, slide, tmp_path):
    said = lrmil("tile", slide, "-o", tmp_path / "t.csv", "--json", "--quiet")
    assert said.err == "" and json.loads(said.out)["output"] == str(tmp_path / "t.csv")
    assert {"slide", "slide_id", "command", "status", "output", "error", "seconds"} <= set(said.records[0])
    assert np.isfinite(said.records[0]["seconds"])


def test_info_of_a_manifest_says_what_it_is(cohort, lrmil):
    said = lrmil("info", cohort)
    assert said.code in (0, 3) and "internal" not in said.err and "agreement" not in said.err, said.err


def test_one_table_for_several_slides_is_refused_and_leaves_nothing(tmp_path, lrmil):
    slides = [write_tiff(tmp_path / f"{n}.svs", blob_image(700, 600)) for n in "ab"]
    for _ in range(2):
        said = lrmil("tile", *slides, "-o", tmp_path / "out.csv")
        assert said.code == 2 and "give a folder" in said.err and not (tmp_path / "out.csv").exists()
    for name in ("there.csv", "there"):
        (tmp_path / name).write_text("x")
        said = lrmil("tile", *slides, "-o", tmp_path / name)
        assert said.code == 2 and (tmp_path / name).read_text() == "x", said.err


def test_a_thumbnail_of_another_table_is_made_anew(tmp_path, lrmil):
    slide = write_tiff(tmp_path / "a.svs", blob_image())
    line = ["tile", slide, "--mpp", "0.5", "--tile-px", "128", "-o", tmp_path / "a.csv"]
    assert lrmil(*line, "--thumbnail").code == 0
    first = (tmp_path / "a.png").read_bytes()
    assert lrmil(*line, "--thumbnail", "--json").records[0]["status"] == "skipped"
    assert lrmil(*line, "--min-tissue", "0.99", "--overwrite").code == 0
    assert lrmil(*line, "--min-tissue", "0.99", "--thumbnail").code == 0
    assert (tmp_path / "a.png").read_bytes() != first


def test_failures_of_slides_whose_names_are_no_text(tmp_path, lrmil):
    folder = tmp_path / "in"
    write_tiff(folder / "good.svs", blob_image(700, 600))
    bad = os.fsencode(folder) + b"/sl\xea.svs"
    try:
        open(bad, "wb").close()
    except OSError:
        pytest.skip("this file system takes no such names")
    said = lrmil("tile", folder, "-o", tmp_path / "out")
    assert said.code == 4 and b"sl\xea" in (tmp_path / "out" / "failures.csv").read_bytes(), said.err


def test_a_slide_too_coarse_to_benchmark_is_an_input_error(tmp_path, lrmil):
    slide = write_tiff(tmp_path / "a.svs", blob_image(700, 600), mpp=4.0)
    said = lrmil("benchmark", slide, "--read-only")
    assert said.code == 3 and "coarser" in said.err, said.err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_standard_output_that_is_full_or_gone(chain):
    line = [sys.executable, "-m", "lrmil_cli", "info", chain.model]
    with open("/dev/full", "w") as full:
        said = subprocess.run([*map(str, line)], stdout=full, stderr=subprocess.PIPE, text=True)
    assert said.returncode == 5 and "cannot write to standard output" in said.stderr, said.stderr
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as gone:
        said = subprocess.run([*map(str, line), "--json"], stdout=gone, stderr=subprocess.PIPE, text=True)
    assert said.returncode == 141 and not said.stderr, said.stderr


def test_an_output_below_a_file_cannot_be_written(chain, tmp_path, lrmil):
    (tmp_path / "file").write_text("x")
    for line in (
        ["predict", chain.manifest.parent / "slides" / "s13.svs", "-m", chain.model],
        ["evaluate", chain.model, "--bootstrap", "0"],
        ["train-teacher", chain.manifest, "--features", chain.teacher / "features", "--epochs", "1"],
    ):
        said = lrmil(*line, "-o", tmp_path / "file" / "out")
        assert said.code == 5 and "cannot write" in said.err and "free space" not in said.err, said.err
        assert WINDOWS or "Not a directory" in said.err, said.err


def test_info_of_folders_and_of_damaged_models(chain, tmp_path, lrmil):
    said = lrmil("info", chain.pairs)
    assert said.code == 3 and "name one of the files" in said.err and "train-teacher` with" not in said.err, said.err
    assert lrmil("info", chain.teacher).code == 0
    data = bytearray(chain.model.read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "m.safetensors").write_bytes(data)
    said = lrmil("info", tmp_path / "m.safetensors")
    assert said.code == 3 and "internal" not in said.err, said.err
