"""What training costs as a cohort grows: memory, seconds an epoch, and whether what it learns is the same.

    python examples/cohort_scale.py FOLDER [--slides 100,300,900] [--tiles 8000] [--width 1024] [--memory 2GB]

Makes features of that many slides in FOLDER (made-up, with a weak signal; 16 MB a slide of 8,000 x 1,024), with tile
tables and pairs, so that no slide is needed; a folder that has them is used again. Then runs `train-teacher` and
`distill-student` as commands, on one fold, and prints a table: peak memory, seconds an epoch (from the second on, when
files are in the system's cache), each with `--memory` and with all bags kept.
"""

from __future__ import annotations

import argparse
import filecmp
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd

from lrmil_cli.encoders.embed import features_settings
from lrmil_cli.encoders.spec import load_encoder
from lrmil_cli.files.features import write_features
from lrmil_cli.files.header import digest, last_digest, make_header, step
from lrmil_cli.files.tables import write_table

LR_MPP, HR_MPP, TILE_PX, RATIO, COLUMNS = 2.0, 0.5, 256, 4, 40
ENCODER = "demo-vit"
EPOCHS = 4


def tile_table(slide_id: str, mpp: float, count: int, columns: int) -> tuple[dict, pd.DataFrame]:
    """Tiles row by row, as `lrmil tile` writes them."""
    n, side = np.arange(count), round(TILE_PX * mpp / HR_MPP)
    size = COLUMNS * round(TILE_PX * LR_MPP / HR_MPP)
    slide = {
        "id": slide_id, "path": f"{slide_id}.svs", "width": size, "height": 10 * size, "mpp": HR_MPP,
        "mpp_source": "made up", "vendor": "made up", "fingerprint": digest({"slide": slide_id}, {}),
    }  # fmt: skip
    settings = {"mpp": mpp, "tile_px": TILE_PX, "min_tissue": 0.1, "allow_upsample": False}
    header = make_header("tiles", slide=slide, settings=settings, level=0, level_mpp=mpp, history=[step("tile", settings, {"slide": slide["fingerprint"]})])  # fmt: skip
    rows = pd.DataFrame({"x": n % columns * side, "y": n // columns * side, "width": side, "height": side,
                         "col": n % columns, "row": n // columns, "tissue": 1.0})  # fmt: skip
    return header, rows


def make_cohort(folder: Path, slides: int, hr_tiles: int, width: int) -> None:
    """Tables and features of ``slides``, those that are there left alone, and the manifest of this many."""
    encoder = load_encoder(ENCODER)
    settings = {**features_settings(encoder), "dtype": "float16"}
    signal = np.random.default_rng(0).normal(size=(2, max(width, encoder.embed_dim))).astype(np.float32)
    rows = []
    for n in range(slides):
        slide_id, label = f"s{n:04d}", n // 2 % 2
        rows.append({"slide": f"{slide_id}.svs", "slide_id": slide_id, "label": "ab"[label], "patient_id": f"p{n:04d}",
                     "split": ("train", "train", "train", "val", "test")[n % 5]})  # fmt: skip
        target = folder / "hr" / f"{slide_id}.h5"
        if target.exists():
            continue
        rng = np.random.default_rng(n)
        for side, mpp, count, columns in (
            ("lr", LR_MPP, hr_tiles // RATIO**2, COLUMNS),
            ("hr", HR_MPP, hr_tiles, COLUMNS * RATIO),
        ):
            header, tiles = tile_table(slide_id, mpp, count, columns)
            write_table(folder / f"{side}-tiles" / f"{slide_id}.tiles.csv", header, tiles)
            dim = width if side == "hr" else encoder.embed_dim
            x = rng.standard_normal((count, dim), np.float32)
            x[: count // 20] += 0.3 * signal[label, :dim]
            own = {"name": "made up", "embedding": None} if side == "hr" else encoder.info.as_json()
            made = make_header("features", slide=header["slide"], settings=settings if side == "lr" else {},
                               tiles=header["settings"], encoder={k: v for k, v in own.items() if k != "arch_args"},
                               history=[step("embed", settings, {"tiles": last_digest(header)})])  # fmt: skip
            write_features(folder / side / f"{slide_id}.h5", made, x, tiles[["x", "y"]].to_numpy())
    pd.DataFrame(rows).to_csv(folder / f"slides{slides}.csv", index=False)


def lrmil(*arguments: str) -> tuple[float, float]:
    """Seconds and peak memory in GB of a command."""
    started = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "lrmil_cli", *arguments, "-q"])
    _, status, used = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"lrmil {' '.join(arguments)} ended with {os.waitstatus_to_exitcode(status)}")
    return time.perf_counter() - started, used.ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9


def measure(name: str, run, out: Path) -> tuple[str, float, float, float]:
    """One epoch and all of them, twice: seconds an epoch between the two, whole seconds, peak memory."""
    one = min(run(1, out / "one")[0] for _ in range(2))
    whole, memory = run(EPOCHS, out / "all")
    per_epoch = (whole - one) / (EPOCHS - 1)
    print(f"{name:<44} {per_epoch:7.2f} s an epoch {whole:8.1f} s in all {memory:6.2f} GB", flush=True)
    return name, per_epoch, whole, memory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--slides", default="100,300,900")
    parser.add_argument("--tiles", type=int, default=8000)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--memory", default="2GB")
    parser.add_argument("--all-kept", default="300", help="cohorts that are trained with all bags in memory too")
    a = parser.parse_args()
    sizes = [int(n) for n in a.slides.split(",")]
    make_cohort(a.folder, max(sizes), a.tiles, a.width)
    for n in sizes:
        make_cohort(a.folder, n, a.tiles, a.width)
    here = str(a.folder)
    lrmil("match", f"{here}/lr-tiles", f"{here}/hr-tiles", "-o", f"{here}/pairs")
    for n in sizes:
        manifest, out = f"{here}/slides{n}.csv", a.folder / f"out{n}"
        for memory in (a.memory, "500GB") if str(n) in a.all_kept.split(",") else (a.memory,):

            def teacher(epochs: int, to: Path, memory: str = memory) -> tuple[float, float]:
                return lrmil("train-teacher", manifest, "--features", f"{here}/hr", "--memory", memory, "--epochs",
                             str(epochs), "--overwrite", "-o", f"{to}-teacher-{memory}")  # fmt: skip

            def student(epochs: int, to: Path, memory: str = memory) -> tuple[float, float]:
                return lrmil("distill-student", manifest, "--tiles", f"{here}/lr-tiles", "--pairs", f"{here}/pairs",
                             "--teacher", f"{out}/all-teacher-{memory}", "--encoder", ENCODER, "--no-baseline",
                             "--features", f"{here}/hr", "--lr-features", f"{here}/lr", "--memory", memory, "--epochs",
                             str(epochs), "--overwrite", "-o", f"{to}-{memory}.safetensors")  # fmt: skip

            measure(f"train-teacher, {n} slides, --memory {memory}", teacher, out)
            measure(f"distill-student, {n} slides, --memory {memory}", student, out)
        if str(n) in a.all_kept.split(","):
            same = [
                filecmp.cmp(out / f"all-teacher-{m}" / "predictions.csv", out / f"all-teacher-500GB" / "predictions.csv", False)
                or np.allclose(_numbers(out / f"all-teacher-{m}"), _numbers(out / "all-teacher-500GB"), atol=1e-6, rtol=0)
                for m in (a.memory,)
            ]
            print(f"predictions of both ways equal to 1e-6: {all(same)}")


def _numbers(teacher: Path) -> np.ndarray:
    table = pd.read_csv(teacher / "predictions.csv", comment="#")
    return table[[c for c in table if c.startswith("prob_")]].to_numpy()


if __name__ == "__main__":
    main()
