"""Level-0 pixels per pixel of a level: by sizes where those agree, else measured. The rule: slides/README 2.3."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from lrmil_cli.errors import InputError
from lrmil_cli.slides.images import is_level
from lrmil_cli.units import Level0Px, LevelPx

#: Side in px of the patches of a level that are compared with the level above it, and how many are looked for.
PATCH_PX = 128
#: Side in px of what is read of the level above for a patch, and of the smallest patch that shows anything.
_MAX_ABOVE_PX, _MIN_PATCH_PX = 2048, 16
_GRID = 4
_COMPARED = 6
#: What padding to whole tiles may add to a level, in px.
_MAX_PADDING = 1024
#: What two pictures of the same place correlate by at least.
_SAME = 0.5
#: What another factor must be better by than one that stands before it.
_BETTER = 0.9

#: Pixels of a rectangle (x, y, width, height in px of the level) of a level of the file.
Read = Callable[[int, int, int, int, int], np.ndarray]


@dataclass(frozen=True)
class Level:
    """One level of the pyramid: its size in its own pixels, level-0 pixels per pixel along x and y, its number in the
    file."""

    width: LevelPx
    height: LevelPx
    downsample_x: float
    downsample_y: float
    index: int = 0

    @classmethod
    def of_size(cls, size: tuple[int, int], full: tuple[int, int], index: int) -> Level:
        """A level whose factors are those of its size."""
        return cls(LevelPx(size[0]), LevelPx(size[1]), full[0] / size[0], full[1] / size[1], index)

    @property
    def downsample(self) -> float:
        return (self.downsample_x + self.downsample_y) / 2


def snap_downsample(full: Level0Px | int, reduced: LevelPx | int) -> float:
    """Level-0 pixels per level pixel along one axis.

    Scanners round or cut the size of a level, so that ``full / reduced`` is slightly off (2.0005, 16.01). Where a
    whole factor explains the size to within one pixel, the factor is the truth.
    """
    ratio = full / reduced
    whole = round(ratio)
    return float(whole) if whole >= 1 and abs(full / whole - reduced) < 1 else ratio


def settle_levels(
    sizes: Sequence[tuple[int, int]], spacings: Sequence[tuple[float, float] | None], read: Read
) -> tuple[list[Level], list[int]]:
    """The levels with their factors.

    Args:
        sizes: width and height of each in its px, level 0 first; spacings: factors along x and y by what the file says
            of the distance of pixels, where it does; read: pixels of a level.

    Returns:
        the levels, finest first, cut to the slide; numbers of those that show something else and are left out.
    """
    full = sizes[0]
    spacings = spacings or [None] * len(sizes)
    levels = [Level(LevelPx(full[0]), LevelPx(full[1]), 1.0, 1.0)]
    dropped = []
    for i, size in enumerate(sizes[1:], start=1):
        factors = _by_size(full, size) or _by_spacing(full, size, spacings[i])
        factors = factors or _measured(full, size, i, spacings[i], levels, read)
        if factors is None:
            dropped.append(i)
            continue
        width, height = (min(s, max(1, int(np.ceil(f / k)))) for s, f, k in zip(size, full, factors))
        levels.append(Level(LevelPx(width), LevelPx(height), *factors, i))
    return sorted(levels, key=lambda level: level.downsample), dropped


def _by_size(full: tuple[int, int], size: tuple[int, int]) -> tuple[float, float] | None:
    """Factors of a level whose size says them: whole ones that are the same along x and y."""
    if min(size) < 1:
        return None
    x, y = (snap_downsample(f, s) for f, s in zip(full, size))
    if x == y and x.is_integer():
        return x, y
    # A level of a few pixels has no exact factor, and nobody reads from it.
    return (full[0] / size[0], full[1] / size[1]) if min(size) < 16 and is_level(full, size) else None


def _by_spacing(
    full: tuple[int, int], size: tuple[int, int], spacing: tuple[float, float] | None
) -> tuple[float, float] | None:
    """Factors that the distance of pixels says, where they are whole and the size is that of a padded level."""
    if spacing is None:
        return None
    whole = [round(factor) for factor in spacing]
    if whole[0] != whole[1] or any(abs(s - w) > 0.005 * w for s, w in zip(spacing, whole)):
        return None
    off = [s - f / w for s, f, w in zip(size, full, whole)]
    return (float(whole[0]), float(whole[1])) if all(-1 < o < _MAX_PADDING for o in off) else None


def _candidates(
    full: tuple[int, int], size: tuple[int, int], spacing: tuple[float, float] | None
) -> list[tuple[float, float]]:
    """Factors that may be the truth, the likeliest first."""
    ratios = full[0] / size[0], full[1] / size[1]
    found = [spacing] if spacing else []
    if is_level(full, size):
        x, y = (snap_downsample(f, s) for f, s in zip(full, size))
        found += [(x, y), ratios]
    # Cut or padded: a whole factor that leaves the size off by less than some tiles.
    powers = [2**n for n in range(1, 13)]
    for whole in sorted({*(round(r) for r in ratios if r > 1.5), *powers}):
        off = [s - f / whole for f, s in zip(full, size)]
        if all(-PATCH_PX / 4 < o < min(_MAX_PADDING, 2 * f / whole) for o, f in zip(off, full)):
            found.append((float(whole), float(whole)))
    return list(dict.fromkeys(found))


def _measured(
    full: tuple[int, int],
    size: tuple[int, int],
    index: int,
    spacing: tuple[float, float] | None,
    levels: Sequence[Level],
    read: Read,
) -> tuple[float, float] | None:
    """The factors by which a level looks most like the one above it; None where it looks like nothing there."""
    found = _candidates(full, size, spacing)
    if not found:
        return None
    near = [level for level in levels if max(found[0]) / level.downsample <= 8] or list(levels[-1:])
    above = min(near, key=lambda level: -level.downsample)
    side = min(PATCH_PX, int(_MAX_ABOVE_PX * above.downsample / max(max(factors) for factors in found)))
    if side < _MIN_PATCH_PX:
        return None  # nobody could tell
    try:
        patches = _patches(size, index, side, read)
        errors = [_difference(full, factors, above, patches, read) for factors in found]
    except InputError:  # damaged: nothing can be measured there
        return found[0]
    if not patches:
        return found[0]
    best = 0
    for k, (error, _) in enumerate(errors):
        if error < _BETTER * errors[best][0]:
            best = k
    return found[best] if errors[best][1] >= _SAME else None


def _patches(size: tuple[int, int], index: int, side: int, read: Read) -> list[tuple[int, int, np.ndarray]]:
    """The patches of a level that show most, as x, y, gray float32 [h, w], up to ``side`` px; far from the corner,
    where all factors agree."""
    side = min(side, *size)
    places = {
        (round((size[0] - side) * (c + 1) / _GRID), round((size[1] - side) * (r + 1) / _GRID))
        for c in range(_GRID)
        for r in range(_GRID)
    }
    found = [(x, y, _gray(read(index, x, y, side, side))) for x, y in sorted(places)]
    shown = [patch for patch in found if patch[2].std() > 3]
    return sorted(shown, key=lambda p: -float(p[2].std()) * (p[0] + p[1] + side))[:_COMPARED]


def _difference(
    full: tuple[int, int],
    factors: tuple[float, float],
    above: Level,
    patches: Sequence[tuple[int, int, np.ndarray]],
    read: Read,
) -> tuple[float, float]:
    """Mean difference in gray levels, and least correlation, of patches and the same places of the level above by these
    factors."""
    along_x, along_y = factors[0] / above.downsample_x, factors[1] / above.downsample_y
    differences, alike = [], []
    for x, y, patch in patches:
        height, width = patch.shape
        left, top = round(x * along_x), round(y * along_y)
        right, bottom = round((x + width) * along_x), round((y + height) * along_y)
        right, bottom = min(right, above.width), min(bottom, above.height)
        if right - left < along_x * width / 2 or bottom - top < along_y * height / 2:
            continue  # it is padding by these factors
        part = patch[: max(1, round((bottom - top) / along_y)), : max(1, round((right - left) / along_x))]
        other = _gray(read(above.index, left, top, right - left, bottom - top))
        other = cv2.resize(other, part.shape[::-1], interpolation=cv2.INTER_AREA)
        own, other = (cv2.GaussianBlur(image, (0, 0), 1.0) for image in (part, other))
        differences.append(float(np.abs(own - other).mean()))
        alike.append(float(np.corrcoef(own.ravel(), other.ravel())[0, 1]) if other.std() > 0 else 0.0)
    return (float(np.mean(differences)), float(np.median(alike))) if differences else (255.0, 0.0)


def _gray(pixels: np.ndarray) -> np.ndarray:
    """float32 [h, w] of uint8 [h, w, 3]."""
    return pixels.astype(np.float32).mean(axis=2)
