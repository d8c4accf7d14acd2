"""``lrmil demo``: the chain of ``lrmil run`` on painted slides, and what came out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lrmil_cli.chain.plan import Settings, Value
from lrmil_cli.chain.run import run_chain
from lrmil_cli.chain.steps import Run, Say
from lrmil_cli.errors import LrmilError
from lrmil_cli.evaluation.metrics import auc, evaluate, show
from lrmil_cli.evaluation.target_metrics import target_metrics
from lrmil_cli.files.atomic import write_text
from lrmil_cli.files.manifest import Manifest, read_manifest
from lrmil_cli.files.manifest_rows import Labels
from lrmil_cli.files.tables import read_table
from lrmil_cli.targets.task import Task, make_task, task_of
from lrmil_cli.training.out_of_fold import SHOWN, target_of

if TYPE_CHECKING:
    import pandas as pd
    from shapely.geometry.base import BaseGeometry

#: An LR tile counts as lesion if at least this share of it lies in the planted lesion.
LESION_SHARE = 0.25
#: The demo's encoder is tiny and its cohort small: larger steps than the defaults, which are meant for ViT-B and more.
#: The last block and the final embedding are distilled, because the head reads the final class token; with blocks
#: (0, 1, L-2) alone, a ViT of six blocks loses what the slide shows at 5x instead of gaining what it shows at 20x.
STAGE1: dict[str, Value] = {
    "layers": "-1",
    "final-loss": "uniform",
    "lambda-final": 5.0,
    "lr": 5e-4,
    "warmup": 10,
    "batch-size": 16,
    "augment": True,
}
HEADS: dict[str, Value] = {"lr": 1e-3, "patience": 30, "weight-decay": 1e-2}


def demo_task(kind: str) -> Task:
    """What is learned of painted slides, by the columns of :func:`lrmil_cli.demo.severity.plan_severity`.

    Raises:
        UsageError: no such task.
    """
    own: dict[str, dict[str, Any]] = {"regression": {"label": "severity"}, "survival": {"loss": "cox", "risk_set": 8}}
    return make_task(kind, **own.get(kind, {}))


def demo_settings(manifest: Path, seed: int, task: Task = Task()) -> Settings:
    """The settings of ``lrmil run`` for painted slides: small tiles, so that it runs in minutes, and the encoder that
    comes with the package."""
    options: dict[str, Value] = {"tile-px": 128, "stage1-epochs": 12, "epochs": 100, "seed": seed}
    if not task.classes:
        options |= {"task": task.kind, "loss": task.loss}
        options |= {"label": task.label} if task.kind == "regression" else {"risk-set": task.risk_set}
    steps = {"distill-encoder": STAGE1, "train-teacher": HEADS, "distill-student": HEADS}
    return Settings(str(manifest.absolute()), "demo-vit", options, steps)


def run_demo(folder: Path, manifest_path: Path, seed: int, run: Run, say: Say, task: Task = Task()) -> dict[str, Any]:
    """Run the chain on a cohort with a column ``split`` and lesion outlines in ``truth/``.

    Args:
        folder: where everything goes; run: runs one command line and returns its exit code.

    Returns:
        the content of ``summary.json``.

    Raises:
        StepError: a command failed.
    """
    manifest = read_manifest(manifest_path, labels=Labels(task.label, task=task, asked=True))
    settings = demo_settings(manifest_path, seed, task)
    seconds = run_chain("lrmil demo", settings, folder, manifest, run, say, overwrite=True)
    shown = _shown(_with_lesion(folder, manifest), folder, task)
    summary = summarize(folder, manifest, seed, seconds)
    write_text(folder / "summary.json", json.dumps(summary, indent=1, allow_nan=False) + "\n")
    picture = folder / f"{shown}.overlay.png"
    draw_truth(picture, manifest, folder, shown)
    say("\n" + table(summary))
    say(
        f"\nIn QuPath: open {next(e.path for e in manifest if e.slide_id == shown)}, then drop on it\n"
        f"  {folder / 'results' / f'{shown}.heatmap.geojson.gz'}  (attention; Measure > Show measurement maps)\n"
        f"  {truth_path(folder, shown)}  (the planted lesion)\n"
        f"Without QuPath: {picture}\n"
        f"What distillation bought: {folder / 'model.receipt.html'}\n"
        f"All figures: {folder / 'summary.json'}"
    )
    return summary


def truth_path(folder: Path, slide_id: str) -> Path:
    """GeoJSON of the planted lesion of a slide."""
    return folder / "cohort" / "truth" / f"{slide_id}.geojson"


def _with_lesion(folder: Path, manifest: Manifest) -> list[str]:
    """The held-out slides that have a lesion."""
    test = [e.slide_id for e in manifest if e.split == "test"]
    return [s for s in test if not lesions(truth_path(folder, s)).is_empty]


def _shown(slides: Sequence[str], folder: Path, task: Task) -> str:
    """The slide to show: the one of the surest prediction of a tumor, or of the highest number or risk."""

    def said(slide_id: str) -> float:
        text = (folder / "results" / f"{slide_id}.prediction.json").read_text(encoding="utf-8")
        record = json.loads(text)
        if task.classes:
            return float(record["probabilities"]["tumor"])
        return float(record["predicted" if task.kind == "regression" else "risk"])

    return max(slides, key=said)


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
    """ROC AUC of the student's attention against the planted lesion, over LR tiles of held-out slides that have one.

    ``attention_auc`` takes the tiles of all slides together, ``attention_auc_per_slide`` is the mean over slides.
    """
    truth, scores, own = [], [], []
    for slide_id in _with_lesion(folder, manifest):
        _, rows = read_table(folder / "results" / f"{slide_id}.attention.csv", "attention")
        hit = lesion_share(rows, lesions(truth_path(folder, slide_id))) >= LESION_SHARE
        values = rows["attention"].to_numpy()
        truth.append(hit.astype(int))
        scores.append(values)
        own.append(_auc(hit.astype(int), values))
    defined = [v for v in own if v is not None]
    return {
        "attention_auc": _auc(np.concatenate(truth), np.concatenate(scores)) if truth else None,
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
        out[name] = _judged(manifest, rows)
    counts = {
        side: sum(len(read_table(p, "tiles")[1]) for p in (folder / f"tiles-{side}").glob("*.tiles.csv"))
        for side in ("hr", "lr")
    }
    if manifest.task.kind == "survival":
        out["planted"] = planted_concordance(folder, manifest)
    return {
        **out,
        **attention_scores(folder, manifest),
        "tiles": counts,
        "held_out_slides": len(test),
        "slides": len(manifest),
        "seconds": {**seconds, "total": round(sum(seconds.values()), 2)},
        "seed": seed,
        **target_of(manifest.task),
    }


def _judged(manifest: Manifest, rows: pd.DataFrame) -> dict[str, Any]:
    if not manifest.task.classes:
        return target_metrics(manifest.task, rows)
    labels = [manifest.classes.index(v) for v in rows["label"]]
    return evaluate(labels, rows[[f"prob_{c}" for c in manifest.classes]].to_numpy())


def planted_concordance(folder: Path, manifest: Manifest) -> dict[str, float | None]:
    """What a model would reach that knew the planted severity of the held-out slides: times are drawn from hazards."""
    import pandas as pd

    share = pd.read_csv(folder / "cohort" / "truth" / "severity.csv").set_index("slide_id")["share"]
    test = [e for e in manifest if e.split == "test"]
    about = {name: [getattr(e, name) for e in test] for name in ("patient_id", "time", "event")}
    return target_metrics(manifest.task, pd.DataFrame({**about, "risk": [share[e.slide_id] for e in test], "fold": 1}))


def draw_truth(path: Path, manifest: Manifest, folder: Path, slide_id: str) -> None:
    """Picture of a slide and its attention with the planted lesion outlined."""
    from lrmil_cli.qupath.pictures import attention_picture
    from lrmil_cli.slides.reader import overview
    from lrmil_cli.slides.slide import open_slide

    entry = next(e for e in manifest if e.slide_id == slide_id)
    header, rows = read_table(folder / "results" / f"{slide_id}.attention.csv", "attention")
    area = lesions(truth_path(folder, slide_id))
    parts = getattr(area, "geoms", [area])
    with open_slide(entry.path, slide_id=slide_id) as slide:
        image, scale_x, scale_y = overview(slide, 2.0)
    p = header["prediction"]
    if manifest.task.classes:
        said = f"{p['predicted']} (probability {p['probabilities'][p['predicted']]:.2f})"
    else:
        said = f"severity {p['predicted']:.3g}" if manifest.task.kind == "regression" else f"{p['group']} risk"
    title = f"{slide_id}: {said}; planted lesion in blue"
    outlines = [np.asarray(g.exterior.coords) for g in parts]
    attention_picture(path, image, scale_x, scale_y, rows, header["slide"], title, outlines)


def table(summary: dict[str, Any]) -> str:
    """What the demo ends with, for a terminal of 80 columns."""
    tiles, task = summary["tiles"], task_of(summary)
    held_out = f"{summary['held_out_slides']} held-out slides of {summary['slides']}"
    (first, one), (second, other) = SHOWN[task.kind]
    lines = [f"{held_out:<36}{first:<11}{second:<8}tiles read"]
    for name, key, side in (
        ("teacher, 20x", "teacher", "hr"),
        ("student, 5x, labels only", "lr_only", "lr"),
        ("student, 5x, distilled", "distilled", "lr"),
    ):
        m = summary[key]
        lines.append(f"{name:<36}{show(m[one]):<11}{show(m[other]):<8}{tiles[side]:>6} (all slides)")
    if "planted" in summary:
        lines.append(f"{'the planted severity itself':<36}{show(summary['planted'][one])}")
    found = show(summary["attention_auc"])
    lines.append(f"attention of the distilled student finds the planted lesion: AUC {found} over LR tiles")
    return "\n".join(lines)
