"""Which encoders the students see through: the LR encoder (one, or one a fold), and that of the LR-only student."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import pandas as pd

from lrmil_cli.encoders.spec import load_encoder
from lrmil_cli.encoders.vit import Encoder, EncoderInfo
from lrmil_cli.errors import InputError, MachineError
from lrmil_cli.files.foreign import NAMES
from lrmil_cli.training.folds import fold_names, members
from lrmil_cli.training.leaks import check_no_label_leak, encoder_leak
from lrmil_cli.training.teacher import Teacher


@dataclass(frozen=True)
class EncoderArgs:
    """How the LR encoder is loaded: spec (may hold ``{fold}``), and what the user may set of it."""

    spec: str
    input_size: int | None = None
    embedding: str | None = None
    random_init: bool = False


@dataclass(frozen=True)
class StudentEncoders:
    """LR encoders.

    Attributes:
        of_fold: which of them each fold uses.
        names: what the features of each are called, empty for one that all folds share.
        only: the one fold (from 1) that they are for; None for all.
    """

    all: list[Encoder]
    of_fold: list[int]
    names: list[str]
    only: int | None = None

    @property
    def first(self) -> Encoder:
        return self.all[0]

    def check_labels(self, folds: pd.DataFrame, patients: Mapping[str, str]) -> None:
        """No fold's encoder has learned a test patient's label; ``patients`` by slide id.

        Raises:
            InputError: one has.
        """
        for n, (i, name) in enumerate(zip(self.of_fold, fold_names(folds)), 1):
            if self.only not in (None, n):
                continue
            check_no_label_leak(self.all[i].info.distilled, members(folds, name)["test"], n, patients)

    def saw_test_pixels(self, folds: pd.DataFrame, patients: Mapping[str, str]) -> bool:
        """Whether a fold's encoder learned from the pixels of a test patient of that fold."""
        by_fold = zip(self.of_fold, fold_names(folds))
        return any(encoder_leak(self.all[i].info.distilled, folds, [name], patients) for i, name in by_fold)


def load_encoders(
    args: EncoderArgs, folds: int, tile_px: int, warn: Callable[[str], None], only: int | None = None
) -> StudentEncoders:
    """One shared encoder, or one a fold where the spec holds ``{fold}``; that of the fold ``only`` alone, if given.

    Raises:
        UsageError, InputError, MachineError: as :func:`load_encoder`.
    """
    a_fold = "{fold}" in args.spec
    own = [k for k in range(1, folds + 1) if only in (None, k)] if a_fold else []
    specs = [args.spec.replace("{fold}", str(k)) for k in own] or [args.spec]
    encoders = [
        load_encoder(
            spec,
            tile_px=tile_px,
            input_size=args.input_size,
            embedding=args.embedding,
            random_init=args.random_init,
            warn=warn,
        )
        for spec in specs
    ]
    of_fold = list(range(folds)) if len(specs) > 1 else [0] * folds
    # Two folds at least have encoders of their own: that of one fold is the model's.
    return StudentEncoders(encoders, of_fold, [f"fold{k}" for k in own] if folds > 1 and own else [""], only)


def load_baseline(baseline: str | None, lr: Encoder, tile_px: int, warn: Callable[[str], None]) -> Encoder | None:
    """The undistilled encoder, for the LR-only student: of a small student, what it started as.

    None where it is not wanted, or, unless it is named, where the student's own encoder is not distilled.

    Args:
        baseline: its spec; "auto" for the one that ``lr`` was distilled from; None for none.

    Raises:
        InputError, MachineError: it cannot be had; the message says how to name it or do without.
    """
    about, spec = lr.info.distilled, baseline
    if baseline == "auto":
        if about is None:
            return None
        spec = None if lr.info.random_init else about.get("student", {"spec": about.get("base_spec")})["spec"]
        if spec is None:
            warn(
                "no LR-only student is trained for comparison: the encoder file does not say what it was before it was "
                "distilled (or that was random weights); name it with --baseline-encoder"
            )
    if spec is None:
        return None
    try:
        return load_encoder(spec, tile_px=tile_px, input_size=lr.info.image_size, embedding=lr.info.embedding)
    except (InputError, MachineError) as e:
        raise type(e)(
            f"the encoder for the LR-only student of the receipt cannot be loaded: {e}; "
            "name another with --baseline-encoder, or leave the comparison out with --no-baseline"
        ) from e


def compare_embeddings(
    guide: Teacher, info: EncoderInfo, say: Callable[[str], None], warn: Callable[[str], None]
) -> None:
    """Say so where LR and HR side describe a tile by different kinds of embedding (distill/README 1).

    Features of other tools do not name theirs. A small student learned its own through a projection.
    """
    if "student" in (info.distilled or {}):
        return
    own = info.embedding
    theirs = guide.header["encoder"]["embedding"]
    if theirs is None:
        say(
            f"the teacher learned from features of {NAMES[guide.header['made_by']]}, which do not say what embedding "
            f"they are; the student's is {own}, please compare"
        )
    elif theirs != own:
        warn(f"the student's embedding is {own}, the teacher's {theirs}; use the same --embedding on both sides")
