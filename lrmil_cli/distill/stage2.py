"""Stage 2, step 2 as a whole: LR bags, teacher targets fold by fold, student heads, the model file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from lrmil_cli.distill import student
from lrmil_cli.distill.model import save_model
from lrmil_cli.distill.student import DistillSettings, HighResolution
from lrmil_cli.distill.targets import read_pairs
from lrmil_cli.encoders.aliases import licence_warning
from lrmil_cli.encoders.spec import load_encoder
from lrmil_cli.encoders.vit import Encoder
from lrmil_cli.errors import InputError, UsageError
from lrmil_cli.files.features import read_features
from lrmil_cli.files.header import digest, last_digest, make_header, step, up_to_date
from lrmil_cli.files.manifest import Manifest
from lrmil_cli.files.tables import write_table
from lrmil_cli.files.tensors import read_tensor_header
from lrmil_cli.training import crossval
from lrmil_cli.training.bags import embed_cohort, find_table, tile_tables
from lrmil_cli.training.crossval import HeadSpec
from lrmil_cli.training.folds import fold_names, make_folds, members
from lrmil_cli.training.loop import ExtraTerms, TrainSettings
from lrmil_cli.training.teacher import Teacher, manifest_digest, read_teacher, write_curves

#: Above this share of LR tiles without HR tiles, the two tissue rules probably disagree (method 6.6).
UNMATCHED_WARNING = 0.2


@dataclass(frozen=True)
class EncoderArgs:
    """How the LR encoder is loaded: spec (may hold ``{fold}``), and what the user may set of it."""

    spec: str
    input_size: int | None = None
    embedding: str | None = None
    random_init: bool = False


@dataclass
class Result:
    """For the summary: was it there already, pooled metrics, the line to show."""

    there: bool
    metrics: dict[str, Any]
    text: str


def train_student(
    manifest: Manifest,
    *,
    tiles: str,
    pairs: str | None,
    encoder: EncoderArgs,
    teacher: str | None,
    features: str | None,
    lr_features: Path,
    head: HeadSpec,
    preset: str,
    distill: DistillSettings,
    training: TrainSettings,
    folds: int,
    output: Path,
    device: torch.device,
    batch_size: int,
    overwrite: bool,
    say: Callable[[str], None],
    warn: Callable[[str], None],
) -> Result:
    """Train the student heads and write the model file, with predictions, metrics and curves beside it.

    Raises:
        UsageError, InputError, MachineError: as the parts; see the method modules.
    """
    guide = read_teacher(teacher) if teacher else None
    if distill.uses_teacher and (guide is None or pairs is None):
        raise UsageError(f"preset {preset} distils from a teacher: give --teacher and --pairs, or use --preset lr-only or patch")
    if guide is not None and guide.classes != manifest.classes:
        raise InputError(f"{teacher}: the teacher knows the classes {', '.join(guide.classes)}, the manifest has {', '.join(manifest.classes)}")
    table = _folds(manifest, guide, folds, training.seed)
    names = fold_names(table)
    tables = tile_tables(manifest, tiles)
    encoders, of_fold = _encoders(encoder, len(names), tables[0][1]["settings"]["tile_px"], warn)
    if guide is not None and distill.uses_teacher and encoders[0].info.embedding != guide.header["encoder"]["embedding"]:
        warn(f"the student's embedding is {encoders[0].info.embedding}, the teacher's {guide.header['encoder']['embedding']}; "
             "use the same --embedding on both sides")
    for note in (student.preset_warning(preset, encoders[0].info.distilled is not None), licence_warning(encoders[0].info)):
        if note:
            warn(note)

    ids = [e.slide_id for e in manifest]
    high, inputs_high, ratio, counts = None, {}, 1, {}
    if distill.uses_teacher:  # before the LR tiles are embedded: what is missing should be said at once
        folder = Path(features) if features else guide.features
        high, inputs_high, ratio = load_high(ids, table, folder, pairs, tables, distill, device)
    lr_bags = [embed_cohort(e, manifest, tables, _feature_folder(lr_features, n, len(encoders)), device=device,
                            batch_size=batch_size, overwrite=overwrite, say=say) for n, e in enumerate(encoders)]
    n_lr = [len(t) for t in lr_bags[0].tensors]
    if high is not None:
        counts = student.matched_counts(high.parents, n_lr, ratio)
        regions = counts["matched"] + counts["unmatched"]
        say(f"regions of training slides: {counts['matched']} matched, {counts['unmatched']} without HR tiles, {counts['incomplete']} incomplete")
        if counts["unmatched"] > UNMATCHED_WARNING * regions:
            warn(f"{counts['unmatched'] / regions:.0%} of the LR tiles have no HR tile; the tissue thresholds probably disagree")
        if guide.header["attention_kind"] == "derived":
            warn(f"the teacher's head ({guide.header['settings']['head']}) has no attention of its own; a derived one is distilled")

    own = {"head": head.name, "options": head.options, "preset": preset, "distill": distill.as_json(), **training.as_json(),
           "folds": table.to_dict("list")}
    inputs = {"manifest": manifest_digest(manifest), **inputs_high,
              **({"teacher": last_digest(guide.header)} if guide is not None and distill.uses_teacher else {}),
              **{f"lr{n}/{i}": last_digest(h) for n, b in enumerate(lr_bags) for i, h in zip(ids, b.headers)}}
    wanted = digest(own, inputs)
    if up_to_date(output, wanted, lambda p: read_tensor_header(p, "model"), overwrite):
        metrics = read_tensor_header(output, "model")["metrics"]
        return Result(True, metrics, "up to date")

    at = {s: i for i, s in enumerate(ids)}
    missing_teacher: set[str] = set()

    def terms(fold: int, train_ids: list[str]) -> ExtraTerms | None:
        if not distill.uses_teacher:
            return None
        header, teacher_head = guide.head(fold)
        student.check_no_leak(header, members(table, names[fold - 1])["test"], fold)
        teacher_head.to(device)
        train = [at[s] for s in train_ids]
        if distill.crossfit:
            spec = HeadSpec(guide.header["settings"]["head"], guide.header["settings"]["options"])
            targets = student.crossfit_targets(manifest, train, high, n_lr, distill, spec, training, fold, ids)
        else:
            targets = student.fold_targets(teacher_head, train, high, n_lr, distill, ids)
        missing_teacher.update(ids[i] for i in train if i not in targets)
        return student.terms_of_fold(targets, distill, head.options.get("embed_dim") or lr_bags[0].dim, device, training.seed + fold)

    results = crossval.train_folds(manifest, table, lambda k: lr_bags[of_fold[k - 1]], head, training, extra_terms=terms, say=say)
    if missing_teacher:
        warn(f"{len(missing_teacher)} slide(s) had no teacher target and were trained with the labels alone (--missing-teacher ce-only)")
    metrics_rows, pooled = crossval.score(manifest, results)
    leak = {n + 1: student.encoder_leak(encoders[of_fold[n]].info.distilled, table, [name]) for n, name in enumerate(names)}
    if any(leak.values()):
        say("note: the LR encoder saw the pixels (not the labels) of test slides; for inductive numbers make one encoder a fold "
            "(distill-encoder --slides --fold)")
    history = [step("distill-student", own, inputs)]
    header = make_header(
        "model", settings={k: v for k, v in own.items() if k != "folds"}, history=history, classes=list(manifest.classes),
        tiles=tables[0][1]["settings"], preset=preset, metrics=pooled, regions=counts,
        fold_metrics=metrics_rows.astype(object).where(metrics_rows.notna(), None).to_dict("records"),
        encoder_saw_test_pixels=any(leak.values()), attention_kind=results[0].fit.head.attention_kind,
        license=encoders[0].info.license, slides=ids,
        teacher={"path": str(guide.path), "metrics": guide.header["metrics"]} if guide is not None and distill.uses_teacher else None,
    )
    # What stands beside the model first, the model last: it marks the run as complete.
    stem = output.with_suffix("")
    common = {"settings": {}, "history": history}
    write_table(f"{stem}.predictions.csv", make_header("predictions", **common), crossval.predictions_table(manifest, results))
    write_table(f"{stem}.metrics.csv", make_header("metrics", **common), metrics_rows)
    write_curves(Path(f"{stem}.curves.csv"), make_header("curves", **common), results)
    save_model(output, header, encoders, [r.fit.head for r in results], of_fold)
    return Result(False, pooled, crossval.summary(preset, metrics_rows, len(results)))


def _folds(manifest: Manifest, guide: Teacher | None, folds: int, seed: int) -> pd.DataFrame:
    """The teacher's folds, so that both are judged alike; drawn anew without a teacher.

    Raises:
        InputError: the manifest has a slide that the teacher's folds do not.
    """
    if guide is None:
        return make_folds(manifest, folds, seed)
    known = guide.folds.set_index("slide_id")
    absent = [e.slide_id for e in manifest if e.slide_id not in known.index]
    if absent:
        raise InputError(f"{guide.path}: slide {absent[0]} is not in the teacher's folds.csv ({len(absent)} slide(s)); "
                         "train teacher and student on one manifest")
    table = known.loc[[e.slide_id for e in manifest]].reset_index()
    changed = [e.slide_id for e, label in zip(manifest, table["label"]) if e.label != label]
    if changed:
        raise InputError(f"{guide.path}: slide {changed[0]} had another label when the teacher was trained; train it again")
    return table


def _encoders(args: EncoderArgs, folds: int, tile_px: int, warn: Callable[[str], None]) -> tuple[list[Encoder], list[int]]:
    """One shared encoder, or one a fold where the spec holds ``{fold}``; and which encoder each fold uses."""
    specs = [args.spec.replace("{fold}", str(k)) for k in range(1, folds + 1)] if "{fold}" in args.spec else [args.spec]
    encoders = [load_encoder(s, tile_px=tile_px, input_size=args.input_size, embedding=args.embedding, random_init=args.random_init,
                             warn=warn) for s in specs]
    return encoders, list(range(folds)) if len(specs) > 1 else [0] * folds


def _feature_folder(base: Path, n: int, count: int) -> Path:
    return base if count == 1 else base / f"fold{n + 1}"


def load_high(
    ids: list[str], table: pd.DataFrame, folder: Path, pairs: str, lr_tables: list[tuple[Path, dict[str, Any]]],
    distill: DistillSettings, device: torch.device,
) -> tuple[HighResolution, dict[str, str], int]:
    """HR bags and parents of the slides that are training slides in some fold; test slides need none.

    Returns:
        the HR side, digests of its inputs, the ratio.

    Raises:
        InputError: features or pairs are missing (and ``missing_teacher`` is ``error``), or do not fit the tiles.
    """
    needed = set(table.loc[(table[fold_names(table)] == "train").any(axis=1), "slide_id"])
    bags: list[torch.Tensor | None] = []
    parents: list[torch.Tensor | None] = []
    inputs: dict[str, str] = {}
    ratios = set()
    for slide_id, (_, lr_header) in zip(ids, lr_tables):
        if slide_id not in needed:
            bags.append(None)
            parents.append(None)
            continue
        try:
            path = folder / f"{slide_id}.h5"
            features = read_features(path)
            paired = read_pairs(find_table(pairs, slide_id, "pairs"))
        except InputError:
            if distill.missing_teacher == "error":
                raise
            bags.append(None)
            parents.append(None)
            continue
        if last_digest(paired.header["lr"]) != last_digest(lr_header):
            raise InputError(f"{pairs}: the pairs of {slide_id} were made from other LR tiles than those in --tiles; run `lrmil match` again")
        parent = student.align(paired, features, str(path))
        bags.append(torch.from_numpy(features.features).to(device))
        parents.append(torch.from_numpy(parent).to(device))
        inputs |= {f"hr/{slide_id}": last_digest(features.header), f"pairs/{slide_id}": last_digest(paired.header)}
        ratios.add(paired.ratio)
    if len(ratios) > 1:
        raise InputError(f"{pairs}: pairs of different ratios ({sorted(ratios)}); tile all slides alike")
    return HighResolution(bags, parents), inputs, next(iter(ratios), 1)
