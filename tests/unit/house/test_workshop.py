"""The house is kept: door plates that name what stands in each room, citations that resolve, one formatter, clean
types."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
HOUSE = ROOT / "lrmil_cli"
ROOMS = sorted(p.parent.name for p in HOUSE.glob("*/__init__.py"))
CITATION = re.compile(r"\b([a-z]+)/README(?: (\d+(?:\.\d+)*))?")
#: Ways to cite pages that are not in the repository.
ELSEWHERE = re.compile(
    r"\(method \d|\bmethod \d+\.\d|method-ahdmil|method-lrmil|mil-heads"
    r"|method page|page section|qupath-interop|performance page"
)


def sources() -> list[Path]:
    return [p for folder in ("lrmil_cli", "tests", "examples") for p in sorted((ROOT / folder).rglob("*.py"))]


def sections(room: str) -> set[str]:
    text = (HOUSE / room / "README.md").read_text(encoding="utf-8")
    return set(re.findall(r"^#{2,4} (\d+(?:\.\d+)*)\.? ", text, re.MULTILINE))


@pytest.mark.parametrize("room", ROOMS)
def test_the_door_plate_names_every_file(room):
    plate = (HOUSE / room / "README.md").read_text(encoding="utf-8")
    files = [p.name for p in (HOUSE / room).iterdir() if p.suffix in (".py", ".groovy") and p.name != "__init__.py"]
    assert not [f for f in files if f"`{f}`" not in plate and f"`{room}/{f}`" not in plate]


def test_citations_resolve():
    lost, cited = [], 0
    for path in [*sources(), *HOUSE.rglob("README.md")]:
        for room, section in CITATION.findall(path.read_text(encoding="utf-8")):
            cited += 1
            if room not in ROOMS or (section and section not in sections(room)):
                lost.append(f"{path.relative_to(ROOT)}: {room}/README {section}")
    assert not lost and cited > 40, lost


def test_nothing_is_cited_that_is_not_here():
    here = Path(__file__)
    found = [
        f"{p.relative_to(ROOT)}: {m}" for p in sources() if p != here for m in ELSEWHERE.findall(p.read_text("utf-8"))
    ]
    assert not found


def test_no_file_is_too_long_to_read():
    long = {
        str(p.relative_to(ROOT)): n for p in HOUSE.rglob("*.py") if (n := len(p.read_text("utf-8").splitlines())) > 400
    }
    assert not long


@pytest.mark.parametrize(
    "command", [["ruff", "check", "."], ["ruff", "format", "--check", "."], ["mypy"]], ids=" ".join
)
def test_checkers(command):
    said = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True)
    assert said.returncode == 0, (said.stdout + said.stderr)[-3000:]


def test_what_mypy_is_told_to_ignore_has_its_reason():
    """``# type: ignore[code]`` names its code, and a comment behind it says why."""
    lines = [(p, l) for p in HOUSE.rglob("*.py") for l in p.read_text("utf-8").splitlines() if "type: ignore" in l]
    bare = [
        f"{p.relative_to(ROOT)}: {l.strip()}" for p, l in lines if not re.search(r"type: ignore\[[\w, -]+\]  # \w", l)
    ]
    assert not bare
