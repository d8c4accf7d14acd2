"""The notebook's door: light to import, its examples run, and its numbers are those of the commands."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import lrmil_cli
from lrmil_cli import api
from lrmil_cli.errors import InputError, NoTissueError, UsageError

ROOT = Path(__file__).resolve().parents[3]
BLOCKS = [
    b
    for page in ("README.md", "lrmil_cli/README.md")
    for b in re.findall(r"```python\n(.*?)```", (ROOT / page).read_text("utf-8"), re.S)
]


@pytest.fixture
def desk(chain, tmp_path, monkeypatch):
    """A folder with ``slide.svs`` and ``model.safetensors``, as the examples name them."""
    shutil.copy(chain.manifest.parent / "slides" / "s13.svs", tmp_path / "slide.svs")
    shutil.copy(chain.model, tmp_path / "model.safetensors")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_examples_run(desk, block, capsys):
    exec(compile(block, "README.md", "exec"), {})
    assert capsys.readouterr().out.strip()


def test_there_are_examples():
    assert len(BLOCKS) == 3


def test_the_import_is_light():
    heavy = ("torch", "pandas", "numpy", "timm", "typer")
    code = f"import sys, lrmil_cli, lrmil_cli.api; print([m for m in {heavy} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT).stdout.strip() == "[]"
    assert set(lrmil_cli.__all__) == set(api.__all__) <= set(dir(lrmil_cli))
    with pytest.raises(AttributeError, match="no attribute 'predictt'"):
        lrmil_cli.predictt  # noqa: B018


def test_predict_says_what_the_command_says(desk, lrmil):
    assert lrmil("predict", "slide.svs", "-m", "model.safetensors", "-o", "out", "--geojson", "out/c.geojson").code == 0
    answer = lrmil_cli.predict("slide.svs", "model.safetensors")
    record = json.loads((desk / "out" / "slide.prediction.json").read_text())
    assert answer.label == record["predicted"] and answer.probabilities == pytest.approx(
        record["probabilities"], abs=1e-6
    )
    table = pd.read_csv(desk / "out" / "slide.attention.csv", comment="#")
    assert list(table.columns) == list(answer.attention.columns)
    np.testing.assert_allclose(table.to_numpy(), answer.attention.to_numpy(), atol=1e-6)
    written = json.loads((desk / "out" / "c.geojson").read_text())
    ours = lrmil_cli.to_geojson(answer, "ours.geojson")
    assert [f["geometry"] for f in ours["features"]] == [f["geometry"] for f in written["features"]]
    assert json.loads((desk / "ours.geojson").read_text()) == ours
    outlines = lrmil_cli.to_geojson(answer, style="regions", top=0.2)
    assert outlines["features"] and all(f["properties"]["objectType"] == "annotation" for f in outlines["features"])


def test_tiles_and_features_are_those_of_the_commands(desk, lrmil):
    assert lrmil("tile", "slide.svs", "--mpp", "2", "--tile-px", "128", "-o", "slide.tiles.csv").code == 0
    assert lrmil("embed", "slide.tiles.csv", "--encoder", "demo-vit", "-o", "slide.h5").code == 0
    with lrmil_cli.open_slide("slide.svs") as slide:
        tiles = lrmil_cli.find_tiles(slide, mpp=2.0, tile_px=128)
        features = lrmil_cli.embed(slide, tiles, "demo-vit", device="cpu")
    table = pd.read_csv("slide.tiles.csv", comment="#")
    pd.testing.assert_frame_equal(tiles.rows, table, check_dtype=False)
    import h5py

    with h5py.File("slide.h5", locking=False) as f:
        np.testing.assert_allclose(f["features"], features, rtol=2**-11, atol=1e-5)  # stored in float16


def test_regions_and_errors(desk):
    square = [[0, 0], [700, 0], [700, 700], [0, 700], [0, 0]]
    feature = {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": [square]},
        "properties": {"objectType": "annotation"},
    }
    (desk / "roi.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": [feature]}))
    with lrmil_cli.open_slide("slide.svs") as slide:
        whole = lrmil_cli.find_tiles(slide, tile_px=64)
        part = lrmil_cli.find_tiles(slide, tile_px=64, roi="roi.geojson")
        assert 0 < len(part) < len(whole) and part.rows["x"].max() < 700
        with pytest.raises(NoTissueError):
            lrmil_cli.find_tiles(slide, min_tissue=1.1)
    with pytest.raises(InputError, match="no such file"):
        lrmil_cli.open_slide("nowhere.svs")
    with pytest.raises(UsageError, match="tiles or regions"):
        lrmil_cli.to_geojson(lrmil_cli.predict("slide.svs", "model.safetensors"), style="both")
