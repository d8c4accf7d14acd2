"""Checks of a model or encoder file: is it whole, whose weights, and does it fit a slide."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lrmil_cli.doctor.check import FAIL, PASS, WARN, Check, failed
from lrmil_cli.errors import InputError, LrmilError
from lrmil_cli.inference.runtime import graph_paths
from lrmil_cli.slides.slide import Slide
from lrmil_cli.slides.tiles import TileSettings, slide_level
from lrmil_cli.targets.answers import what_is_told

if TYPE_CHECKING:
    from lrmil_cli.encoders.vit import Encoder, EncoderInfo


@dataclass(frozen=True)
class Opened:
    """A file whose weights are whole: its header, its encoders, how a slide is tiled for it (None of an encoder)."""

    header: dict[str, Any]
    encoders: list[Encoder]
    tiles: TileSettings | None


def check_model(path: str | Path) -> tuple[list[Check], Opened | None]:
    """All checks of a model or encoder file, or of a model's graphs, and the file where it is good."""
    if str(path).endswith(".onnx"):
        return _check_graphs(path)
    from lrmil_cli.encoders.encoder_file import load_encoder_file
    from lrmil_cli.files.tensors import read_tensor_header, read_tensor_metadata
    from lrmil_cli.models.model_file import load_parts

    try:
        kind = "encoder" if '"kind": "encoder"' in read_tensor_metadata(path).get("lrmil", "") else "model"
        header = read_tensor_header(path, kind)
        if kind == "encoder":
            encoder = load_encoder_file(path)
            opened = Opened(header, [encoder], None)
            about = f"encoder {encoder.info.name}, {encoder.info.image_size} px input"
        else:
            model = load_parts(path)[0]
            opened = Opened(header, model.encoders, model.tiles)
            method = header.get("method", "lrmil")
            about = (
                f"{'' if method == 'lrmil' else method + ' '}model of {len(model.heads)} fold head(s), "
                f"{len(model.encoders)} encoder(s), {what_is_told(model.header)}, "
                f"tiles of {model.tiles.tile_px} px at {model.tiles.mpp:g} um/px"
            )
    except LrmilError as e:
        return [failed("complete", e, str(path))], None
    proof = "its checksum is right" if "content" in header else "it opens; it was made before files had checksums"
    checks = [Check("complete", PASS, f"{about}; {proof}")]
    if kind == "model" and all(p.exists() for p in graph_paths(path)):
        checks += _check_graphs(path)[0]
    if kind == "model" and "fixture" in header:
        checks.append(_check_computes(path))
    for info in {e.info.name: e.info for e in opened.encoders}.values():
        checks.append(check_licence(info))
        if info.random_init:
            fix = "for results, make it from a pretrained encoder"
            checks.append(Check("weights", WARN, f"encoder {info.name} has random weights", fix))
    return checks, opened


def _check_graphs(path: str | Path) -> tuple[list[Check], Opened | None]:
    """Whether the ONNX graphs of a model are whole, run here, and are of the model beside them."""
    from lrmil_cli.inference.runtime import open_predictor

    try:
        found = open_predictor(str(path), runtime="onnx")
    except LrmilError as e:
        return [failed("graphs", e, str(path))], None
    tiles = f"{found.tiles.tile_px} px at {found.tiles.mpp:g} um/px"
    about = f"ONNX graphs for {what_is_told(found.header)}, tiles of {tiles}; whole, and ONNX Runtime opens them"
    return [Check("graphs", PASS, about)], Opened(found.header, [], found.tiles)


def _check_computes(path: str | Path) -> Check:
    """Whether the model computes here what it computed where it was made, as ``lrmil verify`` looks at it."""
    from lrmil_cli.inference.verify import verify

    try:
        found = verify(str(path), runtime="torch")
    except LrmilError as e:
        return failed("verify", e, str(path))
    if found.wrong:
        fix = f"copy the model again; if that does not help, compare `lrmil verify {path}` on another machine"
        return Check("verify", FAIL, f"differs from where it was made: {found.text()}", fix)
    return Check("verify", PASS, f"computes here what it computed where it was made: {found.text()}")


def check_licence(info: EncoderInfo) -> Check:
    """What may be done with what is made by the encoder."""
    from lrmil_cli.encoders.aliases import licence_warning

    forbidden = licence_warning(info)
    base = info.base or info.name
    if forbidden:
        fix = "read the terms of the encoder before you share the model or sell what it does"
        return Check("licence", WARN, forbidden, fix)
    if info.license == "unknown":
        fix = "look it up where the weights come from"
        return Check("licence", WARN, f"the licence of encoder {base} is not known", fix)
    return Check("licence", PASS, f"encoder {base}: {info.license}")


def check_fit(opened: Opened, slide: Slide) -> list[Check]:
    """Whether a model can be used on a slide, and whether it knows it from training."""
    if opened.tiles is None:
        return [Check("fit", FAIL, "an encoder file predicts nothing", "give a model made by `lrmil distill-student`")]
    try:
        level = slide_level(slide, opened.tiles)
    except InputError as e:
        return [failed("fit", e, str(slide.path))]
    if slide.slide_id in opened.header.get("slides", []):
        found = f"the model was made with slide {slide.slide_id} in its cohort"
        return [Check("fit", WARN, found, "judge it by its out-of-fold predictions, not on this slide")]
    return [Check("fit", PASS, f"{opened.tiles.mpp:g} um/px can be read from level {level}")]
