"""Steps: what is shown, run and timed, and what a failure says."""

import pytest

from lrmil_cli.chain.steps import Done, Step, as_typed, run_steps
from lrmil_cli.errors import StepError


def steps_of(tmp_path, *lines, **kwargs):
    return [Step(line[0], tuple(line), tmp_path / line[0], **kwargs) for line in lines]


def test_each_step_is_shown_run_and_timed(tmp_path):
    ran, said, known = [], [], []
    steps = steps_of(tmp_path, ["tile", "my slides.csv", "-o", "out"], ["match", "a", "b"])

    def run(args):
        ran.append(args)
        if args[0] == "match":
            (tmp_path / "match").write_text("made")
        return 0

    done = run_steps("lrmil run", steps, run, said.append, lambda so_far: known.append(len(so_far)) or 7200.0)
    assert ran == [list(s.args) for s in steps] and known == [0, 1]
    assert "step 1 of 2: tile" in said[0] and f"$ lrmil {as_typed(steps[0].args)}" in said[0].splitlines()
    assert "step 2 of 2: match" in said[1] and "so far, about 2.0 h left" in said[1]
    assert [d.worked for d in done] == [False, True] and all(d.seconds >= 0 for d in done)


@pytest.mark.parametrize("code", [3, 130])
def test_a_step_that_fails_ends_the_run_with_its_code(tmp_path, code):
    steps = steps_of(tmp_path, ["tile", "a"], ["match", "a", "b"], ["predict", "c"])
    ran = []
    with pytest.raises(StepError) as e:
        run_steps("lrmil run", steps, lambda args: ran.append(args[0]) or (code if args[0] == "match" else 0), print)
    assert e.value.exit_code == code and ran == ["tile", "match"]
    assert f"step 2 of 3 ended with exit code {code}: `lrmil match a b`" in str(e.value)
    assert "`lrmil run` goes on from there" in str(e.value)


def test_failed_slides_end_a_run_unless_they_may_be_left_out(tmp_path):
    partial = lambda args: 4
    with pytest.raises(StepError):
        run_steps("lrmil run", steps_of(tmp_path, ["tile", "a"]), partial, print)
    steps = steps_of(tmp_path, ["tile", "a"], some_may_fail=True)
    assert len(run_steps("lrmil run", steps, partial, print)) == 1
    with pytest.raises(StepError):
        run_steps("lrmil run", steps, lambda args: 3, print)


def test_command_lines_are_quoted_as_the_shell_wants_them():
    args = ["tile", "C:\\my slides\\a.svs", "-o", "C:\\out"]
    assert as_typed(args, windows=True) == 'tile "C:\\my slides\\a.svs" -o C:\\out'
    assert as_typed(args, windows=False) == "tile 'C:\\my slides\\a.svs' -o 'C:\\out'"


def test_time_left_by_hand(tmp_path):
    """Ten passes took 20 s; two folds of 30 passes each are left, the first of which then takes 90 s."""
    from lrmil_cli.chain.work import seconds_left

    steps = steps_of(tmp_path, ["tile"], ["train-teacher"], ["distill-encoder"], ["distill-encoder"])
    work = [0, 10, 30, 30]
    done = [Done(steps[0], 5, True), Done(steps[1], 20, True)]
    assert seconds_left(steps, work, done) == 120
    assert seconds_left(steps, work, [*done, Done(steps[2], 90, True)]) == 90
    there = [done[0], Done(steps[1], 0.1, False)]  # what was there already tells nothing
    assert seconds_left(steps, work, there) is None
