"""What ``lrmil info`` finds out about a file: its header, or what can be measured of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lrmil_cli.errors import InputError


def describe(path: str, slide_mpp: float | None) -> dict[str, Any]:
    """All that is known of a file.

    Raises:
        InputError: it is nothing we know.
    """
    from lrmil_cli.files.tables import table_suffix
    from lrmil_cli.slides.handles import SLIDE_SUFFIXES

    p, name = Path(path), Path(path).name.lower()
    if not p.exists():
        raise InputError(f"{path}: no such file")
    if p.is_dir():
        from lrmil_cli.training.teacher import read_teacher_header

        if not (p / "teacher.json").exists() and not list(p.glob("fold*")):
            raise InputError(f"{path}: a folder, and not one of `lrmil train-teacher`; name one of the files in it")
        return read_teacher_header(p)
    if table_suffix(name):
        return _table(path)
    if name.endswith(".safetensors"):
        return _tensors(path)
    if name.endswith(".onnx"):
        from lrmil_cli.files.graphs import read_graph

        return read_graph(p)[0]
    if name.endswith((".h5", ".hdf5")):
        return _hdf5(path)
    if name.endswith((".json", ".geojson", ".json.gz", ".geojson.gz", ".zip")):
        return _json(path)
    if p.suffix.lower() in SLIDE_SUFFIXES:
        return _slide(path, slide_mpp)
    raise InputError(f"{path}: not a slide ({' '.join(SLIDE_SUFFIXES)}) and not a file of the chain")


def _hdf5(path: str) -> dict[str, Any]:
    from lrmil_cli.files.features import read_features
    from lrmil_cli.files.foreign import describe_foreign, made_by_us, read_foreign

    if made_by_us(path):
        features = read_features(path)
        return {**features.header, "shape": list(features.features.shape)}
    return describe_foreign(read_foreign(path))


def _json(path: str) -> dict[str, Any]:
    from lrmil_cli.qupath.files import read_documents
    from lrmil_cli.qupath.rules import describe_geojson

    documents = [document for _, document in read_documents(path)]
    ours = isinstance(documents[0], dict) and isinstance(documents[0].get("kind"), str)
    return documents[0] if ours else describe_geojson(documents, path)


def _slide(path: str, slide_mpp: float | None) -> dict[str, Any]:
    from lrmil_cli.slides.slide import open_slide

    with open_slide(path, slide_mpp=slide_mpp) as slide:
        levels = [
            {
                "level": i,
                "width": l.width,
                "height": l.height,
                "downsample": round(l.downsample, 4),
                "mpp": round(slide.mpp * l.downsample, 4),
            }
            for i, l in enumerate(slide.levels)
        ]
        return {"kind": "slide", "reader": slide.reader, **slide.describe(), "levels": levels}


def _table(path: str) -> dict[str, Any]:
    from lrmil_cli.files.manifest import read_manifest
    from lrmil_cli.files.tables import SCHEMAS, read_table

    wrong = InputError(f"{path}: not a table of the chain")
    for kind in SCHEMAS:
        try:
            header, rows = read_table(path, kind)
            return {**header, "rows": len(rows), "columns": list(rows.columns)}
        except InputError as e:
            if "is a" not in str(e) and "not a" not in str(e):
                raise
            wrong = e
    try:
        manifest = read_manifest(path)
    except InputError:
        raise wrong from None
    counts = {c: sum(e.label == c for e in manifest) for c in manifest.classes}
    return {
        "kind": "manifest",
        "slides": len(manifest),
        "patients": len({e.patient_id for e in manifest}),
        "classes": counts,
        "missing": [str(e.path) for e in manifest if not e.path.exists()],
    }


def _tensors(path: str) -> dict[str, Any]:
    from lrmil_cli.files.header import check_header
    from lrmil_cli.files.tensors import load_tensors, read_tensor_metadata

    meta = read_tensor_metadata(path)
    if "lrmil" not in meta:
        return {
            "kind": "safetensors",
            "note": "weights of another tool; use them as NAME@FILE with an alias or a timm name",
            "metadata": meta,
        }
    try:
        about = json.loads(meta["lrmil"])
        return load_tensors(path, check_header(about, about["kind"], path)["kind"])[0]  # whole, so that damage is found
    except (ValueError, KeyError, TypeError) as e:
        raise InputError(f"{path}: its lrmil header is damaged") from e
