"""Every line that depends on the device stands here: choice, transfer, precision, clocks, out-of-memory."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np

from lrmil_cli.errors import MachineError, UsageError

if TYPE_CHECKING:
    import torch


def pick_device(name: str = "auto") -> torch.device:
    """The device for ``auto``, ``cpu``, ``cuda``, ``cuda:1`` or ``mps``.

    Raises:
        UsageError: no such kind of device.
        MachineError: the machine does not have it.
    """
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    kind, _, index = name.partition(":")
    if kind not in ("cpu", "cuda", "mps") or (index and not index.isdigit()):
        raise UsageError(f"--device {name}: choose auto, cpu, cuda, cuda:N or mps")
    if kind == "cuda" and not torch.cuda.is_available():
        raise MachineError(f"--device {name}: torch sees no CUDA device on this machine; use --device cpu or auto")
    if kind == "cuda" and index and int(index) >= torch.cuda.device_count():
        raise MachineError(
            f"--device {name}: this machine has {torch.cuda.device_count()} CUDA device(s), numbered from 0"
        )
    if kind == "mps" and not torch.backends.mps.is_available():
        raise MachineError("--device mps: torch sees no Apple GPU on this machine; use --device cpu or auto")
    return torch.device(name)


def likely_gpu() -> bool:
    """Whether ``auto`` would choose a GPU, as far as that can be told without the seconds that importing torch
    takes."""
    import os
    import platform
    import shutil

    apple = platform.system() == "Darwin" and platform.machine() == "arm64"
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    return apple or (not hidden and (os.path.exists("/dev/nvidiactl") or shutil.which("nvidia-smi") is not None))


def to_device(array: np.ndarray, device: torch.device) -> torch.Tensor:
    """A tensor of ``array`` on ``device``, as :func:`send`."""
    import torch

    return send(torch.from_numpy(array), device)


def send(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """``tensor`` on ``device``; from pinned memory and without waiting where the device allows it."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def give_back_memory() -> None:
    """Let the C library of Linux return every block from 1 MB on to the system when it is freed.

    By itself it soon keeps blocks of up to 32 MB; bags that are kept among bags that are not leave holes in its heap
    that fit nothing, and training took twice the memory that it used. What a head remembers of a bag of 8,000 tiles
    for its gradient is 4 MB a layer, which left half a GB of holes.
    """
    import ctypes
    import sys

    if sys.platform == "linux":
        try:
            ctypes.CDLL(None).mallopt(-3, 2**20)  # M_MMAP_THRESHOLD
        except (OSError, AttributeError):
            pass  # another C library, with a heap of its own kind


def device_memory(device: torch.device) -> int:
    """Bytes that are free on a GPU with memory of its own; 0 on others, which share the machine's."""
    import torch

    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0


def available_memory() -> int:
    """Bytes that this process may still take: what the machine has free, or less where its container or batch job has a
    limit."""
    import psutil

    return min([psutil.virtual_memory().available, *_limits()])


def _limits() -> list[int]:
    """What is left of the memory of each control group that the process is in (Linux)."""
    from pathlib import Path

    found, root = [], Path("/sys/fs/cgroup")
    try:
        own = Path("/proc/self/cgroup").read_text(encoding="utf-8").partition("0::")[2].splitlines()[0].strip("/")
    except (OSError, IndexError):
        own = ""
    for group in [root / own, *(root / own).parents]:
        try:
            limit = (group / "memory.max").read_text(encoding="utf-8").strip()
            if limit.isdigit():
                used = int((group / "memory.current").read_text(encoding="utf-8"))
                stat = dict(line.split() for line in (group / "memory.stat").read_text(encoding="utf-8").splitlines())
                # Pages of files that were read count as used, and are given up at once.
                found.append(max(0, int(limit) - used + int(stat["inactive_file"])))
        except (OSError, ValueError, KeyError):
            pass  # not a group that limits
    return found


def has_bf16() -> bool:
    """Whether the GPU computes in bf16; older ones only emulate it, slowly, and say so all the same."""
    import torch

    return torch.version.hip is not None or torch.cuda.get_device_capability() >= (8, 0)


def autocast(device: torch.device) -> AbstractContextManager[Any]:
    """Mixed precision on a GPU (bf16, or fp16 where there is no bf16); fp32 on a CPU, where bf16 can be slower."""
    import torch

    if device.type != "cuda":
        return nullcontext()
    return torch.autocast("cuda", torch.bfloat16 if has_bf16() else torch.float16)


def full_precision(device: torch.device) -> AbstractContextManager[Any]:
    """Autocast off, for what half precision would ruin."""
    import torch

    return torch.autocast(device.type, enabled=False)


def optimizer_for(name: str, parameters: Any, device: torch.device, **settings: Any) -> torch.optim.Optimizer:
    """``adam`` or ``radam``; Adam in one fused step where torch has it, which halves the time of a step of a small
    head."""
    import torch

    if name == "radam":
        return torch.optim.RAdam(parameters, **settings)
    return torch.optim.Adam(parameters, fused=device.type in ("cpu", "cuda"), **settings)


def grad_scaler(device: torch.device) -> torch.amp.GradScaler:
    """Loss scaler for training: active only where autocast uses fp16."""
    import torch

    return torch.amp.GradScaler(device.type, enabled=device.type == "cuda" and not has_bf16())


def synchronize(device: torch.device) -> None:
    """Wait until the device has done its work, so that a clock read after it tells the truth."""
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of torch says that memory did not suffice; each device words it in its own way."""
    import torch

    texts = ("out of memory", "can't allocate memory", "not enough memory")
    return isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)) or any(t in str(error).lower() for t in texts)


def free_memory(device: torch.device) -> None:
    """Give back what torch keeps for later, after it ran out of memory."""
    import torch

    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()


def seed_everything(seed: int) -> None:
    """Seed torch (all devices), numpy and random."""
    import random

    import torch

    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def device_label(device: torch.device) -> str:
    """Name for the user: ``cpu (2 threads)``, ``cuda:0 (NVIDIA A100)``."""
    import torch

    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return f"cpu ({torch.get_num_threads()} threads)" if device.type == "cpu" else str(device)
