"""The chain of ``lrmil demo``: the seven commands as a user would type them, and what came out."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lrmil_cli.chain.steps import Steps
from lrmil_cli.errors import LrmilError
from lrmil_cli.evaluation.metrics import auc, evaluate, show
from lrmil_cli.files.atomic import write_text
from lrmil_cli.files.manifest import Entry, Manifest, read_manifest
from lrmil_cli.files.tables import read_table

if TYPE_CHECKING:
    import pandas as pd
    from shapely.geometry.base import BaseGeometry

#: An LR tile counts as lesion if at least this share of it lies in the planted lesion.
LESION_SHARE = 0.25
#: Tiles of the demo are small, so that it runs in minutes; everything else is the default chain.
TILE_PX = 128
#: The encoder that comes with the package.
ENCODER = "demo-vit"
#: The demo's encoder is tiny and its cohort small: larger steps than the defaults, which are meant for ViT-B and more.
#: The last block and the final embedding are distilled, because the head reads the final class token; with blocks
#: (0, 1, L-2) alone, a ViT of six blocks loses what the slide shows at 5x instead of gaining what it shows at 20x.
STAGE1 = (
    "--layers -1 --final-loss uniform --lambda-final 5 --lr 5e-4 --warmup 10 --epochs 12 --batch-size 16 --augment"
).split()
HEADS = "--lr 1e-3 --epochs 100 --patience 30 --weight-decay 1e-2".split()


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
    step = Steps("demo", run, say)

    def at(*parts: str) -> str:
        return str(folder.joinpath(*parts))

    slides, px, again = str(manifest_path), ["--tile-px", str(TILE_PX)], ["--overwrite"]
    trained = ["--seed", str(seed), *again]
    tiles_lr, tiles_hr, pairs = at("tiles-lr"), at("tiles-hr"), at("pairs")
    encoder, teacher, model = at("lr-encoder.safetensors"), at("teacher"), at("model.safetensors")
    step("tile_lr", "tile", slides, "--mpp", "2.0", *px, "-o", tiles_lr, *again, "--quiet")
    step("tile_hr", "tile", slides, "--mpp", "0.5", *px, "-o", tiles_hr, *again, "--quiet")
    step("match", "match", tiles_lr, tiles_hr, "-o", pairs, *again, "--quiet")
    own = ["--slides", slides, "--fold", "1", "--encoder", ENCODER, *STAGE1]
    step("distill_encoder", "distill-encoder", pairs, *own, "-o", encoder, *trained)
    own = ["--tiles", tiles_hr, "--encoder", ENCODER, *HEADS]
    step("train_teacher", "train-teacher", slides, *own, "-o", teacher, *trained)
    own = ["--tiles", tiles_lr, "--pairs", pairs, "--teacher", teacher, *HEADS, "--encoder", encoder]
    step("distill_student", "distill-student", slides, *own, "-o", model, *trained)
    test = [e for e in manifest if e.split == "test"]
    held_out = folder / "held-out.csv"
    write_text(held_out, _manifest_text(test))
    step("predict", "predict", str(held_out), "--model", model, "-o", at("predictions"), *again)
    shown = _shown(test, folder)
    attention, heatmap = at("predictions", f"{shown}.attention.csv"), at(f"{shown}.heatmap.geojson")
    step("export_geojson", "export-geojson", attention, "-o", heatmap, *again)
    summary = summarize(folder, manifest, seed, step.seconds)
    write_text(folder / "summary.json", json.dumps(summary, indent=1, allow_nan=False) + "\n")
    picture = folder / f"{shown}.overlay.png"
    draw_truth(picture, manifest, folder, shown)
    say("\n" + table(summary))
    say(
        f"\nIn QuPath: open {next(e.path for e in test if e.slide_id == shown)}, then drop on it\n"
        f"  {heatmap}  (attention; Measure > Show measurement maps)\n"
        f"  {truth_path(folder, shown)}  (the planted lesion)\n"
        f"Without QuPath: {picture}\n"
        f"What distillation bought: {at('model.receipt.html')}\n"
        f"All figures: {at('summary.json')}"
    )
    return summary


def _manifest_text(slides: Sequence[Entry]) -> str:
    """Some slides of a cohort as a manifest, with paths that hold anywhere."""
    out = io.StringIO()
    rows = csv.writer(out, lineterminator="\n")
    rows.writerow(["slide", "slide_id", "label"])
    rows.writerows([e.path, e.slide_id, e.label] for e in slides)
    return out.getvalue()


def truth_path(folder: Path, slide_id: str) -> Path:
    """GeoJSON of the planted lesion of a slide."""
    return folder / "cohort" / "truth" / f"{slide_id}.geojson"


def _shown(test: Sequence[Entry], folder: Path) -> str:
    """The positive held-out slide to show: the one whose prediction is surest."""

    def probability(slide_id: str) -> float:
        text = (folder / "predictions" / f"{slide_id}.prediction.json").read_text(encoding="utf-8")
        return float(json.loads(text)["probabilities"]["tumor"])

    return max((e.slide_id for e in test if e.label == "tumor"), key=probability)


def lesions(path: Path) -> BaseGeometry:
    """Union of the lesion outlines of a slide, in level-0 px."""
    import geojson
    from shapely.geometry import shape
    from shapely.ops import unary_union

    with open(path, encoding="utf-8") as fh:
        return unary_union([shape(f["geometry"]) for f in geojson.load(fh)["features"]])


def lesion_share(rows: pd.DataFrame, area: BaseGeometry) -> np.ndarray:
    """Share of each tile that lies in the lesion, float [N]."""
    import shapely

    boxes = shapely.box(rows["x"], rows["y"], rows["x"] + rows["width"], rows["y"] + rows["height"])
    return shapely.area(shapely.intersection(boxes, area)) / shapely.area(boxes)


def attention_scores(folder: Path, manifest: Manifest) -> dict[str, float | None]:
    """ROC AUC of the student's attention against the planted lesion, over LR tiles of the positive held-out slides.

    ``attention_auc`` takes the tiles of all slides together, ``attention_auc_per_slide`` is the mean over slides.
    """
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
    """The content of ``summary.json``: teacher, LR-only and distilled student judged on the same held-out slides."""
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
        side: sum(len(read_table(p, "tiles")[1]) for p in (folder / f"tiles-{side}").glob("*.tiles.csv"))
        for side in ("hr", "lr")
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
    title = (
        f"{slide_id}: {p['predicted']} (probability {p['probabilities'][p['predicted']]:.2f}); planted lesion in blue"
    )
    outlines = [np.asarray(g.exterior.coords) for g in parts]
    attention_picture(path, image, scale_x, scale_y, rows, header["slide"], title, outlines)


def table(summary: dict[str, Any]) -> str:
    """What the demo ends with, for a terminal of 80 columns."""
    tiles = summary["tiles"]
    held_out = f"{summary['held_out_slides']} held-out slides of {summary['slides']}"
    lines = [f"{held_out}           accuracy   AUC     tiles read"]
    for name, key, side in (
        ("teacher, 20x", "teacher", "hr"),
        ("student, 5x, labels only", "lr_only", "lr"),
        ("student, 5x, distilled", "distilled", "lr"),
    ):
        m = summary[key]
        lines.append(f"{name:<36}{show(m['accuracy']):<11}{show(m['auc']):<8}{tiles[side]:>6} (all slides)")
    found = show(summary["attention_auc"])
    lines.append(f"attention of the distilled student finds the planted lesion: AUC {found} over LR tiles")
    return "\n".join(lines)
