"""What training costs as a cohort grows: memory, seconds an epoch, and whether what it learns is the same.

    python examples/cohort_scale.py FOLDER [--slides 100,300,900] [--tiles 8000] [--width 1024] [--memory 2GB]

Makes features of that many slides in FOLDER (made-up, with a weak signal; 16 MB a slide of 8,000 x 1,024), with tile
tables and pairs, so that no slide is needed; a folder that has them is used again. Then runs `train-teacher` and
`distill-student` as commands, on one fold, and prints a table: peak memory, seconds an epoch (from the second on, when
files are in the system's cache), each with `--memory` and with all bags kept.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from lrmil_cli.encoders.embed import features_settings
from lrmil_cli.encoders.spec import load_encoder
from lrmil_cli.files.features import write_features
from lrmil_cli.files.header import digest, last_digest, make_header, step
from lrmil_cli.files.tables import write_table
from lrmil_cli.slides.tiles import TileSettings
from lrmil_cli.units import LevelPx, Mpp

LR_MPP, HR_MPP, TILE_PX, RATIO, COLUMNS = 2.0, 0.5, 256, 4, 40
ENCODER = "demo-vit"
EPOCHS = 4
#: --memory that keeps everything.
ALL = "500GB"


def tile_table(slide_id: str, mpp: float, count: int, columns: int) -> tuple[dict, pd.DataFrame]:
    """Tiles row by row, as `lrmil tile` writes them."""
    n, side = np.arange(count), round(TILE_PX * mpp / HR_MPP)
    size = COLUMNS * round(TILE_PX * LR_MPP / HR_MPP)
    slide = {
        "id": slide_id, "path": f"{slide_id}.svs", "width": size, "height": 10 * size, "mpp": HR_MPP,
        "mpp_source": "made up", "vendor": "made up", "fingerprint": digest({"slide": slide_id}, {}),
    }  # fmt: skip
    settings = TileSettings(mpp=Mpp(mpp), tile_px=LevelPx(TILE_PX)).as_json()
    history = [step("tile", settings, {"slide": slide["fingerprint"]})]
    header = make_header("tiles", slide=slide, settings=settings, level=0, level_mpp=mpp, history=history)
    rows = {"x": n % columns * side, "y": n // columns * side, "width": side, "height": side}
    rows |= {"col": n % columns, "row": n // columns, "tissue": 1.0}
    return header, pd.DataFrame(rows)


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


def teacher_line(folder: Path, slides: int, memory: str, epochs: int) -> list[str]:
    """The command that trains the teacher of one fold."""
    out = folder / f"out{slides}" / f"teacher-{memory}-{epochs}"
    line = ["train-teacher", str(folder / f"slides{slides}.csv"), "--features", str(folder / "hr"), "-o", str(out)]
    return [*line, "--memory", memory, "--epochs", str(epochs)]


def student_line(folder: Path, slides: int, memory: str, epochs: int) -> list[str]:
    """The command that distils it, without the LR-only student."""
    out = folder / f"out{slides}"
    options = {
        "--tiles": folder / "lr-tiles",
        "--pairs": folder / "pairs",
        "--encoder": ENCODER,
        "--teacher": out / f"teacher-{memory}-{EPOCHS}",
        "--features": folder / "hr",
        "--lr-features": folder / "lr",
        "--memory": memory,
        "--epochs": epochs,
        "-o": out / f"student-{memory}-{epochs}.safetensors",
    }
    line = ["distill-student", str(folder / f"slides{slides}.csv"), "--no-baseline"]
    return line + [str(word) for option in options.items() for word in option]


def anew(line: list[str]) -> tuple[float, float]:
    """:func:`lrmil` without what an earlier run left, which would be taken over."""
    out = Path(line[line.index("-o") + 1])
    shutil.rmtree(out) if out.is_dir() else out.unlink(missing_ok=True)
    return lrmil(*line)


def measure(line_of: Callable[..., list[str]], folder: Path, slides: int, memory: str) -> None:
    """Run a command with one epoch and with all, and print seconds an epoch between the two and peak memory."""
    anew(line_of(folder, slides, memory, 1))  # files come into the system's cache
    one, _ = anew(line_of(folder, slides, memory, 1))
    whole, peak = anew(line_of(folder, slides, memory, EPOCHS))
    name = f"{line_of(folder, slides, memory, 1)[0]}, {slides} slides, --memory {memory}"
    print(f"{name:<44} {(whole - one) / (EPOCHS - 1):7.2f} s an epoch {whole:8.1f} s {peak:6.2f} GB", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--slides", default="100,300,900")
    parser.add_argument("--tiles", type=int, default=8000)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--memory", default="2GB")
    parser.add_argument("--all-kept", default="300", help="cohorts that are trained with all bags in memory too")
    a = parser.parse_args()
    for n in sorted(map(int, a.slides.split(",")), reverse=True):
        make_cohort(a.folder, n, a.tiles, a.width)
    lrmil("match", str(a.folder / "lr-tiles"), str(a.folder / "hr-tiles"), "-o", str(a.folder / "pairs"))
    for n in map(int, a.slides.split(",")):
        both = str(n) in a.all_kept.split(",")
        for line_of in (teacher_line, student_line):
            for memory in (a.memory, ALL) if both else (a.memory,):
                measure(line_of, a.folder, n, memory)
        if both:
            known = [_numbers(a.folder / f"out{n}" / f"teacher-{m}-{EPOCHS}") for m in (a.memory, ALL)]
            print(f"predictions of the two teachers differ by at most {np.abs(known[0] - known[1]).max():.1e}")


def _numbers(teacher: Path) -> np.ndarray:
    table = pd.read_csv(teacher / "predictions.csv", comment="#")
    return table[[c for c in table if c.startswith("prob_")]].to_numpy()


if __name__ == "__main__":
    main()
