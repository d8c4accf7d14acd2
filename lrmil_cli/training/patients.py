"""Bags of patients: the tiles of all slides of a patient, one slide after the other (training/README 1.2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from lrmil_cli.files.header import last_digest, step
from lrmil_cli.files.manifest import Manifest
from lrmil_cli.files.patients import slides_by_patient
from lrmil_cli.heads import Bag
from lrmil_cli.training.bags import Bags
from lrmil_cli.training.folds import fold_names
from lrmil_cli.training.high_resolution import HighBag, HighResolution
from lrmil_cli.training.streamed import Room, Streamed


def slide_folds(manifest: Manifest, folds: pd.DataFrame) -> pd.DataFrame:
    """Who is what, slide by slide, in the folds of a manifest of patients; the same folds of one of slides."""
    if manifest.of is None:
        return folds
    own = folds.set_index("slide_id").loc[[e.patient_id for e in manifest.of], fold_names(folds)].reset_index(drop=True)
    return own.assign(slide_id=[e.slide_id for e in manifest.of])


def patient_bags(manifest: Manifest, slides: Bags[Bag], room: Room) -> Bags[Bag]:
    """The bags of a manifest of patients, of those of its slides; these themselves of a manifest of slides."""
    if manifest.of is None:
        return slides
    own = slides_by_patient(manifest.of)
    headers = [_header(manifest.of, slides, index) for index in own]
    return Bags(_joined(slides.all, own, room), headers, slides)


def patient_targets(manifest: Manifest, high: HighResolution, n_lr: Sequence[int], room: Room) -> HighResolution:
    """The HR side of a manifest of patients, of that of its slides; ``high`` itself of a manifest of slides.

    Args:
        n_lr: LR tiles of each slide: those of a slide follow those of the slides before it.
    """
    if manifest.of is None:
        return high
    own = slides_by_patient(manifest.of)
    sides = [_side([high.slides[i] for i in index], [n_lr[i] for i in index]) for index in own]
    return replace(high, bags=_joined(high.bags, own, room), patients=sides)


def _side(slides: Sequence[HighBag | None], n_lr: Sequence[int]) -> HighBag | None:
    """The teacher must see all slides of a patient, or says nothing of the patient."""
    parents, before = [], 0
    for slide, count in zip(slides, n_lr):
        if slide is None:
            return None
        parents.append(torch.where(slide.parent < 0, slide.parent, slide.parent + before))
        before += count
    return HighBag(torch.cat(parents))


def _joined(slides: Streamed[Bag], own: Sequence[Sequence[int]], room: Room) -> Streamed[Bag]:
    """Bags of several slides each, read as those of the slides are."""
    counts = [sum(slides.counts[i] for i in index) for index in own]
    return Streamed(lambda n: union([slides.stored(i) for i in own[n]]), counts, slides.dim, room, slides.device)


def union(bags: Sequence[Bag]) -> Bag:
    """One bag of several, in their order; corners as if each slide lay below the one before it, so that no two tiles
    are at one place and reading order goes slide by slide."""
    if len(bags) == 1:
        return bags[0]
    corners: list[Tensor] = []
    below = 0
    for bag in bags:
        assert bag.coords is not None, "feature files have corners"
        corners.append(bag.coords + torch.tensor([0, below]).to(bag.coords))
        below = int(corners[-1][:, 1].max()) + 1
    widest = torch.float32 if any(b.features.dtype == torch.float32 for b in bags) else bags[0].features.dtype
    return Bag(torch.cat([b.features.to(widest) for b in bags]), torch.cat(corners))


def _header(manifest: Manifest, slides: Bags[Bag], index: Sequence[int]) -> dict[str, Any]:
    """Of the first slide's feature file, with a step that is of all of them."""
    own = {manifest.entries[i].slide_id: last_digest(slides.headers[i]) for i in index}
    first = slides.headers[index[0]]
    return {**first, "history": [*(first.get("history") or []), step("patient", {}, own)]}
