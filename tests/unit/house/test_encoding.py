"""Text files are UTF-8 on every system: nothing is left to what the system prefers, and Windows prefers another one."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
#: Methods, and how many arguments one of them has when the last is the encoding.
TEXT = {"read_text": 1, "write_text": 2}


def unsaid(tree: ast.AST) -> list[int]:
    """Lines of calls that open, read or write text without saying in which encoding."""
    lines = []
    for call in ast.walk(tree):
        if not isinstance(call, ast.Call) or any(k.arg == "encoding" for k in call.keywords):
            continue
        if isinstance(call.func, ast.Attribute) and call.func.attr in TEXT:
            if len(call.args) < TEXT[call.func.attr]:
                lines.append(call.lineno)
        elif isinstance(call.func, ast.Name) and call.func.id == "open":
            mode = next(
                (k.value for k in call.keywords if k.arg == "mode"), call.args[1] if len(call.args) > 1 else None
            )
            if not (isinstance(mode, ast.Constant) and "b" in str(mode.value)):
                lines.append(call.lineno)
    return lines


@pytest.mark.parametrize("folder", ["lrmil_cli", "examples"])
def test_text_is_read_and_written_as_utf_8(folder):
    found = {
        f"{path.relative_to(ROOT)}:{line}"
        for path in (ROOT / folder).rglob("*.py")
        for line in unsaid(ast.parse(path.read_text(encoding="utf-8")))
    }
    assert not found


def test_what_is_left_unsaid_is_seen():
    said = ['open(a, "rb")', 'open(a, encoding="utf-8")', 'p.read_text("utf-8")', "write_text(p, t)"]
    left_unsaid = ["open(a)", 'open(a, "w")', "p.read_text()", 'p.write_text(t, newline="")']
    assert unsaid(ast.parse("\n".join(said + left_unsaid))) == [5, 6, 7, 8]
