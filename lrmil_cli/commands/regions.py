"""Options about the parts of a slide to use: regions drawn in QuPath, where its image begins; a mask of the tissue."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from lrmil_cli.commands.inputs import SlideInput
from lrmil_cli.commands.report import Report
from lrmil_cli.errors import UsageError

if TYPE_CHECKING:
    from lrmil_cli.slides.given import Given
    from lrmil_cli.slides.region import Region
    from lrmil_cli.slides.slide import Slide

Origin = Annotated[
    str,
    typer.Option("--origin", help="QuPath's origin: auto, bounds (cropped to OpenSlide's bounds) or full."),
]
ImageSize = Annotated[
    Optional[str],
    typer.Option(
        "--image-size",
        metavar="WxH",
        help="Size of the image in QuPath; tells whether it is cropped to its bounds.",
    ),
]
Roi = Annotated[
    Optional[str],
    typer.Option(
        "--roi",
        metavar="QUPATH.geojson|DIR",
        help="Use only tiles inside the annotations of a GeoJSON file that QuPath exported; "
        "for several slides a folder of SLIDE_ID.geojson. A manifest's column `roi` wins.",
    ),
]
RoiClass = Annotated[
    Optional[list[str]],
    typer.Option(
        "--roi-class",
        metavar="NAME",
        help="Of --roi only annotations of this class. May be repeated.",
    ),
]
MinInside = Annotated[
    Optional[float],
    typer.Option(
        "--min-inside",
        min=0.0,
        max=1.0,
        help="Share of a tile that must lie inside --roi.  [default: 0.5; ours]",
    ),
]
Mask = Annotated[
    Optional[str],
    typer.Option(
        "--mask",
        metavar="PICTURE|DIR",
        help="Take the tissue from a picture of the whole slide, at any scale, that is black where there is none; "
        "for several slides a folder of SLIDE_ID.png. A manifest's column `mask` wins.",
    ),
]


def mask_reader(mask: str | None, many: bool) -> Callable[[Slide, SlideInput], Given]:
    """A function of an open slide that returns what is given of its tissue, nothing where nothing is.

    Raises:
        UsageError: one picture for several slides.
    """
    if mask is not None and many and not Path(mask).is_dir():
        raise UsageError(
            f"--mask {mask} is one picture, but there are several slides; give a folder with SLIDE_ID.png for each"
        )

    def read(slide: Slide, item: SlideInput) -> Given:
        from lrmil_cli.slides.given import Given, find_mask, read_mask

        path = item.mask or (None if mask is None else find_mask(mask, slide.slide_id))
        return Given() if path is None else read_mask(path, slide.width, slide.height)

    return read


def region_reader(
    roi: str | None,
    classes: list[str] | None,
    min_inside: float | None,
    origin: str,
    image_size: str | None,
    inputs: list[SlideInput],
    report: Report,
) -> Callable[[Slide, SlideInput], Region | None]:
    """A function of an open slide that returns its regions of interest, None where none were asked for.

    Raises:
        UsageError: options that would do nothing, or one file for several slides.
    """
    from lrmil_cli.qupath.frame import ORIGINS, parse_image_size

    size = parse_image_size(image_size)
    if origin not in ORIGINS:
        raise UsageError(f"--origin {origin}: choose auto, bounds or full")
    if roi is None and not any(item.roi for item in inputs):
        if classes or min_inside is not None:
            raise UsageError("--roi-class and --min-inside choose from --roi; give that too")
        return lambda slide, item: None
    if roi is not None and len(inputs) > 1 and not Path(roi).is_dir():
        raise UsageError(
            f"--roi {roi} is one file, but there are several slides; give a folder with SLIDE_ID.geojson for each"
        )

    def read(slide: Slide, item: SlideInput) -> Region | None:
        from lrmil_cli.qupath.frame import qupath_frame
        from lrmil_cli.qupath.roi import find_roi, read_roi
        from lrmil_cli.slides.region import MIN_INSIDE

        if item.roi is None and roi is None:
            return None
        about = slide.describe()
        share = MIN_INSIDE if min_inside is None else min_inside
        path = item.roi or find_roi(str(roi), slide.slide_id)
        region, warnings = read_roi(path, about, qupath_frame(about, origin, size), classes or None, share)
        for text in warnings:
            report.warn(f"{path}: {text}")
        return region

    return read
