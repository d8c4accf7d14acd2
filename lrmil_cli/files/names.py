"""What files can be called: the ids of slides stand in names, on systems that do not agree on what a name may hold."""

from __future__ import annotations

import os
import sys

WINDOWS = os.name == "nt"
#: What ends the name of a folder.
SEPARATORS = tuple({"/", os.sep})
#: Names that Windows keeps for devices, whatever stands behind a dot.
_DEVICES = {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(1, 10))}


def fits_in_name(slide_id: str) -> bool:
    """Whether files can be named after a slide of this id, on this system."""
    if slide_id in (".", "..") or any(c in slide_id for c in "/\\\0"):
        return False
    # A colon would write into a hidden stream of another file.
    forbidden = any(c in slide_id for c in '<>:"|?*') or slide_id.partition(".")[0].strip().lower() in _DEVICES
    return not (WINDOWS and forbidden)


def same_name(slide_id: str) -> str:
    """The same text for ids that name the same files: on Windows and macOS, upper and lower case make no difference."""
    return slide_id.casefold() if sys.platform in ("win32", "darwin") else slide_id
