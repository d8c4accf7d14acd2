"""Speed, disk and durations, on machines that this one is not."""

from pathlib import Path

import pytest

from lrmil_cli.doctor import machine
from lrmil_cli.doctor.check import WARN


def test_the_rate_is_tiles_a_second(monkeypatch):
    """Against a clock that the encoder itself turns: 0.25 s a tile."""
    now = [0.0]
    monkeypatch.setattr(machine.time, "perf_counter", lambda: now[0])
    encoder = lambda tiles: now.__setitem__(0, now[0] + 0.25 * len(tiles))
    import torch

    assert machine.encoder_speed(encoder, torch.device("cpu"), seconds=10) == pytest.approx(4)
    assert now[0] <= 12
    now[0] = 0.0
    assert machine.encoder_speed(encoder, torch.device("cpu"), seconds=0.3) == pytest.approx(4) and now[0] == 0.25


def test_durations_are_for_people():
    assert [machine.duration(s) for s in (0.2, 40, 600, 9000)] == ["1 s or less", "40 s", "10 min", "2.5 h"]


def test_a_drive_that_is_not_there_is_said(monkeypatch):
    """As of ``Z:\\results`` on Windows, where no folder above exists either."""
    monkeypatch.setattr(Path, "exists", lambda self, **_: False)
    found = machine.check_disk("z/results")
    assert found.status == WARN and "does not exist" in found.found and "--output" in found.fix
