"""Stage 1 as a whole: which slides train and validate, the run, the encoder file with its history."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd
import torch

from lrmil_cli.distill.encoder_training import distill
from lrmil_cli.distill.learner import paired_blocks
from lrmil_cli.distill.settings import Stage1Settings
from lrmil_cli.distill.slide_pairs import SlidePairs, drawn, find_pairs
from lrmil_cli.distill.small_student import about_student, origin
from lrmil_cli.distributed import World
from lrmil_cli.encoders.encoder_file import save_encoder
from lrmil_cli.encoders.spec import absolute_spec
from lrmil_cli.encoders.vit import Encoder
from lrmil_cli.errors import InputError, UsageError
from lrmil_cli.files.foreign import read_bag
from lrmil_cli.files.header import digest, last_digest, make_header, step, up_to_date
from lrmil_cli.files.manifest import Manifest
from lrmil_cli.files.patients import patients_of
from lrmil_cli.files.tables import list_tables, write_table
from lrmil_cli.files.tensors import load_tensors
from lrmil_cli.matching.paired_slide import only_readable
from lrmil_cli.matching.tile_rows import align
from lrmil_cli.targets.task import PATIENT
from lrmil_cli.training.curves import plot_curves
from lrmil_cli.training.folds import fold_names, members
from lrmil_cli.training.follow_teacher import folds_like
from lrmil_cli.training.patients import slide_folds
from lrmil_cli.training.teacher import Teacher, read_teacher

#: Without a fold, one slide in ten validates (distill/README 4.3).
VAL_SHARE = 10


@dataclass
class Cohort:
    """Paired slides of a run, split.

    Attributes:
        slides: all of them; train, val: which train and validate; fold: of the manifest, None without one.
        teacher: where its folds or its attention are wanted; left_out: of ``pairs`` HR tiles, those that teach nothing.
    """

    slides: list[SlidePairs]
    train: list[SlidePairs]
    val: list[SlidePairs]
    fold: int | None
    teacher: Teacher | None
    pairs: int
    left_out: int


@dataclass
class Result:
    """For the summary line: was it there already, text, numbers."""

    there: bool
    text: str
    numbers: dict[str, Any]


def collect(
    pairs: list[str],
    manifest: Manifest | None,
    fold: int | None,
    folds: int,
    teacher: str | None,
    seed: int,
    places: Mapping[str, Path] = MappingProxyType({}),
) -> Cohort:
    """Read the pairs tables and split the slides.

    Args:
        manifest: of ``fold``, both None without one; places: where slides may be now, by their ids.

    Raises:
        InputError: no tables, mixed ratios or scales, a fold that does not exist, a slide of the fold without pairs, or
            with HR tiles that lie off the LR grid everywhere.
    """
    paths: dict[str, Path] = {}
    for arg in pairs:
        found = list_tables(arg, "pairs") if Path(arg).is_dir() else {arg: Path(arg)}
        if not found:
            raise InputError(f"{arg}: no pairs tables (*.pairs.csv) in this folder; make them with `lrmil match`")
        if double := sorted(paths.keys() & found.keys()):
            raise InputError(f"{arg}: pairs of slide {double[0]} were given before; give each slide once")
        paths |= found
    found_pairs = [find_pairs(p, places) for p in paths.values()]
    slides, left_out = [s for s, _ in found_pairs], sum(n for _, n in found_pairs)
    number = left_out + sum(s.targets for s in slides)
    by_id = {s.slide_id: s for s in slides}
    if len(by_id) < len(slides):
        raise InputError("two pairs tables are of the same slide; give each slide once")
    first = slides[0]
    for s in slides:
        for side in ("lr", "hr"):
            if s.ratio != first.ratio or _scale(s, side) != _scale(first, side):
                raise InputError(
                    f"pairs of {s.slide_id} and {first.slide_id} differ in mpp, tile size or ratio; "
                    "tile all slides alike"
                )
    guide = read_teacher(teacher) if teacher else None
    if manifest is None:
        order = np.random.default_rng(seed).permutation(len(slides))
        held = set(order[: max(1, len(slides) // VAL_SHARE)].tolist()) if len(slides) > 1 else set()
        train = [s for i, s in enumerate(slides) if i not in held]
        val = [s for i, s in enumerate(slides) if i in held]
        return Cohort(slides, train, val, None, guide, number, left_out)
    whose = patients_of(manifest) if guide is not None and guide.bag == PATIENT else manifest
    table = slide_folds(whose, folds_like(whose, guide, folds, seed))
    names = fold_names(table)
    if fold is None or fold > len(names):
        raise UsageError(f"--fold {fold}: {guide.path if guide else manifest.path} has folds 1 to {len(names)}")
    parts = members(table, names[fold - 1])
    missing = [s for s in parts["train"] + parts["val"] if s not in by_id]
    if missing:
        raise InputError(
            f"slide {missing[0]} of fold {fold} has no pairs table ({len(missing)} missing); make it with `lrmil match`"
        )
    train, val = ([by_id[s] for s in parts[p]] for p in ("train", "val"))
    return Cohort(train + val, train, val, fold, guide, number, left_out)


def _scale(paired: SlidePairs, side: str) -> tuple[Any, ...]:
    """What must be alike in all slides.

    The mpp of another tool's tiles follows the scanner; there the ratio holds it in bounds.
    """
    s = paired.header[side]["settings"]
    return s["tile_px"], s.get("made_by"), None if "side_level0_px" in s else s["mpp"]


def run(
    cohort: Cohort,
    teacher: Encoder,
    spec: str,
    settings: Stage1Settings,
    output: Path,
    *,
    cache: Path,
    device: torch.device,
    overwrite: bool,
    say: Callable[[str], None],
    workers: int | None = None,
    world: World = World(),
    on_bad_tile: str = "fail",
    student: tuple[Encoder, str] | None = None,
) -> Result:
    """Distil, and write ``output`` with ``<output>.curves.csv`` and ``.png`` beside it.

    Args:
        teacher: the HR encoder; spec: what it was loaded from, kept so that the undistilled encoder can be found again.
        world: processes that train together; the first one writes.
        student: a smaller encoder that is to learn, and what it was loaded from; None for a copy of the teacher.
        on_bad_tile: ``fail``, or ``skip``: all tiles are read once before, and what cannot be decoded teaches nothing.

    Raises:
        UsageError: the output is there and was made otherwise; InputError, MachineError: as the parts.
    """
    own = {
        **settings.as_json(),
        "encoder": teacher.digest(),
        "fold": cohort.fold,
        "train": [s.slide_id for s in cohort.train],
        "val": [s.slide_id for s in cohort.val],
    }
    small, small_spec = student or (None, "")
    if small is not None:
        own["student"] = small.digest()
    if world.size > 1:
        own["processes"] = world.size
    if on_bad_tile == "skip":
        own["on_bad_tile"] = on_bad_tile
    inputs = {f"pairs/{s.slide_id}": last_digest(s.header) for s in cohort.slides}
    if settings.final_loss == "attention":
        assert cohort.teacher is not None, "the command asks for one"
        inputs["teacher"] = last_digest(cohort.teacher.header)
    wanted = digest(own, inputs)
    if up_to_date(output, wanted, lambda p: load_tensors(p, "encoder")[0], overwrite):
        return Result(True, "up to date", {})
    if on_bad_tile == "skip":
        for slides in (cohort.train, cohort.val):
            slides[:] = [s.narrowed(partial(only_readable, workers=workers, say=say)) for s in slides]
    if settings.max_tiles_per_slide:
        draw = partial(drawn, regions=settings.max_tiles_per_slide, seed=settings.seed)
        for slides in (cohort.train, cohort.val):
            slides[:] = [s.narrowed(draw) if s.regions > settings.max_tiles_per_slide else s for s in slides]
    attention = teacher_attention(cohort) if settings.final_loss == "attention" else None
    say(
        f"{len(cohort.train)} slides train, {len(cohort.val) or 'a tenth of the tiles of them'} validate, "
        f"{sum(s.regions for s in cohort.train)} LR tiles, blocks {', '.join(map(str, settings.layers))}"
        + ("" if small is None else f" by the student's {_blocks(settings, teacher, small)}")
    )
    result = distill(
        teacher,
        cohort.train,
        cohort.val,
        settings,
        cache=cache,
        key=wanted,
        device=device,
        attention=attention,
        workers=workers,
        world=world,
        say=say,
        student=small,
    )
    start, best = result.curves[0], result.curves[result.best_epoch]
    numbers = {
        "epochs": len(result.curves) - 1,
        "best_epoch": result.best_epoch,
        "val_loss": best["val_loss"],
        "val_loss_start": start["val_loss"],
        "ratio_to_start": best["val_loss"] / max(start["val_loss"], 1e-30),
    }
    text = (
        f"validation loss {start['val_loss']:.4g} -> {best['val_loss']:.4g} "
        f"({numbers['ratio_to_start']:.0%} of the start) at epoch {result.best_epoch} of {numbers['epochs']}"
    )
    if not world.first:
        return Result(False, text, numbers)
    hr, lr = (cohort.slides[0].header[k]["settings"] for k in ("hr", "lr"))
    info = result.encoder.info
    about = {
        "mpp_hr": hr["mpp"],
        "mpp_lr": lr["mpp"],
        "tile_px": lr["tile_px"],
        "ratio": cohort.slides[0].ratio,
        **settings.as_json(),
        **numbers,
        "fold": cohort.fold,
        "base_spec": absolute_spec(spec),
        **({} if small is None else about_student(small, teacher, absolute_spec(small_spec), settings.layers)),
        **_seen(cohort, settings, [e.info.distilled or {} for e in (teacher, small) if e is not None]),
        "start": start,
        "best": best,
    }
    fields = {"base": info.base or info.name} if small is None else origin(small, teacher)
    result.encoder.info = replace(info, **{**fields, "name": output.name, "mpp": lr["mpp"], "distilled": about})
    history = [step("distill-encoder", own, inputs)]
    curves = pd.DataFrame([{"fold": cohort.fold or 0, **row} for row in result.curves])
    path = output.with_name(output.stem + ".curves.csv")
    write_table(path, make_header("curves", settings={}, history=history), curves)
    cosines = [f"val_cosine_{l}" for l in settings.layers]
    plot_curves(
        path.with_suffix(".png"),
        curves,
        [("loss on tiles", ["val_loss", "train_loss"]), ("likeness to what 20x shows (cosine), validation", cosines)],
        {cohort.fold or 0: result.best_epoch},
    )
    save_encoder(output, result.encoder, history, own)  # last: it marks the run as complete
    result.checkpoint.unlink(missing_ok=True)
    return Result(False, text, numbers)


def _blocks(settings: Stage1Settings, teacher: Encoder, student: Encoder) -> str:
    return ", ".join(map(str, paired_blocks(settings.layers, teacher.depth, student.depth)))


def _seen(cohort: Cohort, settings: Stage1Settings, before: list[dict[str, Any]]) -> dict[str, list[str]]:
    """Every slide whose pixels decided the weights, and every one whose label did.

    A label does by the attention of a teacher that was trained on it. Stage 2 checks its test slides against both
    (training/README 5.2).

    Args:
        before: of encoders that it comes from, where they are themselves distilled.
    """
    own = [s.slide_id for s in cohort.slides]
    labels = own if settings.final_loss == "attention" else []
    return {
        key: list(dict.fromkeys([*new, *(s for b in before for s in b.get(key, []))]))
        for key, new in (("slides", own), ("label_slides", labels))
    }


def teacher_attention(cohort: Cohort) -> dict[str, np.ndarray]:
    """Softmax attention of the fold's teacher head on each target row, of training and validation slides only.

    Raises:
        InputError: HR features are missing, or of other tiles.
    """
    assert cohort.teacher is not None and cohort.fold is not None, "the command asks for both"
    header, head = cohort.teacher.head(cohort.fold)
    allowed = set(header["train"]) | set(header["val"])
    out = {}
    for slide in cohort.train + cohort.val:
        if slide.slide_id not in allowed:
            raise InputError(
                f"slide {slide.slide_id} is a test slide of fold {cohort.fold}; its attention must not be used"
            )
        paired = slide.read()
        path = cohort.teacher.features / f"{paired.slide_id}.h5"
        hr = read_bag(path, paired.header["hr"]["slide"]["mpp"])
        rows = align(paired, hr.coords, hr.header, str(path))
        with torch.inference_mode():
            attention = head(torch.from_numpy(hr.features), torch.from_numpy(hr.coords)).attention.numpy()
        out[paired.slide_id] = np.where(rows >= 0, attention[rows], 0).astype(np.float32)
    return out
