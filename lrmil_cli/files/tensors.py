"""Encoder, head and model files: safetensors whose metadata carries the lrmil header. Opening one executes no code."""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lrmil_cli.errors import InputError, no_such_file
from lrmil_cli.files.atomic import write_bytes
from lrmil_cli.files.header import check_header, check_seal, parse_header, sealed
from lrmil_cli.files.stand_ins import stand_in

if TYPE_CHECKING:
    import torch

#: safetensors' own limit on the JSON at the start of a file.
MAX_HEADER_BYTES = 100_000_000


def save_tensors(path: str | Path, tensors: dict[str, torch.Tensor], header: dict[str, Any]) -> None:
    """Write tensors and their header atomically.

    Raises:
        MachineError: the file cannot be written.
    """
    from safetensors.torch import save

    plain = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
    about = json.dumps(sealed(header, tensors_digest(plain).encode()), allow_nan=False)
    write_bytes(path, save(plain, metadata={"lrmil": about}))


def load_tensors(path: str | Path, kind: str) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Read header and tensors of a file of ``kind``.

    Raises:
        InputError: no such file, another kind, damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    header = read_tensor_header(path, kind)
    try:
        tensors = load_file(str(path))
    except (SafetensorError, OSError, ValueError) as e:
        raise InputError(f"{path}: damaged ({' '.join(str(e).split())[:120]}); copy or make the file again") from e
    # Files made before there was a checksum pass, without the time it takes.
    return (check_seal(header, str(path), tensors_digest(tensors).encode()) if "content" in header else header), tensors


def read_tensor_metadata(path: str | Path) -> dict[str, str]:
    """The string metadata of any safetensors file, without reading its tensors.

    Raises:
        InputError: no such file, or not safetensors; what it is instead is said where that is known.
    """
    try:
        with open(path, "rb") as fh:
            (length,) = struct.unpack("<Q", fh.read(8))
            if length > MAX_HEADER_BYTES:
                raise ValueError("no safetensors header")
            head = json.loads(fh.read(length).decode("utf-8"))
        meta = head.get("__metadata__", {})
        if not isinstance(meta, dict):
            raise ValueError("no safetensors header")
        return meta
    except FileNotFoundError as e:
        raise InputError(no_such_file(path)) from e
    except IsADirectoryError as e:
        raise InputError(f"{path}: this is a folder; a .safetensors file is needed") from e
    except (OSError, ValueError, struct.error, AttributeError, RecursionError) as e:
        other = stand_in(path)
        raise InputError(f"{path}: {other or 'not a complete safetensors file; copy or make it again'}") from e


def read_tensor_header(path: str | Path, kind: str) -> dict[str, Any]:
    """The lrmil header of a safetensors file of ``kind``.

    Raises:
        InputError: as :func:`read_tensor_metadata`, or a file of another kind.
    """
    meta = read_tensor_metadata(path)
    if "lrmil" not in meta:
        return check_header(None, kind, str(path))
    return parse_header(meta["lrmil"], kind, str(path))


def tensors_digest(tensors: dict[str, torch.Tensor]) -> str:
    """Digest of names, types and values of tensors: which weights these are."""
    import torch

    h = hashlib.blake2b(digest_size=16)
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        h.update(f"{name}|{value.dtype}|{tuple(value.shape)}".encode())
        # Through bytes, because numpy does not know bfloat16.
        h.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return h.hexdigest()
