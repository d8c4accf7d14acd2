"""What the teacher says of each slide: bag logits and region scores, fold by fold without leaks (distill/README 5)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lrmil_cli.distill.losses import select_regions
from lrmil_cli.distill.regions import region_scores
from lrmil_cli.distill.settings import DistillSettings
from lrmil_cli.errors import InputError
from lrmil_cli.files.manifest import Manifest
from lrmil_cli.heads import Bag, MILHead
from lrmil_cli.progress import phase
from lrmil_cli.targets.outputs import Outputs
from lrmil_cli.training.crossval import HeadSpec, seeded_head
from lrmil_cli.training.folds import strata
from lrmil_cli.training.high_resolution import HighResolution
from lrmil_cli.training.loop import TrainSettings, fit_head
from lrmil_cli.training.objectives import objective_of


@dataclass
class Target:
    """What the teacher says of one slide: bag logits [C], region scores [N_l], which regions have HR tiles."""

    logits: Tensor
    region: Tensor
    matched: Tensor
    selection: tuple[Tensor, Tensor] | None


def make_target(
    head: MILHead, hr: Bag, parent: Tensor, n_lr: int, settings: DistillSettings, label: int | None = None
) -> Target:
    """Run the teacher head over the HR bag of a slide and carry its scores to the regions. Once a slide and fold.

    Args:
        hr: N_h tiles; parent: int64 [N_h]; n_lr: LR tiles of the slide.
        label: class index of the slide; with ``attention_row="label"`` a head with a row a class gives the row of this
            class, so that a teacher that errs on a training slide does not teach where the wrong class is.
    """
    with torch.inference_mode():
        out = head(*hr)
    row = out.scores
    if settings.attention_row == "label" and out.class_scores is not None and label is not None:
        row = out.class_scores[label]
    scores = row.clone()
    region, matched = region_scores(scores, parent, n_lr, settings.region_attention)
    if settings.unmatched == "zero":  # parity with the official code: unmatched tiles count as scored 0
        matched = torch.ones_like(matched)
    return Target(out.logits.clone(), region, matched, select_regions(region, matched, settings.k))


def fold_targets(
    head: MILHead,
    slides: Sequence[int],
    high: HighResolution,
    n_lr: Sequence[int],
    settings: DistillSettings,
    ids: Sequence[str],
    labels: Sequence[int] | None,
) -> dict[int, Target]:
    """Targets of the training slides of a fold.

    Args:
        head: the teacher's of this fold; slides: indices of the slides it is asked about.
        high, n_lr, ids, labels: HR side, LR tiles, id and class of every slide of the manifest; no classes of a task
            that has none.

    Raises:
        InputError: a slide has no teacher target and ``missing_teacher`` is ``error``.
    """
    targets: dict[int, Target] = {}
    missing = []
    with phase("what the teacher says of", len(slides), "slide") as told:
        for i in slides:
            told.advance()
            own = high.sides[i]
            if own is None or not bool((own.parent >= 0).any()):
                missing.append(ids[i])
                continue
            label = None if labels is None else labels[i]
            targets[i] = make_target(head, high.bags.once(i), own.parent, n_lr[i], settings, label)
    if missing and settings.missing_teacher == "error":
        raise InputError(
            f"slide {missing[0]}: no HR features or no pairs, so the teacher says nothing of it "
            f"({len(missing)} slide(s)); add them, or --missing-teacher ce-only"
        )
    return targets


def crossfit_targets(
    manifest: Manifest,
    train: Sequence[int],
    high: HighResolution,
    n_lr: Sequence[int],
    settings: DistillSettings,
    spec: HeadSpec,
    training: TrainSettings,
    fold: int,
    ids: Sequence[str],
    like: Outputs | None = None,
) -> dict[int, Target]:
    """Cross-fitting inside a fold's training part: each slide is taught by an inner head that did not see it.

    See distill/README 5.3.

    Args:
        train: indices of the training slides; high, n_lr, ids: as of :func:`fold_targets`.
        spec, training: of the inner heads, which are the teacher's kind of head; like: how its numbers are read.

    Raises:
        InputError: as :func:`fold_targets`, or too few patients for the inner folds.
    """
    from sklearn.model_selection import GroupShuffleSplit, StratifiedGroupKFold

    labels = strata(manifest, settings.crossfit)
    own = labels.tolist() if manifest.task.classes else None
    patients = np.array([e.patient_id for e in manifest])
    usable = np.array([i for i in train if high.sides[i] is not None], np.int64)  # also where there is none
    if min(len(set(patients[usable][labels[usable] == c])) for c in np.unique(labels)) < settings.crossfit:
        raise InputError(
            f"fold {fold}: too few patients of a class or kind for --crossfit {settings.crossfit}; lower it, or leave "
            "it out"
        )
    splitter = StratifiedGroupKFold(settings.crossfit, shuffle=True, random_state=training.seed)
    targets: dict[int, Target] = {}
    with phase("inner teachers", settings.crossfit, "fold") as told:
        for n, (inner, held) in enumerate(splitter.split(usable, labels[usable], patients[usable])):
            seed, groups = training.seed + 100 * fold + n, patients[usable][inner]
            early = GroupShuffleSplit(1, test_size=max(1, len(set(groups)) // 8), random_state=seed)
            fitted, watched = (usable[inner][part].tolist() for part in next(early.split(inner, groups=groups)))
            weighted, device = training.class_weights, high.bags.device
            objective = objective_of(manifest, fitted, weighted=weighted, like=like, device=device)
            head = seeded_head(spec, high.bags.dim, objective, seed).to(device)
            fit_head(
                head,
                high.bags,
                objective,
                fitted,
                watched,
                training,
            )
            targets |= fold_targets(head, usable[held].tolist(), high, n_lr, settings, ids, own)
            told.advance()
    high.bags.forget()
    missing = [i for i in train if i not in targets]  # of these no head can say anything
    return targets | fold_targets(head, missing, high, n_lr, settings, ids, own)
