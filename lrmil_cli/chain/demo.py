"""The chain of ``lrmil demo``: the seven commands as a user would type them, and what came out."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lrmil_cli.errors import LrmilError
from lrmil_cli.evaluation.metrics import auc, evaluate, show
from lrmil_cli.files.atomic import write_text
from lrmil_cli.files.manifest import Manifest, read_manifest
from lrmil_cli.files.tables import read_table

#: An LR tile counts as lesion if at least this share of it lies in the planted lesion.
LESION_SHARE = 0.25
#: Tiles of the demo are small, so that it runs in minutes; everything else is the default chain.
TILE_PX = 128
#: The demo's encoder is tiny and its cohort small: larger steps than the defaults, which are meant for ViT-B and more.
#: The last block and the final embedding are distilled, because the head reads the final class token; with blocks
#: (0, 1, L-2) alone, a ViT of six blocks loses what the slide shows at 5x instead of gaining what it shows at 20x.
STAGE1 = [
    "--layers",
    "-1",
    "--final-loss",
    "uniform",
    "--lambda-final",
    "5",
    "--lr",
    "5e-4",
    "--warmup",
    "10",
    "--epochs",
    "12",
    "--batch-size",
    "16",
    "--augment",
]
HEADS = ["--lr", "1e-3", "--epochs", "100", "--patience", "30", "--weight-decay", "1e-2"]


@dataclass
class Steps:
    """Runs command lines in a folder, shows each, keeps its seconds."""

    run: Callable[[list[str]], int]
    say: Callable[[str], None]
    seconds: dict[str, float] = field(default_factory=dict)

    def __call__(self, name: str, *args: str) -> None:
        self.say(f"\n$ lrmil {shlex.join(args)}")
        started = time.perf_counter()
        code = self.run(list(args))
        self.seconds[name] = round(self.seconds.get(name, 0.0) + time.perf_counter() - started, 2)
        if code:
            raise LrmilError(f"the demo's step `lrmil {args[0]}` ended with exit code {code}")


def run_chain(
    folder: Path, manifest_path: Path, seed: int, run: Callable[[list[str]], int], say: Callable[[str], None]
) -> dict[str, Any]:
    """Run the chain on a cohort with a column ``split`` and lesion outlines in ``truth/``.

    Args:
        folder: where everything goes; run: runs one command line and returns its exit code.

    Returns:
        the content of ``summary.json``.

    Raises:
        LrmilError: a command failed.
    """
    manifest = read_manifest(manifest_path)
    step = Steps(run, say)
    at = lambda *parts: str(folder.joinpath(*parts))  # noqa: E731
    csv, px = str(manifest_path), ["--tile-px", str(TILE_PX)]
    extra = ["--seed", str(seed), "--overwrite"]
    step("tile_lr", "tile", csv, "--mpp", "2.0", *px, "-o", at("tiles-lr"), "--overwrite", "--quiet")
    step("tile_hr", "tile", csv, "--mpp", "0.5", *px, "-o", at("tiles-hr"), "--overwrite", "--quiet")
    step("match", "match", at("tiles-lr"), at("tiles-hr"), "-o", at("pairs"), "--overwrite", "--quiet")
    step(
        "distill_encoder",
        "distill-encoder",
        at("pairs"),
        "--slides",
        csv,
        "--fold",
        "1",
        "--encoder",
        "demo-vit",
        *STAGE1,
        "-o",
        at("lr-encoder.safetensors"),
        *extra,
    )
    step(
        "train_teacher",
        "train-teacher",
        csv,
        "--tiles",
        at("tiles-hr"),
        "--encoder",
        "demo-vit",
        *HEADS,
        "-o",
        at("teacher"),
        *extra,
    )
    step(
        "distill_student",
        "distill-student",
        csv,
        "--tiles",
        at("tiles-lr"),
        "--pairs",
        at("pairs"),
        "--teacher",
        at("teacher"),
        *HEADS,
        "--encoder",
        at("lr-encoder.safetensors"),
        "-o",
        at("model.safetensors"),
        *extra,
    )
    test = [e for e in manifest if e.split == "test"]
    held_out = folder / "held-out.csv"
    write_text(held_out, "slide,slide_id,label\n" + "".join(f"{e.path},{e.slide_id},{e.label}\n" for e in test))
    step(
        "predict", "predict", str(held_out), "--model", at("model.safetensors"), "-o", at("predictions"), "--overwrite"
    )
    shown = _shown(test, folder)
    attention = at("predictions", f"{shown}.attention.csv")
    step("export_geojson", "export-geojson", attention, "-o", at(f"{shown}.heatmap.geojson"), "--overwrite")
    summary = summarize(folder, manifest, seed, step.seconds)
    write_text(folder / "summary.json", json.dumps(summary, indent=1, allow_nan=False) + "\n")
    picture = folder / f"{shown}.overlay.png"
    draw_truth(picture, manifest, folder, shown)
    say("\n" + table(summary))
    say(
        f"\nIn QuPath: open {next(e.path for e in test if e.slide_id == shown)}, then drop on it\n"
        f"  {at(f'{shown}.heatmap.geojson')}  (attention; Measure > Show measurement maps)\n"
        f"  {truth_path(folder, shown)}  (the planted lesion)\n"
        f"Without QuPath: {picture}\nWhat distillation bought: {at('model.receipt.html')}\nAll figures: {at('summary.json')}"
    )
    return summary


def truth_path(folder: Path, slide_id: str) -> Path:
    """GeoJSON of the planted lesion of a slide."""
    return folder / "cohort" / "truth" / f"{slide_id}.geojson"


def _shown(test: list[Any], folder: Path) -> str:
    """The positive held-out slide to show: the one whose prediction is surest."""

    def probability(slide_id: str) -> float:
        record = json.loads((folder / "predictions" / f"{slide_id}.prediction.json").read_text(encoding="utf-8"))
        return record["probabilities"]["tumor"]

    return max((e.slide_id for e in test if e.label == "tumor"), key=probability)


def lesions(path: Path) -> Any:
    """Union of the lesion outlines of a slide, in level-0 px (shapely)."""
    import geojson
    from shapely.geometry import shape
    from shapely.ops import unary_union

    with open(path, encoding="utf-8") as fh:
        return unary_union([shape(f["geometry"]) for f in geojson.load(fh)["features"]])


def lesion_share(rows: Any, area: Any) -> np.ndarray:
    """Share of each tile that lies in the lesion, float [N]."""
    import shapely

    boxes = shapely.box(rows["x"], rows["y"], rows["x"] + rows["width"], rows["y"] + rows["height"])
    return shapely.area(shapely.intersection(boxes, area)) / shapely.area(boxes)


def attention_scores(folder: Path, manifest: Manifest) -> dict[str, float | None]:
    """ROC AUC of the student's attention against the planted lesion, over LR tiles of the positive held-out slides."""
    truth, scores, own = [], [], []
    for e in manifest:
        if e.split != "test" or e.label != "tumor":
            continue
        _, rows = read_table(folder / "predictions" / f"{e.slide_id}.attention.csv", "attention")
        hit = lesion_share(rows, lesions(truth_path(folder, e.slide_id))) >= LESION_SHARE
        values = rows["attention"].to_numpy()
        truth.append(hit.astype(int))
        scores.append(values)
        own.append(_auc(hit.astype(int), values))
    defined = [v for v in own if v is not None]
    return {
        "attention_auc": _auc(np.concatenate(truth), np.concatenate(scores)),
        "attention_auc_per_slide": float(np.mean(defined)) if defined else None,
    }


def _auc(truth: np.ndarray, scores: np.ndarray) -> float | None:
    return auc(truth, np.stack([1 - scores, scores], 1))


def summarize(folder: Path, manifest: Manifest, seed: int, seconds: dict[str, float]) -> dict[str, Any]:
    """The content of ``summary.json``; teacher, LR-only and distilled student are judged on the same held-out slides."""
    test = {e.slide_id for e in manifest if e.split == "test"}
    out: dict[str, Any] = {}
    for name, file in (
        ("teacher", "teacher/predictions.csv"),
        ("lr_only", "model.lr-only.predictions.csv"),
        ("distilled", "model.predictions.csv"),
    ):
        _, rows = read_table(folder / file, "predictions")
        if set(rows["slide_id"]) != test:
            raise LrmilError(f"{folder / file}: not the predictions of the held-out slides")
        labels = [manifest.classes.index(v) for v in rows["label"]]
        out[name] = evaluate(labels, rows[[f"prob_{c}" for c in manifest.classes]].to_numpy())
    counts = {
        k: sum(len(read_table(p, "tiles")[1]) for p in (folder / f"tiles-{k}").glob("*.tiles.csv"))
        for k in ("hr", "lr")
    }
    return {
        **out,
        **attention_scores(folder, manifest),
        "tiles": counts,
        "held_out_slides": len(test),
        "slides": len(manifest),
        "seconds": {**seconds, "total": round(sum(seconds.values()), 2)},
        "seed": seed,
    }


def draw_truth(path: Path, manifest: Manifest, folder: Path, slide_id: str) -> None:
    """Picture of a slide and its attention with the planted lesion outlined."""
    from lrmil_cli.qupath.pictures import attention_picture
    from lrmil_cli.slides.reader import overview
    from lrmil_cli.slides.slide import open_slide

    entry = next(e for e in manifest if e.slide_id == slide_id)
    header, rows = read_table(folder / "predictions" / f"{slide_id}.attention.csv", "attention")
    area = lesions(truth_path(folder, slide_id))
    parts = getattr(area, "geoms", [area])
    with open_slide(entry.path, slide_id=slide_id) as slide:
        image, scale_x, scale_y = overview(slide, 2.0)
    p = header["prediction"]
    attention_picture(
        path,
        image,
        scale_x,
        scale_y,
        rows,
        header["slide"],
        f"{slide_id}: {p['predicted']} (probability {p['probabilities'][p['predicted']]:.2f}); planted lesion in blue",
        [np.asarray(g.exterior.coords) for g in parts],
    )


def table(summary: dict[str, Any]) -> str:
    """What the demo ends with, for a terminal of 80 columns."""
    tiles = summary["tiles"]
    lines = [
        f"{summary['held_out_slides']} held-out slides of {summary['slides']}           accuracy   AUC     tiles read"
    ]
    for name, key, t in (
        ("teacher, 20x", "teacher", "hr"),
        ("student, 5x, labels only", "lr_only", "lr"),
        ("student, 5x, distilled", "distilled", "lr"),
    ):
        m = summary[key]
        lines.append(f"{name:<36}{show(m['accuracy']):<11}{show(m['auc']):<8}{tiles[t]:>6} (all slides)")
    lines.append(
        f"attention of the distilled student finds the planted lesion: AUC {show(summary['attention_auc'])} over LR tiles"
    )
    return "\n".join(lines)
