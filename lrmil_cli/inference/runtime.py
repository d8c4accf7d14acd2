"""Which runtime predicts with a model: torch, or, on a CPU, the model's ONNX graphs. Nothing is imported in vain."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lrmil_cli.device import likely_gpu
from lrmil_cli.errors import InputError, UsageError
from lrmil_cli.files.tensors import read_tensor_header
from lrmil_cli.inference.prediction import Predictor

RUNTIMES = ("auto", "torch", "onnx", "onnx-int8")


def open_predictor(
    path: str,
    *,
    runtime: str = "auto",
    device: str = "auto",
    batch_size: int | None = None,
    allow_upsample: bool = False,
    compile: bool = False,
    budget: dict[str, float] | None = None,
    warn: Callable[[str], None] = lambda text: None,
) -> Predictor:
    """What predicts with a model file, or with the graphs of one (inference/README 5).

    Args:
        path: ``MODEL.safetensors``, or ``MODEL.onnx`` where only the graphs were handed over.
        runtime: one of :data:`RUNTIMES`; ``auto`` takes the graphs on a CPU where they, and ONNX Runtime, are there and
            fit the model.
        device: as :func:`lrmil_cli.device.pick_device` takes it; batch_size: tiles encoded at a time.
        compile: translate the encoder by torch.compile; with ``auto`` it asks for torch.
        budget: of HR tiles, for models that pick them; see :class:`lrmil_cli.inference.screened.Budget`.

    Raises:
        UsageError: no such runtime, or one that does not go with the device or file.
        InputError: not a model file, damaged, or graphs of another model.
        MachineError: the runtime or device is missing.
    """
    if runtime not in RUNTIMES:
        raise UsageError(f"--runtime {runtime}: choose one of {', '.join(RUNTIMES)}")
    given = path.endswith(".onnx")
    if given and runtime == "torch":
        raise UsageError(f"{path} is a graph; --runtime torch needs the model's .safetensors")
    if runtime.startswith("onnx") and device not in ("auto", "cpu"):
        raise UsageError(f"--runtime {runtime} runs on the CPU; leave out --device {device}, or use --runtime torch")
    if compile and (given or runtime.startswith("onnx")):
        raise UsageError("--compile translates the encoder of torch; leave it out, or use --runtime torch")
    if given or runtime.startswith("onnx"):
        if budget:
            raise UsageError(
                "--keep-min, --keep-max and --keep-threshold are for models that pick HR tiles, which have no ONNX form"
            )
        int8 = runtime == "onnx-int8" or path.endswith(".int8.onnx")
        return _open_onnx(path, int8=int8, batch_size=batch_size, allow_upsample=allow_upsample)
    on_cpu = device == "cpu" or (device == "auto" and not likely_gpu())
    if runtime == "auto" and on_cpu and not compile and not budget and _has_graphs(path):
        try:
            return _open_onnx(path, int8=False, batch_size=batch_size, allow_upsample=allow_upsample)
        except InputError as e:
            warn(f"{e}; going on with torch")
    from lrmil_cli.inference.open_torch import open_torch

    return open_torch(
        path,
        device=device,
        batch_size=batch_size,
        allow_upsample=allow_upsample,
        compile=compile,
        budget=budget,
        warn=warn,
    )


def open_predictors(paths: Sequence[str], *, runtime: str = "auto", **options: Any) -> list[Predictor]:
    """What predicts with each of several models; ``options`` as of :func:`open_predictor`.

    With ``auto``, the graphs are taken only where all models have them: so that one reading of a slide serves all.
    """
    out = [open_predictor(path, runtime=runtime, **options) for path in paths]
    kinds = {getattr(p, "runtime", "") for p in out}
    if runtime == "auto" and "onnx" in kinds and len(kinds) > 1 and not any(p.endswith(".onnx") for p in paths):
        return [open_predictor(path, runtime="torch", **options) for path in paths]
    return out


def _has_graphs(path: str) -> bool:
    """Whether the graphs of a model file, and what runs them, are there."""
    return all(g.exists() for g in graph_paths(path)) and importlib.util.find_spec("onnxruntime") is not None


def _open_onnx(path: str, *, int8: bool, batch_size: int | None, allow_upsample: bool) -> Predictor:
    """By the graphs of ``MODEL.safetensors``, or those that ``MODEL.onnx`` names."""
    from lrmil_cli.inference.onnx_predictor import open_graphs

    stem, given = Path(path), path.endswith(".onnx")
    if given:
        stem = Path(path.removesuffix(".onnx").removesuffix(".int8"))
    beside = stem.with_name(stem.name + ".safetensors") if given else stem
    # Graphs may be handed over alone; a model beside them tells whether they are outdated.
    model = read_tensor_header(beside, "model") if beside.exists() or not given else None
    graphs = graph_paths(stem, int8=int8)
    return open_graphs(*graphs, path, model=model, batch_size=batch_size, allow_upsample=allow_upsample)


def graph_paths(model: str | Path, *, int8: bool = False) -> tuple[Path, Path]:
    """Where the graphs of a model file stand: of the encoders (``int8``: quantised), of the heads."""
    stem = Path(model)
    stem = stem.with_suffix("") if stem.suffix == ".safetensors" else stem
    return Path(f"{stem}{'.int8' if int8 else ''}.onnx"), Path(f"{stem}.heads.onnx")
