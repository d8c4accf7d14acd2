"""Does calibrating a head by few validation slides bring its probabilities nearer to the truth? Made-up heads.

    python examples/calibration_simulation.py --slides 20 30 60 150

Log odds of two normal classes whose truth is known, of heads of AUC 0.76 to 0.99, as sure as they should be, half or
twice so, with the threshold where it belongs or off. Of each number of validation slides: log loss and ECE over 1,500
new slides, of the probabilities as they are and as lrmil calibrates them, and of the truth; means over all heads.
"""

from __future__ import annotations

import argparse
import itertools

import numpy as np

from lrmil_cli.evaluation.calibration import calibration_figures
from lrmil_cli.evaluation.head_calibration import calibrate_head
from lrmil_cli.evaluation.scores import Cases

#: Distance of the classes in standard deviations; how much too sure a head is; its threshold, off by so much.
DISTANCES, SLOPES, OFFSETS = (1.0, 2.0, 3.5), (0.5, 1.0, 2.0), (0.0, 1.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slides", type=int, nargs="+", default=[20, 30, 60, 150])
    parser.add_argument("--draws", type=int, default=40, help="of each kind of head")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng = np.random.default_rng(args.seed)
    print(f"{'validation slides':<20}{'raw':>18}{'calibrated':>18}{'truth':>18}   log loss, ECE")
    for n in args.slides:
        found = []
        for distance, slope, offset in itertools.product(DISTANCES, SLOPES, OFFSETS):
            for _ in range(args.draws):
                labels, truth = drawn(rng, n, distance)
                own = calibrate_head(labels, two(slope * (truth + offset)), [str(i) for i in range(n)])
                labels, truth = drawn(rng, 1500, distance)
                raw = two(slope * (truth + offset))
                found.append([judged(labels, p) for p in (raw, own.apply(raw), two(truth))])
        means = np.mean(found, axis=0)
        print(f"{n:<20}" + "".join(f"{loss:>10.3f}, {ece:.3f} " for loss, ece in means))


def drawn(rng: np.random.Generator, n: int, distance: float) -> tuple[np.ndarray, np.ndarray]:
    """Labels of n slides, and their true log odds of the second class."""
    labels = np.arange(n) % 2
    return labels, distance * (rng.normal(size=n) + distance * (labels - 0.5))


def two(log_odds: np.ndarray) -> np.ndarray:
    """Probabilities [n, 2] of log odds."""
    p = 1 / (1 + np.exp(-log_odds))
    return np.stack([1 - p, p], axis=1)


def judged(labels: np.ndarray, p: np.ndarray) -> tuple[float, float]:
    cases = Cases(labels, p, np.arange(len(labels)).astype(str))
    ece = calibration_figures(cases, 1, draws=0, seed=0)["ece"].value
    return -float(np.log(np.maximum(p[np.arange(len(labels)), labels], 1e-12)).mean()), float(ece or 0)


if __name__ == "__main__":
    main()
