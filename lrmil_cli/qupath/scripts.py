"""The Groovy scripts that QuPath runs: predict from within QuPath, and load results into a project."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from lrmil_cli.errors import UsageError
from lrmil_cli.files.atomic import write_text


def copy_scripts(folder: str | Path, overwrite: bool = False) -> list[Path]:
    """Copy the scripts of this version into a folder.

    Raises:
        UsageError: another file of that name is there and ``overwrite`` is off.
        MachineError: the folder cannot be written.
    """
    scripts = {
        p.name: p.read_text(encoding="utf-8") for p in files("lrmil_cli.qupath").iterdir() if p.name.endswith(".groovy")
    }
    targets = {Path(folder) / name: text for name, text in sorted(scripts.items())}
    for path, text in targets.items():
        if path.exists() and not overwrite and path.read_bytes() != text.encode("utf-8"):
            raise UsageError(
                f"{path} exists and is not the script of this version (edited?); add --overwrite to replace it"
            )
    for path, text in targets.items():
        write_text(path, text)
    return list(targets)
