"""``run.toml``: the settings of a run, so that it can be repeated (chain/README 3)."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from lrmil_cli import __version__
from lrmil_cli.chain.plan import OF_THE_MACHINE, Settings, Value
from lrmil_cli.errors import InputError, UsageError
from lrmil_cli.files.atomic import write_text

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

NAME = "run.toml"


def dumps(settings: Settings) -> str:
    """Settings as TOML: options of ``lrmil run`` at the top, those of a step in a table of its name.

    Raises:
        InputError: a text that is none (bytes of a file name), which TOML cannot hold.
    """
    top: dict[str, Value] = {"slides": settings.slides, "encoder": settings.encoder, **settings.options}
    lines = [f"# Settings of a run of lrmil {__version__}; `lrmil run --config FILE -o FOLDER` repeats it."]
    lines += [f"{_text(name)} = {_toml(value)}" for name, value in top.items()]
    for step, options in settings.of_steps.items():
        lines += ["", f"[{_text(step)}]", *(f"{_text(name)} = {_toml(value)}" for name, value in options.items())]
    return "\n".join(lines) + "\n"


def _text(name: str) -> str:
    """A key: bare, where TOML allows that."""
    return name if name.isascii() and name.replace("-", "").replace("_", "").isalnum() else _toml(name)


def _toml(value: Value) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, str):
        if any("\ud800" <= c <= "\udfff" for c in value):
            raise InputError(f"{value!r} is no text, so {NAME} cannot hold it; rename the file")
        # A JSON string is one of TOML too, but for the one control character that JSON leaves as it is.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return repr(value)


def read_run_file(path: str | Path) -> dict[str, Any]:
    """What a file says, not yet checked.

    Raises:
        InputError: it cannot be read, or is not TOML.
    """
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as e:
        raise InputError(f"{path}: cannot be read: {e.strerror or e}; check its permissions and the disk") from e
    except ValueError as e:  # not TOML, or not UTF-8
        raise InputError(
            f"{path}: not a file of settings (TOML): {e}; `lrmil run` writes one, {NAME}, into its folder"
        ) from e


def keep_settings(folder: Path, settings: Settings, overwrite: bool) -> None:
    """Write ``run.toml`` into the folder of a run.

    Raises:
        UsageError: the folder is of a run with other settings, and ``overwrite`` is off. MachineError: no writing.
    """
    path, text = folder / NAME, dumps(settings)
    if path.exists() and not overwrite:
        there, wanted = (_by_name(values) for values in (read_run_file(path), tomllib.loads(text)))
        other = [name for name in {**wanted, **there} if there.get(name) != wanted.get(name)]
        if other:
            raise UsageError(
                f"{path}: this folder is of a run with other settings ({', '.join(other)}); give these again, choose "
                "another --output, or add --overwrite, which redoes only what they change"
            )
    write_text(path, text)


def _by_name(values: dict[str, Any]) -> dict[str, Any]:
    """Settings, those of steps as ``STEP.OPTION``, without those of the machine."""
    steps = {f"{step}.{name}": v for step, own in values.items() if isinstance(own, dict) for name, v in own.items()}
    own = {name: v for name, v in values.items() if not isinstance(v, dict) and name not in OF_THE_MACHINE}
    return own | steps
