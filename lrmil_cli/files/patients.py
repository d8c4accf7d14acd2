"""Patients as what is learned from: a manifest of slides becomes one of patients (training/README 1.2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from lrmil_cli.errors import InputError
from lrmil_cli.files.manifest import Manifest
from lrmil_cli.files.manifest_rows import Entry
from lrmil_cli.targets.task import PATIENT


def bag_entry(manifest: Manifest) -> dict[str, Any]:
    """The entry ``bag`` of headers and settings; none of slides, whose files stay as they were."""
    return {} if manifest.of is None else {"bag": PATIENT}


def patients_of(manifest: Manifest) -> Manifest:
    """The manifest with an entry a patient, in the order of their first slides; its ``of`` is the one of slides.

    The entry is called after the patient (``slide_id``) and has the path of the first slide. What slides of a patient
    may differ in (site, organ, stain, further columns) is kept where they agree, and is unknown where they do not.

    Raises:
        InputError: slides of a patient have different labels.
    """
    entries = [_patient(manifest, [manifest.entries[i] for i in own]) for own in slides_by_patient(manifest)]
    return replace(manifest, entries=tuple(entries), of=manifest)


def slides_by_patient(manifest: Manifest) -> list[list[int]]:
    """Of each patient, in the order of their first slides, the indices of their slides in a manifest of slides."""
    found: dict[str, list[int]] = {}
    for n, entry in enumerate(manifest):
        found.setdefault(entry.patient_id, []).append(n)
    return list(found.values())


def _patient(manifest: Manifest, own: Sequence[Entry]) -> Entry:
    first = own[0]
    for other in own:
        if (other.label, other.value, other.time, other.event) != (first.label, first.value, first.time, first.event):
            raise InputError(
                f"{manifest.path}: patient {first.patient_id!r} has slides with different labels ({first.slide_id} "
                f"{first.label or 'none'}, {other.slide_id} {other.label or 'none'}); correct them, or learn from "
                "slides (--bag slide)"
            )
    if len(own) == 1:
        return replace(first, slide_id=first.patient_id)

    def agreed(name: str) -> Any:
        values = {getattr(e, name) for e in own}
        return values.pop() if len(values) == 1 else None

    cells = {k: v for k, v in first.cells.items() if all(e.cells.get(k) == v for e in own)}
    shared = {name: agreed(name) for name in ("site", "organ", "stain")}
    return replace(first, slide_id=first.patient_id, cells=cells, **shared)
