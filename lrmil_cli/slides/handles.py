"""What opens the file of a slide, and what its bytes must be: there, a slide, and complete.

tiffslide opens what is a TIFF; OpenSlide, where installed, opens the other formats (MIRAX, DICOM, Hamamatsu VMS). A
handle is an object of either; both have ``dimensions``, ``level_dimensions``, ``level_downsamples``, ``properties``,
``read_region`` and ``close``. Which file goes which way, and what is checked: slides/README 1.
"""

from __future__ import annotations

import hashlib
import os
from operator import add
from pathlib import Path
from typing import Any

from lrmil_cli.errors import InputError, MachineError
from lrmil_cli.slides.mpp import ome_mpp

TIFF_SUFFIXES = (".svs", ".tif", ".tiff", ".ndpi", ".scn", ".bif", ".btf", ".qptiff")
OPENSLIDE_SUFFIXES = (".mrxs", ".dcm", ".vms", ".vmu", ".svslide")
SLIDE_SUFFIXES = TIFF_SUFFIXES + OPENSLIDE_SUFFIXES


def choose_reader(path: Path) -> str:
    """``tiffslide`` or ``openslide``, by the file's suffix."""
    return "openslide" if path.suffix.lower() in OPENSLIDE_SUFFIXES else "tiffslide"


def check_file(path: Path) -> None:
    """Whether there is a file with something in it.

    Raises:
        InputError: there is none.
    """
    if not path.exists():
        raise InputError(f"{path}: no such file; check the path")
    if path.is_dir():
        raise InputError(f"{path}: this is a folder, not a slide")
    if path.stat().st_size == 0:
        raise InputError(f"{path}: the file is empty; copy the slide again")


def open_handle(path: Path, reader: str) -> Any:
    """The file, opened by ``tiffslide`` or ``openslide``.

    Raises:
        InputError: not a slide, or truncated; MachineError: OpenSlide is needed and not installed.
    """
    if reader == "openslide":
        return _open_openslide(path)
    handle = _open_tiffslide(path)
    try:
        _check_complete(handle, path)
    except BaseException:
        handle.close()
        raise
    return handle


def _open_tiffslide(path: Path) -> Any:
    import tiffslide

    try:
        handle = tiffslide.TiffSlide(str(path))
        _ = handle.dimensions, handle.level_dimensions, handle.properties
        return handle
    except (KeyboardInterrupt, MemoryError):
        raise
    except Exception as e:  # tiffslide lets tifffile's, zarr's and its own errors through
        raise InputError(
            f"{path}: cannot be opened as a slide ({type(e).__name__}); is the file complete, and one of "
            f"{' '.join(SLIDE_SUFFIXES)}?"
        ) from e


def _open_openslide(path: Path) -> Any:
    try:
        import openslide
    except ImportError as e:
        raise MachineError(f"{path}: {path.suffix} slides need OpenSlide: pip install 'lrmil-cli[openslide]'") from e
    try:
        return openslide.OpenSlide(str(path))
    except (openslide.OpenSlideError, OSError) as e:
        raise InputError(f"{path}: OpenSlide cannot open it ({' '.join(str(e).split())[:120]})") from e


def _check_complete(handle: Any, path: Path) -> None:
    """A truncated TIFF opens without complaint: every block that the header promises must lie inside the file, and so
    must the next page that its last readable one names; else levels would be missing unseen."""
    size, tiff = path.stat().st_size, handle.ts_tifffile
    with open(path, "rb") as fh:
        fh.seek(tiff.pages.next_page_offset or 0)
        following = fh.read(tiff.tiff.offsetsize)
    next_page = int.from_bytes(following, "little" if tiff.byteorder == "<" else "big")
    if len(following) < tiff.tiff.offsetsize or next_page >= size:
        raise InputError(
            f"{path}: truncated, some of its levels or pictures are missing at the end; copy the slide again"
        )
    for series in tiff.series[:1]:
        for level in series.levels:
            for page in level.pages:
                if max(map(add, page.dataoffsets, page.databytecounts), default=0) > size:
                    raise InputError(f"{path}: truncated, it ends before its image data does; copy the slide again")


def handle_property(handle: Any, name: str) -> Any:
    """A property of either library's handle, asked for without the library's prefix; None where it has none."""
    for prefix in ("tiffslide", "openslide"):
        value = handle.properties.get(f"{prefix}.{name}")
        if value is not None:
            return value
    return None


def stated_mpp(handle: Any) -> tuple[Any, Any]:
    """um/px along x and y as the metadata says it, unchecked; OME-XML, where there is some, before the rest."""
    mpp_x, mpp_y = handle_property(handle, "mpp-x"), handle_property(handle, "mpp-y")
    tiff = getattr(handle, "ts_tifffile", None)
    if tiff is not None and tiff.is_ome:
        ome_x, ome_y = ome_mpp(tiff.ome_metadata)
        mpp_x, mpp_y = ome_x or mpp_x, ome_y or mpp_y
    return mpp_x, mpp_y


def fingerprint(path: str | Path) -> str:
    """Digest of a file's size and of 18 samples of 16 kB spread over it, first and last included.

    Raises:
        InputError: the file cannot be read.
    """
    try:
        size = os.path.getsize(path)
        h = hashlib.sha256(str(size).encode())
        with open(path, "rb") as fh:
            for k in range(18):
                fh.seek(max(0, (size - 16384) * k // 17))
                h.update(fh.read(16384))
    except OSError as e:
        raise InputError(f"{path}: cannot be read ({e.strerror})") from e
    return h.hexdigest()[:32]
