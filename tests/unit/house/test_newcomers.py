"""What a newcomer and a runner elsewhere are told is true of the tree: commands, versions, files."""

import re
import sys
from pathlib import Path

import pytest
import yaml

import lrmil_cli

ROOT = Path(__file__).resolve().parents[3]


def read(name: str) -> str:
    return (ROOT / name).read_text("utf-8")


@pytest.fixture(scope="module")
def jobs():
    return yaml.safe_load(read(".github/workflows/ci.yml"))["jobs"]


def test_ci_runs_every_python_that_is_promised(jobs):
    lowest = re.search(r'requires-python = ">=(3\.\d+)"', read("pyproject.toml"))[1]
    newest = jobs["newest"]["strategy"]["matrix"]
    assert newest["python"][0] == jobs["lowest"]["strategy"]["matrix"]["python"][0] == lowest
    assert {o.partition("-")[0] for o in newest["os"]} == {"ubuntu", "macos", "windows"}
    assert f"{sys.version_info[0]}.{sys.version_info[1]}" in newest["python"] or sys.version_info > (3, 13)


def test_ci_finds_the_two_commands_of_the_readme(jobs):
    page = read("README.md")
    for block in jobs["readme"]["strategy"]["matrix"]["block"]:
        command = re.search(rf"^<!-- {block} -->\n```sh\n(.+)\n```$", page, re.M)[1]
        assert command.startswith("python3 -m venv venv && venv/bin/pip install ")


def test_the_hooks_are_the_checks_of_ci(jobs):
    (local,) = yaml.safe_load(read(".pre-commit-config.yaml"))["repos"]
    ids = [hook["id"] for hook in local["hooks"]]
    assert ids == ["ruff-format", "ruff-check", "mypy"]
    steps = " ".join(step.get("run", "") for step in jobs["style"]["steps"])
    assert all(i.replace("-", " ") in steps for i in ids)


def test_the_citation_is_of_this_version():
    about = yaml.safe_load(read("CITATION.cff"))
    assert about["version"] == lrmil_cli.__version__ and about["license"] == "Apache-2.0"
    (paper,) = about["references"]
    cited = re.sub(r"\s+", " ", read("README.md"))
    names = " and ".join(a["family-names"] for a in paper["authors"])
    assert f"LRMIL ({names}, *{paper['title']}*, {paper['year']})" in cited


def test_contributing_names_files_that_are_there():
    page = read(".github/CONTRIBUTING.md")
    for path in re.findall(r"\]\(\.\./([^)]+)\)", page) + re.findall(r"`((?:lrmil_cli|tests)/[\w/.]+)`", page):
        assert (ROOT / path).exists(), path
