"""Slides through pipes: JSON Lines between commands, xargs, GNU parallel."""

import gzip
import json
import shutil

import pytest

from tests.conftest import WINDOWS, shell

AWKWARD = ["with space", "ümläut ß", "semi;colon & co", "-dash", "=1+1"]
AWKWARD += [] if WINDOWS else ['it\'s "quoted"', "x" * 200]


@pytest.fixture
def folder(chain, tmp_path):
    """Slides of awkward names."""
    source = chain.manifest.parent / "slides" / "s13.svs"
    for name in AWKWARD:
        shutil.copy(source, tmp_path / f"{name}.svs")
    return tmp_path


def test_json_lines_from_tile_to_geojson(chain, folder):
    (folder / "broken.svs").write_bytes(b"not a slide")
    done = shell(
        f"ls ./*.svs | lrmil tile - --mpp 2.0 --tile-px 128 -o tiles --json -q > tiles.jsonl; "
        f"cat tiles.jsonl | lrmil predict - -m {chain.model} -o out --json -q > out.jsonl; cat out.jsonl | lrmil "
        "export-geojson - -o maps --json -q",
        folder,
    )
    assert done.returncode == 4, done.stderr  # one of them is no slide
    records = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(records) == len(AWKWARD) + 1 and [r["slide_id"] for r in records if r["status"] == "failed"] == [
        "broken"
    ]
    assert "cannot be opened as a slide" in next(r["error"] for r in records if r["status"] == "failed")
    for name in AWKWARD:
        document = json.loads(gzip.decompress((folder / "maps" / f"{name}.heatmap.geojson.gz").read_bytes()))
        assert document["features"] and document["lrmil"]["slide_id"] == name
    assert "broken" in (folder / "maps" / "failures.csv").read_text()


def test_a_folder_of_tables_becomes_a_folder_of_maps(chain, folder, lrmil):
    assert (
        lrmil(
            "predict", folder / "with space.svs", folder / "ümläut ß.svs", "-m", chain.model, "-o", folder / "out"
        ).code
        == 0
    )
    said = lrmil(
        "export-geojson",
        folder / "out",
        "-o",
        folder / "maps",
        "--png",
        folder / "pictures",
        "--style",
        "both",
        "--json",
    )
    assert said.code == 0 and len(said.records) == 2, said.err
    assert len(list((folder / "maps").iterdir())) == 4 and len(list((folder / "pictures").iterdir())) == 2
    again = lrmil("export-geojson", folder / "out", "-o", folder / "maps", "--style", "both", "--json")
    assert [r["status"] for r in again.records] == ["skipped", "skipped"]
    assert (
        lrmil("export-geojson", folder / "out", "-o", "-").code == 2
        and lrmil("export-geojson", folder / "out", "-o", folder / "x.geojson").code == 2
    )
    assert lrmil("export-geojson", folder, "-o", folder / "maps").code == 3


@pytest.mark.parametrize("runner", ["xargs -P 2 -I{} {lrmil}", "parallel -j 2 {lrmil} ::::"])
def test_many_processes_share_one_output_folder(chain, folder, runner):
    if shutil.which(runner.split()[0]) is None:
        pytest.skip(f"{runner.split()[0]} is not on this machine")
    (folder / "list").write_text("\n".join(f"./{n}.svs" for n in AWKWARD[:2] + AWKWARD[4:5]) + "\n")
    call = f"lrmil predict {{}} -m {chain.model} -o out --geojson maps -q"
    line = (
        f"tr '\\n' '\\0' < list | xargs -0 -P 2 -I{{}} {call}"
        if runner.startswith("xargs")
        else f"parallel -j 2 {call} :::: list"
    )
    done = shell(line, folder)
    assert done.returncode == 0, done.stderr
    assert {p.name.partition(".attention")[0] for p in (folder / "out").glob("*.attention.csv")} == set(
        AWKWARD[:2] + AWKWARD[4:5]
    )
    assert len(list((folder / "maps").iterdir())) == 3
