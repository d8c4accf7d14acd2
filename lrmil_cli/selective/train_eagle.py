"""EAGLE for a cohort (selective/README 8): the mean of what a picker's attention picks, and a classifier a fold."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from lrmil_cli.encoders.aliases import licence_warning
from lrmil_cli.encoders.embed import features_settings
from lrmil_cli.encoders.spec import load_encoder
from lrmil_cli.errors import InputError, UsageError
from lrmil_cli.evaluation.training_slides import held_out_folds
from lrmil_cli.files.features import BagFile
from lrmil_cli.files.header import digest, last_digest, make_header, step, up_to_date
from lrmil_cli.files.manifest import Manifest
from lrmil_cli.files.tables import find_table
from lrmil_cli.files.tensors import load_tensors, read_tensor_header
from lrmil_cli.heads import Bag
from lrmil_cli.matching.paired_slide import PairedSlide, check_alike, check_made_from, read_pairs
from lrmil_cli.matching.tile_rows import align, find_rows
from lrmil_cli.models.model_file import Model, load_model, save_model
from lrmil_cli.selective.beside import write_beside
from lrmil_cli.selective.model_parts import picker_parts
from lrmil_cli.selective.picked_tiles import pick_tiles
from lrmil_cli.selective.train_zoommil import Result, features_of
from lrmil_cli.targets.task import PATIENT, bag_of
from lrmil_cli.training import crossval, out_of_fold
from lrmil_cli.training.bags import Bags, embed_cohort, tile_tables
from lrmil_cli.training.cohort_record import looks_of, record_of
from lrmil_cli.training.crossval import HeadSpec
from lrmil_cli.training.fixture import add_fixture, painted
from lrmil_cli.training.folds import fold_names, members, with_intervals
from lrmil_cli.training.follow_teacher import check_classes, features_folder, folds_like
from lrmil_cli.training.leaks import check_no_label_leak, patients_by_slide
from lrmil_cli.training.loop import TrainSettings
from lrmil_cli.training.streamed import Room, Streamed
from lrmil_cli.training.teacher import manifest_digest, read_teacher


@dataclass
class Sides:
    """What the picks are made of, in the order of the manifest.

    Attributes:
        low: LR bags of each encoder of the picker; high: HR features; paired: which HR tiles lie in which LR tile.
    """

    low: list[Bags[Bag]]
    high: list[BagFile]
    paired: list[PairedSlide]


def train_eagle(
    manifest: Manifest,
    *,
    tiles: str,
    pairs: str,
    encoder: str,
    features: str | None,
    lr_features: Path,
    teacher: str | None,
    picker: str,
    top: int,
    head: HeadSpec,
    training: TrainSettings,
    folds: int,
    input_size: int | None,
    embedding: str | None,
    output: Path,
    device: torch.device,
    batch_size: int | None,
    overwrite: bool,
    say: Callable[[str], None],
    warn: Callable[[str], None],
    room: Room,
    workers: int | None = None,
    on_bad_tile: str = "fail",
    dtype: str | None = None,
) -> Result:
    """Train a classifier a fold on what the picker's head of that fold picks, and write the model file.

    Args:
        tiles: folder of LR tile tables; encoder: of the HR tiles; features: of them, None for those of the teacher.
        picker: model file of LRMIL; top: HR tiles that it picks of a slide.
        room: that bags may be kept in.

    Raises:
        UsageError, InputError, MachineError: as the parts; a picker of other tiles or folds, pairs without tissue.
    """
    guide = read_teacher(teacher) if teacher else None
    if guide is not None:
        check_classes(guide, manifest)
    highest = features_folder(features, guide)
    table = folds_like(manifest, guide, folds, training.seed)
    manifest = manifest if guide else with_intervals(manifest, table)
    tables = tile_tables(manifest, tiles)
    chooser = load_model(picker)
    if bag_of(chooser.header) == PATIENT:
        raise UsageError(f"--picker {picker}: a model of patients; take one that was trained on slides")
    _check_tiles(picker, chooser, tiles, tables[0][1]["settings"])
    _check_folds(picker, chooser, manifest, table)
    ids = [e.slide_id for e in manifest]
    paired = [_pairs(pairs, i, header) for i, (_, header) in zip(ids, tables)]
    check_alike(paired, pairs)
    hr_tiles = paired[0].header["hr"]["settings"]
    loaded = load_encoder(encoder, tile_px=hr_tiles["tile_px"], input_size=input_size, embedding=embedding, warn=warn)
    for note in dict.fromkeys(licence_warning(e.info) for e in (loaded, *chooser.encoders)):
        if note:
            warn(note)
    high = [features_of(highest / f"{i}.h5", features_settings(loaded)["encoder"], encoder) for i in ids]
    names = [f"fold{n + 1}" for n in range(len(chooser.encoders))] if len(chooser.encoders) > 1 else [""]
    low = [
        embed_cohort(
            e,
            manifest,
            tables,
            lr_features / name,
            device=device,
            room=room,
            batch_size=batch_size,
            workers=workers,
            on_bad_tile=on_bad_tile,
            dtype=dtype,
            overwrite=overwrite,
            say=say,
        )
        for e, name in zip(chooser.encoders, names)
    ]
    own = {
        "method": "eagle",
        "top": top,
        "head": head.name,
        "options": head.options,
        **training.as_json(),
        "folds": table.to_dict("list"),
        **out_of_fold.target_of(manifest.task),
        "encoder": loaded.digest(),
        "picker": last_digest(chooser.header),
    }
    inputs = {
        "manifest": manifest_digest(manifest),
        **{f"lr{n}/{i}": last_digest(h) for n, b in enumerate(low) for i, h in zip(ids, b.headers)},
        **{f"hr/{i}": last_digest(f.header) for i, f in zip(ids, high)},
        **{f"pairs/{i}": last_digest(p.header) for i, p in zip(ids, paired)},
    }
    if up_to_date(output, digest(own, inputs), lambda p: load_tensors(p, "model")[0], overwrite):
        return Result(True, read_tensor_header(output, "model")["metrics"], "up to date")
    means = picked_means(chooser, Sides(low, high, paired), top, device)

    def bags(fold: int) -> Bags[Bag]:
        one = [Bag(m[fold - 1].unsqueeze(0), torch.zeros(1, 2, dtype=torch.int64)) for m in means]
        return Bags(Streamed(one.__getitem__, [1] * len(one), loaded.embed_dim, room, device), low[0].headers)

    by_fold = {k: bags(k) for k in range(1, len(fold_names(table)) + 1)}
    results = crossval.train_folds(manifest, table, by_fold.__getitem__, head, training, who="EAGLE", say=say)
    rows, pooled = out_of_fold.score(manifest, results)
    history = [step("distill-student", own, inputs)]
    rest, about = picker_parts(chooser)
    # What slides look like is what the picker's first encoder sees, to the folds that read it.
    of_first = [k for k, own in enumerate(_heads_of(chooser), 1) if chooser.encoder_of[own[0]] == 0]
    first = low[0].all
    header = make_header(
        "model",
        settings={k: v for k, v in own.items() if k != "folds"},
        history=history,
        method="eagle",
        **record_of(manifest, table, low[0].headers, results, results, (rows, pooled)),
        tiles=tables[0][1]["settings"],
        hr_tiles=hr_tiles,
        ratio=paired[0].ratio,
        picker=about,
        attention_kind=chooser.header["attention_kind"],
        **looks_of(manifest, table, lambda i: first.once(i).features.cpu().numpy(), of_first),
        license=" and ".join(dict.fromkeys(e.info.license for e in (loaded, *chooser.encoders))),
    )
    write_beside(output, history, manifest, out_of_fold.predictions_table(manifest, results), rows, results)
    classifiers, of = [r.fit.head for r in results], [0] * len(results)
    rest |= add_fixture(header, [loaded], classifiers, of, painted(hr_tiles["tile_px"]))
    save_model(output, header, [loaded], classifiers, of, rest)
    return Result(False, pooled, out_of_fold.summary("eagle", rows, len(results), manifest.task))


def picked_means(chooser: Model, sides: Sides, top: int, device: torch.device) -> list[torch.Tensor]:
    """Of each slide float32 [F, D]: the mean of the HR features that each fold's head picks (or heads, by their mean).

    Raises:
        InputError: a slide without any HR tile in an LR tile, or pairs of other tiles than its features.
    """
    chooser.to(device)
    heads = _heads_of(chooser)
    out = []
    for n, (file, paired) in enumerate(zip(sides.high, sides.paired)):
        corners = sides.low[0].all.once(n).coords
        assert corners is not None and paired.tissue is not None, "feature files have corners; _pairs has looked"
        rows = align(paired, file.coords(), file.header, f"features of {paired.slide_id}")
        # LR tiles that cannot be decoded are not in the bag; nor are HR tiles without features.
        region = find_rows(paired.lr_boxes[:, :2], corners.cpu().numpy())[paired.region]
        parent, cell = np.where(rows >= 0, region, -1), paired.cell
        if not (parent >= 0).any():
            raise InputError(f"slide {paired.slide_id}: no HR tile with features lies in an LR tile of it")
        features, means = torch.from_numpy(file.features()), []
        with torch.inference_mode():
            for own in heads:
                looks = [chooser.heads[h](*sides.low[chooser.encoder_of[h]].all.once(n)).attention for h in own]
                attention = torch.stack(looks).float().mean(0).cpu().numpy()
                means.append(features[rows[pick_tiles(attention, parent, cell, paired.tissue, top)]].float().mean(0))
        out.append(torch.stack(means))
    return out


def _heads_of(chooser: Model) -> list[list[int]]:
    """The heads of each fold; several where the picker was trained with several seeds."""
    of = chooser.header.get("fold_of", range(len(chooser.heads)))
    return [[h for h, k in enumerate(of) if k == fold] for fold in sorted(set(of))]


def _check_tiles(picker: str, chooser: Model, tiles: str, own: dict[str, Any]) -> None:
    theirs = chooser.tiles
    if (theirs.mpp, theirs.tile_px) != (own["mpp"], own["tile_px"]):
        raise InputError(
            f"{picker}: the picker looks at tiles of {theirs.tile_px} px at {theirs.mpp:g} um/px, those in {tiles} are "
            f"of {own['tile_px']} px at {own['mpp']:g}; give the tiles that it was trained on"
        )


def _check_folds(picker: str, chooser: Model, manifest: Manifest, table: pd.DataFrame) -> None:
    """The head that picks for a fold has seen none of its test slides."""
    names = fold_names(table)
    known = held_out_folds(Path(picker), chooser.header)
    if known is None:
        raise InputError(
            f"{picker}: its predictions are not beside it, so nobody can tell which slides its heads were tested on; "
            "give the model where `lrmil distill-student` wrote it"
        )
    patients, heads = patients_by_slide(manifest), _heads_of(chooser)
    for k, name in enumerate(names, 1):
        tested = members(table, name)["test"]
        if len(heads) != len(names) or known.get(k, set()) != set(tested):
            raise InputError(
                f"{picker}: the picker has other folds than this cohort, so its heads have seen test slides; give both "
                "the same --teacher, or the same folds in the table"
            )
        for h in heads[k - 1]:
            check_no_label_leak(chooser.encoders[chooser.encoder_of[h]].info.distilled, tested, k, patients)


def _pairs(folder: str, slide_id: str, lr_header: dict[str, Any]) -> PairedSlide:
    paired = read_pairs(find_table(folder, slide_id, "pairs"))
    check_made_from(paired, lr_header, folder)
    if paired.tissue is None:
        raise InputError(
            f"{folder}: the pairs of {slide_id} do not say how much of an HR tile is tissue; make them from tiles of "
            "`lrmil tile` by `lrmil match --overwrite`"
        )
    return paired
