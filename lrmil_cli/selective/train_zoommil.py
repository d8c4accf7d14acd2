"""ZoomMIL for a cohort (selective/README 5): pyramids of features from pairs tables, a head a fold, the model file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lrmil_cli.encoders.aliases import licence_warning
from lrmil_cli.encoders.embed import features_settings
from lrmil_cli.encoders.spec import load_encoder
from lrmil_cli.errors import InputError
from lrmil_cli.files.features import BagFile, open_features
from lrmil_cli.files.header import digest, last_digest, make_header, step, up_to_date
from lrmil_cli.files.manifest import Manifest
from lrmil_cli.files.tables import find_table
from lrmil_cli.files.tensors import load_tensors, read_tensor_header
from lrmil_cli.heads import Bag, PyramidBag
from lrmil_cli.matching.paired_slide import PairedSlide, check_alike, check_made_from, read_pairs
from lrmil_cli.matching.tile_rows import align, find_rows
from lrmil_cli.models.model_file import save_model
from lrmil_cli.selective.beside import write_beside
from lrmil_cli.training import crossval, out_of_fold
from lrmil_cli.training.bags import Bags, embed_cohort, tile_tables
from lrmil_cli.training.cohort_record import looks_of, record_of
from lrmil_cli.training.crossval import HeadSpec
from lrmil_cli.training.fixture import add_fixture, painted, tiles_of_a_slide
from lrmil_cli.training.folds import fold_names, members, with_intervals
from lrmil_cli.training.follow_teacher import check_classes, features_folder, folds_like
from lrmil_cli.training.leaks import check_no_label_leak, patients_by_slide
from lrmil_cli.training.loop import TrainSettings
from lrmil_cli.training.streamed import Room, Streamed
from lrmil_cli.training.teacher import manifest_digest, read_teacher


@dataclass
class Result:
    """For the summary: was it there already, pooled metrics, the line to show."""

    there: bool
    metrics: dict[str, Any]
    text: str


def train_zoom(
    manifest: Manifest,
    *,
    tiles: str,
    pairs: str,
    encoder: str,
    features: str | None,
    lr_features: Path,
    teacher: str | None,
    mid_pairs: str | None,
    mid_features: str | None,
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
    own_fixture: bool = True,
) -> Result:
    """Train a head a fold on pyramids of 5x and 20x tiles, or with one magnification more, and write the model file.

    Args:
        tiles: folder of LR tile tables; pairs: of the lowest level with the next.
        mid_pairs, mid_features: for three levels, pairs of the middle one with the highest, and its features.
        room: that pyramids may be kept in.
        features: of the highest level; None for those of the teacher, which otherwise only gives its folds.

    Raises:
        UsageError, InputError, MachineError: as the parts; features that are missing, or of another encoder.
    """
    guide = read_teacher(teacher) if teacher else None
    if guide is not None:
        check_classes(guide, manifest)
    highest = features_folder(features, guide)
    table = folds_like(manifest, guide, folds, training.seed)
    manifest = manifest if guide else with_intervals(manifest, table)
    tables = tile_tables(manifest, tiles)
    loaded = load_encoder(
        encoder, tile_px=tables[0][1]["settings"]["tile_px"], input_size=input_size, embedding=embedding, warn=warn
    )
    if note := licence_warning(loaded.info):
        warn(note)
    for k, name in enumerate(fold_names(table), 1):
        check_no_label_leak(loaded.info.distilled, members(table, name)["test"], k, patients_by_slide(manifest))
    own_digest = features_settings(loaded)["encoder"]
    chain, folders = [pairs], [highest]
    if mid_pairs is not None and mid_features is not None:
        chain, folders = [pairs, mid_pairs], [Path(mid_features), highest]
    ids = [e.slide_id for e in manifest]
    paired = [[read_pairs(find_table(p, i, "pairs")) for i in ids] for p in chain]
    for given, level in zip(chain, paired):
        check_alike(level, given)
    deep = [[features_of(folder / f"{i}.h5", own_digest, encoder) for i in ids] for folder in folders]
    low = embed_cohort(
        loaded,
        manifest,
        tables,
        lr_features,
        device=device,
        room=room,
        batch_size=batch_size,
        workers=workers,
        on_bad_tile=on_bad_tile,
        dtype=dtype,
        overwrite=overwrite,
        say=say,
    )
    for (_, lr_header), p in zip(tables, paired[0]):
        check_made_from(p, lr_header, pairs)

    options = {**head.options, "levels": len(chain) + 1}
    own = {
        "method": "zoommil",
        "head": head.name,
        "options": options,
        **training.as_json(),
        "folds": table.to_dict("list"),
        **out_of_fold.target_of(manifest.task),
        "encoder": loaded.digest(),
        **({} if own_fixture else {"fixture": "painted"}),
    }
    inputs = {
        "manifest": manifest_digest(manifest),
        **{f"lr/{i}": last_digest(h) for i, h in zip(ids, low.headers)},
        **{f"{n}/{i}": last_digest(f.header) for n, level in enumerate(deep) for i, f in zip(ids, level)},
        **{f"pairs{n}/{i}": last_digest(p.header) for n, level in enumerate(paired) for i, p in zip(ids, level)},
    }
    if up_to_date(output, digest(own, inputs), lambda p: load_tensors(p, "model")[0], overwrite):
        return Result(True, read_tensor_header(output, "model")["metrics"], "up to date")

    def load(n: int) -> PyramidBag:
        return make_pyramid(low.all.once(n), [level[n] for level in deep], [level[n] for level in paired])

    bags = Bags(Streamed(load, low.counts, low.dim, room, device), low.headers)
    results = crossval.train_folds(
        manifest, table, lambda fold: bags, HeadSpec(head.name, options), training, who="ZoomMIL", say=say
    )
    rows, pooled = out_of_fold.score(manifest, results)
    history = [step("distill-student", own, inputs)]
    header = make_header(
        "model",
        settings={k: v for k, v in own.items() if k != "folds"},
        history=history,
        method="zoommil",
        **record_of(manifest, table, low.headers, results, results, (rows, pooled)),
        tiles=tables[0][1]["settings"],
        level_tiles=[level[0].header["hr"]["settings"] for level in paired],
        ratios=[level[0].ratio for level in paired],
        attention_kind="native",
        **looks_of(manifest, table, lambda i: low.all.once(i).features.cpu().numpy()),
        license=loaded.info.license,
    )
    write_beside(output, history, manifest, out_of_fold.predictions_table(manifest, results), rows, results)
    heads, of = [r.fit.head for r in results], [0] * len(results)
    shown = (
        tiles_of_a_slide(manifest, table, tables, say) if own_fixture else painted(tables[0][1]["settings"]["tile_px"])
    )
    rest = add_fixture(header, [loaded], heads, of, shown)
    save_model(output, header, [loaded], heads, of, rest)
    return Result(False, pooled, out_of_fold.summary("zoommil", rows, len(results), manifest.task))


def make_pyramid(low: Bag, deep: list[BagFile], paired: list[PairedSlide]) -> PyramidBag:
    """The pyramid of one slide.

    A tile that has no features, since it cannot be decoded, is not in it, nor are those below it.

    Args:
        low: the lowest level.
        deep, paired: of each deeper level its features, and the pairs of the level above with it.

    Raises:
        InputError: pairs and features are of different tiles.
    """
    assert low.coords is not None, "feature files have corners"
    levels, children, corners = [low.features.cpu()], [], low.coords.cpu().numpy()
    for file, pairs in zip(deep, paired):
        coords = file.coords()
        rows = align(pairs, coords, file.header, f"features of {pairs.slide_id}")
        parents = find_rows(pairs.lr_boxes[:, :2], corners)
        there = parents >= 0
        if not there.any():
            raise InputError(
                f"slide {pairs.slide_id}: its pairs are of other tiles than its features; run `lrmil match` again"
            )
        kin = np.full((len(corners), pairs.children.shape[1]), -1, np.int64)
        kin[parents[there]] = np.where(pairs.children >= 0, np.append(rows, -1)[pairs.children], -1)[there]
        children.append(torch.from_numpy(kin))
        levels.append(torch.from_numpy(file.features()))
        corners = coords
    return PyramidBag(tuple(levels), tuple(children))


def features_of(path: Path, encoder_digest: str, spec: str) -> BagFile:
    """A feature file that the encoder ``spec`` made.

    Raises:
        InputError: there is none, or another encoder made it.
    """
    if not path.is_file():
        raise InputError(
            f"{path}: no such file; make the features of each level with `lrmil embed` and the same --encoder, "
            "or give the folder of train-teacher"
        )
    found = open_features(path)
    if found.header["settings"].get("encoder") != encoder_digest:
        raise InputError(f"{path}: not made by {spec} as it is used here; give features of that encoder")
    return found
