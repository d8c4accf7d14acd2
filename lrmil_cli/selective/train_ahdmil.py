"""AHDMIL and HDMIL for a cohort: screening images, the teacher's DMIN fold by fold, the model and the files beside it.

The method itself is in ``asymmetric_distillation.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from lrmil_cli.encoders.aliases import licence_warning
from lrmil_cli.encoders.spec import load_encoder
from lrmil_cli.encoders.vit import Encoder
from lrmil_cli.errors import InputError
from lrmil_cli.evaluation.metrics import mean_sd, show
from lrmil_cli.files.foreign import NAMES
from lrmil_cli.files.header import digest, last_digest, make_header, step, up_to_date
from lrmil_cli.files.manifest import Manifest
from lrmil_cli.files.tables import find_table, write_table
from lrmil_cli.files.tensors import load_tensors, read_tensor_header
from lrmil_cli.heads.dmin import DMIN
from lrmil_cli.matching.paired_slide import PairedSlide, read_pairs
from lrmil_cli.models.model_file import save_model
from lrmil_cli.progress import phase
from lrmil_cli.selective.asymmetric_distillation import Instances, ScreenedFit, ScreenSettings, fit_screened, predict
from lrmil_cli.selective.beside import write_beside
from lrmil_cli.selective.screener import screen
from lrmil_cli.selective.screening_images import StoredImages, cached_images, check_windows
from lrmil_cli.training import crossval, out_of_fold
from lrmil_cli.training.bags import tile_tables
from lrmil_cli.training.cohort_record import looks_of, record_of
from lrmil_cli.training.crossval import FoldResult
from lrmil_cli.training.fixture import add_fixture, painted
from lrmil_cli.training.folds import fold_names, members
from lrmil_cli.training.follow_teacher import check_classes, check_features, folds_like
from lrmil_cli.training.high_resolution import HighSlide, load_high
from lrmil_cli.training.leaks import check_no_leak, patients_by_slide
from lrmil_cli.training.objectives import Classes, CoxRisks, Hazards, Objective, objective_of
from lrmil_cli.training.streamed import Room, Streamed
from lrmil_cli.training.teacher import Teacher, manifest_digest, read_teacher

#: Panels of the curves: title, columns.
PANELS = [
    ("mask or score loss (training)", ["train_hard", "train_soft"]),
    ("kept-rate loss (training)", ["train_rate"]),
    ("kept share, validation and training", ["val_kept", "train_kept"]),
    ("DMIN's own kept share (training)", ["train_target_kept"]),
    ("cross-entropy of DMIN (training)", ["train_ce"]),
    ("loss of DMIN (training)", ["train_loss"]),
    *((title, [name]) for kind in (Classes, Hazards, CoxRisks) for name, title in kind.watched.items()),
    ("mask entries as DMIN's (validation)", ["val_agreement"]),
]


@dataclass
class Result:
    """For the summary: was it there already, pooled metrics, kept rate on held-out slides, the line to show."""

    there: bool
    metrics: dict[str, Any]
    kept_rate: float | None
    text: str


@dataclass
class ScreenedFold(FoldResult):
    """A fold whose fit has a screener beside the head; ``read``: share of the HR tiles read of each test slide."""

    fit: ScreenedFit
    read: np.ndarray


def train_screened(
    manifest: Manifest,
    *,
    method: str,
    tiles: str,
    pairs: str,
    teacher: str,
    encoder: str,
    features: str | None,
    settings: ScreenSettings,
    input_size: int | None,
    embedding: str | None,
    output: Path,
    device: torch.device,
    overwrite: bool,
    say: Callable[[str], None],
    warn: Callable[[str], None],
    room: Room,
    workers: int | None = None,
    on_bad_tile: str = "fail",
) -> Result:
    """Train a screener a fold and write the model file, with predictions, metrics and curves beside it.

    Args:
        tiles: folder of LR tile tables; encoder: spec of the HR encoder that the teacher's features are of.
        room: that features and images may be kept in.
        on_bad_tile: ``fail``, or ``skip``: HR tiles in an LR tile that cannot be decoded are left out.

    Raises:
        UsageError, InputError, MachineError: as the parts; among others where the teacher is no DMIN, or not of this
            encoder.
    """
    guide = read_teacher(teacher)
    check_classes(guide, manifest)
    table = folds_like(manifest, guide, 0, settings.seed)
    ids = [e.slide_id for e in manifest]
    tables = tile_tables(manifest, tiles)
    high_encoder = _teachers_encoder(guide, encoder, input_size, embedding)
    if note := licence_warning(high_encoder.info):
        warn(note)
    folder = Path(features) if features else guide.features
    high = load_high(ids, set(ids), folder, pairs, tables, torch.device("cpu"), room, required=set(ids))
    check_features(guide, folder, ids, high, warn)
    sides = [s for s in high.slides if s is not None]
    assert len(sides) == len(ids), "load_high was asked for all"
    if foreign := {s.header["made_by"] for s in sides if "made_by" in s.header}:
        raise InputError(
            f"{folder}: features of {NAMES[foreign.pop()]}; a model that encodes HR tiles itself needs those that "
            "lrmil made (`lrmil embed`)"
        )
    tile_px = tables[0][1]["settings"]["tile_px"]
    check_windows(tile_px, high.ratio, settings.screen_px, settings.source)

    own = {"method": method, **settings.as_json(), "folds": table.to_dict("list"), "encoder": high_encoder.digest()}
    own |= out_of_fold.target_of(manifest.task)
    if on_bad_tile == "skip":
        own["on_bad_tile"] = on_bad_tile
    inputs = {"manifest": manifest_digest(manifest), **high.inputs, "teacher": last_digest(guide.header)}
    if up_to_date(output, digest(own, inputs), lambda p: load_tensors(p, "model")[0], overwrite):
        header = read_tensor_header(output, "model")
        return Result(True, header["metrics"], header["kept_rate"], "up to date")

    paired = [read_pairs(find_table(pairs, e.slide_id, "pairs"), e.path) for e in manifest]
    cache = output.with_suffix(".screen")
    images = cached_images(paired, settings.screen_px, settings.source, cache, say, workers, on_bad_tile)
    slides = _instances(paired, images, sides, high.bags.dim, device, room, say)
    results = _folds(manifest, table, guide, slides, settings, device, say, warn)
    metrics_rows, pooled = out_of_fold.score(manifest, results)
    predictions, kept = _predictions(manifest, results, slides)
    metrics_rows = _with_kept(metrics_rows, predictions)

    history = [step("distill-student", own, inputs)]
    at = {s: i for i, s in enumerate(ids)}
    header = make_header(
        "model",
        settings={k: v for k, v in own.items() if k != "folds"},
        history=history,
        method=method,
        **record_of(manifest, table, [s.header for s in sides], results, results, (metrics_rows, pooled)),
        tiles=tables[0][1]["settings"],
        hr_tiles=paired[0].header["hr"]["settings"],
        ratio=high.ratio,
        screen={"px": settings.screen_px, "source": settings.source, "branches": settings.branches},
        kept_rate=kept,
        starts=[r.fit.starts for r in results],
        attention_kind=results[0].fit.head.attention_kind,
        license=high_encoder.info.license,
        teacher={"path": str(guide.path), "metrics": guide.header["metrics"]},
        hr_instances={s: slides.counts[at[s]] for s in predictions["slide_id"]},
        **looks_of(manifest, table, lambda i: _features_read(results, slides.once(i))),
    )
    panels = [p for p in PANELS if set(p[1]) & set(out_of_fold.curves_table(results))]
    write_beside(output, history, manifest, predictions, metrics_rows, results, panels)
    said, of_teacher = guide.predictions()
    about = {name: v for name, v in said.items() if name in ("target", "times")}
    header_of_teacher = make_header("predictions", settings={}, history=history, **about)
    write_table(output.with_suffix(".teacher.predictions.csv"), header_of_teacher, of_teacher)
    screeners = {f"screen{n}.{k}": v for n, r in enumerate(results) for k, v in r.fit.screener.state_dict().items()}
    heads, of = [r.fit.head for r in results], [0] * len(results)
    rest = add_fixture(header, [high_encoder], heads, of, painted(paired[0].header["hr"]["settings"]["tile_px"]))
    save_model(output, header, [high_encoder], heads, of, {**screeners, **rest})
    text = (
        out_of_fold.summary(method, metrics_rows, len(results), manifest.task) + f", kept {show(kept)} of the HR tiles"
    )
    return Result(False, pooled, kept, text)


def _teachers_encoder(guide: Teacher, spec: str, input_size: int | None, embedding: str | None) -> Encoder:
    """The HR encoder of a teacher with DMIN heads.

    Raises:
        InputError: the teacher is another head, or its features are not of this encoder.
    """
    name = guide.header["settings"]["head"]
    if name != "dmin":
        raise InputError(
            f"{guide.path}: its heads are {name}, which keep no mask to learn; train a teacher with --head dmin"
        )
    made_by = guide.header.get("made_by", "lrmil")
    if made_by != "lrmil":
        raise InputError(
            f"{guide.path}: trained on features of {NAMES[made_by]}; a model that encodes HR tiles itself needs a "
            "teacher trained with --tiles and --encoder"
        )
    known = guide.header["encoder"]
    loaded = load_encoder(
        spec,
        tile_px=guide.header["tiles"]["tile_px"],
        input_size=input_size or known.get("image_size"),
        embedding=embedding or known.get("embedding"),
    )
    same = (loaded.digest(), loaded.embed_dim, loaded.info.embedding, loaded.info.image_size)
    theirs = (
        guide.header.get("encoder_digest") or same[0],
        guide.header["in_dim"],
        known.get("embedding") or same[2],
        known.get("image_size") or same[3],
    )
    if same != theirs:
        raise InputError(
            f"{guide.path}: the teacher was trained on features of {known['name']} "
            f"({theirs[2]}, {theirs[3]} px input), not of {spec} ({same[2]}, {same[3]} px); "
            "give --encoder (--embedding, --input-size) as train-teacher got it"
        )
    return loaded


def _instances(
    paired: list[PairedSlide],
    images: list[StoredImages],
    sides: list[HighSlide],
    width: int,
    device: torch.device,
    room: Room,
    say: Callable[[str], None],
) -> Streamed[Instances]:
    """HR features and screening images of the tiles that have both, in the order of the pairs.

    Raises:
        InputError: a slide has none.
    """
    used, ignored = [], 0
    for p, pictures, hr in zip(paired, images, sides):
        used.append(np.flatnonzero(pictures.there & (hr.rows >= 0)))
        if not used[-1].size:
            raise InputError(
                f"slide {p.slide_id}: none of its HR tiles has both features and a screening image; "
                "leave it out of the manifest"
            )
        ignored += hr.count - int((hr.rows >= 0).sum())
    if ignored:
        say(f"{ignored} HR tile(s) lie in no LR tile and are left out; prediction will not find them either")

    def load(index: int) -> Instances:
        use, hr = used[index], sides[index]
        features = torch.from_numpy(hr.file.features()[hr.rows[use]])
        return Instances(features, torch.from_numpy(images[index].load()[use]))

    return Streamed(load, [len(use) for use in used], width, room, device)


def _folds(
    manifest: Manifest,
    table: pd.DataFrame,
    guide: Teacher,
    slides: Streamed[Instances],
    settings: ScreenSettings,
    device: torch.device,
    say: Callable[[str], None],
    warn: Callable[[str], None],
) -> list[ScreenedFold]:
    """One screener a fold, on the teacher's folds and from its DMIN of the same fold."""
    at = {e.slide_id: i for i, e in enumerate(manifest)}
    results = []
    names = fold_names(table)
    with phase("screener and DMIN", len(names), "fold") as told:
        for k, name in enumerate(names, 1):
            parts = members(table, name)
            index = {part: [at[s] for s in own] for part, own in parts.items()}
            header, head = guide.head(k)
            assert isinstance(head, DMIN), "_teachers_encoder has looked"
            check_no_leak(header, parts["test"], k, patients_by_slide(manifest))

            def say_of(text: str, k: int = k) -> None:
                say(f"fold {k}: {text}")

            own = replace(settings, seed=settings.seed + k)
            objective = objective_of(manifest, index["train"], like=header.get("outputs"), device=device)
            fit = fit_screened(head.to(device), slides, objective, index["train"], index["val"], own, say=say_of)
            if fit.skipped:
                warn(
                    f"fold {k}: {fit.skipped} training slide(s) with a single HR tile were left out; "
                    "one tile has no batch statistics"
                )
            best = fit.curves[fit.best_epoch - 1]
            reached = ", ".join(f"{title} {show(best[name])}" for name, title in list(objective.watched.items())[-1:])
            say(
                f"fold {k}: {len(fit.curves)} epochs, best {fit.best_epoch}, {reached}, kept {best['val_kept']:.2f}, "
                f"mask as DMIN's {best['val_agreement']:.2f}"
            )

            def said(index: Sequence[int], fit: ScreenedFit = fit, objective: Objective = objective) -> np.ndarray:
                return predict(fit.head, fit.screener, slides, objective, index)[0]

            fit.outputs = objective.reading(index["train"], said)

            read = predict(fit.head, fit.screener, slides, objective, index["test"])[2]
            results.append(ScreenedFold(k, fit, parts, *crossval.judged(manifest, parts, said), read))
            told.advance()
    return results


def _features_read(results: Sequence[ScreenedFold], slide: Instances) -> np.ndarray:
    """HR features [n, D] of the tiles of a slide that ``predict`` would read: those that any fold keeps."""
    used = torch.stack([screen(r.fit.screener, slide.images).used.any(0) for r in results]).any(0)
    return slide.features[used].cpu().numpy()


def _predictions(
    manifest: Manifest, results: list[ScreenedFold], slides: Streamed[Instances]
) -> tuple[pd.DataFrame, float | None]:
    """Out-of-fold predictions, and the mean kept rate.

    With ``hr_tiles`` (there), ``hr_read`` and their share ``kept_rate``, as ``predict`` counts them: after the
    fallbacks of an empty mask.
    """
    table = out_of_fold.predictions_table(manifest, results)
    at = {e.slide_id: i for i, e in enumerate(manifest)}
    kept, read, there = [], [], []
    for r in results:
        test = [at[s] for s in r.parts["test"]]
        kept += r.read.tolist()
        there += [slides.counts[i] for i in test]
        read += [round(share * slides.counts[i]) for share, i in zip(r.read, test)]
    table = table.assign(
        kept_rate=np.array(kept, float), hr_tiles=np.array(there, np.int64), hr_read=np.array(read, np.int64)
    )
    return table, float(np.mean(kept)) if kept else None


def _with_kept(metrics: pd.DataFrame, predictions: pd.DataFrame) -> pd.DataFrame:
    """The metrics table with the mean kept rate of each row's slides."""
    by_fold = {str(fold): float(rows["kept_rate"].mean()) for fold, rows in predictions.groupby("fold")}
    mean, sd = mean_sd(list(by_fold.values()))
    pooled = float(predictions["kept_rate"].mean()) if len(predictions) else None
    shares: dict[str, float | None] = {**by_fold, "mean": mean, "sd": sd, "pooled": pooled}
    return metrics.assign(kept_rate=pd.Series([shares.get(str(f)) for f in metrics["fold"]], metrics.index))
