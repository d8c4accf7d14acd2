"""LRMIL by ONNX: a slide is predicted with the ONNX graphs of a model.

Nothing here imports torch or timm, which takes longer than a small slide.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from lrmil_cli.ahead import Prefetch
from lrmil_cli.errors import InputError, MachineError
from lrmil_cli.files.graphs import body_digest, read_graph
from lrmil_cli.files.header import last_digest
from lrmil_cli.inference.plain import encode, predict_plain
from lrmil_cli.inference.prediction import Prediction, ensemble, expected_seconds
from lrmil_cli.progress import TILES, phase
from lrmil_cli.slides.reader import iter_batches
from lrmil_cli.slides.region import Region
from lrmil_cli.slides.slide import Slide, default_workers
from lrmil_cli.slides.tiles import TileSettings, boxes_of, find_tiles, settings_from_json

#: Tiles encoded at a time; more gain nothing on a CPU (inference/README 5).
BATCH = 8


def open_session(graph: bytes | str, what: str) -> Any:
    """A session of ONNX Runtime on the CPU, with a thread a core.

    Raises:
        MachineError: ONNX Runtime is not installed. InputError: it cannot open the graph.
    """
    try:
        import onnxruntime
    except ImportError as e:
        raise MachineError(
            "running an ONNX graph needs ONNX Runtime: pip install onnxruntime, or use --runtime torch"
        ) from e
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = default_workers()
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    except Exception as e:  # its errors are classes of its own
        raise InputError(f"{what}: ONNX Runtime cannot open it ({' '.join(str(e).split())[:120]})") from e


@dataclass
class OnnxPredictor:
    """LRMIL by its graphs; as :class:`lrmil_cli.inference.low_resolution.LowResolutionPredictor`, to 1e-4.

    Attributes:
        header: of the model, as the graphs carry it, with ``int8``, what that changes, where it was measured.
        encoder, heads: sessions of ONNX Runtime.
        encoder_key: digest of the encoders' graph.
        int8: whether the encoder's weights are quantised; batch: tiles encoded at a time.
    """

    path: str
    header: dict[str, Any]
    encoder: Any
    heads: Any
    tiles: TileSettings
    encoder_key: str
    int8: bool
    batch: int = BATCH
    ahead: int = 0

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(self.header["classes"])

    @property
    def settings(self) -> dict[str, Any]:
        own = {"model": last_digest(self.header), "tiles": self.tiles.as_json()}
        # Without it, the same prediction as torch's: what one has made is up to date for the other.
        return {**own, "runtime": "onnx-int8"} if self.int8 else own

    @property
    def device(self) -> str:
        return f"cpu ({default_workers()} threads, ONNX Runtime{', int8' if self.int8 else ''})"

    @property
    def runtime(self) -> str:
        return "onnx-int8" if self.int8 else "onnx"

    def plan(self, slide: Slide, region: Region | None) -> tuple[int, float]:
        clock = time.perf_counter()
        tiles, level, _ = find_tiles(slide, self.tiles, region)
        tissue = time.perf_counter() - clock
        return expected_seconds(boxes_of(tiles), self.batch, tissue, lambda some: encode(self, slide, some, level))

    def reading(
        self, slide: Slide, boxes: np.ndarray, level: int, bad: list[int]
    ) -> Prefetch[tuple[np.ndarray, np.ndarray]]:
        return Prefetch(iter_batches(slide, boxes, level, self.tiles.tile_px, self.batch, bad), 0)

    def encode_for(
        self,
        models: Sequence[OnnxPredictor],
        batches: Iterable[tuple[np.ndarray, np.ndarray]],
        count: int,
        seconds: dict[str, float],
    ) -> list[list[np.ndarray]]:
        once = {m.encoder_key: m.encoder for m in models}
        out: dict[str, list[np.ndarray]] = {}
        clock = time.perf_counter()
        with phase("", count, TILES) as told:
            for rows, pixels in batches:
                began = time.perf_counter()
                seconds["read"] = seconds.get("read", 0.0) + began - clock
                for key, session in once.items():
                    results = session.run(None, {"tiles": pixels})
                    if key not in out:
                        out[key] = [np.empty((count, r.shape[1]), np.float32) for r in results]
                    for array, result in zip(out[key], results):
                        array[rows] = result
                told.advance(len(rows))
                clock = time.perf_counter()
                seconds["encode"] = seconds.get("encode", 0.0) + clock - began
        return [out.get(m.encoder_key, []) for m in models]

    def classify(
        self, features: list[np.ndarray], boxes: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        known = {i.name for i in self.heads.get_inputs()}
        inputs = {f"features{n}": f for n, f in enumerate(features)}
        logits, attention, *rows = self.heads.run(None, {k: v for k, v in inputs.items() if k in known})
        return ensemble(self.header, logits, attention, rows[0] if rows else None)

    def predict(self, slide: Slide, region: Region | None) -> Generator[None, None, Prediction]:
        return (yield from predict_plain([self], slide, region))[0]


def open_graphs(
    encoder_path: Path,
    heads_path: Path,
    path: str,
    *,
    model: dict[str, Any] | None,
    batch_size: int | None,
    allow_upsample: bool,
) -> OnnxPredictor:
    """Open both graphs of a model.

    Args:
        path: what the user named.
        model: header of the model file with its ``content``, to see that the graphs are of it; None where only the
            graphs are there.

    Raises:
        InputError: a graph is missing, damaged, of another model, or of an earlier one of the same name.
        MachineError: ONNX Runtime is not installed.
    """
    if encoder_path.name.endswith(".heads.onnx"):
        own = encoder_path.name.removesuffix(".heads.onnx")
        raise InputError(f"{encoder_path}: these are the heads of a model; name the graph beside it, {own}.onnx")
    header, graph = read_graph(encoder_path)
    heads_header, heads = read_graph(heads_path)
    of, parts = header.get("graph_of"), (header.get("part"), heads_header.get("part"))
    if of is None or heads_header.get("graph_of") != of or parts != ("encoder", "heads"):
        raise InputError(
            f"{encoder_path}: it and {heads_path.name} are not the graphs of one model; run `lrmil export-onnx` again"
        )
    if model is not None and of.get("weights") != model.get("content"):
        name = heads_path.with_name(heads_path.name.removesuffix(".heads.onnx") + ".safetensors")
        raise InputError(
            f"{encoder_path}: made of another model than {name} is now; run `lrmil export-onnx {name} --overwrite`"
        )
    tiles = settings_from_json(header["tiles"], str(encoder_path))
    header = {k: v for k, v in header.items() if k != "part"}
    return OnnxPredictor(
        path,
        {**header, "kind": "model"},
        open_session(graph, str(encoder_path)),
        open_session(heads, str(heads_path)),
        replace(tiles, allow_upsample=True) if allow_upsample else tiles,
        body_digest(graph),
        ".int8." in encoder_path.name,
        batch_size or BATCH,
    )
