"""``lrmil export-geojson``: attention table -> GeoJSON that QuPath opens, and a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from lrmil_cli.commands import options
from lrmil_cli.commands.overlays import Colormap, StyleName, Threshold, Top, make_style, write_geojson, write_picture
from lrmil_cli.commands.regions import ImageSize, Origin
from lrmil_cli.commands.report import Report


def export_geojson(
    attention: Annotated[str, typer.Argument(metavar="ATTENTION|-", help="Attention table made by predict, or - for stdin.", show_default=False)],
    output: Annotated[str, typer.Option("-o", "--output", metavar="FILE.geojson[.gz]|-", help="What QuPath opens, or - for stdout. With --style both the regions go into FILE.regions.geojson.", show_default=False)],
    style: StyleName = "tiles",
    top: Top = None,
    threshold: Threshold = None,
    colormap: Colormap = None,
    png: Annotated[Optional[str], typer.Option("--png", metavar="FILE.png", help="Also write a picture: the slide beside its attention. Needs the slide.", show_default=False)] = None,
    slide: Annotated[Optional[str], typer.Option("--slide", help="Where the slide is now, for --png.  [default: where predict found it]", show_default=False)] = None,
    origin: Origin = "auto",
    image_size: ImageSize = None,
    json: options.Json = False,
    overwrite: options.Overwrite = False,
) -> None:
    """Write the attention of a slide for QuPath.

    Drop the file on the open slide, press F, then Measure > Show measurement maps.
    """
    from lrmil_cli.errors import UsageError
    from lrmil_cli.files.tables import read_table
    from lrmil_cli.qupath.files import check_name
    from lrmil_cli.qupath.frame import parse_image_size

    report = Report(json)
    if output == "-" and json:
        raise UsageError("--json and -o - both want stdout; choose one")
    if output != "-":
        check_name(output)
    if slide is not None and png is None:
        raise UsageError("--slide is for --png; give that too")
    chosen = make_style(style, top, threshold, colormap, geojson=True, picture=png is not None)
    header, rows = read_table(attention, "attention")
    files = write_geojson(report, header, rows, output, chosen, origin, parse_image_size(image_size), overwrite)
    if png is not None:
        files["png"] = {"path": png, "written": _picture(png, slide, header, rows, chosen.colormap, overwrite), "objects": len(rows)}
    for kind, file in files.items():
        if file["path"] != "-":
            what = f"{file['objects']} {'tiles' if kind == 'png' else kind} of slide {header['slide']['id']}"
            report.say(f"{file['path']}: {what if file['written'] else 'up to date'}")
    report.result({"slide": header["slide"]["path"], "slide_id": header["slide"]["id"], "command": "export-geojson",
                   "status": "ok" if any(f["written"] for f in files.values()) else "skipped", "output": output, "error": None,
                   "tiles": len(rows), "files": {kind: f["path"] for kind, f in files.items()}})


def _picture(png: str, slide: str | None, header: dict[str, Any], rows: Any, colormap: str, overwrite: bool) -> bool:
    from lrmil_cli.errors import InputError
    from lrmil_cli.qupath.pictures import check_picture_name
    from lrmil_cli.slides.slide import open_slide

    check_picture_name("--png", png)
    path = slide or header["slide"]["path"]
    if not Path(path).exists():
        raise InputError(f"{path}: --png needs the slide, which is not there; say where it is now with --slide")
    with open_slide(path, slide_id=header["slide"]["id"], slide_mpp=header["slide"]["mpp"]) as opened:
        return write_picture(png, opened, header, rows, colormap, (), overwrite)
