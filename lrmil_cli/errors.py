"""Errors that reach the user, one class per kind of trouble, each with the exit code of the command contract.

Every message is one line that says what is wrong, in which file, why, and what to do next.
"""

from __future__ import annotations

import os
from difflib import get_close_matches
from pathlib import Path


def no_such_file(path: str | Path, hint: str = "check the path", what: str = "file") -> str:
    """What is said of a path where nothing is: the name beside it that it was probably meant to be, else ``hint``."""
    there = Path(path)
    try:
        names = os.listdir(there.parent)
    except OSError:
        return f"{path}: no such {what}, nor a folder {there.parent}; {hint}"
    near = get_close_matches(there.name, names, 1, 0.8)
    return f"{path}: no such {what}; " + (f"did you mean {there.with_name(near[0])}?" if near else hint)


class LrmilError(Exception):
    """Base of everything the toolkit raises on purpose; the user sees its message and no traceback."""

    exit_code = 1


class UsageError(LrmilError):
    """The command line asks for something that makes no sense."""

    exit_code = 2


class InputError(LrmilError):
    """An input cannot be used: no such file, unreadable slide, no mpp, bad manifest, files that do not fit."""

    exit_code = 3


class NoScaleError(InputError):
    """The slide does not say its micrometres per pixel, or says what cannot be; the message names ``--slide-mpp``."""


class NoTissueError(InputError):
    """The slide holds no tissue by the rule asked for; a batch reports it as ``no_tissue``."""


class PartialError(LrmilError):
    """Some slides of a batch failed; the others are done."""

    exit_code = 4


class MachineError(LrmilError):
    """The machine lacks something: weights, an optional package, a device, disk space, permission."""

    exit_code = 5


class StepError(LrmilError):
    """A command of a chain ended with an exit code other than 0; the chain ends there, with the same code."""

    def __init__(self, message: str, exit_code: int):
        super().__init__(message)
        self.exit_code = exit_code
