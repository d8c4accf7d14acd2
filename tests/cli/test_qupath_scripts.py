"""The scripts that run inside QuPath: what they call, and what `lrmil_import.groovy` loads into which image.

Where Groovy is installed, the script itself is run on stand-ins for QuPath's classes (tests/groovy).
"""

import gzip
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from lrmil_cli.slide_places import fingerprint

STAND_INS = Path(__file__).resolve().parents[1] / "groovy"

#: Calls that are there in QuPath 0.5, 0.6 and 0.7 with one signature, and what Groovy brings.
KNOWN_CALLS = {
    "getCurrentServer",
    "getCurrentImageData",
    "getProject",
    "getSelectedObjects",
    "getTileObjects",
    "getAnnotationObjects",
    "exportObjectsToGeoJson",
    "importObjectsFromFile",
    "buildFilePath",
    "buildPathInProject",
    "mkdirs",
    "getCurrentImageNameWithoutExtension",
    "removeObjects",
    "getCurrentViewer",
    "File",
    "ProcessBuilder",
    "RuntimeException",
    "MeasurementMapper",
    "println",
    "find",
    "stem",
    "about",
    "fingerprint",
    "wrong",
    "Gson",
    "FileInputStream",
    "GZIPInputStream",
    "BufferedReader",
    "InputStreamReader",
    "RandomAccessFile",
    "catch",
    "if",
    "for",
}


def test_the_scripts_are_copied_out_and_call_only_what_every_qupath_has(tmp_path, lrmil):
    said = lrmil("info", "--qupath-scripts", tmp_path / "s", "--json")
    assert said.code == 0 and {r["output"] for r in said.records} == {
        str(tmp_path / "s" / n) for n in ("lrmil_import.groovy", "lrmil_predict.groovy")
    }
    help_text = lrmil("predict", "--help").out
    for path in (tmp_path / "s").iterdir():
        code = re.sub(r"/\*.*?\*/|//[^\n]*", "", path.read_text(), flags=re.S)
        words = re.sub(r'"[^"]*"', '""', code)
        assert set(re.findall(r"(?<![.\w])(\w+)\s*\(", words)) <= KNOWN_CALLS, path
        assert (
            words.count("{") == words.count("}")
            and words.count("(") == words.count(")")
            and words.count("[") == words.count("]")
        )
        for option in re.findall(r'"(--[a-z-]+)"', code):
            assert option in help_text, option
        for name in re.findall(
            r'"(LRMIL [^"]+)"', code
        ):  # names of measurements are public, and must be the ones written
            assert name in ("LRMIL attention (0-1)", "LRMIL region tiles")
    assert lrmil("info", "--qupath-scripts", tmp_path / "s").code == 0
    (tmp_path / "s" / "lrmil_predict.groovy").write_text("edited")
    said = lrmil("info", "--qupath-scripts", tmp_path / "s")
    assert said.code == 2 and "--overwrite" in said.err
    assert lrmil("info", "--qupath-scripts", tmp_path / "s", "--overwrite").code == 0
    assert lrmil("info", "--qupath-scripts", tmp_path / "s", "--encoders").code == 2


# ---- lrmil_import.groovy -----------------------------------------------------------------
TILE = {"LRMIL attention (0-1)": 0.5}


def results(path, slide, size=(300, 200), tiles=3, **about):
    """A map as lrmil writes it: what it is of on the first line, a feature a line."""
    own = {"slide": slide.name, "fingerprint": fingerprint(slide), "image": list(size), **about}
    kind = "annotation" if ".regions" in path.name else "tile"
    measured = {"LRMIL region tiles": 3} if kind == "annotation" else TILE
    feature = json.dumps({"type": "Feature", "properties": {"objectType": kind, "measurements": measured}})
    text = '{"type":"FeatureCollection","lrmil":' + json.dumps(own) + ',"features":[\n'
    text += ",\n".join([feature] * tiles) + "\n]}\n"
    path.write_bytes(gzip.compress(text.encode()) if path.name.endswith(".gz") else text.encode())
    return path


def slide_file(path, fill=b"x", size=300_000):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(fill + str(n).encode() for n in range(size // 6)))
    return path


def run_import(tmp_path, *images):
    """Run the script of the package on images (a folder of results and a slide each); what became of each."""
    script = Path(__file__).resolve().parents[2] / "lrmil_cli" / "qupath" / "lrmil_import.groovy"
    (tmp_path / "images.json").write_text(json.dumps(images, default=str))
    java = shutil.which("java")
    home = os.environ.get("JAVA_HOME") or str(Path(java).resolve().parents[1])
    done = subprocess.run(
        ["groovy", "-cp", STAND_INS, STAND_INS / "run.groovy", script, tmp_path / "images.json"],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "JAVA_HOME": home},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def image(results, slide, name=None, size=(300, 200), tiles=()):
    """An image of a project: its name there, the size that QuPath shows, and the tiles it has already."""
    return {
        "dir": results,
        "slide": slide,
        "name": name or slide.stem,
        "size": size,
        "tiles": [{"measurements": t} for t in tiles],
    }


@pytest.mark.skipif(not shutil.which("groovy") or not shutil.which("java"), reason="Groovy is not installed")
def test_the_import_script_loads_the_map_of_the_slide_and_of_no_other(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    a, b = slide_file(tmp_path / "one" / "slide.svs", b"a"), slide_file(tmp_path / "two" / "slide.svs", b"b")
    other, odd = slide_file(tmp_path / "other.svs", b"o"), slide_file(tmp_path / 'a:b"c*d?e<f>g|h\\i.svs', b"q")
    small, gone = slide_file(tmp_path / "small.svs", b"s", 60), slide_file(tmp_path / "gone.svs", b"g")
    results(out / "slide.heatmap.geojson.gz", a)
    results(out / "slide.regions.geojson.gz", a, tiles=2)
    results(out / "other.heatmap.geojson", other, tiles=4)
    results(out / f"{odd.stem}.heatmap.geojson.gz", odd, tiles=5)
    results(out / "small.geojson", small, tiles=1)
    results(out / "gone.heatmap.geojson", gone, tiles=6)
    results(out / "renamed.heatmap.geojson", other, tiles=4)
    (out / "foreign.heatmap.geojson").write_text('{"type":"FeatureCollection","features":[]}')
    results(out / "two-slide.heatmap.geojson", b, tiles=7)
    (out / "broken.heatmap.geojson.gz").write_bytes(b"no gzip")
    foreign, broken = slide_file(tmp_path / "foreign.svs"), slide_file(tmp_path / "broken.svs")
    nothing = slide_file(tmp_path / "nothing.svs", b"n")
    others = [{"another measurement": 1}] * 2
    found = run_import(
        tmp_path,
        image(out, a, tiles=[TILE, TILE, *others]),
        image(out, b),
        image(out, b, "two-slide"),
        image(out, other, "slide"),  # renamed in the project to the name of another slide
        image(out, odd),
        image(out, small),
        image(out, other, size=(300, 199)),
        image(out, foreign),
        image(out, broken),
        image(out, nothing),
        {**image(out, gone), "slide": None},
        {**image(out, gone, "slide"), "slide": None},
        {**image(out, gone, "renamed"), "slide": None},
    )
    loaded = [(f["tiles"], f["annotations"]) for f in found]
    assert loaded == [
        (5, 2),
        (0, 0),
        (7, 0),
        (4, 0),
        (5, 0),
        (1, 0),
        (0, 0),
        (0, 0),
        (0, 0),
        (0, 0),
        (6, 0),
        (3, 2),
        (0, 0),
    ]
    said = [f["said"] + (f["error"] or "") for f in found]
    assert "slide.heatmap.geojson.gz: 3 tiles" in said[0] and "slide.regions.geojson.gz: 2 regions" in said[0]
    assert "it is of another slide (slide.svs)" in found[1]["error"] and "lrmil predict" in found[1]["error"]
    assert "Left alone: slide.heatmap.geojson.gz: it is of another slide" in said[2]
    assert "300 x 200 px, and this one has 300 x 199" in found[6]["error"]
    assert "does not say of which slide" in found[7]["error"] and "does not say of which slide" in found[8]["error"]
    assert "Nothing for nothing in" in said[9] and found[9]["error"] is None
    assert "no local file to compare with" in found[12]["error"]


@pytest.mark.skipif(not shutil.which("groovy") or not shutil.which("java"), reason="Groovy is not installed")
def test_what_is_refused_leaves_the_image_as_it_was(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    a, b = slide_file(tmp_path / "one" / "slide.svs", b"a"), slide_file(tmp_path / "two" / "slide.svs", b"b")
    results(out / "slide.heatmap.geojson.gz", a)
    results(out / "slide.regions.geojson.gz", a)
    (found,) = run_import(tmp_path, image(out, b, tiles=[TILE, TILE]))
    assert found["tiles"] == 2 and found["annotations"] == 0 and found["error"].count("another slide") == 2
