"""Files that earlier versions wrote are read as they were meant: every kind opens, every model says the same numbers.

Each folder ``v*`` is the work of one version and never changes; see README.md beside this file.
"""

import gzip
import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch

from lrmil_cli.files.header import MADE_BY
from lrmil_cli.heads import head_names
from tests.archive import contents

HERE = Path(__file__).parent
EXPECTED = {p.parent.name: json.loads(p.read_text(encoding="utf-8")) for p in sorted(HERE.glob("v*/expected.json"))}
METHODS = {"lrmil", "ahdmil", "hdmil", "zoommil"}
#: How far a number may lie off. Torch on a CPU: other versions and machines add in another order, which moves the last
#: digits of float32; a change of what is computed moves more. ONNX Runtime fuses operations: as far as `export-onnx`
#: lets a graph lie off torch. int8 rounds by what instructions the CPU has; only the rough answer is alike everywhere.
TOLERANCE = {"torch": 1e-5, "onnx": 1e-4, "onnx-int8": 2e-2}
#: (version, command, output) that is rightly made again, since the command has gained a setting. Its files still open.
MADE_AGAIN: set[tuple[str, str, str]] = {
    ("v0.1.0", "export-geojson", "geojson/t1.screen.heatmap.geojson"),  # without attention where nothing was read
}

FILES = [(version, name, about["kind"]) for version, e in EXPECTED.items() for name, about in e["files"].items()]
HEADS = [(version, name) for version, e in EXPECTED.items() for name in e["heads"]]


def output(line: list[str]) -> str:
    return line[line.index("-o") + 1] if "-o" in line else line[1].replace(".safetensors", ".onnx")


def commands(*names: str, of=("commands",)) -> list:
    """Archived command lines as parameters (version, line), of these commands or of all."""
    return [
        pytest.param(version, line, id=f"{version}-{line[0]}-{output(line)}")
        for version, e in EXPECTED.items()
        for key in of
        for line in e[key]
        if not names or line[0] in names
    ]


def changed(line: list[str], **values: object) -> list[str]:
    """A command line with other values of ``-o`` (``o=``) and of long options."""
    new = {("-o" if name == "o" else f"--{name}"): str(value) for name, value in values.items()}
    return [new.get(before, word) for before, word in zip(["", *line], line)]


def needs(*words: str) -> None:
    """Skip where a package is missing that lrmil does without."""
    for package, endings in (("pyarrow", ".parquet"), ("onnxruntime", ("onnx", "onnx-int8"))):
        if any(word.endswith(endings) for word in words):
            pytest.importorskip(package)


def made_of(folder: Path, path: Path, old: Path) -> list[tuple[Path, Path]]:
    """Files that a command wrote to ``path``, each with the archived one that it wrote to ``old``."""
    found = [(p, folder / old / p.name) for p in sorted(path.iterdir())] if path.is_dir() else [(path, folder / old)]
    assert found
    return found


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """For matrices of this size, threads cost more than they save."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def copies(tmp_path_factory):
    """A copy of every archive, since commands write."""
    at = tmp_path_factory.mktemp("archive")
    return {v: shutil.copytree(HERE / v, at / v, ignore=shutil.ignore_patterns("__pycache__")) for v in EXPECTED}


@pytest.fixture
def enter(copies, monkeypatch):
    """``enter(version)``: work in the copy of an archive, since all its command lines are relative to it."""

    def go(version):
        monkeypatch.chdir(copies[version])
        return copies[version]

    return go


def test_every_kind_of_file_method_and_head_is_there():
    """And every file of an archive is looked at."""
    abouts = [about for e in EXPECTED.values() for about in e["files"].values()]
    newer = {"answers", "seeds"}  # kinds that no released version writes yet
    assert {about["kind"] for about in abouts} >= {*MADE_BY, "geojson", "receipt", "manifest", "slide"} - newer
    assert {about.get("method", "lrmil") for about in abouts if about["kind"] == "model"} == METHODS
    assert {h["name"] for e in EXPECTED.values() for h in e["heads"].values()} >= {*head_names(), "zoommil"}
    for kind in ("tiles", "pairs"):
        endings = {name.partition(f".{kind}")[2] for _, name, own in FILES if own == kind}
        assert endings == {".csv", ".csv.gz", ".parquet"}
    predictions = [p for e in EXPECTED.values() for slides in e["predictions"].values() for p in slides.values()]
    assert {p["runtime"] for p in predictions} == set(TOLERANCE)


@pytest.mark.parametrize("version", EXPECTED)
def test_nothing_stands_in_an_archive_that_no_test_looks_at(version):
    folder, e = HERE / version, EXPECTED[version]
    assert version == f"v{e['made']['lrmil']}" and contents.names(folder) == list(e["files"])
    assert {p.name for p in (folder / "predictions").iterdir()} == set(e["predictions"])
    assert {Path(output(line)).name for line in e["commands"] if line[0] == "predict"} == set(e["predictions"])
    assert {p.stem for p in contents.head_files(folder)} == set(e["heads"])


@pytest.mark.parametrize(("version", "name", "kind"), FILES)
def test_info_says_what_it_is(version, name, kind, enter):
    needs(name)
    enter(version)
    assert contents.info(Path(name)) == EXPECTED[version]["files"][name]


@pytest.mark.parametrize(("version", "name", "kind"), {(f[0], f[2]): f for f in FILES}.values())
def test_info_says_it_in_words(version, name, kind, enter, lrmil):
    needs(name)
    enter(version)
    said = lrmil("info", name)
    assert said.code == 0 and kind in said.out.splitlines()[0].lower(), said.err


@pytest.mark.parametrize(("version", "line"), commands())
def test_running_a_command_again_finds_its_work_up_to_date(version, line, enter, lrmil):
    if (version, line[0], output(line)) in MADE_AGAIN:
        pytest.skip("made again, since the command has gained a setting")
    needs(*line, output(line))
    folder = enter(version)
    rows = {p: p.read_text().partition("\n")[2] for p in folder.rglob("*.csv")}
    # Tells tables where the slides of the copy are, lists the slides of results, and changes nothing else.
    said = lrmil(*line)
    assert said.code == 0 and "up to date" in said.err, said.err
    found = {p: p.read_text().partition("\n")[2] for p in folder.rglob("*.csv")}
    assert {p: found[p] for p in rows} == rows
    assert {p.name for p in found.keys() - rows.keys()} <= ({"predictions.csv"} if line[0] == "predict" else set())
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*")}
    said = lrmil(*line)
    assert said.code == 0 and "up to date" in said.err and "has moved" not in said.err, said.err
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*")} == before


@pytest.mark.parametrize(("version", "line"), commands("predict"))
def test_every_model_predicts_the_same_numbers(version, line, enter, lrmil, tmp_path):
    needs(*line)
    enter(version)
    said = lrmil(*changed(line, o=tmp_path))
    assert said.code == 0, said.err
    expected, found = EXPECTED[version]["predictions"][Path(output(line)).name], contents.predictions(tmp_path)
    assert found.keys() == expected.keys() and expected
    for slide, e in expected.items():
        f, near, same = found[slide], TOLERANCE[e["runtime"]], ("predicted", "tiles_read", "runtime", "uncertain")
        assert [f[k] for k in same] == [e[k] for k in same]
        assert f["probabilities"] == pytest.approx(e["probabilities"], abs=near)
        assert f["attention"].keys() == e["attention"].keys()
        for table, attention in e["attention"].items():
            assert f["attention"][table] == pytest.approx(attention, abs=near), table


@pytest.mark.parametrize(("version", "name"), HEADS)
def test_every_head_says_the_same_of_a_fixed_bag(version, name):
    """Apart from slides and encoders: what fails here is in the heads."""
    folder, expected = HERE / version / "heads", EXPECTED[version]["heads"][name]
    found = contents.head(folder / f"{name}.safetensors", folder / "bag.safetensors")
    assert found["name"] == expected["name"]
    for what in ("logits", "attention"):
        assert found[what] == pytest.approx(expected[what], abs=TOLERANCE["torch"]), what


@pytest.mark.parametrize(("version", "line"), commands("tile", "match"))
def test_tables_come_out_the_same(version, line, enter, lrmil, tmp_path):
    """``match`` reads archived tables of every format; ``tile`` reads the slides that are kept."""
    needs(*line)
    folder, old = enter(version), Path(output(line))
    said = lrmil(*changed(line, o=tmp_path / old.name))
    assert said.code == 0, said.err
    for pair in made_of(folder, tmp_path / old.name, old):
        found, expected = (pd.read_parquet(p) if p.suffix == ".parquet" else pd.read_csv(p, comment="#") for p in pair)
        if line[0] == "match":  # since then pairs also say how much tissue an HR tile has
            found = found.drop(columns="hr_tissue")
        # tissue is found in pictures that were shrunk, which image libraries round in their own ways
        pd.testing.assert_frame_equal(found, expected, rtol=0, atol=2e-3)


@pytest.mark.parametrize("version", EXPECTED)
@pytest.mark.parametrize(
    ("encoder", "tiles", "features"),
    [("local-dir:encoder", "tiles-hr", "features-hr"), ("lr-encoder.safetensors", "tiles-lr", "lrmil.features")],
)
def test_encoders_give_the_same_features(version, encoder, tiles, features, enter, lrmil, tmp_path):
    """Of tables made anew: archived ones name slides where they were when the archive was made."""
    import h5py

    folder = enter(version)
    tile = next(line for line in EXPECTED[version]["commands"] if output(line) == tiles)
    embed = ["embed", tmp_path / "t", "--encoder", encoder, "--dtype", "float32", "-o", tmp_path / "f"]
    for line in (changed(tile, o=tmp_path / "t"), embed):
        said = lrmil(*line)
        assert said.code == 0, said.err
    for new, old in made_of(folder, tmp_path / "f", Path(features)):
        with h5py.File(new) as f, h5py.File(old) as e:
            assert (f["coords"][:] == e["coords"][:]).all()
            assert f["features"][:] == pytest.approx(e["features"][:], abs=10 * TOLERANCE["torch"])  # they reach to 3


@pytest.mark.parametrize(("version", "line"), commands("export-geojson"))
def test_geojson_of_archived_attention_is_the_same(version, line, enter, lrmil, tmp_path):
    folder, old = enter(version), Path(output(line))
    said = lrmil(*changed(line, o=tmp_path / old.name))
    assert said.code == 0, said.err
    for pair in made_of(folder, tmp_path / old.name, old):
        texts = [gzip.decompress(p.read_bytes()) if p.suffix == ".gz" else p.read_bytes() for p in pair]
        found, expected = map(json.loads, texts)
        if (version, line[0], output(line)) in MADE_AGAIN:  # the same tiles, and what screened them; no attention
            for key in ("geometry", "LRMIL screening (0-1)"):
                values = [
                    [f.get(key) or f["properties"]["measurements"][key] for f in d["features"]]
                    for d in (found, expected)
                ]
                assert values[0] == values[1] and values[0]
            continue
        assert found["features"] == expected["features"] and found["features"]


@pytest.mark.parametrize(("version", "line"), commands("evaluate", of=("commands", "once")))
def test_archived_predictions_are_judged_the_same(version, line, enter, lrmil, tmp_path):
    def judged(folder):
        record = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
        metrics = {f"{m['name']} {name}": v["value"] for m in record["models"] for name, v in m["metrics"].items()}
        between = {f"{d['model']} - {d['reference']} {d['metric']}": d["value"] for d in record["differences"]}
        return metrics | between, [(m["confusion"], (m["reading"] or {}).get("curve")) for m in record["models"]]

    folder = enter(version)
    said = lrmil(*changed(line, o=tmp_path, bootstrap=0))
    assert said.code == 0, said.err
    (found, counted), (expected, expected_counts) = judged(tmp_path), judged(folder / output(line))
    assert found == pytest.approx(expected, abs=1e-9) and counted == expected_counts and expected


@pytest.mark.parametrize("version", EXPECTED)
def test_the_receipt_of_an_archived_model_is_the_same(version, enter, lrmil, tmp_path):
    def values(path):
        models = json.loads(path.read_text(encoding="utf-8"))["models"]
        return {f"{who} {name}": v["value"] for who, m in models.items() for name, v in m["metrics"].items()}

    folder = enter(version)
    said = lrmil("evaluate", "lrmil.safetensors", "--receipt", "--bootstrap", "0", "-o", tmp_path)
    assert said.code == 0, said.err
    expected = values(folder / "lrmil.receipt.json")
    assert values(tmp_path / "lrmil.receipt.json") == pytest.approx(expected, abs=1e-9) and expected


@pytest.mark.parametrize(
    ("version", "line"),
    [
        p
        for p in commands("train-teacher", "distill-student")
        if output(p.values[1]) in ("teacher", "lrmil.safetensors")
    ],
)
def test_training_takes_archived_files(version, line, enter, lrmil, tmp_path):
    """Tables, pairs, features, teacher, encoder. Most slides are not kept: nothing is trained that looks at pixels."""
    enter(version)
    own = ["--lr-features", "lrmil.features"] if line[0] == "distill-student" else []
    said = lrmil(*changed(line, o=tmp_path / output(line), epochs=1), *own, "--json")
    assert said.code == 0, said.err
    assert said.records[0]["status"] == "ok" and 0 <= said.records[0]["metrics"]["brier"] <= 2
