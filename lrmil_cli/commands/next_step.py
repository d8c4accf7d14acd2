"""What one types next: after each command the line that takes up what it made.

What the command cannot know has the names of the README (``slides.csv``, ``tiles-lr``, the encoder ``uni``), unless a
folder beside the output says better.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lrmil_cli.errors import InputError
from lrmil_cli.files.spreadsheet import SUFFIXES as SPREADSHEETS
from lrmil_cli.files.tables import list_tables, read_table_header

Line = list[str] | None

#: mpp that separates the two sides.
BETWEEN = 1.0
#: Side of a tile in px where nothing else is said.
USUAL_PX = 256
#: Folders beside an output that are looked into.
MOST = 50


def after_tile(slides: Sequence[str], output: str, mpp: float, tile_px: int = USUAL_PX) -> Line:
    """The other side's tiles, as many px wide, or if they are there ``match``."""
    folder = Path(output)
    if output == "-" or "-" in slides:
        return None
    low = mpp >= BETWEEN
    side, other = ("hr", 0.5) if low else ("lr", 2.0)
    tile = ["tile", *slides, "--mpp", f"{other}", *([] if tile_px == USUAL_PX else ["--tile-px", str(tile_px)])]
    if not folder.is_dir():
        stem = folder.name.partition(".")[0]
        return [*tile, "-o", str(folder.with_name(f"{stem}-{side}.tiles.csv"))]
    there = _tiles_beside(folder, low=not low)
    if there is None:
        return [*tile, "-o", str(folder.parent / f"tiles-{side}")]
    both = map(str, (folder, there) if low else (there, folder))
    return ["match", *both, "-o", str(folder.parent / "pairs")]


def after_match(output: str) -> Line:
    if output == "-" or not Path(output).is_dir():
        return None
    return _distil(output, "uni", Path(output).parent)


def after_embed(output: str) -> Line:
    folder = Path(output)
    if not folder.is_dir():
        return None
    return ["train-teacher", "slides.csv", "--features", output, "-o", str(folder.parent / "teacher")]


def after_encoder(output: str, spec: str, manifest: str | None) -> Line:
    """The teacher, or if it is there the student."""
    folder = Path(output).parent
    manifest = manifest or "slides.csv"
    teacher = _beside(folder, "teacher.json")
    if teacher is not None:
        return _student(manifest, folder, str(teacher), output)
    tiles = _tiles_beside(folder / "-", low=False) or folder / "tiles-hr"
    return ["train-teacher", manifest, "--tiles", str(tiles), "--encoder", spec, "-o", str(folder / "teacher")]


def after_teacher(manifest: str, output: str, head: str, spec: str | None) -> Line:
    """Stage 1 where no distilled encoder is there, else the student; of DMIN heads the student that picks tiles."""
    folder = Path(output).parent
    if head == "dmin":
        return [*_student(manifest, folder, output, spec or "uni", "ahdmil.safetensors"), "--method", "ahdmil"]
    own = sorted(p for p in folder.glob("lr-encoder*.safetensors"))
    if not own:
        pairs = _pairs_beside(folder) or folder / "pairs"
        return _distil(str(pairs), spec or "uni", folder)
    fold = "{fold}".join(own[0].name.rsplit("1", 1)) if ".fold1." in own[0].name else own[0].name
    return _student(manifest, folder, output, str(folder / fold))


def after_student(manifest: str, output: str) -> Line:
    return ["predict", manifest, "-m", output, "-o", str(Path(output).parent / "results"), "--report"]


def after_predict(slides: Sequence[str], output: str, *, pages: bool, maps: bool) -> Line:
    """Pages to look at, then maps, then an evaluation where labels are known."""
    if output == "-":
        return None
    if not pages:
        return ["report", output]
    beside = Path(output).parent
    if not maps:
        return ["export-geojson", output, "-o", str(beside / "maps")]
    if len(slides) == 1 and slides[0].lower().endswith(SPREADSHEETS):
        return ["evaluate", output, "--slides", slides[0], "-o", str(beside / "evaluation")]
    return None


def after_report(results: str) -> Line:
    return ["export-geojson", results, "-o", str(Path(results).parent / "maps")]


def after_model(output: str) -> Line:
    """Of a model that was changed: predictions by it."""
    return ["predict", "slides/", "-m", output, "-o", str(Path(output).parent / "results"), "--report"]


def _distil(pairs: str, spec: str, folder: Path) -> list[str]:
    return ["distill-encoder", pairs, "--encoder", spec, "-o", str(folder / "lr-encoder.safetensors")]


def _student(manifest: str, folder: Path, teacher: str, encoder: str, output: str = "model.safetensors") -> list[str]:
    tiles = _tiles_beside(folder / "-", low=True) or folder / "tiles-lr"
    pairs = _pairs_beside(folder) or folder / "pairs"
    return ["distill-student", manifest, "--tiles", str(tiles), "--pairs", str(pairs), "--teacher", teacher] + [
        "--encoder",
        encoder,
        "-o",
        str(folder / output),
    ]


def _folders(folder: Path) -> list[Path]:
    try:
        return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))[:MOST]
    except OSError:
        return []


def _beside(folder: Path, name: str) -> Path | None:
    return next((p for p in _folders(folder) if (p / name).is_file()), None)


def _pairs_beside(folder: Path) -> Path | None:
    return next((p for p in _folders(folder) if list_tables(p, "pairs")), None)


def _tiles_beside(output: Path, *, low: bool) -> Path | None:
    """A folder beside ``output`` with tiles of the low side, or of the high one."""
    for folder in _folders(output.parent):
        if folder == output:
            continue
        try:
            for path in list_tables(folder, "tiles").values():
                if (read_table_header(path, "tiles")["settings"]["mpp"] >= BETWEEN) == low:
                    return folder
                break
        except (InputError, OSError):
            continue
    return None
