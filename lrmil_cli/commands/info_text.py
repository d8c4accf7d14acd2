"""The text of ``lrmil info``: what is known of a file, for a terminal of 80 columns."""

from __future__ import annotations

import json
from textwrap import fill
from typing import Any

from lrmil_cli.commands.manifest_text import render_manifest


def render(path: str, about: dict[str, Any]) -> str:
    """What :func:`lrmil_cli.commands.info.describe` found, as lines."""
    if about["kind"] == "geojson":
        return render_geojson(path, about)
    if about["kind"] == "manifest":
        return render_manifest(path, about)
    lines = [f"{path}: {about['kind']}"]
    for key, value in about.items():
        if key in ("kind", "history", "version", "feature_digests") or value is None:
            continue
        if key in _LISTS:
            lines += [f"  {_LISTS[key](entry)}" for entry in value]
            continue
        if text := _short(value):
            lines.append(f"  {key}: {text}")
    return "\n".join(lines + _history(about.get("history")))


def _level(level: dict[str, Any]) -> str:
    scale = f", {level['mpp']:g} um/px" if "mpp" in level else ""
    return f"level {level['level']}: {level['width']} x {level['height']} px{scale} (1/{level['downsample']:g})"


def _image(image: dict[str, Any]) -> str:
    number = f"image {image['image']}: " if "image" in image else "beside it: "
    name = f" ({image['name']})" if image.get("name") else ""
    levels = f", {image['levels']} levels" if image.get("levels", 1) > 1 else ""
    return f"{number}{image['kind']}{name}, {image['width']} x {image['height']} px{levels}"


#: Lists of a slide that are shown entry by entry.
_LISTS = {"levels": _level, "images": _image, "notes": lambda note: f"note: {note}"}


def _history(history: list[dict[str, Any]] | None) -> list[str]:
    lines = []
    for entry in history or []:
        ours = f"lrmil {entry['lrmil']}, {entry.get('date')}, " if "lrmil" in entry else ""
        lines.append(f"  made by: {entry.get('command')} ({ours}{entry['digest'][:12]})")
    return lines


def render_geojson(path: str, about: dict[str, Any]) -> str:
    """What QuPath will make of a file."""
    lines = [f"{path}: GeoJSON, {_what_qupath_does(about)}"]
    lines += [f"  wrong: {text}" for text in about["fatal"]]
    lines += [f"  not as meant: {text}" for text in about["silent"]]
    lines += [f"  note: {text}" for text in about["notes"]]
    lines.append("  objects: " + (", ".join(f"{n} {kind}" for kind, n in about["objects"].items()) or "none"))
    for name, (count, low, high) in about["measurements"].items():
        lines.append(
            f"  measurement: {name}: {low:.6g} to {high:.6g}"
            + ("" if count == sum(about["objects"].values()) else f" ({count} objects)")
        )
    lines += [f"  class: {name}: {n} objects" for name, n in about["classes"].items()]
    for key in ("slide", "style", "offset", "image", "prediction"):
        if about["lrmil"].get(key) is not None:
            lines.append(f"  {key}: {_short(about['lrmil'][key])}")
    return "\n".join(lines + _history(about["lrmil"].get("history")))


def _what_qupath_does(about: dict[str, Any]) -> str:
    if about["opens"] and about["objects"]:
        return "QuPath 0.5 to 0.7 opens it"
    if about["opens"] or not about["opens_in"]:
        return "QuPath will import NOTHING of it"
    return f"of QuPath 0.5, 0.6 and 0.7 only {' and '.join(about['opens_in'])} opens it"


def render_encoders(rows: list[dict[str, Any]]) -> str:
    """The table of encoders, two lines each, for a terminal of 80 columns."""
    lines = ["name           width blocks patch input  licence, access"]
    for r in rows:
        lines.append(
            f"{r['name']:<14} {r['width']:>5} {r['blocks']:>6} {r['patch']:>5} {r['input_size']:>5}  "
            f"{r['license']}, {r['access']}"
        )
        lines.append(
            f"  {r['hub']}"
            + (f" (for MIL its authors use --embedding {r['embedding']})" if r["embedding"] != "cls" else "")
        )
    return "\n".join(
        [
            *lines,
            "",
            "input: side in px for ratio 4 and tiles of 256 px. Gated: ask for access on the",
            "page at huggingface.co and run `hf auth login`, or give a file as NAME@FILE.",
        ]
    )


def render_heads(rows: list[dict[str, Any]], sources: dict[str, dict[str, str]], differences: dict[str, str]) -> str:
    """Heads with their options, by where the default of each is from, for a terminal of 80 columns.

    Args:
        sources: head -> option -> where its default is from.
        differences: head -> in what --recipe published differs from what its authors did.
    """
    lines = []
    for r in rows:
        takes = "classes only" if r["classes_only"] else "any target"
        about = f"{r['name']}: {r['what']} ({r['attention_kind']} attention, {takes})"
        lines.append(fill(about, 80, subsequent_indent="    "))
        groups: dict[str, list[str]] = {}
        for key, value in r["options"].items():
            text = f"{key}={value if isinstance(value, str) else json.dumps(value)}"
            groups.setdefault(sources[r["name"]][key], []).append(text)
        for source, options in groups.items():
            text = f"{', '.join(options)}  [{source}]"
            lines.append(fill(text, 80, initial_indent="  ", subsequent_indent="    ", break_on_hyphens=False))
        if differs := differences.get(r["name"]):
            lines.append(fill(f"--recipe published: {differs}", 80, initial_indent="  ", subsequent_indent="    "))
    return "\n".join(
        [
            *lines,
            "",
            "Set with --head-option KEY=VALUE; these are the defaults, and where each is",
            "from. Derived attention is not what the head pools with, but computed from it.",
            "Any target: classes, a number or survival (--task).",
        ]
    )


def _short(value: Any) -> str:
    if isinstance(value, dict):
        plain = {k: v for k, v in value.items() if v is not None and (not isinstance(v, (dict, list)) or k == "bounds")}
        # What holds nothing but lists or further groups shows these.
        text = ", ".join(f"{k} {_short(v)}" for k, v in plain.items()) or "; ".join(
            f"{k} {_short(v)}" for k, v in value.items() if v
        )
    elif isinstance(value, list):
        text = (
            f"{len(value)} entries"
            if value and isinstance(value[0], (dict, list)) or len(value) > 8
            else ", ".join(map(str, value))
        )
    elif isinstance(value, float):
        text = f"{value:.6g}"
    else:
        text = str(value)
    return text if len(text) <= 200 else text[:197] + "..."
