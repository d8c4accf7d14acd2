"""OpenSlide as a reader that survives damage: after an error it answers nothing any more, and is opened again."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from lrmil_cli.errors import InputError, MachineError

#: Pixels of level 0 for each byte of a slide's files, where most of them may be left out.
_MAX_RATIO = 1 << 16
#: What MIRAX says of itself in text: how much of it is read, the numbers that are looked at, and their most.
_MIRAX_BYTES = 1 << 20
_MIRAX_NUMBER = re.compile(
    r"^\s*(IMAGENUMBER_[XY]|\w+_COUNT|DIGITIZER_\w+|CameraImageDivisionsPerSide)\s*=\s*(\d+)", re.MULTILINE
)
_MIRAX_MOST = 100_000


class OpenSlideHandle:
    """An open slide of OpenSlide's, for several threads.

    Attributes:
        dimensions, level_dimensions, level_downsamples, properties, associated_images: as OpenSlide has them.
    """

    def __init__(self, path: Path):
        import openslide

        self._path = path
        self._handle = handle = openslide.OpenSlide(str(path))
        self.dimensions = tuple(int(n) for n in handle.dimensions)
        self.level_dimensions = [(int(w), int(h)) for w, h in handle.level_dimensions]
        self.level_downsamples = [float(d) for d in handle.level_downsamples]
        self.properties: dict[str, str] = dict(handle.properties)
        self.associated_images = list(handle.associated_images)

    def close(self) -> None:
        self._handle.close()

    def read_region(self, where: tuple[int, int], level: int, size: tuple[int, int]) -> np.ndarray:
        """uint8 [h, w, 4], RGB and alpha, of the rectangle of ``size`` px of the level at ``where`` in level-0 px.

        Raises:
            openslide.OpenSlideError: it is damaged there.
        """
        import openslide

        try:
            return np.asarray(self._handle.read_region(where, level, size))
        except openslide.OpenSlideError:
            # The damage may have been met before, or by another thread. Nobody else uses the fresh one until it has
            # shown that it lives.
            fresh = openslide.OpenSlide(str(self._path))
            try:
                pixels = np.asarray(fresh.read_region(where, level, size))
            except BaseException:
                fresh.close()
                raise
            self._handle = fresh  # the other one is closed when the last thread has left it
            return pixels


def open_openslide(path: Path, why: str, suffixes: tuple[str, ...] = ()) -> OpenSlideHandle:
    """A file, opened by OpenSlide.

    Args:
        why: it must be OpenSlide, for messages; empty where the file is no TIFF. suffixes: what slides are called.

    Raises:
        InputError: OpenSlide does not open it; MachineError: it is not installed.
    """
    try:
        import openslide
    except (ImportError, OSError) as e:  # OSError: the package is there, the library is not
        needed = why or f"{path.suffix or 'such'} slides are no TIFF"
        raise MachineError(f"{path}: {needed}: this needs OpenSlide; pip install openslide-python openslide-bin") from e
    if path.suffix.lower() == ".mrxs":
        _check_mirax(path)
    try:
        handle = OpenSlideHandle(path)
    except (openslide.OpenSlideError, OSError) as e:
        said = " ".join(str(e).split())[:120]
        if why:
            raise InputError(
                f"{path}: {why}, and OpenSlide cannot open it ({said}); export it as tiled RGB TIFF"
            ) from e
        raise InputError(
            f"{path}: cannot be opened as a slide (no TIFF, and OpenSlide says: {said}); is the file complete, and one "
            f"of {' '.join(suffixes)}?"
        ) from e
    try:
        _check_size(path, handle)
    except BaseException:
        handle.close()
        raise
    return handle


def _check_mirax(path: Path) -> None:
    """Whether the numbers by which OpenSlide takes memory can be, before it does.

    Raises:
        InputError: one of them is more than any slide has.
    """
    try:
        with open(path.with_suffix("") / "Slidedat.ini", encoding="utf-8", errors="replace") as fh:
            text = fh.read(_MIRAX_BYTES)
    except OSError:  # OpenSlide says it
        return
    found = {key: int(value) for key, value in _MIRAX_NUMBER.findall(text)}
    images = min(found.get("IMAGENUMBER_X", 1), found.get("IMAGENUMBER_Y", 1))
    for key, value in found.items():
        if value > (images if key.startswith("Camera") else _MIRAX_MOST):
            raise InputError(f"{path}: its Slidedat.ini is damaged: {key} = {value}; copy the slide again")


def _check_size(path: Path, handle: OpenSlideHandle) -> None:
    """Whether a slide of this size can be in its files: most of it may be left out, but not all.

    Raises:
        InputError: it has no size, or too many pixels a byte.
    """
    width, height = handle.dimensions
    size = path.stat().st_size
    if width * height > _MAX_RATIO * size:  # its pixels may be in files beside it
        beside = path.with_suffix("")
        others = {*path.parent.iterdir(), *(beside.iterdir() if beside.is_dir() else ())} - {path}
        size += sum(p.stat().st_size for p in others if p.is_file())
    if min(min(level) for level in handle.level_dimensions) < 1 or width * height > _MAX_RATIO * size:
        raise InputError(
            f"{path}: its header is damaged: it claims {width:,} x {height:,} px, more than {size:,} bytes can hold; "
            "copy or export the slide again"
        )
