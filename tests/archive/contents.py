"""What an archive promises: written to expected.json when it is made, looked up again ever after."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from lrmil_cli.app import run
from lrmil_cli.heads import Bag, PyramidBag
from lrmil_cli.heads.checkpoint import load_head

#: For people, or not written by a command. Every other file must be known to ``lrmil info``.
NOT_FOR_INFO = {".png", ".html", ".md", ".py", "expected.json", "encoder/config.json"}
#: What of ``lrmil info`` is kept.
OF_INFO = ("kind", "version", "method", "classes", "rows", "columns", "shape", "slides", "objects", "width", "height")


def all_of(folder: Path) -> dict[str, Any]:
    """Of every file what ``lrmil info`` says, of every prediction and head the numbers."""
    return {
        "files": {name: info(folder / name) for name in names(folder)},
        "predictions": {p.name: predictions(p) for p in sorted((folder / "predictions").iterdir())},
        "heads": {p.stem: head(p, folder / "heads" / "bag.safetensors") for p in head_files(folder)},
    }


def dumps(expected: dict[str, Any]) -> str:
    """As JSON, with a list of numbers or words on one line."""
    text = json.dumps(expected, indent=1)
    return re.sub(r"\[[^\[\]{}]*\]", lambda found: " ".join(found[0].split()), text) + "\n"


def names(folder: Path) -> list[str]:
    """Files, and folders of teachers, that ``lrmil info`` must know, relative to ``folder``."""
    found = [p for p in folder.rglob("*") if p.is_file() or (p / "teacher.json").exists()]
    found = [p for p in found if "__pycache__" not in p.parts]
    return sorted(n for p in found if not {n := p.relative_to(folder).as_posix(), p.suffix} & NOT_FOR_INFO)


def info(path: Path) -> dict[str, Any]:
    """Of what ``lrmil info`` says of a file: its kind, how much is in it, by which commands it came."""
    with contextlib.redirect_stdout(io.StringIO()) as out:
        code = run(["info", str(path), "--json"])
    assert code == 0, path
    said = json.loads(out.getvalue())
    kept = {k: said[k] for k in OF_INFO if k in said}
    return {**kept, "steps": [h["command"] for h in said["history"]]} if "history" in said else kept


def predictions(folder: Path) -> dict[str, Any]:
    """Of each slide in a folder of ``lrmil predict`` the answer, what was read, and the attention of each table."""
    return {p.name.removesuffix(".prediction.json"): _prediction(p) for p in sorted(folder.glob("*.prediction.json"))}


def _prediction(path: Path) -> dict[str, Any]:
    record, slide = json.loads(path.read_text(encoding="utf-8")), path.name.removesuffix(".prediction.json")
    tables = {p.name.removeprefix(f"{slide}."): columns(p) for p in sorted(path.parent.glob(f"{slide}.*csv"))}
    answer = {k: record[k] for k in ("predicted", "probabilities", "tiles_read", "runtime")}
    attention = {name: list(map(float, rows["attention"])) for name, rows in tables.items()}
    return {**answer, "uncertain": "uncertain" in record, "attention": attention}


def columns(table: Path) -> dict[str, list[str]]:
    """The columns of a CSV table, as text, without lrmil's own reader."""
    lines = (line for line in table.read_text(encoding="utf-8").splitlines() if not line.startswith("#"))
    rows = list(csv.DictReader(lines))
    return {name: [row[name] for row in rows] for name in rows[0]}


def head_files(folder: Path) -> list[Path]:
    return sorted(p for p in (folder / "heads").iterdir() if p.name != "bag.safetensors")


def head(path: Path, bag_file: Path) -> dict[str, Any]:
    """Logits and attention of a head on the fixed bag."""
    loaded, t = load_head(path)[1], load_file(bag_file)
    plain, pyramid = Bag(t["features"], t["coords"]), PyramidBag((t["features"], t["deeper"]), (t["children"],))
    with torch.inference_mode():
        out = loaded(*(pyramid if loaded.takes == "pyramid" else plain))
    return {"name": loaded.name, "logits": _plain(out.logits), "attention": _plain(out.attention)}


def _plain(values: torch.Tensor) -> list[float]:
    return [float(f"{v:.8g}") for v in values.tolist()]
