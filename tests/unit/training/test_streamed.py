"""Bags that stay on disk: the same bags as in memory, whatever room there is, and what happens to files meanwhile."""

import os
import re

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lrmil_cli.commands.options import memory_bytes
from lrmil_cli.errors import InputError, UsageError
from lrmil_cli.files.features import BagFile, open_features, write_features
from lrmil_cli.heads import Bag, PyramidBag, build_head
from lrmil_cli.training.bags import stored_bags
from lrmil_cli.training.loop import TrainSettings, fit_head
from lrmil_cli.training.objectives import Classes
from lrmil_cli.training.streamed import Room, Streamed, in_order
from tests.unit.files.test_files import features_header

CPU = torch.device("cpu")
#: Tiles of each slide; a bag of 3 features in float16 and corners of 8 bytes takes 22 bytes a tile.
COUNTS = (7, 3, 12, 5, 9, 4, 6, 8)


@pytest.fixture(params=["float16", "float32"])
def files(tmp_path, request):
    rng = np.random.default_rng(0)
    for n, count in enumerate(COUNTS):
        x = rng.normal(size=(count, 3)) + (n % 2)
        path = tmp_path / f"s{n}.h5"
        write_features(path, features_header(), x, rng.integers(0, 99, (count, 2)), request.param)
    return [open_features(tmp_path / f"s{n}.h5") for n in range(len(COUNTS))]


def in_memory(files):
    return [Bag(torch.from_numpy((f := file.read()).features), torch.from_numpy(f.coords)) for file in files]


@pytest.mark.parametrize("room", [0, 400, 10**9])
def test_training_on_bags_from_disk_is_training_on_bags_in_memory(files, room):
    settings, labels = TrainSettings(lr=1e-2, epochs=4), [n % 2 for n in range(8)]

    def fitted(bags):
        torch.manual_seed(0)
        return fit_head(build_head("abmil", 3, 2, {"hidden": 4}), bags, Classes(labels, 2), range(5), [5, 6], settings)

    streamed = stored_bags(files, CPU, Room(0, room)).all
    one, two = fitted(in_memory(files)), fitted(streamed)
    assert one.curves == two.curves
    for a, b in zip(one.head.parameters(), two.head.parameters()):
        assert torch.equal(a, b)
    assert streamed.counts == list(COUNTS) and streamed.dim == 3


@given(st.lists(st.integers(0, 7), max_size=40), st.integers(0, 3000), st.integers(0, 3000))
def test_what_is_kept_fits_the_room_and_is_given_back(asked, on_device, beside):
    """Whatever is asked for in whatever order; each bag of n tiles takes 4 n bytes."""
    read = []

    def load(i):
        read.append(i)
        return Bag(torch.full((COUNTS[i] * 20, 1), i, dtype=torch.float16), None)

    room = Room(on_device, beside)
    bags = Streamed(load, COUNTS, 1, room, CPU)
    for i, bag in zip(asked, in_order(bags, asked)):
        assert bag.features.dtype == torch.float32 and bag.features.unique().tolist() == [i]
    kept = {i: 40 * COUNTS[i] for i in set(asked) if asked.count(i) > 1 and read.count(i) == 1}
    assert sum(kept.values()) <= on_device + beside and min(room.on_device, room.in_memory) >= 0
    if on_device >= 40 * sum(COUNTS):
        assert sorted(read) == sorted(set(asked))  # all fit: each is read once
    bags.forget()
    assert (room.on_device, room.in_memory) == (on_device, beside)


def test_a_bag_asked_for_once_takes_no_room(files):
    room = Room(0, 10**6)
    bags = stored_bags(files, CPU, room).all
    assert torch.equal(bags.once(2).features, bags[2].features)
    taken = 10**6 - room.in_memory
    bags.once(4)
    assert 10**6 - room.in_memory == taken > 0


def test_pyramids_are_bags_too():
    pyramid = PyramidBag((torch.ones(2, 3).half(), torch.ones(8, 3)), (torch.zeros(2, 4, dtype=torch.int64),))
    bags = Streamed(lambda i: pyramid, [2], 3, Room(0, 10**6), CPU)
    found = bags[0]
    assert isinstance(found, PyramidBag) and [t.dtype for t in found.levels] == [torch.float32] * 2
    assert found.children[0].dtype == torch.int64 and bags[0:1][0].children[0].shape == (2, 4)


def test_later_readings_take_the_features_alone(files, monkeypatch):
    """The first reading checks all bytes, the next ones do not."""
    import lrmil_cli.files.features as module

    checked = []
    usual = module._checked_bytes
    monkeypatch.setattr(module, "_checked_bytes", lambda path: checked.append(path) or usual(path))
    first, second = files[0].features(), files[0].features()
    assert len(checked) == 1 and (first == second).all() and first.flags.writeable and second.flags.writeable


# ---- files that do not stay as they were -----------------------------------------------------------------------------
def vanish(path):
    path.unlink()


def shrink(path):
    os.truncate(path, 900)


def replaced(path):
    write_features(path, features_header(), np.zeros((4, 3)), np.zeros((4, 2)))


def flipped(path):
    """A byte of the features, at a time that the system's clock does not tell apart."""
    stat, data = path.stat(), bytearray(path.read_bytes())
    with h5py.File(path) as h5:
        data[h5["features"].id.get_offset()] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (vanish, "cannot be read .No such file"),
        (shrink, "changed while it was in use"),
        (replaced, "changed while it was in use"),
        (flipped, "changed after it was written"),
    ],
)
def test_a_file_that_changes_during_training(files, change, says):
    bags = stored_bags(files, CPU, Room(0, 0)).all
    change(files[3].path)
    with pytest.raises(InputError, match=says) as e:
        list(in_order(bags, range(8)))
    assert str(files[3].path) in str(e.value)


def test_all_files_that_cannot_be_used_are_named_at_once(files):
    for n in (1, 2, 6):
        flipped(files[n].path)
    with pytest.raises(InputError, match=r"3 of 8 feature files cannot be used: ") as e:
        list(in_order(stored_bags(files, CPU, Room(0, 0)).all, range(8)))
    assert all(str(files[n].path) in str(e.value) for n in (1, 2, 6))


def test_features_that_are_not_finite_are_found_when_they_are_read(tmp_path):
    x = np.ones((4, 3))
    x[2, 1] = np.nan
    write_features(tmp_path / "s.h5", features_header(), x, np.zeros((4, 2)))
    file = open_features(tmp_path / "s.h5")
    assert isinstance(file, BagFile) and file.shape == (4, 3)
    with pytest.raises(InputError, match="1 of its feature values are not finite"):
        file.features()


@pytest.mark.parametrize(
    ("said", "found"), [("2GB", 2 * 10**9), ("1.5 gb", 1500000000), ("300MiB", 3 * 10**8), ("5", 5)]
)
def test_sizes_of_memory(said, found):
    assert memory_bytes(said) == found


@pytest.mark.parametrize("said", ["", "much", "-1GB", "2PB", "1e9"])
def test_what_is_no_size(said):
    with pytest.raises(UsageError, match=re.escape(f"--memory {said}: give a size as 8GB")):
        memory_bytes(said)
