"""``lrmil export-geojson``: attention table -> GeoJSON that QuPath opens."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from lrmil_cli.commands import options
from lrmil_cli.commands.report import Report

Origin = Annotated[str, typer.Option("--origin", help="QuPath's origin: auto, bounds (OpenSlide bounds) or full.")]
ImageSize = Annotated[Optional[str], typer.Option("--image-size", metavar="WxH", help="Size of the image in QuPath; tells whether it is cropped to its bounds.", show_default=False)]


def export_geojson(
    attention: Annotated[str, typer.Argument(metavar="ATTENTION|-", help="Attention table made by predict, or - for stdin.", show_default=False)],
    output: Annotated[str, typer.Option("-o", "--output", metavar="FILE.geojson[.gz]|-", help="What QuPath opens, or - for stdout.", show_default=False)],
    origin: Origin = "auto",
    image_size: ImageSize = None,
    json: options.Json = False,
    overwrite: options.Overwrite = False,
) -> None:
    """Write the attention of a slide for QuPath.

    Drop the file on the open slide, then Measure > Show measurement maps.
    """
    from lrmil_cli.errors import UsageError
    from lrmil_cli.files.tables import read_table
    from lrmil_cli.qupath.geojson import MANY_TILES, check_name, heatmap, is_constant, parse_image_size, write_geojson

    report = Report(json)
    if output == "-" and json:
        raise UsageError("--json and -o - both want stdout; choose one")
    if output != "-":
        check_name(output)
    header, rows = read_table(attention, "attention")
    text = heatmap(header, rows, origin=origin, image_size=parse_image_size(image_size))
    if output != "-" and Path(output).exists() and not overwrite:
        if _same(output, text):
            report.say(f"{output}: up to date")
            report.result({"slide": header["slide"]["path"], "slide_id": header["slide"]["id"], "command": "export-geojson",
                           "status": "skipped", "output": output, "error": None})
            return
        raise UsageError(f"{output} exists and was made from another table or settings; add --overwrite to replace it")
    if is_constant(rows):
        report.warn("all tiles have the same attention; QuPath will show one flat colour")
    if len(rows) > MANY_TILES:
        report.warn(f"{len(rows)} tiles make QuPath slow; a coarser grid (larger --mpp or --tile-px) shows the same")
    write_geojson(output, text)
    if output != "-":
        report.say(f"{output}: {len(rows)} tiles of slide {header['slide']['id']}")
    report.result({"slide": header["slide"]["path"], "slide_id": header["slide"]["id"], "command": "export-geojson",
                   "status": "ok", "output": output, "error": None, "tiles": len(rows)})


def _same(path: str, text: str) -> bool:
    import gzip

    try:
        data = Path(path).read_bytes()
        return (gzip.decompress(data) if path.lower().endswith(".gz") else data) == text.encode("utf-8")
    except (OSError, EOFError):
        return False
