"""What opens the file of a slide: a reader that is chosen by what the file is, and judged by its pixels.

tifffile, the library under tiffslide, reads what is a TIFF; OpenSlide reads the other formats (MIRAX, DICOM, Hamamatsu
VMS, Sakura) and those TIFFs whose colours or places tifffile does not know. The table: slides/README 1.1.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lrmil_cli.errors import InputError, LrmilError, UsageError, no_such_file
from lrmil_cli.slide_names import SLIDE_SUFFIXES
from lrmil_cli.slides.choice import OPENSLIDE, READERS, TIFFSLIDE, Choice, Facts, choose, refusal
from lrmil_cli.slides.dicom import is_dicom, series_of, series_spacings, spacing_of
from lrmil_cli.slides.images import choose_image
from lrmil_cli.slides.judge import MAX_DIFFERENCE, difference
from lrmil_cli.slides.openslides import OpenSlideHandle, open_openslide
from lrmil_cli.slides.tiff import TiffHandle
from lrmil_cli.slides.tiff_header import check_header, is_tiff
from lrmil_cli.units import Um

#: Vendors whose slide is put together from several images of the file.
_COMPOSED = ("leica", "ventana", "trestle", "philips")


@dataclass
class Source:
    """An open slide file, and what its metadata says.

    Attributes:
        choice: who reads it, and why; handle: a :class:`TiffHandle` or an :class:`OpenSlideHandle`.
        facts: what the file is; images: what is in it, for people; image: number of the slide among them,
            None where it is put together from several.
        mpp: um/px along x and y as stated, unchecked, and where that stands.
        spacings: level-0 px per pixel of each level, where the file says that apart from sizes.
        notes: what the user should know.
        read_as: what of this is not as it always was, for headers and digests.
    """

    choice: Choice
    handle: Any
    facts: Facts
    mpp: tuple[Any, Any, str]
    objective: Any = None
    bounds: list[int] | None = None
    images: list[dict[str, Any]] = field(default_factory=list)
    image: int | None = 0
    spacings: list[tuple[float, float] | None] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    read_as: dict[str, Any] = field(default_factory=dict)


def check_file(path: Path) -> None:
    """Whether there is a file with something in it.

    Raises:
        InputError: there is none.
    """
    if not path.exists():
        raise InputError(no_such_file(path))
    if path.is_dir():
        raise InputError(f"{path}: this is a folder, not a slide; name a file in it")
    if path.stat().st_size == 0:
        raise InputError(f"{path}: the file is empty; copy the slide again")


def looks_like_slide(path: Path) -> bool:
    """Whether a file begins as slides do, whatever its suffix says: as TIFF or DICOM."""
    try:
        return is_tiff(path) or is_dicom(path)
    except OSError:
        return False


def open_source(path: Path, reader: str = "auto", image: int | None = None) -> Source:
    """A file, opened by the reader that is right for it, or by the one asked for.

    Args:
        reader: ``auto``, ``tiffslide`` or ``openslide``; image: number of the image to read, of a TIFF with several.

    Raises:
        InputError: not a slide, truncated, or of a kind that nobody can read; MachineError: it needs OpenSlide, which
            is not installed; UsageError: no such reader.
    """
    if reader not in READERS:
        raise UsageError(f"--reader {reader}: choose one of {', '.join(READERS)}")
    try:
        tiff = is_tiff(path)
        if tiff:
            check_header(path)
    except OSError as e:
        raise InputError(f"{path}: cannot be read ({e.strerror}); check its permissions and the disk") from e
    if tiff:
        return _open_tiff(path, reader, image)
    if reader == TIFFSLIDE:
        raise InputError(f"{path}: this is no TIFF, and tiffslide reads nothing else; leave --reader away")
    if image:
        raise InputError(f"{path}: only TIFF files hold several images; leave --image away")
    facts = Facts("DICOM" if is_dicom(path) else "other")
    spacings = series_spacings(series_of(path)) if facts.format == "DICOM" else {}
    handle = open_openslide(path, "", SLIDE_SUFFIXES)
    return _by_openslide(handle, choose(facts), facts, spacings)


def _open_tiff(path: Path, reader: str, image: int | None) -> Source:
    try:
        handle = TiffHandle(path, image)
    except (KeyboardInterrupt, MemoryError, LrmilError):
        raise
    except Exception as e:  # tifffile lets every kind of error through
        text = f"tifffile cannot read it ({type(e).__name__})"
        with suppress(LrmilError):
            if reader != TIFFSLIDE and image is None:
                other = open_openslide(path, text)
                return _by_openslide(other, Choice(OPENSLIDE, text), Facts("TIFF"))
        raise InputError(
            f"{path}: cannot be opened as a slide ({type(e).__name__}); is the file complete, and one of "
            f"{' '.join(SLIDE_SUFFIXES)}?"
        ) from e
    try:
        return _read_by(path, handle, reader, image)
    except BaseException as e:
        handle.close()
        if isinstance(e, (LrmilError, MemoryError)) or not isinstance(e, Exception):
            raise
        # Tags may hold anything.
        raise InputError(f"{path}: its header makes no sense ({type(e).__name__}: {e}); copy the slide again") from e


def _read_by(path: Path, handle: TiffHandle, reader: str, image: int | None) -> Source:
    facts = handle.facts
    if wrong := refusal(facts):
        raise InputError(f"{path}: {wrong}")
    choice = choose(facts)
    # Until images were chosen, the first one was read.
    ordinary = handle.chosen == choose_image(handle.images, None, str(path)) == 0
    forced: dict[str, Any] = {} if ordinary else {"image": handle.chosen}
    if reader == OPENSLIDE or (reader == "auto" and choice.reader == OPENSLIDE):
        asked = Choice(OPENSLIDE, "as --reader says") if reader == OPENSLIDE else choice
        if facts.vendor in _COMPOSED:
            if image is not None:
                raise InputError(f"{path}: a {facts.vendor} slide is put together from its images; leave --image away")
            forced = {}
        return _tiff_by_openslide(path, handle, asked, forced)
    if reader == TIFFSLIDE:
        if not facts.codec:
            raise InputError(f"{path}: {choice.why}; leave --reader away, or export the slide again")
        forced["reader"] = TIFFSLIDE
        choice = Choice(TIFFSLIDE, "as --reader says")
    else:
        off = _judged(path, handle)
        if off is not None and off > MAX_DIFFERENCE:
            why = f"tifffile's pixels are off OpenSlide's by {off:.0f} gray levels"
            return _tiff_by_openslide(path, handle, Choice(OPENSLIDE, why), forced)
        choice = Choice(choice.reader, choice.why + ("; OpenSlide sees the same" if off is not None else ""))
    first = handle.samples[0]
    forced |= {"depth": first.depth} if facts.bits == 16 and first.depth < 16 else {}
    forced |= {"alpha": first.alpha} if facts.extra and first.alpha != "unassociated" else {}
    return Source(
        choice,
        handle,
        facts,
        handle.stated,
        handle.objective,
        images=describe_images(handle),
        image=handle.chosen,
        spacings=[None] * len(handle.image.levels),
        notes=handle.notes + handle.sample_notes(),
        read_as=forced,
    )


def _judged(path: Path, handle: TiffHandle) -> float | None:
    """What OpenSlide's pixels differ by; None where OpenSlide is not there, or does not open the file."""
    with suppress(LrmilError):
        other = open_openslide(path, "it is compared")
        try:
            return difference(handle, other)
        finally:
            other.close()
    return None


def _tiff_by_openslide(path: Path, handle: TiffHandle, choice: Choice, forced: dict[str, Any]) -> Source:
    """A TIFF, read by OpenSlide where that shows the image that was chosen."""
    other = open_openslide(path, choice.why)
    facts = handle.facts
    first = not any(m.size == handle.image.size for m in handle.images[: handle.chosen])
    if facts.vendor not in _COMPOSED and not (first and other.dimensions == handle.dimensions):
        shown = "{} x {} px".format(*other.dimensions)
        other.close()
        raise InputError(
            f"{path}: {choice.why}, and OpenSlide reads another image of the file ({shown}) than image "
            f"{handle.chosen} of {handle.dimensions[0]} x {handle.dimensions[1]} px; export that as a tiled RGB TIFF"
        )
    source = _by_openslide(other, choice, facts)
    if source.mpp[0] is None and facts.vendor not in ("ventana", "trestle", "philips"):
        source.mpp = handle.stated
    composed = facts.vendor in _COMPOSED
    source.images, source.image = describe_images(handle), None if composed else handle.chosen
    source.notes = [n for n in handle.notes if facts.vendor not in _COMPOSED]
    source.read_as = {**forced, "reader": OPENSLIDE}
    handle.close()
    return source


def _by_openslide(
    handle: OpenSlideHandle,
    choice: Choice,
    facts: Facts,
    spacings: dict[tuple[int, int], tuple[Um, Um]] | None = None,
) -> Source:
    known = handle.properties
    mpp = known.get("openslide.mpp-x"), known.get("openslide.mpp-y"), "OpenSlide's properties"
    bounds = [known.get(f"openslide.bounds-{k}") for k in ("x", "y", "width", "height")]
    vendor = str(known.get("openslide.vendor") or "unknown")
    return Source(
        choice,
        handle,
        Facts(**{**facts.__dict__, "vendor": vendor}),
        mpp,
        known.get("openslide.objective-power"),
        [int(v) for v in bounds if v is not None] if None not in bounds else None,
        [{"image": 0, "kind": "slide", "width": handle.dimensions[0], "height": handle.dimensions[1]}]
        + [{"kind": name, "width": i[0], "height": i[1]} for name, i in _associated(handle)],
        spacings=spacing_of(handle, spacings or {}),
    )


def _associated(handle: OpenSlideHandle) -> list[tuple[str, tuple[int, int]]]:
    """Names and sizes of the pictures beside the slide, which are not decoded for that."""
    known, found = handle.properties, []
    for name in handle.associated_images:
        size = known.get(f"openslide.associated.{name}.width"), known.get(f"openslide.associated.{name}.height")
        found.append((str(name), (int(size[0] or 0), int(size[1] or 0))))
    return found


def describe_images(handle: TiffHandle) -> list[dict[str, Any]]:
    """What each image of a TIFF is, for people and for JSON."""
    return [
        {
            "image": i,
            **({"name": m.name} if m.name else {}),
            "kind": m.kind,
            "width": m.size[0],
            "height": m.size[1],
            "levels": len(m.levels),
        }
        for i, m in enumerate(handle.images)
    ]
