"""lrmil: slide classification at low magnification, distilled from high magnification.

The commands are ``lrmil --help``. From Python, this module offers the functions of :mod:`lrmil_cli.api`; they are
loaded when they are first used, so that ``import lrmil_cli`` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = [
    "Answer",
    "Tiles",
    "embed",
    "find_tiles",
    "load_encoder",
    "load_model",
    "open_slide",
    "predict",
    "to_geojson",
]

if TYPE_CHECKING:
    from lrmil_cli.api import (
        Answer,
        Tiles,
        embed,
        find_tiles,
        load_encoder,
        load_model,
        open_slide,
        predict,
        to_geojson,
    )


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(import_module("lrmil_cli.api"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
