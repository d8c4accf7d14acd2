"""GeoJSON on disk: the names QuPath opens, reading plain, gzipped and zipped files, writing as a stream."""

from __future__ import annotations

import gzip
import json
import shutil
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lrmil_cli.errors import InputError, UsageError, no_such_file
from lrmil_cli.files.atomic import atomic_path
from lrmil_cli.qupath.gson import parse

#: What QuPath opens; it goes by the name, in any case of letters.
SUFFIXES = (".geojson", ".json", ".geojson.gz", ".json.gz")
#: Most of what gzip can save, in half of its time.
GZIP_LEVEL = 4
_GZIP = b"\x1f\x8b"


def suffix_of(path: str | Path) -> str | None:
    """The GeoJSON suffix of a name as it stands there, or None if QuPath would not open it."""
    name = Path(path).name
    found = max((s for s in SUFFIXES if name.lower().endswith(s)), key=len, default=None)
    return name[-len(found) :] if found else None


def check_name(path: str | Path) -> None:
    """QuPath goes by the name.

    Raises:
        UsageError: it has none of the suffixes that QuPath opens.
    """
    if suffix_of(path) is None:
        raise UsageError(f"{path}: QuPath opens names ending in {', '.join(SUFFIXES)}")


def write_chunks(path: str | Path, chunks: Iterable[str]) -> None:
    """Write text in pieces, atomically, gzipped if the name ends in .gz; ``-`` is standard output.

    Nothing reaches standard output before the last piece is there: a reader gets the whole or nothing.

    Raises:
        UsageError: a name that QuPath would not open; MachineError: it cannot be written.
    """
    if str(path) == "-":
        with tempfile.SpooledTemporaryFile(16_000_000, "w+", encoding="utf-8") as spool:
            spool.writelines(chunks)
            spool.seek(0)
            shutil.copyfileobj(spool, sys.stdout)
        sys.stdout.flush()
        return
    check_name(path)
    with atomic_path(path) as tmp, open(tmp, "wb") as fh:
        if not str(path).lower().endswith(".gz"):
            fh.writelines(c.encode("utf-8") for c in chunks)
            return
        packer = zlib.compressobj(GZIP_LEVEL, wbits=31)  # no time stamp: the same content gives the same bytes
        fh.writelines(packer.compress(c.encode("utf-8")) for c in chunks)
        fh.write(packer.flush())


@dataclass(frozen=True)
class Document:
    """One JSON document: its name, its value, and what QuPath's reader forgives in how it is written."""

    name: str
    value: Any
    notes: tuple[str, ...] = ()


def misnamed(path: str | Path) -> str | None:
    """Why QuPath cannot open a file for its name: it goes by the name, not by what is in the file. None where it can.

    Raises:
        InputError: no such file.
    """
    name = str(path).lower()
    try:
        with open(path, "rb") as fh:
            packed = fh.read(2) == _GZIP
    except OSError as e:
        raise InputError(f"{path}: cannot be read ({e.strerror}); check its permissions and the disk") from e
    if zipfile.is_zipfile(path) != name.endswith(".zip"):
        return (
            "the name ends in .zip, but it is no zip" if name.endswith(".zip") else "a zip whose name does not say it"
        )
    if packed != name.endswith(".gz"):
        return "gzip whose name does not end in .gz" if packed else "the name ends in .gz, but it is not gzip"
    return None


def read_documents(path: str | Path, skipped: list[str] | None = None) -> list[Document]:
    """The JSON documents of a ``.geojson``, ``.json``, ``.gz`` or ``.zip`` file, whatever its name says.

    Args:
        skipped: where it is given, members of a zip that cannot be read are named there, as QuPath passes over them.

    Raises:
        InputError: no such file, damaged, not JSON, or a zip without GeoJSON.
    """
    try:
        if zipfile.is_zipfile(path):
            return _read_zip(path, skipped)
        return [_parse(str(path), _unpacked(Path(path).read_bytes()))]
    except FileNotFoundError as e:
        raise InputError(no_such_file(path)) from e
    except (OSError, EOFError, zlib.error, zipfile.BadZipFile, RuntimeError, NotImplementedError) as e:
        raise InputError(f"{path}: cannot be read ({' '.join(str(e).split())[:120]}); export it again") from e


def _read_zip(path: str | Path, skipped: list[str] | None) -> list[Document]:
    found: list[Document] = []
    with zipfile.ZipFile(path) as archive:
        names = [
            n for n in archive.namelist() if suffix_of(n) and not Path(n).name.startswith("._")
        ]  # macOS adds those
        if not names and skipped is None:
            raise InputError(f"{path}: the zip holds no file ending in {', '.join(SUFFIXES)}")
        for name in names:
            try:
                found.append(_parse(f"{path}/{name}", _unpacked(archive.read(name))))
            except (InputError, OSError, EOFError, zlib.error) as e:
                if skipped is None:
                    raise
                skipped.append(str(e))
    return found


def _unpacked(data: bytes) -> bytes:
    return gzip.decompress(data) if data[:2] == _GZIP else data


def _parse(name: str, data: bytes) -> Document:
    notes = []
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        text = data.decode("utf-8", "replace")
        notes.append("letters that are not UTF-8; QuPath shows a question mark for each")
    try:
        value, standard = parse(text)
    except (ValueError, RecursionError) as e:
        raise InputError(
            f"{name}: not a JSON document ({' '.join(str(e).split())[:120]}); is it truncated, or one object a line?"
        ) from e
    if not standard:
        notes.append("not JSON by the standard (comments, single quotes, missing quotes); QuPath reads it all the same")
    return Document(name, value, tuple(notes))


def read_provenance(path: str | Path) -> dict[str, Any]:
    """The ``lrmil`` entry of a GeoJSON file that this toolkit wrote, without reading the features.

    Raises:
        InputError: it cannot be read, or was made by another tool.
    """
    start = '{"type":"FeatureCollection","lrmil":'
    try:
        opener = gzip.open if str(path).lower().endswith(".gz") else open
        with opener(path, "rt", encoding="utf-8") as fh:
            line = fh.readline()
        if line.startswith(start):
            return json.JSONDecoder().raw_decode(line, len(start))[0]
    except (OSError, EOFError, ValueError, zlib.error) as e:
        raise InputError(f"{path}: cannot be read ({' '.join(str(e).split())[:120]})") from e
    raise InputError(f"{path}: not a GeoJSON file made by lrmil")
