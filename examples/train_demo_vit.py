"""Train `demo-vit`, the tiny encoder of the demonstration, on painted tiles. For demonstration only.

The encoder knows the painted slides of `lrmil demo` at 20x (0.5 um/px) and nothing else; it is no encoder for
real tissue. Its pretext task: tell from the class token how a tile was painted (density, size, shape and inside of
the nuclei, shares of cells, fat and glass, stain), at 20x and, as augmentation, down to 6x. It never sees 5x.

The weights in the package were trained so for 33 minutes on two cores, in three runs (--start) between which the
painted nuclei were made a little larger; a new training gives another encoder of the same kind.

    python examples/train_demo_vit.py --out demo_vit.safetensors --minutes 25

Needs torch, timm, safetensors, opencv-python-headless, and lrmil itself (`pip install -e .`). No GPU.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path

import numpy as np
import safetensors.torch
import timm
import torch
from torch import nn

from lrmil_cli.demo.pretraining_tiles import RECIPE_NAMES, render_tiles

ARCHITECTURE = "vit_tiny_patch16_224"
IMAGE_SIZE, PATCH_SIZE, WIDTH, HEADS = 128, 16, 128, 4
MEAN, STD = [0.5, 0.5, 0.5], [0.5, 0.5, 0.5]
WEIGHTS = torch.tensor([5.0 if name == "inside" else 1.0 for name in RECIPE_NAMES])  # the part that is hardest to see


COARSEST = 3.2  # as augmentation, tiles down to 6x; 5x itself is never seen


def sheet(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Painted tiles of one scale: half of the sheets at 20x, the others anywhere between 20x and 6x."""
    return render_tiles(rng, 1.0 if rng.random() < 0.5 else float(rng.uniform(1.0, COARSEST)))


class Pool:
    """A few thousand painted tiles; each call of `batch` paints one new sheet in place of the oldest tiles."""

    def __init__(self, rng: np.random.Generator, size: int) -> None:
        self.rng, self.next = rng, 0
        sheets = [sheet(rng) for _ in range(size // 16)]
        self.tiles = np.concatenate([s[0] for s in sheets])
        self.recipes = np.concatenate([s[1] for s in sheets])

    def batch(self, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Tiles `(count, 3, 128, 128)` float32 in 0..1 and recipes `(count, 12)`."""
        tiles, recipes = sheet(self.rng)
        place = (self.next + np.arange(len(tiles))) % len(self.tiles)
        self.tiles[place], self.recipes[place] = tiles, recipes
        self.next = int(place[-1] + 1) % len(self.tiles)
        pick = self.rng.choice(len(self.tiles), count, replace=False)
        pixels = torch.from_numpy(self.tiles[pick]).permute(0, 3, 1, 2).float() / 255
        return pixels, torch.from_numpy(self.recipes[pick])


def view(tiles: torch.Tensor) -> torch.Tensor:
    """Turned and flipped at random, the stain a little stronger or weaker in each channel; normalised."""
    parts = []
    for part in tiles.chunk(4):  # one orientation for each quarter of the batch
        part = torch.rot90(part, int(torch.randint(4, ())), (2, 3))
        parts.append(part.flip(3) if torch.rand(()) < 0.5 else part)
    out = torch.cat(parts)
    out = out.clamp_min(1 / 255) ** (
        1 + 0.05 * torch.randn(len(out), 3, 1, 1)
    )  # a power of light is a factor of absorption
    return (out - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


def save(model: nn.Module, path: Path, depth: int) -> None:
    """Write the encoder, float16, with the description that lrmil reads from the file's metadata."""
    about = {
        "kind": "encoder",
        "version": 1,
        "name": "demo-vit",
        "architecture": ARCHITECTURE,
        "arch_args": {"embed_dim": WIDTH, "depth": depth, "num_heads": HEADS},
        "image_size": IMAGE_SIZE,
        "patch_size": PATCH_SIZE,
        "mean": MEAN,
        "std": STD,
        "mpp": 0.5,
        "embedding": "cls",
        "license": "Apache-2.0",
        "base": "demo-vit",
        "distilled": None,
        "note": "for demonstration only",
        "history": [],
    }
    tensors = {key: value.half().contiguous() for key, value in model.state_dict().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(safetensors.torch.save(tensors, metadata={"lrmil": json.dumps(about)}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("demo_vit.safetensors"), help="file to write")
    parser.add_argument("--start", type=Path, help="file of an earlier run to go on from (default: from scratch)")
    parser.add_argument("--minutes", type=float, default=25, help="how long to train")
    parser.add_argument("--depth", type=int, default=6, help="transformer blocks")
    parser.add_argument("--batch", type=int, default=64, help="tiles a step")
    parser.add_argument("--lr", type=float, default=1e-3, help="peak learning rate")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    model = timm.create_model(
        ARCHITECTURE,
        pretrained=False,
        img_size=IMAGE_SIZE,
        num_classes=0,
        embed_dim=WIDTH,
        depth=args.depth,
        num_heads=HEADS,
    )
    if args.start:
        model.load_state_dict({key: value.float() for key, value in safetensors.torch.load_file(args.start).items()})
    recipe_head, tokens_head = nn.Linear(WIDTH, len(RECIPE_NAMES)), nn.Linear(WIDTH, len(RECIPE_NAMES))
    parameters = [p for m in (model, recipe_head, tokens_head) for p in m.parameters()]
    optimiser = torch.optim.AdamW(parameters, lr=args.lr, weight_decay=0.05, betas=(0.9, 0.98))

    pool = Pool(np.random.default_rng(args.seed), 4000)
    held_out = [render_tiles(np.random.default_rng([args.seed, 1, k])) for k in range(12)]
    test_pixels = torch.from_numpy(np.concatenate([t for t, _ in held_out])).permute(0, 3, 1, 2).float() / 127.5 - 1
    test_recipes = torch.from_numpy(np.concatenate([r for _, r in held_out]))

    start, step, mean_loss = time.monotonic(), 0, None
    while True:
        done = (time.monotonic() - start) / (60 * args.minutes)  # the schedule follows the clock
        if done >= 1:
            break
        rate = args.lr * min(1, (step + 1) / 100) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done)))
        for group in optimiser.param_groups:
            group["lr"] = rate
        pixels, recipes = pool.batch(args.batch)
        tokens = model.forward_features(view(pixels))
        recipe_loss = (WEIGHTS * (recipe_head(tokens[:, 0]) - recipes) ** 2).mean()
        # The mean of the tokens learns local patterns sooner, and the class token gathers them from there.
        tokens_loss = (WEIGHTS * (tokens_head(tokens[:, 1:].mean(1)) - recipes) ** 2).mean()
        loss = recipe_loss + tokens_loss
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        step += 1
        mean_loss = recipe_loss.item() if mean_loss is None else 0.98 * mean_loss + 0.02 * recipe_loss.item()
        if step % 100 == 0:
            model.eval()
            with torch.inference_mode():
                error = ((recipe_head(model(test_pixels)) - test_recipes) ** 2).mean(0)
            model.train()
            known = 1 - error / test_recipes.var(0)
            text = " ".join(f"{name} {value:.2f}" for name, value in zip(RECIPE_NAMES, known.tolist(), strict=True))
            minutes = (time.monotonic() - start) / 60
            print(f"step {step}  {minutes:.1f} min  recipe {mean_loss:.4f}  R2: {text}", flush=True)
            save(model, args.out, args.depth)
    save(model, args.out, args.depth)
    print(f"{args.out}: {args.out.stat().st_size / 1e6:.2f} MB after {step} steps")


if __name__ == "__main__":
    main()
