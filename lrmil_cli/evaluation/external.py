"""A model judged on patients of elsewhere: operating point, decision curve, flow of participants, worst errors.

``evaluate --profile external`` (evaluation/README 16).
"""

from __future__ import annotations

import csv
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lrmil_cli.errors import InputError, UsageError
from lrmil_cli.evaluation.operating_point import GRID, Share, Threshold, choose_threshold, net_benefit, shares_at
from lrmil_cli.evaluation.prediction_sets import calibration_patients
from lrmil_cli.evaluation.predictions import Predictions
from lrmil_cli.evaluation.scores import Cases, at_level
from lrmil_cli.files.manifest import Manifest

#: Errors that are shown, the worst first.
WORST = 8


@dataclass(frozen=True)
class External:
    """Of one model.

    Attributes:
        threshold: of two classes; None of more, where the likeliest class is the answer.
        at: class -> shares at the operating point; of two classes the positive one alone.
        sure: the same over answers that are not uncertain; None where none is.
        curve: net benefit at :data:`GRID` of the model and of calling all positive; None of more than two classes.
        flow: (what, how many, detail) of the slides, from those given to those judged.
        errors: the worst: slide id, label, answer, probability of the label.
        several: patients with several slides, where slides are judged: then the intervals are too narrow.
        method: of the intervals; ``wilson`` or ``clopper-pearson``.
    """

    threshold: Threshold | None
    at: dict[str, dict[str, Share]]
    sure: dict[str, dict[str, Share]] | None
    curve: tuple[np.ndarray, np.ndarray] | None
    flow: list[tuple[str, int, str]]
    errors: list[dict[str, Any]]
    several: int
    method: str

    def as_json(self) -> dict[str, Any]:
        plain = lambda found: {c: {k: asdict(s) for k, s in own.items()} for c, own in found.items()}
        return {
            "threshold": None if self.threshold is None else asdict(self.threshold),
            "intervals": self.method,
            "operating_point": plain(self.at),
            "operating_point_of_the_sure": None if self.sure is None else plain(self.sure),
            "decision_curve": None
            if self.curve is None
            else {"threshold": GRID.tolist(), "model": self.curve[0].tolist(), "all_positive": self.curve[1].tolist()},
            "flow": [{"what": what, "slides": n, "detail": detail} for what, n, detail in self.flow],
            "worst_errors": self.errors,
            "patients_with_several_slides": self.several,
        }


def judge_externally(
    m: Predictions, manifest: Manifest | None, *, level: str, positive: int | None, rule: str, method: str
) -> External:
    """Judge joined predictions of ``predict`` on patients that the model does not know.

    Args:
        positive: index of the positive of two classes; None where there are more.
        rule: as of :func:`choose_threshold`; method: of the intervals.

    Raises:
        UsageError: out-of-fold predictions, or a threshold for more than two classes.
        InputError: the model knows some of the slides or patients, or its record does not decide the threshold.
    """
    if m.kind != "predict" or manifest is None:
        raise UsageError(
            f"--profile external judges what `lrmil predict` said of other patients, with --slides; {m.source} is "
            + ("an out-of-fold table" if m.kind != "predict" else "without --slides")
        )
    if m.leaks:
        raise InputError(f"{m.source}: no external validation: {m.leaks[0]}")
    threshold = None
    if positive is not None:
        threshold = choose_threshold(rule, record_of(m, positive), positive)
    elif rule != "0.5":
        raise UsageError(f"--threshold {rule} is for two classes; of {len(m.classes)} the likeliest is the answer")
    cases = m.cases()
    several = 0
    if level == "slide":
        several = sum(n > 1 for n in Counter(cases.patients.tolist()).values())
    sure = None
    if m.reading is not None and m.reading.uncertain.any() and not m.reading.uncertain.all():
        sure = _shares(at_level(cases.take(~m.reading.uncertain), level, m.classes), m, threshold, positive, method)
    judged = at_level(cases, level, m.classes)
    curve = None
    if positive is not None:
        p, hit = judged.probabilities[:, positive], judged.labels == positive
        curve = net_benefit(p, hit), net_benefit(np.ones(len(p)), hit)
    return External(
        threshold,
        _shares(judged, m, threshold, positive, method),
        sure,
        curve,
        flow_of(m, manifest),
        worst_errors(m, threshold, positive),
        several,
        method,
    )


def record_of(m: Predictions, positive: int) -> Any:
    """Held-out patients of the model, its classes in the order of these predictions; None where they are not known."""
    if m.model_header is None or "calibration_patients" not in m.model_header:
        return None
    known = calibration_patients(m.model_header, m.source)
    own = list(m.model_header["classes"])
    order = [own.index(c) for c in m.classes]
    at = np.argsort(order)  # where the model's class stands here
    return type(known)(known.of, known.head, at[known.labels], known.probabilities[:, order])


def _said(p: np.ndarray, threshold: Threshold | None, positive: int | None) -> np.ndarray:
    """The answer to each row of probabilities [n, C], as an index."""
    if threshold is None or positive is None:
        return p.argmax(1)
    return np.where(p[:, positive] >= threshold.value, positive, 1 - positive)


def _shares(
    cases: Cases, m: Predictions, threshold: Threshold | None, positive: int | None, method: str
) -> dict[str, dict[str, Share]]:
    said = _said(cases.probabilities, threshold, positive)
    which = range(len(m.classes)) if positive is None else [positive]
    return {m.classes[c]: shares_at(said == c, cases.labels == c, method) for c in which}


def flow_of(m: Predictions, manifest: Manifest) -> list[tuple[str, int, str]]:
    """What became of the slides of a manifest: given, unreadable with reasons, without tissue, judged."""
    given = {e.slide_id: e for e in manifest}
    judged = set(m.rows["slide_id"])
    failed = {r["slide_id"]: r for r in _failures(Path(m.source)) if r["slide_id"] in given} if m.source else {}
    failed = {s: r for s, r in failed.items() if s not in judged}
    glass = [s for s, r in failed.items() if r["status"] == "no_tissue"]
    broken = [s for s in failed if s not in glass]
    unlabelled = [s for s, e in given.items() if e.label is None and s not in failed]
    lost = [s for s in given if s not in judged and s not in failed and s not in unlabelled]
    reasons = Counter(_short(failed[s]["error"]) for s in broken)
    unlike = 0 if m.unlike is None else int(m.unlike.sum())
    out = [
        (f"given in {manifest.path.name}", len(given), ""),
        ("unreadable", len(broken), "; ".join(f"{why} ({n})" for why, n in reasons.most_common(5))),
        ("no tissue", len(glass), ""),
        ("without label", len(unlabelled) + manifest.dropped, ""),
        ("not predicted, nobody says why", len(lost), ", ".join(lost[:5])),
        ("judged", len(judged), ""),
        ("of these unlike the training slides", unlike, "" if m.unlike is not None else "the model does not say"),
    ]
    if m.reading is not None:
        out.append(("of these uncertain", int(m.reading.uncertain.sum()), ""))
    return out


def worst_errors(m: Predictions, threshold: Threshold | None, positive: int | None) -> list[dict[str, Any]]:
    """The wrong answers, slide by slide, those surest of them first."""
    labels = m.rows["label"].map(m.classes.index).to_numpy(np.int64)
    said = _said(m.probabilities, threshold, positive)
    own = m.probabilities[np.arange(len(labels)), labels]
    wrong = np.flatnonzero(said != labels)
    worst = wrong[np.argsort(own[wrong], kind="stable")][:WORST]
    return [
        {
            "slide_id": str(m.rows["slide_id"].iloc[i]),
            "label": m.classes[labels[i]],
            "said": m.classes[said[i]],
            "probability_of_label": round(float(own[i]), 6),
            "unlike_training": None if m.unlike is None else bool(m.unlike[i]),
        }
        for i in worst
    ]


def _failures(folder: Path) -> list[dict[str, str]]:
    """Rows of ``failures.csv`` of a results folder; none where there is none.

    Raises:
        InputError: it is damaged.
    """
    path = (folder if folder.is_dir() else folder.parent) / "failures.csv"
    if not path.exists():
        return []
    try:
        with open(path, encoding="utf-8", newline="") as fh:
            rows = list(csv.DictReader(fh))
        return [{k: r[k] or "" for k in ("slide_id", "status", "error")} for r in rows]
    except (OSError, ValueError, KeyError, csv.Error) as e:
        raise InputError(f"{path}: damaged ({e!r}); run `lrmil predict` again") from e


def _short(error: str) -> str:
    """A reason without the path in front."""
    return error.rpartition(": ")[2][:80] if ": " in error else error[:80]
