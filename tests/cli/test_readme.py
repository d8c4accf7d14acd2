"""The command lines of the READMEs: each parses, and those that a small cohort can answer are run as they stand."""

import io
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from lrmil_cli.app import app, run
from lrmil_cli.commands.all_commands import COMMANDS
from tests.cli.test_qupath import roi_file

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "lrmil_cli").glob("*/README.md"))]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
#: What is quick on a small cohort. Training has tests of its own.
RUN = {"tile", "match", "predict", "export-geojson", "info", "evaluate", "doctor"}
#: Of what the lines below read, these are made by no line that is run; and what sixteen slides cannot promise.
NOT_THERE = ("ahdmil.safetensors", "trident/", "--max-error")


def blocks(page: Path) -> list[list[list[list[str]]]]:
    """Shell blocks of a page: block -> pipeline -> stage -> words."""
    found = []
    for language, text in FENCE.findall(page.read_text(encoding="utf-8")):
        if language not in ("sh", "bash"):
            continue
        pipelines = []
        for line in text.replace("\\\n", " ").splitlines():
            words = shlex.shlex(line, posix=True, punctuation_chars="|&;")
            words.whitespace_split = True
            stages: list[list[str]] = [[]]
            for word in words:
                if set(word) <= set("|&;"):
                    stages.append([word] if word == "|" else [])
                else:
                    stages[-1].append(word)
            for stage in filter(None, stages):
                if stage[0] == "|":
                    pipelines[-1].append(stage[1:])
                else:
                    pipelines.append([stage])
        found.append(pipelines)
    return found


def of_lrmil(stage: list[str]) -> list[str] | None:
    """What ``lrmil`` is given in a stage; None where it is another program's."""
    at = next((i for i, word in enumerate(stage) if word == "lrmil" or word.endswith("/lrmil")), None)
    return None if at is None else stage[at + 1 :]


LINES = [
    pytest.param(args, id=f"{page.parent.name}: {' '.join(args)}"[:90])
    for page in PAGES
    for block in blocks(page)
    for pipeline in block
    for stage in pipeline
    if (args := of_lrmil(stage)) is not None
]


@pytest.mark.parametrize("args", LINES)
def test_every_line_parses(args):
    group = typer.main.get_command(app)
    assert args[0] in COMMANDS, args
    group.commands[args[0]].make_context(args[0], args[1:], parent=group.make_context("lrmil", list(args)))


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.parent.name)
def test_commands_in_the_text_have_the_options_they_are_named_with(page):
    group = typer.main.get_command(app)
    for code in re.findall(r"`(lrmil [^`]+)`", FENCE.sub("", page.read_text(encoding="utf-8"))):
        name, *rest = code.split()[1:]
        if name == "COMMAND" or name.startswith("-"):
            continue
        assert name in COMMANDS, code
        known = {o for p in group.commands[name].params for o in (*p.opts, *p.secondary_opts)} | {"-h", "--help"}
        assert {w for w in rest if re.match(r"--?[a-z]", w)} <= known, code


@pytest.fixture
def folder(chain, tmp_path, monkeypatch):
    """A folder with what the README takes for granted, under the names it uses."""
    slides = {"new-slide": "s12", "slide": "s13", "slides/s14": "s14", "slides/s15": "s15"}
    (tmp_path / "slides").mkdir()
    for name, source in slides.items():
        shutil.copy(chain.manifest.parent / "slides" / f"{source}.svs", tmp_path / f"{name}.svs")
    rows = [
        f"{name}.svs,{'tumor' if int(source[1:]) % 2 else 'normal'},{part}"
        for (name, source), part in zip(slides.items(), ("train", "train", "val", "test"))
    ]
    (tmp_path / "slides.csv").write_text("\n".join(["slide,label,split", *rows]) + "\n")
    roi_file(tmp_path / "drawn-in-qupath.geojson", (0, 0, 1536, 1536))
    shutil.copytree(chain.teacher, tmp_path / "teacher")
    for file in chain.model.parent.glob("model.*"):
        if file.is_file():
            shutil.copy(file, tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_readme_runs(folder, capsys, monkeypatch):
    there = {p.name for p in folder.iterdir()}
    ran = []
    for block in blocks(ROOT / "README.md"):
        for made in folder.iterdir():  # each block is an example of its own
            if made.name not in there | {"tiles-lr", "tiles-hr", "pairs", "results"}:
                shutil.rmtree(made) if made.is_dir() else made.unlink()
        for pipeline in block:
            given = [of_lrmil(stage) for stage in pipeline]
            words = [word for stage in pipeline for word in stage]
            if not any(given) or any(a is not None and a[0] not in RUN for a in given):
                continue
            if any(word.startswith(NOT_THERE) for word in words):
                continue
            data = b""
            for stage, args in zip(pipeline, given):
                if args is None:
                    data = subprocess.run(" ".join(stage), shell=True, capture_output=True, check=True).stdout
                    continue
                stdin = io.TextIOWrapper(io.BufferedReader(io.BytesIO(data)), encoding="utf-8")
                monkeypatch.setattr(sys, "stdin", stdin)
                code = run(args)
                said = capsys.readouterr()
                assert code == 0, f"lrmil {shlex.join(args)}: {said.err}"
                data = said.out.encode()
            ran += [a[0] for a in given if a]
    assert set(ran) == RUN and len(ran) >= 20
