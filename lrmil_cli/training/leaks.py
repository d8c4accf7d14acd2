"""Who must not have seen whom: what a teacher or an encoder learned from, against the test slides of a fold.

The rules, and the trap that they are about: training/README 5. All of them go by patient: two slides of one patient
look alike, and have one label more often than not.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from lrmil_cli.errors import InputError
from lrmil_cli.files.manifest import Manifest
from lrmil_cli.files.manifest_rows import tcga_patient
from lrmil_cli.training.folds import fold_names

#: Said where numbers are transductive: the encoder knows test slides, if not what they are.
SAW_TEST_PIXELS = (
    "note: the LR encoder saw the pixels (not the labels) of test slides; for inductive numbers make one encoder a "
    "fold (distill-encoder --slides --fold)"
)


def patients_by_slide(manifest: Manifest) -> dict[str, str]:
    """Slide id -> patient."""
    return {e.slide_id: e.patient_id for e in manifest}


def check_no_leak(
    head_header: dict[str, Any], test: list[str], fold: int, patients: Mapping[str, str] | None = None
) -> None:
    """No teacher head has trained or been selected on a test patient of the student's fold (training/README 5.1).

    Args:
        test: slide ids; patients: of slide ids; what it does not know is taken from TCGA ids, or is a patient of its
            own.

    Raises:
        InputError: it has.
    """
    leaked = _common([*head_header.get("train", []), *head_header.get("val", [])], test, patients)
    if leaked:
        raise InputError(
            f"fold {fold}: the teacher's head was trained with slide {leaked[0]}, whose patient is tested in this "
            "fold; student and teacher must use the same folds.csv and the same patients"
        )


def check_no_label_leak(
    encoder_header: dict[str, Any] | None, test: list[str], fold: int, patients: Mapping[str, str] | None = None
) -> None:
    """No encoder has learned a test patient's label through a teacher's attention (training/README 5.2).

    Args:
        test, patients: as of :func:`check_no_leak`.

    Raises:
        InputError: it has.
    """
    leaked = _common((encoder_header or {}).get("label_slides", []), test, patients)
    if leaked:
        raise InputError(
            f"fold {fold}: the encoder learned from the teacher's attention on slide {leaked[0]} "
            "(--final-loss attention), so from its label, and its patient is tested in this fold; "
            "make one encoder a fold (distill-encoder --slides --fold)"
        )


def encoder_leak(
    encoder_header: dict[str, Any] | None,
    folds: pd.DataFrame,
    names: list[str],
    patients: Mapping[str, str] | None = None,
) -> bool:
    """Whether the encoder has seen pixels of a test patient (training/README 5.2)."""
    seen = (encoder_header or {}).get("slides", [])
    return any(_common(seen, folds.loc[folds[n] == "test", "slide_id"], patients) for n in names)


def check_patients(folds: pd.DataFrame, manifest: Manifest, where: str) -> None:
    """No fold, wherever it comes from, has a patient of the manifest both in its test part and in the rest.

    Raises:
        InputError: one has.
    """
    patient = folds["slide_id"].map(patients_by_slide(manifest))
    for name in fold_names(folds):
        test = folds[name] == "test"
        torn = sorted(set(patient[test]) & set(patient[folds[name].isin(["train", "val"])]))
        if torn:
            raise InputError(
                f"{where}: patient {torn[0]!r} has slides in the test part of {name} and in the rest of it "
                f"({len(torn)} patient(s)); train the teacher with the patients of this manifest"
            )


def _common(seen: Iterable[str], test: Iterable[str], patients: Mapping[str, str] | None) -> list[str]:
    """Slides of ``seen`` whose patients have a slide in ``test``, sorted."""

    def patient(slide_id: str) -> str:
        return (patients or {}).get(slide_id) or tcga_patient(slide_id) or slide_id

    tested = {patient(s) for s in test}
    return sorted({s for s in seen if patient(s) in tested})
