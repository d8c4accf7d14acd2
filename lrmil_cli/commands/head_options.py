"""Options of the commands that train heads: which head, its own options, and how it is trained."""

from __future__ import annotations

import json
from typing import Annotated, Any, Optional

import typer

from lrmil_cli.errors import UsageError

# ---- the head --------------------------------------------------------------------------------------------------------
Head = Annotated[
    str,
    typer.Option(
        "--head",
        help="MIL head: meanpool, maxpool, abmil, clam_sb, clam_mb, dmin, dsmil, transmil or dtfd.  "
        "[default: abmil; paper]",
        show_default=False,
    ),
]
HeadOption = Annotated[
    Optional[list[str]],
    typer.Option(
        "--head-option",
        metavar="KEY=VALUE",
        help="An option of the head, such as size=big or subtyping=true; `lrmil info --heads` lists them. "
        "May be repeated.",
    ),
]
Gated = Annotated[
    bool,
    typer.Option(
        "--gated",
        help="Gated attention: short for --head-option gated=true.  "
        "[default: as the head says; abmil: off, official code]",
    ),
]
ProjDim = Annotated[
    int,
    typer.Option(
        "--proj-dim",
        min=0,
        help="Width of a projection in front of the head: short for --head-option embed_dim=N.  "
        "[default: 0, as the head says; abmil: none, official code]",
        show_default=False,
    ),
]
Classifier = Annotated[
    Optional[str],
    typer.Option(
        "--classifier",
        metavar="linear|cka",
        help="Bag classifier of abmil, clam_sb, clam_mb and dmin; cka is a layer of Chebyshev polynomials: "
        "short for --head-option classifier=NAME.  [default: as the head says; abmil: linear, official code]",
    ),
]

# ---- its training ----------------------------------------------------------------------------------------------------
Folds = Annotated[
    int,
    typer.Option(
        "--folds",
        help="Folds to draw, where nothing else defines them.  [default: 5; paper]",
        show_default=False,
    ),
]
Seeds = Annotated[
    int,
    typer.Option(
        "--seeds",
        min=1,
        help="Train every fold so many times, by other seeds; the receipt then says how much of a difference another "
        "seed makes.  [default: 1; paper]",
        show_default=False,
    ),
]
Fold = Annotated[
    Optional[int],
    typer.Option(
        "--fold",
        help="Train this fold alone, as a job of its own, and keep its head in the output's folder; the same call "
        "without --fold then puts all together.",
    ),
]
Recipe = Annotated[
    str,
    typer.Option(
        "--recipe",
        help="common: the same training for every head, for comparisons; "
        "published: as its authors trained the head (optimiser, rates, epochs, stopping, sampling, instance loss). "
        "Options given beside it win.  [default: common; ours]",
        show_default=False,
    ),
]
LearningRate = Annotated[
    Optional[float],
    typer.Option(
        "--lr",
        help="Learning rate.  "
        "[default: 1e-4, or the recipe's; ours: usual for such heads; the paper's value is not known to us]",
    ),
]
Epochs = Annotated[
    Optional[int],
    typer.Option("--epochs", min=1, help="Epochs at most.  [default: 200, or the recipe's; ours]"),
]
Patience = Annotated[
    Optional[int],
    typer.Option(
        "--patience",
        min=1,
        help="Epochs without a better validation AUC before stopping.  [default: 20, or the recipe's; paper]",
    ),
]
WeightDecay = Annotated[
    Optional[float],
    typer.Option(
        "--weight-decay",
        min=0.0,
        help="Weight decay.  [default: 0, or the recipe's; ours: the paper says Adam and no more]",
    ),
]
ClassWeights = Annotated[
    bool,
    typer.Option(
        "--class-weights",
        help="Weigh the loss against class frequency.  [default: off; official code]",
    ),
]
BalancedSampling = Annotated[
    bool,
    typer.Option(
        "--balanced-sampling",
        help="Draw slides of all classes equally often.  [default: off, or the recipe's; official code]",
    ),
]


#: Parameters that change the settings of a head's training, by the settings' names.
OF_TRAINING = ("lr", "epochs", "patience", "weight_decay", "class_weights", "balanced_sampling", "seed")


def head_options(gated: bool, proj_dim: int, classifier: str | None, pairs: list[str] | None) -> dict[str, Any]:
    """Options of a head that differ from its defaults; values of ``KEY=VALUE`` are read as JSON, else as text.

    Raises:
        UsageError: not KEY=VALUE, or a key given twice.
    """
    given = (
        ({"gated": True} if gated else {})
        | ({"embed_dim": proj_dim} if proj_dim else {})
        | ({"classifier": classifier} if classifier else {})
    )
    for pair in pairs or []:
        key, equals, text = pair.partition("=")
        if not (key and equals):
            raise UsageError(f"--head-option {pair}: give KEY=VALUE, such as subtyping=true")
        if key in given:
            raise UsageError(f"--head-option {key} is given twice")
        try:
            given[key] = json.loads(text)
        except ValueError:
            given[key] = text
    return given
