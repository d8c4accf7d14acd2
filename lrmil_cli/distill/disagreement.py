"""The held-out slides where teacher and student disagree most, as a picture: where each of them looks."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lrmil_cli.distill.attention_agreement import teacher_regions
from lrmil_cli.distill.student_files import Student
from lrmil_cli.errors import InputError
from lrmil_cli.files.atomic import remove, write_bytes
from lrmil_cli.qupath.colours import multiples
from lrmil_cli.qupath.pictures import draw_attention, draw_legend, pale, scanned_part
from lrmil_cli.slide_places import find_slide
from lrmil_cli.slides.slide import open_slide, reopening
from lrmil_cli.training.high_resolution import HighResolution
from lrmil_cli.training.teacher import Teacher

#: Slides that are shown; pixels of a picture of one.
MOST, SIDE = 4, 450


@dataclass(frozen=True)
class Apart:
    """A held-out slide of a fold: its index in the manifest, what teacher and student say of it [C], and how far apart
    that is (half of the summed differences, 0 to 1)."""

    index: int
    fold: int
    teacher: np.ndarray
    student: np.ndarray
    distance: float


def farthest_apart(guide: Teacher, student: Student, ids: list[str], known: list[bool]) -> list[Apart]:
    """The held-out slides whose answers by teacher and student are farthest apart, at most :data:`MOST`, none twice.

    Args:
        ids: of the slides in the order of the manifest; known: of which the HR side is known.
    """
    rows = guide.predictions().set_index(["slide_id", "fold"])
    columns = [f"prob_{c}" for c in guide.classes]
    at = {s: i for i, s in enumerate(ids)}
    found: dict[int, Apart] = {}
    for r in student.results:
        for slide_id, own in zip(r.parts["test"], r.probabilities):
            i = at[slide_id]
            if known[i] and (slide_id, r.fold) in rows.index:
                theirs = rows.loc[(slide_id, r.fold), columns].to_numpy(np.float64).reshape(-1)
                apart = Apart(i, r.fold, theirs, np.asarray(own, np.float64), float(np.abs(theirs - own).sum() / 2))
                if i not in found or found[i].distance < apart.distance:
                    found[i] = apart
    return sorted(found.values(), key=lambda a: (-a.distance, a.index))[:MOST]


def draw_disagreement(
    path: Path,
    guide: Teacher,
    student: Student,
    high: HighResolution,
    ids: list[str],
    labels: list[str],
    tiles: dict[str, Any],
    how: str,
    device: torch.device,
) -> None:
    """Write a PNG with a row a slide: the slide, where the teacher looks, where the student looks.

    Args:
        ids, labels: of the slides in the order of the manifest; tiles: settings of the LR tiles.
        how: region scores of the teacher, as in ``region_scores``.

    Raises:
        MachineError: it cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    chosen = farthest_apart(guide, student, ids, [s is not None for s in high.slides])
    if not chosen:
        remove(path)
        return
    figure = Figure(figsize=(10.5, 3.6 * len(chosen) + 0.8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(chosen), 3, squeeze=False)
    for (left, middle, right), case in zip(axes, chosen):
        bags = student.bags_of(case.fold)
        bag, about = bags.all.once(case.index), bags.headers[case.index]["slide"]
        slide = high.slides[case.index]
        assert slide is not None, "those were left out"
        teacher = guide.head(case.fold)[1].to(device)
        region, matched = teacher_regions(teacher, high.bags.once(case.index), slide.parent, len(bag.features), how)
        head = next(r.fit.head for r in student.results if r.fold == case.fold)
        with torch.inference_mode():
            own = head(*bag).attention.cpu().double().numpy()
        theirs = torch.softmax(region[matched].double(), 0).cpu().numpy()
        assert bag.coords is not None, "features have them"
        corners = bag.coords.cpu().numpy()
        side = tiles["tile_px"] * tiles["mpp"] / about["mpp"]
        image, extent = _slide_image(about, corners, side)
        for ax, shown in ((left, image), (middle, pale(image)), (right, pale(image))):
            ax.imshow(shown, extent=extent, interpolation="bilinear")
            ax.set(xlim=extent[:2], ylim=extent[2:], xticks=[], yticks=[])
        _paint(middle, corners[matched.cpu().numpy()], side, theirs)
        _paint(right, corners, side, own)
        left.set_title(f"{ids[case.index]}, label {labels[case.index]}", fontsize=10, parse_math=False)
        for ax, who, said in ((middle, "teacher", case.teacher), (right, "student", case.student)):
            best = int(said.argmax())
            ax.set_title(f"{who}: {guide.classes[best]} {said[best]:.2f}", fontsize=10, parse_math=False)
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
