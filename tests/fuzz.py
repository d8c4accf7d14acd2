"""Damaged and random inputs for every reader: only ``LrmilError`` may come out.

    python -m tests.fuzz [INPUTS] [SEED] [--only NAMES] [--first N]

100,000 inputs by default, shared out over the readers; prints a line a reader. Inputs are valid files with bytes
flipped, cut, repeated or spliced, with JSON values exchanged, or bytes at random; of slides, the headers alone are
damaged (:mod:`tests.fuzz_slides`). Each reader works in a process of its own that may take 5 GB, so that a crash of a
library is seen too, and goes on in a new one; an input that takes longer than ten seconds counts as a failure. What
fails is kept in ``fuzz-failures/``. libhdf5 crashes, or never returns, on some damaged files; ours carry a checksum
that is looked at before, those of other tools do not, so such ends are counted and reported, not held against us.
"""

from __future__ import annotations

import argparse
import faulthandler
import gzip
import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

VALUES = (
    "null",
    "true",
    "-1",
    "0",
    "1e999",
    "NaN",
    "[]",
    "{}",
    '""',
    '"x"',
    "99999999999999999999",
    "[[[]]]",
    '{"kind":1}',
    '"\\u0000"',
    "1.5",
)


#: Readers that hand bytes without a checksum of ours to libhdf5 (of our own features, where the damage took the
#: checksum away).
CRASHING = ("features", "other tools' features")
#: Slides with damaged headers, by :mod:`tests.fuzz_slides`.
FORMATS = ("Aperio SVS", "OME BigTIFF", "16-bit TIFF", "Hamamatsu NDPI", "DICOM")
#: What one input may take, what a process of many may take, and when a reader is given up.
SECONDS, MAX_BYTES, MAX_PROBLEMS = 10, 5 << 30, 20
KEPT = "fuzz-failures"


def mutate(data: bytes, rng: random.Random) -> bytes:
    """One input made of a valid one."""
    kind = rng.randrange(9)
    if kind == 0:
        return rng.randbytes(rng.randrange(300))
    out = bytearray(data)
    if kind == 1:
        return bytes(out[: rng.randrange(len(out) + 1)])
    if kind in (2, 3):
        for _ in range(rng.choice((1, 1, 2, 5, 30))):
            out[rng.randrange(len(out))] = rng.randrange(256)
        return bytes(out)
    if kind == 4:
        a, b = sorted(rng.randrange(len(out) + 1) for _ in range(2))
        return bytes(out[:a] + out[b:])
    if kind == 5:
        a, b = sorted(rng.randrange(len(out) + 1) for _ in range(2))
        at = rng.randrange(len(out) + 1)
        return bytes(out[:at] + out[a:b][:2000] + out[at:])
    text = data.decode("latin-1")
    found = list(re.finditer(r'(?<=[:\[,])\s*("(?:[^"\\]|\\.)*"|-?[\d.e+]+|true|false|null)', text))
    if not found:
        return bytes(out[: rng.randrange(len(out) + 1)])
    for hit in sorted(rng.sample(found, min(len(found), rng.choice((1, 1, 2, 4)))), key=lambda m: -m.start()):
        text = text[: hit.start()] + rng.choice(VALUES) + text[hit.end() :]
    # What carries a checksum is only read further without it.
    return re.sub(r',\s*"(content|rows)": ?("\w+"|\d+)', "", text).encode("latin-1")


def readers(folder: Path) -> dict[str, tuple[list[Path], Callable[[Path], object]]]:
    """name -> valid files, and what reads such a file."""
    os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported: a process that forks must have no threads
    import h5py
    import torch

    from lrmil_cli.encoders.spec import load_encoder
    from lrmil_cli.evaluation.predictions import read_predictions
    from lrmil_cli.files.features import read_features, write_features
    from lrmil_cli.files.foreign import read_bag
    from lrmil_cli.files.graphs import read_graph, write_graph
    from lrmil_cli.files.header import make_header, sealed, step
    from lrmil_cli.files.manifest import read_manifest
    from lrmil_cli.files.tables import read_table, write_table
    from lrmil_cli.heads import build_head
    from lrmil_cli.heads.checkpoint import load_head, save_head
    from lrmil_cli.matching.paired_slide import read_pairs
    from lrmil_cli.models.model_file import load_model, save_model
    from lrmil_cli.qupath.files import misnamed, read_documents
    from lrmil_cli.qupath.frame import qupath_frame
    from lrmil_cli.qupath.geojson import make_document
    from lrmil_cli.qupath.roi import read_roi
    from lrmil_cli.qupath.rules import describe_geojson
    from lrmil_cli.slides.tiles import TileSettings
    from lrmil_cli.training.teacher import read_teacher_header
    from tests.layouts import write_clam_coords, write_clam_features, write_stamp, write_trident

    slide = {
        "id": "s",
        "path": "/nowhere/s.svs",
        "width": 4000,
        "height": 3000,
        "mpp": 0.5,
        "mpp_source": "metadata",
        "vendor": "aperio",
        "fingerprint": "f",
    }
    history = [step("tile", {}, {})]
    tiles = {"mpp": 2.0, "tile_px": 256, "min_tissue": 0.1, "allow_upsample": False, "tissue": {}}
    box = {
        "x": np.array([0, 1024]),
        "y": np.array([0, 0]),
        "width": np.array([1024, 1024]),
        "height": np.array([1024, 1024]),
    }
    head_of = lambda kind, **more: make_header(kind, slide=slide, settings=tiles, history=history, **more)  # noqa: E731
    table = {**box, "col": np.array([0, 1]), "row": np.array([0, 0]), "tissue": np.array([0.5, 1.0])}
    write_table(folder / "a.tiles.csv", head_of("tiles", level=1), table)
    write_table(folder / "a.tiles.csv.gz", head_of("tiles", level=1), table)
    write_table(folder / "a.tiles.parquet", head_of("tiles", level=1), table)
    attention = {**box, "attention": np.array([0.3, 0.7]), "percentile": np.array([0.0, 100.0])}
    write_table(
        folder / "a.attention.csv",
        head_of("attention", prediction={"predicted": "a", "probabilities": {"a": 1.0}, "tiles": 2}),
        attention,
    )
    pair = {
        "lr_index": [0, 1],
        "hr_index": [0, 1],
        "lr_x": [0, 1024],
        "lr_y": [0, 0],
        "hr_x": [0, 1024],
        "hr_y": [0, 0],
        "cell_row": [0, 0],
        "cell_col": [0, 0],
    }
    write_table(
        folder / "a.pairs.csv",
        head_of("pairs", ratio=4, lr=head_of("tiles", level=1), hr=head_of("tiles", level=0)),
        {k: np.array(v) for k, v in pair.items()},
    )
    import pandas as pd

    write_table(
        folder / "a.predictions.csv",
        make_header("predictions", settings={}, history=history),
        pd.DataFrame(
            {
                "slide_id": ["a", "b"],
                "patient_id": ["a", "b"],
                "label": ["x", "y"],
                "fold": [1, 1],
                "predicted": ["x", "y"],
                "prob_x": [0.7, 0.2],
                "prob_y": [0.3, 0.8],
            }
        ),
    )
    (folder / "slides.csv").write_text(
        "slide,label,patient_id,split,mpp\na.svs,x,p1,train,0.5\nb.svs,y,p2,val,\n"
        "c.svs,x,p3,test,0.25\nd.svs,y,p4,train,\n"
    )
    features, coords = np.ones((2, 4), np.float32), np.array([[0, 0], [1024, 0]])
    write_features(folder / "a.h5", head_of("features", encoder={"name": "e"}, tiles=tiles), features, coords)
    write_trident(folder / "trident.h5", coords, features, size=(4000, 3000))
    write_clam_coords(folder / "clam.h5", coords)
    write_clam_features(folder / "clamf.h5", coords, features)
    write_stamp(folder / "stamp.h5", coords * 0.5, features)
    with h5py.File(folder / "object.h5", "w") as h5:
        h5.create_dataset("coords", data=np.array(["a", "b"], dtype=object), dtype=h5py.string_dtype())
    head = build_head("abmil", 8, 2, {"hidden": 4})
    save_head(
        folder / "head.safetensors",
        head,
        make_header("head", settings={}, history=history, fold=1, train=["a"], val=["b"], classes=["x", "y"]),
    )
    encoder = load_encoder("demo-vit", tile_px=64)
    whole = make_header(
        "model", settings={}, history=history, classes=["x", "y"], tiles=TileSettings(tile_px=64).as_json()
    )
    save_model(
        folder / "model.safetensors", whole, [encoder], [build_head("abmil", encoder.embed_dim, 2, {"hidden": 4})], [0]
    )
    # The header alone is what a reader takes apart; weights behind it only make the inputs large.
    data = (folder / "model.safetensors").read_bytes()
    (folder / "small.safetensors").write_bytes(data[: 8 + int.from_bytes(data[:8], "little") + 64])
    torch.save({"w": torch.zeros(2)}, folder / "w.pt")
    document = "".join(make_document(*read_table(folder / "a.attention.csv", "attention"), "tiles").pieces)
    (folder / "map.geojson").write_text(document)
    roi = {
        "type": "FeatureCollection",
        "features": [
            {
                "type": "Feature",
                "geometry": {"type": "Polygon", "coordinates": [[[0, 0], [900.5, 10], [900, 800], [0, 0]]]},
                "properties": {
                    "objectType": "annotation",
                    "name": "r",
                    "classification": {"name": "Tumor", "color": [200, 0, 0]},
                    "measurements": {"a": 1.5},
                },
            },
            {
                "type": "Feature",
                "geometry": {"type": "GeometryCollection", "geometries": [{"type": "Point", "coordinates": [1, 2]}]},
                "properties": None,
            },
        ],
    }
    (folder / "roi.geojson").write_text(json.dumps(roi))
    (folder / "roi.geojson.gz").write_bytes(gzip.compress(json.dumps(roi).encode()))
    teacher = make_header(
        "teacher",
        settings={},
        history=history,
        classes=["x", "y"],
        features="/nowhere",
        encoder={"name": "e"},
        tiles=tiles,
        in_dim=8,
        folds=1,
    )
    (folder / "teacher.json").write_text(json.dumps(sealed(teacher)))
    record = make_header(
        "prediction",
        slide=slide,
        settings={},
        history=history,
        model={"path": "m.safetensors", "digest": "d"},
        predicted="x",
        probabilities={"x": 0.6, "y": 0.4},
        tiles_read={"lr": 3, "hr": 0},
        seconds={"read": 1.0},
        escalation={"lr": {"probabilities": {"x": 0.6, "y": 0.4}, "agree": True, "confidence": 0.6}, "hr": None},
    )
    (folder / "s.prediction.json").write_text(json.dumps(sealed(record)))
    write_graph(folder / "g.onnx", b"body" * 20, whole)

    def teacher_of(path: Path) -> object:
        home = path.parent / "teacher"
        home.mkdir(exist_ok=True)
        (home / "teacher.json").write_bytes(path.read_bytes())
        return read_teacher_header(home)

    def roi_of(path: Path) -> object:
        return read_roi(path, slide, qupath_frame(slide, "auto", None))

    at = lambda *names: [folder / n for n in names]  # noqa: E731
    return {
        "tile tables": (at("a.tiles.csv", "a.tiles.csv.gz"), lambda p: read_table(p, "tiles")),
        "Parquet": (at("a.tiles.parquet"), lambda p: read_table(p, "tiles")),
        "attention to GeoJSON": (
            at("a.attention.csv"),
            lambda p: [*make_document(*read_table(p, "attention"), "tiles").pieces],
        ),
        "pairs": (at("a.pairs.csv"), read_pairs),
        "predictions": (at("a.predictions.csv"), lambda p: read_predictions(str(p))),
        "prediction JSON": (at("s.prediction.json"), lambda p: read_predictions(str(p))),
        "manifest": (at("slides.csv"), lambda p: read_manifest(p, need_labels=True)),
        "features": (at("a.h5"), read_features),
        "other tools' features": (
            at("trident.h5", "clam.h5", "clamf.h5", "stamp.h5", "object.h5"),
            lambda p: read_bag(p, 0.5),
        ),
        "head file": (at("head.safetensors"), load_head),
        "model header": (at("small.safetensors"), load_model),
        "encoder weights": (
            at("w.pt", "small.safetensors"),
            lambda p: load_encoder(f"vit_tiny_patch16_224@{p}", tile_px=64),
        ),
        "regions of QuPath": (at("roi.geojson", "roi.geojson.gz"), roi_of),
        "any GeoJSON": (
            at("map.geojson", "roi.geojson"),
            lambda p: describe_geojson(read_documents(p, []), str(p), misnamed(p)),
        ),
        "teacher.json": (at("teacher.json"), teacher_of),
        "ONNX graph": (at("g.onnx"), read_graph),
    }


class Late(BaseException):
    """An input took too long. No ``Exception``: what libraries raise is caught on the way, and this must not be."""


def attack(name: str, inputs: range, seed: int, folder: str, at, refused, wrong) -> None:
    """Feed inputs to one reader, in this process; ``at`` and ``refused`` are counters and ``wrong`` a queue that
    outlive it."""
    import warnings

    from lrmil_cli.errors import LrmilError

    warnings.simplefilter("ignore")
    _limit_memory()

    def late(*_: object) -> None:
        raise Late(f"took longer than {SECONDS} seconds")

    signal.signal(signal.SIGALRM, late)
    quiet = open(os.devnull, "w")  # noqa: SIM115
    home = Path(folder)
    (home / "trial").mkdir()
    files, read, damage = _reader(name, home / "valid")
    valid = [(f, f.read_bytes()) for f in files]
    for file, _ in valid:
        try:
            read(file)
        except LrmilError:
            pass
    problems = 0
    for n in inputs:
        at.value = n
        rng = random.Random(f"{seed}/{name}/{n}")
        file, data = rng.choice(valid)
        trial = home / "trial" / f"{name.replace(' ', '-')}-{n}{''.join(file.suffixes)}"
        trial.write_bytes(damage(file, data, rng))
        signal.alarm(SECONDS)
        # A library that never returns hears no signal.
        faulthandler.dump_traceback_later(2 * SECONDS, exit=True, file=quiet)
        try:
            read(trial)
        except LrmilError:
            refused.value += 1
        except BaseException as e:
            wrong.put(f"input {n}: {type(e).__name__}: {' '.join(str(e).split())[:160]} ({_keep(trial)})")
            problems += 1
            if problems == MAX_PROBLEMS:
                return
        finally:
            signal.alarm(0)
            faulthandler.cancel_dump_traceback_later()
        trial.unlink()


def _reader(name: str, folder: Path) -> tuple[list[Path], Callable[[Path], object], Callable[..., bytes]]:
    """Valid files in ``folder``, what reads such a file, and what makes an input of one."""
    folder.mkdir()
    if name not in FORMATS:
        return *readers(folder)[name], lambda file, data, rng: mutate(data, rng)
    from tests import fuzz_slides

    files = fuzz_slides.write_slides(folder)[name]
    spots = {file: fuzz_slides.header_spots(file) for file in files}
    return files, fuzz_slides.read_slide, lambda file, data, rng: fuzz_slides.damage(data, spots[file], rng)


def _limit_memory() -> None:
    try:
        import resource
    except ImportError:  # Windows
        return
    resource.setrlimit(resource.RLIMIT_AS, (MAX_BYTES, MAX_BYTES))


def _keep(trial: Path) -> Path:
    Path(KEPT).mkdir(exist_ok=True)
    return Path(shutil.copy(trial, KEPT))


def fuzz(names: list[str], inputs: range, seed: int = 0, say: Callable[[str], None] = lambda text: None) -> list[str]:
    """Attack readers with these inputs each; returns what went wrong. For a process in which torch has done nothing
    yet."""
    context = multiprocessing.get_context("fork")
    wrong = []
    for name in names:
        problems: list[str] = []
        crashes, left = 0, inputs
        at, refused, found = context.Value("q", 0), context.Value("q", 0), context.SimpleQueue()
        while left:
            at.value = left.start
            with tempfile.TemporaryDirectory() as folder:
                process = context.Process(target=attack, args=(name, left, seed, folder, at, refused, found))
                process.start()
                process.join()
                while not found.empty():
                    problems.append(found.get())
                if process.exitcode == 0:
                    break
                crashes += 1
                if name not in CRASHING:
                    trial = next((Path(folder) / "trial").iterdir(), None)
                    problems.append(
                        f"input {at.value}: the process ended with {process.exitcode} ({trial and _keep(trial)})"
                    )
            if len(problems) >= MAX_PROBLEMS or crashes > 200:
                break
            left = range(at.value + 1, inputs.stop)
        done = at.value + 1 - inputs.start
        say(
            f"{name:<24}{done:>8} inputs, {refused.value:>8} refused, "
            f"{done - refused.value - len(problems) - (crashes if name in CRASHING else 0):>8} read"
            + (f", {crashes} stopped libhdf5" if crashes and name in CRASHING else "")
            + "".join(f"\n   FAILED: {problem}" for problem in problems)
        )
        wrong += [f"{name}: {problem}" for problem in problems]
    return wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("inputs", nargs="?", type=int, default=100_000, help="shared out over the readers")
    parser.add_argument("seed", nargs="?", type=int, default=0)
    parser.add_argument("--only", help="names of readers, with commas; or `slides`, all of these")
    parser.add_argument("--first", type=int, default=0, help="number of the first input of each reader")
    options = parser.parse_args()
    if options.only == "slides":
        names = list(FORMATS)
    elif options.only:
        names = options.only.split(",")
    else:
        with tempfile.TemporaryDirectory() as temporary:
            names = [*FORMATS, *readers(Path(temporary))]
    share = range(options.first, -(-options.inputs // len(names)))
    sys.exit("\n".join(fuzz(names, share, options.seed, say=lambda t: print(t, flush=True))) or 0)


if __name__ == "__main__":
    main()
