"""What the entry point makes of standard output: a reader that is gone, an encoding that cannot write everything."""

import os
import subprocess
import sys

import pytest


@pytest.mark.parametrize(("system", "code", "says"), [("nt", 141, ""), ("posix", 1, "error: internal error: OSError")])
def test_a_closed_pipe_by_the_name_that_windows_has_for_it(system, code, says):
    program = f"""
import errno, io, sys
from lrmil_cli import app

class Gone(io.TextIOWrapper):
    def write(self, text):
        raise OSError(errno.EINVAL, "Invalid argument")

app._WINDOWS = {system == "nt"}
sys.stdout = Gone(io.FileIO(1, "w"))
sys.exit(app.run(["--version"]))
"""
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert said.returncode == code and said.stderr.startswith(says) and bool(said.stderr) == bool(says), said.stderr


def test_what_leaves_through_a_pipe_is_utf_8_whatever_the_system_prefers(slide, tmp_path):
    """Python writes into a pipe what the system calls its encoding: on Windows one without Polish or Greek."""
    own = tmp_path / "Łódź.svs"
    own.write_bytes(slide.read_bytes())
    env = {**os.environ, "PYTHONIOENCODING": "cp1252"}
    said = subprocess.run([sys.executable, "-m", "lrmil_cli", "info", str(own)], capture_output=True, env=env)
    assert said.returncode == 0, said.stderr
    assert "Łódź" in said.stdout.decode("utf-8") and b"\r" not in said.stdout
