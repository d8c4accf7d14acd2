"""Slides and small trained things that the tests share. Everything is made here; nothing is downloaded."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from lrmil_cli.app import run

SHARED = Path(__file__).resolve().parents[2] / "shared"
needs_shared = pytest.mark.skipif(
    not (SHARED / "data").is_dir(), reason="the folder of real slides is not on this machine"
)
if "PYTEST_XDIST_WORKER" in os.environ:  # a worker a core: threads of torch would stand in each other's way
    os.environ.setdefault("OMP_NUM_THREADS", "1")
WINDOWS = os.name == "nt"
not_on_windows = pytest.mark.skipif(WINDOWS, reason="needs what only POSIX has: signals, fork, or names of any kind")


@dataclass
class Said:
    """What one command line came to."""

    code: int
    out: str
    err: str

    @property
    def records(self) -> list[dict]:
        return [json.loads(line) for line in self.out.splitlines()]


@pytest.fixture
def lrmil(capsys):
    """Run a command line in this process: ``lrmil("tile", slide, "-o", out)``."""

    def call(*args: object) -> Said:
        capsys.readouterr()
        code = run([str(a) for a in args])
        captured = capsys.readouterr()
        return Said(code, captured.out, captured.err)

    return call


def shell(command: str, cwd: Path, **kwargs) -> subprocess.CompletedProcess:
    """Run a shell line with ``lrmil`` on the PATH, real pipes and all."""
    if WINDOWS:  # what is called bash there may be a Linux in a box, without this Python
        pytest.skip("needs a POSIX shell")
    env = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", command],
        cwd=cwd,
        env=env,
        capture_output=True,
        text=True,
        timeout=300,
        **kwargs,
    )


def _unpainted():
    """Charts are laid out and not painted, which takes most of their time; for tests that are about something else."""
    from matplotlib.figure import Figure

    dot = io.BytesIO()
    Image.new("RGB", (1, 1)).save(dot, "png")

    def save(self, sink, **options):
        sink.write(dot.getvalue()) if hasattr(sink, "write") else Path(sink).write_bytes(dot.getvalue())

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Figure, "savefig", save)
        yield


unpainted = pytest.fixture(_unpainted, name="unpainted")
all_unpainted = pytest.fixture(_unpainted, scope="module", name="all_unpainted")


def without_checksum(text: str) -> str:
    """A table or JSON of lrmil as somebody would leave it who edits it on purpose."""
    return re.sub(r',\s*"content": "\w+"', "", text)


def write_tiff(
    path: Path,
    image: np.ndarray,
    *,
    mpp: float | None = 0.5,
    levels=(1, 4),
    description: str | None = None,
    ome: bool = False,
    **options,
) -> Path:
    """A tiled pyramidal TIFF: Aperio-like by its description, OME, or generic with a resolution tag."""
    import cv2

    options = {
        "tile": (256, 256),
        "compression": "deflate",
        "photometric": "rgb" if image.ndim == 3 else "minisblack",
        **options,
    }
    if description is None and mpp is not None and not ome:
        description = f"Aperio Image Library (test)\n{image.shape[1]}x{image.shape[0]}|AppMag = 20|MPP = {mpp}"
    pyramid = [
        image if d == 1 else cv2.resize(image, (image.shape[1] // d, image.shape[0] // d), interpolation=cv2.INTER_AREA)
        for d in levels
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    with tifffile.TiffWriter(path, ome=ome) as tw:
        if ome:
            meta = {
                "axes": "YXS",
                "PhysicalSizeX": mpp,
                "PhysicalSizeXUnit": "µm",
                "PhysicalSizeY": mpp,
                "PhysicalSizeYUnit": "µm",
            }
            tw.write(pyramid[0], subifds=len(levels) - 1, metadata=meta, **options)
            for p in pyramid[1:]:
                tw.write(p, subfiletype=1, metadata=None, **options)
            return path
        tw.write(pyramid[0], description=description, metadata=None, software=False, **options)
        if description:
            tw.write(
                pyramid[-1][:64, :64], metadata=None, software=False, photometric=options["photometric"]
            )  # Aperio's thumbnail page
        for p in pyramid[1:]:
            tw.write(p, description=description, metadata=None, software=False, **options)
    return path


def blob_image(width: int = 1600, height: int = 1200, seed: int = 0) -> np.ndarray:
    """White glass with one pink and purple textured disc, uint8 [H, W, 3]."""
    rng = np.random.default_rng(seed)
    image = np.full((height, width, 3), 244, np.uint8)
    yy, xx = np.mgrid[0:height, 0:width]
    disc = (xx - width * 0.45) ** 2 + (yy - height * 0.5) ** 2 < (0.36 * min(width, height)) ** 2
    texture = np.kron(rng.integers(0, 60, (height // 8 + 1, width // 8 + 1, 1)), np.ones((8, 8, 1), int))[
        :height, :width
    ]
    image[disc] = (np.array([214, 130, 178]) - texture[disc] * np.array([1, 1, 0.4])).astype(np.uint8)
    return image


@pytest.fixture(scope="session")
def slide(tmp_path_factory) -> Path:
    """A small Aperio-like slide with tissue in the middle, 0.5 um/px."""
    return write_tiff(tmp_path_factory.mktemp("slide") / "blob.svs", blob_image())


@pytest.fixture(scope="session")
def glass(tmp_path_factory) -> Path:
    """Pure glass with a little grain."""
    rng = np.random.default_rng(3)
    image = np.clip(rng.normal(243, 1.5, (1024, 1280, 3)), 0, 255).astype(np.uint8)
    return write_tiff(tmp_path_factory.mktemp("glass") / "glass.svs", image)


@pytest.fixture(scope="session")
def cohort(tmp_path_factory) -> Path:
    """Manifest of 16 small painted slides (the demo's slide maker) with a column ``split``."""
    from lrmil_cli.demo.slides import make_slide

    folder = tmp_path_factory.mktemp("cohort")
    (folder / "slides").mkdir()
    lines = ["slide,label,split"]
    for i in range(16):
        make_slide(folder / "slides" / f"s{i:02d}.svs", seed=100 + i, positive=bool(i % 2), size_px=1536)
        lines.append(
            f"slides/s{i:02d}.svs,{'tumor' if i % 2 else 'normal'},{'train' if i < 8 else 'val' if i < 12 else 'test'}"
        )
    (folder / "slides.csv").write_text("\n".join(lines) + "\n")
    return folder / "slides.csv"


@dataclass
class Chain:
    """Outputs of the whole chain on :func:`cohort`, run once a session."""

    folder: Path
    manifest: Path
    tiles_lr: Path
    tiles_hr: Path
    pairs: Path
    encoder: Path
    teacher: Path
    model: Path


@pytest.fixture(scope="session")
def chain(tmp_path_factory, cohort) -> Chain:
    """Run the chain with few epochs: enough to be real, not enough to be good."""
    at = tmp_path_factory.mktemp("chain")
    c = Chain(
        at,
        cohort,
        at / "lr",
        at / "hr",
        at / "pairs",
        at / "lr-encoder.safetensors",
        at / "teacher",
        at / "model.safetensors",
    )
    # float32, so that what a model predicts is what training saw to the last digits that tests look at.
    heads = ["--epochs", "8", "--lr", "1e-3", "--dtype", "float32"]
    for line in (
        ["tile", cohort, "--mpp", "2.0", "--tile-px", "128", "-o", c.tiles_lr],
        ["tile", cohort, "--mpp", "0.5", "--tile-px", "128", "-o", c.tiles_hr],
        ["match", c.tiles_lr, c.tiles_hr, "-o", c.pairs],
        [
            "distill-encoder",
            c.pairs,
            "--slides",
            cohort,
            "--fold",
            "1",
            "--encoder",
            "demo-vit",
            "--epochs",
            "2",
            "--lr",
            "3e-4",
            "--warmup",
            "4",
            "--batch-size",
            "32",
            "-o",
            c.encoder,
        ],
        ["train-teacher", cohort, "--tiles", c.tiles_hr, "--encoder", "demo-vit", *heads, "-o", c.teacher],
        [
            "distill-student",
            "--no-onnx",
            cohort,
            "--tiles",
            c.tiles_lr,
            "--pairs",
            c.pairs,
            "--encoder",
            c.encoder,
            "--teacher",
            c.teacher,
            *heads,
            "-o",
            c.model,
        ],
    ):
        assert run([*map(str, line), "--quiet"]) == 0, line
    return c
