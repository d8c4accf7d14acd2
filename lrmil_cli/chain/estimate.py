"""What a run will take, before it: tiles, hours and gigabytes (chain/README 4)."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lrmil_cli.chain.plan import Settings, chain_steps
from lrmil_cli.chain.run import as_table, count_folds
from lrmil_cli.chain.run_encoders import run_encoders, second_time, seconds_a_tile, tile_px
from lrmil_cli.chain.steps import Run, Step
from lrmil_cli.chain.work import TRAINING, Tiles, passes, stage1_options, targets
from lrmil_cli.device import pick_device
from lrmil_cli.distill.stage1_estimate import target_values
from lrmil_cli.encoders.vit import Encoder, parse_layers
from lrmil_cli.errors import StepError
from lrmil_cli.files.atomic import write_text
from lrmil_cli.files.manifest import Manifest
from lrmil_cli.heads import Bag, build_head
from lrmil_cli.training.loop import TrainSettings
from lrmil_cli.units import duration

#: Slides that are looked at, at most; of more the tiles are extrapolated.
LOOKED_AT = 24
#: Bytes a row of a table of tiles, pairs or attention, about, of a tile on the map, and of the page of a slide.
ROW, MAP_TILE, PAGE = 60, 25, 1_500_000


@dataclass(frozen=True)
class Found:
    """Tiles of a cohort: how many, by how many slides that were looked at, seconds to find them on each side, and how
    many slides failed."""

    tiles: Tiles
    looked_at: int
    seconds: dict[str, float]
    failed: int


@dataclass(frozen=True)
class Estimate:
    """Of a run: its tiles, and by step name seconds (at most) and bytes; bytes that are free where it is to lie."""

    found: Found
    seconds: dict[str, float]
    bytes: dict[str, float]
    free: int


def estimate(settings: Settings, out: Path, manifest: Manifest, run: Run) -> Estimate:
    """What the run takes from its beginning. Nothing is written into ``out``.

    Raises:
        StepError: no slide can be tiled. LrmilError: as what loads encoder and head.
    """
    folds = count_folds(manifest, settings)
    steps = chain_steps(settings, out, folds)
    found = find_tiles(settings, manifest, run)
    tiles = found.tiles
    device = pick_device(str(settings.of("train-teacher").get("device", "auto")))
    high, low = run_encoders(settings, device)
    encoding = seconds_a_tile(high, tile_px(settings), device)
    share = 1.0 if low is high else seconds_a_tile(low, tile_px(settings), device) / encoding
    seconds = dict(found.seconds)
    for step, work in zip(steps, passes(settings, tiles, steps, share)):
        seconds[step.name] = seconds.get(step.name, 0.0) + work * encoding
    # The student is trained twice: distilled, and on the labels alone for the receipt.
    for name, side, encoder, times in (("train-teacher", tiles.hr, high, 1), ("distill-student", tiles.lr, low, 2)):
        bag = seconds_a_bag(settings.of(name), encoder.embed_dim, side // tiles.slides, device)
        epochs = settings.of(name).get("epochs", TrainSettings.epochs)
        seconds[name] += times * folds * int(str(epochs)) * tiles.slides * bag
    return Estimate(found, seconds, stored(settings, steps, tiles, high, low), _free(out))


def find_tiles(settings: Settings, manifest: Manifest, run: Run) -> Found:
    """Tiles by ``tile --dry-run`` on :data:`LOOKED_AT` slides at most, spread over the table.

    Raises:
        StepError: no slide can be tiled; why was said by the step.
    """
    some = sorted({round(i) for i in np.linspace(0, len(manifest) - 1, LOOKED_AT)})
    numbers, seconds, failed = [], {}, 0
    with tempfile.TemporaryDirectory() as folder:
        table = settings.slides
        if len(some) < len(manifest):
            table = str(Path(folder) / "slides.csv")
            write_text(table, as_table([manifest.entries[i] for i in some], manifest.task, patients=False))
        for step in chain_steps(settings, Path(folder) / "none", 1)[:2]:
            said = io.StringIO()
            with contextlib.redirect_stdout(said):
                code = run([step.args[0], table, *step.args[2:], "--dry-run", "--json", "--quiet"])
            records = [json.loads(line) for line in said.getvalue().splitlines()]
            there = [r for r in records if r["status"] == "planned"]
            if not there:
                raise StepError(f"no slide can be tiled; `lrmil {step.args[0]}` ended with exit code {code}", code)
            scale = len(manifest) / len(records)
            numbers.append(round(sum(r["tiles"] for r in there) * scale))
            seconds[step.name] = sum(r["expected_seconds"] for r in there) * scale
            failed = max(failed, len(records) - len(there))
    return Found(Tiles(len(manifest), *numbers), len(records), seconds, failed)


def seconds_a_bag(options: dict[str, Any], dim: int, tiles: int, device: torch.device) -> float:
    """Seconds of a training step of a head on a bag of made-up features, with the head's own defaults."""
    head = build_head(options.get("head", "abmil"), dim, 2).to(device)
    n = max(tiles, 2)
    bag = Bag(torch.randn(n, dim), torch.arange(2 * n).view(n, 2)).to(device)
    label = torch.tensor(1, device=device)

    def step() -> None:
        terms = head.loss_terms(head(*bag), label).values()
        torch.stack([weight * loss for weight, loss in terms]).sum().backward()

    return second_time(step, device)


def stored(settings: Settings, steps: Sequence[Step], tiles: Tiles, high: Encoder, low: Encoder) -> dict[str, float]:
    """Bytes that the steps leave on disk, by their names."""
    stage1 = stage1_options(settings)
    encoders = sum(step.name == "distill-encoder" for step in steps)
    dtype = {
        name: 4 if settings.of(name).get("dtype") == "float32" else 2 for name in ("train-teacher", "distill-student")
    }
    layers = len(parse_layers(str(stage1["layers"]), high.depth))
    target = target_values(high, layers, stage1["final-loss"] != "none")
    weights = 4.0 * sum(p.numel() for p in low.parameters())
    return {
        "tile-lr": ROW * tiles.lr,
        "tile-hr": ROW * tiles.hr,
        "match": ROW * tiles.hr,
        "train-teacher": dtype["train-teacher"] * high.embed_dim * tiles.hr,
        # Targets are float16 as a rule; while an encoder is trained, its checkpoint holds it four times.
        "distill-encoder": 2 * target * targets(settings, tiles) + (encoders + 4) * weights,
        "distill-student": dtype["distill-student"] * low.embed_dim * tiles.lr * (encoders + 1) + encoders * weights,
        "predict": ROW * tiles.lr,
        "export-geojson": MAP_TILE * tiles.lr,
        "report": PAGE * tiles.slides,
    }


def _free(folder: Path) -> int:
    """Bytes that are free where a folder is, or would be."""
    there = next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists())
    return shutil.disk_usage(there).free


def as_record(e: Estimate) -> dict[str, Any]:
    """What ``--json`` prints of an estimate."""
    return {
        "tiles": {"lr": e.found.tiles.lr, "hr": e.found.tiles.hr},
        "slides": e.found.tiles.slides,
        "looked_at": e.found.looked_at,
        "failed": e.found.failed,
        "expected_seconds": {name: round(value, 2) for name, value in e.seconds.items()},
        "bytes": {name: round(value) for name, value in e.bytes.items()},
        "bytes_free": e.free,
    }


def as_text(e: Estimate) -> str:
    """An estimate for a terminal of 80 columns, with how each number was found."""
    tiles, gigabytes = e.found.tiles, sum(e.bytes.values()) / 1e9
    lines = [
        f"{tiles.lr} LR and {tiles.hr} HR tiles, by `tile --dry-run` of {e.found.looked_at} of {tiles.slides} slides"
    ]
    if e.found.failed:
        lines.append(f"{e.found.failed} of these slides fail, as said above: correct the table, or --on-bad-slide skip")
    lines += [f"{'step':<20}{'at most':>12}{'GB':>10}"]
    for name, size in e.bytes.items():
        lines.append(f"{name:<20}{duration(e.seconds.get(name, 0.0)):>12}{size / 1e9:>10.2f}")
    lines += [
        f"{'all':<20}{duration(sum(e.seconds.values())):>12}{gigabytes:>10.2f}  ({e.free / 1e9:.0f} GB are free)",
        "Hours: a batch of this encoder and a bag of the head were timed here and now,",
        f"and count for all tiles and epochs; training the encoder on a tile counts as {TRAINING}",
        "passes. Early stopping spares a part; reading is taken to keep up with encoding.",
        "GB: from the numbers kept of a tile, and the size of the encoder.",
    ]
    return "\n".join(lines)
