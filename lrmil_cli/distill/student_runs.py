"""The students of a run trained: every seed, every fold, with the terms that the teacher adds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from lrmil_cli.distill.settings import DistillSettings
from lrmil_cli.distill.student_cohort import StudentCohort
from lrmil_cli.distill.student_files import Student
from lrmil_cli.distill.student_loss import bag_distance, terms_of_fold
from lrmil_cli.distill.teacher_targets import crossfit_targets, fold_targets
from lrmil_cli.heads import Bag
from lrmil_cli.training import crossval
from lrmil_cli.training.bags import Bags
from lrmil_cli.training.crossval import FoldResult, HeadSpec
from lrmil_cli.training.fold_files import FoldFiles
from lrmil_cli.training.folds import fold_names, members
from lrmil_cli.training.leaks import check_no_leak, patients_by_slide
from lrmil_cli.training.loop import ExtraTerms, TrainSettings, settings_of
from lrmil_cli.training.objectives import Objective
from lrmil_cli.training.seeds import kept_heads


def train_runs(
    cohort: StudentCohort,
    head: HeadSpec,
    distill: DistillSettings,
    runs: Sequence[TrainSettings],
    keep: str | None,
    device: torch.device,
    kept: Sequence[dict[str, FoldFiles]],
    say: Callable[[str], None],
    warn: Callable[[str], None],
    fold: int | None = None,
) -> dict[str, Student]:
    """Train the distilled student and, if they are wanted, that of another encoder, and the LR-only one, which learns
    from the labels alone.

    Args:
        runs: settings of each seed; kept: of each of them, where the heads of each student are kept.
        fold: the one to train, None for all.
    """
    guide = cohort.guide
    like = (lambda k: None) if guide is None else (lambda k: guide.head(k)[0].get("outputs"))

    def fit(who: str, voice: str, n: int, **how: Any) -> list[FoldResult]:
        files = kept[n][who]
        voice += f"seed {n + 1}, " if len(runs) > 1 else ""
        how["who"] = "the baseline's head" if who == "lr_only" else "student"
        told = lambda text: say(voice + text)
        how |= {"known": files.taken_over(told), "done": files.keep, "only": fold, "say": told, "like": like}
        return crossval.train_folds(cohort.manifest, cohort.folds, spec=head, settings=runs[n], **how)

    def student(results: list[list[FoldResult]], bags_of: Callable[[int], Bags[Bag]]) -> Student:
        return Student(kept_heads(results, keep, runs[0].monitor, cohort.manifest.task), results, bags_of)

    untaught: set[str] = set()
    targets: dict[int, Any] = {}
    terms = [_terms(cohort, distill, training, device, untaught, targets) for training in runs]

    def taught(who: str, voice: str, bags_of: Callable[[int], Bags[Bag]]) -> Student:
        found = [fit(who, voice, n, bags_of_fold=bags_of, extra_terms=own) for n, own in enumerate(terms)]
        return student(found, bags_of)

    students = {"distilled": taught("distilled", "", cohort.bags_of)}
    if (other := cohort.also) is not None:
        students["also"] = taught("also", f"{other.title}, ", other.bags_of)
    if untaught:
        warn(
            f"{len(untaught)} slide(s) had no teacher target and were trained with the labels alone "
            "(--missing-teacher ce-only)"
        )
    if (bags := cohort.baseline) is not None:
        same = lambda fold: bags
        found = [fit("lr_only", "LR-only, ", n, bags_of_fold=same) for n in range(len(runs))]
        students["lr_only"] = student(found, same)
    return students


def _terms(
    cohort: StudentCohort,
    distill: DistillSettings,
    training: TrainSettings,
    device: torch.device,
    untaught: set[str],
    known: dict[int, Any],
) -> Callable[[int, list[str], Objective], ExtraTerms | None]:
    """For a fold and its training slides: the distillation terms, by the teacher's head of that fold alone.

    See distill/README 5.1. Training slides without a target are added to ``untaught``; ``known`` keeps the targets of
    each fold for other seeds, which hang on none.
    """
    guide, high, manifest, ids = cohort.guide, cohort.high, cohort.manifest, cohort.ids
    if not cohort.taught or guide is None or high is None:
        return lambda fold, train_ids, objective: None
    at = {s: i for i, s in enumerate(ids)}
    labels = [manifest.classes.index(str(e.label)) for e in manifest] if manifest.task.classes else None
    spec = HeadSpec(guide.header["settings"]["head"], guide.header["settings"]["options"])
    inner = settings_of(guide.header["settings"])  # inner teachers are trained as the teacher was

    def terms(fold: int, train_ids: list[str], objective: Objective) -> ExtraTerms:
        header, head = guide.head(fold)
        tested = members(cohort.folds, fold_names(cohort.folds)[fold - 1])["test"]
        check_no_leak(header, tested, fold, patients_by_slide(manifest))
        train = [at[s] for s in train_ids]
        n_lr = cohort.bags_of(fold).counts
        if fold in known:
            targets = known[fold]
        elif distill.crossfit:
            targets = crossfit_targets(
                manifest, train, high, n_lr, distill, spec, inner, fold, ids, header.get("outputs")
            )
        else:
            targets = fold_targets(head.to(device), train, high, n_lr, distill, ids, labels)
        known[fold] = targets
        untaught.update(ids[i] for i in train if i not in targets)
        return terms_of_fold(targets, distill, training.seed + fold, training.lr, bag_distance(objective, distill))

    return terms
