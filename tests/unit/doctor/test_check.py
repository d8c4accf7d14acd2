"""Errors as findings."""

from lrmil_cli.doctor.check import FAIL, PASS, WARN, Check, failed, worst
from lrmil_cli.errors import InputError, MachineError


def test_messages_become_what_was_found_and_what_to_do():
    assert failed("x", InputError("a.svs: the file is empty; copy it again"), "a.svs") == Check(
        "x", FAIL, "the file is empty", "copy it again", 3
    )
    assert failed("x", MachineError("needs OpenSlide: pip install it")) == Check(
        "x", FAIL, "needs OpenSlide: pip install it", "", 5
    )
    assert worst([Check("a", PASS, ""), Check("b", WARN, "")]) == WARN and worst([]) == PASS
