"""How heads are trained: one recipe for all, so that a comparison compares heads, or what their authors published.

The published values in one table: training/README 4.
"""

from __future__ import annotations

from typing import Any

from lrmil_cli.errors import UsageError
from lrmil_cli.training.loop import TrainSettings

RECIPES = ("common", "published")
_CLAM = {"lr": 2e-4, "weight_decay": 1e-5, "min_epochs": 50, "balanced_sampling": True, "monitor": "loss"}
#: What each head's authors trained with, where it differs from :class:`TrainSettings`.
PUBLISHED: dict[str, dict[str, Any]] = {
    "meanpool": _CLAM,
    "maxpool": _CLAM,
    "clam_sb": _CLAM,
    "clam_mb": _CLAM,
    "abmil": {"lr": 5e-4, "weight_decay": 1e-4, "epochs": 20},
    "dmin": {**_CLAM, "lr": 3e-4, "select_from": 49},
    "dsmil": {"betas": (0.5, 0.9), "weight_decay": 1e-3, "schedule": "cosine", "epochs": 50, "patience": 10},
    "transmil": {"optimizer": "radam", "lr": 2e-4, "weight_decay": 1e-5, "patience": 10, "monitor": "loss"},
    "zoommil": {"epochs": 100, "patience": 100, "schedule": "plateau", "balanced_sampling": True, "monitor": "loss"},
    "dtfd": {"weight_decay": 1e-4, "schedule": "step", "clip": 5.0, "select_from": 160, "min_epochs": 200},
}

#: What stays different from what the authors did; ``lrmil info --heads`` shows it.
DIFFERENCES: dict[str, str] = {
    "clam_sb": "the instance loss is cross-entropy unless --head-option inst_loss=svm",
    "clam_mb": "the instance loss is cross-entropy unless --head-option inst_loss=svm",
    "dsmil": "the loss is cross-entropy unless --head-option loss=bce",
    "transmil": "no Lookahead, a step every bag (published: every second), coupled weight decay (published: decoupled)",
    "dtfd": "gradients are clipped over all parameters together (published: each module by itself)",
}


def train_settings(recipe: str, head: str, given: dict[str, Any]) -> TrainSettings:
    """The settings of a recipe for a head, with what the user asked for on top.

    Args:
        given: fields of :class:`TrainSettings`; None or False stands for not asked for.

    Raises:
        UsageError: no such recipe, or a learning rate that is not above 0.
    """
    if recipe not in RECIPES:
        raise UsageError(f"--recipe {recipe}: choose one of {', '.join(RECIPES)}")
    own = PUBLISHED[head] if recipe == "published" else {}
    asked = {k: v for k, v in given.items() if v is not None and v is not False}
    if asked.get("lr", 1.0) <= 0:
        raise UsageError("--lr must be above 0")
    settings = {**own, **asked}
    if "epochs" in asked:  # fewer epochs than the recipe's: what hangs on their number shrinks with it
        share = asked["epochs"] / own.get("epochs", TrainSettings.epochs)
        settings |= {k: int(own[k] * min(1.0, share)) for k in ("min_epochs", "select_from") if k in own}
    return TrainSettings(**settings)
