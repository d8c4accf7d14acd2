"""Which input sides suit an encoder: plain arithmetic, no torch."""

from __future__ import annotations


def valid_sizes(patch: int, ratio: int, upto: int = 512) -> list[int]:
    """Input sides whose token grid splits into ``ratio`` x ``ratio`` cells (method 2.5)."""
    return [patch * g for g in range(ratio, upto // patch + 1, ratio)]


def default_input_size(patch: int, native: int, tile_px: int, ratio: int) -> int:
    """Input side S: the smallest valid size from the native one up to the tile's, else 256 (patch 16) or 224 (patch 14).

    For other patch sizes the fallback is the valid size nearest to 224 (method 11.1).
    """
    fits = [s for s in valid_sizes(patch, ratio, max(native, tile_px)) if native <= s <= tile_px]
    if fits:
        return fits[0]
    return {16: 256, 14: 224}.get(patch) or min(
        valid_sizes(patch, ratio), key=lambda s: abs(s - 224), default=patch * ratio
    )
