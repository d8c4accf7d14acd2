"""Attention for the eye: GeoJSON for QuPath and pictures, as ``predict`` and ``export-geojson`` write them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from lrmil_cli.commands.report import Report
from lrmil_cli.errors import UsageError
from lrmil_cli.files.names import SEPARATORS

if TYPE_CHECKING:
    from lrmil_cli.qupath.geojson import Style
    from lrmil_cli.slides.region import Region
    from lrmil_cli.slides.slide import Slide

StyleName = Annotated[
    str,
    typer.Option(
        "--style",
        help="For QuPath: tiles (a heatmap), regions (outlines of high attention, as locked annotations) or both, "
        "as two files.",
    ),
]
Top = Annotated[
    Optional[float],
    typer.Option(
        "--top",
        metavar="F",
        help="Regions: the share F of tiles with the highest attention.  [default: bands of percentiles]",
    ),
]
Threshold = Annotated[
    Optional[float],
    typer.Option(
        "--threshold",
        metavar="T",
        help="Regions: tiles whose attention is at least T times that of the highest.",
    ),
]
Colormap = Annotated[
    Optional[str],
    typer.Option(
        "--colormap",
        help="Colours of regions and of the picture: viridis, magma, inferno, plasma, cividis or gray.  "
        "[default: viridis for regions, for the picture blue below an even share and yellow to brown above; ours]",
    ),
]
PictureFormat = Annotated[
    Optional[str],
    typer.Option(
        "--format",
        help="Format of the picture, where a folder is given for it; svg and pdf for print.  [default: png; ours]",
    ),
]
Dpi = Annotated[
    Optional[int],
    typer.Option(
        "--dpi",
        min=50,
        max=1200,
        help="Dots per inch of the picture, which is 12 inches wide.  [default: 150; ours]",
    ),
]


@dataclass(frozen=True)
class PictureStyle:
    """How a picture is to look: ``format`` where the name does not say it; ``colormap`` None for our own colours."""

    format: str
    dpi: int
    colormap: str | None


def make_picture_style(path: str | None, format: str | None, dpi: int | None, colormap: str | None) -> PictureStyle:
    """The style that options ask for; ``path`` is where pictures go, None where none was asked for.

    Raises:
        UsageError: options that would do nothing, or that do not exist.
    """
    from lrmil_cli.qupath.pictures import DPI, FORMATS

    for option, value in (("--format", format), ("--dpi", dpi)):
        if value is not None and path is None:
            raise UsageError(f"{option} is about the picture; give the option that says where it goes too")
    if format is not None and format not in FORMATS:
        raise UsageError(f"--format {format}: choose {', '.join(FORMATS)}")
    return PictureStyle(format or "png", dpi or DPI, colormap)


def make_style(
    style: str, top: float | None, threshold: float | None, colormap: str | None, *, geojson: bool, picture: bool
) -> Style:
    """The style that options ask for; ``geojson`` and ``picture`` say whether such a file was asked for at all.

    Raises:
        UsageError: options that would do nothing, or that do not exist.
    """
    from lrmil_cli.qupath.geojson import Style, check_style

    if not geojson and (style != "tiles" or top is not None or threshold is not None):
        raise UsageError("--style, --top and --threshold are about GeoJSON; give --geojson too")
    if colormap is not None and not picture and not (geojson and style != "tiles"):
        raise UsageError(
            "--colormap colours regions and pictures; QuPath colours tiles itself (Measure > Show measurement maps)"
        )
    chosen = Style(style, top, threshold, colormap or "viridis")
    check_style(chosen)
    return chosen


def is_folder(path: str) -> bool:
    """Whether a path that may not exist yet is meant as a folder."""
    return path != "-" and (path.endswith(SEPARATORS) or Path(path).is_dir() or not Path(path).suffix)


def place(path: str, name: str) -> str:
    """``path`` itself, or ``name`` in it if it is a folder."""
    return str(Path(path) / name) if is_folder(path) else path


def write_overlays(
    report: Report,
    slide: Slide,
    header: dict[str, Any],
    tables: dict[str, Any],
    *,
    geojson: str | None,
    picture: str | None,
    style: Style,
    look: PictureStyle,
    origin: str,
    image_size: tuple[int, int] | None,
    region: Region | None,
    overwrite: bool,
) -> dict[str, dict[str, Any]]:
    """Write the GeoJSON and the picture that were asked for (paths or folders), but for what is up to date.

    Args:
        tables: rows of attention tables by name, the main one "" or the only one; the first is drawn as a picture. Each
            named one gets a GeoJSON file of its own, because QuPath paints tiles of two sizes over each other in random
            order.

    Returns:
        as :func:`write_geojson`, with ``overlay`` for the picture; those of named tables as ``<name>.tiles``.
    """
    from lrmil_cli.files.tables import as_frame
    from lrmil_cli.qupath.pictures import rings

    files: dict[str, dict[str, Any]] = {}
    if geojson is not None:
        ending = f"{'regions' if style.style == 'regions' else 'heatmap'}.geojson.gz"
        for name, rows in tables.items():
            if name and geojson == "-":
                report.warn(
                    f"{slide.slide_id}: the map of the {name} tiles is left out on stdout; give --geojson a folder"
                )
                continue
            path = with_name(place(geojson, f"{slide.slide_id}.{ending}"), name)
            made = write_geojson(report, header, as_frame(rows), path, style, origin, image_size, overwrite)
            files |= {f"{name}.{kind}" if name else kind: file for kind, file in made.items()}
    if picture is not None:
        name, rows = next(iter(tables.items()))
        path = with_name(place(picture, f"{slide.slide_id}.overlay.{look.format}"), name)
        outlines = rings(region.area) if region else ()
        files[f"{name}.overlay" if name else "overlay"] = {
            "path": path,
            "written": write_picture(path, slide, header, as_frame(rows), look, outlines, overwrite),
        }
    return files


def with_name(path: str, name: str) -> str:
    """``slide.heatmap.geojson.gz`` with ``name`` before its endings: ``slide.hr.heatmap.geojson.gz``."""
    if not name:
        return path
    folder, file = Path(path).parent, Path(path).name
    for ending in (".heatmap", ".regions", ".overlay", ".geojson", ".json", ".png", ".svg", ".pdf"):
        at = file.find(ending)
        if at > 0:
            return str(folder / f"{file[:at]}.{name}{file[at:]}")
    return f"{path}.{name}"


def write_geojson(
    report: Report,
    header: dict[str, Any],
    rows: Any,
    output: str,
    style: Style,
    origin: str,
    image_size: tuple[int, int] | None,
    overwrite: bool,
) -> dict[str, dict[str, Any]]:
    """Write what ``style`` asks for, but for what is up to date.

    Returns:
        style -> ``path``, ``written`` (whether it had to be), ``objects``.
    """
    from lrmil_cli.files.header import last_digest, up_to_date
    from lrmil_cli.qupath.files import read_provenance, write_chunks
    from lrmil_cli.qupath.geojson import make_document, output_paths

    done = {}
    said: set[str] = set()
    for kind, path in output_paths(output, style.style).items():
        document = make_document(header, rows, kind, style, origin=origin, image_size=image_size)
        for text in document.warnings:
            if text not in said:
                report.warn(f"{header['slide']['id']}: {text}")
            said.add(text)
        written = path == "-" or not up_to_date(path, last_digest(document.about), read_provenance, overwrite)
        if written:
            write_chunks(path, document.pieces)
        done[kind] = {"path": path, "written": written, "objects": document.objects}
    return done


def write_picture(
    path: str,
    slide: Slide,
    header: dict[str, Any],
    rows: Any,
    look: PictureStyle,
    outlines: Sequence[Any],
    overwrite: bool,
) -> bool:
    """Write the picture of a slide and its attention; False where it is up to date."""
    from lrmil_cli.files.header import last_digest, up_to_date
    from lrmil_cli.qupath.geojson import read_tiles, table_digest
    from lrmil_cli.qupath.pictures import picture_provenance, read_picture_provenance, slide_picture

    rows = read_tiles(rows)
    about = picture_provenance(header, table_digest(rows), look.colormap, look.dpi)
    if up_to_date(path, last_digest(about), read_picture_provenance, overwrite):
        return False
    slide_picture(path, slide, header, rows, colormap=look.colormap, dpi=look.dpi, outlines=outlines, provenance=about)
    return True
