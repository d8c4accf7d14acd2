"""The graph files of a model file: made where they are missing or outdated, quantised, int8 measured.

What ``lrmil export-onnx`` does; the graphs themselves come from ``onnx_export``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lrmil_cli.errors import InputError, UsageError
from lrmil_cli.evaluation.head_calibration import calibrated_heads
from lrmil_cli.files.graphs import read_graph, write_graph
from lrmil_cli.files.header import digest
from lrmil_cli.files.tensors import read_tensor_header
from lrmil_cli.inference.onnx_predictor import OnnxPredictor, open_graphs
from lrmil_cli.inference.plain import encode
from lrmil_cli.inference.runtime import graph_paths
from lrmil_cli.inference.verify import int8_bound
from lrmil_cli.slides.slide import open_slide
from lrmil_cli.slides.tiles import boxes_of, find_tiles


@dataclass
class Graphs:
    """Files, and whether each was there already; what int8 changes, where it was measured (now or before)."""

    files: dict[Path, bool] = field(default_factory=dict)
    effect: dict[str, Any] | None = None


def export_files(
    model: str,
    *,
    int8: bool = False,
    slides: Sequence[tuple[Path, str, float | None]] = (),
    overwrite: bool = False,
    replace: bool = False,
    say: Callable[[str], None] = lambda text: None,
) -> Graphs:
    """Make the graphs of a model file, but for those up to date.

    Args:
        slides: path, id and mpp (None: its own) of slides that the effect of int8 is measured on.
        overwrite: whatever stands in their place; replace: graphs of another model, and nothing else.

    Raises:
        InputError: not a model file.
        UsageError: graphs of another model are there and ``overwrite`` is off, or a head cannot be exported.
        MachineError: a package is missing.
    """
    header = read_tensor_header(model, "model")
    if header.get("method", "lrmil") != "lrmil":
        raise UsageError(f"{model}: only models of LRMIL have an ONNX form; this one is of {header['method']}")
    if "content" not in header:
        raise InputError(f"{model}: made before files had checksums; run `lrmil distill-student` again")
    out = Graphs()
    paths = graph_paths(model)
    there = _up_to_date(paths, header["content"], overwrite, replace)
    if not there:
        from lrmil_cli.inference.onnx_export import export_model
        from lrmil_cli.models.model_file import load_model

        export_model(load_model(model), model, header["content"], say=say)
    out.files |= dict.fromkeys(paths, there)
    if int8:
        target = graph_paths(model, int8=True)[0]
        known = _up_to_date((target,), header["content"], overwrite)
        out.effect = read_graph(target)[0].get("int8") if known else None
        measured = measured_on(slides) if slides else None
        if not known or (slides and (out.effect or {}).get("measured_on") != measured):
            from lrmil_cli.inference.onnx_export import quantise

            about, body = read_graph(paths[0])[0], quantise(paths[0])
            write_graph(target, body, about)
            small = open_graphs(
                *graph_paths(model, int8=True), model, model=header, batch_size=None, allow_upsample=False
            )
            if (bound := int8_bound(small, model)) is not None:
                about = {**about, "verify_int8": bound}
                write_graph(target, body, about)
            if slides:
                out.effect = {**int8_effect(model, header, slides), "measured_on": measured}
                write_graph(target, body, {**about, "int8": out.effect})
            known = False
        out.files[target] = known
    return out


def _up_to_date(paths: Sequence[Path], weights: str, overwrite: bool, replace: bool = False) -> bool:
    there = [p for p in paths if p.exists()]
    for path in there:
        try:
            if read_graph(path)[0].get("graph_of", {}).get("weights") == weights:
                continue
            reason, ours = "is of another model", True
        except InputError:
            reason, ours = "is damaged, or not a graph of lrmil", False
        if not (overwrite or (replace and ours)):
            raise UsageError(f"{path} exists and {reason}; add --overwrite to replace it")
        return False
    return len(there) == len(paths)


def measured_on(slides: Sequence[tuple[Path, str, float | None]]) -> str:
    """Which slides these are, at which scale; where they stand and in which order does not matter.

    Raises:
        InputError: one cannot be opened.
    """
    known = []
    for path, slide_id, mpp in slides:
        with open_slide(path, slide_id=slide_id, manifest_mpp=mpp) as slide:
            known.append([slide.fingerprint, slide.mpp])
    return digest({"slides": sorted(known)}, {})


def int8_effect(model: str, header: dict[str, Any], slides: Sequence[tuple[Path, str, float | None]]) -> dict[str, Any]:
    """What int8 changes on some slides.

    Returns:
        ``slides, tiles``; ``cosine_median, cosine_worst`` over tiles, between the features of both after the mean of
        the fp32 features was taken off (features share a large mean, which would hide differences);
        ``probability_change``, the largest of any class and slide; ``labels_changed``.
    """
    own: list[OnnxPredictor] = [
        open_graphs(*graph_paths(model, int8=q), model, model=header, batch_size=None, allow_upsample=False)
        for q in (False, True)
    ]
    features: list[list[np.ndarray]] = [[], []]
    changes, labels = [], 0
    for path, slide_id, mpp in slides:
        with open_slide(path, slide_id=slide_id, manifest_mpp=mpp) as slide:
            tiles, level, _ = find_tiles(slide, own[0].tiles)
            boxes = boxes_of(tiles)
            found = [encode(p, slide, boxes, level) for p in own]
        probabilities = [calibrated_heads(header, p.classify(f, boxes)[0]).mean(0) for p, f in zip(own, found)]
        changes.append(float(np.abs(probabilities[0] - probabilities[1]).max()))
        labels += int(probabilities[0].argmax() != probabilities[1].argmax())
        for kept, f in zip(features, found):
            kept.append(np.concatenate(f, 1))
    plain, small = (np.concatenate(f) for f in features)
    mean = plain.mean(0)
    plain, small = plain - mean, small - mean
    cosine = (plain * small).sum(1) / np.maximum(np.linalg.norm(plain, axis=1) * np.linalg.norm(small, axis=1), 1e-12)
    return {
        "slides": len(slides),
        "tiles": len(plain),
        "cosine_median": float(np.median(cosine)),
        "cosine_worst": float(cosine.min()),
        "probability_change": max(changes),
        "labels_changed": labels,
    }
