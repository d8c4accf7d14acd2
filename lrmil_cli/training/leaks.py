"""Who must not have seen whom: what a teacher or an encoder learned from, against the test slides of a fold.

The rules, and the trap that they are about: training/README 5.
"""

from __future__ import annotations

from typing import Any

import pandas as pd

from lrmil_cli.errors import InputError


def check_no_leak(head_header: dict[str, Any], test: list[str], fold: int) -> None:
    """No teacher head has trained or been selected on a test slide of the student's fold (training/README 5.1).

    Raises:
        InputError: it has.
    """
    seen = set(head_header.get("train", [])) | set(head_header.get("val", []))
    leaked = sorted(seen & set(test))
    if leaked:
        raise InputError(
            f"fold {fold}: the teacher's head was trained with slide {leaked[0]}, which is a test slide of this fold; "
            "student and teacher must use the same folds.csv"
        )


def check_no_label_leak(encoder_header: dict[str, Any] | None, test: list[str], fold: int) -> None:
    """No LR encoder has learned a test slide's label through a teacher's attention (training/README 5.2).

    Raises:
        InputError: it has.
    """
    leaked = sorted(set((encoder_header or {}).get("label_slides", [])) & set(test))
    if leaked:
        raise InputError(
            f"fold {fold}: the LR encoder learned from the teacher's attention on slide {leaked[0]} "
            "(--final-loss attention), so from its label, and it is a test slide of this fold; "
            "make one encoder a fold (distill-encoder --slides --fold)"
        )


def encoder_leak(encoder_header: dict[str, Any] | None, folds: pd.DataFrame, names: list[str]) -> bool:
    """Whether the LR encoder has seen pixels of a test slide (training/README 5.2)."""
    seen = set((encoder_header or {}).get("slides", []))
    return any(seen & set(folds.loc[folds[n] == "test", "slide_id"]) for n in names)
