#!/usr/bin/env python3
"""ABMIL on MUSK1 and MUSK2, beside the published figures (Ilse, Tomczak, Welling 2018, table 1).

    python examples/musk.py clean1.data clean2.data

takes the files of the UCI repository (doi:10.24432/C5ZK5B and C51608), or .npz files with ``X`` [instances, 166],
``bag`` and ``y`` of each instance. 10-fold cross-validation by bag, five repeats; features are standardised by the
training folds; no validation set, so the epoch is chosen on the training bags. About twenty minutes on one core.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import numpy as np
import torch
from sklearn.model_selection import StratifiedKFold

from lrmil_cli.heads import Bag
from lrmil_cli.training.crossval import HeadSpec, seeded_head
from lrmil_cli.training.loop import TrainSettings, fit_head, predict_bags

HEADS = {"ABMIL": {"embed_dim": 128, "hidden": 64}, "gated ABMIL": {"embed_dim": 128, "hidden": 64, "gated": True}}
PUBLISHED = {
    ("musk1", "ABMIL"): "0.892 +- 0.040",
    ("musk1", "gated ABMIL"): "0.900 +- 0.050",
    ("musk2", "ABMIL"): "0.858 +- 0.048",
    ("musk2", "gated ABMIL"): "0.863 +- 0.042",
}


def read(path: Path) -> tuple[list[np.ndarray], np.ndarray]:
    """Bags [N_i, 166] and their labels."""
    if path.suffix == ".npz":
        with np.load(path) as z:
            x, bag, y = z["X"].astype(np.float32), z["bag"], z["y"]
    else:
        with open(path, newline="", encoding="utf-8") as fh:
            rows = [r for r in csv.reader(fh) if len(r) > 2]
        bag = np.array([r[0] for r in rows])
        x = np.array([r[2:168] for r in rows], np.float32)
        y = np.array([float(r[168].rstrip(".")) for r in rows]).astype(int)
    names = np.unique(bag)
    return [x[bag == n] for n in names], np.array([y[bag == n].max() for n in names])


def accuracy_of_repeat(bags: list[np.ndarray], labels: np.ndarray, options: dict, settings: dict, repeat: int) -> float:
    """Mean accuracy over the ten folds of one repeat."""
    own = []
    for k, (train, test) in enumerate(StratifiedKFold(10, shuffle=True, random_state=repeat).split(labels, labels)):
        seen = np.concatenate([bags[i] for i in train])
        mean, sd = seen.mean(0), np.maximum(seen.std(0), 1e-6)
        scaled = [Bag(torch.from_numpy((b - mean) / sd)) for b in bags]
        seed = 1000 * repeat + k
        head = seeded_head(HeadSpec("abmil", options), bags[0].shape[1], 2, seed)
        fit = fit_head(head, scaled, labels.tolist(), train, train, TrainSettings(**settings, seed=seed))
        own.append((predict_bags(fit.head, [scaled[i] for i in test]).argmax(1) == labels[test]).mean())
    return float(np.mean(own))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=25)
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--weight-decay", type=float, default=1e-4)
    args = parser.parse_args()
    torch.set_num_threads(1)  # bags of a few instances: more threads only wait for each other
    settings = {"lr": args.lr, "weight_decay": args.weight_decay, "epochs": args.epochs, "patience": args.epochs}
    print(f"{'data':<8}{'head':<14}{'accuracy, mean +- sd of repeats':<34}{'Ilse et al. 2018':<18}", flush=True)
    for path in args.files:
        bags, labels = read(path)
        name = path.stem.replace("clean", "musk")
        for head, options in HEADS.items():
            own = [accuracy_of_repeat(bags, labels, options, settings, r) for r in range(args.repeats)]
            sd = f"{np.std(own, ddof=1):.3f}" if len(own) > 1 else "?"
            print(
                f"{name:<8}{head:<14}{f'{np.mean(own):.3f} +- {sd}':<34}{PUBLISHED.get((name, head), ''):<18}",
                flush=True,
            )


if __name__ == "__main__":
    main()
