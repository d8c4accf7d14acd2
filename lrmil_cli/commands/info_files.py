"""What ``lrmil info`` finds out about a file: its header, or what can be measured of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lrmil_cli.errors import InputError, UsageError, no_such_file

if TYPE_CHECKING:
    from lrmil_cli.files.manifest_rows import Labels


def describe(
    path: str,
    slide_mpp: float | None,
    reader: str = "auto",
    image: int | None = None,
    labels: Labels | None = None,
) -> dict[str, Any]:
    """All that is known of a file.

    Args:
        labels: how labels are taken from a manifest; None where the user says nothing of it.

    Raises:
        InputError: it is nothing we know. UsageError: ``labels`` of a file that is no manifest.
    """
    from lrmil_cli.files.manifest_rows import Labels
    from lrmil_cli.files.spreadsheet import SUFFIXES
    from lrmil_cli.files.tables import table_suffix
    from lrmil_cli.slide_names import SLIDE_SUFFIXES
    from lrmil_cli.slides.about import describe_slide
    from lrmil_cli.slides.handles import looks_like_slide

    p, name = Path(path), Path(path).name.lower()
    if not p.exists():
        raise InputError(no_such_file(path))
    if p.is_dir():
        from lrmil_cli.training.teacher import read_teacher_header

        if not (p / "teacher.json").exists() and not list(p.glob("fold*")):
            raise InputError(f"{path}: a folder, and not one of `lrmil train-teacher`; name one of the files in it")
        return read_teacher_header(p)
    if name.endswith(SUFFIXES) and not _is_our_table(p):
        return _manifest(path, labels or Labels())
    if labels is not None:
        raise UsageError(
            f"{path} is no table of slides; --label, --drop-missing, --class and --class-map are about one"
        )
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


def _manifest(path: str, labels: Labels) -> dict[str, Any]:
    """A table of slides, as every command understands it, and what it would be refused for."""
    from lrmil_cli.files.manifest import survey_manifest
    from lrmil_cli.files.manifest_about import describe_manifest

    return describe_manifest(*survey_manifest(path, need_slides=False, labels=labels))


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
        header = load_tensors(path, check_header(about, about["kind"], path)["kind"])[0]  # whole: damage is found
    except (ValueError, KeyError, TypeError) as e:
        raise InputError(f"{path}: its lrmil header is damaged") from e
    for key in ("slide", "tile"):  # means and axes, as text that nobody reads
        header.get("training_features", {}).pop(key, None)
    return header
