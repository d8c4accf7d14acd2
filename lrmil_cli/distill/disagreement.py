"""The held-out slides where teacher and student disagree most, as a picture: where each of them looks."""

from __future__ import annotations

import io
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from lrmil_cli.distill.attention_agreement import teacher_regions
from lrmil_cli.distill.student_files import Student
from lrmil_cli.errors import InputError
from lrmil_cli.files.atomic import remove, write_bytes
from lrmil_cli.files.manifest import Manifest
from lrmil_cli.qupath.colours import multiples
from lrmil_cli.qupath.pictures import draw_attention, draw_legend, pale, scanned_part
from lrmil_cli.slide_places import find_slide
from lrmil_cli.slides.slide import open_slide, reopening
from lrmil_cli.targets.task import Task
from lrmil_cli.training.high_resolution import HighResolution
from lrmil_cli.training.out_of_fold import predictions_table
from lrmil_cli.training.teacher import Teacher

#: Slides that are shown; pixels of a picture of one.
MOST, SIDE = 4, 450


@dataclass(frozen=True)
class Apart:
    """A held-out slide of a fold: its id, what teacher and student say of it, and how far apart that is (by task)."""

    slide_id: str
    fold: int
    teacher: str
    student: str
    distance: float


def _classes(table: pd.DataFrame) -> tuple[np.ndarray, list[str]]:
    columns = [str(c) for c in table if str(c).startswith("prob_")]
    p = table[columns].to_numpy(np.float64)
    best = p.argmax(1)
    return p / 2, [f"{columns[n].removeprefix('prob_')} {own[n]:.2f}" for n, own in zip(best, p)]


def _numbers(table: pd.DataFrame) -> tuple[np.ndarray, list[str]]:
    own = table["predicted"].to_numpy(np.float64)
    return own[:, None], [f"{v:.4g}" for v in own]


def _ranks(table: pd.DataFrame) -> tuple[np.ndarray, list[str]]:
    ranks = table.groupby("fold")["risk"].rank(pct=True).to_numpy()  # risks of different heads have no common unit
    return ranks[:, None], [f"{g} risk, rank {100 * r:.0f} of 100" for g, r in zip(table["group"], ranks)]


#: Task -> of a predictions table rows [n, K] whose summed differences are the distance, and the answers as text.
ANSWERS = {"classification": _classes, "regression": _numbers, "survival": _ranks}


def farthest_apart(teacher: pd.DataFrame, student: pd.DataFrame, task: Task, known: Collection[str]) -> list[Apart]:
    """The held-out slides whose answers by teacher and student are farthest apart, at most :data:`MOST`, none twice.

    Of classes the distance is half of the summed differences of probabilities, of numbers the difference, of survival
    that of the ranks of the risks in the fold.

    Args:
        teacher, student: their out-of-fold predictions; known: slides whose HR side is known.
    """
    sides = []
    for table in (teacher, student):
        values, texts = ANSWERS[task.kind](table)
        sides.append({(str(i), int(k)): own for i, k, *own in zip(table["slide_id"], table["fold"], values, texts)})
    found: dict[str, Apart] = {}
    for (slide_id, fold), (own, text) in sides[1].items():
        if slide_id in known and (slide_id, fold) in sides[0]:
            value, said = sides[0][slide_id, fold]
            apart = Apart(slide_id, fold, said, text, float(np.abs(value - own).sum()))
            if slide_id not in found or found[slide_id].distance < apart.distance:
                found[slide_id] = apart
    order = {slide_id: n for n, slide_id in enumerate(student["slide_id"])}
    return sorted(found.values(), key=lambda a: (-a.distance, order[a.slide_id]))[:MOST]


def draw_disagreement(
    path: Path,
    guide: Teacher,
    student: Student,
    high: HighResolution,
    manifest: Manifest,
    tiles: dict[str, Any],
    how: str,
    device: torch.device,
) -> None:
    """Write a PNG with a row a slide: the slide, where the teacher looks, where the student looks.

    Args:
        tiles: settings of the LR tiles.
        how: region scores of the teacher, as in ``region_scores``.

    Raises:
        MachineError: it cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    entries = list(manifest)
    known = {e.slide_id for e, slide in zip(entries, high.slides) if slide is not None}
    own = predictions_table(manifest, student.runs[0])
    chosen = farthest_apart(guide.predictions()[1], own, manifest.task, known)
    if not chosen:
        remove(path)
        return
    figure = Figure(figsize=(10.5, 3.6 * len(chosen) + 0.8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(chosen), 3, squeeze=False)
    for (left, middle, right), case in zip(axes, chosen):
        index = next(i for i, e in enumerate(entries) if e.slide_id == case.slide_id)
        bags = student.bags_of(case.fold)
        bag, about = bags.all.once(index), bags.headers[index]["slide"]
        slide = high.slides[index]
        assert slide is not None, "those were left out"
        teacher = guide.head(case.fold)[1].to(device)
        region, matched = teacher_regions(teacher, high.bags.once(index), slide.parent, len(bag.features), how)
        head = next(r.fit.head for r in student.runs[0] if r.fold == case.fold)
        with torch.inference_mode():
            attention = head(*bag).attention.cpu().double().numpy()
        theirs = torch.softmax(region[matched].double(), 0).cpu().numpy()
        assert bag.coords is not None, "features have them"
        corners = bag.coords.cpu().numpy()
        side = tiles["tile_px"] * tiles["mpp"] / about["mpp"]
        image, extent = _slide_image(about, corners, side)
        for ax, shown in ((left, image), (middle, pale(image)), (right, pale(image))):
            ax.imshow(shown, extent=extent, interpolation="bilinear")
            ax.set(xlim=extent[:2], ylim=extent[2:], xticks=[], yticks=[])
        _paint(middle, corners[matched.cpu().numpy()], side, theirs)
        _paint(right, corners, side, attention)
        left.set_title(f"{case.slide_id}, label {entries[index].label}", fontsize=10, parse_math=False)
        for ax, who, said in ((middle, "teacher", case.teacher), (right, "student", case.student)):
            ax.set_title(f"{who}: {said}", fontsize=10, parse_math=False)
    draw_legend(figure, axes)
    sink = io.BytesIO()
    figure.savefig(sink, format="png", dpi=80)
    write_bytes(path, sink.getvalue())


def _paint(ax: Any, corners: np.ndarray, side: float, attention: np.ndarray) -> None:
    boxes = np.concatenate([corners, np.full_like(corners, round(side))], 1)
    draw_attention(ax, boxes, multiples(attention))


def _slide_image(
    about: dict[str, Any], corners: np.ndarray, side: float
) -> tuple[np.ndarray, tuple[float, float, float, float]]:
    """The slide, uint8 [H, W, 3], and its left, right, bottom and top in level-0 px; white where it is gone."""
    try:
        path = find_slide(about, "the features")
        with open_slide(path, slide_id=about["id"], slide_mpp=about["mpp"], **reopening(about)) as slide:
            image, scale_x, scale_y, corner = scanned_part(slide, SIDE)
        height, width = image.shape[:2]
        return image, (corner[0], corner[0] + width * scale_x, corner[1] + height * scale_y, corner[1])
    except InputError:
        low, high = corners.min(0), corners.max(0) + side
        return np.full((2, 2, 3), 255, np.uint8), (float(low[0]), float(high[0]), float(high[1]), float(low[1]))
