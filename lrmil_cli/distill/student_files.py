"""What stands beside a model of LRMIL: predictions of all who are compared, how alike they look, metrics, curves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from lrmil_cli.distill.attention_agreement import slide_agreement, teacher_regions
from lrmil_cli.distill.settings import DistillSettings
from lrmil_cli.evaluation.receipt import FILES, SEEDS, cost_of
from lrmil_cli.files.atomic import remove
from lrmil_cli.files.header import make_header
from lrmil_cli.files.manifest import Manifest
from lrmil_cli.files.tables import write_table
from lrmil_cli.heads import Bag
from lrmil_cli.progress import phase
from lrmil_cli.training import out_of_fold
from lrmil_cli.training.bags import Bags
from lrmil_cli.training.crossval import FoldResult
from lrmil_cli.training.high_resolution import HighResolution
from lrmil_cli.training.seeds import as_judged, seeds_table
from lrmil_cli.training.teacher import Teacher, write_curves


@dataclass(frozen=True)
class Student:
    """The heads that were trained and are kept, one a fold or several, and the LR bags that each fold reads.

    Attributes:
        runs: of each seed the results of all folds, those that are kept and the others.
    """

    results: list[FoldResult]
    runs: list[list[FoldResult]]
    bags_of: Callable[[int], Bags[Bag]]


def write_beside(
    model: Path,
    history: list[dict[str, Any]],
    manifest: Manifest,
    students: dict[str, Student],
    guide: Teacher | None,
    agreement: pd.DataFrame | None,
    metrics: pd.DataFrame,
) -> None:
    """Write the tables that the receipt and ``lrmil evaluate`` read, and the curves.

    What an earlier run left and this one does not make is removed, its receipt too: it would be untrue now.

    Args:
        model: the model file that all this is about; history: its own.
        students: ``distilled`` and, if they were trained, ``also`` and ``lr_only``.

    Raises:
        MachineError: a file cannot be written.
    """
    common: dict[str, Any] = {"settings": {}, "history": history}
    tables: dict[str, tuple[str, pd.DataFrame | None]] = {}
    said: dict[str, dict[str, Any]] = {}
    for who in FILES:
        judged = as_judged(students[who].results) if who in students else []
        rows = out_of_fold.predictions_table(manifest, judged) if judged else None
        tables[FILES[who]], said[FILES[who]] = ("predictions", rows), out_of_fold.table_header(manifest, judged)
    if guide is not None:
        about, rows = guide.predictions()
        tables[FILES["teacher"]] = ("predictions", rows)
        said[FILES["teacher"]] = {k: about[k] for k in ("target", "bag", "times") if k in about}
    several = len(students["distilled"].runs) > 1
    runs = {who: student.runs for who, student in students.items()}
    tables[SEEDS], said[SEEDS] = ("seeds", seeds_table(manifest, runs) if several else None), said[FILES["distilled"]]
    tables[".agreement.csv"] = ("agreement", agreement)
    tables[".metrics.csv"] = ("metrics", metrics)
    stem = model.with_suffix("")
    for ending in ("json", "html", "md", "png"):
        remove(f"{stem}.receipt.{ending}")
    for suffix, (kind, rows) in tables.items():
        if rows is None:
            remove(f"{stem}{suffix}")
        else:
            write_table(f"{stem}{suffix}", make_header(kind, **common, **said.get(suffix, {})), rows)
    curves = make_header("curves", **common)
    write_curves(Path(f"{stem}.curves.csv"), curves, students["distilled"].runs[0], task=manifest.task)


def agreement_table(
    guide: Teacher,
    students: dict[str, Student],
    high: HighResolution,
    ids: list[str],
    distill: DistillSettings,
    device: torch.device,
) -> pd.DataFrame | None:
    """Attention agreement of teacher and students on the held-out slides, one row a student and slide.

    None if the HR side of no such slide is known.
    """
    at = {s: i for i, s in enumerate(ids)}
    rows = []
    with phase("attention of students and teacher", len(ids), "slides") as told:
        for of_fold in zip(*(student.runs[0] for student in students.values())):  # of several seeds, the first
            fold, tested = of_fold[0].fold, of_fold[0].parts["test"]
            teacher = guide.head(fold)[1].to(device)
            for i in (at[s] for s in tested if high.sides[at[s]] is not None):
                told.advance()
                slide = high.sides[i]
                assert slide is not None, "those were left out"
                n_lr = next(iter(students.values())).bags_of(fold).counts[i]
                region, matched = teacher_regions(
                    teacher, high.bags.once(i), slide.parent, n_lr, distill.region_attention
                )
                for (who, student), r in zip(students.items(), of_fold):
                    found = slide_agreement(region, matched, r.fit.head, student.bags_of(fold).all.once(i), distill.k)
                    rows.append({"student": who, "slide_id": ids[i], "fold": fold, **found})
    order = list(students)
    rows.sort(key=lambda row: order.index(row["student"]))
    return pd.DataFrame(rows).astype({"rank_correlation": float, "overlap": float, "chance": float}) if rows else None


def costs(
    ids: list[str], tested: set[str], lr: Bags[Bag], high: HighResolution | None, also: Bags[Bag] | None
) -> dict[str, Any]:
    """Tiles and seconds of the held-out slides, at both resolutions where HR features are there; ``also``: those of
    another LR encoder."""
    index = [i for i, s in enumerate(ids) if s in tested]
    headers: dict[str, Sequence[dict[str, Any]]] = {}
    counts: dict[str, Sequence[int]] = {}
    if high is not None:
        there = [(i, hr) for i in index if (hr := high.slides[i]) is not None]
        headers["hr"], counts["hr"] = [hr.header for _, hr in there], [hr.count for _, hr in there]
        index = [i for i, _ in there]
    for side, bags in (("lr", lr), ("also", also)):
        if bags is not None:
            headers[side], counts[side] = [bags.headers[i] for i in index], [bags.counts[i] for i in index]
    return cost_of(headers, counts)
