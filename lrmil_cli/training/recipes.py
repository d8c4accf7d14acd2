"""How heads are trained: one recipe for all, so that a comparison compares heads, or what their authors published.

The published values in one table: training/README 4.
"""

from __future__ import annotations

from typing import Any

from lrmil_cli.errors import UsageError
from lrmil_cli.targets.task import Task
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
    "transmil": {
        "optimizer": "lookahead-radam",
        "accumulate": 2,
        "lr": 2e-4,
        "weight_decay": 1e-5,
        "patience": 10,
        "monitor": "loss",
    },
    "zoommil": {"epochs": 100, "patience": 100, "schedule": "plateau", "balanced_sampling": True, "monitor": "loss"},
    "dtfd": {"weight_decay": 1e-4, "schedule": "step", "clip": 5.0, "select_from": 160, "min_epochs": 200},
}

#: Options of heads that belong to how their authors trained them, where the default is another.
PUBLISHED_OPTIONS: dict[str, dict[str, Any]] = {"clam_sb": {"inst_loss": "svm"}, "clam_mb": {"inst_loss": "svm"}}

#: What stays different from what the authors did; ``lrmil info --heads`` shows it.
DIFFERENCES: dict[str, str] = {
    "dsmil": "the loss is cross-entropy unless --head-option loss=bce",
    "transmil": "Lookahead has its own paper's k = 5, and single precision throughout (published: mixed)",
}


def check_recipe(recipe: str) -> None:
    """Raises UsageError: no such recipe."""
    if recipe not in RECIPES:
        raise UsageError(f"--recipe {recipe}: choose one of {', '.join(RECIPES)}")


def recipe_options(recipe: str, head: str, given: dict[str, Any]) -> dict[str, Any]:
    """The options of a head by a recipe, with those that the user gave on top.

    Raises:
        UsageError: no such recipe.
    """
    check_recipe(recipe)
    return {**(PUBLISHED_OPTIONS.get(head, {}) if recipe == "published" else {}), **given}


def train_settings(recipe: str, head: str, given: dict[str, Any], task: Task = Task()) -> TrainSettings:
    """The settings of a recipe for a head, with what the user asked for on top.

    Args:
        given: fields of :class:`TrainSettings`; None or False stands for not asked for.
        task: where it has no classes, a recipe does not balance them.

    Raises:
        UsageError: no such recipe, or a learning rate that is not above 0.
    """
    check_recipe(recipe)
    own = dict(PUBLISHED[head]) if recipe == "published" else {}
    if not task.classes:
        own.pop("balanced_sampling", None)
    asked = {k: v for k, v in given.items() if v is not None and v is not False}
    if asked.get("lr", 1.0) <= 0:
        raise UsageError("--lr must be above 0")
    settings = {**own, **asked}
    if "epochs" in asked:  # fewer epochs than the recipe's: what hangs on their number shrinks with it
        share = asked["epochs"] / own.get("epochs", TrainSettings.epochs)
        settings |= {k: int(own[k] * min(1.0, share)) for k in ("min_epochs", "select_from") if k in own}
    return TrainSettings(**settings)
