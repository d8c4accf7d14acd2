"""Options that several commands share."""

from __future__ import annotations

import inspect
import re
from contextvars import ContextVar
from pathlib import Path
from typing import Annotated, Optional, get_args

import typer
from typer.models import OptionInfo

from lrmil_cli.errors import InputError, UsageError, no_such_file
from lrmil_cli.slide_names import SLIDE_SUFFIXES

#: How much the running command says, and whether an internal error shows its traceback.
quiet: ContextVar[bool] = ContextVar("quiet", default=False)
verbose: ContextVar[bool] = ContextVar("verbose", default=False)
debug: ContextVar[bool] = ContextVar("debug", default=False)


def names_of(parameter: inspect.Parameter) -> tuple[str, ...]:
    """The names that a user may give for a parameter of a command, the long one last; none of an argument."""
    info = next((a for a in get_args(parameter.annotation)[1:] if isinstance(a, OptionInfo)), None)
    # Of an annotated option typer keeps the first name as its default.
    return () if info is None else (str(info.default), *(info.param_decls or ()))


# ---- what to work on, and what to say of it --------------------------------------------------------------------------
Slides = Annotated[
    list[str],
    typer.Argument(
        metavar="SLIDE|DIR|slides.csv|-...",
        help="Slides, folders of slides, a manifest, or - for a list on stdin (one path a line, or JSON Lines).",
    ),
]
Manifest = Annotated[
    str,
    typer.Argument(
        metavar="slides.csv",
        help="Table with the columns slide, label (and slide_id, patient_id, split or fold, mpp).",
    ),
]
SlidePlaces = Annotated[
    Optional[str],
    typer.Option(
        "--slides",
        metavar="slides.csv|DIR",
        help="Where the slides are, if they have moved: a manifest, or a folder with sub-folders. "
        "[default: where the tables say, or where they lie as seen from the tables]",
        show_default=False,
    ),
]
Recursive = Annotated[bool, typer.Option("-r", "--recursive", help="Of folders also the slides in their sub-folders.")]
SlideMpp = Annotated[
    Optional[float],
    typer.Option("--slide-mpp", help="Level-0 um per pixel; wins over the metadata."),
]
OnBadTile = Annotated[
    str,
    typer.Option(
        "--on-bad-tile",
        help="fail, or skip: leave out tiles whose pixels cannot be decoded, and say how many.",
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
Reader = Annotated[
    str,
    typer.Option(
        "--reader",
        help="auto, tiffslide or openslide: who reads slides. auto goes by what a file is; "
        "`lrmil info` says which, and why.",
    ),
]
Image = Annotated[
    Optional[int],
    typer.Option(
        "--image",
        min=0,
        help="Which image of a file with several, as `lrmil info` numbers them.  [default: the largest]",
    ),
]

# ---- the machine -----------------------------------------------------------------------------------------------------
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:N or mps.")]
Seed = Annotated[int, typer.Option("--seed", help="Seed of everything random.")]
BatchSize = Annotated[
    Optional[int],
    typer.Option(
        "--batch-size",
        min=1,
        help="Tiles encoded at a time.  [default: 16 on a CPU, on a GPU what turns out to be fastest]",
    ),
]
Workers = Annotated[
    Optional[int],
    typer.Option("--workers", min=1, help="Threads that read slides.  [default: one a core, at most 8]"),
]
Memory = Annotated[
    Optional[str],
    typer.Option(
        "--memory",
        metavar="SIZE",
        help="Memory that features may be kept in while training (8GB); what does not fit is read again each epoch.  "
        "[default: half of what is free]",
    ),
]
Dtype = Annotated[
    Optional[str],
    typer.Option(
        "--dtype",
        help="float16 or float32: how features are stored; files that are there are taken as they are.  "
        "[default: float16; ours]",
    ),
]
Compile = Annotated[
    bool,
    typer.Option(
        "--compile",
        help="Translate the encoder by torch.compile, where a compiler works: "
        "up to a minute at the start, then about a tenth faster on a CPU, more on a GPU.",
    ),
]


def check_model(path: str) -> None:
    """What a model is named by can be a model, said before anything heavy is imported.

    Raises:
        UsageError: it is a file of another kind, by its name. InputError: it is a folder, or nothing is there.
    """
    given = Path(path)
    if given.is_dir():
        teacher = (given / "teacher.json").is_file()
        raise InputError(
            f"-m {path}: a {'teacher' if teacher else 'folder'}; give the model file that `lrmil distill-student` made"
            + (" of it" if teacher else "")
        )
    if not path.lower().endswith((".safetensors", ".onnx")):
        slide = "a slide" if path.lower().endswith(SLIDE_SUFFIXES) else "no model"
        raise UsageError(f"-m {path}: {slide}; give the .safetensors that `lrmil distill-student` made, or its .onnx")
    if not given.exists():
        raise InputError(no_such_file(path, "check the path; `lrmil distill-student` makes models"))


def check_dtype(dtype: str | None) -> None:
    """``--dtype`` is a type that features are stored in.

    Raises:
        UsageError: it is not.
    """
    if dtype not in (None, "float16", "float32"):
        raise UsageError(f"--dtype {dtype}: choose float16 or float32")


def memory_bytes(size: str | None) -> int | None:
    """Bytes of ``--memory``: ``8GB``, ``500 MB``, ``1.5G``.

    Raises:
        UsageError: none of these.
    """
    if size is None:
        return None
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)I?B?\s*", size, re.IGNORECASE)
    if found is None:
        raise UsageError(f"--memory {size}: give a size as 8GB or 500MB")
    return int(float(found[1]) * 1000 ** " KMGT".index(found[2].upper() or " "))


def bad_tiles_text(slide_id: str, bad: int, read: int) -> str:
    """What is said of a slide with tiles that were left out."""
    much = "; that is most of it, so do not rely on what comes of it" if bad > read else ""
    return f"{slide_id}: {bad} of {bad + read} tiles cannot be decoded and were left out{much}"
