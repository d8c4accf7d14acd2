"""Items shared by processes: answers in order, errors that travel, processes that die, interrupts."""

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import psutil
import pytest

from lrmil_cli.errors import InputError, MachineError
from lrmil_cli.processes import processes
from tests.conftest import not_on_windows

ROOT = Path(__file__).resolve().parents[2]


class Strange(Exception):
    """Cannot be made anew from its words."""

    def __init__(self, a, b):
        super().__init__(f"{a} and {b}")


def load(name, ahead=0, broken=False):
    """Work that multiplies by ten, and says who did it; some items are more than it can bear."""
    if broken:
        raise InputError(f"{name}: no such encoder")

    def work(item):
        yield
        if item == "input":
            raise InputError("a slide that cannot be read")
        if item == "strange":
            raise Strange(1, 2)
        if item == "die":
            os._exit(3)
        if item == "long":
            time.sleep(60)
        time.sleep(0.05)
        return name, item * 10

    return work, ahead


def answers(items, names=("a", "b"), ahead=0):
    found = []
    with processes([(name, partial(load, name, ahead)) for name in names]) as shared:
        for answer in shared.turns(items):
            try:
                found.append(answer())
            except Exception as e:
                found.append(e)
    return found


@pytest.mark.parametrize("ahead", [0, 2])
def test_answers_come_in_order_and_errors_travel(ahead):
    found = answers([0, 1, "input", 3, "strange", *range(5, 12)], ahead=ahead)
    assert [a[1] for i, a in enumerate(found) if i not in (2, 4)] == [10 * i for i in range(12) if i not in (2, 4)]
    assert {a[0] for i, a in enumerate(found) if i not in (2, 4)} == {"a", "b"}
    assert type(found[2]) is InputError and str(found[2]) == "a slide that cannot be read"
    assert "internal error: Strange: 1 and 2" in str(found[4])


def test_a_process_that_dies_costs_its_item_alone():
    found = answers(["die", *range(1, 6)])
    assert isinstance(found[0], MachineError) and "exit code 3" in str(found[0]) and found[0].exit_code == 5
    assert [a[1] for a in found[1:]] == [10, 20, 30, 40, 50]
    found = answers(["die", 1, 2], names=["a"])
    assert all(isinstance(e, MachineError) for e in found) and "all processes have ended" in str(found[2])


def test_what_a_load_raises_is_raised():
    with pytest.raises(InputError, match="b: no such encoder"):
        with processes([("a", partial(load, "a")), ("b", partial(load, "b", broken=True))]):
            raise AssertionError("has loaded")


@not_on_windows
@pytest.mark.parametrize("how", ["Ctrl-C", "kill"])
def test_all_end_with_the_first(how, tmp_path):
    """Also when it is killed itself: then the others end with what they are at."""
    item = "long" if how == "Ctrl-C" else "0"
    script = tmp_path / "long.py"
    script.write_text(
        # A suite in the background of a shell is deaf to Ctrl-C, and what it starts inherits that.
        "import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from functools import partial\nfrom lrmil_cli.processes import processes\n"
        "from tests.unit.test_processes import load\nif __name__ == '__main__':\n"
        f"    with processes([(n, partial(load, n)) for n in 'ab']) as shared:\n        print('loaded', flush=True)\n"
        f"        turns = shared.turns([{item!r}] * 1000)\n        while True:\n            next(turns)()\n"
    )
    env = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    process = subprocess.Popen(
        [sys.executable, script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=env,
        start_new_session=True,
    )
    assert process.stdout.readline() == "loaded\n"
    family = psutil.Process(process.pid).children(recursive=True)
    assert len(family) >= 2
    if how == "Ctrl-C":
        os.killpg(process.pid, signal.SIGINT)
    else:
        process.kill()
    err = process.communicate(timeout=30)[1]
    assert psutil.wait_procs(family, timeout=10)[1] == []
    assert err.count("Traceback") == (1 if how == "Ctrl-C" else 0), err  # of the first alone
