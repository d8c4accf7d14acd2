"""Options that several commands share, and those that every command has (``-q -v --debug``)."""

from __future__ import annotations

import functools
import inspect
import json
import math
from collections.abc import Callable
from contextvars import ContextVar
from typing import Annotated, Any, Optional

import typer

from lrmil_cli.errors import UsageError

#: How much the running command says, and whether an internal error shows its traceback.
quiet: ContextVar[bool] = ContextVar("quiet", default=False)
verbose: ContextVar[bool] = ContextVar("verbose", default=False)
debug: ContextVar[bool] = ContextVar("debug", default=False)

_COMMON = {
    "quiet": (quiet, Annotated[bool, typer.Option("-q", "--quiet", help="Say nothing but warnings and errors.")]),
    "verbose": (verbose, Annotated[bool, typer.Option("-v", "--verbose", help="Say more.")]),
    "debug": (debug, Annotated[bool, typer.Option("--debug", help="Show the traceback of an internal error.")]),
}


def with_common_options(command: Callable[..., None]) -> Callable[..., None]:
    """The command with ``-q -v --debug`` added to its signature, so that no command has to list them."""
    own = inspect.signature(command, eval_str=True)

    @functools.wraps(command)
    def wrapped(**kwargs: Any) -> None:
        for name, (variable, _) in _COMMON.items():
            variable.set(kwargs.pop(name))
        for name, value in kwargs.items():
            if isinstance(value, float) and not math.isfinite(value):
                raise UsageError(f"--{name.replace('_', '-')} {value}: give a number")
        command(**kwargs)

    added = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=annotation)
        for name, (_, annotation) in _COMMON.items()
    ]
    wrapped.__signature__ = own.replace(parameters=[*own.parameters.values(), *added])
    wrapped.__annotations__ = {p.name: p.annotation for p in wrapped.__signature__.parameters.values()}
    del wrapped.__wrapped__  # typer would look through to the undecorated function
    return wrapped


Slides = Annotated[
    list[str],
    typer.Argument(
        metavar="SLIDE|DIR|slides.csv|-...",
        help="Slides, folders of slides, a manifest, or - for a list on stdin (one path a line, or JSON Lines).",
        show_default=False,
    ),
]
Manifest = Annotated[
    str,
    typer.Argument(
        metavar="slides.csv",
        help="Table with the columns slide, label (and slide_id, patient_id, split or fold, mpp).",
        show_default=False,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object a slide on stdout.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace outputs made from other inputs or settings.")]
FailFast = Annotated[bool, typer.Option("--fail-fast", help="Stop a batch at the first slide that fails.")]
DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run",
        help="Write nothing; say what would be made, is up to date or would fail, how many tiles, and about how long.",
    ),
]
SlideMpp = Annotated[
    Optional[float],
    typer.Option("--slide-mpp", help="Level-0 um per pixel; wins over the metadata.", show_default=False),
]
Reader = Annotated[
    str,
    typer.Option(
        "--reader",
        help="auto, tiffslide or openslide: who reads slides. auto goes by what a file is; `lrmil info` says which, and "
        "why.",
    ),
]
Image = Annotated[
    Optional[int],
    typer.Option(
        "--image",
        min=0,
        help="Which image of a file with several, as `lrmil info` numbers them.  [default: the largest]",
        show_default=False,
    ),
]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:N or mps.")]
Seed = Annotated[int, typer.Option("--seed", help="Seed of everything random.")]
BatchSize = Annotated[
    Optional[int],
    typer.Option(
        "--batch-size",
        min=1,
        help="Tiles encoded at a time.  [default: 16 on a CPU, on a GPU what turns out to be fastest]",
        show_default=False,
    ),
]
Workers = Annotated[
    Optional[int],
    typer.Option(
        "--workers", min=1, help="Threads that read slides.  [default: one a core, at most 8]", show_default=False
    ),
]
OnBadTile = Annotated[
    str,
    typer.Option(
        "--on-bad-tile", help="fail, or skip: leave out tiles whose pixels cannot be decoded, and say how many."
    ),
]
Compile = Annotated[
    bool,
    typer.Option(
        "--compile",
        help="Translate the encoder by torch.compile, where a compiler works: up to a minute at the start, then about a tenth faster on a CPU, more on a GPU.",
    ),
]
_ENCODER = typer.Option(
    "--encoder",
    metavar="SPEC",
    show_default=False,
    help="An alias (conch, uni, virchow2, ...: `lrmil info --encoders`), hf-hub:ORG/NAME, a timm name, NAME@weights.bin (alias or timm "
    "name with local weights), local-dir:FOLDER, a file made by distill-encoder, or demo-vit.",
)
Encoder = Annotated[str, _ENCODER]
EncoderOrNone = Annotated[Optional[str], _ENCODER]
Embedding = Annotated[
    Optional[str],
    typer.Option(
        "--embedding", help="cls, mean, cls+mean or pool.  [default: as the encoder says, else cls]", show_default=False
    ),
]
InputSize = Annotated[
    Optional[int],
    typer.Option(
        "--input-size",
        min=8,
        help="Side in px that tiles are resized to for the encoder.  [default: by the encoder]",
        show_default=False,
    ),
]
RandomInit = Annotated[
    bool, typer.Option("--random-init", help="Random encoder weights, for dry runs; the files say so.")
]
Head = Annotated[
    str,
    typer.Option("--head", help="MIL head: meanpool, maxpool, abmil, clam_sb, clam_mb, dmin, dsmil, transmil or dtfd."),
]
HeadOption = Annotated[
    Optional[list[str]],
    typer.Option(
        "--head-option",
        metavar="KEY=VALUE",
        help="An option of the head, such as size=big or subtyping=true; `lrmil info --heads` lists them. May be repeated.",
        show_default=False,
    ),
]
Gated = Annotated[bool, typer.Option("--gated", help="Gated attention: short for --head-option gated=true.")]
Classifier = Annotated[
    Optional[str],
    typer.Option(
        "--classifier",
        metavar="linear|cka",
        help="Bag classifier of abmil, clam_sb, clam_mb and dmin; cka is a layer of Chebyshev polynomials: short for --head-option classifier=NAME.  [default: as the head says]",
        show_default=False,
    ),
]
ProjDim = Annotated[
    int,
    typer.Option(
        "--proj-dim",
        min=0,
        help="Width of a projection in front of the head: short for --head-option embed_dim=N.  [0: as the head says]",
    ),
]
Folds = Annotated[int, typer.Option("--folds", help="Folds to draw, where nothing else defines them.")]
Recipe = Annotated[
    str,
    typer.Option(
        "--recipe",
        help="common: the same training for every head, for comparisons; published: as its authors trained the head (optimiser, rates, epochs, stopping, sampling). Options given beside it win.",
    ),
]
HeadLearningRate = Annotated[
    Optional[float], typer.Option("--lr", help="Learning rate.  [default: 1e-4, or the recipe's]", show_default=False)
]
HeadEpochs = Annotated[
    Optional[int],
    typer.Option("--epochs", min=1, help="Epochs at most.  [default: 200, or the recipe's]", show_default=False),
]
LearningRate = Annotated[float, typer.Option("--lr", help="Learning rate (Adam).")]
Epochs = Annotated[int, typer.Option("--epochs", min=1, help="Epochs at most.")]
HeadPatience = Annotated[
    Optional[int],
    typer.Option(
        "--patience",
        min=1,
        help="Epochs without a better validation AUC before stopping.  [default: 20, or the recipe's]",
        show_default=False,
    ),
]
WeightDecay = Annotated[
    Optional[float],
    typer.Option("--weight-decay", min=0.0, help="Weight decay.  [default: 0, or the recipe's]", show_default=False),
]
ClassWeights = Annotated[bool, typer.Option("--class-weights", help="Weigh the loss against class frequency.")]
BalancedSampling = Annotated[
    bool, typer.Option("--balanced-sampling", help="Draw slides of all classes equally often.")
]


def bad_tiles_text(slide_id: str, bad: int, read: int) -> str:
    """What is said of a slide with tiles that were left out."""
    much = "; that is most of it, so do not rely on what comes of it" if bad > read else ""
    return f"{slide_id}: {bad} of {bad + read} tiles cannot be decoded and were left out{much}"


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
