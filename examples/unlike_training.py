"""Which slides does a model call unlike its training slides? Shares by kind of slide.

    python examples/unlike_training.py --encoder vit_small_patch14_dinov2@dinov2.safetensors --cohort slides \\
        breast=sections "lymph node=fields"

Half of the cohort, drawn at random, stands for the training slides (five folds inside set the bounds), the other half
for new slides of the same kind; so many times over. The new ones are looked at as they are, blurred, and with red and
blue swapped; painted slides and those of the folders that are named come besides. No head is trained: bounds are about
features alone. Folders without slides of known scale take --slide-mpp.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch

from lrmil_cli.api import find_tiles, load_encoder, open_slide
from lrmil_cli.demo.slides import make_slide
from lrmil_cli.encoders.vit import Encoder
from lrmil_cli.errors import LrmilError
from lrmil_cli.evaluation.unlike_training import describe_training, training_features
from lrmil_cli.slide_names import SLIDE_SUFFIXES
from lrmil_cli.slides.reader import read_rows
from lrmil_cli.slides.tiles import boxes_of

FOLDS = 5
Damage = Callable[[np.ndarray], np.ndarray]


def blurred(um: float, mpp: float) -> Damage:
    """Tiles out of focus: a Gaussian of so many micrometres."""
    return lambda tiles: np.stack([cv2.GaussianBlur(t, (0, 0), um / mpp) for t in tiles])


def pixels_of(path: Path, args: argparse.Namespace) -> np.ndarray | None:
    """Tiles of a slide, uint8 [N, P, P, 3]; None where it has no tissue or cannot be read."""
    try:
        with open_slide(path, slide_mpp=args.slide_mpp) as slide:
            tiles = find_tiles(slide, mpp=args.mpp, tile_px=args.tile_px)
            boxes = boxes_of({k: tiles.rows[k].to_numpy() for k in ("x", "y", "width", "height")})
            return read_rows(slide, boxes, tiles.level, args.tile_px)
    except LrmilError as e:
        print(f"left out: {e}")
        return None


def features_of(encoder: Encoder, tiles: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        return torch.cat([encoder(part)["final"] for part in torch.from_numpy(tiles).split(16)]).numpy()


def slides_in(folder: Path) -> list[Path]:
    own = sorted(p for p in folder.iterdir() if p.suffix.lower() in SLIDE_SUFFIXES) if folder.is_dir() else [folder]
    return own


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("others", nargs="*", metavar="NAME=DIR")
    parser.add_argument("--encoder", default="demo-vit")
    parser.add_argument("--cohort", type=Path, required=True)
    parser.add_argument("--mpp", type=float, default=2.0)
    parser.add_argument("--tile-px", type=int, default=128)
    parser.add_argument("--slide-mpp", type=float)
    parser.add_argument("--splits", type=int, default=20)
    parser.add_argument("--blur", type=float, default=6.0, help="sigma in micrometres")
    args = parser.parse_args()
    torch.set_num_threads(1)
    encoder = load_encoder(args.encoder, tile_px=args.tile_px)
    damages: dict[str, Damage] = {
        "new slides of the cohort": lambda tiles: tiles,
        "the same, blurred": blurred(args.blur, args.mpp),
        "the same, red and blue swapped": lambda tiles: np.ascontiguousarray(tiles[..., ::-1]),
    }
    cohort: dict[str, list[np.ndarray]] = {name: [] for name in damages}
    for path in slides_in(args.cohort):
        if (tiles := pixels_of(path, args)) is not None:
            for name, damage in damages.items():
                cohort[name].append(features_of(encoder, damage(tiles)))
    others: dict[str, list[np.ndarray]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for n in range(8):
            make_slide(Path(folder) / f"painted{n}.svs", seed=n, positive=bool(n % 2), size_px=2048)
        named = [
            ("painted tissue", Path(folder)),
            *((n, Path(p)) for n, _, p in (o.partition("=") for o in args.others)),
        ]
        for name, place in named:
            found = [pixels_of(path, args) for path in slides_in(place)]
            others[name] = [features_of(encoder, tiles) for tiles in found if tiles is not None]
    count = len(cohort["new slides of the cohort"])
    flagged: dict[str, list[float]] = {name: [] for name in (*damages, *others)}
    by: dict[str, list[float]] = {"slide": [], "tiles": []}
    for split in range(args.splits):
        order = np.random.default_rng(split).permutation(count)
        train, new = order[: count // 2].tolist(), order[count // 2 :].tolist()
        parts = [([i for i in train if i not in train[k::FOLDS]], train[k::FOLDS]) for k in range(FOLDS)]
        own = cohort["new slides of the cohort"]
        known = training_features({"training_features": describe_training(lambda i, own=own: own[i], parts)}, "cohort")
        if known is None:
            raise SystemExit("too few slides in the cohort: 20 of them at least")
        for name in damages:
            flagged[name].append(float(np.mean([known.judge(cohort[name][i])["unlike"] for i in new])))
        for name, slides in others.items():
            flagged[name].append(float(np.mean([known.judge(f)["unlike"] for f in slides])) if slides else float("nan"))
        for side in by:
            by[side].append(float(np.mean([side in known.judge(own[i])["by"] for i in new])))
    print(
        f"{count} slides, half of them for training, {args.splits} splits; share called unlike, mean (sd over splits)"
    )
    for name, values in flagged.items():
        n = f"{len(others[name])} slides" if name in others else f"{count - count // 2} slides"
        print(f"{name:<34}{np.mean(values):6.1%} ({np.std(values):.1%})  {n}")
    print("of the new slides, by " + ", ".join(f"{side} {np.mean(v):.1%}" for side, v in by.items()))


if __name__ == "__main__":
    main()
