"""A process that runs command lines in forked children and kills them: ``python -m tests.killing``.

Everything heavy is imported once, so that a kill hits the work of a command and not its start. One JSON object a line
on stdin, ``{"args": [...], "kill_after": seconds or null}``; one on stdout, ``{"code": exit code, -9 if killed,
"seconds": ...}``.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import time

#: What takes long to import.
HEAVY = (
    "torch",
    "timm",
    "pandas",
    "cv2",
    "h5py",
    "tiffslide",
    "sklearn.metrics",
    "matplotlib.pyplot",
    "scipy.stats",
    "safetensors.torch",
    "lrmil_cli.app",
    "lrmil_cli.distill.distill_encoder",
    "lrmil_cli.distill.distill_student",
    "lrmil_cli.models.model_file",
    "lrmil_cli.inference.open_torch",
    "lrmil_cli.evaluation.receipt",
    "lrmil_cli.qupath.pictures",
    "lrmil_cli.training.teacher",
)


def run_child(args: list[str], kill_after: float | None) -> tuple[int, float]:
    """Exit code (negative: the signal) and seconds of one command line."""
    started = time.perf_counter()
    child = os.fork()
    if child == 0:
        from lrmil_cli.app import run

        null = os.open(os.devnull, os.O_RDWR)
        for fd in (0, 1, 2):
            os.dup2(null, fd)
        os._exit(run(args))
    while True:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status), time.perf_counter() - started
        if kill_after is not None and time.perf_counter() - started > kill_after:
            os.kill(child, signal.SIGKILL)
            kill_after = None
        time.sleep(0.002)


def main() -> None:
    for name in HEAVY:
        importlib.import_module(name)
    print("ready", flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        code, seconds = run_child(order["args"], order["kill_after"])
        print(json.dumps({"code": code, "seconds": seconds}), flush=True)


if __name__ == "__main__":
    main()
