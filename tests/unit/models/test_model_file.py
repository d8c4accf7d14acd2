"""The model file, and what its door plate says of it."""

import ast
import re
from pathlib import Path

import pytest
import torch

import lrmil_cli
from lrmil_cli.encoders.spec import load_encoder
from lrmil_cli.errors import InputError
from lrmil_cli.files.header import make_header, step
from lrmil_cli.files.tensors import load_tensors, save_tensors
from lrmil_cli.heads import build_head
from lrmil_cli.models.model_file import load_model, load_parts, save_model
from lrmil_cli.slides.tiles import TileSettings

ROOM = Path(lrmil_cli.__file__).parent


@pytest.fixture
def model(tmp_path):
    """A model of two folds, its path and what is in it."""
    encoder = load_encoder("demo-vit")
    heads = [build_head("abmil", encoder.embed_dim, 2, {"hidden": 4 + n}).eval() for n in range(2)]
    tiles = TileSettings(tile_px=64).as_json()
    header = make_header("model", settings={}, history=[step("t", {}, {})], classes=["a", "b"], tiles=tiles)
    save_model(tmp_path / "m.safetensors", header, [encoder], heads, [0, 0], {"screen0.w": torch.ones(2)})
    return tmp_path / "m.safetensors", encoder, heads


def test_what_was_written_is_read(model):
    path, encoder, heads = model
    back, tensors = load_parts(path)
    assert back.encoders[0].digest() == encoder.digest() and back.encoder_of == [0, 0] and back.classes == ("a", "b")
    assert back.tiles == TileSettings(tile_px=64) and [h.config() for h in back.heads] == [h.config() for h in heads]
    bag = torch.randn(5, encoder.embed_dim)
    for a, b in zip(back.heads, heads):
        assert torch.equal(a(bag).logits, b(bag).logits)
    assert {k.split(".")[0] for k in tensors} == {"encoder0", "head0", "head1", "screen0"}


def test_metadata_that_does_not_fit_is_refused(model, tmp_path):
    path, *_ = model
    header, tensors = load_tensors(path, "model")
    for change, says in (
        ({"method": "zoommil"}, "of method zoommil; here one of lrmil is needed"),
        ({"encoder_of": [0]}, "metadata is incomplete"),
        ({"encoder_of": [0, 1]}, "metadata is incomplete"),
        ({"classes": ["a", "b", "c"]}, "head and encoder do not fit"),
        ({"tiles": {}}, "tile settings do not fit"),
    ):
        save_tensors(tmp_path / "bad.safetensors", tensors, {**header, **change})
        with pytest.raises(InputError, match=says):
            load_model(tmp_path / "bad.safetensors")


def test_every_key_of_a_models_header_stands_on_the_door_plate():
    told = set(re.findall(r"`(\w+)`", (ROOM / "models" / "README.md").read_text(encoding="utf-8")))
    written = set()
    for file in ROOM.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "make_header" and node.args:
                if isinstance(node.args[0], ast.Constant) and node.args[0].value == "model":
                    written |= {k.arg for k in node.keywords if k.arg}  # not what a function gives
            if isinstance(node, ast.FunctionDef) and node.name == "record_of":  # this one does
                calls = [n for n in ast.walk(node) if isinstance(n, ast.Call) and getattr(n.func, "id", "") == "dict"]
                written |= {k.arg for call in calls for k in call.keywords if k.arg}
    assert {"classes", "screen", "level_tiles"} <= written <= told, written - told
