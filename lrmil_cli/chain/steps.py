"""Command lines of lrmil, run one after the other in this process: each is shown as one would type it, and timed."""

from __future__ import annotations

import os
import shlex
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from lrmil_cli.errors import LrmilError


def as_typed(args: Sequence[str], *, windows: bool = os.name == "nt") -> str:
    """A command line as the shell of this system takes it."""
    return subprocess.list2cmdline(args) if windows else shlex.join(args)


@dataclass
class Steps:
    """Runs command lines, shows each, keeps its seconds (chain/README 1).

    Attributes:
        of: what they are the steps of, for messages.
        run: runs the words after ``lrmil`` and returns the exit code.
        say: shows a line to the user.
        seconds: spent in each step so far, by its name.
    """

    of: str
    run: Callable[[list[str]], int]
    say: Callable[[str], None]
    seconds: dict[str, float] = field(default_factory=dict)

    def __call__(self, name: str, *args: str) -> None:
        """Run ``lrmil ARGS`` as the step ``name``.

        Raises:
            LrmilError: it ended with another exit code than 0.
        """
        self.say(f"\n$ lrmil {as_typed(args)}")
        started = time.perf_counter()
        code = self.run(list(args))
        self.seconds[name] = round(self.seconds.get(name, 0.0) + time.perf_counter() - started, 2)
        if code:
            raise LrmilError(f"the {self.of}'s step `lrmil {args[0]}` ended with exit code {code}")
