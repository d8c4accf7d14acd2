"""Stage 2, step 2: the LR student MIL head (method 6, equations 3 to 6), fold by fold without leaks (method 5.2)."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from lrmil_cli.distill.hr_tokens import PairedSlide
from lrmil_cli.distill.losses import bag_distillation, hard_attention, hard_feature, select_regions, soft_attention
from lrmil_cli.distill.regions import REGION_ATTENTION, region_scores
from lrmil_cli.errors import InputError, UsageError
from lrmil_cli.files.features import Features
from lrmil_cli.files.manifest import Manifest
from lrmil_cli.files.tables import read_table
from lrmil_cli.heads import Bag, MILHead, MILOutput
from lrmil_cli.training.crossval import HeadSpec, seeded_head
from lrmil_cli.training.loop import ExtraTerms, TrainSettings, fit_head


@dataclass(frozen=True)
class DistillSettings:
    """Weights and forms of the distillation terms. Defaults and their sources: method 6.2 to 6.6."""

    lambda_bag: float = 1.0
    lambda_soft: float = 1.0
    lambda_hard: float = 0.5
    temperature_bag: float = 1.0
    temperature_attention: float = 1.0
    region_attention: str = "logmeanexp"
    soft_reduction: str = "sum"
    hard: str = "attention"
    k: int = 4
    unmatched: str = "leave-out"
    missing_teacher: str = "error"
    attention_row: str = "predicted"
    crossfit: int = 0

    def __post_init__(self) -> None:
        for name, value, choices in (
            ("--region-attention", self.region_attention, REGION_ATTENTION),
            ("--soft-reduction", self.soft_reduction, ("sum", "instances")),
            ("--hard", self.hard, ("attention", "feature")),
            ("--unmatched", self.unmatched, ("leave-out", "zero")),
            ("--missing-teacher", self.missing_teacher, ("error", "ce-only")),
            ("--attention-row", self.attention_row, ("predicted", "label")),
        ):
            if value not in choices:
                raise UsageError(f"{name} {value}: choose one of {', '.join(choices)}")
        if min(self.temperature_bag, self.temperature_attention) <= 0 or self.k < 1:
            raise UsageError("temperatures must be above 0 and --k at least 1")

    @property
    def uses_teacher(self) -> bool:
        """Whether any term needs the teacher at all."""
        return max(self.lambda_bag, self.lambda_soft, self.lambda_hard) > 0

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


#: Rows of the paper's Table 3 (method 9), and the parity preset of the official code.
PRESETS: dict[str, dict[str, Any]] = {
    "lrmil": {},
    "lr-only": {"lambda_bag": 0.0, "lambda_soft": 0.0, "lambda_hard": 0.0},
    "patch": {"lambda_bag": 0.0, "lambda_soft": 0.0, "lambda_hard": 0.0},
    "bag": {"lambda_soft": 0.0, "lambda_hard": 0.0},
    "bag-soft": {"lambda_hard": 0.0},
    "bag-hard": {"lambda_soft": 0.0},
    "official-code": {"region_attention": "mean-logit", "unmatched": "zero", "soft_reduction": "instances", "hard": "feature"},
}


def preset_settings(preset: str, changes: dict[str, Any]) -> DistillSettings:
    """Settings of a preset with the user's own values on top.

    Raises:
        UsageError: unknown preset or value.
    """
    if preset not in PRESETS:
        raise UsageError(f"--preset {preset}: choose one of {', '.join(PRESETS)}")
    return replace(DistillSettings(**PRESETS[preset]), **changes)


def preset_warning(preset: str, encoder_is_distilled: bool) -> str | None:
    """A preset that gets the other kind of encoder would give its result the wrong name."""
    if preset == "lr-only" and encoder_is_distilled:
        return "preset lr-only expects the HR encoder as it is, but this one was distilled (that is preset patch)"
    if preset != "lr-only" and not encoder_is_distilled:
        return f"preset {preset} expects an encoder made by distill-encoder, but this one was not distilled"
    return None


@dataclass
class Target:
    """What the teacher says of one slide: bag logits [C], region scores [N_l], which regions have HR tiles."""

    logits: Tensor
    region: Tensor
    matched: Tensor
    selection: tuple[Tensor, Tensor] | None


def region_parents(paired: PairedSlide, n_hr: int, rows: np.ndarray | None = None) -> np.ndarray:
    """LR tile (row of the LR table) of each HR tile, int64 [N_h], -1 for none.

    Args:
        rows: int64 [P], which HR tile each pair is about, -1 for one that is not there; by default as the HR table counts.
    """
    rows = paired.hr_index if rows is None else rows
    parent = np.full(n_hr, -1, np.int64)
    parent[rows[rows >= 0]] = paired.lr_index[paired.region][rows >= 0]
    return parent


def to_read_rows(parents: Tensor, table: str | Path, coords: Tensor) -> Tensor:
    """Parents as rows of an LR bag from which tiles that cannot be decoded were left out.

    Args:
        parents: int64 [N_h], rows of the LR table; table: its path; coords: int64 [N_l, 2], corners of the tiles in the bag.
    """
    rows = find_rows(read_table(table, "tiles")[1][["x", "y"]].to_numpy(), coords.cpu().numpy())
    # A tile without parent has -1, which is the last one here.
    return torch.from_numpy(np.append(rows, -1))[parents.cpu()].to(parents.device)


def find_rows(wanted: np.ndarray, corners: np.ndarray) -> np.ndarray:
    """For each of ``wanted`` int [M, 2] its row in ``corners`` int [N, 2], -1 where it is not there; int64 [M]."""
    at = {c: row for row, c in enumerate(map(tuple, corners.tolist()))}
    return np.array([at.get(c, -1) for c in map(tuple, wanted.tolist())], np.int64)


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


def distillation_terms(
    out: MILOutput, target: Target, settings: DistillSettings, classifier: nn.Linear | None = None
) -> dict[str, tuple[float, Tensor]]:
    """The terms of equation 6 besides the cross-entropy: ``{name: (lambda, loss)}``, only those that are on."""
    terms: dict[str, tuple[float, Tensor]] = {}
    if settings.lambda_bag:
        terms["bag_kd"] = (settings.lambda_bag, bag_distillation(out.logits, target.logits, settings.temperature_bag))
    if settings.lambda_soft:
        terms["soft"] = (settings.lambda_soft, soft_attention(
            out.scores, target.region, target.matched, settings.temperature_attention, settings.soft_reduction))
    if settings.lambda_hard and target.selection is not None:
        if settings.hard == "feature":
            terms["hard"] = (settings.lambda_hard, hard_feature(out.extra["instances"], classifier, *target.selection))
        else:
            terms["hard"] = (settings.lambda_hard, hard_attention(out.scores, *target.selection))
    return terms


@dataclass
class HighResolution:
    """The HR side of a cohort, in manifest order; None where a slide was not asked for, or has no features or pairs.

    Attributes:
        bags: N_h tiles each; parents: int64 [N_h] each, LR tile of each HR tile, -1 for none; headers: of the feature files.
        rows: row in the bag of each HR tile of the pairs table, see :func:`align`.
        inputs: digests of what was read; ratio: HR tiles along the side of an LR tile.
    """

    bags: list[Bag | None]
    parents: list[Tensor | None]
    headers: list[dict[str, Any] | None] = field(default_factory=list)
    rows: list[np.ndarray | None] = field(default_factory=list)
    inputs: dict[str, str] = field(default_factory=dict)
    ratio: int = 1


def align(paired: PairedSlide, features: Features, where: str) -> np.ndarray:
    """Row in a feature file of each HR tile of a pairs table, int64 [P]; -1 for tiles that could not be decoded.

    Raises:
        InputError: they come from different tile tables.
    """
    n, bad = len(features.coords), int(features.header.get("bad_tiles", 0))
    if paired.hr_index.max() < n and (features.coords[paired.hr_index] == paired.hr_boxes[:, :2]).all():
        return paired.hr_index
    rows = find_rows(paired.hr_boxes[:, :2], features.coords) if bad else np.full(1, -1)
    if (rows < 0).sum() > bad or not (rows >= 0).any():
        raise InputError(f"{where}: its HR tiles are not those of the pairs table of {paired.slide_id}; "
                         "run `lrmil match` and `lrmil train-teacher` on the same tiles")
    return rows


def fold_targets(
    head: MILHead, slides: list[int], high: HighResolution, n_lr: list[int], settings: DistillSettings, ids: list[str],
    labels: list[int],
) -> dict[int, Target]:
    """Targets of the training slides of a fold.

    Raises:
        InputError: a slide has no teacher target and ``missing_teacher`` is ``error``.
    """
    targets: dict[int, Target] = {}
    missing = []
    for i in slides:
        if high.bags[i] is None or high.parents[i] is None or not bool((high.parents[i] >= 0).any()):
            missing.append(ids[i])
            continue
        targets[i] = make_target(head, high.bags[i], high.parents[i], n_lr[i], settings, labels[i])
    if missing and settings.missing_teacher == "error":
        raise InputError(f"slide {missing[0]}: no HR features or no pairs, so the teacher says nothing of it "
                         f"({len(missing)} slide(s)); add them, or --missing-teacher ce-only")
    return targets


def check_no_leak(head_header: dict[str, Any], test: list[str], fold: int) -> None:
    """A teacher head must not have trained or been selected on a test slide of the student's fold (method 5.2).

    Raises:
        InputError: it has.
    """
    seen = set(head_header.get("train", [])) | set(head_header.get("val", []))
    leaked = sorted(seen & set(test))
    if leaked:
        raise InputError(f"fold {fold}: the teacher's head was trained with slide {leaked[0]}, which is a test slide of this fold; "
                         "student and teacher must use the same folds.csv")


def crossfit_targets(
    manifest: Manifest, train: list[int], high: HighResolution, n_lr: list[int], settings: DistillSettings,
    spec: HeadSpec, training: TrainSettings, fold: int, ids: list[str],
) -> dict[int, Target]:
    """Cross-fitting inside a fold's training part: each slide is taught by an inner head that did not see it (method 5.2).

    Raises:
        InputError: as :func:`fold_targets`, or too few patients for the inner folds.
    """
    from sklearn.model_selection import GroupShuffleSplit, StratifiedGroupKFold

    labels = np.array([manifest.classes.index(e.label) for e in manifest])
    patients = np.array([e.patient_id for e in manifest])
    usable = np.array([i for i in train if high.bags[i] is not None])
    if min(len(set(patients[usable][labels[usable] == c])) for c in range(len(manifest.classes))) < settings.crossfit:
        raise InputError(f"fold {fold}: too few patients of a class for --crossfit {settings.crossfit}; lower it or leave it out")
    splitter = StratifiedGroupKFold(settings.crossfit, shuffle=True, random_state=training.seed)
    targets: dict[int, Target] = {}
    bags = [b if b is not None else Bag(torch.zeros(1, 1)) for b in high.bags]
    first = bags[int(usable[0])].features
    for n, (inner, held) in enumerate(splitter.split(usable, labels[usable], patients[usable])):
        groups = patients[usable][inner]
        early = GroupShuffleSplit(1, test_size=max(1, len(set(groups)) // 8), random_state=training.seed + 100 * fold + n)
        fitted, watched = (usable[inner][part].tolist() for part in next(early.split(inner, groups=groups)))
        head = seeded_head(spec, first.shape[1], len(manifest.classes), training.seed + 100 * fold + n).to(first.device)
        fit_head(head, bags, labels.tolist(), fitted, watched, training)
        targets |= fold_targets(head, usable[held].tolist(), high, n_lr, settings, ids, labels.tolist())
    missing = [i for i in train if i not in targets]
    return targets | fold_targets(head, missing, high, n_lr, settings, ids, labels.tolist()) if missing else targets


def terms_of_fold(
    targets: dict[int, Target], settings: DistillSettings, seed: int
) -> ExtraTerms:
    """The function that the training loop calls for each training bag.

    The classifier of ``hard="feature"`` belongs to no head; it is trained by its own optimiser inside the closure.
    """
    classifier: nn.Linear | None = None
    optimizer: torch.optim.Optimizer | None = None

    def terms(i: int, out: MILOutput) -> dict[str, tuple[float, Tensor]]:
        nonlocal classifier, optimizer
        if i not in targets:
            return {}
        if settings.hard == "feature" and settings.lambda_hard and classifier is None:
            instances = out.extra["instances"]
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                classifier = nn.Linear(instances.shape[1], 2).to(instances.device)
            optimizer = torch.optim.Adam(classifier.parameters(), lr=1e-4)
        elif optimizer is not None:
            # Gradients of the last backward pass are applied here, one step behind the head's.
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return distillation_terms(out, targets[i], settings, classifier)

    return terms


def matched_counts(parents: list[Tensor | None], n_lr: list[int], ratio: int) -> dict[str, int]:
    """Regions of the slides that a teacher speaks of: matched, unmatched, incomplete (method 6.6)."""
    counts = {"matched": 0, "unmatched": 0, "incomplete": 0}
    for parent, n in zip(parents, n_lr):
        if parent is None:
            continue
        children = np.bincount(parent[parent >= 0].cpu().numpy(), minlength=n)
        counts["matched"] += int((children > 0).sum())
        counts["unmatched"] += int((children == 0).sum())
        counts["incomplete"] += int(((children > 0) & (children < ratio**2)).sum())
    return counts


def check_no_label_leak(encoder_header: dict[str, Any] | None, test: list[str], fold: int) -> None:
    """An LR encoder that was distilled with a teacher's attention must not have learned from a test slide's label (method 4.6).

    Raises:
        InputError: it has.
    """
    leaked = sorted(set((encoder_header or {}).get("label_slides", [])) & set(test))
    if leaked:
        raise InputError(f"fold {fold}: the LR encoder learned from the teacher's attention on slide {leaked[0]} (--final-loss attention), so from its label, "
                         "and it is a test slide of this fold; make one encoder a fold (distill-encoder --slides --fold)")


def encoder_leak(encoder_header: dict[str, Any] | None, folds: pd.DataFrame, names: list[str]) -> bool:
    """Whether the LR encoder has seen pixels of a test slide (method 4.4)."""
    seen = set((encoder_header or {}).get("slides", []))
    return any(seen & set(folds.loc[folds[n] == "test", "slide_id"]) for n in names)
