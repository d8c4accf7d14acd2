"""Checks of the machine: Python and its packages, device, memory, disk, optional extras, speed."""

from __future__ import annotations

import importlib
import os
import platform
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lrmil_cli import __version__
from lrmil_cli.device import available_memory
from lrmil_cli.doctor.check import FAIL, PASS, WARN, Check
from lrmil_cli.errors import LrmilError, MachineError
from lrmil_cli.units import duration

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor

GB = 1e9
#: Packages that lrmil cannot do without, by the name they are imported under.
PACKAGES = tuple(
    "torch torchvision timm safetensors numpy pandas h5py tiffslide tifffile "
    "imagecodecs cv2 PIL shapely geojson sklearn matplotlib".split()
)
#: What can be missing -> package, what cannot be done without it, what to install.
EXTRAS = {
    "openslide": (
        "openslide",
        "MIRAX, DICOM, Hamamatsu VMS, Ventana BIF and Leica SCN slides cannot be opened, nor colours of TIFFs compared",
        "openslide-python openslide-bin",
    ),
    "parquet": ("pyarrow", "tables cannot be .parquet", "'lrmil-cli[parquet]'"),
}
PROBE_SECONDS = 4.0
PROBE_MODEL = "vit_small_patch16_224"


def check_machine(device: str = "auto", folder: str | Path = ".") -> list[Check]:
    """All checks of the machine but its speed.

    Args:
        device: as ``--device``; folder: where outputs would go.
    """
    always = [check_packages(), *check_device(device), check_memory(), check_disk(folder)]
    return [*always, *check_extras(), *check_load()]


def check_packages() -> Check:
    """Whether everything that lrmil needs can be imported."""
    bad = []
    for name in PACKAGES:
        try:
            importlib.import_module(name)
        except Exception as e:  # a broken binary package raises whatever it likes
            bad.append(f"{name} ({type(e).__name__}: {' '.join(str(e).split())[:80]})")
    about = f"lrmil {__version__}, Python {platform.python_version()}, {platform.system()} {platform.machine()}"
    if bad:
        fix = "pip install --force-reinstall lrmil-cli, in an environment of its own"
        return Check("packages", FAIL, f"cannot be imported: {'; '.join(bad)}", fix, MachineError.exit_code)
    return Check("packages", PASS, f"{about}; {len(PACKAGES)} packages")


def check_device(device: str = "auto") -> list[Check]:
    """Whether torch has the device, and whether it misses one that the machine seems to have."""
    try:
        import torch

        from lrmil_cli.device import device_label, pick_device

        where = pick_device(device)
    except LrmilError as e:
        what, _, fix = str(e).partition("; ")
        return [Check("device", FAIL, what, fix or "use --device auto", MachineError.exit_code)]
    except ImportError as e:
        what, fix = f"torch cannot be imported ({e})", "see https://pytorch.org/get-started"
        return [Check("device", FAIL, what, fix, MachineError.exit_code)]
    found = f"torch {torch.__version__}, {device_label(where)}"
    if where.type == "cuda":
        free, total = torch.cuda.mem_get_info(where)
        found += f", {free / GB:.1f} of {total / GB:.1f} GB free"
        if free < 2 * GB:
            fix = "end what else runs on it, choose another with --device cuda:N, or --batch-size 4"
            return [Check("device", WARN, found, fix)]
    elif where.type == "cpu" and (shutil.which("nvidia-smi") or Path("/proc/driver/nvidia").exists()):
        found += "; an NVIDIA driver is there, but torch does not see a GPU"
        return [Check("device", WARN, found, "install a torch with CUDA: https://pytorch.org/get-started")]
    return [Check("device", PASS, found)]


def check_memory() -> Check:
    """Room for an encoder and a batch."""
    free = available_memory()
    found = f"{free / GB:.1f} GB available"
    fix = "close other programs, or ask the scheduler for more; --batch-size 4 needs less"
    if free < 1 * GB:
        return Check("memory", FAIL, found, fix, MachineError.exit_code)
    return Check("memory", WARN if free < 4 * GB else PASS, found, fix if free < 4 * GB else "")


def check_disk(folder: str | Path = ".") -> Check:
    """Room for outputs, and permission to write them."""
    at = Path(folder).absolute()
    while not at.exists():
        if at == at.parent:  # a drive that is not there
            return Check("disk", WARN, f"{at} does not exist", "give an --output where you may write")
        at = at.parent
    free = shutil.disk_usage(at).free
    found = f"{free / GB:.1f} GB free in {at}"
    fix = "free space, or choose another --output; features take 4 kB a tile and 1000 numbers"
    if not os.access(at, os.W_OK):
        return Check("disk", WARN, f"{at} cannot be written", "give an --output where you may write")
    if free < 0.2 * GB:
        return Check("disk", FAIL, found, fix, MachineError.exit_code)
    return Check("disk", WARN if free < 5 * GB else PASS, found, fix if free < 5 * GB else "")


def check_extras() -> list[Check]:
    """What can be installed besides."""
    out = []
    for extra, (package, without, install) in EXTRAS.items():
        try:
            module = importlib.import_module(package)
            out.append(Check(extra, PASS, f"{package} {getattr(module, '__version__', '')}".strip()))
        except Exception as e:  # not there, or its library is not
            why = "not installed" if isinstance(e, ModuleNotFoundError) else f"broken ({type(e).__name__})"
            out.append(Check(extra, WARN, f"{why}: {without}", f"pip install {install}, if you need it"))
    return out


def check_load() -> list[Check]:
    """Whether other programs keep the processors busy; nothing on Windows, which does not count it."""
    if sys.platform == "win32":
        return []
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    if load > 0.8 * cores:
        busy = f"other programs keep {load:.1f} of {cores} processors busy"
        return [Check("load", WARN, busy, "expect it to take longer than estimated when idle")]
    return [Check("load", PASS, f"{load:.1f} of {cores} processors busy")]


def encoder_speed(
    encoder: Callable[[Tensor], Any],
    device: torch.device,
    seconds: float = PROBE_SECONDS,
    tile_px: int = 256,
    batch: int = 8,
) -> float:
    """Tiles a second that ``encoder`` on ``device`` encodes; takes about ``seconds``, or one batch if that is more."""
    import numpy as np
    import torch

    from lrmil_cli.device import autocast, synchronize, to_device

    def encode(some: np.ndarray) -> None:
        with torch.inference_mode(), autocast(device):
            encoder(to_device(some, device))
        synchronize(device)

    tiles = np.random.default_rng(0).integers(0, 256, (batch, tile_px, tile_px, 3), dtype=np.uint8)
    begun = time.perf_counter()
    encode(tiles[:1])  # the first call sets things up
    if (first := time.perf_counter() - begun) > seconds / 2:
        return 1 / first
    started, done = time.perf_counter(), 0
    while done == 0 or time.perf_counter() - begun < seconds - first:
        encode(tiles)
        done += batch
    return done / (time.perf_counter() - started)


def probe_speed(device: str = "auto") -> float:
    """Tiles of 224 px a second that a ViT-S/16 (22 million parameters) of random weights encodes; takes up to 5 s."""
    from lrmil_cli.device import pick_device
    from lrmil_cli.encoders.spec import load_encoder

    where = pick_device(device)
    begun = time.perf_counter()
    encoder = load_encoder(PROBE_MODEL, random_init=True, input_size=224).to(where)
    return encoder_speed(encoder, where, max(0.5, PROBE_SECONDS - (time.perf_counter() - begun)))


def check_speed(rate: float) -> Check:
    """What the ``rate`` of :func:`probe_speed` means."""
    found = (
        f"{rate:.3g} tiles/s with a ViT-S/16: 1000 tiles take {duration(1000 / rate)}; a ViT-B takes about 4 times, "
        "a ViT-L 13 times as long"
    )
    if rate < 2:
        return Check("speed", WARN, found, "use a machine with a GPU, or a smaller encoder")
    return Check("speed", PASS, found)
