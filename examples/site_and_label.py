"""Where site and label go together: what folds that tear sites promise, and what folds that keep them apart say.

    python examples/site_and_label.py                       # ten cohorts, a minute
    python examples/site_and_label.py --cohorts 30 --signature 2

Each made cohort has eight sites; in half of them nine of ten patients are of one class, in the others one of ten.
Slide features carry a weak sign of the class and a signature of the site, as stain and scanner leave one. A head
(the attention head of lrmil on one instance, trained as lrmil trains it) is judged on held-out patients by random
folds and by `--by-site preserve`, and on new patients of sites that nobody has seen, where label and site do not go
together: the truth. The site probe says why.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from lrmil_cli.evaluation.metrics import auc
from lrmil_cli.files.manifest import Entry, Manifest
from lrmil_cli.heads import Bag
from lrmil_cli.training.bags import Bags
from lrmil_cli.training.cohort_record import probe_of
from lrmil_cli.training.crossval import HeadSpec, train_folds
from lrmil_cli.training.folds import make_folds
from lrmil_cli.training.loop import TrainSettings, predict_bags
from lrmil_cli.training.streamed import Room, Streamed

SITES, PATIENTS, WIDTH, FOLDS = 8, 25, 32, 4


def draw(rng: np.random.Generator, sites: int, together: bool, sign: float, signature: float):
    """Features [n, D], labels [n] and sites [n] of patients with one slide each."""
    site = np.repeat(np.arange(sites), PATIENTS)
    chance = np.where(site % 2, 0.9, 0.1) if together else np.full(len(site), 0.5)
    label = (rng.random(len(site)) < chance).astype(int)
    marks = rng.normal(size=(sites, WIDTH)) * signature / np.sqrt(WIDTH)
    x = rng.normal(size=(len(site), WIDTH)) + marks[site] * np.sqrt(WIDTH) / 2
    x[:, 0] += sign * label
    return x.astype(np.float32), label, site


def bags_of(x: np.ndarray) -> Bags[Bag]:
    tensors = torch.from_numpy(x)
    room = Room(0, 10**9)
    kept = Streamed(lambda i: Bag(tensors[i : i + 1]), [1] * len(x), x.shape[1], room, torch.device("cpu"))
    return Bags(kept, [{}] * len(x))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cohorts", type=int, default=10)
    parser.add_argument("--sign", type=float, default=0.8, help="how far classes lie apart, in sd of a patient")
    parser.add_argument("--signature", type=float, default=1.0, help="how strong a site is")
    args = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, list[float]] = {k: [] for k in ("random folds", "sites apart", "new sites", "site", "label")}
    for cohort in range(args.cohorts):
        rng = np.random.default_rng(cohort)
        x, label, site = draw(rng, SITES, True, args.sign, args.signature)
        new_x, new_label, _ = draw(rng, 20, False, args.sign, args.signature)
        entries = tuple(
            Entry(f"s{i}", Path(f"s{i}"), "ab"[y], f"p{i}", site=f"h{s}") for i, (y, s) in enumerate(zip(label, site))
        )
        manifest = Manifest(Path("made"), entries, ("a", "b"), sites_from="column")
        bags, new_bags = bags_of(x), bags_of(new_x)
        settings = TrainSettings(epochs=30, patience=8, lr=1e-3, seed=cohort)
        for name, by_site in (("random folds", None), ("sites apart", "preserve")):
            asked = replace(manifest, by_site=by_site)
            folds = make_folds(asked, FOLDS, cohort)
            results = train_folds(asked, folds, lambda k, own=bags: own, HeadSpec("abmil", {}), settings)
            # Fold by fold, since heads of different folds are not on one scale.
            own = [auc(label[[int(s[1:]) for s in r.parts["test"]]], r.raw["test"]) for r in results]
            found[name].append(float(np.mean([v for v in own if v is not None])))
            if by_site is None:
                said = np.mean([predict_bags(r.fit.head, new_bags.all, range(len(new_x))) for r in results], axis=0)
                found["new sites"].append(float(auc(new_label, said) or 0))
        probes = probe_of(manifest, lambda i, own=x: own[i])
        assert probes is not None
        for name in ("site", "label"):
            found[name].append(probes[name]["auc"]["value"])
    titles = {
        "random folds": "AUC by random folds",
        "sites apart": "AUC by folds that keep sites apart",
        "new sites": "AUC on patients of new sites: the truth",
        "site": "probe: macro AUC of the site",
        "label": "probe: AUC of the label, sites torn",
    }
    print(f"{args.cohorts} cohorts of {SITES * PATIENTS} patients, mean (sd)")
    for name, title in titles.items():
        print(f"{title:<42}{np.mean(found[name]):.3f} ({np.std(found[name], ddof=1):.3f})")


if __name__ == "__main__":
    main()
