"""Files: what is written is read back, what is damaged or foreign is refused with a message."""

import json
import re
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch

from lrmil_cli.errors import InputError, MachineError, UsageError
from lrmil_cli.files.atomic import atomic_path
from lrmil_cli.files.features import read_features, read_features_header, write_features
from lrmil_cli.files.header import digest, last_digest, make_header, step, up_to_date
from lrmil_cli.files.tables import read_table, read_table_header, write_table
from lrmil_cli.files.tensors import load_tensors, read_tensor_header, save_tensors, tensors_digest
from tests.conftest import not_on_windows


def tiles_header():
    return make_header(
        "tiles",
        slide={"id": "s", "path": "s.svs"},
        settings={"mpp": 2.0},
        history=[step("tile", {"mpp": 2.0}, {"slide": "f"})],
    )


def tiles_rows():
    return pd.DataFrame(
        {
            "x": [0, 512],
            "y": [0, 0],
            "width": [512, 512],
            "height": [512, 512],
            "col": [0, 1],
            "row": [0, 0],
            "tissue": [0.25, 1.0],
        }
    )


@pytest.mark.parametrize("name", ["t.csv", "t.csv.gz", "t.parquet"])
def test_table_round_trip(tmp_path, name):
    write_table(tmp_path / name, tiles_header(), tiles_rows())
    header, rows = read_table(tmp_path / name, "tiles")
    pd.testing.assert_frame_equal(rows, tiles_rows())
    assert header["settings"] == {"mpp": 2.0} and header["history"][0]["command"] == "tile"
    assert read_table_header(tmp_path / name, "tiles")["rows"] == 2
    assert [p.name for p in tmp_path.iterdir()] == [name]  # no temporary file is left


def test_other_tools_read_the_rows(tmp_path):
    write_table(tmp_path / "t.csv", tiles_header(), tiles_rows())
    assert pd.read_csv(tmp_path / "t.csv", comment="#")["width"].tolist() == [512, 512]


def test_same_table_same_bytes(tmp_path, monkeypatch):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    for name in ("a.csv.gz", "b.csv.gz"):
        write_table(tmp_path / name, tiles_header(), tiles_rows())
    assert (tmp_path / "a.csv.gz").read_bytes() == (tmp_path / "b.csv.gz").read_bytes()


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda t: t.rsplit("\n", 2)[0] + "\n", "truncated"),
        (lambda t: t.replace('"kind": "tiles"', '"kind": "pairs"'), "this is a pairs file"),
        (lambda t: t.replace('"version": 1', '"version": 99'), "newer lrmil"),
        (lambda t: t.replace("# lrmil {", "# lrmil [{"), "damaged"),
        (lambda t: t.split("\n", 1)[1], "lrmil tile"),
        (lambda t: t.replace("tissue\n", "tissu\n"), "'tissue' is missing"),
        (lambda t: t.replace("0,0,512", "0,zero,512"), "not a valid number"),
        (lambda t: t.replace("0,0,512", "0,0.5,512"), "not a valid number"),
        (lambda t: "", "nothing came in"),
        (lambda t: t.encode().replace(b"512", b"\xff\xfe\x00").decode("latin1"), "cannot be read as a table"),
    ],
)
def test_damaged_tables_are_refused(tmp_path, damage, says):
    path = tmp_path / "t.csv"
    write_table(path, tiles_header(), tiles_rows())
    path.write_text(damage(path.read_text()), encoding="latin1")
    with pytest.raises(InputError, match=says):
        read_table(path, "tiles")


def test_truncated_gzip_is_refused(tmp_path):
    path = tmp_path / "t.csv.gz"
    write_table(path, tiles_header(), tiles_rows())
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(InputError, match="cannot be read"):
        read_table(path, "tiles")


def test_a_name_that_is_no_table(tmp_path):
    with pytest.raises(UsageError, match=".parquet"):
        write_table(tmp_path / "t.xlsx", tiles_header(), tiles_rows())


def test_up_to_date_by_digest(tmp_path):
    path = tmp_path / "t.csv"
    write_table(path, tiles_header(), tiles_rows())
    read = lambda p: read_table_header(p, "tiles")  # noqa: E731
    assert up_to_date(path, digest({"mpp": 2.0}, {"slide": "f"}), read, overwrite=False)
    with pytest.raises(UsageError, match="--overwrite"):
        up_to_date(path, digest({"mpp": 1.0}, {"slide": "f"}), read, overwrite=False)
    assert not up_to_date(path, digest({"mpp": 1.0}, {"slide": "f"}), read, overwrite=True)
    assert not up_to_date(tmp_path / "no.csv", "x", read, overwrite=False)


def test_nothing_is_left_when_writing_fails(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        with atomic_path(tmp_path / "a.csv") as tmp:
            tmp.write_text("half")
            raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("x")
    with pytest.raises(MachineError, match="cannot write"):
        with atomic_path(tmp_path / "file" / "a.csv"):
            pass


# ---- HDF5 and safetensors ----------------------------------------------------------
def features_header():
    slide = {"id": "s", "mpp": 0.5, "width": 4000, "height": 3000}
    return make_header(
        "features",
        slide=slide,
        settings={},
        tiles={"mpp": 2.0, "tile_px": 256},
        encoder={"name": "e"},
        history=[step("embed", {}, {})],
    )


def test_features_round_trip_and_damage(tmp_path):
    path = tmp_path / "s.h5"
    x, at = np.random.default_rng(0).normal(size=(7, 5)).astype(np.float32), np.arange(14).reshape(7, 2)
    for dtype in ("float32", "float16"):
        write_features(path, features_header(), x, at, dtype)
        back = read_features(path)
        assert back.features.dtype == np.float32
        np.testing.assert_array_equal(back.features, x.astype(dtype))
        np.testing.assert_array_equal(back.coords, at)
    with pytest.raises(UsageError, match="up to 1e.05, which float16 cannot hold; add --dtype float32"):
        write_features(tmp_path / "t.h5", features_header(), x * 0 + 1e5, at)
    assert not (tmp_path / "t.h5").exists()
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(InputError, match="HDF5"):
        read_features(path)
    path.write_bytes(b"not hdf5")
    with pytest.raises(InputError):
        read_features(path)


def test_features_that_are_not_finite_are_refused(tmp_path):
    x = np.ones((2, 3), np.float32)
    x[1, 1] = np.nan
    write_features(tmp_path / "s.h5", features_header(), x, np.zeros((2, 2), int))
    with pytest.raises(InputError, match="finite"):
        read_features(tmp_path / "s.h5")


def test_tensor_files_say_what_they_are(tmp_path):
    path = tmp_path / "e.safetensors"
    save_tensors(path, {"a": torch.arange(4.0)}, make_header("encoder", settings={}, history=[step("x", {}, {})]))
    header, tensors = load_tensors(path, "encoder")
    assert header["kind"] == "encoder" and tensors["a"].tolist() == [0, 1, 2, 3]
    with pytest.raises(InputError, match="this is an encoder file, but a model file"):
        load_tensors(path, "model")
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(InputError, match="damaged"):
        load_tensors(path, "encoder")
    path.write_bytes(b"\x00" * 100)
    with pytest.raises(InputError):
        read_tensor_header(path, "encoder")
    with pytest.raises(InputError, match="no such file"):
        read_tensor_header(tmp_path / "no", "encoder")


def test_digest_of_tensors_sees_names_types_and_values():
    a = {"w": torch.tensor([1.0, 2.0]), "s": torch.tensor(3)}
    same = {"s": torch.tensor(3), "w": torch.tensor([1.0, 2.0])}
    assert tensors_digest(a) == tensors_digest(same)
    for other in (
        {"w": torch.tensor([1.0, 2.5]), "s": torch.tensor(3)},
        {"v": a["w"], "s": a["s"]},
        {"w": a["w"].half(), "s": a["s"]},
        {"w": a["w"].bfloat16(), "s": a["s"]},
    ):
        assert tensors_digest(a) != tensors_digest(other)


# ---- damage that leaves the form intact --------------------------------------------
def write_one(path):
    """A file of the kind that its suffix names."""
    if path.suffix == ".h5":
        x = np.random.default_rng(0).normal(size=(7, 5)).astype(np.float32)
        write_features(path, features_header(), x, np.arange(14).reshape(7, 2))
    elif path.suffix == ".safetensors":
        save_tensors(
            path,
            {"a": torch.arange(40.0), "b": torch.ones(3, 2)},
            make_header("encoder", settings={"mpp": 2.0}, history=[step("x", {}, {})]),
        )
    else:
        write_table(path, tiles_header(), tiles_rows())
    return path


def content_of(path):
    """Header and content as a reader gets them."""
    if path.suffix == ".h5":
        read = read_features(path)
        return read.header, (read.features.tobytes(), read.coords.tobytes())
    if path.suffix == ".safetensors":
        header, tensors = load_tensors(path, "encoder")
        return header, {k: v.tolist() for k, v in tensors.items()}
    header, rows = read_table(path, "tiles")
    return header, rows.to_dict("list")


@pytest.mark.parametrize("name", ["t.csv", "t.csv.gz", "t.parquet", "f.h5", "e.safetensors"])
def test_a_flipped_bit_is_refused_or_changes_nothing(tmp_path, name):
    path = write_one(tmp_path / name)
    good, (header, content) = path.read_bytes(), content_of(path)
    rng, refused = np.random.default_rng(0), 0
    for at in np.linspace(0, len(good) - 1, 150).astype(int):
        bad = bytearray(good)
        bad[at] ^= 1 << int(rng.integers(8))
        path.write_bytes(bad)
        try:
            now, read = content_of(path)
        except InputError:
            refused += 1
            continue
        # A damaged key of the checksum is a file without one, which passes for edited by hand; nothing else may differ.
        now["history"] = [s for s in now["history"] if s["command"] != "edited by hand"]
        assert read == content and {k: now.get(k) for k in header} == header, at
    assert refused > (10 if path.suffix == ".h5" else 50)  # HDF5 pads a small file


def test_a_changed_digit_is_refused_and_the_way_out_is_said(tmp_path):
    path = write_one(tmp_path / "t.csv")
    text = path.read_text()
    path.write_text(text.replace("0.25", "0.75"))
    with pytest.raises(InputError, match="changed after it was written.*on purpose.*content"):
        read_table(path, "tiles")
    line, _, body = path.read_text().partition("\n")
    by_hand = re.sub(r', "content": "\w+"', "", line)
    path.write_text(f"{by_hand}\n{body}")
    assert read_table(path, "tiles")[1]["tissue"].tolist() == [0.75, 1.0]
    path.write_bytes(text.replace("\n", "\r\n").encode())  # Windows, or git there
    assert read_table(path, "tiles")[1]["tissue"].tolist() == [0.25, 1.0]


@not_on_windows  # there a file cannot be replaced while it is read
def test_two_processes_that_write_one_file_do_not_mix(tmp_path):
    """The last one wins; whoever reads meanwhile gets the whole of one of them."""
    path = tmp_path / "t.csv"
    code = (
        "import sys, pandas as pd; from lrmil_cli.files.tables import write_table; from lrmil_cli.files.header import "
        "make_header, step\n"
        "path, n = sys.argv[1], int(sys.argv[2])\n"
        "rows = pd.DataFrame({k: [n] * n for k in ('x', 'y', 'width', 'height', 'col', 'row', 'tissue')})\n"
        "for _ in range(100): write_table(path, make_header('tiles', settings={'n': n}, history=[step('tile', {'n': "
        "n}, {})]), rows)\n"
    )
    writers = [subprocess.Popen([sys.executable, "-c", code, str(path), str(n)]) for n in (300, 2000)]
    seen = 0
    while any(w.poll() is None for w in writers):
        if path.exists():
            header, rows = read_table(path, "tiles")
            assert len(rows) == header["settings"]["n"] and (rows["x"] == len(rows)).all()
            seen += 1
    assert [w.returncode for w in writers] == [0, 0] and seen > 10
    assert [p.name for p in tmp_path.iterdir()] == ["t.csv"]


def test_a_table_edited_by_hand_is_another_one(tmp_path):
    """What was made from the table before must not pass for up to date."""
    path = tmp_path / "t.csv"
    write_table(path, tiles_header(), tiles_rows())
    before = read_table(path, "tiles")[0]
    lines = path.read_text().splitlines()
    header = json.loads(lines[0].removeprefix("# lrmil "))
    plain = "# lrmil " + json.dumps({k: v for k, v in header.items() if k not in ("content", "rows")})
    digests = []
    for rows in (lines[1:], lines[1:-1], lines[1:-1]):
        path.write_text("\n".join([plain, *rows]) + "\n")
        digests.append(last_digest(read_table(path, "tiles")[0]))
    assert len({last_digest(before), *digests}) == 3 and digests[1] == digests[2]


@pytest.mark.parametrize("label", ["Carcinoma, NOS", 'a "b"', "plain"])
def test_columns_named_after_classes_survive(tmp_path, label):
    columns = {k: np.array([1, 2]) for k in ("x", "y", "width", "height")} | {
        "attention": np.array([0.25, 0.75]),
        "percentile": np.array([0.0, 100.0]),
        f"score_{label}": np.array([1.5, -2.0]),
    }
    for name in ("t.csv", "t.csv.gz"):
        write_table(tmp_path / name, make_header("attention", settings={}, history=[step("x", {}, {})]), columns)
        rows = read_table(tmp_path / name, "attention")[1]
        assert list(rows.columns) == list(columns) and rows[f"score_{label}"].tolist() == [1.5, -2.0]


# ---- places without locks ------------------------------------------------------------
@pytest.mark.skipif(sys.platform == "win32", reason="flock is of Unix")
def test_features_are_read_while_somebody_holds_a_lock(tmp_path):
    import fcntl

    write_one(tmp_path / "x.h5")
    with open(tmp_path / "x.h5", "rb") as fh:
        fcntl.flock(fh, fcntl.LOCK_EX)
        assert len(read_features(tmp_path / "x.h5").features) == 7


def test_what_the_system_says_is_not_called_damage(tmp_path, monkeypatch):
    import errno

    import h5py

    write_one(tmp_path / "x.h5")

    def refuse(*args, **kwargs):
        raise OSError(errno.ENOLCK, "Unable to synchronously open file")

    monkeypatch.setattr(h5py, "File", refuse)
    for read in (read_features, read_features_header):
        with pytest.raises(InputError, match=f"cannot be read .*errno {errno.ENOLCK}.*it may be whole"):
            read(tmp_path / "x.h5")


def test_tables_of_a_task_are_checked_by_its_own_columns(tmp_path):
    own = {"slide_id": "a", "patient_id": "p", "fold": 1, "time": 3.5, "event": 1, "risk": -0.5, "group": "high"}
    header = make_header("predictions", settings={}, target={"kind": "survival", "loss": "cox"}, history=[])
    write_table(tmp_path / "t.csv", header, pd.DataFrame([own]))
    assert read_table(tmp_path / "t.csv", "predictions")[1]["event"].tolist() == [1]
    write_table(tmp_path / "t.csv", header, pd.DataFrame([{**own, "risk": np.nan}]))
    with pytest.raises(InputError, match="'risk' is not a valid number"):
        read_table(tmp_path / "t.csv", "predictions")
    write_table(tmp_path / "t.csv", header, pd.DataFrame([own]).drop(columns="time"))
    with pytest.raises(InputError, match="'time' is missing"):
        read_table(tmp_path / "t.csv", "predictions")
    write_table(tmp_path / "t.csv", {**header, "target": {"kind": "counts"}}, pd.DataFrame([own]))
    with pytest.raises(InputError, match="update lrmil"):
        read_table(tmp_path / "t.csv", "predictions")
