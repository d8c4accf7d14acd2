"""A project that was moved, or whose slides were: the commands find them, and say which table looks for them."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from lrmil_cli.files.features import read_features
from lrmil_cli.files.tables import dumps_csv, read_table, write_table
from lrmil_cli.training.teacher import read_teacher
from tests.conftest import blob_image, write_tiff
from tests.layouts import write_trident

ARCHIVE = Path(__file__).parents[1] / "archive" / "v0.1.0"
ENCODER = ["--encoder", "demo-vit", "--device", "cpu"]


@pytest.fixture
def project(tmp_path, lrmil):
    """Two slides with tiles and pairs, made in ``old``, moved as a whole to ``new``; tables lie in sub-folders."""
    old = tmp_path / "old"
    for n, name in enumerate("ab"):
        write_tiff(old / "slides" / f"{name}.svs", blob_image(700, 600, seed=n))
    for out, mpp in (("lr", "2.0"), ("hr", "0.5")):
        args = ["--mpp", mpp, "--tile-px", "64", "-o", old / "tiles" / out, *(["--thumbnail"] if out == "lr" else [])]
        assert lrmil("tile", old / "slides", *args).code == 0
    assert lrmil("match", old / "tiles/lr", old / "tiles/hr", "-o", old / "pairs").code == 0
    old.rename(tmp_path / "new")
    return tmp_path / "new"


def place(table, kind="tiles"):
    return read_table(table, kind)[0]["slide"]["path"]


def distil(project, lrmil, *more):
    args = ["--epochs", "1", "--steps-per-epoch", "1", "--warmup", "1", "--cache", project / "cache", *ENCODER]
    return lrmil("distill-encoder", project / "pairs", *args, "-o", project / "e.safetensors", *more)


def test_a_moved_project_goes_on(project, lrmil):
    assert lrmil("embed", project / "tiles/lr", *ENCODER, "-o", project / "f").code == 0
    assert read_features(project / "f/a.h5").header["slide"]["path"] == str(project / "slides/a.svs")
    said = distil(project, lrmil)
    assert said.code == 0, said.err
    # tiling again makes nothing, and the tables know the new place; pairs follow
    tile = ["tile", project / "slides", "--mpp", "2.0", "--tile-px", "64", "-o", project / "tiles/lr", "--thumbnail"]
    before = (project / "tiles/lr/a.tiles.csv").read_bytes()
    said = lrmil(*tile, "--dry-run")
    assert "2 up to date" in said.err and (project / "tiles/lr/a.tiles.csv").read_bytes() == before
    said = lrmil(*tile)
    assert said.code == 0 and said.err.count("up to date (") == said.err.count("its slide has moved") == 2
    said = lrmil(*tile)  # the pictures are of these tables
    assert said.err.count("up to date") == 2 and "has moved" not in said.err
    said = lrmil("match", project / "tiles/lr", project / "tiles/hr", "-o", project / "pairs")
    assert said.code == 0 and said.err.count("up to date (") == said.err.count("its slide has moved") == 2
    assert place(project / "tiles/lr/a.tiles.csv") == place(project / "pairs/a.pairs.csv", "pairs")
    assert place(project / "tiles/lr/a.tiles.csv") == str(project / "slides/a.svs")
    again = lrmil("match", project / "tiles/lr", project / "tiles/hr", "-o", project / "pairs")
    assert again.err.count("up to date") == 2 and "has moved" not in again.err
    assert "up to date" in distil(project, lrmil).err  # it is the same slide


@pytest.mark.parametrize("old_table", [False, True])
def test_slides_that_moved_alone_are_named(project, tmp_path, lrmil, old_table):
    (project / "slides").rename(tmp_path / "archive")
    if old_table:  # as 0.1.0 wrote them
        for kind, table in [(p.name.split(".")[1], p) for p in project.rglob("*.csv")]:
            header, rows = read_table(table, kind)
            for of in (header, header.get("lr", {}), header.get("hr", {})):
                of.get("slide", {}).pop("beside", None)
            table.write_text(dumps_csv(header, rows))
    table = project / "tiles/lr/a.tiles.csv"
    said = lrmil("embed", table, *ENCODER, "-o", project / "a.h5")
    assert said.code == 3 and f"{table}: its slide a is not at" in said.err and "--slides" in said.err
    said = distil(project, lrmil)
    assert said.code == 3 and "pairs.csv: its slide" in said.err and "--slides" in said.err

    assert lrmil("embed", table, *ENCODER, "-o", project / "a.h5", "--slides", tmp_path / "archive").code == 0
    manifest = tmp_path / "slides.csv"
    manifest.write_text("slide,label\narchive/a.svs,x\narchive/b.svs,y\n")
    assert distil(project, lrmil, "--slides", manifest).code == 0
    pairs = ["match", project / "tiles/lr", project / "tiles/hr", "-o"]
    assert lrmil(*pairs, project / "pairs", "--slides", manifest).err.count("its slide has moved") == 2
    assert lrmil(*pairs, project / "new-pairs", "--slides", manifest).code == 0
    for at in ("pairs", "new-pairs"):
        header = read_table(project / at / "a.pairs.csv", "pairs")[0]
        assert {h["slide"]["path"] for h in (header, header["lr"], header["hr"])} == {str(tmp_path / "archive/a.svs")}


def test_pictures_of_slides_that_moved(project, tmp_path, lrmil):
    for name in "ab":
        header, rows = read_table(project / f"tiles/lr/{name}.tiles.csv", "tiles")
        rows = rows[["x", "y", "width", "height"]].assign(attention=1 / len(rows), percentile=50.0)
        about = {"kind": "attention", "version": 1, "slide": header["slide"], "settings": {}}
        write_table(project / f"out/{name}.attention.csv", {**about, "history": header["history"]}, rows)
    args = ["export-geojson", project / "out", "-o", project / "maps", "--png", project / "maps"]
    assert lrmil(*args).code == 0  # beside
    (project / "slides").rename(tmp_path / "archive")
    shutil.rmtree(project / "maps")
    said = lrmil(*args)
    assert said.code == 3 and "out/a.attention.csv: its slide a is not at" in said.err.replace("\\", "/")
    assert lrmil(*args, "--slides", tmp_path / "archive", "--slide", "x.svs").code == 2
    assert lrmil(*args, "--slides", tmp_path / "archive").code == 0
    assert sorted(p.name for p in (project / "maps").glob("*.png")) == ["a.overlay.png", "b.overlay.png"]


def test_a_teacher_finds_its_features_in_a_moved_project(tmp_path, lrmil):
    old = tmp_path / "old"
    rng = np.random.default_rng(0)
    rows = ["slide_id,label,patient_id"]
    for n in range(6):
        write_trident(old / "data/hr" / f"s{n}.h5", np.arange(8).reshape(4, 2) * 256, rng.normal(size=(4, 8)) + n % 2)
        rows.append(f"s{n},{'xy'[n % 2]},p{n}")
    (old / "slides.csv").write_text("\n".join(rows))
    args = ["--features", old / "data/hr", "--head", "meanpool", "--epochs", "1", "--folds", "3"]
    assert lrmil("train-teacher", old / "slides.csv", *args, "-o", old / "runs/teacher").code == 0
    old.rename(tmp_path / "new")
    found = read_teacher(tmp_path / "new/runs/teacher").features
    assert found.samefile(tmp_path / "new/data/hr")


def test_predictions_that_moved(tmp_path, lrmil, monkeypatch):
    """By a model of the archive, which knows both slides: it says so from any folder, and where the model is gone."""
    made = tmp_path / "made"
    shutil.copytree(ARCHIVE / "slides", made / "slides")
    shutil.copy(ARCHIVE / "lrmil.safetensors", made / "m.safetensors")
    (made / "slides.csv").write_text("slide,label,patient_id\nslides/n1.svs,normal,p1\nslides/t1.svs,tumor,p2\n")
    monkeypatch.chdir(made)
    predict = ["predict", "slides", "-m", "m.safetensors", "-o", "out/p", "--device", "cpu"]
    assert lrmil(*predict).code == 0
    monkeypatch.chdir(tmp_path)
    made.rename(tmp_path / "moved")
    (tmp_path / "moved/m.safetensors").rename(tmp_path / "moved/out/renamed.safetensors")

    def said():
        args = ["evaluate", "moved/out/p", "--slides", "moved/slides.csv", "-o", "e", "--bootstrap", "0", "--overwrite"]
        return lrmil(*args).err

    assert "trained or selected on 2 of these 2 slides" in said() and "not checked" not in said()
    (tmp_path / "moved/out/renamed.safetensors").rename(tmp_path / "moved/m.safetensors")
    assert "trained or selected on 2 of these 2 slides" in said() and "not checked" not in said()
    # predicting again makes nothing, and says where the slides are now
    monkeypatch.chdir(tmp_path / "moved")
    assert lrmil(*predict).err.count("up to date (") == 2
    assert place("out/p/t1.attention.csv", "attention") == str(tmp_path / "moved/slides/t1.svs")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "moved/m.safetensors").unlink()
    assert "trained or selected on 2 of these 2 slides" in said()
    assert "trained on other slides of the same patients is not checked" in said()


def test_another_slide_is_not_taken(project, tmp_path, lrmil):
    shutil.copy(project / "slides/b.svs", project / "slides/a.svs")
    said = lrmil("embed", project / "tiles/lr", *ENCODER, "-o", project / "f")
    assert said.code == 4 and f"{project / 'slides/a.svs'}: the slide has changed since" in said.err
    assert (project / "f/b.h5").exists() and not (project / "f/a.h5").exists()
