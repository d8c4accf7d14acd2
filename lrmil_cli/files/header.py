"""The header that every file of the chain carries: what it is, of which slide, by which settings, after which steps.

``history`` has one entry for each command that led to the file, like the ``@PG`` lines of SAM. The digest of the last
entry covers the settings and the inputs of the command that wrote the file; equal digest means "up to date".
``content`` is a checksum of the whole file: a flipped bit or a changed number is an error and not another result.
files/README says what each kind of file carries.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import os
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from lrmil_cli import __version__
from lrmil_cli.errors import InputError, UsageError
from lrmil_cli.files.names import fits_file_name

FORMAT_VERSION = 2

#: Version of the format -> what makes of its header one of :data:`FORMAT_VERSION`: a changed copy, or the header itself
#: where it needs no change (files/README 1.4).
READERS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {1: lambda header: header, 2: lambda header: header}

#: What version 1 did not know, and would pass over: it would take numbers for classes, and a patient for a slide.
SINCE_2 = ("target", "bag")

MADE_BY = {
    "tiles": "lrmil tile",
    "pairs": "lrmil match",
    "features": "lrmil embed",
    "encoder": "lrmil distill-encoder",
    "head": "lrmil train-teacher",
    "teacher": "lrmil train-teacher",
    "model": "lrmil distill-student",
    "graph": "lrmil export-onnx",
    "attention": "lrmil predict",
    "prediction": "lrmil predict",
    "answers": "lrmil predict",
    "predictions": "lrmil train-teacher or lrmil distill-student",
    "seeds": "lrmil train-teacher or lrmil distill-student",
    "metrics": "lrmil train-teacher or lrmil distill-student",
    "curves": "lrmil train-teacher or lrmil distill-student",
    "agreement": "lrmil distill-student",
    "folds": "lrmil train-teacher",
    "evaluation": "lrmil evaluate",
    "differences": "lrmil evaluate",
}

#: The command line of the running command, for ``history``; set once by the app.
command_line: ContextVar[str] = ContextVar("command_line", default="")


def digest(settings: dict[str, Any], inputs: dict[str, str]) -> str:
    """Hex digest of all that decides the content of a file: ``settings`` and the digests of its ``inputs``."""
    canonical = json.dumps({"settings": settings, "inputs": inputs}, sort_keys=True, allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:32]


def step(command: str, settings: dict[str, Any], inputs: dict[str, str]) -> dict[str, Any]:
    """One ``history`` entry: command, command line, tool version, date (``SOURCE_DATE_EPOCH`` is honoured), digest."""
    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    now = (
        datetime.datetime.fromtimestamp(int(epoch), datetime.timezone.utc)
        if epoch
        else datetime.datetime.now(datetime.timezone.utc)
    )
    return {
        "command": command,
        "argv": command_line.get(),
        "lrmil": __version__,
        "date": now.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "digest": digest(settings, inputs),
    }


def make_header(
    kind: str,
    *,
    settings: dict[str, Any],
    history: list[dict[str, Any]],
    slide: dict[str, Any] | None = None,
    **extra: Any,
) -> dict[str, Any]:
    """The header of a file of ``kind``; ``extra`` holds what only this kind carries."""
    head: dict[str, Any] = {"kind": kind, "version": 1}
    if slide is not None:
        head["slide"] = slide
    return with_version({**head, "settings": settings, **extra, "history": history})


def with_version(header: dict[str, Any]) -> dict[str, Any]:
    """The header with the lowest version of the format that understands it, so that older ones read what they can."""
    return {**header, "version": 2 if any(header.get(key) for key in SINCE_2) else 1}


def a_file_of(kind: str) -> str:
    return f"a{'n' if kind[:1] in 'aeiou' else ''} {kind} file"


def check_header(header: Any, kind: str, where: str) -> dict[str, Any]:
    """Return ``header`` if it is one of ``kind`` that this version can read, as one of :data:`FORMAT_VERSION`.

    Raises:
        InputError: another kind, a newer version, or no header at all; the message names the command that makes it.
    """
    command = MADE_BY.get(kind, "lrmil")
    wanted = f"{a_file_of(kind)} (made by `{command}`)"
    if not isinstance(header, dict) or not isinstance(header.get("kind"), str):
        raise InputError(f"{where}: not {wanted}; it carries no lrmil header")
    if header["kind"] != kind:
        raise InputError(f"{where}: this is {a_file_of(header['kind'][:40])}, but {wanted} is needed here")
    version = header.get("version")
    if not isinstance(version, int) or version < 1:
        raise InputError(f"{where}: the header has no valid version; make the file again with `{command}`")
    if version not in READERS:
        raise InputError(
            f"{where}: written by a newer lrmil (format {version}, this one reads up to {FORMAT_VERSION}); "
            "upgrade lrmil-cli"
        )
    slide = header.get("slide")
    slide_id = slide.get("id") if isinstance(slide, dict) else None
    if isinstance(slide_id, str) and not fits_file_name(slide_id):  # results are called after it
        raise InputError(f"{where}: its slide is called {slide_id[:60]!r}, which cannot be part of a file name")
    steps = header.get("history")
    if not isinstance(steps, list) or not all(isinstance(h, dict) and isinstance(h.get("digest"), str) for h in steps):
        raise InputError(f"{where}: the header is damaged (history); make the file again with `{command}`")
    read = READERS[version](header)
    return read if read is header else _OlderHeader(read, header)


class _OlderHeader(dict[str, Any]):
    """The header of an older format as one of :data:`FORMAT_VERSION`, and as it is ``written``: that is what the
    checksum in the file is of."""

    def __init__(self, read: dict[str, Any], written: dict[str, Any]):
        super().__init__(read, version=FORMAT_VERSION)
        self.written = written


def parse_header(text: str | bytes, kind: str, where: str) -> dict[str, Any]:
    """Parse the JSON of a header and check it.

    Raises:
        InputError: not JSON, or as :func:`check_header`.
    """
    try:
        header = json.loads(text)
        json.dumps(header, allow_nan=False)  # numbers that are none would come out again somewhere else
    except (ValueError, UnicodeDecodeError, RecursionError) as e:
        raise InputError(f"{where}: the lrmil header is damaged ({type(e).__name__}); make the file again") from e
    return check_header(header, kind, where)


def check_slide(header: dict[str, Any], where: str) -> dict[str, Any]:
    """The ``slide`` entry of a header, if it says what it must.

    Raises:
        InputError: it does not.
    """
    about = header.get("slide")
    if (
        not isinstance(about, dict)
        or not all(isinstance(about.get(k), str) for k in ("id", "path", "fingerprint"))
        or not all(is_positive(about.get(k)) for k in ("width", "height", "mpp"))
        or not all(isinstance(about[k], int) for k in ("width", "height"))
    ):
        raise InputError(f"{where}: what its header says of the slide is damaged; make the file again")
    return about


def is_positive(value: Any) -> bool:
    """Whether a value of a JSON is a number above 0 that a slide can have."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < 2**53


def sealed(header: dict[str, Any], *body: Any) -> dict[str, Any]:
    """``header`` with ``content``, the checksum of itself and of what the file holds besides (bytes or arrays)."""
    return {**header, "content": _checksum(header, body)}


def check_seal(header: dict[str, Any], where: str, *body: Any) -> dict[str, Any]:
    """``header`` without ``content``, if that is the checksum of ``header`` and ``body``; files without one pass.

    Raises:
        InputError: the file is not as it was written.
    """
    written = header.written if isinstance(header, _OlderHeader) else header
    if "content" in written and written["content"] != _checksum(_without_content(written), body):
        raise InputError(
            f"{where}: changed after it was written (a damaged copy, or edited); remove it and run "
            f"`{MADE_BY.get(header['kind'], 'lrmil')}` again, or copy it again"
        )
    return _without_content(header)


def _without_content(header: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in header.items() if k != "content"}


def _checksum(header: dict[str, Any], body: tuple[Any, ...]) -> str:
    # Through JSON once, because that is what a reader gets (keys become text).
    h = hashlib.blake2b(json.dumps(json.loads(json.dumps(header)), sort_keys=True).encode(), digest_size=16)
    for part in body:
        h.update(part)
    return h.hexdigest()


def last_digest(header: dict[str, Any]) -> str:
    """Digest of the command that wrote the file; ``""`` where it has no history (files of other tools)."""
    return header["history"][-1]["digest"] if header.get("history") else ""


def up_to_date(
    path: str | Path, wanted: str | Sequence[str], read_header: Callable[[Path], dict[str, Any]], overwrite: bool
) -> bool:
    """True if ``path`` exists and was made by the same inputs and settings (digest ``wanted``, or one of several).

    Args:
        read_header: function of a path that returns its header, raising InputError if it cannot.
        overwrite: a file made by others may be replaced.

    Raises:
        UsageError: the file exists, was made by others, and ``overwrite`` is off.
    """
    path = Path(path)
    if not path.exists():
        return False
    try:
        if last_digest(read_header(path)) in ([wanted] if isinstance(wanted, str) else wanted):
            return True
        reason = "was made from other inputs or settings"
    except InputError:
        reason = "is damaged, or not a file this command made"
    if not overwrite:
        raise UsageError(f"{path} exists and {reason}; add --overwrite to replace it, or choose another --output")
    return False
