"""``lrmil info``: what a slide, or any file of the chain, is."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from lrmil_cli.commands import options
from lrmil_cli.commands.report import Report


def info(
    path: Annotated[Optional[str], typer.Argument(metavar="FILE|DIR", help="A slide, a table, features, an encoder, a model, a teacher folder, a prediction.", show_default=False)] = None,
    encoders: Annotated[bool, typer.Option("--encoders", help="List the encoders that --encoder knows by a short name.")] = False,
    slide_mpp: options.SlideMpp = None,
    json: options.Json = False,
) -> None:
    """Say what a slide or a file of the chain is."""
    from lrmil_cli.errors import UsageError

    if encoders == (path is not None):
        raise UsageError("give either a slide or file to describe, or --encoders; see `lrmil info --help`")
    report = Report(json)
    if encoders:
        from lrmil_cli.encoders.aliases import alias_table

        rows = alias_table()
        for row in rows:
            report.result(row)
        if not json:
            print(render_encoders(rows))
        return
    about = describe(path, slide_mpp)
    if report.as_json:
        report.result(about)
        return
    print(render(path, about))


def describe(path: str, slide_mpp: float | None) -> dict[str, Any]:
    """All that is known of a file.

    Raises:
        InputError: it is nothing we know.
    """
    import json

    from lrmil_cli.errors import InputError
    from lrmil_cli.files.tables import table_suffix
    from lrmil_cli.slides.slide import SLIDE_SUFFIXES

    p = Path(path)
    if not p.exists():
        raise InputError(f"{path}: no such file")
    name = p.name.lower()
    if p.is_dir():
        from lrmil_cli.training.teacher import read_teacher_header

        return read_teacher_header(p)
    if table_suffix(name):
        return _table(path)
    if name.endswith(".safetensors"):
        return _tensors(path)
    if name.endswith((".h5", ".hdf5")):
        return _hdf5(path)
    if name.endswith(".json"):
        try:
            about = json.loads(p.read_text(encoding="utf-8"))
        except (ValueError, UnicodeDecodeError) as e:
            raise InputError(f"{path}: not JSON ({e})") from e
        if isinstance(about, dict) and isinstance(about.get("kind"), str):
            return about
        raise InputError(f"{path}: JSON, but not a file of the chain")
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


def _slide(path: str, slide_mpp: float | None) -> dict[str, Any]:
    from lrmil_cli.slides.slide import open_slide

    with open_slide(path, slide_mpp=slide_mpp) as slide:
        levels = [{"level": i, "width": l.width, "height": l.height, "downsample": round(l.downsample, 4),
                   "mpp": round(slide.mpp * l.downsample, 4)} for i, l in enumerate(slide.levels)]
        return {"kind": "slide", "reader": slide.reader, **slide.describe(), "levels": levels}


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
    return {"kind": "manifest", "slides": len(manifest), "patients": len({e.patient_id for e in manifest}), "classes": counts,
            "missing": [str(e.path) for e in manifest if not e.path.exists()]}


def _tensors(path: str) -> dict[str, Any]:
    import json

    from lrmil_cli.errors import InputError
    from lrmil_cli.files.header import check_header
    from lrmil_cli.files.tensors import read_tensor_metadata

    meta = read_tensor_metadata(path)
    if "lrmil" not in meta:
        return {"kind": "safetensors", "note": "weights of another tool; use them as NAME@FILE with an alias or a timm name", "metadata": meta}
    try:
        about = json.loads(meta["lrmil"])
        return check_header(about, about["kind"], path)
    except (ValueError, KeyError, TypeError) as e:
        raise InputError(f"{path}: its lrmil header is damaged") from e


def render(path: str, about: dict[str, Any]) -> str:
    """The same for a terminal of 80 columns."""
    lines = [f"{path}: {about['kind']}"]
    for key, value in about.items():
        if key in ("kind", "history", "version", "feature_digests") or value is None:
            continue
        if key == "levels":
            lines += [f"  level {l['level']}: {l['width']} x {l['height']} px, {l['mpp']:g} um/px (1/{l['downsample']:g})" for l in value]
            continue
        lines.append(f"  {key}: {_short(value)}")
    for entry in about.get("history") or []:
        ours = f"lrmil {entry['lrmil']}, {entry.get('date')}, " if "lrmil" in entry else ""
        lines.append(f"  made by: {entry.get('command')} ({ours}{entry['digest'][:12]})")
    return "\n".join(lines)


def render_encoders(rows: list[dict[str, Any]]) -> str:
    """The table of encoders, two lines each, for a terminal of 80 columns."""
    lines = ["name           width blocks patch input  licence, access"]
    for r in rows:
        lines.append(f"{r['name']:<14} {r['width']:>5} {r['blocks']:>6} {r['patch']:>5} {r['input_size']:>5}  {r['license']}, {r['access']}")
        lines.append(f"  {r['hub']}" + (f" (for MIL its authors use --embedding {r['embedding']})" if r["embedding"] != "cls" else ""))
    return "\n".join([*lines, "", "input: side in px for ratio 4 and tiles of 256 px. Gated: ask for access on the",
                      "page at huggingface.co and run `hf auth login`, or give a file as NAME@FILE."])


def _short(value: Any) -> str:
    if isinstance(value, dict):
        text = ", ".join(f"{k} {_short(v)}" for k, v in value.items() if v is not None and (not isinstance(v, (dict, list)) or k in ("bounds",)))
    elif isinstance(value, list):
        text = f"{len(value)} entries" if value and isinstance(value[0], (dict, list)) or len(value) > 8 else ", ".join(map(str, value))
    elif isinstance(value, float):
        text = f"{value:.6g}"
    else:
        text = str(value)
    return text if len(text) <= 200 else text[:197] + "..."
