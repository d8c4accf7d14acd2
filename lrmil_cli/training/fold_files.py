"""Heads of folds that are kept as they are finished: an interrupted run goes on, and folds can be jobs of their own
(training/README 6.3)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lrmil_cli.errors import InputError, UsageError
from lrmil_cli.files.header import last_digest, make_header, step
from lrmil_cli.files.locks import claimed
from lrmil_cli.heads.checkpoint import load_head, save_head
from lrmil_cli.training.crossval import FoldResult
from lrmil_cli.training.loop import Fit


@dataclass(frozen=True)
class FoldFiles:
    """Where the heads of a run are kept, ``<folder>/fold<k>/<name>.safetensors``.

    Attributes:
        command: that trains them, for their history and for messages.
        classes, settings: go into their headers; inputs: fold (from 1) -> digests of what its head is made from.
        wanted: fold (from 1) -> digest that its head must have.
        alone: it is one fold that is trained, by a job of its own.
    """

    folder: Path
    name: str
    command: str
    classes: Sequence[str]
    settings: dict[str, Any]
    inputs: Callable[[int], dict[str, str]]
    wanted: Callable[[int], str]
    alone: bool = False

    def path(self, fold: int) -> Path:
        return self.folder / f"fold{fold}" / f"{self.name}.safetensors"

    def known(self, fold: int) -> Fit | None:
        """The head of an earlier run or job with the same inputs and settings."""
        try:
            header, head = load_head(self.path(fold))
        except InputError:
            return None
        if last_digest(header) != self.wanted(fold) or header.get("fold") != fold:
            return None
        return Fit(head, header["curves"], header["best_epoch"], outputs=header.get("outputs"))

    def taken_over(self, say: Callable[[str], None]) -> Callable[[int], Fit | None]:
        """:meth:`known`, said aloud."""

        def known(fold: int) -> Fit | None:
            fit = self.known(fold)
            if fit is not None:
                say(f"fold {fold}: taken over from an earlier run")
            return fit

        return known

    def keep(self, result: FoldResult) -> None:
        """Write the head of a fold.

        Raises:
            MachineError: it cannot be written.
        """
        extra: dict[str, Any] = {"alone": True} if self.alone else {}
        if result.fit.outputs is not None:
            extra |= {"target": self.settings["target"], "outputs": result.fit.outputs}
        header = make_header(
            "head",
            settings={k: v for k, v in self.settings.items() if k != "folds"},
            history=[step(self.command, self.settings, self.inputs(result.fold))],
            fold=result.fold,
            train=result.parts["train"],
            val=result.parts["val"],
            classes=list(self.classes),
            best_epoch=result.fit.best_epoch,
            curves=result.fit.curves,
            **extra,
        )
        save_head(self.path(result.fold), result.fit.head, header)

    def discard(self, folds: int) -> None:
        """Remove the heads of these inputs and settings, and the folders that are empty then."""
        for fold in range(1, folds + 1):
            if self.known(fold) is not None:
                self.path(fold).unlink()
        for folder in (*(self.path(fold).parent for fold in range(1, folds + 1)), self.folder):
            with suppress(OSError):
                folder.rmdir()

    def by_jobs(self, folds: int) -> set[int]:
        """Folds (from 1) that jobs of their own have trained, with whatever settings."""
        found = set()
        for fold in range(1, folds + 1):
            try:
                if load_head(self.path(fold))[0].get("alone"):
                    found.add(fold)
            except InputError:
                pass
        return found

    def check_collected(self, folds: int) -> None:
        """Where some folds were trained by jobs, all were, and as this run would.

        Raises:
            InputError: some are missing, or were made from other inputs or settings.
        """
        there = self.by_jobs(folds)
        missing = [k for k in range(1, folds + 1) if self.known(k) is None]
        if there and missing:
            other = [k for k in missing if self.path(k).exists()]
            absent = [k for k in missing if k not in other]
            parts = [f"{_named(absent)} missing"] if absent else []
            parts += [f"{_named(other)} of other inputs or settings, or damaged"] if other else []
            again = ", ".join(f"`lrmil {self.command} --fold {k}`" for k in missing[:3])
            more = " and so on" if len(missing) > 3 else ""
            raise InputError(
                f"{self.folder}: of folds that jobs trained, {' and '.join(parts)}; run {again}{more} with the options "
                "of the others"
            )


def _named(folds: Sequence[int]) -> str:
    return f"fold {folds[0]} is" if len(folds) == 1 else f"folds {', '.join(map(str, folds))} are"


def check_fold_number(fold: int | None, folds: int) -> None:
    """``--fold`` names one of the folds.

    Raises:
        UsageError: it does not.
    """
    if fold is not None and not 1 <= fold <= folds:
        raise UsageError(f"--fold {fold}: there are folds 1 to {folds}")


@contextmanager
def only_job(path: Path, fold: int) -> Iterator[None]:
    """Nobody else trains the fold meanwhile.

    Raises:
        UsageError: somebody does.
    """
    with claimed(path) as mine:
        if not mine:
            raise UsageError(f"{path.parent}: fold {fold} is being trained by another job; wait for it")
        yield
