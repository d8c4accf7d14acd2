"""``lrmil info``: what a slide, or any file of the chain, is."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from lrmil_cli.commands import options
from lrmil_cli.commands.report import Report, printable


def info(
    path: Annotated[
        Optional[str],
        typer.Argument(
            metavar="FILE|DIR",
            help="A slide, a table, features, an encoder, a model, a teacher folder, a prediction, or any GeoJSON.",
            show_default=False,
        ),
    ] = None,
    encoders: Annotated[
        bool, typer.Option("--encoders", help="List the encoders that --encoder knows by a short name.")
    ] = False,
    heads: Annotated[
        bool, typer.Option("--heads", help="List the MIL heads and their options for --head-option.")
    ] = False,
    qupath_scripts: Annotated[
        Optional[str],
        typer.Option("--qupath-scripts", metavar="DIR", help="Copy the scripts for QuPath there.", show_default=False),
    ] = None,
    slide_mpp: options.SlideMpp = None,
    reader: options.Reader = "auto",
    image: options.Image = None,
    json: options.Json = False,
    overwrite: options.Overwrite = False,
) -> None:
    """Say what a slide or a file of the chain is.

    Of GeoJSON from anywhere it says what QuPath will make of it, and ends with exit code 3 where that is nothing.
    """
    from lrmil_cli.commands.info_text import render, render_encoders, render_heads
    from lrmil_cli.errors import InputError, UsageError

    report = Report(json)
    if encoders + heads + (path is not None) + (qupath_scripts is not None) != 1:
        raise UsageError(
            "give one of: a slide or file to describe, --encoders, --heads, --qupath-scripts DIR; see `lrmil info --help`"
        )
    if qupath_scripts is not None:
        from lrmil_cli.qupath.scripts import copy_scripts

        for file in copy_scripts(qupath_scripts, overwrite):
            report.say(f"{file}: drop it on QuPath, or open it in Automate > Script editor")
            report.result({"command": "info", "status": "ok", "output": str(file)})
        return
    if encoders or heads:
        if encoders:
            from lrmil_cli.encoders.aliases import alias_table as rows_of

            render_rows = render_encoders
        else:
            from lrmil_cli.heads import head_table as rows_of

            render_rows = render_heads
        for row in (rows := rows_of()):
            report.result(row)
        if not json:
            print(render_rows(rows))
        return
    about = describe(path, slide_mpp, reader, image)
    report.result(about)
    if not json:
        print(printable(render(path, about)))
    if about["kind"] == "geojson" and not about["opens"]:
        raise InputError(f"{path}: QuPath imports nothing of it: {about['fatal'][0]}")


def describe(path: str, slide_mpp: float | None, reader: str = "auto", image: int | None = None) -> dict[str, Any]:
    """All that is known of a file.

    Raises:
        InputError: it is nothing we know.
    """
    from lrmil_cli.errors import InputError
    from lrmil_cli.files.tables import table_suffix
    from lrmil_cli.slides.about import describe_slide
    from lrmil_cli.slides.handles import SLIDE_SUFFIXES, looks_like_slide

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
    if p.suffix.lower() in SLIDE_SUFFIXES or looks_like_slide(p):
        return describe_slide(path, slide_mpp=slide_mpp, reader=reader, image=image)
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


def _table(path: str) -> dict[str, Any]:
    from lrmil_cli.errors import InputError
    from lrmil_cli.files.manifest import read_manifest
    from lrmil_cli.files.tables import SCHEMAS, read_table

    wrong = None
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
    import json

    from lrmil_cli.errors import InputError
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
