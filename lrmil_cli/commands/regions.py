"""Options about QuPath that several commands share: where its image begins, and which regions of it to use."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from lrmil_cli.commands.report import Report
from lrmil_cli.errors import UsageError

if TYPE_CHECKING:
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
        "for several slides a folder of SLIDE_ID.geojson.",
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


def region_reader(
    roi: str | None,
    classes: list[str] | None,
    min_inside: float | None,
    origin: str,
    image_size: str | None,
    many: bool,
    report: Report,
) -> Callable[[Slide], Region | None]:
    """A function of an open slide that returns its regions of interest, None where none were asked for.

    Raises:
        UsageError: options that would do nothing, or one file for several slides.
    """
    from lrmil_cli.qupath.frame import ORIGINS, parse_image_size

    size = parse_image_size(image_size)
    if origin not in ORIGINS:
        raise UsageError(f"--origin {origin}: choose auto, bounds or full")
    if roi is None:
        if classes or min_inside is not None:
            raise UsageError("--roi-class and --min-inside choose from --roi; give that too")
        return lambda slide: None
    if many and not Path(roi).is_dir():
        raise UsageError(
            f"--roi {roi} is one file, but there are several slides; give a folder with SLIDE_ID.geojson for each"
        )

    def read(slide: Slide) -> Region:
        from lrmil_cli.qupath.frame import qupath_frame
        from lrmil_cli.qupath.roi import find_roi, read_roi
        from lrmil_cli.slides.region import MIN_INSIDE

        about = slide.describe()
        share = MIN_INSIDE if min_inside is None else min_inside
        path = find_roi(roi, slide.slide_id)
        region, warnings = read_roi(path, about, qupath_frame(about, origin, size), classes or None, share)
        for text in warnings:
            report.warn(f"{path}: {text}")
        return region

    return read
