"""Model files of other methods whose parts do not fit."""

from types import SimpleNamespace

import pytest

from lrmil_cli.errors import InputError
from lrmil_cli.heads import build_head
from lrmil_cli.selective import model_parts


@pytest.mark.parametrize(
    ("load", "header"),
    [
        (model_parts.load_screened, {"screen": {"branches": 1, "px": 16, "source": "lr-tiles"}, "ratio": 4}),
        (model_parts.load_zoom, {"level_tiles": [], "ratios": []}),
    ],
)
def test_heads_of_another_kind_are_refused(load, header, monkeypatch):
    model = SimpleNamespace(heads=[build_head("abmil", 8, 2)], classes=("a", "b"), header=header)
    monkeypatch.setattr(model_parts, "load_parts", lambda path, methods: (model, {}))
    with pytest.raises(InputError, match=r"m\.safetensors"):
        load("m.safetensors")
