"""What a model was trained on, in numbers, for its header and card: counts, and what the features look like; no name of
a slide, no patient."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from lrmil_cli.evaluation.site_probe import probes
from lrmil_cli.evaluation.unlike_training import describe_training
from lrmil_cli.files.manifest import Manifest
from lrmil_cli.files.patients import bag_entry
from lrmil_cli.training import out_of_fold
from lrmil_cli.training.crossval import FoldResult, Judged
from lrmil_cli.training.folds import fold_names, members, strata
from lrmil_cli.training.patients import slide_folds


def data_of(manifest: Manifest, folds: pd.DataFrame, headers: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """``data`` of a model's header: counts of slides, patients, classes, sites, organs, stains,
    scanners and slides that ``lrmil demo`` painted, and um/px of the slides;
    ``sites_apart``: whether no fold has a site both in its test part and in the rest, None where sites are not known.

    Args:
        headers: of the feature files of the slides, in the order of the manifest.
    """
    about = [h.get("slide") or {} for h in headers]
    known = sorted(float(a["mpp"]) for a in about if a.get("mpp"))
    sites = Counter(e.site for e in manifest if e.site is not None)
    return {
        "slides": len(manifest),
        "patients": len({e.patient_id for e in manifest}),
        **_target(manifest),
        "classes": {
            c: {"slides": sum(e.label == c for e in manifest), "patients": len(own)}
            for c in manifest.classes
            for own in [{e.patient_id for e in manifest if e.label == c}]
        },
        "sites": dict(sites.most_common()) or None,
        "sites_from": manifest.sites_from,
        "sites_apart": _sites_apart(manifest, folds) if sites else None,
        **{name: _named(manifest, name) for name in ("organ", "stain")},
        "scanners": dict(Counter(str(a.get("vendor") or "unknown") for a in about).most_common()),
        "painted": sum(bool(a.get("painted")) for a in about),
        "mpp": [known[0], float(np.median(known)), known[-1]] if known else None,
    }


def record_of(
    manifest: Manifest,
    folds: pd.DataFrame,
    headers: Sequence[dict[str, Any]],
    judged: Sequence[Judged],
    results: Sequence[FoldResult],
    metrics: tuple[pd.DataFrame, dict[str, Any]],
) -> dict[str, Any]:
    """What the header of every model says of its cohort and of how it was judged there (models/README 2).

    Args:
        headers: as of :func:`data_of`, of slides also where entries of the manifest are patients.
        judged: what is judged of each fold; results: the heads that are kept.
        metrics: of :func:`lrmil_cli.training.out_of_fold.score`.
    """
    rows, pooled = metrics
    return dict(
        classes=list(manifest.classes),
        **out_of_fold.target_of(manifest.task),
        **({} if manifest.task.classes else {"outputs": [r.fit.outputs for r in results]}),
        slides=[e.slide_id for e in manifest.slides],
        **bag_entry(manifest),
        patients={"from": manifest.patients_from, "unknown": manifest.unknown_patients},
        data=data_of(manifest.slides, slide_folds(manifest, folds), headers),
        metrics=pooled,
        fold_metrics=rows.astype(object).where(rows.notna(), None).to_dict("records"),
        calibration=out_of_fold.calibration(results),
        calibration_patients=out_of_fold.conformal(manifest, judged),
    )


def _named(manifest: Manifest, column: str) -> dict[str, int] | None:
    """How many slides the table gives each word of ``organ`` or ``stain``; None where it gives none."""
    return dict(Counter(str(v) for e in manifest if (v := getattr(e, column))).most_common()) or None


def _target(manifest: Manifest) -> dict[str, Any]:
    """``target`` of ``data``: what the numbers of the slides are; nothing of classes."""
    if manifest.task.kind == "regression":
        own = [e.value for e in manifest if e.value is not None]
        return {"target": {"min": min(own), "median": float(np.median(own)), "max": max(own)}}
    if manifest.task.kind == "survival":
        times = [e.time for e in manifest if e.time is not None]
        return {"target": {"events": manifest.events, "median_time": float(np.median(times)), "last": max(times)}}
    return {}


def _sites_apart(manifest: Manifest, folds: pd.DataFrame) -> bool:
    site = {e.slide_id: e.site for e in manifest}
    if None in site.values():
        return False
    for name in fold_names(folds):
        own = members(folds, name)
        if {site[s] for s in own["test"]} & {site[s] for s in (*own["train"], *own["val"])}:
            return False
    return True


def looks_of(
    manifest: Manifest,
    folds: pd.DataFrame,
    features: Callable[[int], np.ndarray],
    of_folds: Sequence[int] | None = None,
) -> dict[str, Any]:
    """``training_features`` and ``site_probe`` of a header (evaluation/README 13 and 15); each slide is read once.

    Args:
        features: of a slide by its index in the manifest, [N, D].
        of_folds: numbers, from 1, of the folds that these features are for; None for all.
    """
    at = {e.slide_id: i for i, e in enumerate(manifest)}
    means: dict[int, np.ndarray] = {}

    def noted(index: int) -> np.ndarray:
        own = features(index)
        means[index] = own.mean(0, dtype=np.float64)
        return own

    parts = [members(folds, name) for k, name in enumerate(fold_names(folds), 1) if of_folds is None or k in of_folds]
    split = [([at[s] for s in p["train"]], [at[s] for s in (*p["val"], *p["test"])]) for p in parts]
    found = {"training_features": describe_training(noted, split)}
    return {**found, "site_probe": probe_of(manifest, lambda i: means[i] if i in means else noted(i).mean(0))}


def probe_of(manifest: Manifest, mean: Callable[[int], np.ndarray]) -> dict[str, Any] | None:
    """``site_probe`` of a header: do slide means tell the site, and the label; None where fewer than two are known.

    Args:
        mean: feature of a slide by its index in the manifest, [D].
    """
    entries = list(manifest)
    if len({e.site for e in entries if e.site is not None}) < 2:
        return None
    return probes(
        np.stack([mean(i) for i in range(len(entries))]),
        [e.site for e in entries],
        [str(e.label) for e in entries] if manifest.task.classes else [str(c) for c in strata(manifest)],
        [e.patient_id for e in entries],
    )
