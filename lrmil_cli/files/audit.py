"""An audit trail: one JSON line an answer, appended, by any number of processes."""

from __future__ import annotations

import getpass
import json
import os
import platform
import sys
import time
from pathlib import Path
from typing import Any

import lrmil_cli
from lrmil_cli.errors import MachineError, UsageError
from lrmil_cli.files.header import last_digest
from lrmil_cli.files.locks import locked


def check_trail(path: str | Path) -> None:
    """Raises UsageError if a trail cannot be at ``path``: a folder, or a file of another kind, which stays as it is."""
    p = Path(path)
    if p.is_dir():
        raise UsageError(f"--audit {path} is a folder; give a file, such as {p / 'answers.jsonl'}")
    if not p.name.endswith(".jsonl"):
        raise UsageError(f"--audit {path}: the name of an audit trail ends in .jsonl")


def audit_line(header: dict[str, Any], model: dict[str, Any], *, known: bool, output: str | None) -> dict[str, Any]:
    """Who answered what, when, of which slide, by which model.

    Args:
        header: of the slide's attention table; model: path and digest; known: the answer was there already.
    """
    slide, answer = header["slide"], header["prediction"]
    try:
        user = getpass.getuser()
    except (OSError, KeyError, ImportError):  # of a container whose user has no name
        user = str(getattr(os, "getuid", lambda: "unknown")())
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "user": user,
        "host": platform.node(),
        "argv": sys.argv,
        "lrmil": lrmil_cli.__version__,
        "slide_id": slide["id"],
        "slide": slide["path"],
        "fingerprint": slide["fingerprint"],
        "model": model,
        "prediction": last_digest(header),
        "status": "up to date" if known else "predicted",
        "predicted": answer["predicted"],
        **{k: answer[k] for k in ("probabilities", "risk", "median") if k in answer},
        "uncertain": answer.get("uncertain"),
        "unlike_training": bool((answer.get("unlike_training") or {}).get("unlike")),
        "output": output,
    }


def append_line(path: str | Path, line: dict[str, Any]) -> None:
    """Append a line to a trail, whole, and put it on the disk.

    Raises:
        MachineError: it cannot be written.
    """
    with locked(path):
        try:
            with open(path, "a", encoding="utf-8") as fh:
                fh.write(json.dumps(line, allow_nan=False) + "\n")
                fh.flush()
                os.fsync(fh.fileno())
        except OSError as e:
            raise MachineError(f"cannot write {path}: {e.strerror or e}; choose another --audit") from e
