"""What a table of slides holds, in full: for ``lrmil info`` and ``lrmil doctor``."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

from lrmil_cli.files.manifest import Manifest, Problem


def describe_manifest(manifest: Manifest, problems: Sequence[Problem]) -> dict[str, Any]:
    """All that is known of a manifest without opening a slide, as plain JSON types.

    Args:
        manifest, problems: of :func:`lrmil_cli.files.manifest.survey_manifest`.
    """
    patients = Counter(e.patient_id for e in manifest)
    labels: dict[str, set[str]] = defaultdict(set)
    own: dict[str, set[str]] = defaultdict(set)
    for e in manifest:
        if e.label is not None:
            labels[e.patient_id].add(e.label)
            own[e.label].add(e.patient_id)
    lost = [e for e in manifest if manifest.has_paths and not e.path.exists()]
    same: dict[str, list[str]] = defaultdict(list)
    for e in manifest if manifest.has_paths else ():
        same[os.path.realpath(e.path)].append(e.slide_id)
    named = [(e.row, column, path) for e in manifest for column, path in (("mask", e.mask), ("roi", e.roi)) if path]
    columns = sorted({k for e in manifest for k in e.folds})
    parts = {k: Counter(e.folds.get(k, "") for e in manifest) for k in columns}
    if splits := Counter(e.split for e in manifest if e.split):
        parts = {"split": Counter(e.split or "" for e in manifest), **parts}
    return {
        "kind": "manifest",
        "understood": manifest.understood(),
        "form": manifest.form,
        "column_of": dict(manifest.columns),
        "read_as": list(manifest.notes),
        "ignored": list(manifest.ignored),
        "slides": len(manifest),
        "found": len(manifest) - len(lost) if manifest.has_paths else None,
        "missing": [str(e.path) for e in lost],
        "missing_rows": [e.row for e in lost],
        "missing_files": [[row, column, str(path)] for row, column, path in named if not path.exists()],
        "same_file": [ids for ids in same.values() if len(set(ids)) > 1],
        "patients": len(patients),
        "patients_from": manifest.patients_from,
        "unknown_patients": manifest.unknown_patients,
        "patients_with_several_slides": sum(n > 1 for n in patients.values()),
        "patients_with_two_labels": sorted(p for p, known in labels.items() if len(known) > 1),
        "sites": dict(Counter(e.site for e in manifest if e.site is not None).most_common()),
        "sites_from": manifest.sites_from,
        "targets": manifest.targets_text() or None,
        "classes": {c: sum(e.label == c for e in manifest) for c in manifest.classes},
        "patients_of_class": {c: len(own[c]) for c in manifest.classes},
        "without_label": sum(e.label is None for e in manifest),
        "without_label_rows": [[row, text] for row, text in manifest.unlabelled],
        "dropped": manifest.dropped,
        "splits": dict(splits),
        "folds": columns,
        "parts": {k: dict(sorted(v.items())) for k, v in parts.items()},
        "problems": [p._asdict() for p in problems],
    }
