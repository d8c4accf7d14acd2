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
from pathlib import Path
from typing import Any

from lrmil_cli.errors import InputError, UsageError
from lrmil_cli.files.atomic import atomic_path

#: What QuPath opens; it goes by the name, in any case of letters.
SUFFIXES = (".geojson", ".json", ".geojson.gz", ".json.gz")
#: Most of what gzip can save, in half of its time.
GZIP_LEVEL = 4


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


def read_documents(path: str | Path) -> list[tuple[str, Any]]:
    """The JSON documents of a ``.geojson``, ``.json``, ``.gz`` or ``.zip`` file, each with its name.

    Raises:
        InputError: no such file, damaged, not JSON, or a zip without GeoJSON.
    """
    try:
        data = Path(path).read_bytes()
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                names = [n for n in archive.namelist() if suffix_of(n) and not Path(n).name.startswith(".")]
                parts = [(f"{path}/{n}", archive.read(n)) for n in names]
            if not parts:
                raise InputError(f"{path}: the zip holds no file ending in {', '.join(SUFFIXES)}")
        else:
            parts = [(str(path), data)]
        return [(name, _parse(name, gzip.decompress(d) if d[:2] == b"\x1f\x8b" else d)) for name, d in parts]
    except FileNotFoundError as e:
        raise InputError(f"{path}: no such file") from e
    except (OSError, EOFError, zlib.error, zipfile.BadZipFile, RuntimeError, NotImplementedError) as e:
        raise InputError(f"{path}: cannot be read ({' '.join(str(e).split())[:120]}); export it again") from e


def _parse(name: str, data: bytes) -> Any:
    try:
        return json.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError) as e:  # UnicodeDecodeError is a ValueError
        raise InputError(
            f"{name}: not a JSON document ({' '.join(str(e).split())[:120]}); is it truncated, or one object a line?"
        ) from e


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
