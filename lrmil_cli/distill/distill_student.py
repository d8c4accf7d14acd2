"""Stage 2, step 2 as a whole: LR bags, teacher targets fold by fold, student heads, the model file.

The losses are in ``student_loss.py``, what the teacher says in ``teacher_targets.py``, the encoders in
``student_encoders.py``, the files beside the model in ``student_files.py``.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lrmil_cli.distill.disagreement import draw_disagreement
from lrmil_cli.distill.settings import DistillSettings, preset_warning
from lrmil_cli.distill.student_cohort import OtherSide, StudentCohort, all_inputs, fold_files, slides_of
from lrmil_cli.distill.student_encoders import (
    EncoderArgs,
    compare_embeddings,
    load_baseline,
    load_encoders,
)
from lrmil_cli.distill.student_files import Student, agreement_table, costs, write_beside
from lrmil_cli.distill.student_runs import train_runs
from lrmil_cli.encoders.aliases import licence_warning
from lrmil_cli.errors import UsageError
from lrmil_cli.evaluation.receipt import DISAGREEMENT, existing_receipt, write_receipt
from lrmil_cli.files.atomic import remove
from lrmil_cli.files.header import digest, make_header, step, up_to_date
from lrmil_cli.files.manifest import Manifest
from lrmil_cli.files.patients import bag_entry, patients_of
from lrmil_cli.files.tensors import load_tensors, read_tensor_header
from lrmil_cli.heads import Bag
from lrmil_cli.matching.tile_rows import matched_counts, to_read_rows
from lrmil_cli.models.model_file import save_model
from lrmil_cli.progress import phase
from lrmil_cli.targets.task import PATIENT, SLIDE
from lrmil_cli.training import out_of_fold
from lrmil_cli.training.bags import Bags, embed_cohort, tile_tables
from lrmil_cli.training.cohort_record import looks_of, record_of
from lrmil_cli.training.crossval import HeadSpec
from lrmil_cli.training.fixture import add_fixture, painted, tiles_of_a_slide
from lrmil_cli.training.fold_files import check_fold_number, only_job
from lrmil_cli.training.folds import fold_names, with_intervals
from lrmil_cli.training.follow_teacher import check_classes, check_features, folds_like
from lrmil_cli.training.high_resolution import HighResolution, load_high
from lrmil_cli.training.leaks import SAW_TEST_PIXELS, patients_by_slide
from lrmil_cli.training.loop import TrainSettings
from lrmil_cli.training.patients import patient_bags, patient_targets, slide_folds
from lrmil_cli.training.seeds import as_judged, header_of, settings_of_seed
from lrmil_cli.training.streamed import Room
from lrmil_cli.training.teacher import Teacher, read_teacher

#: Above this share of LR tiles without HR tiles, the two tissue rules probably disagree (distill/README 5.5).
UNMATCHED_WARNING = 0.2


@dataclass
class Result:
    """For the summary.

    Attributes:
        there: was it there already; metrics: pooled; text: the line to show; receipt: None without held-out slides.
    """

    there: bool
    metrics: dict[str, Any]
    text: str
    receipt: dict[str, Any] | None


def train_student(
    manifest: Manifest,
    *,
    tiles: str,
    pairs: str | None,
    encoder: EncoderArgs,
    teacher: str | None,
    features: str | None,
    lr_features: Path,
    baseline: str | None,
    also: str | None,
    head: HeadSpec,
    preset: str,
    distill: DistillSettings,
    training: TrainSettings,
    folds: int,
    fold: int | None = None,
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
    seeds: int = 1,
    keep: str | None = None,
    bag: str = SLIDE,
) -> Result:
    """Train the student heads and write the model file, with predictions, metrics, curves and the receipt beside it.

    Args:
        baseline: spec of the encoder of the LR-only student that is trained for comparison; "auto" for the one that the
            LR encoder was distilled from; None for no such student.
        also: spec of another LR encoder, whose distilled student is trained for comparison; None for none.
        fold: the one (from 1) to train and keep, by a job of its own; the call without it puts the model together.
        room: that bags may be kept in.
        seeds: times that each fold is trained; keep: ``ensemble`` (the default) or ``best`` of them.
        bag: a ``slide``, or all slides of a ``patient``.
        own_fixture: keep tiles of a validation slide in the model, for ``lrmil verify``; else painted ones.

    Raises:
        UsageError, InputError, MachineError: as the parts.
    """
    guide = read_teacher(teacher) if teacher else None
    if distill.uses_teacher and (guide is None or pairs is None):
        raise UsageError(
            f"preset {preset} distils from a teacher: give --teacher and --pairs, or use --preset lr-only or patch"
        )
    manifest = patients_of(manifest) if bag == PATIENT else manifest
    if guide is not None:
        check_classes(guide, manifest)
    table = folds_like(manifest, guide, folds, training.seed)
    manifest = manifest if guide else with_intervals(manifest, table)
    by_slide, slides = slide_folds(manifest, table), manifest.slides
    tables = tile_tables(slides, tiles)
    tile_px = tables[0][1]["settings"]["tile_px"]
    check_fold_number(fold, len(fold_names(table)))
    encoders = load_encoders(encoder, len(fold_names(table)), tile_px, warn, fold)
    encoders.check_labels(by_slide, patients_by_slide(slides))
    info = encoders.first.info
    others = load_encoders(EncoderArgs(also), len(fold_names(table)), tile_px, warn, fold) if also else None
    if others is not None:
        others.check_labels(by_slide, patients_by_slide(slides))
    plain = load_baseline(baseline, encoders.first, tile_px, warn)
    if guide is not None and distill.uses_teacher:
        compare_embeddings(guide, info, say, warn)
    for note in (preset_warning(preset, info.distilled is not None), licence_warning(info)):
        if note:
            warn(note)

    ids = [e.slide_id for e in slides]
    taught = slides_of(by_slide, "train") if distill.uses_teacher else set()
    high = None
    if guide is not None and pairs is not None:  # before tiles are embedded: what is missing should be said at once
        folder = Path(features) if features else guide.features
        wanted = taught | slides_of(
            by_slide, "test"
        )  # those that are only tested serve the receipt, which can do without
        required = taught if distill.missing_teacher == "error" else set()
        high = load_high(ids, wanted, folder, pairs, tables, device, room, required=required)
        check_features(guide, folder, ids, high, warn)
    embedded = partial(
        embed_cohort,
        manifest=slides,
        tables=tables,
        device=device,
        room=room,
        batch_size=batch_size,
        workers=workers,
        on_bad_tile=on_bad_tile,
        dtype=dtype,
        overwrite=overwrite,
        say=say,
    )
    low = []
    with phase("", len(encoders.all), "encoder") as told:
        for e, name in zip(encoders.all, encoders.names):
            low.append(embedded(e, folder=lr_features / name))
            told.advance()
    plain_bags = None
    if plain is not None:
        with phase("the baseline's encoder"):
            plain_bags = embedded(plain, folder=lr_features / "lr-only")
    other = None
    if others is not None:
        with phase("the other encoder"):
            seen = [embedded(e, folder=lr_features / "also" / name) for e, name in zip(others.all, others.names)]
        other = OtherSide(others, seen)
    if high is not None:
        _leave_out_bad(high, low[0], tables)
    counts = _regions(taught, ids, guide, high, low[0], say, warn)
    high = None if high is None else patient_targets(manifest, high, low[0].counts, room)
    bags = partial(patient_bags, manifest, room=room)
    if other is not None:
        other = OtherSide(other.encoders, [bags(own) for own in other.low])
    cohort = StudentCohort(
        manifest,
        table,
        tables[0][1]["settings"],
        encoders,
        [bags(own) for own in low],
        None if plain_bags is None else bags(plain_bags),
        other,
        guide,
        high,
        slides_of(table, "train") if distill.uses_teacher else set(),
        counts,
    )

    own = {
        "head": head.name,
        "options": head.options,
        "preset": preset,
        "distill": distill.as_json(),
        **training.as_json(),
        "folds": table.to_dict("list"),
        **out_of_fold.target_of(manifest.task),
        **bag_entry(manifest),
        "baseline": plain.digest() if plain is not None else None,
        **({"also": [e.digest() for e in others.all]} if others is not None else {}),
    }
    folder = output.with_suffix(".folds")
    runs = [settings_of_seed(training, n) for n in range(seeds)]
    kept = [fold_files(cohort, {**own, "seed": run.seed}, folder, fold, n) for n, run in enumerate(runs)]
    if fold is not None:
        with ExitStack() as jobs:
            for files in kept[0].values():
                jobs.enter_context(only_job(files.path(fold), fold))
            train_runs(cohort, head, distill, runs, keep, device, kept, say, warn, fold)
        return Result(False, {}, f"fold {fold}", None)
    if seeds > 1:
        own |= {"seeds": seeds, "keep": keep or "ensemble"}
    if not own_fixture:
        own["fixture"] = "painted"  # a model that shows tissue is not up to date for who may not pass it on
    inputs = all_inputs(cohort)
    all_files = [f for own_files in kept for f in own_files.values()]
    if up_to_date(output, digest(own, inputs), lambda p: load_tensors(p, "model")[0], overwrite):
        for files in all_files:
            files.discard(len(fold_names(table)))  # left where a run was stopped behind its last file
        receipt = existing_receipt(output) if cohort.tested else None
        return Result(True, read_tensor_header(output, "model")["metrics"], "up to date", receipt)
    for files in all_files:
        files.check_collected(len(fold_names(table)))
    students = train_runs(cohort, head, distill, runs, keep, device, kept, say, warn)
    shown = tiles_of_a_slide(slides, by_slide, tables, say) if own_fixture else painted(tile_px)
    result = _write(output, cohort, students, own, [step("distill-student", own, inputs)], distill, device, say, shown)
    shutil.rmtree(folder, ignore_errors=True)  # all of it is in the model now
    return result


def _leave_out_bad(high: HighResolution, low: Bags[Bag], tables: list[tuple[Path, dict[str, Any]]]) -> None:
    """Let the HR tiles find their LR tiles in bags from which those that cannot be decoded were left out."""
    for i, (slide, header, (table, _)) in enumerate(zip(high.slides, low.headers, tables)):
        if slide is not None and header.get("bad_tiles"):
            coords = low.all.once(i).coords
            assert coords is not None, "feature files have corners"
            slide.parent = to_read_rows(slide.parent, table, coords)


def _regions(
    taught: set[str],
    ids: list[str],
    guide: Teacher | None,
    high: HighResolution | None,
    low: Bags[Bag],
    say: Callable[[str], None],
    warn: Callable[[str], None],
) -> dict[str, int]:
    """Counts of the regions that the teacher speaks of, said aloud (distill/README 5.5); empty without one."""
    if not taught or guide is None or high is None:
        return {}
    parents = [None if slide is None or s not in taught else slide.parent for s, slide in zip(ids, high.slides)]
    counts = matched_counts(parents, low.counts, high.ratio)
    regions = counts["matched"] + counts["unmatched"]
    say(
        f"regions of training slides: {counts['matched']} matched, {counts['unmatched']} without HR tiles, "
        f"{counts['incomplete']} incomplete"
    )
    if counts["unmatched"] > UNMATCHED_WARNING * regions:
        warn(
            f"{counts['unmatched'] / regions:.0%} of the LR tiles have no HR tile; "
            "the tissue thresholds probably disagree"
        )
    if guide.header["attention_kind"] == "derived":
        warn(
            f"the teacher's head ({guide.header['settings']['head']}) has no attention of its own; "
            "a derived one is distilled"
        )
    return counts


def _write(
    output: Path,
    cohort: StudentCohort,
    students: dict[str, Student],
    own: dict[str, Any],
    history: list[dict[str, Any]],
    distill: DistillSettings,
    device: torch.device,
    say: Callable[[str], None],
    shown: tuple[np.ndarray, np.ndarray, dict[str, Any]],
) -> Result:
    """Judge the students and write all files: what stands beside the model, the model, the receipt.

    Args:
        own: the settings that the model's digest is of; shown: the tiles of its fixture.
    """
    manifest, guide, high, encoders = cohort.manifest, cohort.guide, cohort.high, cohort.encoders
    results = students["distilled"].results
    judged = as_judged(results)
    runs = len(students["distilled"].runs)
    eyes = [encoders] if cohort.also is None else [encoders, cohort.also.encoders]
    by_slide = slide_folds(manifest, cohort.folds)
    saw_test = any([e.saw_test_pixels(by_slide, patients_by_slide(manifest.slides)) for e in eyes])
    if saw_test:
        say(SAW_TEST_PIXELS)
    metrics, pooled = out_of_fold.score(manifest, judged)
    # What slides look like is what the first encoder sees, to the folds that read it.
    of_first, first = [k for k, n in enumerate(encoders.of_fold, 1) if n == 0], cohort.low[0].all
    taught_by = {"path": str(guide.path), "metrics": guide.header["metrics"]} if guide is not None else None
    header = make_header(
        "model",
        settings={k: v for k, v in own.items() if k != "folds"},
        history=history,
        **record_of(manifest, cohort.folds, cohort.low[0].slides.headers, judged, results, (metrics, pooled)),
        tiles=cohort.tiles,
        preset=own["preset"],
        regions=cohort.counts,
        encoder_saw_test_pixels=saw_test,
        attention_kind=results[0].fit.head.attention_kind,
        **header_of(runs, own.get("keep"), results),
        **looks_of(manifest, cohort.folds, lambda i: first.once(i).features.cpu().numpy(), of_first),
        license=encoders.first.info.license,
        cost=costs(
            [e.slide_id for e in manifest.slides],
            slides_of(by_slide, "test"),
            cohort.low[0].slides,
            high,
            None if cohort.also is None else cohort.also.low[0].slides,
        ),
        teacher=taught_by if distill.uses_teacher else None,
    )
    if cohort.also is not None:
        header["also"] = cohort.also.title
    agreement = None
    if guide is not None and high is not None:
        agreement = agreement_table(guide, students, high, cohort.ids, distill, device)
    if guide is not None and high is not None and manifest.of is None:
        draw_disagreement(
            output.with_name(output.stem + DISAGREEMENT),
            guide,
            students["distilled"],
            high,
            manifest,
            cohort.tiles,
            distill.region_attention,
            device,
        )
    else:
        remove(output.with_name(output.stem + DISAGREEMENT))  # of an earlier run
    write_beside(output, history, manifest, students, guide, agreement, metrics)
    heads, of = [r.fit.head for r in results], [encoders.of_fold[r.fold - 1] for r in results]
    rest = add_fixture(header, encoders.all, heads, of, shown)
    # Last of the two, because it marks the run as complete; the receipt is then made from what stands beside it.
    save_model(output, header, encoders.all, heads, of, rest)
    text = out_of_fold.summary(own["preset"], metrics, len(judged), manifest.task)
    return Result(False, pooled, text, write_receipt(output) if cohort.tested else None)
