"""The images of a TIFF: which pages are one pyramid, which of them is the slide, and what the others are.

tifffile's series follow the rules of each vendor and lose levels that do not; here a page is a level of a larger one if
its size says so. What is a label, a macro or a thumbnail, and which image is the slide: slides/README 1.3.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from lrmil_cli.errors import InputError
from lrmil_cli.slides.ome import OmeImage, ome_images

#: What a level's two factors may differ by beside rounding; what differs more shows something else.
MAX_ASPECT = 0.05
#: An image of this share of the slide's pixels is large enough to be a second slide.
SECOND_SHARE = 0.25

_EXTRAS = ("label", "macro", "thumbnail", "overview")
_EXTRA_WORD = re.compile(rf"\b({'|'.join(_EXTRAS)})\b", re.IGNORECASE)
_SUBFILE_MACRO = 9
_RGB = {"red", "green", "blue"}


@dataclass(frozen=True)
class TiffImage:
    """One image of a TIFF.

    Attributes:
        name: as the file calls it, else empty; kind: ``slide``, ``label``, ``macro``, ``thumbnail`` or ``overview``.
        levels: pages of each level, finest first; more than one where each colour has a page of its own.
        channels: of an image whose grey pages are no RGB: their names, empty ones included.
        planes: focal planes or times, of which ``levels`` holds one.
        ome: its entry in the OME-XML, where there is some.
    """

    name: str
    kind: str
    levels: tuple[tuple[Any, ...], ...]
    channels: tuple[str, ...] = ()
    planes: int = 1
    ome: OmeImage | None = None

    @property
    def page(self) -> Any:
        """The first page of the finest level."""
        return self.levels[0][0]

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the finest level in its px."""
        return int(self.page.imagewidth), int(self.page.imagelength)

    @property
    def area(self) -> int:
        return self.size[0] * self.size[1]


def description_of(page: Any) -> str:
    """The description of a page; bytes that are no UTF-8 are read as far as they go."""
    value = page.tags.valueof(270, "")
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def tiff_images(pages: Sequence[Any]) -> list[TiffImage]:
    """All images of tifffile's ``pages`` of a file, in their order."""
    pages = [page for page in pages if page.imagewidth and page.imagelength]
    if 65420 in pages[0].tags:
        return _ndpi_images(pages)
    groups = _ome_groups(pages) if description_of(pages[0]).rstrip().endswith("OME>") else None
    if groups is None:
        groups = [(p, None) for p in _grey_groups(pages)]
    found = [_image(group, ome) for group, ome in groups]
    return _with_levels(found)


def choose_image(images: Sequence[TiffImage], number: int | None, where: str) -> int:
    """Which image is the slide: the one asked for, else the largest that is no label, macro or thumbnail.

    Raises:
        InputError: there is no image of that number.
    """
    if number is not None:
        if not 0 <= number < len(images):
            raise InputError(
                f"{where}: no image {number}; it has {len(images)}, numbered from 0 (`lrmil info` lists them)"
            )
        return number
    slides = [i for i, image in enumerate(images) if image.kind == "slide"] or list(range(len(images)))
    return max(slides, key=lambda i: (images[i].area, -i))


def second_images(images: Sequence[TiffImage], chosen: int) -> list[int]:
    """Other images that are large enough to be slides."""
    least = SECOND_SHARE * images[chosen].area
    return [i for i, m in enumerate(images) if i != chosen and m.kind == "slide" and m.area >= least]


def is_level(base: tuple[int, int], size: tuple[int, int]) -> bool:
    """Whether an image of ``size`` (width, height) can be a smaller copy of one of size ``base``."""
    factor_x, factor_y = base[0] / size[0], base[1] / size[1]
    mean = (factor_x + factor_y) / 2
    return mean > 1 and abs(factor_x - factor_y) <= MAX_ASPECT * mean + 2 * mean / min(size)


def _image(pages: list[Any], ome: OmeImage | None) -> TiffImage:
    """The image of pages of one size, with the levels that hang on them (SubIFDs)."""
    first, count = pages[0], len(pages)
    name = ome.name if ome else ""
    kind = _kind(first, name)
    chosen: tuple[Any, ...] = (first,)
    channels: tuple[str, ...] = ()
    planes = 1
    if count > 1 and first.samplesperpixel == 1 and (ome is None or ome.planes == 1):
        names = ome.channels if ome and len(ome.channels) == count else ("",) * count
        by_colour = {n.lower(): page for n, page in zip(names, pages)}
        if count == 3 and set(by_colour) == _RGB:
            chosen = tuple(by_colour[colour] for colour in ("red", "green", "blue"))
        else:
            channels = names
    elif count > 1 and ome is not None:
        planes = count
        chosen = (pages[ome.middle(count)],)
        if first.samplesperpixel == 1 and len(ome.channels) > 1:
            channels = ome.channels
    hanging = zip(*[page.pages or () for page in chosen]) if all(p.subifds for p in chosen) else ()
    levels = [chosen, *(tuple(level) for level in hanging if is_level(_size(first), _size(level[0])))]
    levels.sort(key=lambda level: -_area(level[0]))
    return TiffImage(name, kind, tuple(levels), channels, planes, ome)


def _kind(page: Any, name: str) -> str:
    """What a page says it is: in its name, in the first lines of its description, or by its type of subfile."""
    if page.subfiletype == _SUBFILE_MACRO:
        return "macro"
    about = description_of(page)
    lines = "" if about.startswith("<?xml") else "\n".join(about.split("|")[0].splitlines()[:2])[:200]
    word = _EXTRA_WORD.search(f"{name}\n{lines}")
    return word.group(1).lower() if word else "slide"


def _with_levels(found: list[TiffImage]) -> list[TiffImage]:
    """Images of which smaller copies, where those are pages of their own, have become levels."""
    left = list(range(len(found)))
    out: dict[int, TiffImage] = {}
    while left:
        base = found[max(left, key=lambda i: (found[i].kind == "slide", found[i].area, -i))]
        same = [i for i in left if found[i].size == base.size and found[i].kind == base.kind]
        takes: dict[tuple[int, int], list[int]] = {}
        for i in left:
            if _belongs(base, found[i]):
                takes.setdefault(found[i].size, []).append(i)
        for number, i in enumerate(same):
            own = [at[number] for at in takes.values() if number < len(at)]
            levels = sorted(
                (*found[i].levels, *(level for k in own for level in found[k].levels)), key=lambda l: -_area(l[0])
            )
            out[i] = replace(found[i], levels=tuple(levels))
        used = {*same, *(i for at in takes.values() for i in at[: len(same)])}
        left = [i for i in left if i not in used]
    return [_thumbnail(out[i], out) for i in sorted(out)]


def _thumbnail(image: TiffImage, others: dict[int, TiffImage]) -> TiffImage:
    """The image, called a thumbnail where it shows a larger one and is no level of it (in strips, as Aperio has it)."""
    small = image.kind == "slide" and len(image.levels) == 1 and not image.page.is_tiled
    larger = any(o.page.is_tiled and is_level(o.size, image.size) for o in others.values())
    return replace(image, kind="thumbnail") if small and larger else image


def _belongs(base: TiffImage, other: TiffImage) -> bool:
    """Whether a page is a level of ``base``: a smaller copy of the same samples, in tiles where that has tiles."""
    mine, its = base.page, other.page
    return (
        other.kind == base.kind
        and is_level(base.size, other.size)
        and (mine.samplesperpixel, mine.bitspersample, mine.dtype, len(base.levels[0]))
        == (its.samplesperpixel, its.bitspersample, its.dtype, len(other.levels[0]))
        and mine.is_tiled == its.is_tiled
        and base.channels == other.channels
    )


def _grey_groups(pages: list[Any]) -> list[list[Any]]:
    """Pages that show one image: grey ones of one size that follow each other are its channels."""
    groups: list[list[Any]] = []
    for page in pages:
        last = groups[-1][-1] if groups else None
        if (
            last is not None
            and page.samplesperpixel == last.samplesperpixel == 1
            and _size(page) == _size(last)
            and page.dtype == last.dtype
        ):
            groups[-1].append(page)
        else:
            groups.append([page])
    return groups


def _ome_groups(pages: list[Any]) -> list[tuple[list[Any], OmeImage | None]] | None:
    """Pages of each image that the OME-XML names, as far as they are in this file; None where the XML says nothing."""
    images = ome_images(description_of(pages[0]))
    if not images:
        return None
    groups: list[tuple[list[Any], OmeImage | None]] = []
    at = 0
    for image in images:
        if image.first_ifd is not None and at < image.first_ifd < len(pages):
            at = image.first_ifd
        if at >= len(pages):
            break
        wanted = image.pages(int(pages[at].samplesperpixel))
        own = [p for p in pages[at : at + wanted] if _size(p) == _size(pages[at])]
        groups.append((own, image))
        at += len(own)
    return groups + [(group, None) for group in _grey_groups(pages[at:])]


def _ndpi_images(pages: list[Any]) -> list[TiffImage]:
    """Images of a Hamamatsu NDPI: tag 65421 is the lens (-1 macro, -2 map), tag 65424 the focal plane."""
    lens = [float(page.tags.valueof(65421, 0)) for page in pages]
    slide = [page for page, power in zip(pages, lens) if power > 0]
    planes = sorted({int(page.tags.valueof(65424, 0)) for page in slide}, key=abs)
    levels = [(p,) for p in slide if int(p.tags.valueof(65424, 0)) == planes[0]]
    levels.sort(key=lambda level: -_area(level[0]))
    images = [TiffImage("", "slide", tuple(levels), planes=len(planes))] if levels else []
    return images + [
        TiffImage("", "macro" if power == -1 else "overview", ((page,),))
        for page, power in zip(pages, lens)
        if power <= 0
    ]


def _size(page: Any) -> tuple[int, int]:
    return int(page.imagewidth), int(page.imagelength)


def _area(page: Any) -> int:
    return int(page.imagewidth) * int(page.imagelength)
