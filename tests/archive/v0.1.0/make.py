"""Makes the archive of lrmil 0.1.0: ``python tests/archive/v0.1.0/make.py OUT``, as ../README.md says.

What a command writes is made by a command line. Inputs are a few painted slides and an encoder of random weights.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

#: Not resolved: graphs hold the paths of the code, and links may keep those neutral.
ROOT = Path(__file__).absolute().parents[3]
sys.path.insert(0, str(ROOT))
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["SOURCE_DATE_EPOCH"] = "1795913600"  # 29 November 2026, in every history

import timm  # noqa: E402
import torch  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

from lrmil_cli import __version__  # noqa: E402
from lrmil_cli.app import run  # noqa: E402
from lrmil_cli.demo.slides import make_slide  # noqa: E402
from lrmil_cli.files.header import make_header, step  # noqa: E402
from lrmil_cli.heads import build_head  # noqa: E402
from lrmil_cli.heads.checkpoint import save_head  # noqa: E402
from tests.archive import contents  # noqa: E402

#: slide: label, part in fold 1 and in fold 2. The first two are kept in the archive, for predicting.
SLIDES = {
    "n1": ("normal", "test", "train"),
    "t1": ("tumor", "test", "train"),
    "n2": ("normal", "val", "test"),
    "t2": ("tumor", "val", "test"),
    "n3": ("normal", "train", "val"),
    "t3": ("tumor", "train", "val"),
}
KEPT = "slides/n1.svs slides/t1.svs"
VIT = {"patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2}
ENCODER = "--encoder local-dir:encoder"
TILES = "--tile-px 64"
TRAINING = "--epochs 12 --lr 1e-2"
HIDDEN = "--head-option hidden=8"
NARROW = f"--head-option embed_dim=16 {HIDDEN}"
TEACHER = f"--tiles tiles-hr {ENCODER} --features features-hr {TRAINING}"
STUDENT = "--tiles tiles-lr --pairs pairs --features features-hr"
SCREENED = (
    f"{STUDENT} {ENCODER} --teacher teacher-dmin --keep-rate-window 0.3,0.6 --lipn-lr 3e-3 --epochs 30 "
    "--patience 30 --seed 1"
)

#: Each of these can be run again over the archive, and then has nothing to do.
COMMANDS = [
    f"tile slides --mpp 2.0 {TILES} -o tiles-lr",
    f"tile slides --mpp 0.5 {TILES} -o tiles-hr",
    f"tile slides/n1.svs --mpp 2.0 {TILES} -o variants/n1.lr.tiles.csv.gz",
    f"tile slides/n1.svs --mpp 0.5 {TILES} -o variants/n1.hr.tiles.parquet",
    "match tiles-lr tiles-hr -o pairs",
    "match variants/n1.lr.tiles.csv.gz variants/n1.hr.tiles.parquet -o variants/n1.pairs.csv.gz",
    "match tiles-lr/n1.tiles.csv tiles-hr/n1.tiles.csv -o variants/n1.pairs.parquet",
    f"embed tiles-lr {ENCODER} -o features-lr",
    f"embed tiles-hr {ENCODER} -o features-hr",
    f"distill-encoder pairs {ENCODER} --layers 0,1 --final-loss uniform --epochs 3 --lr 1e-3 --warmup 2 --batch-size 8 "
    "-o lr-encoder.safetensors",
    f"train-teacher slides.csv {TEACHER} {HIDDEN} -o teacher",
    f"train-teacher split.csv {TEACHER} --head dmin {NARROW} -o teacher-dmin",
    f"distill-student slides.csv {STUDENT} --encoder lr-encoder.safetensors --teacher teacher --baseline-encoder "
    f"local-dir:encoder {HIDDEN} {TRAINING} -o lrmil.safetensors",
    f"distill-student split.csv --method ahdmil {SCREENED} -o ahdmil.safetensors",
    f"distill-student split.csv --method hdmil {SCREENED} -o hdmil.safetensors",
    f"distill-student slides.csv --method zoommil {STUDENT} {ENCODER} --teacher teacher --lr-features features-lr "
    f"{NARROW} --head-option k=2 {TRAINING} -o zoommil.safetensors",
    # Its heads have an attention row a class, which the graphs give besides.
    f"distill-student slides.csv --preset lr-only --tiles tiles-lr {ENCODER} --lr-features features-lr --head clam_mb "
    f"{NARROW} {TRAINING} -o clam.safetensors",
    "export-onnx lrmil.safetensors --int8",
    "export-onnx clam.safetensors",
    f"predict {KEPT} -m lrmil.safetensors --runtime torch -o predictions/lrmil-torch",
    f"predict {KEPT} -m lrmil.safetensors --runtime onnx -o predictions/lrmil-onnx",
    f"predict {KEPT} -m lrmil.safetensors --runtime onnx-int8 -o predictions/lrmil-onnx-int8",
    f"predict {KEPT} -m clam.safetensors --runtime torch -o predictions/clam-torch",
    f"predict {KEPT} -m clam.safetensors --runtime onnx -o predictions/clam-onnx",
    f"predict {KEPT} -m ahdmil.safetensors --runtime torch -o predictions/ahdmil-torch",
    f"predict {KEPT} -m hdmil.safetensors --runtime torch -o predictions/hdmil-torch",
    f"predict {KEPT} -m zoommil.safetensors --runtime torch -o predictions/zoommil-torch",
    f"predict {KEPT} -m lrmil.safetensors --runtime torch --escalate teacher --hr-encoder local-dir:encoder --budget 3 "
    "--confidence 1 --abstain -o predictions/second-look-torch",
    "export-geojson predictions/lrmil-torch --style both --top 0.3 -o geojson",
    "export-geojson predictions/ahdmil-torch/t1.screen.attention.csv -o geojson/t1.screen.heatmap.geojson",
    f"tile slides/t1.svs --mpp 2.0 {TILES} --roi geojson/t1.regions.geojson.gz -o variants/t1.roi.tiles.csv",
    "evaluate teacher student=lrmil.safetensors --bootstrap 100 -o evaluation",
]
#: These would do their work again: --check measures anew, and of the evaluation only what is read by others is kept.
ONCE = [
    "export-onnx lrmil.safetensors --int8 --check slides/n1.svs",
    "evaluate predictions/second-look-torch --slides slides.csv --bootstrap 0 -o evaluation-second-look",
]

#: Head files: name in the archive, options. ZoomMIL's stands in model files only, and is made apart.
HEADS = {
    "abmil": HIDDEN,
    "abmil-gated": f"--gated --classifier cka {NARROW}",
    "meanpool": "--head-option embed_dim=16",
    "maxpool": "--head-option embed_dim=16",
    "clam_sb": NARROW,
    "clam_mb": NARROW,
    "dsmil": "--head-option query_dim=8",
    "transmil": "--head-option embed_dim=16 --head-option heads=2",
    "dtfd": NARROW,
    "dmin": NARROW,
}


def call(line: str) -> None:
    """Run a command line, which must succeed."""
    print("$ lrmil", line, flush=True)
    if code := run([*line.split(), "-q"]):
        raise SystemExit(f"exit code {code}")


def write_inputs() -> None:
    """Slides, manifests, and the folder of an encoder of random weights, large enough that tiles differ."""
    Path("slides").mkdir()
    for n, (name, (label, *_)) in enumerate(SLIDES.items()):
        make_slide(f"slides/{name}.svs", seed=50 + n, positive=label == "tumor", size_px=768)
    rows = [(f"slides/{name}.svs", label, f"p-{name}", *parts) for name, (label, *parts) in SLIDES.items()]
    for name, columns in (("slides.csv", ["fold_1", "fold_2"]), ("split.csv", ["split"])):
        table = [["slide", "label", "patient_id", *columns], *(r[: 3 + len(columns)] for r in rows)]
        Path(name).write_text("\n".join(map(",".join, table)) + "\n")
    Path("encoder").mkdir()
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", img_size=64, num_classes=0, **VIT)
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim > 1:
                p.normal_(std=p[0].numel() ** -0.5)
    save_file(model.state_dict(), "encoder/model.safetensors")
    about = {"input_size": [3, 64, 64], "mean": [0.7, 0.5, 0.65], "std": [0.2, 0.25, 0.2], "license": "apache-2.0"}
    config = {"architecture": "vit_tiny_patch16_224", "model_args": VIT, "pretrained_cfg": about}
    Path("encoder/config.json").write_text(json.dumps(config, indent=1) + "\n")


def write_heads() -> None:
    """A trained head of each name, and a fixed bag for all of them: a level of 24 tiles over one of 60."""
    Path("heads").mkdir()
    for name, options in HEADS.items():
        head = name.partition("-")[0]
        call(f"train-teacher split.csv --features features-hr --head {head} {options} {TRAINING} -o scratch/{name}")
        shutil.copy(f"scratch/{name}/fold1/head.safetensors", f"heads/{name}.safetensors")
    torch.manual_seed(1)
    zoom = build_head("zoommil", VIT["embed_dim"], 2, {"embed_dim": 16, "hidden": 8, "k": 3})
    save_head("heads/zoommil.safetensors", zoom, make_header("head", settings={}, history=[step("archive", {}, {})]))
    children = torch.randint(-1, 60, (24, 4))
    children[5] = -1
    coords = torch.stack([torch.arange(24) % 6, torch.arange(24) // 6], 1) * 256
    features = {"features": torch.randn(24, VIT["embed_dim"]), "deeper": torch.randn(60, VIT["embed_dim"])}
    save_file({**features, "coords": coords, "children": children}, "heads/bag.safetensors")


def remove_ballast() -> None:
    """Caches, pictures and pages but one of each, slides that nothing opens again."""
    for folder in ("scratch", "lr-encoder.cache", "ahdmil.screen", "hdmil.screen"):
        shutil.rmtree(folder, ignore_errors=True)
    pages = [p for p in Path(".").rglob("*") if p.suffix in (".png", ".html", ".md") and p.parent.name != "evaluation"]
    for path in [*pages, *Path("slides").iterdir()]:
        if str(path) not in ("lrmil.receipt.md", *KEPT.split()):
            path.unlink()


def made_with() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True)
    packages = (
        "torch",
        "timm",
        "numpy",
        "onnx",
        "onnxscript",
        "onnxruntime",
        "imagecodecs",
        "opencv-python-headless",
        "pyarrow",
        "h5py",
        "safetensors",
    )
    return {
        "lrmil": __version__,
        "commit": head.stdout.strip(),
        "python": platform.python_version(),
        "machine": platform.machine(),
        **{p: version(p) for p in packages},
    }


def main() -> None:
    out = Path(sys.argv[1])
    out.mkdir(parents=True)
    os.chdir(out)
    write_inputs()
    for line in COMMANDS + ONCE:
        call(line)
    write_heads()
    remove_ballast()
    lines = {"commands": [line.split() for line in COMMANDS], "once": [line.split() for line in ONCE]}
    expected = {"made": made_with(), **lines, **contents.all_of(Path("."))}
    Path("expected.json").write_text(contents.dumps(expected))
    shutil.copy(__file__, "make.py")


if __name__ == "__main__":
    main()
