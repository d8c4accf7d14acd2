"""Pixels: opening slides, their scale, tissue, the tile grid, reading tiles."""
