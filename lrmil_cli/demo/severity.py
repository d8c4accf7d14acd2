"""Patients with a hidden severity, which sets a number or the time to an event: plans of cohorts to paint."""

from __future__ import annotations

from typing import Any

import numpy as np

from lrmil_cli.demo.paint import NESTED

#: Of survival: months of typical follow-up, shape of the Weibull distribution, how the log hazard rises from severity 0
#: to 1, and how often a patient is lost to follow-up, as a hazard. Chosen so that a third is censored.
MONTHS, SHAPE, RISE, LOST = 36.0, 3.0, 14.0, 0.12
#: Parts of six patients of neighbouring severity.
SPLITS = ("train", "train", "train", "val", "test", "test")


def plan_severity(n_slides: int, seed: int, task: str) -> list[dict[str, Any]]:
    """Rows of slides.csv, with ``share`` besides, from 0 to 1, what of the nests is a lesion.

    Every fifth patient has two slides, of one severity. Severities are spread evenly, and each part of the split has
    its share of all of them.

    Args:
        task: "regression": ``severity``, what percent of the tissue is a lesion; "survival": ``time`` in months from a
            hazard that rises with it, and ``event``, 0 for who was lost to follow-up before.
    """
    rng = np.random.default_rng([seed, 4])
    slides: list[int] = []
    while sum(slides) < n_slides:
        slides.append(2 if len(slides) % 5 == 4 and sum(slides) + 2 <= n_slides else 1)
    m = len(slides)
    order = rng.permutation(m)
    shares = (order + rng.uniform(0, 1, m)) / m
    split = np.concatenate([rng.permutation(SPLITS) for _ in range(-(-m // len(SPLITS)))])[order]
    happens = MONTHS * (rng.exponential(size=m) / np.exp(RISE * (shares - 0.5))) ** (1 / SHAPE)
    lost = MONTHS * (rng.exponential(size=m) / LOST) ** (1 / SHAPE)
    rows: list[dict[str, Any]] = []
    for k, count in enumerate(slides):
        target = (
            {"severity": round(100 * NESTED * float(shares[k]), 1)}
            if task == "regression"
            else {"time": round(float(min(happens[k], lost[k])), 1), "event": int(happens[k] <= lost[k])}
        )
        for _ in range(count):
            slide_id = f"slide_{len(rows) + 1:03d}"
            rows.append(
                {
                    "slide": f"slides/{slide_id}.svs",
                    "slide_id": slide_id,
                    **target,
                    "patient_id": f"patient_{k + 1:03d}",
                    "split": str(split[k]),
                    "share": float(shares[k]),
                }
            )
    return rows
