"""What ``lrmil info`` finds out about a file: its header, or what can be measured of it."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from lrmil_cli.errors import InputError


def describe(path: str, slide_mpp: float | None, reader: str = "auto", image: int | None = None) -> dict[str, Any]:
    """All that is known of a file.

    Raises:
        InputError: it is nothing we know.
    """
    from lrmil_cli.files.spreadsheet import SUFFIXES
    from lrmil_cli.files.tables import table_suffix
    from lrmil_cli.slide_names import SLIDE_SUFFIXES
    from lrmil_cli.slides.about import describe_slide
    from lrmil_cli.slides.handles import looks_like_slide

    p, name = Path(path), Path(path).name.lower()
    if not p.exists():
        raise InputError(f"{path}: no such file")
    if p.is_dir():
        from lrmil_cli.training.teacher import read_teacher_header

        if not (p / "teacher.json").exists() and not list(p.glob("fold*")):
            raise InputError(f"{path}: a folder, and not one of `lrmil train-teacher`; name one of the files in it")
        return read_teacher_header(p)
    if name.endswith(SUFFIXES) and not _is_our_table(p):
        return _manifest(path)
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
    if p.suffix.lower() in SLIDE_SUFFIXES or looks_like_slide(p):
        return describe_slide(path, slide_mpp=slide_mpp, reader=reader, image=image)
    raise InputError(f"{path}: not a slide ({' '.join(SLIDE_SUFFIXES)}) and not a file of the chain")


def _is_our_table(path: Path) -> bool:
    with open(path, "rb") as fh:
        return fh.read(7) == b"# lrmil"


def _hdf5(path: str) -> dict[str, Any]:
    from lrmil_cli.files.features import read_features
    from lrmil_cli.files.foreign import describe_foreign, features_on_disk, made_by_us, read_foreign

    if made_by_us(path):
        features = read_features(path)
        return {**features.header, "shape": list(features.features.shape)}
    tiles = read_foreign(path)
    if tiles.dataset is not None:
        features_on_disk(tiles, {}, lambda: tiles.coords).features()  # what people ask when a training refuses it
    return describe_foreign(tiles)


def _json(path: str) -> dict[str, Any]:
    from lrmil_cli.qupath.files import misnamed, read_documents
    from lrmil_cli.qupath.rules import describe_geojson

    skipped: list[str] = []
    documents = read_documents(path, skipped)
    first = documents[0].value if documents else None
    if isinstance(first, dict) and isinstance(first.get("kind"), str):
        return first
    about = describe_geojson(documents, path, misnamed(path))
    about["notes"] += [f"QuPath passes over a member of the zip: {reason}" for reason in skipped]
    return about


def _table(path: str) -> dict[str, Any]:
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
    raise wrong


def _manifest(path: str) -> dict[str, Any]:
    """A table of slides, as every command understands it, and what it would stumble over."""
    from lrmil_cli.files.manifest import read_manifest

    manifest = read_manifest(path, need_slides=False)
    counts = {c: sum(e.label == c for e in manifest) for c in manifest.classes}
    patients = Counter(e.patient_id for e in manifest)
    labels: dict[str, set[str]] = defaultdict(set)
    for e in manifest:
        labels[e.patient_id] |= {e.label} if e.label is not None else set()
    missing = [str(e.path) for e in manifest if manifest.has_paths and not e.path.exists()]
    return {
        "kind": "manifest",
        "understood": manifest.understood(),
        "slides": len(manifest),
        "patients": len(patients),
        "patients_from": manifest.patients_from,
        "patients_with_several_slides": sum(n > 1 for n in patients.values()),
        "patients_with_two_labels": sorted(p for p, own in labels.items() if len(own) > 1),
        "classes": counts,
        "without_label": sum(e.label is None for e in manifest),
        "splits": dict(Counter(e.split for e in manifest if e.split)),
        "folds": sorted({k for e in manifest for k in e.folds}),
        "read_as": list(manifest.notes),
        "ignored": list(manifest.ignored),
        "found": len(manifest) - len(missing) if manifest.has_paths else None,
        "missing": missing,
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
