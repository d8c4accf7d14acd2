"""Which input sides suit an encoder: plain arithmetic, no torch."""

from __future__ import annotations


def valid_sizes(patch: int, ratio: int, upto: int = 512) -> list[int]:
    """Input sides whose token grid splits into ``ratio`` x ``ratio`` cells (encoders/README 3)."""
    return [patch * g for g in range(ratio, upto // patch + 1, ratio)]


def default_input_size(patch: int, native: int, tile_px: int, ratio: int) -> int:
    """Input side S (encoders/README 3): the smallest valid size from the native one up to the tile's.

    If there is none, 256 for patch 16, 224 for patch 14, and for others the valid size nearest to 224.
    """
    fits = [s for s in valid_sizes(patch, ratio, max(native, tile_px)) if native <= s <= tile_px]
    if fits:
        return fits[0]
    return {16: 256, 14: 224}.get(patch) or min(
        valid_sizes(patch, ratio), key=lambda s: abs(s - 224), default=patch * ratio
    )
