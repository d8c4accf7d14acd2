"""The command lines of READMEs and tutorials: each parses, and what a small cohort can answer is run as it stands."""

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
TUTORIALS = [ROOT / "README.md", *sorted((ROOT / "examples").glob("*.md"))]
PAGES = [*TUTORIALS, *sorted((ROOT / "lrmil_cli").glob("*/README.md"))]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
#: What is added to lines that train, so that they are quick.
QUICK = {
    "train-teacher": ["--epochs", "2", "--lr", "1e-3"],
    "distill-encoder": ["--epochs", "1", "--warmup", "1", "--batch-size", "4"],
    "distill-student": ["--epochs", "2", "--lr", "1e-3", "--no-onnx"],
}
#: Lines with one of these need what the test does not have: a network, a cluster, tools, columns, minutes.
NOT_HERE = {"uni", "died", "snakemake", "torchrun", "trident", "demo", "export-onnx", "onnx-int8", "venv", "source"}


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
        if name in ("COMMAND", "help") or name.startswith("-"):
            continue
        assert name in COMMANDS, code
        known = {o for p in group.commands[name].params for o in (*p.opts, *p.secondary_opts)} | {"-h", "--help"}
        assert {w for w in rest if re.match(r"--?[a-z]", w)} <= known, code


@pytest.fixture
def folder(chain, tmp_path, monkeypatch):
    """A folder with what the pages take for granted, under the names they use."""
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
    shutil.copy(chain.model, tmp_path / "second.safetensors")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def runs_here(pipeline: list[list[str]]) -> bool:
    """Whether a pipeline has a line of ours, and needs nothing that is not here."""
    words = {part for stage in pipeline for word in stage for part in re.split(r"[/:.]", word)}
    return any(map(of_lrmil, pipeline)) and not words & NOT_HERE


@pytest.mark.parametrize("page", TUTORIALS, ids=lambda p: p.name)
def test_every_shell_block_runs(page, folder, capsys, monkeypatch):
    """In one folder a page, as a reader would."""
    ran = 0
    for block in blocks(page):
        here = [pipeline for pipeline in block if runs_here(pipeline)]
        left_out = {word for pipeline in block if pipeline not in here for stage in pipeline for word in stage}
        assert here or {part for word in left_out for part in re.split(r"[/:.]", word)} & NOT_HERE, block
        for pipeline in here:
            data = b""
            for stage in pipeline:
                args = of_lrmil(stage)
                if args is None:
                    data = subprocess.run(" ".join(stage), shell=True, capture_output=True, check=True).stdout
                    continue
                # `xargs -I SLIDE` says the line for each line that comes in.
                each = data.decode().split() if stage[0] == "xargs" else [None]
                said = ""
                for word in each:
                    own = [word if a == "SLIDE" and word else a for a in args] + QUICK.get(args[0], [])
                    stdin = io.TextIOWrapper(io.BufferedReader(io.BytesIO(data)), encoding="utf-8")
                    monkeypatch.setattr(sys, "stdin", stdin)
                    code = run(own)
                    out, err = capsys.readouterr()
                    assert code == 0, f"{page.name}: lrmil {shlex.join(own)}: {err}"
                    said += out
                data = said.encode()
                ran += 1
    assert ran >= 2, "a page whose lines are not run"


def test_pages_show_pictures_that_are_there():
    for page in TUTORIALS:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
            assert target.startswith("http") or (page.parent / target).exists(), f"{page.name}: {target}"
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150
