"""Whether a model computes here what it computed where it was made: ``lrmil verify`` (inference/README 8)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lrmil_cli.errors import InputError, UsageError
from lrmil_cli.evaluation.head_calibration import calibrated_heads
from lrmil_cli.files.graphs import read_graph
from lrmil_cli.inference.prediction import said_by_heads
from lrmil_cli.models.fixture import Fixture, Outputs, outputs_of, read_fixture
from lrmil_cli.targets.task import task_of

#: Largest difference that is rounding: of features against the largest of them (or 1), of the rest as it is.
ALLOWED = 1e-5
#: What int8 may differ by, as multiples of what it did where the graph was made: other processors round otherwise.
INT8_FACTOR = 2.0


@dataclass(frozen=True)
class Verified:
    """Largest differences, by ``embeddings``, ``attention`` and :func:`said_of`, and what is allowed of each."""

    found: dict[str, float]
    allowed: dict[str, float]
    tiles: int
    of: str
    runtime: str
    device: str

    @property
    def wrong(self) -> list[str]:
        return [k for k, v in self.found.items() if not v <= self.allowed[k]]

    def text(self) -> str:
        """The differences in words."""
        return ", ".join(f"{k} {v:.1e} ({self.allowed[k]:.0e} allowed)" for k, v in self.found.items())


def verify(
    path: str,
    *,
    runtime: str = "auto",
    device: str = "auto",
    warn: Callable[[str], None] = lambda text: None,
) -> Verified:
    """Replay the tiles that a model file holds, by the runtime that would predict with it here.

    Args:
        path: ``MODEL.safetensors``, or ``MODEL.onnx`` with the model beside it; runtime, device: as of ``predict``.

    Raises:
        InputError: the file is damaged, holds no tiles, or says otherwise how slides are tiled than when it was made.
        UsageError, MachineError: as of :func:`lrmil_cli.inference.runtime.open_predictor`.
    """
    from lrmil_cli.inference.onnx_predictor import OnnxPredictor
    from lrmil_cli.inference.runtime import open_predictor
    from lrmil_cli.inference.torch_predictor import TorchPredictor

    model = _model_file(path)
    header, fixture = read_fixture(model)
    if header["tiles"] != fixture.about.get("tiles"):
        changed = sorted(k for k, v in header["tiles"].items() if (fixture.about.get("tiles") or {}).get(k) != v)
        raise InputError(
            f"{model}: not verified: it tiles slides otherwise than when it was made ({', '.join(changed)}); "
            "copy or make the file again"
        )
    predictor = open_predictor(path, runtime=runtime, device=device, warn=warn)
    allowed = dict.fromkeys(("embeddings", "attention", said_of(header)), ALLOWED)
    if isinstance(predictor, OnnxPredictor):
        said = _by_graphs(predictor, fixture)
        name = "onnx-int8" if predictor.int8 else "onnx"
        if predictor.int8:
            allowed = _int8_bound(model)
    elif isinstance(predictor, TorchPredictor):
        base = predictor.base
        classes = task_of(header).classes
        said = outputs_of(base.encoders, base.heads, base.encoder_of, fixture.tiles, fixture.coords, classes)
        name = "torch"
    else:
        raise UsageError(f"{path}: not a model that can be verified")
    found = differences(header, fixture, said)
    return Verified(found, allowed, len(fixture.tiles), fixture.about["of"], name, predictor.device)


def differences(header: dict[str, Any], fixture: Fixture, said: Outputs) -> dict[str, float]:
    """How far what is said now lies from what was said then; NaN where it is not finite or of another shape.

    Probabilities are those of each head and the calibrated answer; of numbers and survival, what the heads put out.
    """
    then = fixture.expected
    answer = calibrated_heads(header, said.probabilities).mean(0)
    return {
        "embeddings": _largest(_apart(a, b, np.abs(b).max()) for a, b in zip(said.features, then.features)),
        "attention": _apart(said.attention, then.attention),
        said_of(header): _largest(
            (_apart(said.probabilities, then.probabilities), _apart(answer, np.array(fixture.about["answer"], float)))
        ),
    }


def said_of(header: Mapping[str, Any]) -> str:
    """What the answers of a model are called here."""
    return "probabilities" if task_of(header).classes else "outputs"


def int8_bound(predictor: Any, model: str) -> dict[str, float] | None:
    """What a graph of int8 that was just made differs by; None for a model without a fixture."""
    try:
        header, fixture = read_fixture(model)
    except InputError:
        return None
    return differences(header, fixture, _by_graphs(predictor, fixture))


def _int8_bound(model: str) -> dict[str, float]:
    from lrmil_cli.inference.runtime import graph_paths

    path = graph_paths(model, int8=True)[0]
    known = read_graph(path)[0].get("verify_int8")
    if known is None:
        raise InputError(
            f"{path}: does not say by how much int8 may differ; run `lrmil export-onnx --int8 --overwrite`"
        )
    return {k: INT8_FACTOR * float(v) + ALLOWED for k, v in known.items()}


def _by_graphs(predictor: Any, fixture: Fixture) -> Outputs:
    features = predictor.encoder.run(None, {"tiles": fixture.tiles})
    known = {i.name for i in predictor.heads.get_inputs()}
    inputs = {f"features{n}": f for n, f in enumerate(features)}
    logits, attention, *_ = predictor.heads.run(None, {k: v for k, v in inputs.items() if k in known})
    own = logits.astype(np.float64)
    if task_of(predictor.header).classes:
        own = said_by_heads(predictor.header, logits)
    return Outputs(features, attention.astype(np.float64), own)


def _apart(a: np.ndarray, b: np.ndarray, scale: float = 1.0) -> float:
    if a.shape != b.shape or not np.isfinite(a).all():
        return float("nan")
    return float(np.abs(a.astype(np.float64) - b).max()) / max(1.0, float(scale))


def _largest(values: Iterable[float]) -> float:
    return float(np.max(list(values)))  # NaN where one is, which the built-in does not say


def _model_file(path: str) -> str:
    if not path.endswith(".onnx"):
        return path
    model = Path(path.removesuffix(".onnx").removesuffix(".int8") + ".safetensors")
    if not model.exists():
        raise InputError(f"{path}: the tiles to verify by are in {model.name}, which is not beside it; copy it there")
    return str(model)
