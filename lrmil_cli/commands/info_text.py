"""The text of ``lrmil info``: what is known of a file, for a terminal of 80 columns."""

from __future__ import annotations

import json
from textwrap import fill
from typing import Any


def render(path: str, about: dict[str, Any]) -> str:
    """What :func:`lrmil_cli.commands.info.describe` found, as lines."""
    if about["kind"] == "geojson":
        return render_geojson(path, about)
    lines = [f"{path}: {about['kind']}"]
    for key, value in about.items():
        if key in ("kind", "history", "version", "feature_digests") or value is None:
            continue
        if key == "levels":
            lines += [
                f"  level {l['level']}: {l['width']} x {l['height']} px, {l['mpp']:g} um/px (1/{l['downsample']:g})"
                for l in value
            ]
            continue
        if text := _short(value):
            lines.append(f"  {key}: {text}")
    return "\n".join(lines + _history(about.get("history")))


def _history(history: list[dict[str, Any]] | None) -> list[str]:
    lines = []
    for entry in history or []:
        ours = f"lrmil {entry['lrmil']}, {entry.get('date')}, " if "lrmil" in entry else ""
        lines.append(f"  made by: {entry.get('command')} ({ours}{entry['digest'][:12]})")
    return lines


def render_geojson(path: str, about: dict[str, Any]) -> str:
    """What QuPath will make of a file."""
    lines = [
        f"{path}: GeoJSON, {'QuPath 0.5 to 0.7 opens it' if about['opens'] else 'QuPath will import NOTHING of it'}"
    ]
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


#: Where the defaults of a head are from: those of the options named here, and under "" those of all others.
HEAD_SOURCES: dict[str, dict[str, str]] = {
    "abmil": {"": "LRMIL's official code", "degree": "HDMIL's official code"},
    "clam_mb": {"": "CLAM's official code", "hidden": "ours", "degree": "HDMIL's official code"},
    "clam_sb": {"": "CLAM's official code", "hidden": "ours", "degree": "HDMIL's official code"},
    "dmin": {"": "HDMIL's official code", "classifier": "HDMIL's paper"},
    "dsmil": {"": "DSMIL's official code", "loss": "ours"},
    "dtfd": {"": "DTFD-MIL's official code", "grouping_seed": "ours"},
    "maxpool": {"": "CLAM's official code"},
    "meanpool": {"": "ours, as of maxpool"},
    "transmil": {"": "TransMIL's official code", "attention": "ours"},
}
_CLAM_NOTES = {"hidden": "as size says", "inst_loss": "its commands say svm", "subtyping": "true for subtypes"}
#: What a reader would wonder about: where a source has other values, or why ours differs.
HEAD_NOTES: dict[str, dict[str, str]] = {
    "clam_mb": _CLAM_NOTES,
    "clam_sb": _CLAM_NOTES,
    "dmin": {
        "retention": "0.7 for TCGA-NSCLC and BRCA",
        "degree": "16 for TCGA-NSCLC",
        "k": "8 for TCGA-RCC",
        "subtyping": "true for TCGA",
    },
    "dsmil": {"loss": "as every head; published: bce"},
    "dtfd": {"grouping_seed": "so that a slide has one answer"},
    "transmil": {"attention": "a distribution; published: nystrom"},
}


def head_source(head: str, option: str) -> str:
    """Where the default of an option of a head is from."""
    sources = HEAD_SOURCES.get(head, {})
    return sources.get(option, sources.get("", "source not said"))


def render_heads(rows: list[dict[str, Any]]) -> str:
    """Heads with their options, by where the default of each is from, for a terminal of 80 columns."""
    lines = []
    for r in rows:
        name = r["name"]
        lines.append(fill(f"{name}: {r['what']} ({r['attention_kind']} attention)", 80, subsequent_indent="    "))
        groups: dict[str, list[str]] = {}
        for key, value in r["options"].items():
            note = HEAD_NOTES.get(name, {}).get(key)
            text = f"{key}={value if isinstance(value, str) else json.dumps(value)}" + (f" ({note})" if note else "")
            groups.setdefault(head_source(name, key), []).append(text)
        for source, options in groups.items():
            text = f"{source}: {', '.join(options)}"
            lines.append(fill(text, 80, initial_indent="  ", subsequent_indent="    ", break_on_hyphens=False))
    return "\n".join(
        [
            *lines,
            "",
            "Set with --head-option KEY=VALUE; these are the defaults, and where each is",
            "from. Derived attention is not what the head pools with, but computed from it.",
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
