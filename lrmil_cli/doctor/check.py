"""One finding of ``lrmil doctor``."""

from __future__ import annotations

from dataclasses import dataclass

from lrmil_cli.errors import InputError, LrmilError

PASS, WARN, FAIL = "PASS", "WARN", "FAIL"


@dataclass(frozen=True)
class Check:
    """``name`` of what was looked at, ``status`` PASS, WARN or FAIL, what was ``found``, how to ``fix`` it.

    ``code`` is the exit code that a FAIL means: 3 for a slide or model, 5 for the machine.
    """

    name: str
    status: str
    found: str
    fix: str = ""
    code: int = InputError.exit_code


def failed(name: str, error: LrmilError, where: str = "") -> Check:
    """The check that ``error`` failed: its message says what is wrong, and after the last semicolon what to do."""
    text = " ".join(str(error).split()).removeprefix(f"{where}: ")
    found, _, fix = text.rpartition("; ")
    return Check(name, FAIL, found or text, fix if found else "", error.exit_code)


def worst(checks: list[Check]) -> str:
    """The status of a whole list; PASS of an empty one."""
    return max((c.status for c in checks), key=(PASS, WARN, FAIL).index, default=PASS)
