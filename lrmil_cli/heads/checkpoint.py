"""Head files: a MIL head that rebuilds itself from name, sizes and options."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lrmil_cli.errors import InputError, LrmilError
from lrmil_cli.files.tensors import load_tensors, save_tensors
from lrmil_cli.heads.base import MILHead, build_head


def save_head(path: str | Path, head: MILHead, header: dict[str, Any]) -> None:
    """Write a head; ``header`` is of kind ``head`` and gets the head's configuration.

    Raises:
        MachineError: the file cannot be written.
    """
    save_tensors(path, head.state_dict(), {**header, "head": head.config()})


def load_head(path: str | Path) -> tuple[dict[str, Any], MILHead]:
    """Header and head (evaluation mode, CPU) of a head file.

    Raises:
        InputError: not a head file, damaged, or of a head this version does not have.
    """
    header, tensors = load_tensors(path, "head")
    return header, rebuild_head(header.get("head"), tensors, str(path))


def rebuild_head(config: Any, tensors: dict[str, Any], where: str) -> MILHead:
    """A head of ``config`` (see ``MILHead.config``) with the weights ``tensors``.

    Raises:
        InputError: the two do not fit.
    """
    try:
        sizes = int(config["in_dim"]), int(config["num_classes"])
        head = build_head(config["name"], *sizes, config["options"], of_classes=config.get("of_classes", True))
        head.load_state_dict(tensors)
    except (LrmilError, KeyError, TypeError, ValueError, RuntimeError) as e:
        raise InputError(
            f"{where}: the head does not fit this version of lrmil ({' '.join(str(e).split())[:160]}); train it again"
        ) from e
    return head.eval().requires_grad_(False)
