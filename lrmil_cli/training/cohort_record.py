"""What a model was trained on, in numbers, for its header and card: no name of a slide, no patient."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from lrmil_cli.files.manifest import Manifest


def data_of(manifest: Manifest, headers: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """``data`` of a model's header: counts of slides, patients, classes, sites and scanners, and um/px of the slides.

    Args:
        headers: of the feature files of the slides, in the order of the manifest.
    """
    about = [h.get("slide") or {} for h in headers]
    known = sorted(float(a["mpp"]) for a in about if a.get("mpp"))
    sites = Counter(e.site for e in manifest if e.site is not None)
    return {
        "slides": len(manifest),
        "patients": len({e.patient_id for e in manifest}),
        "classes": {
            c: {"slides": sum(e.label == c for e in manifest), "patients": len(own)}
            for c in manifest.classes
            for own in [{e.patient_id for e in manifest if e.label == c}]
        },
        "sites": dict(sites.most_common()) or None,
        "sites_from": manifest.sites_from,
        "scanners": dict(Counter(str(a.get("vendor") or "unknown") for a in about).most_common()),
        "mpp": [known[0], float(np.median(known)), known[-1]] if known else None,
    }
