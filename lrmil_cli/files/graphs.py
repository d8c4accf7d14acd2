"""ONNX files with the lrmil header: any ONNX tool opens them, and a damaged or foreign one is refused.

The header stands in the graph's metadata, at the end of the file: two messages of protobuf one after the other are one
message, so the checksum can cover all bytes before it, and nothing but this module is needed to read and check it.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from lrmil_cli.errors import InputError, no_such_file
from lrmil_cli.files.atomic import write_bytes
from lrmil_cli.files.header import check_seal, parse_header, sealed

#: Field 14 of ModelProto, ``metadata_props``, length-delimited; in it field 1, the key "lrmil", and field 2, the value.
_TAG = bytes([14 << 3 | 2])
_KEY = b"\x0a\x05lrmil\x12"
#: protobuf holds no larger message; larger weights would have to stand in files beside the graph.
MAX_BYTES = 2**31 - 1


def write_graph(path: str | Path, body: bytes, header: dict[str, Any]) -> None:
    """Write a serialized graph and its header, of kind ``graph``, atomically.

    Raises:
        MachineError: the file cannot be written.
    """
    text = json.dumps(sealed({**header, "kind": "graph"}, _digest(body)), allow_nan=False).encode()
    entry = _KEY + _varint(len(text)) + text
    write_bytes(path, body + _TAG + _varint(len(entry)) + entry)


def read_graph(path: str | Path) -> tuple[dict[str, Any], bytes]:
    """Header and bytes of a graph.

    Raises:
        InputError: no such file, not a graph of ours, damaged.
    """
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError as e:
        raise InputError(no_such_file(path, "make it with `lrmil export-onnx`")) from e
    except OSError as e:
        raise InputError(f"{path}: cannot be read ({e.strerror}); check its permissions and the disk") from e
    body, header = _parts(data)
    if header is None:
        raise InputError(f"{path}: not an ONNX graph of lrmil, or cut short; make it with `lrmil export-onnx`")
    return check_seal(parse_header(header, "graph", str(path)), str(path), _digest(body)), data


def body_digest(data: bytes) -> str:
    """Of a graph without its header: of two models with the same encoders it is the same."""
    return _digest(_parts(data)[0]).hex()


def _parts(data: bytes) -> tuple[bytes, bytes | None]:
    """The graph itself, and its header; None where there is none, or not all of it."""
    at = data.rfind(_KEY)
    text = data[at + len(_KEY) :] if at >= 0 else b""
    length, start = _read_varint(text)
    header = text[start:]
    entry = len(text) + len(_KEY)
    return data[: at - len(_varint(entry)) - len(_TAG)] if at >= 0 else b"", header if length == len(header) else None


def _digest(body: bytes) -> bytes:
    return hashlib.blake2b(body, digest_size=16).digest()


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def _read_varint(data: bytes) -> tuple[int, int]:
    """Value and length of a number at the beginning of ``data``."""
    value = 0
    for n, byte in enumerate(data[:10]):
        value |= (byte & 0x7F) << (7 * n)
        if byte < 0x80:
            return value, n + 1
    return -1, 0
