"""Names of files that are made from slide ids, on every system that the toolkit runs on."""

from __future__ import annotations

import os
import sys

_WINDOWS = os.name == "nt"
#: File systems that take ``S1`` and ``s1`` for one name, unless somebody has set them up otherwise.
CASELESS = sys.platform in ("win32", "darwin")
#: Names that Windows keeps for devices, whatever suffix follows.
_DEVICES = {"CON", "PRN", "AUX", "NUL", *(f"{d}{n}" for d in ("COM", "LPT") for n in range(1, 10))}


def fits_file_name(slide_id: str, windows: bool = _WINDOWS) -> bool:
    """Whether files can be called ``<slide_id>.tiles.csv`` and the like. Windows would write to a device where an id is
    ``NUL``, and into a hidden stream of another file where it holds a colon."""
    if slide_id in (".", "..") or any(c in slide_id for c in "/\\\0"):
        return False
    return not windows or (
        not any(c in slide_id for c in '<>:"|?*') and slide_id.partition(".")[0].rstrip().upper() not in _DEVICES
    )


def as_file(slide_id: str, caseless: bool = CASELESS) -> str:
    """What two slide ids have in common whose files would be one."""
    return slide_id.casefold() if caseless else slide_id
