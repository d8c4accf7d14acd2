"""A model of torch turned into ONNX graphs: encoders with their preprocessing, and the fold heads.

Two files: ``MODEL.onnx`` takes tiles as they are read and gives their features, ``MODEL.heads.onnx`` takes the features
of a bag. Each is compared with torch before it is kept (inference/README 6).
"""

from __future__ import annotations

import io
import logging
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lrmil_cli.encoders.vit import Encoder
from lrmil_cli.errors import LrmilError, MachineError, UsageError
from lrmil_cli.files.graphs import MAX_BYTES, write_graph
from lrmil_cli.inference.runtime import graph_paths
from lrmil_cli.models.model_file import Model

#: Both must agree with torch to this, relative to the largest number.
TOLERANCE = 1e-4
#: Sizes of the bags that are compared; the graph must hold for any.
BAGS = (1, 2, 17, 300)


class _Encoders(nn.Module):
    """uint8 [B, P, P, 3] -> features [B, D] of each encoder.

    The resizing is two matrix products, which every runtime does alike.
    """

    def __init__(self, encoders: Sequence[Encoder], tile_px: int):
        super().__init__()
        self.encoders = nn.ModuleList(encoders)
        for n, e in enumerate(encoders):
            self.register_buffer(f"resize{n}", resize_matrix(tile_px, e.info.image_size))

    def forward(self, tiles: Tensor) -> tuple[Tensor, ...]:
        x = tiles.permute(0, 3, 1, 2).float() / 255
        out = []
        for n, e in enumerate(self.encoders):
            assert isinstance(e, Encoder)
            w = getattr(self, f"resize{n}")
            y = x if w.shape[0] == w.shape[1] else (w @ x @ w.T).clamp(0, 1)
            out.append(e.embed(e.model.forward_features((y - e.mean) / e.std)))
        return tuple(out)


def resize_matrix(tile_px: int, size: int) -> Tensor:
    """[size, tile_px], what :meth:`Encoder.preprocess` does along one side.

    Bicubic interpolation with antialiasing is linear in the pixels.
    """
    one = torch.eye(tile_px).view(1, 1, tile_px, tile_px)
    # Along the first axis alone, each column of the identity is a pixel by itself.
    return F.interpolate(one, (size, tile_px), mode="bicubic", antialias=True)[0, 0]


class _Heads(nn.Module):
    """Features [N, D] of each encoder -> logits [F, C], attention [F, N], class scores [F, C, N] if all have them."""

    def __init__(self, model: Model):
        super().__init__()
        self.heads = nn.ModuleList(model.heads)
        self.of = model.encoder_of

    def forward(self, *features: Tensor) -> tuple[Tensor, ...]:
        outs = [head(features[n]) for n, head in zip(self.of, self.heads)]
        parts = [torch.stack([o.logits for o in outs]), torch.stack([o.attention for o in outs])]
        rows = [o.class_scores for o in outs if o.class_scores is not None]
        if len(rows) == len(outs):
            parts.append(torch.stack(rows))
        return tuple(parts)


def export_model(
    model: Model, path: str | Path, weights: str, *, say: Callable[[str], None] = lambda text: None
) -> tuple[Path, Path]:
    """Write the graphs of a model beside ``path``.

    Args:
        model: on the CPU; path: of the model file; weights: its checksum (``content``), kept in the graphs.

    Raises:
        MachineError: a package or version is missing.
        UsageError: a head or encoder has no ONNX form, or it is over 2 GB.
        LrmilError: the graph does not say what torch says.
    """
    encoder_path, heads_path = graph_paths(path)
    about = {
        **model.header,
        "graph_of": {"weights": weights, "heads": [h.config() for h in model.heads], "encoder_of": model.encoder_of},
    }
    for part, modules in (("its encoders have", model.encoders), ("its heads have", model.heads)):
        if 4 * sum(p.numel() for m in modules for p in m.parameters()) > MAX_BYTES:
            raise UsageError(
                f"{path}: {part} over 2 GB, which an ONNX file does not hold; predict with --runtime torch"
            )
    px = model.tiles.tile_px
    tiles = torch.randint(0, 256, (3, px, px, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    names = [f"features{n}" for n in range(len(model.encoders))]
    encoders = _Encoders(model.encoders, px).eval()
    body = _export(encoders, (tiles,), ["tiles"], names, "the encoder")
    with torch.inference_mode():
        _compare(body, {"tiles": tiles[:2]}, encoders(tiles[:2]), "the encoder's graph")
    say("the encoder's graph says what torch says")
    features = tuple(torch.randn(40, e.embed_dim, generator=torch.Generator().manual_seed(1)) for e in model.encoders)
    heads = _Heads(model).eval()
    head_body = _export(heads, features, names, ["logits", "attention", "class_scores"], f"head {model.heads[0].name}")
    for n in BAGS:
        bag = {
            name: torch.randn(n, e.embed_dim, generator=torch.Generator().manual_seed(n))
            for name, e in zip(names, model.encoders)
        }
        with torch.inference_mode():
            _compare(head_body, bag, heads(*bag.values()), f"head {model.heads[0].name}'s graph for {n} tiles")
    say(f"the heads' graph says what torch says for {', '.join(map(str, BAGS))} tiles")
    write_graph(heads_path, head_body, {**about, "part": "heads"})
    write_graph(encoder_path, body, {**about, "part": "encoder"})  # last: it is the one that is looked for
    return encoder_path, heads_path


def _export(module: nn.Module, inputs: tuple[Tensor, ...], names: list[str], outputs: list[str], what: str) -> bytes:
    """Serialized graph of a module whose inputs have their first axis free."""
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as e:
        raise MachineError(f"making an ONNX graph needs the package {e.name}: pip install onnx onnxscript") from e
    free = torch.export.Dim("n", min=2, max=10_000_000)
    shapes = tuple({0: free} for _ in inputs)
    silent = io.StringIO()  # it prints whole programs
    try:
        with _errors_only("torch.onnx"), redirect_stdout(silent), redirect_stderr(silent):
            program = torch.onnx.export(
                module,
                inputs,
                input_names=names,
                output_names=outputs,
                dynamo=True,
                verbose=False,
                dynamic_shapes=shapes if len(inputs) == 1 and not isinstance(module, _Heads) else (shapes,),
            )
        assert program is not None  # so it is with dynamo
        body = _without_traces(program.model_proto)
    except (KeyboardInterrupt, MemoryError):
        raise
    except Exception as e:  # the exporter has dozens of errors, all of which mean the same to a user
        raise UsageError(
            f"{what} cannot be made an ONNX graph ({type(e).__name__}); predict it with --runtime torch"
        ) from e
    if len(body) > MAX_BYTES:
        raise UsageError(f"{what} is over 2 GB, which an ONNX file does not hold; predict it with --runtime torch")
    return body


def _compare(body: bytes, inputs: dict[str, Tensor], expected: Sequence[Tensor], what: str) -> None:
    from lrmil_cli.inference.onnx_predictor import open_session

    session = open_session(body, what)
    known = {i.name for i in session.get_inputs()}
    try:
        found = session.run(None, {k: v.numpy() for k, v in inputs.items() if k in known})
    except Exception as e:  # the runtime's errors are of its own making
        raise UsageError(f"{what} does not run ({' '.join(str(e).split())[:120]}); predict with --runtime torch") from e
    for own, theirs in zip(found, expected):
        scale = float(theirs.abs().max())
        if own.shape != tuple(theirs.shape) or not np.allclose(
            own, theirs.numpy(), atol=TOLERANCE * max(1.0, scale), rtol=0
        ):
            raise LrmilError(f"{what} does not say what torch says; predict with --runtime torch")


def quantise(path: str | Path) -> bytes:
    """The graph of a file with int8 weights, one scale an output channel, activations scaled as they come (dynamic).

    Raises:
        MachineError: a package is missing.
    """
    try:
        import onnx
        from onnxruntime.quantization import QuantType, quantize_dynamic
    except ImportError as e:
        raise MachineError("quantising needs onnx and onnxruntime: pip install onnx onnxruntime") from e
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "int8.onnx"
        with _errors_only(""):  # it warns of what it leaves as it is, such as the pixels
            quantize_dynamic(str(path), str(target), per_channel=True, weight_type=QuantType.QInt8)
        return _without_traces(onnx.load(str(target)))


def _without_traces(graph: Any) -> bytes:
    """A graph (``onnx.ModelProto``), serialized without what its makers noted: stack traces with paths of this machine,
    which would be most of a small graph."""

    def clear(message: Any) -> None:
        for name in ("doc_string", "metadata_props"):
            if name in message.DESCRIPTOR.fields_by_name:
                message.ClearField(name)
        for field, value in message.ListFields():
            if field.message_type is not None:
                for inner in [value] if hasattr(value, "DESCRIPTOR") else value:
                    clear(inner)

    clear(graph)
    return bytes(graph.SerializeToString())


@contextmanager
def _errors_only(logger: str) -> Iterator[None]:
    """Only errors of a logger of Python within this."""
    log = logging.getLogger(logger)
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)
