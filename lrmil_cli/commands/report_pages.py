"""``lrmil report``: a results folder -> pages to look at; and what ``predict --report`` shares with it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from lrmil_cli.commands import options
from lrmil_cli.commands.batch import Outcome, run_batch
from lrmil_cli.commands.inputs import TableItem, where_slides_are
from lrmil_cli.commands.next_step import after_report
from lrmil_cli.commands.report import Report
from lrmil_cli.errors import InputError, LrmilError, UsageError

if TYPE_CHECKING:
    from lrmil_cli.pages.results import Result
    from lrmil_cli.slides.slide import Slide

Results = Annotated[
    str,
    typer.Argument(metavar="RESULTS", help="Folder that predict wrote into."),
]
Output = Annotated[
    Optional[str],
    typer.Option(
        "-o", "--output", metavar="DIR", help="Folder for index.html and <slide>.html; without it, RESULTS itself."
    ),
]
TopTiles = Annotated[
    Optional[str],
    typer.Option(
        "--top-tiles",
        metavar="DIR",
        help="Also write the tiles with the most and the least attention at 20x as PNG, with a contact sheet a slide.",
    ),
]
Pages = Annotated[
    bool,
    typer.Option(
        "--report", help="Also write index.html and a page a slide into the output folder, as `lrmil report`."
    ),
]


def report(
    results: Results,
    output: Output = None,
    top_tiles: TopTiles = None,
    slides: options.SlidePlaces = None,
    json: options.Json = False,
    overwrite: options.Overwrite = False,
    fail_fast: options.FailFast = False,
) -> None:
    """Write pages to look at: an index of the predicted slides, and a page a slide.

    They need no network and nothing else beside them. A slide that is gone gets a page from its tables alone.
    """
    from lrmil_cli.inference.answers import models_in
    from lrmil_cli.pages.make import ours
    from lrmil_cli.pages.results import INDEX, read_results, record_path, slide_ids

    voice = Report(json)
    folder, out = Path(results), Path(output or results)
    check_folders(str(out), top_tiles)
    records = models_in(folder)[0][1]
    items = [TableItem(str(record_path(records, slide_id)), slide_id) for slide_id in slide_ids(folder)]
    places = where_slides_are(slides)
    ours(out / INDEX, overwrite)
    unshown: dict[str, str] = {}

    def one(item: TableItem) -> Outcome:
        try:
            results = read_results(folder, item.slide_id)
            slide, why_not = _open(results[0], places.get(item.slide_id))
            if why_not:
                voice.warn(f"{item.slide_id}: {why_not}; its page is made from the tables alone")
            try:
                written = make_pages(out, results, slide, why_not, True, top_tiles, overwrite)
            finally:
                if slide is not None:
                    slide.close()
        except LrmilError as e:
            unshown[item.slide_id] = str(e)
            raise
        told = ", ".join(map(str, written)) or "up to date"
        return Outcome(str(out), "ok" if written else "skipped", told, {"pages": [str(p) for p in written]})

    run_batch(
        "report",
        "drawing the page of",
        items,
        one,
        voice,
        fail_fast=fail_fast,
        # Of those that have a page, whatever became of the others.
        kept=lambda: write_index(folder, out, unshown, overwrite, voice.say),
        then=lambda: after_report(results),
    )


def check_folders(output: str, top_tiles: str | None) -> None:
    """Raises UsageError if pages or pictures of tiles are to go where no folder can be."""
    for option, value in (("--output", output), ("--top-tiles", top_tiles)):
        if value is not None and (value == "-" or (Path(value).exists() and not Path(value).is_dir())):
            raise UsageError(f"{option} {value}: give a folder")


def make_pages(
    out: Path,
    results: Sequence[Result],
    slide: Slide | None,
    why_not: str,
    pages: bool,
    top_tiles: str | None,
    overwrite: bool,
) -> list[Path]:
    """The page of a slide (with ``pages``) and the pictures of its tiles (with ``top_tiles``; of several models in a
    folder each).

    Returns:
        what had to be written.
    """
    from lrmil_cli.pages.make import make_page
    from lrmil_cli.pages.tile_pictures import tile_pictures, write_tiles

    written = []
    if pages:
        path, new = make_page(out, results, slide, why_not, overwrite)
        written += [path] if new else []
    if top_tiles is not None and slide is not None:
        for result in results:
            sheet = write_tiles(Path(top_tiles) / result.model, result, tile_pictures(result, slide), overwrite)
            written += [sheet] if sheet else []
    return written


def pages_of(
    folder: Path, slide: Slide, slide_id: str, pages: bool, top_tiles: str | None, overwrite: bool
) -> dict[str, dict[str, object]]:
    """The same for a slide that ``predict`` has open and has written into ``folder``.

    Returns:
        kind -> ``path`` and ``written``, as :func:`lrmil_cli.commands.overlays.write_overlays`.
    """
    from lrmil_cli.pages.results import page_name, read_result

    made = make_pages(folder, [read_result(folder, slide_id)], slide, "", pages, top_tiles, overwrite)
    files = {"page": folder / page_name(slide_id)} if pages else {}
    if top_tiles is not None:
        files["top_tiles"] = Path(top_tiles) / f"{slide_id}.tiles.png"
    return {kind: {"path": str(path), "written": path in made} for kind, path in files.items()}


def page_of_several(folder: Path, slide: Slide, overwrite: bool, models: Sequence[str]) -> Path:
    """The page of a slide that several models have answered, into the folder above theirs."""
    from lrmil_cli.pages.make import make_page
    from lrmil_cli.pages.results import read_result

    results = [read_result(folder / name, slide.slide_id, name) for name in models]
    return make_page(folder, results, slide, "", overwrite)[0]


def write_index(folder: Path, out: Path, unshown: dict[str, str], overwrite: bool, say: Callable[[str], None]) -> None:
    from lrmil_cli.pages.make import make_index

    say(f"open {make_index(folder, out, unshown, overwrite)}")


def _open(result: Result, given: Path | None) -> tuple[Slide | None, str]:
    """The slide of a result; None where it is gone or damaged, and why."""
    from lrmil_cli.slide_places import find_slide
    from lrmil_cli.slides.slide import open_slide, reopening

    about = result.slide
    try:
        path = find_slide(about, f"{result.slide_id}.attention.csv", given)
        return open_slide(
            path, slide_id=about["id"], slide_mpp=about["mpp"], on_bad_tile="skip", **reopening(about)
        ), ""
    except InputError as e:
        return None, str(e)
