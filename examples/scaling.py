"""How cost and memory grow as the work grows tenfold, twice.

    python examples/scaling.py [FOLDER]        (default: a temporary folder; slides of 10,000 x 8,000 to 100,000 x
    80,000 px are made in it)

Pure functions are timed on as many tiles as a small, a usual and a huge slide have (best of five); `tile` and `predict`
run as commands on slides whose glass is one shared block, so that the largest takes a few MB. Prints a table: three
sizes, and what each tenfold costs.
"""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from pathlib import Path

import numpy as np

BLOCK = 256
SIZES = ((10_000, 8_000), (31_600, 25_300), (100_000, 80_000))


def sparse_slide(path: Path, width: int, height: int, tissue: float = 0.3) -> None:
    """An Aperio-like TIFF of 0.5 um/px with levels 1, 4 and 16; each block is one of nine that stand in the
    file once."""
    rng = np.random.default_rng(0)
    kinds = [np.full((BLOCK, BLOCK, 3), 244, np.uint8)]
    for _ in range(8):
        grain = np.kron(rng.integers(0, 60, (BLOCK // 8, BLOCK // 8, 1)), np.ones((8, 8, 1), int))
        kinds.append((np.array([214, 130, 178]) - grain * np.array([1, 1, 0.4])).astype(np.uint8))
    packed = [zlib.compress(k.tobytes(), 6) for k in kinds]
    with open(path, "wb") as fh:
        fh.write(struct.pack("<2sHI", b"II", 42, 0))
        offsets = []
        for data in packed:
            offsets.append(fh.tell())
            fh.write(data + b"\0" * (len(data) % 2))
        counts = [len(d) for d in packed]
        # Where tissue is, is decided for blocks of the coarsest level, so that all levels agree.
        rows, cols = -(-height // (16 * BLOCK)), -(-width // (16 * BLOCK))
        y, x = np.mgrid[0:rows, 0:cols]
        near = ((y + 0.5) / rows - 0.5) ** 2 + ((x + 0.5) / cols - 0.5) ** 2
        inside = near <= np.sort(near.ravel())[max(0, round(tissue * near.size) - 1)]
        at = 4
        for scale in (1, 4, 16):
            w, h = width // scale, height // scale
            r, c = np.mgrid[0 : -(-h // BLOCK), 0 : -(-w // BLOCK)]
            coarse = inside[np.minimum(r * scale // 16, rows - 1), np.minimum(c * scale // 16, cols - 1)]
            kind = np.where(coarse, 1 + (r * 7 + c * 3) % 8, 0).ravel()
            text = f"Aperio Image Library (sparse)\n{w}x{h}|AppMag = 20|MPP = 0.5\0".encode()
            at = _directory(fh, at, w, h, text, np.array(offsets, "<u4")[kind], np.array(counts, "<u4")[kind])


def _directory(fh, link: int, width: int, height: int, text: bytes, offsets: np.ndarray, counts: np.ndarray) -> int:
    """One image of the TIFF; its place is written at ``link``. Returns where the next one's is to be written."""
    places = []
    for data in (struct.pack("<3H", 8, 8, 8), text, offsets.tobytes(), counts.tobytes()):
        places.append(fh.tell())
        fh.write(data + b"\0" * (len(data) % 2))
    n = len(offsets)
    tags = [
        (256, 4, 1, width),
        (257, 4, 1, height),
        (258, 3, 3, places[0]),
        (259, 3, 1, 8),
        (262, 3, 1, 2),
        (270, 2, len(text), places[1]),
        (277, 3, 1, 3),
        (284, 3, 1, 1),
        (322, 4, 1, BLOCK),
        (323, 4, 1, BLOCK),
        (324, 4, n, places[2]),
        (325, 4, n, places[3]),
    ]
    start = fh.tell()
    fh.write(struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *t) for t in tags) + struct.pack("<I", 0))
    end = fh.tell()
    fh.seek(link)
    fh.write(struct.pack("<I", start))
    fh.seek(end)
    return end - 4


def best(work, runs: int = 5) -> float:
    """Seconds of the fastest of some runs, after one that is not counted."""
    work()
    seconds = []
    for _ in range(runs):
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def grid_table(side: int, mpp: float):
    """Header and rows of a tile table of side x side tiles of 256 px."""
    import pandas as pd

    row, col = (a.ravel() for a in np.indices((side, side)))
    step = round(256 * mpp / 0.5)
    size = side * step
    slide = {
        "id": "s",
        "path": "s.svs",
        "width": size,
        "height": size,
        "mpp": 0.5,
        "mpp_source": "metadata",
        "vendor": "aperio",
        "fingerprint": "f",
    }
    header = {
        "kind": "tiles",
        "version": 1,
        "slide": slide,
        "settings": {"mpp": mpp, "tile_px": 256},
        "history": [{"command": "tile", "digest": "d"}],
    }
    rows = pd.DataFrame(
        {"x": col * step, "y": row * step, "width": step, "height": step, "col": col, "row": row, "tissue": 1.0}
    )
    return header, rows


def match_seconds(hr_tiles: int) -> float:
    from lrmil_cli.matching.pairs import match_tables

    side = round(hr_tiles**0.5 / 4)
    lr, hr = grid_table(side, 2.0), grid_table(4 * side, 0.5)
    lr[0]["slide"] = hr[0]["slide"]
    return best(lambda: match_tables(*lr, *hr))


def region_seconds(hr_tiles: int) -> float:
    import torch

    from lrmil_cli.distill.regions import region_scores

    scores, parent = torch.randn(hr_tiles), torch.arange(hr_tiles) // 16
    return best(lambda: region_scores(scores, parent, hr_tiles // 16 + 1))


def bootstrap_seconds(predictions: int) -> float:
    """All metrics of one model, with intervals of 2,000 resamples of patients of two slides."""
    from lrmil_cli.evaluation.scores import metric_table

    rng = np.random.default_rng(0)
    labels, p = rng.integers(2, size=predictions), rng.dirichlet((1, 1), predictions)
    patients = np.char.add("p", (np.arange(predictions) // 2).astype(str))
    return best(lambda: metric_table(labels, p, patients, classes=("a", "b")), 2)


def manifest_seconds(slides: int) -> float:
    from lrmil_cli.files.manifest import read_manifest

    rows = (f"s{i:05d}.svs,s{i:05d},p{i // 2:05d},{'ab'[i // 2 % 2]},{i // 2 % 5 + 1}\n" for i in range(slides))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "slides.csv"
        path.write_text("slide,slide_id,patient_id,label,fold\n" + "".join(rows), encoding="utf-8")
        return best(lambda: read_manifest(path, need_labels=True), 2)


def geojson_seconds(tiles: int) -> float:
    sys.path.insert(0, str(Path(__file__).parent))
    from geojson_speed import make_table, ours

    table = make_table(tiles)
    with tempfile.TemporaryDirectory() as folder:
        return best(lambda: ours(Path(folder) / "x.geojson.gz", *table), 3)


def bare_model(path: Path) -> None:
    """A model of the demo's encoder with an untrained head: what it costs does not depend on what it learned."""
    from lrmil_cli.encoders.spec import load_encoder
    from lrmil_cli.files.header import make_header, step
    from lrmil_cli.heads import build_head
    from lrmil_cli.models.model_file import save_model
    from lrmil_cli.slides.tiles import TileSettings

    encoder = load_encoder("demo-vit", tile_px=256)
    head = build_head("abmil", encoder.embed_dim, 2)
    header = make_header(
        "model",
        settings={},
        classes=["a", "b"],
        tiles=TileSettings().as_json(),
        attention_kind="native",
        history=[step("distill-student", {}, {})],
        calibration={"temperature": 1.0},
    )
    save_model(path, header, [encoder], [head], [0])


def command(*args: object) -> tuple[float, float]:
    """Wall seconds and peak MB of one command, in a process of its own."""
    began = time.perf_counter()
    pid = os.spawnv(os.P_NOWAIT, sys.executable, [sys.executable, "-m", "lrmil_cli", *map(str, args), "-q"])
    _, status, usage = os.wait4(pid, 0)
    if status:
        sys.exit(f"lrmil {args[0]} failed")
    return time.perf_counter() - began, usage.ru_maxrss / (1024 if sys.platform != "darwin" else 1024**2)


def show(what: str, unit: str, values: list[float], form: str = ".4g") -> None:
    growth = "".join(f"{b / a:>9.2f}x" for a, b in zip(values, values[1:]))
    print(f"{what:<36}{unit:>4}" + "".join(f"{v:>11{form}}" for v in values) + growth, flush=True)


def main() -> None:
    if sys.argv[1:2] == ["--model"]:
        return bare_model(Path(sys.argv[2]))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(sys.argv[1] if len(sys.argv) > 1 else temporary)
        folder.mkdir(parents=True, exist_ok=True)
        print(f"{'':<40}{'1':>11}{'10':>11}{'100':>11}{'1 to 10':>10}{'10 to 100':>10}")
        # Commands first: the memory of a new process counts from that of the one which starts it, and this one is small
        # yet.
        subprocess.run([sys.executable, __file__, "--model", str(folder / "model.safetensors")], check=True)
        found: dict[str, list[tuple[float, float]]] = {"tile": [], "predict": []}
        out = Path(temporary)  # always new, so that nothing is up to date
        for width, height in SIZES:
            slide = folder / f"sparse-{width}x{height}.svs"
            if not slide.exists():
                sparse_slide(slide, width, height)
            found["tile"].append(command("tile", slide, "--mpp", "2.0", "-o", out / "tiles" / str(width)))
            found["predict"].append(
                command(
                    "predict",
                    slide,
                    "-m",
                    folder / "model.safetensors",
                    "--runtime",
                    "torch",
                    "-o",
                    out / "out" / str(width),
                )
            )
        for name, own in found.items():
            show(f"{name}, 10,000 x 8,000 px and up", "s", [s for s, _ in own], ".2f")
            show(f"{name}, peak memory", "MB", [m for _, m in own], ".0f")
        show("match, 1,600 HR tiles and up", "s", [match_seconds(n) for n in (1_600, 16_000, 160_000)])
        show("region scores, 1,600 HR tiles and up", "s", [region_seconds(n) for n in (1_600, 16_000, 160_000)])
        show("manifest, 200 slides and up", "s", [manifest_seconds(n) for n in (200, 2_000, 20_000)])
        show("evaluate, 200 predictions and up", "s", [bootstrap_seconds(n) for n in (200, 2_000, 20_000)])
        show("GeoJSON, 1,000 tiles and up", "s", [geojson_seconds(n) for n in (1_000, 10_000, 100_000)])


if __name__ == "__main__":
    main()
