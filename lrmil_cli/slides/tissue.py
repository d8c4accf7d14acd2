"""Where the tissue is: a mask of a slide seen at about 8 um per pixel, and the share of tissue in each tile.

The rule, in the order of ``tissue_mask`` (slides/README 2.6 says why, and what it was measured on): divide by the
colour of the glass; call stained what is more chromatic than an Otsu threshold held between two clamps, and tissue also
what is faintly coloured or grey, darker than glass and textured; take away pen, black borders and coloured glare;
close, fill small holes, drop small pieces. The clamps hold whatever the share of tissue in the slide, so that pure
glass gives an empty mask and a field without glass a full one.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from lrmil_cli.units import Mpp, Um


@dataclass(frozen=True)
class TissueSettings:
    """What decides a tissue mask. Chroma is max - min over R, G, B after division by the glass, in levels of 255.

    With ``remove_pen`` off, pen counts as tissue where it is coloured: for stains that are green or bright blue
    (trichrome, Alcian blue, fast green).
    """

    method: str = "saturation-otsu"
    mask_mpp: Mpp = Mpp(8.0)  # at which the caller hands in the slide
    min_chroma: float = 11.0  # glass with JPEG noise stays below it, pale needle cores above
    max_chroma: float = 16.0  # without it Otsu parts pale tissue from dark where there is little glass
    faint_chroma: float = 5.0  # mean over 100 um, enough where there is texture: counterstained stroma in IHC
    min_texture: float = 1.2  # grey levels; tissue has 1.7 or more, glare and tinted glass 0.8 or less
    faint_texture: float = 3.0
    min_area_um2: float = 20_000.0  # pieces smaller than this are dust
    max_hole_um2: float = 100_000.0  # holes up to this are lumina and fat cells
    close_um: Um = Um(24.0)  # gaps up to twice this are bridged (membranes of fat cells are thinner than a pixel)
    remove_pen: bool = True


# The rest of the rule: lengths in um, colours in levels of 255 relative to the glass.
_BLUR_UM, _COARSE_UM = 8.0, 24.0
_TEXTURE_FINE_UM, _TEXTURE_COARSE_UM, _TEXTURE_WINDOW_UM = 10.0, 30.0, 100.0
_GLASS_MIN_LEVEL, _GLASS_MAX_CHROMA, _GLASS_MIN_SHARE = 165, 25, 0.05
_GLASS_MIN_BRIGHTNESS, _GLASS_ALIKE = 0.85, 0.1  # shares of the brightest, and of the glass
_GLARE_MAX_OPEN, _GLARE_MAX_CUT = 0.2, 0.5
_PEN_MIN_AREA_UM2, _PEN_HALO_UM, _PEN_RING_UM, _PEN_EMBEDDED = 5_000.0, 48.0, 120.0, 0.65
_FAINT_MAX_LEVEL, _BLACK_BORDER = 240, 10
_EDGE_UM, _GREY_MIN_WIDTH_UM = 48.0, 150.0  # edges have texture without tissue; bubble rims and cracks are thinner
# Optical densities: of what is paler the hue is noise; red and blue as shares of green, in H&E of nine scanners 0.2 to
# 1.1 and 0.3 to 0.75.
_INK_MIN_DENSITY, _FAN_MIN_RED, _FAN_MAX_RED, _FAN_MAX_BLUE = 0.15, 0.25, 1.05, 0.8


def tissue_mask(rgb: np.ndarray, mpp: Mpp, settings: TissueSettings = TissueSettings()) -> np.ndarray:
    """Bool mask [H, W] of the tissue in ``rgb``, uint8 [H, W, 3] at ``mpp`` um per pixel (4 to 32).

    Raises ValueError if the image is not uint8 [H, W, 3] or ``mpp`` is not positive.
    """
    if rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.dtype != np.uint8:
        raise ValueError(f"tissue_mask wants a uint8 image [H, W, 3], not {rgb.dtype} {list(rgb.shape)}")
    if not mpp > 0:
        raise ValueError(f"tissue_mask wants a positive mpp, not {mpp}")
    if rgb.size == 0:
        return np.zeros(rgb.shape[:2], bool)
    rgb = np.ascontiguousarray(rgb)
    # Pen, glare and faint tissue are wide: one pixel in about 24 um decides them as well, in a ninth of the time.
    step = max(1, round(_COARSE_UM / mpp))
    texture = _texture(rgb, mpp)[::step, ::step]
    smooth = texture < settings.min_texture
    blurred = _blur(rgb, max(0.7, _BLUR_UM / mpp))
    colour = _divide_by_glass(blurred, _glass_colour(np.ascontiguousarray(blurred[::step, ::step]), smooth))
    coarse, coarse_mpp = np.ascontiguousarray(colour[::step, ::step]), mpp * step

    brightest, chroma = _brightest_and_chroma(colour)
    threshold = _chroma_threshold(chroma[brightest > _BLACK_BORDER], settings)
    tissue = chroma > threshold
    stained = tissue[::step, ::step]
    matter = stained | (brightest[::step, ::step] < _FAINT_MAX_LEVEL)
    inner = _inner_texture(rgb, matter, mpp, step)
    faint = _faint(coarse, texture, coarse_mpp, settings) | _grey(coarse, stained, inner, coarse_mpp, settings)
    unwanted = _glare(stained, smooth, coarse_mpp, settings)
    if settings.remove_pen:
        pen, pigment = _pen(coarse, matter & ~unwanted, (stained | faint) & ~unwanted, inner, coarse_mpp, settings)
        unwanted |= pen
        faint |= pigment
    if faint.any():
        tissue |= _enlarge(faint, step, tissue.shape) & (brightest < _FAINT_MAX_LEVEL)
    if unwanted.any():
        tissue &= ~_enlarge(unwanted, step, tissue.shape)
    tissue = _close(tissue, settings.close_um / mpp)
    tissue = _fill_holes(tissue, settings.max_hole_um2 / mpp**2)
    return _drop_small(tissue, settings.min_area_um2 / mpp**2)


def tissue_fractions(
    mask: np.ndarray,
    scale_x: float,
    scale_y: float,
    x: np.ndarray,
    y: np.ndarray,
    width: np.ndarray,
    height: np.ndarray,
) -> np.ndarray:
    """Share of tissue, float64 [N] in 0..1, of N rectangles in level-0 pixels, exact by area.

    ``mask`` is bool [H, W] with one pixel per ``scale_x`` x ``scale_y`` level-0 pixels; ``x, y, width, height`` are
    arrays [N] or numbers. A rectangle may stick out of the slide: what is outside is not tissue. The integral image
    of a mask of constant squares is bilinear between its nodes, so that interpolating it gives exact areas.
    """
    left, top = np.asarray(x, float), np.asarray(y, float)
    right, bottom = left + width, top + height
    integral = np.zeros((mask.shape[0] + 1, mask.shape[1] + 1))
    np.cumsum(mask, axis=0, dtype=float, out=integral[1:, 1:])
    np.cumsum(integral[1:, 1:], axis=1, out=integral[1:, 1:])

    def up_to(px: np.ndarray, py: np.ndarray) -> np.ndarray:
        col, part_x = _split(px / scale_x, mask.shape[1])
        row, part_y = _split(py / scale_y, mask.shape[0])
        above = integral[row, col] * (1 - part_x) + integral[row, col + 1] * part_x
        below = integral[row + 1, col] * (1 - part_x) + integral[row + 1, col + 1] * part_x
        return above * (1 - part_y) + below * part_y

    if mask.size == 0:
        return np.zeros(np.broadcast(left, right, top, bottom).shape)
    covered = up_to(right, bottom) - up_to(left, bottom) - up_to(right, top) + up_to(left, top)
    area = (right - left) / scale_x * ((bottom - top) / scale_y)
    return np.clip(np.divide(covered, area, out=np.zeros_like(covered), where=area > 0), 0.0, 1.0)


def _split(position: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Node before each position (held inside 0..size) and the share of the way to the next node."""
    position = np.clip(position, 0, size)
    node = np.minimum(position.astype(int), size - 1)
    return node, position - node


def _blur(image: np.ndarray, sigma_px: float) -> np.ndarray:
    return cv2.GaussianBlur(image, (0, 0), sigma_px, borderType=cv2.BORDER_REFLECT)


def _texture(rgb: np.ndarray, mpp: float) -> np.ndarray:
    """Mean grey-level detail between 10 and 30 um around each pixel, float32 [H, W]: nuclei and fibres have it."""
    grey = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)
    fine = _blur(grey, max(0.8, _TEXTURE_FINE_UM / mpp))
    coarse = _blur(grey, max(2.0, _TEXTURE_COARSE_UM / mpp))
    window = max(3, round(_TEXTURE_WINDOW_UM / mpp))
    return cv2.boxFilter(cv2.absdiff(fine, coarse), cv2.CV_32F, (window, window), borderType=cv2.BORDER_REFLECT)


def _glass_colour(rgb: np.ndarray, smooth: np.ndarray) -> np.ndarray:
    """Colour [3] of the glass; white where nothing looks like glass.

    It is the commonest level among the smooth pixels that are about as bright as the brightest of them. What is pale
    and nearly grey is glass wherever it lies; another tint is glass if most of the border has it.
    """
    brightest, chroma = _brightest_and_chroma(rgb)
    darkest = brightest - chroma
    scanned = brightest > _BLACK_BORDER
    seen = smooth & scanned
    # Stitching margins are exactly white and say nothing of the glass, unless they are nearly all there is.
    margin = darkest >= 254
    if (seen & ~margin).sum() >= 0.2 * seen.sum():
        scanned, seen = scanned & ~margin, seen & ~margin
    if seen.any():
        seen &= brightest >= _GLASS_MIN_BRIGHTNESS * np.percentile(brightest[seen], 95)
    if seen.sum() < max(1, _GLASS_MIN_SHARE * smooth.size):
        return np.full(3, 255.0)
    level = rgb.sum(axis=2, dtype=int) // 12  # bins of 4 grey levels
    commonest = np.bincount(level[seen]).argmax()
    glass: np.ndarray = np.median(rgb[seen & (np.abs(level - commonest) <= 1)], axis=0)
    if glass.min() >= _GLASS_MIN_LEVEL and np.ptp(glass) <= _GLASS_MAX_CHROMA:
        return glass
    relative = rgb / glass
    alike = smooth & (np.ptp(relative, axis=2) < _GLASS_ALIKE) & (np.abs(relative.max(axis=2) - 1) < _GLASS_ALIKE)
    border = np.ones_like(smooth)
    border[1:-1, 1:-1] = False
    border &= scanned
    return glass if 2 * (alike & border).sum() > border.sum() else np.full(3, 255.0)


def _divide_by_glass(rgb: np.ndarray, glass: np.ndarray) -> np.ndarray:
    """``rgb`` with ``glass`` made white, uint8 [H, W, 3]."""
    table = np.minimum(np.arange(256)[:, None] * (255.0 / glass), 255.0).round().astype(np.uint8)
    return cv2.LUT(rgb, table.reshape(1, 256, 3))


def _chroma_threshold(chroma: np.ndarray, settings: TissueSettings) -> float:
    """Otsu's threshold of the values [N], held between the clamps of the settings."""
    if chroma.size == 0:
        return settings.max_chroma
    otsu, _ = cv2.threshold(chroma.reshape(1, -1), 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
    return float(np.clip(otsu, settings.min_chroma, settings.max_chroma))


def _brightest_and_chroma(colour: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    red, green, blue = cv2.split(colour)
    brightest = cv2.max(cv2.max(red, green), blue)
    return brightest, cv2.subtract(brightest, cv2.min(cv2.min(red, green), blue))


def _faint(colour: np.ndarray, texture: np.ndarray, mpp: float, settings: TissueSettings) -> np.ndarray:
    """Bool [H, W]: weakly counterstained tissue. Its pixels are nearly grey, so colour is averaged as texture is."""
    window = max(1, round(_TEXTURE_WINDOW_UM / mpp))
    brightest, chroma = _brightest_and_chroma(cv2.blur(colour, (window, window), borderType=cv2.BORDER_REFLECT))
    return (texture > settings.faint_texture) & (chroma >= settings.faint_chroma) & (brightest < _FAINT_MAX_LEVEL)


def _inner_texture(rgb: np.ndarray, matter: np.ndarray, mpp: float, step: int) -> np.ndarray:
    """As :func:`_texture` of what lies well inside ``matter`` bool [h, w], every ``step``-th pixel, without its edges;
    nan elsewhere.
    """
    inside = _erode_disc(matter, _EDGE_UM / (mpp * step))
    if not inside.any():
        return np.full(matter.shape, np.nan, np.float32)
    weight = _enlarge(inside, step, rgb.shape[:2]).astype(np.float32)
    grey = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY).astype(np.float32) * weight

    def mean(sigma_px: float) -> np.ndarray:
        return _blur(grey, sigma_px) / np.maximum(_blur(weight, sigma_px), 1e-3)

    fine, coarse = mean(max(0.8, _TEXTURE_FINE_UM / mpp)), mean(max(2.0, _TEXTURE_COARSE_UM / mpp))
    window = (max(3, round(_TEXTURE_WINDOW_UM / mpp)),) * 2
    detail = cv2.boxFilter(cv2.absdiff(fine, coarse) * weight, -1, window, borderType=cv2.BORDER_REFLECT)
    area = cv2.boxFilter(weight, -1, window, borderType=cv2.BORDER_REFLECT)
    return np.where(inside, (detail / np.maximum(area, 1e-3))[::step, ::step], np.float32(np.nan))


def _medians(label: np.ndarray, count: int, values: np.ndarray) -> np.ndarray:
    """Median [count] of the values of each label, nan where it has none."""
    there = (label > 0) & ~np.isnan(values)
    own, found = label[there], values[there]
    order = np.lexsort((found, own))
    first = np.searchsorted(own[order], np.arange(count + 1))
    has = first[1:] > first[:-1]
    out = np.full(count, np.nan)
    out[has] = found[order][((first[:-1] + first[1:]) // 2)[has]]
    return out


def _grey(
    colour: np.ndarray, stained: np.ndarray, inner: np.ndarray, mpp: float, settings: TissueSettings
) -> np.ndarray:
    """Bool [H, W]: tissue without colour (silver stains, slides in grey): pieces darker than glass, wider than dust and
    edges are, and textured inside, which ink is not.
    """
    brightest, _ = _brightest_and_chroma(colour)
    grey = ~stained & (brightest < _FAINT_MAX_LEVEL) & (brightest > _BLACK_BORDER)
    grey = _drop_small(_open(grey, _GREY_MIN_WIDTH_UM / 2 / mpp), settings.min_area_um2 / mpp**2)
    if not grey.any():
        return grey
    count, label = cv2.connectedComponents(grey.view(np.uint8))
    return (_medians(label, count, inner) >= settings.faint_texture)[label]


def _pen(
    colour: np.ndarray,
    matter: np.ndarray,
    stained: np.ndarray,
    inner: np.ndarray,
    mpp: float,
    settings: TissueSettings,
) -> tuple[np.ndarray, np.ndarray]:
    """Two bool [H, W]: pen strokes with their halo and black borders; and what looks like pen but lies in tissue.

    No common stain is greenest in green, so green and yellow go at once. Strong blue and red, black, and smooth pieces
    of a hue that no mixture of haematoxylin and eosin has (:func:`_ink`) can be pigment, blood or mucin, or cross
    tissue as the rim of an air bubble does: these go only where what is nearest to them is mostly not tissue.
    """
    red, green, blue = cv2.split(colour)
    brightest, chroma = _brightest_and_chroma(colour)
    sure = (cv2.subtract(red, green) < 8) & (cv2.subtract(blue, green) < 8) & (chroma > 40)
    sure |= brightest <= _BLACK_BORDER
    bluer = cv2.subtract(blue, red)
    doubtful = ((bluer > 95) | ((bluer > 60) & (bluer > red))) & (cv2.subtract(red, green) < 15)
    # Blood is bluer than red ink.
    doubtful |= (cv2.subtract(red, cv2.max(green, blue)) > 105) & (cv2.subtract(blue, green) < 25)
    doubtful |= (brightest < 110) & ((chroma < 32) | ((chroma < 45) & (cv2.subtract(red, green) < 8)))
    smallest = _PEN_MIN_AREA_UM2 / mpp**2
    doubtful |= _ink(colour, matter & ~sure, inner, smallest, settings)
    sure, doubtful = _drop_small(sure, smallest), _drop_small(doubtful & ~sure, smallest)
    pen = _dilate(sure, _PEN_HALO_UM / mpp)
    if doubtful.any():
        strokes = _dilate(doubtful, _PEN_HALO_UM / mpp)
        pen |= strokes & ~(_share_around(stained & ~pen, strokes, _PEN_RING_UM / mpp) >= _PEN_EMBEDDED)
    return pen, doubtful & ~pen


def _ink(
    colour: np.ndarray, matter: np.ndarray, inner: np.ndarray, smallest: float, settings: TissueSettings
) -> np.ndarray:
    """Bool [H, W]: pieces of a hue outside the fan of haematoxylin and eosin, and smooth inside: faded pen of any
    colour, navy, brown, orange, crimson. Tissue that is blue or brown by its stain has texture.
    """
    density = np.log10(255.0 / np.maximum(colour, 1)).astype(np.float32)
    red, green, blue = (density[..., i] for i in range(3))
    fan = (red >= _FAN_MIN_RED * green) & (red <= _FAN_MAX_RED * green) & (blue <= _FAN_MAX_BLUE * green)
    odd = _drop_small(matter & ~fan & (density.max(axis=2) >= _INK_MIN_DENSITY), smallest)
    if not odd.any():
        return odd
    count, label = cv2.connectedComponents(odd.view(np.uint8))
    return (_medians(label, count, inner) < settings.min_texture)[label]


def _share_around(tissue: np.ndarray, strokes: np.ndarray, radius_px: float) -> np.ndarray:
    """Share of ``tissue``, float [H, W], around the pixel outside of ``strokes`` that is nearest to each pixel."""
    if strokes.all():
        return np.zeros(strokes.shape)  # a stroke that fills the view has no tissue around it
    window = (2 * max(1, round(radius_px)) + 1,) * 2
    outside = cv2.boxFilter((~strokes).astype(np.float32), -1, window, borderType=cv2.BORDER_REFLECT)
    share = cv2.boxFilter((tissue & ~strokes).astype(np.float32), -1, window, borderType=cv2.BORDER_REFLECT)
    share /= np.maximum(outside, 1e-3)
    _, label = cv2.distanceTransformWithLabels(strokes.view(np.uint8), cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL)
    nearest = np.zeros(label.max() + 1, np.float32)
    nearest[label[~strokes]] = share[~strokes]
    return nearest[label]


def _glare(stained: np.ndarray, smooth: np.ndarray, mpp: float, settings: TissueSettings) -> np.ndarray:
    """Bool [H, W]: coloured light on glass, which is smooth and fades out into glass.

    Smooth tissue (mucin, a drawing) ends in an edge, and the texture window makes edges not smooth: its smooth part
    meets glass along less than a fifth of its outline, and glass or the border of the image along less than half.
    """
    suspect = _drop_small(stained & smooth, settings.min_area_um2 / mpp**2)
    if not suspect.any():
        return suspect
    count, label = cv2.connectedComponents(suspect.view(np.uint8), connectivity=4)
    outline = suspect & ~_erode(suspect, border=0)
    at_glass = outline & ~_erode(stained, border=1)
    at_border = outline & ~_erode(np.ones_like(stained), border=0) & ~at_glass
    total, to_glass, to_border = (np.bincount(label[m], minlength=count) for m in (outline, at_glass, at_border))
    glare = (to_glass > _GLARE_MAX_OPEN * total) | (to_glass + to_border > _GLARE_MAX_CUT * total)
    glare[0] = False
    # Its fringe lies between the pixels looked at.
    return _dilate(glare[label], 2) & smooth


def _enlarge(mask: np.ndarray, step: int, shape: tuple[int, int]) -> np.ndarray:
    """``mask``, taken from every ``step``-th pixel, at ``shape`` [H, W]."""
    if step == 1:
        return mask
    # Each sample stands for the block around it, not for the one that starts at it.
    large = np.pad(mask, 1, mode="edge").repeat(step, axis=0).repeat(step, axis=1)
    first = step + step // 2
    return large[first : first + shape[0], first : first + shape[1]]


def _disc(radius_px: float) -> np.ndarray:
    radius = max(1, round(radius_px))
    return cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))


def _dilate(mask: np.ndarray, radius_px: float) -> np.ndarray:
    return cv2.dilate(mask.view(np.uint8), _disc(radius_px)).view(bool) if mask.any() else mask


def _erode_disc(mask: np.ndarray, radius_px: float) -> np.ndarray:
    return cv2.erode(mask.view(np.uint8), _disc(radius_px)).view(bool)


def _open(mask: np.ndarray, radius_px: float) -> np.ndarray:
    return cv2.morphologyEx(mask.view(np.uint8), cv2.MORPH_OPEN, _disc(radius_px)).view(bool) if mask.any() else mask


def _erode(mask: np.ndarray, border: int) -> np.ndarray:
    kernel = np.ones((3, 3), np.uint8)
    return cv2.erode(mask.view(np.uint8), kernel, borderType=cv2.BORDER_CONSTANT, borderValue=border).view(bool)


def _close(mask: np.ndarray, radius_px: float) -> np.ndarray:
    if radius_px < 0.5 or not mask.any():
        return mask
    return cv2.morphologyEx(mask.view(np.uint8), cv2.MORPH_CLOSE, _disc(radius_px)).view(bool)


def _drop_small(mask: np.ndarray, min_area_px: float) -> np.ndarray:
    """``mask`` without 8-connected pieces smaller than ``min_area_px``."""
    if not mask.any():
        return mask
    _, label, stats, _ = cv2.connectedComponentsWithStats(mask.view(np.uint8), connectivity=8)
    keep = stats[:, cv2.CC_STAT_AREA] >= min_area_px
    keep[0] = False
    return keep[label]


def _fill_holes(mask: np.ndarray, max_area_px: float) -> np.ndarray:
    """``mask`` with its holes of up to ``max_area_px`` filled; what touches the image border is no hole."""
    if not mask.any():
        return mask
    _, label, stats, _ = cv2.connectedComponentsWithStats((~mask).view(np.uint8), connectivity=4)
    hole = stats[:, cv2.CC_STAT_AREA] <= max_area_px
    hole[0] = False
    for edge in (label[0], label[-1], label[:, 0], label[:, -1]):
        hole[edge] = False
    return mask | hole[label]
