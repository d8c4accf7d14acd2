"""What the samples of a slide's pixels mean: from whatever a file holds to 8-bit RGB."""

from __future__ import annotations

import numpy as np

from lrmil_cli.errors import InputError

#: Glass, and what lies outside the slide.
WHITE = 255


def to_rgb8(pixels: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 3] from what slides hold: gray, gray + alpha, RGB, RGBA, 8 or 16 bit. Transparent becomes white.

    Raises:
        InputError: another type, or another number of channels.
    """
    if pixels.dtype == np.uint16:
        pixels = (pixels >> 8).astype(np.uint8)
    elif pixels.dtype != np.uint8:
        raise InputError(f"pixels of type {pixels.dtype} are not supported; export the slide as 8-bit RGB")
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    channels = pixels.shape[2]
    if channels in (2, 4):
        alpha = pixels[..., -1:].astype(np.uint16)
        pixels = ((pixels[..., :-1] * alpha + WHITE * (255 - alpha) + 127) // 255).astype(np.uint8)
    if pixels.shape[2] == 1:
        pixels = np.repeat(pixels, 3, axis=2)
    if pixels.shape[2] != 3:
        raise InputError(f"pixels with {channels} channels are not supported; export the slide as RGB")
    return np.ascontiguousarray(pixels)
