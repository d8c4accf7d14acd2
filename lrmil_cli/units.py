"""Units that bite: the types of lengths that must not be mixed up.

A value becomes one of these where it is read, or where it is computed from its definition; everything after that passes
it on. Arithmetic gives plain numbers again. For arrays, names carry the unit instead (``side_level0_px``).
"""

from __future__ import annotations

from typing import NewType

#: Micrometres per pixel, of a slide (level 0), of a level, or of tiles as they are read.
Mpp = NewType("Mpp", float)

#: Micrometres on the glass.
Um = NewType("Um", float)

#: Pixels of level 0, the frame of every coordinate in our tables.
Level0Px = NewType("Level0Px", int)

#: Pixels of one level of the pyramid, or of a tile as an encoder gets it.
LevelPx = NewType("LevelPx", int)


def duration(seconds: float) -> str:
    """Seconds for people: ``40 s``, ``12 min``, ``3.5 h``."""
    if seconds < 90:
        return f"{seconds:.0f} s" if seconds >= 1 else "1 s or less"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
