"""A results folder as ``predict`` writes it, without a model: the numbers are the test's own."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from lrmil_cli.files.header import make_header, sealed, step
from lrmil_cli.files.tables import write_table
from lrmil_cli.slides.slide import open_slide
from lrmil_cli.slides.tiles import TileSettings

#: Twelve tiles of the painted slide (1600 x 1200 px, 0.5 um/px).
BOXES = np.array([[x, y, 256, 256] for y in (0, 512) for x in (0, 256, 512, 768, 1024, 1280)])
ATTENTION = np.array([1, 2, 3, 4, 5, 30, 7, 8, 9, 10, 11, 10]) / 100


@pytest.fixture
def put(slide):
    """Write the record and the table of one slide; returns the record."""

    def write(
        folder: Path, slide_id: str, p: float = 0.75, *, classes=("normal", "tumor"), slide=slide, **more
    ) -> dict:
        with open_slide(slide, slide_id=slide_id) as opened:
            about = opened.describe()
        settings = {"tiles": TileSettings().as_json()}
        history = [step("predict", settings, {"slide": slide_id, "p": str(p)})]
        probabilities = dict(zip(classes, (1 - p, p)))
        record = make_header(
            "prediction",
            slide=about,
            settings=settings,
            history=history,
            roi=None,
            model={"path": str(folder / "m.safetensors"), "digest": "d" * 32, "saw": "nothing"},
            predicted=max(probabilities, key=probabilities.get),
            probabilities=probabilities,
            folds={c: [v - 0.1, v + 0.1] for c, v in probabilities.items()},
            spread=dict.fromkeys(classes, 0.1),
            tiles=len(BOXES),
            seconds={"open": 0.25, "encode": 1.0},
            device="cpu",
            tiles_read={"lr": len(BOXES)},
        )
        record |= more
        folder.mkdir(exist_ok=True)
        (folder / f"{slide_id}.prediction.json").write_text(json.dumps(sealed(record)), encoding="utf-8")
        rows = pd.DataFrame(BOXES, columns=["x", "y", "width", "height"])
        rows = rows.assign(attention=ATTENTION, percentile=pd.Series(ATTENTION).rank(pct=True) * 100)
        header = make_header("attention", slide=about, settings=settings, history=history, tables=[])
        write_table(folder / f"{slide_id}.attention.csv", header, rows)
        return record

    return write


@pytest.fixture
def many(put, lrmil, tmp_path) -> Path:
    """A folder of two hundred slides with their pages and index, all of one picture."""
    from lrmil_cli.pages.make import make_index

    out = tmp_path / "out"
    record = put(out, "s000", p=0.2)
    assert lrmil("report", out).code == 0
    page = (out / "s000.html").read_bytes()
    for n in range(1, 200):
        p = 0.2 + n / 300
        own = record | {"slide": record["slide"] | {"id": f"s{n:03d}"}, "probabilities": {"normal": 1 - p, "tumor": p}}
        own["predicted"] = "tumor" if p > 0.5 else "normal"
        (out / f"s{n:03d}.prediction.json").write_text(json.dumps(own))
        (out / f"s{n:03d}.html").write_bytes(page)
    make_index(out, out, {}, False)
    return out
