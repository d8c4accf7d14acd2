"""Command lines of lrmil, run one after the other in this process: each is shown as one would type it, and timed."""

from __future__ import annotations

import os
import shlex
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lrmil_cli.errors import PartialError, StepError
from lrmil_cli.progress import phase
from lrmil_cli.units import duration

#: Runs the words after ``lrmil`` and returns the exit code.
Run = Callable[[list[str]], int]
Say = Callable[[str], None]


def as_typed(args: Sequence[str], *, windows: bool = os.name == "nt") -> str:
    """A command line as the shell of this system takes it."""
    return subprocess.list2cmdline(args) if windows else shlex.join(args)


@dataclass(frozen=True)
class Step:
    """One command of a chain.

    Attributes:
        name: in the chain; steps of one name (a fold each) are timed together.
        args: the words after ``lrmil``; made: what is there when it is done, and written anew only if there was work.
        some_may_fail: slides that fail (exit code 4) do not end the chain.
    """

    name: str
    args: tuple[str, ...]
    made: Path
    some_may_fail: bool = False

    @property
    def line(self) -> str:
        """The command line, to be pasted."""
        return f"lrmil {as_typed(self.args)}"


@dataclass(frozen=True)
class Done:
    """A step that is done: in how many seconds, and whether there was anything to do."""

    step: Step
    seconds: float
    worked: bool


def run_steps(
    of: str,
    steps: Sequence[Step],
    run: Run,
    say: Say,
    before: Callable[[Sequence[Done]], float | None] = lambda done: None,
) -> list[Done]:
    """Run the steps in order (chain/README 1).

    Args:
        of: the command that a user says to go on, for messages.
        before: called before each step with what is done; returns the seconds that are left, None if not known.

    Raises:
        StepError: a step ended with another exit code than 0.
    """
    done: list[Done] = []
    with phase("", len(steps), "step", even=False) as told:
        for number, step in enumerate(steps, 1):
            left = before(done)
            spent = sum(d.seconds for d in done)
            times = (f", {duration(spent)} so far" if done else "") + (f", about {duration(left)} left" if left else "")
            say(f"\nstep {number} of {len(steps)}: {step.name}{times}\n$ {step.line}")
            written, started = _written(step.made), time.perf_counter()
            code = run(list(step.args))
            done.append(Done(step, time.perf_counter() - started, _written(step.made) != written))
            if code and not (step.some_may_fail and code == PartialError.exit_code):
                raise StepError(
                    f"step {number} of {len(steps)} ended with exit code {code}: `{step.line}`; what is done is kept, "
                    f"and the same `{of}` goes on from there",
                    code,
                )
            told.advance()
    return done


def _written(path: Path) -> int | None:
    """When a file or folder was last written to; None where there is none."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return None
