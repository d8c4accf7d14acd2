"""A slide and its attention as pictures: what was scanned, the outline of its tissue, a scale of colours that is the
same for every slide (pages/README 2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from lrmil_cli.errors import InputError
from lrmil_cli.qupath.colours import colours
from lrmil_cli.qupath.pictures import scanned_part
from lrmil_cli.slides.given import Given, read_mask
from lrmil_cli.slides.slide import Slide
from lrmil_cli.slides.tiles import find_tissue, settings_from_json

#: Longest side of the pictures of a slide, px, and of its thumbnail in the index.
SIDE, THUMBNAIL = 1400, 112
PALE = 0.55
#: Colour and cover of HR tiles that were read, and of candidates that were not.
KEPT, LEFT = (0.0, 122.0, 61.0, 0.6), (33.0, 102.0, 172.0, 0.18)
#: An outline of more corners than this is drawn with fewer.
MAX_CORNERS = 6000


@dataclass(frozen=True)
class View:
    """A picture of a slide.

    Attributes:
        image: uint8 [H, W, 3]; scale_x, scale_y: level-0 px per pixel of it; corner: [2], level-0 px.
        outlines: of the tissue, each [n, 2] in px of the image.
        of_slide: False where the slide could not be read, and the picture shows where its tiles lie.
    """

    image: np.ndarray
    scale_x: float
    scale_y: float
    corner: np.ndarray
    outlines: tuple[np.ndarray, ...]
    of_slide: bool

    def boxes(self, rows: Any) -> np.ndarray:
        """float64 [N, 4], left, top, right, bottom in px of the image, of tiles ``x, y, width, height``."""
        x, y, w, h = (rows[c].to_numpy(np.float64) for c in ("x", "y", "width", "height"))
        x, y = x - self.corner[0], y - self.corner[1]
        return np.stack([x / self.scale_x, y / self.scale_y, (x + w) / self.scale_x, (y + h) / self.scale_y], 1)


def view_of_slide(slide: Slide, record: dict[str, Any]) -> View:
    """The scanned part of a slide, with the outline of its tissue as the prediction found it.

    Raises:
        InputError: the slide is damaged.
    """
    image, scale_x, scale_y, corner = scanned_part(slide, SIDE)
    shrink = max(image.shape[:2]) / SIDE
    if shrink > 1:
        size = (max(1, round(image.shape[1] / shrink)), max(1, round(image.shape[0] / shrink)))
        scale_x, scale_y = scale_x * image.shape[1] / size[0], scale_y * image.shape[0] / size[1]
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    view = View(image, scale_x, scale_y, corner, (), True)
    if slide.given.mask is None and (given := _given_again(slide, record)) is not None:
        slide.given = given
    if slide.given.mask is None and (record.get("given") or {}).get("mask"):
        return view  # it is not known any more
    try:
        tissue = find_tissue(slide, settings_from_json(record["settings"]["tiles"], slide.slide_id).tissue)
    except (KeyError, TypeError, InputError):  # settings of another version
        return view
    found, _ = cv2.findContours(tissue.mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    scale = np.array([tissue.scale_x / scale_x, tissue.scale_y / scale_y])
    offset = corner / [scale_x, scale_y]
    rings = [(c[:, 0] + 0.5) * scale - offset for c in found]
    outlines: list[np.ndarray] = []
    for tolerance in (0.7, 1.5, 4.0, 10.0):
        outlines = [cv2.approxPolyDP(r.astype(np.float32), tolerance, True)[:, 0] for r in rings]
        outlines = [r for r in outlines if len(r) > 2]
        if sum(map(len, outlines)) <= MAX_CORNERS:
            break
    return View(image, scale_x, scale_y, corner, tuple(outlines), True)


def _given_again(slide: Slide, record: dict[str, Any]) -> Given | None:
    """The mask that the tissue of a prediction was given by, if its file is there and still the same."""
    about = record.get("given") or {}
    if not about.get("mask"):
        return None
    try:
        found = read_mask(about.get("mask_file", ""), slide.width, slide.height)
    except InputError:
        return None
    return found if found.mask_digest == about["mask"] else None


def view_without_slide(about: dict[str, Any], rows: Any) -> View:
    """Where the tiles of a slide lie, on white: all that is known of it without its file."""
    left, top, width, height = about.get("bounds") or (0, 0, about["width"], about["height"])
    scale = max(width, height) / SIDE
    image = np.full((max(1, round(height / scale)), max(1, round(width / scale)), 3), 255, np.uint8)
    view = View(image, scale, scale, np.array([left, top], np.float64), (), False)
    paint(image, view.boxes(rows), np.tile([205.0, 205.0, 205.0, 1.0], (len(rows), 1)))
    return view


def attention_picture(view: View, rows: Any, times: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 3]: the slide in pale grey, see-through in the colours of its tiles' multiples [N]."""
    image = _pale(view)
    paint(image, view.boxes(rows), colours(times))
    return image


def kept_picture(view: View, rows: Any, kept: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 3]: the slide in pale grey, green where tiles were read, blue where they were candidates alone."""
    image = _pale(view)
    paint(image, view.boxes(rows), np.where(kept[:, None] > 0, KEPT, LEFT))
    return image


def _pale(view: View) -> np.ndarray:
    grey = cv2.cvtColor(view.image, cv2.COLOR_RGB2GRAY).astype(np.float32)
    return np.repeat((255 - (255 - grey) * PALE).astype(np.uint8)[..., None], 3, 2)


def paint(image: np.ndarray, boxes: np.ndarray, of: np.ndarray) -> None:
    """Cover boxes [N, 4] (px) of an image by colours with cover [N, 4], in place; each pixel once."""
    layer = np.zeros((*image.shape[:2], 4), np.float32)
    edges = np.rint(boxes).astype(np.int64)
    edges[:, 2:] = np.maximum(edges[:, 2:], edges[:, :2] + 1)
    edges = np.clip(edges, 0, None)
    for (x0, y0, x1, y1), colour in zip(edges.tolist(), of):
        layer[y0:y1, x0:x1] = colour
    cover = layer[..., 3:]
    image[:] = np.rint(image * (1 - cover) + layer[..., :3] * cover).astype(np.uint8)


def jpeg(image: np.ndarray, at_most: int) -> bytes:
    """A picture as JPEG of at most so many bytes: first less quality, then fewer pixels."""
    while True:
        for quality in (90, 82, 74, 66):
            ok, data = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
            assert ok
            if data.size <= at_most or max(image.shape[:2]) < 64:
                return data.tobytes()
        size = (max(1, image.shape[1] * 4 // 5), max(1, image.shape[0] * 4 // 5))
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)


def thumbnail(view: View) -> bytes:
    """A small JPEG of the slide, for the index."""
    scale = THUMBNAIL / max(view.image.shape[:2])
    size = (max(1, round(view.image.shape[1] * scale)), max(1, round(view.image.shape[0] * scale)))
    return jpeg(cv2.resize(view.image, size, interpolation=cv2.INTER_AREA), 6000)


def side_by_side(left: np.ndarray, right: np.ndarray, side: int = 700) -> bytes:
    """Two pictures of one size as one PNG, each ``side`` px along its longest side at most."""
    scale = min(1.0, side / max(left.shape[:2]))
    size = (max(1, round(left.shape[1] * scale)), max(1, round(left.shape[0] * scale)))
    gap = np.full((size[1], 8, 3), 255, np.uint8)
    both = [cv2.resize(p, size, interpolation=cv2.INTER_AREA) for p in (left, right)]
    ok, data = cv2.imencode(".png", np.hstack([both[0], gap, both[1]])[..., ::-1])
    assert ok
    return bytes(data)
