"""Can these features tell which site a slide is from? A probe, and the same for the label (evaluation/README 15)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from lrmil_cli.evaluation.bootstrap import intervals

#: Parts of the cross-validation of a probe.
PARTS = 5
#: Inverse weight of the ridge of the logistic regression, on standardised features: hundreds of them, few slides.
STRENGTH = 0.01
#: Resamples of its interval.
DRAWS = 1000


def probe(features: np.ndarray, classes: Sequence[str], patients: Sequence[str], *, seed: int = 0) -> dict[str, Any]:
    """Macro AUC of a multinomial logistic regression on slide means, out of fold by patient, with its interval.

    Classes of fewer patients than :data:`PARTS` are left out with their slides.

    Args:
        features: [n, D], one row a slide; classes, patients: [n].

    Returns:
        ``auc`` (an :class:`Interval`), ``slides``, ``patients`` and ``classes`` that it is of; or the ``reason`` why
        there is none.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedGroupKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    names, who = np.asarray(classes).astype(str), np.asarray(patients).astype(str)
    enough = [c for c in sorted(set(names)) if len(set(who[names == c])) >= PARTS]
    if len(enough) < 2:
        return {"reason": f"{len(enough)} of {len(set(names))} have {PARTS} patients, two are needed"}
    there = np.isin(names, enough)
    x, y, who = features[there].astype(np.float64), np.searchsorted(enough, names[there]), who[there]
    said = np.zeros((len(y), len(enough)))
    for train, test in StratifiedGroupKFold(PARTS, shuffle=True, random_state=seed).split(x, y, who):
        fit = make_pipeline(StandardScaler(), LogisticRegression(C=STRENGTH, max_iter=1000))
        fit.fit(x[train], y[train])
        said[np.ix_(test, fit.classes_)] = fit.predict_proba(x[test])
    found = intervals(["auc"], y, said, who, draws=DRAWS, seed=seed)["auc"]
    return {"auc": asdict(found), "slides": len(y), "patients": len(set(who)), "classes": len(enough)}


def probes(
    features: np.ndarray, sites: Sequence[str | None], labels: Sequence[str], patients: Sequence[str]
) -> dict[str, Any] | None:
    """:func:`probe` of ``site`` and of ``label`` on the slides whose site is known; None where there is one site.

    Args:
        features: [n, D], means of slides; sites: [n], None where not known.
    """
    there = np.array([s is not None for s in sites])
    known = [str(s) for s in sites if s is not None]
    if len(set(known)) < 2:
        return None
    own = features[there], np.asarray(labels)[there], np.asarray(patients)[there]
    return {"site": probe(own[0], known, own[2].tolist()), "label": probe(own[0], own[1].tolist(), own[2].tolist())}
