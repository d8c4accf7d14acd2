"""Pages, the index and pictures of tiles into their folders, but for what is up to date."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from lrmil_cli.errors import InputError, UsageError
from lrmil_cli.files.atomic import write_text
from lrmil_cli.files.header import last_digest
from lrmil_cli.files.locks import locked
from lrmil_cli.pages.attention_map import view_of_slide, view_without_slide
from lrmil_cli.pages.index_page import index_page, read_page
from lrmil_cli.pages.results import INDEX, Result, page_name, slide_ids
from lrmil_cli.pages.slide_page import page_step, slide_page
from lrmil_cli.pages.tile_pictures import tile_pictures
from lrmil_cli.slides.slide import Slide


def make_page(
    out: Path, results: Sequence[Result], slide: Slide | None, why_not: str, overwrite: bool
) -> tuple[Path, bool]:
    """The page of one slide into ``out``.

    Args:
        results: what each model says of it.
        slide: None where it could not be opened, ``why_not`` says why; the page is then made from the tables alone, as
            it is where the slide turns out to be damaged.

    Returns:
        its path, and whether it had to be written: a page of ours follows what it shows, and is left alone where that
        is the same.

    Raises:
        UsageError: a file that lrmil did not make has its name, and ``overwrite`` is off.
        MachineError: it cannot be written.
    """
    first = results[0]
    path = out / page_name(first.slide_id)
    if slide is not None and any(slide.fingerprint != r.slide["fingerprint"] for r in results):
        why_not, slide = f"{slide.path} is not the slide of the prediction, or has changed", None
    made = page_step(results, why_not if slide is None else slide.fingerprint)
    if ours(path, overwrite) == made["digest"]:
        return path, False
    view = None
    if slide is not None:
        try:
            view = view_of_slide(slide, first.record)
        except InputError as e:
            slide, why_not = None, str(e)
    if view is None:
        view = view_without_slide(first.slide, first.rows)
    write_text(path, slide_page([(r, tile_pictures(r, slide)) for r in results], out, view, made, why_not))
    return path, True


def make_index(folder: Path, out: Path, unshown: Mapping[str, str], overwrite: bool) -> Path:
    """The index of all slides of a results folder into ``out``, which jobs of an array may do at the same time.

    Args:
        unshown: slide id -> why it has no page.

    Raises:
        InputError: the folder holds no predictions. UsageError, MachineError: as :func:`make_page`.
    """
    path = out / INDEX
    with locked(path):
        text = index_page(folder, out, slide_ids(folder), dict(unshown), ours(path, overwrite))
        if text is not None:
            write_text(path, text)
    return path


def ours(path: Path, overwrite: bool) -> str | None:
    """Digest of a page that is there; None where there is none, or one that may be replaced.

    Raises:
        UsageError: what is there was not made by lrmil, and ``overwrite`` is off.
    """
    if not path.exists():
        return None
    try:
        return last_digest(read_page(path))
    except InputError as e:
        if overwrite:
            return None
        raise UsageError(
            f"{path} exists and is not a page made by lrmil; add --overwrite to replace it, or choose another --output"
        ) from e
