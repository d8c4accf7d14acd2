"""The stair of the house, as ``pyproject.toml`` draws it: a room imports only rooms below it, and no circles."""

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    code = (
        f"import sys; sys.path.insert(0, {str(folder)!r}); from importlinter.cli import lint_imports; "
        "sys.exit(lint_imports(no_cache=True, no_logo=True))"
    )
    return subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True)


def test_rooms_import_downwards_and_in_no_circle():
    said = lint(ROOT)
    assert said.returncode == 0 and "2 kept, 0 broken" in said.stdout, said.stdout + said.stderr


def test_the_contract_sees_what_it_forbids(tmp_path):
    shutil.copytree(
        ROOT / "lrmil_cli", tmp_path / "lrmil_cli", ignore=shutil.ignore_patterns("__pycache__", "*.safetensors")
    )
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    with open(tmp_path / "lrmil_cli" / "files" / "manifest.py", "a", encoding="utf-8") as fh:
        fh.write("\nimport lrmil_cli.training.folds\n")
    (tmp_path / "lrmil_cli" / "attic").mkdir()
    (tmp_path / "lrmil_cli" / "attic" / "__init__.py").touch()
    said = lint(tmp_path)
    assert said.returncode == 1 and "lrmil_cli.files.manifest -> lrmil_cli.training.folds" in said.stdout, (
        said.stdout + said.stderr
    )
    assert "attic" in said.stdout, "a room that the stair does not know must be refused"
