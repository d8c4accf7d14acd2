"""QuPath's picture of a slide: where its top-left corner lies in level-0 pixels, and how large it is.

QuPath opens a slide that has OpenSlide bounds (MIRAX, some Leica) cropped to them, so that
``x_qupath = x_level0 - bounds_x``; on the way in it is added back. Users can turn the cropping off (qupath/README 2.4).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lrmil_cli.errors import InputError, UsageError

ORIGINS = ("auto", "bounds", "full")


@dataclass(frozen=True)
class Frame:
    """The image as QuPath shows it: corner ``x, y`` and size ``width, height`` in level-0 px of the file."""

    x: int
    y: int
    width: int
    height: int

    @property
    def offset(self) -> list[int]:
        """What to subtract from level-0 coordinates to get QuPath's."""
        return [self.x, self.y]


def qupath_frame(slide: dict[str, Any], origin: str = "auto", image_size: tuple[int, int] | None = None) -> Frame:
    """The frame of a slide.

    Args:
        slide: the ``slide`` entry of a header.
        origin: ``auto`` crops to the bounds where the slide has them, ``bounds`` always, ``full`` never.
        image_size: width and height as QuPath shows them; decides in place of ``auto``.

    Raises:
        UsageError: unknown origin.
        InputError: bounds asked for that the slide does not have, or a size that does not fit.
    """
    if origin not in ORIGINS:
        raise UsageError(f"--origin {origin}: choose auto, bounds or full")
    full = Frame(0, 0, int(slide["width"]), int(slide["height"]))
    cropped = Frame(*map(int, slide["bounds"])) if slide.get("bounds") else None
    possible = [full] if cropped is None else [cropped, full]
    if origin == "full":
        possible = [full]
    elif origin == "bounds":
        if cropped is None:
            raise InputError(f"slide {slide['id']} has no OpenSlide bounds; use --origin full")
        possible = [cropped]
    if image_size is None:
        return possible[0]
    for frame in possible:
        if (frame.width, frame.height) == image_size:
            return frame
    sizes = " or ".join(f"{f.width}x{f.height}" for f in possible)
    raise InputError(
        f"--image-size {image_size[0]}x{image_size[1]} does not fit slide {slide['id']} ({sizes} with --origin "
        f"{origin}); is the image in QuPath rotated, one of several in the file, or of another slide?"
    )


def parse_image_size(text: str | None) -> tuple[int, int] | None:
    """``46000x32914`` -> (46000, 32914).

    Raises:
        UsageError: not of that form.
    """
    if text is None:
        return None
    parts = text.lower().split("x")
    if len(parts) != 2 or not all(p.strip().isdigit() for p in parts):
        raise UsageError(f"--image-size {text}: give it as WIDTHxHEIGHT, as QuPath shows it")
    return int(parts[0]), int(parts[1])
