"""Which runtime is taken; the predictions themselves are compared in ``tests/cli/test_onnx.py``."""

from pathlib import Path

import pytest

from lrmil_cli.errors import UsageError
from lrmil_cli.inference.runtime import graph_paths, open_predictor


def test_graphs_stand_beside_the_model():
    assert graph_paths("a/m.safetensors") == (Path("a/m.onnx"), Path("a/m.heads.onnx"))
    assert graph_paths("a/m.v2", int8=True) == (Path("a/m.v2.int8.onnx"), Path("a/m.v2.heads.onnx"))


@pytest.mark.parametrize(
    ("path", "options", "says"),
    [
        ("m.safetensors", {"runtime": "jax"}, "choose one of auto, torch, onnx, onnx-int8"),
        ("m.onnx", {"runtime": "torch"}, "needs the model's .safetensors"),
        ("m.safetensors", {"runtime": "onnx", "device": "cuda"}, "runs on the CPU"),
        ("m.onnx", {"compile": True}, "--compile"),
        ("m.safetensors", {"runtime": "onnx-int8", "budget": {"most": 0.3}}, "no ONNX form"),
    ],
)
def test_what_does_not_go_together_is_refused_before_anything_is_opened(path, options, says):
    with pytest.raises(UsageError, match=says):
        open_predictor(path, **options)
