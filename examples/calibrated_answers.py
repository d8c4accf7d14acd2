"""Do probabilities mean what they say, and do sets keep their promise, on your own cohort? Several seeds.

    lrmil tile slides.csv --mpp 2.0 -o tiles && lrmil embed tiles --encoder uni -o features
    python examples/calibrated_answers.py slides.csv features --seeds 3

Cross-validation of a head on features that are there, by lrmil's own code, each seed with folds of its own. Of the
held-out slides: ECE, slope and intercept of the raw probabilities and of the calibrated ones, accuracy, and of sets at
0.9 the coverage that is reached and the share with one class.
"""

from __future__ import annotations

import argparse
from dataclasses import replace

import numpy as np
import torch

from lrmil_cli.evaluation.calibration import FIGURES, calibration_figures
from lrmil_cli.evaluation.metrics import accuracy, auc
from lrmil_cli.evaluation.prediction_sets import COVERAGE, by_patient, held_out_sets
from lrmil_cli.evaluation.scores import Cases
from lrmil_cli.files.manifest import read_manifest
from lrmil_cli.training.bags import read_cohort
from lrmil_cli.training.crossval import head_spec, train_folds
from lrmil_cli.training.folds import make_folds
from lrmil_cli.training.loop import TrainSettings
from lrmil_cli.training.streamed import room_for


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("slides")
    parser.add_argument("features")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--head", default="abmil")
    args = parser.parse_args()
    torch.set_num_threads(1)
    where = torch.device("cpu")
    manifest = read_manifest(args.slides, need_labels=True, need_slides=False)
    print(manifest.understood())
    bags = read_cohort(manifest, args.features, device=where, room=room_for(where), say=print, warn=print)
    entries = {e.slide_id: e for e in manifest}
    names = [f"{who} {k}" for who in ("raw", "calibrated") for k in FIGURES]
    found: dict[str, list[float]] = {k: [] for k in (*names, "accuracy", "AUC", "coverage", "one class")}
    base = TrainSettings(epochs=args.epochs, lr=args.lr)
    for seed in range(args.seeds):
        folds = make_folds(manifest, args.folds, seed)
        results = train_folds(manifest, folds, lambda k: bags, head_spec(args.head, {}), replace(base, seed=seed))
        slides = [entries[s] for r in results for s in r.parts["test"]]
        labels = np.array([manifest.classes.index(e.label) for e in slides])
        patients = np.array([e.patient_id for e in slides])
        positive = 1 if len(manifest.classes) == 2 else None
        both = {
            "raw": np.concatenate([r.raw["test"] for r in results]),
            "calibrated": np.concatenate([r.probabilities for r in results]),
        }
        for who, p in both.items():
            for name, v in calibration_figures(Cases(labels, p, patients), positive, draws=0, seed=0).items():
                found[f"{who} {name}"].append(np.nan if v.value is None else v.value)
        found["accuracy"].append(accuracy(labels, both["calibrated"]) or 0.0)
        found["AUC"].append(auc(labels, both["calibrated"]) or 0.0)
        fold = [n for n, r in enumerate(results) for _ in r.parts["test"]]
        known = by_patient("test", fold, patients.tolist(), labels.tolist(), both["calibrated"])
        sets = held_out_sets(known, COVERAGE)
        reached = (np.nan, np.nan)
        if sets is not None:
            reached = float(sets[0][np.arange(len(sets[1])), sets[1]].mean()), float((sets[0].sum(1) == 1).mean())
        found["coverage"].append(reached[0])
        found["one class"].append(reached[1])
        kinds = ", ".join(r.calibration.method for r in results)
        print(f"seed {seed}: heads calibrated by {kinds}")
    print(f"{args.seeds} seeds, {args.folds} folds each: mean (sd over seeds)")
    for name, values in found.items():
        title = f"sets at {COVERAGE:g}: {name}" if name in ("coverage", "one class") else name
        print(f"{title:<28}{np.nanmean(values):7.3f} ({np.nanstd(values):.3f})")


if __name__ == "__main__":
    main()
