"""A table of slides as ``lrmil info`` shows it: what was understood, what is there, what will be refused."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lrmil_cli.commands.layout import beside
from lrmil_cli.files.manifest_checks import count, listed

#: Lines shown of a list that may be long.
MOST, MOST_CLASSES = 5, 20
#: What the roles of columns are called for people.
_ROLES = {"slide": "slides", "slide_id": "ids", "patient_id": "patients", "label": "labels", "mpp": "um/px"}


def render_manifest(path: str, about: dict[str, Any]) -> str:
    """What :func:`lrmil_cli.files.manifest_about.describe_manifest` found, as lines."""
    rows = [
        ("read as", [about["form"]]),
        ("columns", [f"{_ROLES.get(role, role)}: {name}" for role, name in about["column_of"].items()]),
        ("ignored", [", ".join(about["ignored"])] if about["ignored"] else []),
        ("slides", _slides(about)),
        ("patients", _patients(about)),
        ("sites", _sites(about)),
        ("targets" if about["targets"] else "classes", _classes(about)),
        ("folds", _folds(about)),
        ("refused", _refused(about["problems"])),
    ]
    lines = [f"{path}: manifest, {count(about['slides'], 'slide')}"]
    for name, texts in rows:
        lines += beside(f"  {name:<10}", texts)
    return "\n".join(lines)


def _first(texts: Sequence[str], most: int = MOST) -> list[str]:
    """Lines of a list that may be long."""
    return [*texts[:most], *([f"and {len(texts) - most} more"] if len(texts) > most else [])]


def _slides(about: dict[str, Any]) -> list[str]:
    if about["found"] is None:
        return ["ids alone: enough where only features are read (--features)"]
    missing, rows = about["missing"], about["missing_rows"]
    if not missing:
        texts = [f"all {about['found']} found"]
    else:
        texts = [f"{about['found']} of {about['slides']} found, as seen from the folder of the table; missing:"]
        texts += _first([f"row {row}: {path}" for row, path in zip(rows, missing)])
    texts += _first([f"row {row}, {column} not found: {path}" for row, column, path in about["missing_files"]])
    return texts + _first([f"one file under several ids: {listed(ids)}" for ids in about["same_file"]])


def _patients(about: dict[str, Any]) -> list[str]:
    if about["patients_from"] == "slides":
        return ["unknown: each slide is taken for a patient of its own, and figures are too good where that is wrong"]
    how = "TCGA ids" if about["patients_from"] == "tcga" else f"column {about['column_of']['patient_id']}"
    texts = [f"{about['patients']} by {how}, {about['patients_with_several_slides']} with several slides"]
    if about["unknown_patients"]:
        texts.append(f"{count(about['unknown_patients'], 'slide')} without patient, each taken for one of its own")
    if both := about["patients_with_two_labels"]:
        texts.append(f"{len(both)} with slides of several classes: {listed(both)}")
    return texts


def _sites(about: dict[str, Any]) -> list[str]:
    if not about["sites"]:
        return []
    how = "TCGA ids" if about["sites_from"] == "tcga" else f"column {about['column_of']['site']}"
    named = listed([f"{name} ({count(n, 'slide')})" for name, n in about["sites"].items()])
    return [f"{len(about['sites'])} by {how}: {named}"]


def _classes(about: dict[str, Any]) -> list[str]:
    if not {"label", "time"} & about["column_of"].keys():
        return ["no column of labels; --label COLUMN names one"]
    known = about["patients_from"] != "slides"
    texts = [
        f"{name}: {count(n, 'slide')}" + (f", {count(about['patients_of_class'][name], 'patient')}" if known else "")
        for name, n in about["classes"].items()
    ]
    texts = [about["targets"]] if about["targets"] else _first(texts, MOST_CLASSES)
    if rows := about["without_label_rows"]:
        what = "left out without label" if about["dropped"] else "without label"
        which = listed([f"row {row} ({text or 'empty'})" for row, text in rows])
        texts.append(f"{count(len(rows), 'slide')} {what}: {which}")
    return texts


def _folds(about: dict[str, Any]) -> list[str]:
    if not about["parts"]:
        return ["none given: training draws them by patient (--folds)"]
    return [
        f"{column}: " + ", ".join(f"{part or 'empty'} ({count(n, 'slide')})" for part, n in parts.items())
        for column, parts in about["parts"].items()
    ]


def _refused(problems: Sequence[dict[str, Any]]) -> list[str]:
    """What is wrong, and what to do, a line each."""
    texts = []
    for problem in problems[:MOST]:
        found, _, fix = problem["text"].rpartition("; ")
        by = "training: " if problem["training"] else ""
        texts += [f"{by}{found or fix}", *([f"-> {fix}"] if found else [])]
    return texts + ([f"and {len(problems) - MOST} more"] if len(problems) > MOST else [])
