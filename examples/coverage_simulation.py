"""Do prediction sets and abstaining keep their promise? Made cohorts, many times over.

    python examples/coverage_simulation.py                 # 500 cohorts, a few minutes
    python examples/coverage_simulation.py --cohorts 50 --patients 300

Each cohort has patients with one to five slides that resemble each other, two classes that overlap, and one head a
fold (a logistic regression), calibrated on validation patients. Two thousand new patients tell what is reached, with
sets at 0.9 by CV+ (five folds) and by one split, and abstaining at an error of 0.05. A new case is a patient by the
mean of its slides, which is what the promise is about, or a single slide.
"""

from __future__ import annotations

import argparse

import numpy as np
from sklearn.linear_model import LogisticRegression

from lrmil_cli.evaluation.head_calibration import calibrate_head
from lrmil_cli.evaluation.prediction_sets import abstain_below, by_patient, prediction_sets

FEATURES, FOLDS, NEW = 5, 5, 2000


def draw(rng: np.random.Generator, patients: int, distance: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Slide features [n, D], labels and patients [n]; classes lie ``distance`` apart, slides scatter in a patient."""
    slides = rng.integers(1, 6, patients)
    label = rng.integers(0, 2, patients)
    centre = rng.normal(size=(patients, FEATURES)) + distance * label[:, None] / np.sqrt(FEATURES)
    patient = np.repeat(np.arange(patients), slides)
    return centre[patient] + rng.normal(scale=0.5, size=(len(patient), FEATURES)), label[patient], patient


def heads_of(x, y, patient, splits):
    """A calibrated head a split, as a function, and what each says of the slides it is calibrated for."""
    heads, rows = [], []
    for k, (val, held_out) in enumerate(splits):
        train = ~np.isin(patient, np.concatenate([val, held_out]))
        at_val, at_held = np.isin(patient, val), np.isin(patient, held_out)
        fit = LogisticRegression(C=1.0).fit(x[train], y[train])
        own = calibrate_head(y[at_val], fit.predict_proba(x[at_val]), patient[at_val].astype(str).tolist())
        heads.append(lambda new, fit=fit, own=own: own.apply(fit.predict_proba(new)))
        rows.append((np.full(at_held.sum(), k), patient[at_held].astype(str), y[at_held], heads[-1](x[at_held])))
    head, who, label, p = (np.concatenate(part) for part in zip(*rows))
    return heads, head, who, label, p


def cohort(rng: np.random.Generator, patients: int, distance: float, max_error: float) -> dict[str, tuple]:
    x, y, patient = draw(rng, patients, distance)
    new_x, new_y, new_patient = draw(rng, NEW, distance)
    order = rng.permutation(patients)
    parts = np.array_split(order, FOLDS)
    out = {}
    cv = [(parts[(k + 1) % FOLDS][: patients // 10], parts[k]) for k in range(FOLDS)]
    for name, of, splits in (("CV+", "test", cv), ("split", "validation", [(order[: patients // 2],) * 2])):
        heads, head, who, label, p = heads_of(x, y, patient, splits)
        known = by_patient(of, head, who, label, p)
        said = np.stack([h(new_x) for h in heads], 1)
        slides = np.bincount(new_patient)
        mean = np.stack([np.add.reduceat(said[:, k], np.cumsum(slides) - slides) for k in range(len(heads))], 1)
        cases = {"patient": (mean / slides[:, None, None], new_y[np.cumsum(slides) - slides]), "slide": (said, new_y)}
        rule = abstain_below(known, max_error)
        for case, (per_head, truth) in cases.items():
            sets = prediction_sets(per_head, known, 0.9)
            answer = per_head.mean(1)
            sure = answer.max(1) >= (np.inf if rule.confidence is None else rule.confidence)
            wrong = (answer.argmax(1) != truth)[sure]
            error = wrong.mean() if sure.any() else 0.0
            out[f"{name}, {case}"] = (
                sets[np.arange(len(truth)), truth].mean(), (sets.sum(1) == 1).mean(), error, sure.mean(),
                rule.confidence is not None,
            )  # fmt: skip
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cohorts", type=int, default=500)
    parser.add_argument("--patients", type=int, default=200)
    parser.add_argument("--distance", type=float, default=2.5, help="of the classes, in sd between patients")
    parser.add_argument("--max-error", type=float, default=0.05)
    parser.add_argument("--seed", type=int, default=0)
    a = parser.parse_args()
    found = [cohort(np.random.default_rng([a.seed, i]), a.patients, a.distance, a.max_error) for i in range(a.cohorts)]
    print(f"{a.cohorts} cohorts of {a.patients} patients; sets at 0.9; abstaining at {a.max_error:g}")
    print(f"{'':14}  coverage (sd)   one class  promise kept  reachable  answered  error")
    for name in found[0]:
        reached, one, error, sure, there = (np.array([f[name][i] for f in found], float) for i in range(5))
        kept = (error <= a.max_error).mean()
        used = there > 0
        rest = f"{sure[used].mean():8.3f}  {error[used].mean():.3f}" if used.any() else "       -  -"
        print(
            f"{name:14}  {reached.mean():.3f} ({reached.std():.3f})  {one.mean():9.3f}  {kept:12.3f}  "
            f"{used.mean():9.3f}  {rest}"
        )


if __name__ == "__main__":
    main()
