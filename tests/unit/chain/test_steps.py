"""Steps: what is shown, run and timed, and what a failure says."""

import pytest

from lrmil_cli.chain.steps import Steps, as_typed
from lrmil_cli.errors import LrmilError


def test_each_step_is_shown_run_and_timed():
    ran, said = [], []
    step = Steps("demo", lambda args: ran.append(args) or 0, said.append)
    step("tile", "tile", "my slides.csv", "-o", "out")
    step("tile", "tile", "b.csv")
    assert ran == [["tile", "my slides.csv", "-o", "out"], ["tile", "b.csv"]]
    assert said[1] == "\n$ lrmil tile b.csv" and "my slides.csv" in said[0]
    assert list(step.seconds) == ["tile"] and step.seconds["tile"] >= 0


def test_a_step_that_fails_ends_the_run():
    step = Steps("demo", lambda args: 3, lambda text: None)
    with pytest.raises(LrmilError, match="the demo's step `lrmil match` ended with exit code 3"):
        step("match", "match", "a", "b")
    assert "match" in step.seconds


def test_command_lines_are_quoted_as_the_shell_wants_them():
    args = ["tile", "C:\\my slides\\a.svs", "-o", "C:\\out"]
    assert as_typed(args, windows=True) == 'tile "C:\\my slides\\a.svs" -o C:\\out'
    assert as_typed(args, windows=False) == "tile 'C:\\my slides\\a.svs' -o 'C:\\out'"
