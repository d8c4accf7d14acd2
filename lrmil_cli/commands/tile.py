"""``lrmil tile``: slide -> tile table."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Optional

import typer

from lrmil_cli.commands import options
from lrmil_cli.commands.batch import Outcome, failures_folder, left_alone, output_path, planned, run_batch
from lrmil_cli.commands.inputs import SlideInput, expand_slides, open_input
from lrmil_cli.commands.next_step import after_tile
from lrmil_cli.commands.regions import ImageSize, Mask, MinInside, Origin, Roi, RoiClass, mask_reader, region_reader
from lrmil_cli.commands.report import Report
from lrmil_cli.errors import InputError, NoTissueError, UsageError


def _magnification(text: str) -> float:
    """``5`` or ``5x``."""
    try:
        return float(str(text).lower().removesuffix("x"))
    except ValueError:
        raise UsageError(f"--mag {text}: give a number, such as 5 or 5x") from None


Output = Annotated[
    str,
    typer.Option("-o", "--output", metavar="FILE|DIR|-", help="Tile table of one slide, a folder, or - for stdout."),
]
Mpp = Annotated[
    Optional[float],
    typer.Option(
        "--mpp",
        help="Micrometres per pixel of the tiles.  [default: 2.0; ours: what the official code's 5x nominally is]",
    ),
]
Mag = Annotated[
    Optional[float],
    typer.Option(
        "--mag",
        metavar="X",
        parser=_magnification,
        help="The same as a magnification: 5 (or 5x) is --mpp 2.0, 20 is --mpp 0.5.",
    ),
]
TilePx = Annotated[
    int,
    typer.Option(
        "--tile-px",
        min=16,
        max=4096,
        help="Side of a tile in pixels.  [default: 256; official code]",
        show_default=False,
    ),
]
MinTissue = Annotated[
    float,
    typer.Option(
        "--min-tissue",
        min=0.0,
        max=1.0,
        help="Share of a tile that must be tissue; 0 with --roi takes every tile of the regions. A manifest's column "
        "`min_tissue` wins.  [default: 0.1; ours: the official code cuts no tiles]",
        show_default=False,
    ),
]
AllowUpsample = Annotated[
    bool,
    typer.Option("--allow-upsample", help="Enlarge pixels where the slide is coarser than --mpp."),
]
KeepPen = Annotated[bool, typer.Option("--keep-pen", help="Do not take pen marks out of the tissue mask.")]
Thumbnail = Annotated[
    bool,
    typer.Option(
        "--thumbnail",
        help="Also write a PNG of the slide with the tissue outline and the kept tiles, also where there are none.",
    ),
]


def tile(
    slides: options.Slides,
    output: Output,
    mpp: Mpp = None,
    mag: Mag = None,
    tile_px: TilePx = 256,
    min_tissue: MinTissue = 0.1,
    roi: Roi = None,
    roi_class: RoiClass = None,
    min_inside: MinInside = None,
    origin: Origin = "auto",
    image_size: ImageSize = None,
    mask: Mask = None,
    slide_mpp: options.SlideMpp = None,
    reader: options.Reader = "auto",
    image: options.Image = None,
    allow_upsample: AllowUpsample = False,
    keep_pen: KeepPen = False,
    thumbnail: Thumbnail = False,
    workers: options.Workers = None,
    on_bad_tile: options.OnBadTile = "fail",
    json: options.Json = False,
    overwrite: options.Overwrite = False,
    recursive: options.Recursive = False,
    fail_fast: options.FailFast = False,
    dry_run: options.DryRun = False,
) -> None:
    """Find the tissue of slides; write the tiles with it."""
    from lrmil_cli.files.atomic import remove
    from lrmil_cli.files.header import digest, make_header, step, up_to_date
    from lrmil_cli.files.tables import read_table, read_table_header, table_suffix, write_table
    from lrmil_cli.qupath.pictures import rings, tile_picture
    from lrmil_cli.slides.tiles import TileSettings, find_tissue, tile_slide
    from lrmil_cli.slides.tissue import TissueSettings
    from lrmil_cli.units import LevelPx, Mpp

    if mpp is not None and mag is not None:
        raise UsageError("give --mpp or --mag, not both")
    if (mag is not None and mag <= 0) or (mpp is not None and mpp <= 0):
        raise UsageError("--mpp and --mag must be above 0")
    wanted = Mpp(mpp or (10 / mag if mag else 2.0))
    tissue_settings = TissueSettings(remove_pen=not keep_pen)
    settings = TileSettings(wanted, LevelPx(tile_px), min_tissue, allow_upsample, tissue_settings)
    report = Report(json)
    inputs = expand_slides(slides, recursive=recursive, say=report.say)
    many = len(inputs) > 1
    if output == "-" and (many or json or thumbnail):
        raise UsageError("-o - takes the table of one slide, without --json and --thumbnail")
    if output != "-":
        output_path(output, "any", "tiles", many)  # a name that cannot be meant is said before any work
    read_region = region_reader(roi, roi_class, min_inside, origin, image_size, inputs, report)
    read_mask = mask_reader(mask, many)
    if roi is None and not any(item.roi for item in inputs) and (origin != "auto" or image_size):
        raise UsageError("--origin and --image-size say where the regions of --roi lie; give that too")

    def one(item: SlideInput) -> Outcome:
        target = output if output == "-" else output_path(output, item.slide_id, "tiles", many)
        how = {"reader": reader, "image": image, "workers": workers, "on_bad_tile": on_bad_tile}
        with open_input(item, slide_mpp=slide_mpp, **how) as slide:
            report.notes(slide)
            slide.given = read_mask(slide, item)
            here = settings if item.min_tissue is None else replace(settings, min_tissue=item.min_tissue)
            own = here.as_json()
            region = read_region(slide, item)
            made_of = slide.made_of | ({"roi": region.digest} if region else {})
            picture = Path(str(target).removesuffix(table_suffix(target) or "") + ".png") if thumbnail else None
            if output != "-" and up_to_date(
                target, digest(own, made_of), lambda p: read_table(p, "tiles")[0], overwrite
            ):
                if on_bad_tile == "fail" and read_table_header(target, "tiles").get("damaged"):
                    raise InputError(
                        f"{target}: parts of the slide cannot be decoded and passed for glass (--on-bad-tile skip); "
                        "say that again to use it, or copy the slide again and add --overwrite"
                    )
                # A picture from before the table was written is of another one.
                shown = picture is not None and picture.exists()
                if picture is None or (shown and picture.stat().st_mtime_ns >= Path(target).stat().st_mtime_ns):
                    if dry_run:
                        return Outcome(str(target), "skipped", f"up to date ({target})")
                    done = left_alone(target, "tiles", slide.path.absolute())
                    if picture is not None and picture.stat().st_mtime_ns < Path(target).stat().st_mtime_ns:
                        os.utime(picture)  # of the same tiles, though the table was written again
                    return done
            began = time.perf_counter()
            outlines = rings(region.area) if region else ()
            try:
                rows, level, tissue = tile_slide(slide, here, region)
            except NoTissueError as e:
                if picture is None or dry_run:
                    raise
                tile_picture(picture, slide, find_tissue(slide, here.tissue), None, outlines)
                if Path(target).exists():  # a table by other settings must not take this picture for its own
                    os.utime(picture, (0, 0))
                raise NoTissueError(f"{e}; what was found is in {picture}") from e
            report.notes(slide)
            if dry_run:
                return planned(len(rows), time.perf_counter() - began, slide, target)
            header = make_header(
                "tiles",
                slide=slide.describe(),
                settings=own,
                level=level,
                level_mpp=slide.mpp * slide.levels[level].downsample,
                roi=region.about if region else None,
                **({"given": slide.given.about} if slide.given.about else {}),
                **({"damaged": True} if slide.lost else {}),
                history=[step("tile", own, made_of)],
            )
            if picture is not None:
                remove(picture)  # of another table; killed before the new one, this run must not look complete
            write_table(target, header, rows)
            if picture is not None:
                tile_picture(picture, slide, tissue, rows, outlines)
            text = (
                f"{len(rows)} tiles of {tile_px} px at {settings.mpp:g} um/px, tissue {tissue.mask.mean():.0%}, "
                f"slide {slide.mpp:.4g} um/px ({slide.mpp_source})"
            )
            return Outcome(
                str(target),
                message=text if output == "-" else f"{text} -> {target}",
                extra={"tiles": len(rows), "mpp": slide.mpp, "mpp_source": slide.mpp_source},
            )

    run_batch(
        "tile",
        "tiling",
        inputs,
        one,
        report,
        fail_fast=fail_fast,
        failures_in=failures_folder(output, many),
        dry_run=dry_run,
        where=output,
        then=lambda: after_tile(slides, output, wanted, tile_px),
    )
