"""What the user says of the tissue of one slide, in place of what would be found: a mask, and how much is enough."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from lrmil_cli.errors import InputError
from lrmil_cli.slide_names import MASK_SUFFIXES

#: A mask may be so much wider or higher than the slide's shape says; makers of masks round their sides.
_MAX_MISFIT = 0.01


@dataclass(frozen=True)
class Given:
    """Of one slide.

    Attributes:
        mask: bool [H, W] of the whole slide, at any scale; None to look for tissue.
        mask_file, mask_digest: where it came from, and of its pixels.
        min_tissue: share of a tile, which wins over that of the settings; None to leave it to them.
    """

    mask: np.ndarray | None = None
    mask_file: str = ""
    mask_digest: str = ""
    min_tissue: float | None = None

    @property
    def made_of(self) -> dict[str, str]:
        """For digests: what is given, and nothing for what is not."""
        own = {} if self.mask is None else {"mask": self.mask_digest}
        return own | ({} if self.min_tissue is None else {"min_tissue": repr(self.min_tissue)})

    @property
    def about(self) -> dict[str, str]:
        """For headers: the same, and the file of the mask."""
        return self.made_of | ({} if self.mask is None else {"mask_file": self.mask_file})


def read_mask(path: str | Path, width: int, height: int) -> Given:
    """The mask of a slide of ``width`` x ``height`` px: a picture of the whole slide whose pixels above 0 are tissue.

    Raises:
        InputError: no such file, no picture, or not of the slide's shape.
    """
    try:
        data = np.fromfile(path, np.uint8)
    except OSError as e:
        raise InputError(
            f"{path}: the mask cannot be read ({e.strerror or e}); check its permissions and the disk"
        ) from e
    try:
        image = cv2.imdecode(data, cv2.IMREAD_UNCHANGED) if data.size else None
    except cv2.error:  # larger than OpenCV decodes
        image = None
    if image is None:
        raise InputError(f"{path}: no picture that can be read; a mask is a PNG of the slide, white where tissue is")
    colours = image if image.ndim == 2 else image[..., : 1 if image.shape[2] == 2 else 3].max(axis=2)
    mask = colours > 0
    rows, cols = mask.shape
    # As far off as a pixel of the mask, by rounding, is no other shape.
    if abs(cols / width - rows / height) > max(_MAX_MISFIT * rows / height, 1 / width, 1 / height):
        raise InputError(
            f"{path}: the mask of {cols} x {rows} px has another shape than the slide of {width} x {height} px; a mask "
            "covers the whole slide, at any scale"
        )
    digest = hashlib.sha256(f"{rows}x{cols}|".encode() + np.packbits(mask).tobytes()).hexdigest()[:32]
    return Given(mask, str(Path(path).absolute()), digest)


def find_mask(path: str | Path, slide_id: str) -> Path:
    """The mask of one slide: ``path`` itself, or ``<slide id>.png`` (or another picture) in a folder.

    Raises:
        InputError: the folder holds none, or more than one.
    """
    folder = Path(path)
    if not folder.is_dir():
        return folder
    found = [p for suffix in MASK_SUFFIXES if (p := folder / f"{slide_id}{suffix}").exists()]
    if len(found) != 1:
        what = f"holds {found[0].name} and {found[1].name}" if found else f"holds no {slide_id}.png"
        raise InputError(f"{path}: the folder {what}; give one mask for each slide")
    return found[0]
