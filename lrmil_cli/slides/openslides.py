"""OpenSlide as a reader that survives damage: after an error it answers nothing any more, and is opened again."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from lrmil_cli.errors import InputError, MachineError


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
    try:
        return OpenSlideHandle(path)
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
