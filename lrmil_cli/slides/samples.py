"""What the samples of a slide's pixels mean: from whatever a file holds to 8-bit RGB. The rules: slides/README 1.6."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from lrmil_cli.errors import InputError

#: Glass, and what lies outside the slide.
WHITE = 255
#: Bits that cameras have; 16 bits that hold fewer are scaled by the next of these.
DEPTHS = (8, 10, 12, 14, 16)

_ASSOCIATED, _UNASSOCIATED = 1, 2
_MAX_SAMPLE_VALUE, _S_MAX_SAMPLE_VALUE = 281, 341


@dataclass(frozen=True)
class Samples:
    """How pixels are to be understood.

    Attributes:
        alpha: ``none`` (whatever follows the colours is no part of the picture), ``associated`` (the colours are
            multiplied by it already), ``unassociated``, or ``any``: the last of 2 or 4 samples, as OpenSlide gives it.
        depth: bits that 16-bit samples hold.
    """

    alpha: str = "any"
    depth: int = 16


def samples_of(page: Any, depth: int = 16, opaque: bool = False) -> Samples:
    """What a page of a TIFF says of its samples (ExtraSamples); ``opaque``: its alpha is not to be believed."""
    extra = [int(e) for e in page.extrasamples or ()]
    if opaque or not extra:
        return Samples("none", depth)
    return Samples({_ASSOCIATED: "associated", _UNASSOCIATED: "unassociated"}.get(extra[0], "none"), depth)


def stated_depth(page: Any) -> int | None:
    """Bits that the samples of a page hold by its tags; None where 16-bit samples may hold any number."""
    bits = page.bitspersample if isinstance(page.bitspersample, int) else max(page.bitspersample)
    if bits != 16:
        return int(bits)
    for tag in (_S_MAX_SAMPLE_VALUE, _MAX_SAMPLE_VALUE):
        value = page.tags.valueof(tag)
        try:
            most = float(np.max(value)) if value is not None else 0.0
        except (TypeError, ValueError):
            continue
        if 0 < most < 65536:
            return depth_of(most)
    return None


def depth_of(most: float) -> int:
    """Bits that hold values up to ``most``, out of :data:`DEPTHS`."""
    return next(bits for bits in DEPTHS if most < 2**bits)


def to_rgb8(pixels: np.ndarray, samples: Samples | None = None) -> np.ndarray:
    """uint8 [H, W, 3] from what slides hold: gray or RGB, with or without more samples, 8 or 16 bit.

    Transparent becomes white.

    Raises:
        InputError: another type, or another number of channels.
    """
    samples = samples or Samples()
    if pixels.dtype == np.uint16:
        pixels = pixels >> max(0, samples.depth - 8)
        pixels = (pixels if samples.depth >= 16 else np.minimum(pixels, WHITE)).astype(np.uint8)
    elif pixels.dtype != np.uint8:
        raise InputError(f"pixels of type {pixels.dtype} are not supported; export the slide as 8-bit RGB")
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    channels = pixels.shape[2]
    colours = 1 if channels < 3 else 3
    if samples.alpha == "any" and channels > 4:
        raise InputError(f"pixels with {channels} channels are not supported; export the slide as RGB")
    if samples.alpha != "none" and channels > colours:
        alpha = pixels[..., colours : colours + 1].astype(np.uint16)
        seen = pixels[..., :colours] * (1 if samples.alpha == "associated" else alpha)
        scale = 1 if samples.alpha == "associated" else 255
        # An associated colour above its alpha is a fault of rounding.
        pixels = np.minimum((seen + scale * (WHITE - alpha) + scale // 2) // scale, WHITE).astype(np.uint8)
    elif channels > colours:
        pixels = pixels[..., :colours]
    if colours == 1:
        pixels = np.repeat(pixels, 3, axis=2)
    return np.ascontiguousarray(pixels)
