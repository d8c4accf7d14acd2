"""``lrmil export-geojson``: attention table -> GeoJSON that QuPath opens, and a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from lrmil_cli.commands import options, overlays, regions
from lrmil_cli.commands.batch import Outcome, failures_folder, run_batch
from lrmil_cli.commands.inputs import TableItem, find_tables, where_slides_are
from lrmil_cli.commands.overlays import (
    PictureStyle,
    is_folder,
    make_picture_style,
    make_style,
    place,
    write_geojson,
    write_picture,
)
from lrmil_cli.commands.report import Report

Attention = Annotated[
    str,
    typer.Argument(
        metavar="ATTENTION|DIR|-",
        help="Attention table made by predict, a folder of them, "
        "or - for a table or the JSON Lines of predict --json on stdin.",
    ),
]
Output = Annotated[
    str,
    typer.Option(
        "-o",
        "--output",
        metavar="FILE.geojson[.gz]|DIR|-",
        help="What QuPath opens, a folder for several slides, or - for stdout. "
        "With --style both the regions go into FILE.regions.geojson.",
    ),
]
Png = Annotated[
    Optional[str],
    typer.Option(
        "--png",
        "--picture",
        metavar="FILE.png|FILE.svg|FILE.pdf|DIR",
        help="Also write a picture: the slide beside its attention. Needs the slide.",
    ),
]
SlidePath = Annotated[
    Optional[str],
    typer.Option("--slide", help="Where the slide is now, for --picture.  [default: where predict found it]"),
]


Places = Annotated[
    Optional[str],
    typer.Option(
        "--slides",
        metavar="slides.csv|DIR",
        help="The same for several slides: a manifest, or a folder with sub-folders.",
    ),
]


def export_geojson(
    attention: Attention,
    output: Output,
    style: overlays.StyleName = "tiles",
    top: overlays.Top = None,
    threshold: overlays.Threshold = None,
    colormap: overlays.Colormap = None,
    png: Png = None,
    format: overlays.PictureFormat = None,
    dpi: overlays.Dpi = None,
    slide: SlidePath = None,
    slides: Places = None,
    origin: regions.Origin = "auto",
    image_size: regions.ImageSize = None,
    json: options.Json = False,
    overwrite: options.Overwrite = False,
) -> None:
    """Write the attention of a slide for QuPath.

    Drop the file on the open slide, press F, then Measure > Show measurement maps.
    """
    from lrmil_cli.errors import InputError, UsageError
    from lrmil_cli.files.tables import read_table, table_suffix
    from lrmil_cli.qupath.files import check_name
    from lrmil_cli.qupath.frame import parse_image_size
    from lrmil_cli.qupath.pictures import check_picture_name

    report = Report(json)
    if output == "-" and json:
        raise UsageError("--json and -o - both want stdout; choose one")
    for option, value in (("--slide", slide), ("--slides", slides)):
        if value is not None and png is None:
            raise UsageError(f"{option} is for --picture; give that too")
    if slide is not None and slides is not None:
        raise UsageError("give --slide or --slides, not both")
    size = parse_image_size(image_size)
    found = find_tables(attention)
    many = found is not None
    if many and (
        output == "-" or not is_folder(output) or slide is not None or (png is not None and not is_folder(png))
    ):
        raise UsageError(
            "several slides, or a folder of results: give folders to -o and --picture, and --slides in place of --slide"
        )
    if not many and output != "-":
        check_name(output)
    look = make_picture_style(png, format, dpi, colormap)
    places = where_slides_are(slides)
    chosen = make_style(style, top, threshold, colormap, geojson=True, picture=png is not None)

    made: list[str] = []

    def one(item: TableItem) -> Outcome:
        if item.error is not None:
            raise InputError(item.error)
        header, rows = read_table(item.path, "attention")
        slide_id = header["slide"]["id"]
        name = (
            Path(item.path).name.removesuffix(table_suffix(item.path) or "").removesuffix(".attention") if many else ""
        )
        target = (
            str(Path(output) / f"{name}.{'regions' if style == 'regions' else 'heatmap'}.geojson.gz")
            if many
            else output
        )
        files = write_geojson(report, header, rows, target, chosen, origin, size, overwrite)
        if png is not None:
            picture = place(png, f"{name or slide_id}.overlay.{look.format}")
            check_picture_name("--picture", picture, format)
            files["png"] = {
                "path": picture,
                "written": _picture(picture, item.path, slide, places.get(slide_id), header, rows, look, overwrite),
                "objects": len(rows),
            }
        made.extend(str(f["path"]) for kind, f in files.items() if kind != "png" and f["path"] != "-")
        told = [
            f"{f['path']}: "
            + (f"{f['objects']} {'tiles' if kind == 'png' else kind}" if f["written"] else "up to date")
            for kind, f in files.items()
            if f["path"] != "-"
        ]
        return Outcome(
            target,
            "ok" if any(f["written"] for f in files.values()) else "skipped",
            "; ".join(told),
            {
                "slide": header["slide"]["path"],
                "slide_id": slide_id,
                "tiles": len(rows),
                "files": {kind: f["path"] for kind, f in files.items()},
            },
        )

    run_batch(
        "export-geojson",
        "drawing the map of",
        [TableItem(attention, Path(attention).name.partition(".")[0])] if found is None else found,
        one,
        report,
        failures_in=failures_folder(output, many),
        where=output,
        then=lambda: ["info", made[0]] if made else None,
    )


def _picture(
    png: str,
    table: str,
    slide: str | None,
    given: Path | None,
    header: dict[str, Any],
    rows: Any,
    look: PictureStyle,
    overwrite: bool,
) -> bool:
    """Write the picture of a table, whose slide is ``slide`` or else to be found, at ``given`` if not where it was."""
    from lrmil_cli.slide_places import find_slide, moved
    from lrmil_cli.slides.slide import open_slide, reopening

    about = header["slide"]
    where = "standard input" if table == "-" else table
    path = find_slide(about, where, given) if slide is None else Path(slide)
    with open_slide(path, slide_id=about["id"], slide_mpp=about["mpp"], **reopening(about)) as opened:
        return write_picture(png, opened, {**header, "slide": moved(about, opened.path)}, rows, look, (), overwrite)
