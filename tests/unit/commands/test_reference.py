"""The reference in the commands' README: made of what the commands declare, and never stale."""

import pytest
import typer

from lrmil_cli.app import app
from lrmil_cli.commands import reference
from lrmil_cli.commands.all_commands import COMMANDS


def test_the_reference_is_what_the_commands_are():
    text = reference.README.read_text(encoding="utf-8")
    assert reference.with_reference(text) == text, "run `python -m lrmil_cli.commands.reference`"


@pytest.mark.parametrize("name", COMMANDS)
def test_what_is_declared_is_what_the_parser_takes(name):
    parsed = {p.name: p for p in typer.main.get_command(app).commands[name].params}
    for p in reference.declared(COMMANDS[name]):
        own = parsed.pop(p.name)
        assert own.required == p.required and (own.help or "") == p.help
        if p.names:
            assert sorted("/".join([*own.opts, *own.secondary_opts]).split("/")) == sorted("/".join(p.names).split("/"))
    assert set(parsed) == {"quiet", "verbose", "log", "debug"}


def test_help_means_nothing_in_markdown():
    said = reference.markdown("Into <slide>.csv, or - for  stdout; *.csv by `a*b - c`, -o - too")
    assert said == r"Into \<slide>.csv, or `-` for stdout; \*.csv by `a*b - c`, -o `-` too"


def test_a_page_without_markers_is_left_alone():
    with pytest.raises(ValueError, match="markers"):
        reference.with_reference("# commands\n")
