"""Cohorts without pixels: tile tables and features of made-up slides, in which a severity sets a number and a time."""

from pathlib import Path

import numpy as np
import pandas as pd

from lrmil_cli.encoders.embed import features_settings
from lrmil_cli.encoders.spec import load_encoder
from lrmil_cli.files.features import write_features
from lrmil_cli.files.header import digest, last_digest, make_header, step
from lrmil_cli.files.tables import write_table
from lrmil_cli.slides.tiles import TileSettings

#: Side of LR tiles in px; um/px of LR and HR tiles; columns of LR tiles.
TILE_PX, LR, HR, COLUMNS = 64, 2.0, 0.5, 4


def tile_table(slide_id: str, mpp: float, columns: int) -> tuple[dict, pd.DataFrame]:
    n, side = np.arange(columns * columns), round(TILE_PX * mpp / HR)
    size = COLUMNS * round(TILE_PX * LR / HR)
    slide = {
        "id": slide_id, "path": f"{slide_id}.svs", "width": size, "height": size, "mpp": HR, "mpp_source": "made up",
        "vendor": "made up", "fingerprint": digest({"slide": slide_id}, {}),
    }  # fmt: skip
    settings = TileSettings(mpp=mpp, tile_px=TILE_PX).as_json()
    history = [step("tile", settings, {"slide": slide["fingerprint"]})]
    header = make_header("tiles", slide=slide, settings=settings, level=0, level_mpp=mpp, history=history)
    rows = {"x": n % columns * side, "y": n // columns * side, "width": side, "height": side}
    rows |= {"col": n % columns, "row": n // columns, "tissue": 1.0}
    return header, pd.DataFrame(rows)


def make_cohort(folder: Path, slides: int, *, per_patient: int = 1, signal: float = 1.0) -> Path:
    """``slides.csv`` with ``severity, time, event`` by patient, and LR and HR features of demo-vit's width.

    Slides show by the share of tiles that are shifted one way how severe it is, at HR more clearly.
    """
    encoder = load_encoder("demo-vit", tile_px=TILE_PX)
    settings = {**features_settings(encoder), "dtype": "float16"}
    way = np.random.default_rng(0).normal(size=encoder.embed_dim)
    rows = []
    for n in range(slides):
        rng, patient = np.random.default_rng(n + 1), n // per_patient
        own = np.random.default_rng(1000 + patient)
        severity = own.random()
        happens, leaves = own.exponential(20 * np.exp(-3 * severity)), own.exponential(20) + 1
        slide_id, event = f"s{n:03d}", int(happens <= leaves)
        about = {"slide": f"{slide_id}.svs", "slide_id": slide_id, "patient_id": f"p{patient}"}
        rows.append(about | {"severity": round(severity, 4), "time": round(min(happens, leaves), 2), "event": event})
        for side, mpp, columns in (("lr", LR, COLUMNS), ("hr", HR, 4 * COLUMNS)):
            header, tiles = tile_table(slide_id, mpp, columns)
            write_table(folder / f"{side}-tiles" / f"{slide_id}.tiles.csv", header, tiles)
            x = rng.standard_normal((len(tiles), encoder.embed_dim)).astype(np.float32)
            shifted = rng.random(len(tiles)) < 0.1 + 0.6 * severity
            x[shifted] += signal * (1.0 if side == "hr" else 0.4) * way
            about = encoder.info.as_json()
            made = make_header(
                "features",
                slide=header["slide"],
                settings=settings,
                tiles=header["settings"],
                encoder={k: v for k, v in about.items() if k != "arch_args"},
                history=[step("embed", settings, {"tiles": last_digest(header)})],
            )
            for place in (side, "lr/lr-only") if side == "lr" else (side,):  # where the LR-only student looks
                write_features(folder / place / f"{slide_id}.h5", made, x, tiles[["x", "y"]].to_numpy())
    pd.DataFrame(rows).to_csv(folder / "slides.csv", index=False)
    return folder
