"""Files that mean harm: nothing is unpickled, no link followed, no name obeyed by a terminal, a spreadsheet or a
browser."""

import os
import pickle
import shutil
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
import torch

from lrmil_cli.commands.screen import printable
from lrmil_cli.encoders.checkpoint import read_state
from lrmil_cli.errors import InputError, LrmilError
from lrmil_cli.evaluation.page import Heading, Table, Text, to_html, to_markdown
from lrmil_cli.files.atomic import atomic_path, write_text
from lrmil_cli.files.features import read_features
from lrmil_cli.files.foreign import read_bag
from lrmil_cli.files.header import make_header, step
from lrmil_cli.files.manifest import read_manifest
from lrmil_cli.files.manifest_rows import is_formula
from lrmil_cli.files.tables import read_table, write_table
from tests.conftest import not_on_windows
from tests.layouts import write_trident

ROOT = Path(__file__).resolve().parents[3]


class Bomb:
    """Leaves a mark when it is unpickled."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("name", ["w.pt", "w.pth", "w.bin", "w.safetensors"])
def test_no_pickle_is_run_whatever_it_is_called(tmp_path, name):
    torch.save({"w": torch.zeros(1), "bomb": Bomb(tmp_path / "mark")}, tmp_path / name)
    with pytest.raises(LrmilError):
        read_state(tmp_path / name)
    (tmp_path / name).write_bytes(pickle.dumps(Bomb(tmp_path / "mark")))
    with pytest.raises(LrmilError):
        read_state(tmp_path / name)
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize("read", [read_features, lambda p: read_bag(p, 0.5)])
def test_a_pickle_in_place_of_features_is_refused(tmp_path, read):
    (tmp_path / "a.h5").write_bytes(pickle.dumps(Bomb(tmp_path / "mark")))
    np.savez(tmp_path / "b.npz", np.array([Bomb(tmp_path / "mark")], dtype=object), allow_pickle=True)
    (tmp_path / "b.h5").write_bytes((tmp_path / "b.npz").read_bytes())
    for name in ("a.h5", "b.h5"):
        with pytest.raises(InputError):
            read(tmp_path / name)
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize("kind", ["external link", "soft link", "external storage", "virtual"])
def test_values_in_other_files_are_not_followed(tmp_path, kind):
    coords, features = np.array([[0, 0], [256, 0]]), np.ones((2, 3), np.float32)
    secret = write_trident(tmp_path / "secret.h5", coords, features)
    path = write_trident(tmp_path / "s.h5", coords, features)
    with h5py.File(path, "a") as h5:
        del h5["features"]
        if kind == "external link":
            h5["features"] = h5py.ExternalLink(str(secret), "features")
        elif kind == "soft link":
            h5["features"] = h5py.SoftLink("/coords")
        elif kind == "external storage":
            h5.create_dataset("features", (2, 3), np.float32, external=[(str(secret), 0, 24)])
        else:
            layout = h5py.VirtualLayout((2, 3), np.float32)
            layout[:] = h5py.VirtualSource(str(secret), "features", (2, 3))
            h5.create_virtual_dataset("features", layout)
    with pytest.raises(InputError, match="not followed"):
        read_bag(path, 0.5)


def test_names_do_not_reach_a_terminal_as_commands():
    assert printable("a\x1b[31mred\x07\u202egnp.svs ümläut\nnext") == "a\\x1b[31mred\\x07\\u202egnp.svs ümläut\nnext"


@pytest.mark.parametrize(
    ("text", "formula"),
    [
        ("=1+1", True),
        ("@SUM(A1)", True),
        ("+cmd|' /C calc'!A0", True),
        ("-2+3+cmd|x!A", True),
        ("HER2+", False),
        ("-", False),
        ("-1.5", False),
        ("+", False),
        ("tumor", False),
        ("", False),
    ],
)
def test_what_a_spreadsheet_would_run(text, formula):
    assert is_formula(text) == formula


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ("a.svs,=HYPERLINK(1),p", "formula"),
        ("a.svs,x,@p", "formula"),
        ("=a.svs,x,p", "formula"),
        ("a.svs,x\x1b[0m,p", "cannot be seen"),
        ("a.svs,x,p\u202e1", "cannot be seen"),
    ],
)
def test_a_manifest_whose_texts_would_do_something_is_refused(tmp_path, row, says):
    (tmp_path / "s.csv").write_text(f"slide,label,patient_id\n{row}\nb.svs,y,q\n")
    with pytest.raises(InputError, match=says):
        read_manifest(tmp_path / "s.csv")


@not_on_windows
def test_failures_of_odd_names_are_no_formulas_and_say_nothing_to_the_terminal(tmp_path, lrmil):
    for name in ("=cmd|' C'!A0.svs", "esc\x1b[2J.svs"):
        (tmp_path / name).write_text("no slide")
    said = lrmil("tile", tmp_path, "-o", tmp_path / "out", "--mpp", "2.0")
    assert said.code == 3 and "\x1b" not in said.err and "\\x1b[2J" in said.err
    cells = pd.read_csv(tmp_path / "out" / "failures.csv").astype(str).to_numpy().ravel()
    assert not [c for c in cells if c.startswith(("=", "@"))]


def test_markup_in_names_stays_text():
    page = [
        Heading("<script>a()</script>"),
        Text("<img src=x onerror=a()>"),
        Table(["<b>"], [["</table><script>"]], "&lt;"),
    ]
    html = to_html("<title>", page)
    assert "<script>" not in html and "<img src=x" not in html and "<b>" not in html and "<title>&lt;title&gt;" in html
    assert "<script>" not in to_markdown("x", page)


def test_json_that_is_nested_without_end_is_refused(tmp_path):
    (tmp_path / "x.tiles.csv").write_text(
        '# lrmil {"kind":"tiles","version":1,"history":[],"a":' + "[" * 200_000 + "\nx\n"
    )
    with pytest.raises(InputError):
        read_table(tmp_path / "x.tiles.csv", "tiles")


def test_numbers_that_are_none_do_not_get_through_a_header(tmp_path):
    write_table(
        tmp_path / "a.csv",
        make_header("folds", settings={"a": 1.25}, history=[step("x", {}, {})]),
        pd.DataFrame({"slide_id": ["a"], "patient_id": ["a"], "label": ["x"]}),
    )
    text = (tmp_path / "a.csv").read_text()
    for value in ("NaN", "Infinity", "1e999"):
        (tmp_path / "a.csv").write_text(text.replace("1.25", value))
        with pytest.raises(InputError):
            read_table(tmp_path / "a.csv", "folds")


@not_on_windows
def test_what_a_killed_process_left_behind_is_swept_and_nothing_else(tmp_path):
    from lrmil_cli.files import atomic

    gone = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True
    ).stdout.strip()
    names = {
        "dead": f".x.{atomic._world()}-{gone}-{'0' * 12}.tmp.csv",
        "alive": f".x.{atomic._world()}-{os.getppid()}-{'0' * 12}.tmp.csv",
        "of another machine or container": f".x.{'f' * 8}-{gone}-{'0' * 12}.tmp.csv",
        "of another, forgotten": f".x.{'e' * 8}-{os.getppid()}-{'0' * 12}.tmp.csv",
        "the user's": ".x.tmp.csv",
        "the user's, old": ".y.tmp.csv",
    }
    for name in names.values():
        (tmp_path / name).write_text("half")
    for name in (names["of another, forgotten"], names["the user's, old"]):
        os.utime(tmp_path / name, (time.time() - 8 * 24 * 3600,) * 2)
    write_text(tmp_path / "y.csv", "whole")
    swept = {names["dead"], names["of another, forgotten"]}
    assert {p.name for p in tmp_path.iterdir()} == {"y.csv", *names.values()} - swept


@pytest.mark.skipif(sys.platform != "linux", reason="PID namespaces are of Linux")
def test_a_container_of_the_same_host_name_does_not_sweep_what_is_being_written(tmp_path):
    inside = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--mount-proc", sys.executable]
    if not shutil.which("unshare") or subprocess.run([*inside, "-c", ""], capture_output=True).returncode:
        pytest.skip("this machine lets nobody make a namespace")
    write = "import sys; from lrmil_cli.files.atomic import write_text; write_text(sys.argv[1], 'theirs')"
    with atomic_path(tmp_path / "ours.csv") as tmp:
        assert os.getpid() > 20  # so no process in the container has this number, and it is that of a dead one
        tmp.write_text("ours")
        done = subprocess.run(
            [*inside, "-c", write, tmp_path / "theirs.csv"], env={**os.environ, "PYTHONPATH": str(ROOT)}
        )
        assert done.returncode == 0 and tmp.exists()
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {"ours.csv": "ours", "theirs.csv": "theirs"}


@not_on_windows
def test_random_damage_is_always_one_of_our_errors(tmp_path):
    seed = int.from_bytes(os.urandom(4), "little")
    env = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz", "630", str(seed)],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, f"seed {seed}\n{done.stdout}{done.stderr}"
    assert done.stdout.count("inputs") == 21


def test_a_dataset_that_claims_more_than_any_memory_is_refused(tmp_path):
    path = write_trident(tmp_path / "s.h5", np.array([[0, 0], [256, 0]]), np.ones((2, 3), np.float32))
    with h5py.File(path, "a") as h5:
        del h5["features"]
        h5.create_dataset("features", (10**9, 1000), np.float32, chunks=(1, 1000))
    with pytest.raises(InputError, match="claims 4000 GB"):
        read_bag(path, 0.5)
