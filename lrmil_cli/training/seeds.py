"""Every fold several times, by other seeds: what another run would have given (training/README 3.6)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from lrmil_cli.errors import UsageError
from lrmil_cli.files.manifest import Manifest
from lrmil_cli.targets.outputs import Outputs
from lrmil_cli.targets.task import Task
from lrmil_cli.training.crossval import FoldResult, Judged
from lrmil_cli.training.loop import TrainSettings
from lrmil_cli.training.objectives import score_of, watched_of
from lrmil_cli.training.out_of_fold import predictions_table

#: Between the seeds of two runs: the folds of a run take the numbers after its own.
STRIDE = 1000
#: What a model keeps of the heads of a fold.
KEEP = ("ensemble", "best")


@dataclass(frozen=True)
class Ensemble:
    """The heads of a fold as one: what they say is their mean, each calibrated by itself."""

    members: list[FoldResult]

    @property
    def fold(self) -> int:
        return self.members[0].fold

    @property
    def parts(self) -> dict[str, list[str]]:
        return self.members[0].parts

    @property
    def raw(self) -> dict[str, np.ndarray]:
        return {part: np.mean([m.raw[part] for m in self.members], axis=0) for part in self.members[0].raw}

    @property
    def outputs(self) -> list[Outputs]:
        return [o for m in self.members for o in m.outputs]

    def heads(self, part: str) -> list[np.ndarray]:
        return [own for m in self.members for own in m.heads(part)]

    def said(self, part: str) -> np.ndarray:
        return np.mean([m.said(part) for m in self.members], axis=0)

    @property
    def probabilities(self) -> np.ndarray:
        return self.said("test")


def check_seeds(seeds: int, keep: str | None) -> None:
    """Raises UsageError if ``keep`` is no way to keep heads, or there is nothing to choose from."""
    if keep is not None and keep not in KEEP:
        raise UsageError(f"--keep {keep}: choose one of {', '.join(KEEP)}")
    if keep is not None and seeds == 1:
        raise UsageError("--keep says what is kept of several seeds; give --seeds N too")


def settings_of_seed(settings: TrainSettings, n: int) -> TrainSettings:
    """Those of the n-th run, from 0; the first is as it is without others."""
    return replace(settings, seed=settings.seed + STRIDE * n)


def kept_heads(
    runs: Sequence[list[FoldResult]], keep: str | None, monitor: str, task: Task = Task()
) -> list[FoldResult]:
    """The heads that a model holds, fold by fold: all of them, or the best of each fold by validation.

    Args:
        runs: of each seed the results of all folds; monitor: as of :class:`TrainSettings`; the best is chosen as an
            epoch is; task: of the heads.
    """
    folds = list(zip(*runs))
    if keep != "best":
        return [result for of_fold in folds for result in of_fold]

    def score(result: FoldResult) -> tuple[float, float]:
        return score_of(result.fit.curves[result.fit.best_epoch - 1], watched_of(task), monitor)

    return [max(of_fold, key=score) for of_fold in folds]


def as_judged(results: Sequence[FoldResult]) -> list[Judged]:
    """What is judged: one entry a fold, its only head or the mean of its heads."""
    by_fold: dict[int, list[FoldResult]] = {}
    for r in results:
        by_fold.setdefault(r.fold, []).append(r)
    return [own[0] if len(own) == 1 else Ensemble(own) for own in by_fold.values()]


def fold_of(results: Sequence[FoldResult]) -> list[int]:
    """For each head its fold, from 0."""
    return [r.fold - 1 for r in results]


def seeds_table(manifest: Manifest, runs: Mapping[str, Sequence[list[FoldResult]]]) -> pd.DataFrame:
    """Out-of-fold predictions of each run: ``student, seed``, and the columns of a predictions table.

    Args:
        runs: by who was trained (``distilled``, ``lr_only``, ``teacher``), of each seed the results of all folds.
    """
    tables = [
        predictions_table(manifest, results).assign(student=who, seed=n)
        for who, of_seed in runs.items()
        for n, results in enumerate(of_seed, 1)
    ]
    both = pd.concat(tables, ignore_index=True)
    first = ["student", "seed"]
    return both[[*first, *(c for c in both.columns if c not in first and not c.startswith("raw_"))]]


def header_of(seeds: int, keep: str | None, results: Sequence[FoldResult]) -> dict[str, Any]:
    """Entries of a model's header: ``seeds``, and where several heads of a fold are kept, ``fold_of``."""
    if seeds == 1:
        return {}
    several = len({r.fold for r in results}) < len(results)
    about = {"seeds": {"count": seeds, "keep": keep or "ensemble"}}
    return {**about, **({"fold_of": fold_of(results)} if several else {})}
