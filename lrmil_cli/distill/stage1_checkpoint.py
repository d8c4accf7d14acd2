"""How far a run of stage 1 has come, kept on disk after every epoch so that an interrupted one goes on."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from lrmil_cli.distill.learner import Learner
from lrmil_cli.files.atomic import atomic_path


@dataclass
class Progress:
    """Epochs and steps done, the best validation loss so far with its epoch and weights, one row of numbers an epoch.

    ``best_weights`` is None as long as no epoch was better than the start.
    """

    epoch: int = 0
    step: int = 0
    best: float = float("inf")
    best_epoch: int = 0
    best_weights: dict[str, Tensor] | None = None
    curves: list[dict[str, float]] = field(default_factory=list)


def save_checkpoint(
    path: Path,
    key: str,
    learner: Learner,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    progress: Progress,
) -> None:
    """Write all that a run needs to go on; ``key`` says which run it is of.

    Raises:
        MachineError: the file cannot be written.
    """
    states = {
        "key": key,
        "student": learner.encoder.weights(),
        "projections": learner.projection_weights(),
        "optimizer": optimizer.state_dict(),
        "scaler": scaler.state_dict(),
    }
    with atomic_path(path, "--cache") as tmp:
        torch.save({**states, **vars(progress)}, tmp)


def resume(
    path: Path,
    key: str,
    learner: Learner,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    device: torch.device,
) -> Progress | None:
    """Bring learner, optimizer and scaler to where the run ``key`` was left; None if there is no checkpoint of it."""
    if not path.exists():
        return None
    try:
        saved = torch.load(path, map_location=device, weights_only=True)
        if saved["key"] != key:
            return None
        progress = Progress(**{name: saved[name] for name in Progress.__dataclass_fields__})
        learner.encoder.model.load_state_dict(saved["student"])
        # Checkpoints of copies made before there were other students name no projections.
        learner.load_state_dict(saved.get("projections", {}), strict=False)
        optimizer.load_state_dict(saved["optimizer"])
        scaler.load_state_dict(saved["scaler"])
        return progress
    except MemoryError:
        raise
    except Exception:  # a damaged checkpoint is no loss: training starts anew
        return None
