"""Slide files with a known lesion, for the demonstration and the tests: painted, and written as Aperio-like SVS."""

from __future__ import annotations

import csv
import io
import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import cv2
import geojson
import numpy as np
import tifffile

from lrmil_cli.demo.paint import GRID, render_slide
from lrmil_cli.demo.severity import plan_severity
from lrmil_cli.progress import phase
from lrmil_cli.slides.choice import PAINTED

PAINT_MPP = 0.5  # everything is painted at 20x; another mpp is resized from that
LESION_COLOR = [200, 0, 0]


def _write_svs(path: Path, rgb: np.ndarray, mpp: float) -> None:
    """Aperio-like pyramid: levels 1, 4, 16 by area shrink, tiled JPEG, the thumbnail as the second page."""
    h, w = rgb.shape[:2]
    levels = [rgb]
    for _ in range(2):
        last = levels[-1]
        levels.append(cv2.resize(last, (last.shape[1] // 4, last.shape[0] // 4), interpolation=cv2.INTER_AREA))
    shrink = 768 / max(h, w)
    thumbnail = cv2.resize(rgb, (round(w * shrink), round(h * shrink)), interpolation=cv2.INTER_AREA)

    def describe(image: np.ndarray) -> str:
        size = f"{w}x{h} [0,0 {w}x{h}] (256x256) -> {image.shape[1]}x{image.shape[0]}"
        return f"Aperio Image Library {PAINTED}\n{size} JPEG/RGB Q=85|AppMag = {10 / mpp:g}|MPP = {mpp:.4f}"

    jpeg = dict(photometric="rgb", compression="jpeg", compressionargs={"level": 85}, subsampling=(2, 2), metadata=None)
    part = path.with_name(path.name + ".part")
    with tifffile.TiffWriter(part) as out:
        tiled: dict[str, Any] = {"tile": (256, 256)}
        pages = [(levels[0], tiled), (thumbnail, {"rowsperstrip": 16}), *((level, tiled) for level in levels[1:])]
        for image, form in pages:
            out.write(image, description=describe(image), software=False, **form, **jpeg)
    os.replace(part, path)


def _outlines(mask: np.ndarray, scale: float) -> list[np.ndarray]:
    """Outer outlines of a bool mask, `(points, 2)` float x, y each, closed, multiplied by `scale`."""
    # On a doubled grid the outline runs along pixel edges instead of pixel centres.
    big = cv2.resize(np.pad(mask, 1).astype(np.uint8), None, fx=2, fy=2, interpolation=cv2.INTER_NEAREST)
    found, _ = cv2.findContours(big, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    out = []
    for ring in found:
        ring = cv2.approxPolyDP(ring, 1.5, True)[:, 0].astype(float)
        if len(ring) >= 4 and cv2.contourArea(ring.astype(np.float32)) > 4000:
            ring = (ring + 0.5) / 2 - 1
            out.append(np.round(np.vstack([ring, ring[:1]]) * scale, 1))
    return out


def make_slide(
    path: str | os.PathLike,
    *,
    seed: int,
    positive: bool | float,
    size_px: int = 2560,
    mpp: float = 0.5,
    stain_seed: int | None = None,
) -> list[np.ndarray]:
    """Write a painted slide of `size_px` x `size_px` pixels as Aperio-like SVS.

    Returns the lesions, one closed outline `(points, 2)` of x, y in level-0 pixels each; none if not `positive`. With a
    number in place of `positive` a lesion is that share of the nests of dense cells.
    Slides with the same `stain_seed` (default: `seed`) are stained alike, as slides of one patient.
    """
    rgb, lesion = render_slide(seed, positive, round(size_px * mpp / PAINT_MPP), stain_seed)
    scale = size_px / rgb.shape[0]
    if rgb.shape[0] != size_px:
        rgb = cv2.resize(rgb, (size_px, size_px), interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
    _write_svs(Path(path), rgb, mpp)
    return _outlines(lesion, GRID * scale)


def _write_text(path: Path, text: str) -> None:
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8", newline="")
    os.replace(part, path)


def lesion_geojson(outlines: list[np.ndarray]) -> str:
    """QuPath annotations of outlines in level-0 pixels, as GeoJSON text."""
    properties = {"objectType": "annotation", "classification": {"name": "Lesion", "color": LESION_COLOR}}
    features = [geojson.Feature(None, geojson.Polygon([ring.tolist()]), properties) for ring in outlines]
    return geojson.dumps(geojson.FeatureCollection(features)) + "\n"


def plan_cohort(n_slides: int, seed: int) -> list[dict]:
    """Rows of slides.csv: half the slides positive, some patients with two, split by patient within each label."""
    rng = np.random.default_rng([seed, 3])
    labels = rng.permutation(np.arange(n_slides) % 2)
    rows: list[dict] = [{} for _ in range(n_slides)]
    patients = 0
    for label, name in enumerate(("normal", "tumor")):
        slides = np.flatnonzero(labels == label).tolist()
        m = len(slides)
        quota = {"train": round(m * 0.5), "val": round(m * 0.17)}
        quota["test"] = m - sum(quota.values())
        while slides:
            split = max(quota, key=lambda s: (quota[s] / m, s == "train"))
            take = 2 if patients % 5 == 4 and min(quota[split], len(slides)) >= 2 else 1
            patients += 1
            quota[split] -= take
            for k in [slides.pop(0) for _ in range(take)]:
                slide_id = f"slide_{k + 1:03d}"
                rows[k] = {
                    "slide": f"slides/{slide_id}.svs",
                    "slide_id": slide_id,
                    "label": name,
                    "patient_id": f"patient_{patients:03d}",
                    "split": split,
                }
    return rows


def _cohort_slide(folder: str, row: dict, seed: int) -> None:
    cv2.setNumThreads(1)  # one process per core is faster than threads in each
    number, patient = int(row["slide_id"][-3:]), int(row["patient_id"][-3:])
    outlines = make_slide(
        Path(folder) / row["slide"],
        seed=seed * 100_003 + number,
        positive=row["share"] if "share" in row else row["label"] == "tumor",
        stain_seed=seed * 100_003 + 50_000 + patient,
    )
    _write_text(Path(folder) / "truth" / f"{row['slide_id']}.geojson", lesion_geojson(outlines))


def make_cohort(
    folder: str | os.PathLike, n_slides: int = 60, seed: int = 0, workers: int = 2, task: str = "classification"
) -> Path:
    """Write `n_slides` slides, their lesions (truth/*.geojson) and slides.csv; returns the path of slides.csv.

    Of another `task` than classes a severity is painted, and truth/severity.csv keeps it.
    """
    folder = Path(folder)
    for name in ("slides", "truth"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    rows = plan_cohort(n_slides, seed) if task == "classification" else plan_severity(n_slides, seed, task)
    with phase("painting", n_slides, "slide") as told:
        if workers > 1:
            with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
                for job in [pool.submit(_cohort_slide, str(folder), row, seed) for row in rows]:
                    job.result()
                    told.advance()
        else:
            for row in rows:
                _cohort_slide(str(folder), row, seed)
                told.advance()
    if task != "classification":
        _write_rows(folder / "truth" / "severity.csv", rows, ["slide_id", "patient_id", "share"])
    _write_rows(folder / "slides.csv", rows, [name for name in rows[0] if name != "share"])
    return folder / "slides.csv"


def _write_rows(path: Path, rows: list[dict], columns: list[str]) -> None:
    out = io.StringIO()
    writer = csv.DictWriter(out, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    _write_text(path, out.getvalue())
