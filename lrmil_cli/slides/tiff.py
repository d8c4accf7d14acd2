"""A TIFF as a slide: the image chosen in it, its levels, what its metadata says, and whether it is complete."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from lrmil_cli.errors import InputError
from lrmil_cli.slides.blocks import block_bytes, block_count, open_blocks
from lrmil_cli.slides.choice import PAINTED, Facts
from lrmil_cli.slides.images import choose_image, description_of, second_images, tiff_images
from lrmil_cli.slides.ome import scn_mpp
from lrmil_cli.slides.samples import Samples, depth_of, samples_of, stated_depth, to_rgb8
from lrmil_cli.slides.tiff_header import is_ndpi

# tifffile logs what it then works around, or raises; without this that would go to stderr.
logging.getLogger("tifffile").addHandler(logging.NullHandler())

#: Blocks of the finest level that are looked at where only the pixels say what samples mean.
_LOOK_AT = 16

_UM_PER_UNIT = {2: 25400.0, 3: 10000.0, 4: 1000.0, 5: 1.0}
_UM_PER_NAME = {
    "um": 1.0,
    "µm": 1.0,
    "micron": 1.0,
    "microns": 1.0,
    "micrometer": 1.0,
    "mm": 1e3,
    "cm": 1e4,
    "nm": 1e-3,
}
_UNIT, _X, _Y, _SOFTWARE, _XMP, _LENS = 296, 282, 283, 305, 700, 65421


class TiffHandle:
    """An open TIFF with one of its images chosen.

    Attributes:
        pages: of the file, without those that hang on others.
        images: all of them; chosen: the number of the slide among them.
        notes: what the user should know of how it is read.
    """

    def __init__(self, path: Path, number: int | None = None):
        """Open a file.

        Raises:
            InputError: truncated, or without the image asked for; else whatever tifffile raises.
        """
        import tifffile

        self.path = path
        self.tiff = tifffile.TiffFile(path, is_ndpi=is_ndpi(path))
        try:
            self.pages: list[Any] = list(self.tiff.pages)
            self.images = tiff_images(self.pages)
            self.chosen = choose_image(self.images, number, str(path))
            self._check_complete()
        except BaseException:
            self.tiff.close()
            raise
        self.image = self.images[self.chosen]
        self.notes = self._notes(number)

    def close(self) -> None:
        self.tiff.close()

    @property
    def dimensions(self) -> tuple[int, int]:
        """Width and height in level-0 px."""
        return self.image.size

    @property
    def level_dimensions(self) -> list[tuple[int, int]]:
        """Width and height of each level in its px, finest first."""
        return [(int(level[0].imagewidth), int(level[0].imagelength)) for level in self.image.levels]

    @cached_property
    def vendor(self) -> str:
        """Who made the file, ``unknown`` where it does not say."""
        page = self.pages[0]
        about, software = description_of(page).strip(), str(page.tags.valueof(_SOFTWARE, ""))
        if about.startswith("Aperio"):
            return "aperio"
        if 65420 in page.tags:
            return "hamamatsu"
        if about.endswith("</scn>"):
            return "leica"
        if any(_XMP in p.tags and b"<iScan" in _bytes(p.tags.valueof(_XMP)) for p in self.pages[:3]):
            return "ventana"
        if software.startswith("Philips DP") and about.endswith("</DataObject>"):
            return "philips"
        return "trestle" if software.startswith("MedScan") else "unknown"

    @cached_property
    def facts(self) -> Facts:
        """What decides who reads it."""
        page = self.image.page
        bits = page.bitspersample if isinstance(page.bitspersample, int) else max(page.bitspersample)
        return Facts(
            "TIFF",
            self.vendor,
            int(page.compression),
            int(page.photometric),
            int(page.samplesperpixel),
            int(bits),
            "u" if page.dtype is None else page.dtype.kind,
            tuple(int(e) for e in page.extrasamples or ()),
            bool(page.planarconfig != 1 and page.samplesperpixel > 1),
            bool(page.is_tiled),
            all(_has_codec(level[0]) for level in self.image.levels),
            max(block_bytes(page) for level in self.image.levels for page in level),
            self.image.channels,
            self.image.planes,
            PAINTED in description_of(self.pages[0]),
        )

    @cached_property
    def samples(self) -> list[Samples]:
        """How the pixels of each level are to be understood."""
        page = self.image.page
        plain = samples_of(page)
        depth, opaque = stated_depth(page) or 0, False
        if not depth or plain.alpha != "none":
            most = [(float(pixels.max()), bool(pixels[..., -1].any())) for pixels in self._some_blocks()]
            if not depth:
                depth = depth_of(max((m for m, _ in most), default=65535.0))
            opaque = plain.alpha != "none" and bool(most) and not any(alpha for _, alpha in most)
        return [samples_of(level[0], depth, opaque) for level in self.image.levels]

    def sample_notes(self) -> list[str]:
        """What had to be found out about samples, for the user."""
        page, own = self.image.page, self.samples[0]
        notes = []
        if page.dtype == np.uint16 and own.depth < 16:
            how = "as its tags say" if stated_depth(page) else f"the most in {_LOOK_AT} blocks looked at"
            notes.append(f"its 16-bit samples hold {own.depth} bits ({how}) and are scaled by that")
        if samples_of(page).alpha != "none" and own.alpha == "none":
            notes.append("its alpha is 0 in all blocks looked at, and is taken for no alpha")
        return notes

    def _some_blocks(self) -> Iterator[np.ndarray]:
        """Pixels [h, w, samples] of blocks spread over the finest level, the same ones each time."""
        blocks = open_blocks(self.image.levels[0], None)
        count = blocks.cols * blocks.rows
        for index in np.unique(np.linspace(0, count - 1, min(count, _LOOK_AT)).astype(int)).tolist():
            if index in blocks.missing:
                continue
            try:
                pixels = blocks.decode(index)
            except (KeyboardInterrupt, MemoryError):
                raise
            except Exception:  # a damaged block says nothing of the others
                continue
            yield pixels if pixels.ndim == 3 else pixels[..., None]

    def to_rgb(self, level: int, pixels: np.ndarray) -> np.ndarray:
        """uint8 [H, W, 3] of pixels of a level as the file holds them."""
        return to_rgb8(pixels, self.samples[level])

    @cached_property
    def stated(self) -> tuple[Any, Any, str]:
        """um/px along x and y as the metadata says it, unchecked, and which part of the metadata says so."""
        page, ome = self.image.page, self.image.ome
        if ome is not None and ome.mpp_x and ome.mpp_y:
            return ome.mpp_x, ome.mpp_y, "OME-XML"
        if self.vendor == "leica":
            return *scn_mpp(description_of(self.pages[0])), "Leica's XML"
        about = aperio_values(description_of(page)) if self.vendor == "aperio" else {}
        if about.get("MPP"):
            return about["MPP"], about["MPP"], "Aperio's description"
        unit = _UM_PER_UNIT.get(int(page.tags.valueof(_UNIT, 2) or 0))
        name = "resolution tags"
        if unit is None and (unit := _imagej_unit(description_of(page))):
            name = "ImageJ's description and resolution tags"
        x, y = (_ratio(page.tags.valueof(tag)) for tag in (_X, _Y))
        return (unit / x, unit / y, name) if unit and x and y else (None, None, "")

    @property
    def objective(self) -> Any:
        """Power of the objective as the metadata says it, or None."""
        page = self.pages[0]
        if self.vendor == "hamamatsu":
            return page.tags.valueof(_LENS)
        return aperio_values(description_of(page)).get("AppMag") if self.vendor == "aperio" else None

    def _notes(self, number: int | None) -> list[str]:
        notes = []
        image = self.image
        second = second_images(self.images, self.chosen)
        if second and number is None:
            which = ", ".join(
                f"image {i}{f' ({self.images[i].name})' if self.images[i].name else ''} of "
                f"{self.images[i].size[0]} x {self.images[i].size[1]} px"
                for i in second[:4]
            )
            notes.append(f"holds more than one large image: image {self.chosen} is read, and not {which}; see --image")
        if image.planes > 1:
            notes.append(f"holds {image.planes} focal planes or times, of which one is read")
        return notes

    def _check_complete(self) -> None:
        """A truncated TIFF opens without complaint: every block that the header promises must lie inside the file, and
        so must the next page that its last readable one names; else levels would be missing unseen."""
        path, tiff = self.path, self.tiff
        size = path.stat().st_size
        with open(path, "rb") as fh:
            fh.seek(tiff.pages.next_page_offset or 0)
            following = fh.read(tiff.tiff.offsetsize)
        next_page = int.from_bytes(following, "little" if tiff.byteorder == "<" else "big")
        if len(following) < tiff.tiff.offsetsize or next_page >= size:
            raise InputError(
                f"{path}: truncated, some of its levels or pictures are missing at the end; copy the slide again"
            )
        for page in (page for level in self.images[self.chosen].levels for page in level):
            self._check_blocks(page, size)

    def _check_blocks(self, page: Any, size: int) -> None:
        """Whether a page names all its blocks, and they lie inside a file of ``size`` bytes."""
        wanted, a_row = block_count(page)
        known = min(len(page.dataoffsets), len(page.databytecounts))
        if wanted - known > a_row:  # the last row of blocks may lack its entries (Philips)
            raise InputError(
                f"{self.path}: its header is damaged: {page.imagewidth:,} x {page.imagelength:,} px are {wanted:,} "
                f"blocks, and it lists {known:,}; copy or export the slide again"
            )
        if known == 0:
            return
        try:
            offsets, counts = (np.asarray(v[:known], np.int64) for v in (page.dataoffsets, page.databytecounts))
            outside = min(offsets.min(), counts.min()) < 0 or max(offsets.max(), counts.max()) > size
        except OverflowError:
            outside = True
        if outside or (offsets + counts).max() > size:
            raise InputError(f"{self.path}: truncated, it ends before its image data does; copy the slide again")


def aperio_values(about: str) -> dict[str, str]:
    """``KEY = VALUE`` between the bars of Aperio's description; the last of several counts."""
    pairs = (part.partition("=") for part in about.split("|")[1:])
    return {key.strip(): value.strip() for key, equals, value in pairs if equals}


def _imagej_unit(about: str) -> float | None:
    """um per unit of length that ImageJ's description names."""
    if not about.startswith("ImageJ="):
        return None
    units = [line.partition("=")[2].strip() for line in about.splitlines() if line.startswith("unit=")]
    return _UM_PER_NAME.get(units[0].replace("\\u00B5", "µ").lower()) if units else None


def _ratio(value: Any) -> float | None:
    """A rational number of a tag as one number; None where it is none (0/0, 1/0, 0/1)."""
    try:
        above, below = (*value, 1)[:2] if isinstance(value, tuple) else (value, 1)  # one number, where it is a float
        number = float(above) / float(below)
    except (TypeError, ValueError, ZeroDivisionError):
        return None
    return number if number > 0 and np.isfinite(number) else None


def _has_codec(page: Any) -> bool:
    """Whether tifffile and imagecodecs can decode the compression of a page."""
    from tifffile import TIFF

    try:
        TIFF.DECOMPRESSORS[page.compression]
    except (KeyError, ValueError, ImportError, AttributeError):
        return False
    return True


def _bytes(value: Any) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode("utf-8", "replace")
