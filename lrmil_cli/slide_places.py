"""Where the file of a slide is, for those who have a table of it: projects move, and slides move without them.

The ``slide`` of a header says where the slide was (``path``), and where it lies as seen from the file that holds the
header (``beside``), so that a project can be moved as a whole. In memory both are absolute. A file is the slide if its
fingerprint is the recorded one, whatever it is called and wherever it lies.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lrmil_cli.errors import InputError


def fingerprint(path: str | Path) -> str:
    """Digest of a file's size and of 18 samples of 16 kB spread over it, first and last included.

    Raises:
        InputError: the file cannot be read.
    """
    try:
        size = os.path.getsize(path)
        h = hashlib.sha256(str(size).encode())
        with open(path, "rb") as fh:
            for k in range(18):
                fh.seek(max(0, (size - 16384) * k // 17))
                h.update(fh.read(16384))
    except OSError as e:
        raise InputError(f"{path}: cannot be read ({e.strerror}); check its permissions and the disk") from e
    return h.hexdigest()[:32]


def find_slide(about: dict[str, Any], table: str | Path, given: str | Path | None = None) -> Path:
    """The file of a slide: where its table says it was, else where it lies as seen from the table, else as ``given``.

    Args:
        about: the ``slide`` of a header; table: the file it was read from, for messages.
        given: where the manifest, or the user, says that it is.

    Raises:
        InputError: it is at none of these places, or what is there is another file.
    """
    places = _places(about, given)
    there = [p for p in places if os.path.isfile(p)]
    for place in there:
        if fingerprint(place) == about.get("fingerprint"):
            return Path(place)
    if there:
        raise InputError(
            f"{there[0]}: the slide has changed since {table} was made, or is another of its name; say where the right "
            "one is (--slides, or the table of slides), or tile this one with --overwrite"
        )
    raise InputError(
        f"{table}: its slide {about['id']} is not at {', nor at '.join(places)}; say where it is now, by --slides with "
        "a table of slides or a folder, or in the table of slides that the command reads"
    )


def refreshed(header: dict[str, Any], given: str | Path | None = None) -> dict[str, Any]:
    """A header that says where its slide is now, if it is not where it was and can be found; else the header itself."""

    def now(about: dict[str, Any]) -> dict[str, Any]:
        if os.path.isfile(about["path"]):
            return about
        places = (p for p in _places(about, given) if os.path.isfile(p) and fingerprint(p) == about.get("fingerprint"))
        return moved(about, next(places, about["path"]))

    return _each_slide(header, now)


def moved(about: dict[str, Any], path: str | Path) -> dict[str, Any]:
    """The ``slide`` of a header with the place where it was found."""
    if str(path) == about["path"]:
        return about
    return {k: v for k, v in about.items() if k != "beside"} | {"path": os.path.abspath(path)}


def moved_header(header: dict[str, Any], path: str | Path) -> dict[str, Any]:
    """The same for a whole header, and those it holds."""
    return _each_slide(header, lambda about: moved(about, path))


def as_written(header: dict[str, Any], folder: Path | None) -> dict[str, Any]:
    """A header as it is written into a file of ``folder``; None for a stream, which lies nowhere."""

    def written(about: dict[str, Any]) -> dict[str, Any]:
        plain = {k: v for k, v in about.items() if k != "beside"}
        # A path that is not there any more says nothing of where the slide lies now.
        place = about["path"] if os.path.isfile(about["path"]) else about.get("beside", about["path"])
        return plain if folder is None or not os.path.isabs(place) else plain | as_seen_from(folder, place)

    return _each_slide(header, written)


def as_seen_from(folder: str | Path, path: str | Path) -> dict[str, Any]:
    """``beside`` of a file that lies at ``path``, for a header in ``folder``; nothing where no way leads there."""
    try:
        return {"beside": Path(os.path.relpath(path, folder)).as_posix()}
    except ValueError:  # on another drive of Windows
        return {}


def as_read(header: dict[str, Any], folder: Path | None) -> dict[str, Any]:
    """The inverse of :func:`as_written`."""

    def read(about: dict[str, Any]) -> dict[str, Any]:
        if "beside" not in about:
            return about
        plain = {k: v for k, v in about.items() if k != "beside"}
        if folder is None or not isinstance(about["beside"], str):
            return plain
        return plain | {"beside": os.path.abspath(folder / about["beside"])}

    return _each_slide(header, read)


def _places(about: dict[str, Any], given: str | Path | None) -> list[str]:
    """In the order in which they are tried."""
    return list(dict.fromkeys(str(p) for p in (about["path"], about.get("beside"), given) if p is not None))


def _each_slide(header: dict[str, Any], change: Callable[[dict[str, Any]], dict[str, Any]]) -> dict[str, Any]:
    """A header with what it says of its slide changed, also in the headers it holds (``lr`` and ``hr`` of pairs)."""
    out = header
    about = header.get("slide")
    if isinstance(about, dict) and isinstance(about.get("path"), str):
        out = {**out, "slide": change(about)}
    for key in ("lr", "hr"):
        if isinstance(header.get(key), dict):
            out = {**out, key: _each_slide(header[key], change)}
    return out
