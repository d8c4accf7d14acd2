"""Help one finds things in, and completion of what one types."""

import os
import shlex
import subprocess
import sys

import pytest
import typer

from lrmil_cli import __version__
from lrmil_cli.app import app
from lrmil_cli.commands.all_commands import COMMANDS
from lrmil_cli.commands.declared import declared
from lrmil_cli.commands.examples import EXAMPLES
from lrmil_cli.commands.help import CHOICES, PANELS

CLICK = typer.main.get_command(app)


@pytest.fixture(autouse=True)
def eighty(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_is_in_panels_that_fit_a_terminal(command, lrmil):
    said = lrmil(command, "--help")
    assert said.code == 0 and max(map(len, said.out.splitlines())) <= 80
    shown = [line[:-1] for line in said.out.splitlines() if line.endswith(":") and not line.startswith(" ")]
    order = ["Arguments", *PANELS]
    assert [p for p in shown if p in order] == sorted((p for p in shown if p in order), key=order.index)
    assert "General" in shown and "<str>" not in said.out and "range>" not in said.out and "list[" not in said.out
    for p in declared(COMMANDS[command]):
        assert all(name in said.out for name in p.names[-1:] for name in name.split("/")), p.name
    assert f"lrmil {EXAMPLES[command][0]}" in " ".join(said.out.replace(" \\\n", " ").split())
    assert lrmil("help", command).out.split("\n", 1)[1] == said.out.split("\n", 1)[1]


def test_every_option_has_its_panel():
    known = {name for names in PANELS.values() for name in names.split()}
    options = {p.name for command in COMMANDS.values() for p in declared(command) if p.names}
    assert options <= known, options - known


@pytest.mark.parametrize(("command", "line"), [(c, line) for c, lines in EXAMPLES.items() for line in lines])
def test_examples_are_command_lines(command, line):
    """Parsed, not run."""
    name, *args = shlex.split(line)
    assert name == command
    CLICK.commands[command].make_context(command, args)


def test_the_values_that_help_lists_are_those_that_are_taken():
    from lrmil_cli.commands.cohort import BY_SITE
    from lrmil_cli.commands.evaluate_external import PROFILES
    from lrmil_cli.commands.promises import COVERAGE_BY
    from lrmil_cli.commands.student_methods import OF_METHODS
    from lrmil_cli.distill.regions import REGION_ATTENTION
    from lrmil_cli.distill.settings import PRESETS
    from lrmil_cli.encoders.vit import EMBEDDINGS
    from lrmil_cli.evaluation.checklists import CHECKLISTS
    from lrmil_cli.evaluation.operating_point import INTERVALS
    from lrmil_cli.evaluation.scores import LEVELS
    from lrmil_cli.files.features import DTYPES
    from lrmil_cli.heads import build_head, head_names
    from lrmil_cli.inference.runtime import RUNTIMES
    from lrmil_cli.qupath.geojson import STYLES
    from lrmil_cli.qupath.regions import COLORMAPS
    from lrmil_cli.selective.screening_images import SOURCES
    from lrmil_cli.slides.handles import READERS
    from lrmil_cli.training.recipes import RECIPES
    from lrmil_cli.training.seeds import KEEP

    taken = {
        "method": OF_METHODS,
        "preset": PRESETS,
        "recipe": RECIPES,
        "reader": READERS,
        "runtime": RUNTIMES,
        "style": STYLES,
        "colormap": COLORMAPS,
        "dtype": DTYPES,
        "embedding": EMBEDDINGS,
        "region_attention": REGION_ATTENTION,
        "screen_source": SOURCES,
        "level": LEVELS,
        "coverage_by": COVERAGE_BY,
        "by_site": BY_SITE,
        "profile": PROFILES,
        "share_interval": INTERVALS,
        "checklist": CHECKLISTS,
        "keep": KEEP,
        "head": [n for n in head_names() if build_head(n, 8, 2).takes == "bag"],
    }
    for name, words in taken.items():
        assert sorted(CHOICES[name]) == sorted(words), name


@pytest.mark.parametrize("name", sorted(set(CHOICES) - {"level", "origin"}))
def test_other_values_are_refused(name, lrmil):
    """By whichever command has the option, before anything is read."""
    first = "tile distill-encoder train-teacher predict embed distill-student evaluate".split()
    command = next(c for c in first if any(p.name == name for p in declared(COMMANDS[c])))
    assert all(word in lrmil(command, "--help").out for word in CHOICES[name])


@pytest.mark.parametrize(
    ("shell", "variables"),
    [
        ("bash", lambda line, n: {"COMP_WORDS": line, "COMP_CWORD": str(n)}),
        ("zsh", lambda line, n: {"_TYPER_COMPLETE_ARGS": line}),
        ("fish", lambda line, n: {"_TYPER_COMPLETE_ARGS": line, "_TYPER_COMPLETE_FISH_ACTION": "get-args"}),
    ],
)
def test_completion(shell, variables, tmp_path):
    """By the protocol of the shells' own scripts."""
    (tmp_path / "model.safetensors").touch()
    (tmp_path / "model.txt").touch()
    (tmp_path / "models").mkdir()
    code = "import sys; sys.argv[0] = 'lrmil'; from lrmil_cli.app import main; main()"
    for line, found, not_found in (
        ("lrmil pre", "predict", "benchmark"),
        ("lrmil train-teacher --head cl", "clam_sb", "abmil"),
        ("lrmil distill-student --preset bag-", "bag-hard", "patch"),
        ("lrmil embed --encoder un", "uni", "conch"),
        ("lrmil predict --escal", "--escalate", "--budget"),
        ("lrmil predict -m mod", "model.safetensors", "model.txt"),
    ):
        words = line.split()
        env = {**os.environ, "_LRMIL_COMPLETE": f"complete_{shell}", **variables(line, len(words) - 1)}
        said = subprocess.run([sys.executable, "-c", code], env=env, cwd=tmp_path, capture_output=True, text=True)
        assert found in said.stdout and not_found not in said.stdout, (line, said.stdout, said.stderr)


def test_version_and_help_of_what_is_not_there(lrmil):
    assert lrmil("-V").out.strip() == f"lrmil {__version__}"
    said = lrmil("help", "mtch")
    assert said.code == 2 and "no such command" in said.err
    assert "Commands:" in lrmil("help").out
