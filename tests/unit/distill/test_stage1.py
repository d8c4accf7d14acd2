"""Stage 1: which checkpoint it goes on from, what it draws of a big slide, and what it keeps on disk."""

import sys
import threading
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from lrmil_cli.distill import region_batches, stage1_estimate
from lrmil_cli.distill.encoder_training import distill
from lrmil_cli.distill.hr_tokens import load_targets, target_paths
from lrmil_cli.distill.region_batches import Regions, epoch_order
from lrmil_cli.distill.settings import Stage1Settings
from lrmil_cli.distill.slide_pairs import drawn
from lrmil_cli.distill.stage1_estimate import say_cost
from lrmil_cli.distributed import World
from lrmil_cli.encoders.spec import load_encoder
from lrmil_cli.errors import InputError, MachineError
from lrmil_cli.files.locks import claimed
from lrmil_cli.matching.paired_slide import keep_targets
from lrmil_cli.progress import listening


def train(cohort, cache, epochs, key="a" * 16):
    said = []
    encoder = load_encoder("demo-vit", tile_px=128, ratio=4)
    settings = Stage1Settings((0, 1), lr=1e-3, epochs=epochs, batch_size=4, warmup=3)
    args = dict(cache=cache, key=key, device=torch.device("cpu"), say=said.append)
    return distill(encoder, cohort.train, cohort.val, settings, **args), said


def test_the_checkpoint_of_another_run_or_a_damaged_one_is_not_used(cohort, tmp_path):
    one, _ = train(cohort, tmp_path, 1)
    own, said = train(cohort, tmp_path, 1)
    assert any("resumed after epoch 1" in s for s in said) and own.curves == one.curves
    other, said = train(cohort, tmp_path, 1, key="a" * 16 + "b")  # the same file name, another digest
    assert not any("resumed" in s for s in said) and other.curves == one.curves
    one.checkpoint.write_bytes(one.checkpoint.read_bytes()[:1000])
    again, said = train(cohort, tmp_path, 1)
    assert not any("resumed" in s for s in said) and again.curves == one.curves


def test_tiles_drawn_of_a_big_slide_depend_on_seed_and_slide(cohort):
    paired = cohort.train[0].read()
    left = drawn(paired, 2, 0)
    assert len(left.children) == 2 and set(left.lr_index) < set(paired.lr_index)
    own = np.isin(paired.lr_index[paired.region], left.lr_index)
    assert np.array_equal(left.hr_index, paired.hr_index[own])  # the targets under them, and no others
    assert np.array_equal(left.lr_index, drawn(paired, 2, 0).lr_index)
    assert len({tuple(drawn(paired, 2, seed).lr_index) for seed in range(9)}) > 2
    names = [*"abcdefgh", "not UTF-8: \udcff"]  # as Python reads such a file name
    assert len({tuple(drawn(replace(paired, slide_id=name), 2, 0).lr_index) for name in names}) > 2
    assert drawn(paired, len(paired.children), 0) is paired


def test_a_slide_narrowed_again_and_again_is_read_as_what_is_left(cohort):
    slide = cohort.train[0]
    once = slide.narrowed(lambda p: keep_targets(p, np.arange(5, len(p.hr_index))))
    twice = once.narrowed(lambda p: drawn(p, 3, 0))
    want, got = drawn(once.read(), 3, 0), twice.read()
    assert (twice.regions, twice.targets) == (3, len(got.hr_index)) and got.header["drawn"] == want.header["drawn"]
    for name in ("hr_boxes", "lr_boxes", "children", "lr_index", "hr_index", "region", "offset"):
        assert np.array_equal(getattr(got, name), getattr(want, name)), name
    assert slide.narrowed(lambda p: p) is slide


def test_targets_are_encoded_and_kept_of_the_tiles_that_were_drawn_alone(cohort, tmp_path):
    encoder, device = load_encoder("demo-vit", tile_px=128, ratio=4), torch.device("cpu")
    whole = cohort.train
    few = [whole[0].narrowed(lambda p: drawn(p, 4, 0))]
    both = [
        load_targets(encoder, s, (0, 1), False, tmp_path, device, lambda t: None)[0]["layers"] for s in (whole, few)
    ]
    assert both[0].path != both[1].path and both[1].shape[0] == few[0].targets < both[0].shape[0]
    rows = np.flatnonzero(np.isin(whole[0].read().hr_index, few[0].read().hr_index))
    everything = np.load(both[0].path)
    assert np.allclose(np.load(both[1].path), everything[rows], atol=2e-2)
    some = np.array([3, 4, 5, 1, 0, 7])
    assert np.array_equal(both[0].take(some), everything[some])


def test_targets_that_are_cut_short_are_made_again_or_refused(cohort, tmp_path):
    encoder = load_encoder("demo-vit", tile_px=128, ratio=4)
    args = (cohort.train, (0, 1), False, tmp_path, torch.device("cpu"), print)
    targets = load_targets(encoder, *args)[0]["layers"]
    made = targets.path.stat().st_mtime_ns
    last = np.array([targets.shape[0] - 1])
    data = targets.path.read_bytes()
    targets.path.write_bytes(data[:-1])
    with pytest.raises(InputError, match="became shorter while it was in use"):
        targets.take(last)
    again = load_targets(encoder, *args)[0]["layers"]
    assert again.path.read_bytes() == data and again.path.stat().st_mtime_ns > made
    targets.path.unlink()
    with pytest.raises(InputError, match="cannot be read any more"):
        targets.take(last)


def test_targets_that_another_job_is_at_are_left_to_it_and_waited_for(cohort, tmp_path):
    """A job of another fold, which dies while it is at the first of two slides."""
    encoder, device, said = load_encoder("demo-vit", tile_px=128, ratio=4), torch.device("cpu"), []
    slides = [*cohort.train, cohort.train[0].narrowed(lambda p: drawn(p, 2, 0))]
    (path,) = target_paths(tmp_path, slides[0], encoder.digest(), (0, 1), False).values()
    entered, waited_for = threading.Event(), threading.Event()

    def other_job():
        with claimed(path):
            entered.set()
            assert waited_for.wait(60)

    def say(text):
        said.append(text.partition(":")[0])
        if "waiting" in text:
            waited_for.set()

    job = threading.Thread(target=other_job)
    job.start()
    assert entered.wait(60)
    with listening(SimpleNamespace(opened=str, closed=str, noted=say)):
        found = load_targets(encoder, slides, (0, 1), False, tmp_path, device, say)
    job.join()
    assert [t["layers"].shape[0] for t in found] == [s.targets for s in slides]
    assert said[0] == "HR targets 2/2" and "at the HR targets of 1 slides" in said[1] and said[2:] == ["HR targets 1/2"]


@pytest.mark.skipif(sys.platform == "win32", reason="sizes of files are limited by POSIX")
def test_a_full_disk_is_one_line_and_what_was_done_is_kept(cohort, tmp_path):
    import resource

    encoder, device = load_encoder("demo-vit", tile_px=128, ratio=4), torch.device("cpu")
    few = cohort.train[0].narrowed(lambda p: drawn(p, 1, 0))
    args = ((0, 1), False, tmp_path, device, lambda t: None)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limit[1]))
    try:
        with pytest.raises(MachineError, match="free space or choose another --cache"):
            load_targets(encoder, [few, *cohort.train], *args)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    (kept,) = tmp_path.iterdir()
    before = kept.stat().st_mtime_ns
    assert len(load_targets(encoder, [few, *cohort.train], *args)) == 2 and kept.stat().st_mtime_ns == before


def test_what_a_run_will_cost_is_measured_and_said_first(cohort, tmp_path, monkeypatch):
    monkeypatch.setattr(stage1_estimate, "WORTH_MEASURING", 1)
    plain, _ = train(cohort, tmp_path / "a", 1)
    monkeypatch.setattr(stage1_estimate, "WORTH_MEASURING", 10**9)
    same, said = train(cohort, tmp_path / "b", 1)
    assert same.curves == plain.curves  # measuring leaves no trace
    need = cohort.train[0].targets * 2 * 192 * 2 / 1e6
    assert f"5 LR tiles, 44 HR tiles, HR targets of {need:.1f} MB in {tmp_path / 'b'} ({need:.1f} MB to be" in said[0]
    assert "epoch" not in said[0]
    monkeypatch.setattr(stage1_estimate, "WORTH_MEASURING", 1)
    monkeypatch.setattr(stage1_estimate, "tile_seconds", lambda *a: 3600 / 44)
    monkeypatch.setattr(stage1_estimate, "step_seconds", lambda *a: (300.0, 100.0))
    encoder, device = load_encoder("demo-vit", tile_px=128, ratio=4), torch.device("cpu")
    rest = dict(device=device, workers=1, world=World(), say=said.append)
    slow = Stage1Settings((0, 1), epochs=40, batch_size=4)  # two steps and two batches of validation an epoch
    say_cost(encoder, cohort.train, cohort.train, slow, cache=tmp_path / "c", **rest)
    assert "about 2.0 h for them and 13 min an epoch, 10.9 h for 40 (measured" in said[-1]
    say_cost(encoder, cohort.train, [], slow, cache=tmp_path / "b", **rest)
    assert "about 10 min an epoch, 6.7 h for 40" in said[-1] and "to be made" not in said[-1]


def test_a_disk_that_cannot_hold_the_targets_is_said_before_any_work(cohort, tmp_path, monkeypatch):
    monkeypatch.setattr(stage1_estimate, "_free", lambda folder: 1000)
    with pytest.raises(MachineError, match=r"need 0.0 MB, and 0.0 MB are free there; .*--cache DIR.*--max-tiles-per"):
        train(cohort, tmp_path / "cache", 1)
    assert not (tmp_path / "cache").exists()
    monkeypatch.undo()
    train(cohort, tmp_path / "cache", 1)
    monkeypatch.setattr(stage1_estimate, "_free", lambda folder: 0)
    train(cohort, tmp_path / "cache", 2)  # what is there needs no room


def test_an_epoch_takes_each_region_once_and_opens_few_slides(monkeypatch):
    of = np.repeat(np.arange(40, dtype=np.int32), 50)
    data = Regions([None] * 40, [], None, of, np.zeros((2000, 4)), np.zeros((2000, 1)))
    plain = {n: epoch_order(data, n, np.random.default_rng(0)) for n in (None, 900)}
    monkeypatch.setattr(region_batches, "OPEN_SLIDES", 8)
    windows = {n: epoch_order(data, n, np.random.default_rng(0)) for n in (None, 900)}
    for n, order in windows.items():
        assert sorted(order) == sorted(plain[n])  # the same regions, of all slides
        assert opened(of[order], 8) < 2 * 40 < opened(of[plain[n]], 8) / 5
        for start in range(0, len(order) - 100, 100):  # well mixed at any time
            assert len(set(of[order[start : start + 100]])) >= 5
    assert set(of[epoch_order(data, None, np.random.default_rng(1))[:100]]) != set(of[windows[None][:100]])


def opened(slides, most):
    """How often a slide is opened where those used last stay open."""
    count, kept = 0, []
    for slide in slides.tolist():
        count += slide not in kept
        kept = [*(s for s in kept if s != slide), slide][-most:]
    return count
