"""``--compile``: an encoder translated by torch.compile, where the machine has a compiler."""

from __future__ import annotations

import torch

from lrmil_cli.device import autocast
from lrmil_cli.encoders.vit import Encoder
from lrmil_cli.errors import MachineError


def compile_encoder(encoder: Encoder, tile_px: int, device: torch.device) -> None:
    """Translate an encoder in place; takes up to a minute, now and again at the first batch of another size.

    Args:
        tile_px: side of the tiles it will get; device: where it will run.

    Raises:
        MachineError: no compiler works here.
    """
    encoder.to(device).compile()
    try:
        with torch.inference_mode(), autocast(device):
            encoder(torch.zeros(2, tile_px, tile_px, 3, dtype=torch.uint8, device=device))
    except (KeyboardInterrupt, MemoryError):
        raise
    except Exception as e:  # what is missing differs from machine to machine: a C++ compiler, Triton, headers
        raise MachineError(
            f"--compile: no compiler works on this machine ({' '.join(str(e).split())[:160]}); leave it out, "
            "or install a C++ compiler (on a GPU also Triton)"
        ) from e
