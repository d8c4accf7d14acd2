"""Stage 2, step 2 as a whole: LR bags, teacher targets fold by fold, student heads, the model file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from lrmil_cli.distill.attention_agreement import slide_agreement
from lrmil_cli.distill.settings import DistillSettings, preset_warning
from lrmil_cli.distill.student_loss import terms_of_fold
from lrmil_cli.distill.teacher_targets import crossfit_targets, fold_targets
from lrmil_cli.encoders.aliases import licence_warning
from lrmil_cli.encoders.spec import load_encoder
from lrmil_cli.encoders.vit import Encoder
from lrmil_cli.errors import InputError, MachineError, UsageError
from lrmil_cli.evaluation.receipt import FILES, cost_of, existing_receipt, write_receipt
from lrmil_cli.files.atomic import remove
from lrmil_cli.files.foreign import NAMES
from lrmil_cli.files.header import digest, last_digest, make_header, step, up_to_date
from lrmil_cli.files.manifest import Manifest
from lrmil_cli.files.tables import write_table
from lrmil_cli.files.tensors import load_tensors, read_tensor_header
from lrmil_cli.matching.tile_rows import matched_counts, to_read_rows
from lrmil_cli.models.model_file import save_model
from lrmil_cli.training import crossval
from lrmil_cli.training.bags import Bags, embed_cohort, tile_tables
from lrmil_cli.training.crossval import FoldResult, HeadSpec
from lrmil_cli.training.folds import fold_names, members
from lrmil_cli.training.follow_teacher import check_classes, check_features, folds_like
from lrmil_cli.training.high_resolution import HighResolution, load_high
from lrmil_cli.training.leaks import check_no_label_leak, check_no_leak, encoder_leak
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
    """For the summary: was it there already, pooled metrics, the line to show, the receipt (None without held-out slides)."""

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
    head: HeadSpec,
    preset: str,
    distill: DistillSettings,
    training: TrainSettings,
    folds: int,
    output: Path,
    device: torch.device,
    batch_size: int | None,
    overwrite: bool,
    say: Callable[[str], None],
    warn: Callable[[str], None],
    workers: int | None = None,
    on_bad_tile: str = "fail",
) -> Result:
    """Train the student heads and write the model file, with predictions, metrics, curves and the receipt beside it.

    Args:
        baseline: spec of the encoder of the LR-only student that is trained for comparison; "auto" for the one that the LR
            encoder was distilled from; None for no such student.

    Raises:
        UsageError, InputError, MachineError: as the parts; see the method modules.
    """
    guide = read_teacher(teacher) if teacher else None
    if distill.uses_teacher and (guide is None or pairs is None):
        raise UsageError(
            f"preset {preset} distils from a teacher: give --teacher and --pairs, or use --preset lr-only or patch"
        )
    if guide is not None:
        check_classes(guide, manifest)
    table = folds_like(manifest, guide, folds, training.seed)
    names = fold_names(table)
    tables = tile_tables(manifest, tiles)
    encoders, of_fold = _encoders(encoder, len(names), tables[0][1]["settings"]["tile_px"], warn)
    for n, name in enumerate(names):
        check_no_label_leak(encoders[of_fold[n]].info.distilled, members(table, name)["test"], n + 1)
    plain = _baseline_encoder(baseline, encoders[0], tables[0][1]["settings"]["tile_px"], warn)
    if guide is not None and distill.uses_teacher:
        _compare_embeddings(guide, encoders[0].info.embedding, say, warn)
    for note in (preset_warning(preset, encoders[0].info.distilled is not None), licence_warning(encoders[0].info)):
        if note:
            warn(note)

    ids = [e.slide_id for e in manifest]
    taught = set(table.loc[(table[names] == "train").any(axis=1), "slide_id"]) if distill.uses_teacher else set()
    tested = {s for n in names for s in members(table, n)["test"]}
    high = None
    if (
        guide is not None and pairs is not None
    ):  # before the LR tiles are embedded: what is missing should be said at once
        folder = Path(features) if features else guide.features
        # Slides that are only tested serve the receipt, which can do without them.
        high = load_high(
            ids,
            taught | tested,
            folder,
            pairs,
            tables,
            device,
            required=taught if distill.missing_teacher == "error" else (),
        )
        check_features(guide, folder, ids, high, warn)

    def embedded(e: Encoder, where: Path) -> Bags:
        return embed_cohort(
            e,
            manifest,
            tables,
            where,
            device=device,
            batch_size=batch_size,
            workers=workers,
            on_bad_tile=on_bad_tile,
            overwrite=overwrite,
            say=say,
        )

    lr_bags = [
        embedded(e, lr_features if len(encoders) == 1 else lr_features / f"fold{n}") for n, e in enumerate(encoders, 1)
    ]
    plain_bags = embedded(plain, lr_features / "lr-only") if plain is not None else None
    if high is not None:
        high.parents = [
            p if p is None or not h.get("bad_tiles") else to_read_rows(p, t, b.coords)
            for p, h, (t, _), b in zip(high.parents, lr_bags[0].headers, tables, lr_bags[0].all)
        ]
    counts = {}
    if taught:
        counts = _regions(
            [p if s in taught else None for s, p in zip(ids, high.parents)],
            high.ratio,
            guide,
            [len(b.features) for b in lr_bags[0].all],
            say,
            warn,
        )

    own = {
        "head": head.name,
        "options": head.options,
        "preset": preset,
        "distill": distill.as_json(),
        **training.as_json(),
        "folds": table.to_dict("list"),
        "baseline": plain.digest() if plain is not None else None,
    }
    inputs = {
        "manifest": manifest_digest(manifest),
        **(high.inputs if high is not None else {}),
        **({"teacher": last_digest(guide.header)} if guide is not None else {}),
        **{f"lr{n}/{i}": last_digest(h) for n, b in enumerate(lr_bags) for i, h in zip(ids, b.headers)},
    }
    if up_to_date(output, digest(own, inputs), lambda p: load_tensors(p, "model")[0], overwrite):
        return Result(
            True,
            read_tensor_header(output, "model")["metrics"],
            "up to date",
            existing_receipt(output) if tested else None,
        )

    def bags_of(fold: int) -> Bags:
        return lr_bags[of_fold[fold - 1]]

    untaught: set[str] = set()
    terms = (
        _terms(manifest, table, guide, high, bags_of, distill, training, device, untaught)
        if taught
        else (lambda fold, train: None)
    )
    results = crossval.train_folds(manifest, table, bags_of, head, training, extra_terms=terms, say=say)
    if untaught:
        warn(
            f"{len(untaught)} slide(s) had no teacher target and were trained with the labels alone (--missing-teacher ce-only)"
        )
    students: dict[str, tuple[list[FoldResult], Callable[[int], Bags]]] = {"distilled": (results, bags_of)}
    if plain_bags is not None:
        plain_results = crossval.train_folds(
            manifest, table, lambda k: plain_bags, head, training, say=lambda text: say(f"LR-only, {text}")
        )
        students["lr_only"] = (plain_results, lambda k: plain_bags)
    metrics_rows, pooled = crossval.score(manifest, results)
    leaks = [encoder_leak(encoders[of_fold[n]].info.distilled, table, [name]) for n, name in enumerate(names)]
    if any(leaks):
        say(
            "note: the LR encoder saw the pixels (not the labels) of test slides; for inductive numbers make one encoder a fold "
            "(distill-encoder --slides --fold)"
        )

    history = [step("distill-student", own, inputs)]
    header = make_header(
        "model",
        settings={k: v for k, v in own.items() if k != "folds"},
        history=history,
        classes=list(manifest.classes),
        tiles=tables[0][1]["settings"],
        preset=preset,
        metrics=pooled,
        regions=counts,
        fold_metrics=metrics_rows.astype(object).where(metrics_rows.notna(), None).to_dict("records"),
        encoder_saw_test_pixels=any(leaks),
        attention_kind=results[0].fit.head.attention_kind,
        calibration=crossval.calibration(manifest, results, bags_of),
        license=encoders[0].info.license,
        slides=ids,
        cost=_costs(ids, tested, lr_bags[0], high),
        teacher={"path": str(guide.path), "metrics": guide.header["metrics"]}
        if guide is not None and distill.uses_teacher
        else None,
    )
    # What stands beside the model first, the model last: it marks the run as complete. The receipt comes after it, and one of
    # an earlier model must not be taken for its own.
    common = {"settings": {}, "history": history}
    beside: dict[str, tuple[str, pd.DataFrame | None]] = {
        suffix: ("predictions", crossval.predictions_table(manifest, students[who][0]) if who in students else None)
        for who, suffix in FILES.items()
        if who != "teacher"
    }
    beside[FILES["teacher"]] = ("predictions", guide.predictions() if guide is not None else None)
    beside[".agreement.csv"] = (
        "agreement",
        _agreement(guide, students, high, ids, distill, device) if high is not None else None,
    )
    beside[".metrics.csv"] = ("metrics", metrics_rows)
    stem = output.with_suffix("")
    for ending in ("json", "html", "md", "png"):
        remove(f"{stem}.receipt.{ending}")
    for suffix, (kind, rows) in beside.items():
        if rows is None:  # of an earlier run, it would be untrue now
            remove(f"{stem}{suffix}")
        else:
            write_table(f"{stem}{suffix}", make_header(kind, **common), rows)
    write_curves(Path(f"{stem}.curves.csv"), make_header("curves", **common), results)
    save_model(output, header, encoders, [r.fit.head for r in results], of_fold)
    return Result(
        False, pooled, crossval.summary(preset, metrics_rows, len(results)), write_receipt(output) if tested else None
    )


def _terms(
    manifest: Manifest,
    table: pd.DataFrame,
    guide: Teacher,
    high: HighResolution,
    bags_of: Callable[[int], Bags],
    distill: DistillSettings,
    training: TrainSettings,
    device: torch.device,
    untaught: set[str],
) -> Callable[[int, list[str]], ExtraTerms]:
    """For a fold and its training slides: the distillation terms by the teacher's head of that fold (method 5.2).

    Training slides without a target are added to ``untaught``.
    """
    ids = [e.slide_id for e in manifest]
    at = {s: i for i, s in enumerate(ids)}
    labels = [manifest.classes.index(e.label) for e in manifest]

    def terms(fold: int, train_ids: list[str]) -> ExtraTerms:
        header, head = guide.head(fold)
        check_no_leak(header, members(table, fold_names(table)[fold - 1])["test"], fold)
        train = [at[s] for s in train_ids]
        n_lr = [len(b.features) for b in bags_of(fold).all]
        if distill.crossfit:
            spec = HeadSpec(guide.header["settings"]["head"], guide.header["settings"]["options"])
            targets = crossfit_targets(manifest, train, high, n_lr, distill, spec, training, fold, ids)
        else:
            targets = fold_targets(head.to(device), train, high, n_lr, distill, ids, labels)
        untaught.update(ids[i] for i in train if i not in targets)
        return terms_of_fold(targets, distill, training.seed + fold)

    return terms


def _regions(
    parents: list[torch.Tensor | None],
    ratio: int,
    guide: Teacher,
    n_lr: list[int],
    say: Callable[[str], None],
    warn: Callable[[str], None],
) -> dict[str, int]:
    """Counts of regions that the teacher speaks of, said aloud (method 6.6)."""
    counts = matched_counts(parents, n_lr, ratio)
    regions = counts["matched"] + counts["unmatched"]
    say(
        f"regions of training slides: {counts['matched']} matched, {counts['unmatched']} without HR tiles, {counts['incomplete']} incomplete"
    )
    if counts["unmatched"] > UNMATCHED_WARNING * regions:
        warn(
            f"{counts['unmatched'] / regions:.0%} of the LR tiles have no HR tile; the tissue thresholds probably disagree"
        )
    if guide.header["attention_kind"] == "derived":
        warn(
            f"the teacher's head ({guide.header['settings']['head']}) has no attention of its own; a derived one is distilled"
        )
    return counts


def _costs(ids: list[str], tested: set[str], lr: Bags, high: HighResolution | None) -> dict[str, Any]:
    """Tiles and seconds of the held-out slides, at both resolutions where HR features are there."""
    index = [i for i, s in enumerate(ids) if s in tested]
    if high is None:
        return cost_of({"lr": [lr.headers[i] for i in index]}, {"lr": [len(lr.all[i].features) for i in index]})
    both = [i for i in index if high.bags[i] is not None]
    return cost_of(
        {"hr": [high.headers[i] for i in both], "lr": [lr.headers[i] for i in both]},
        {"hr": [len(high.bags[i].features) for i in both], "lr": [len(lr.all[i].features) for i in both]},
    )


def _agreement(
    guide: Teacher,
    students: dict[str, tuple[list[FoldResult], Callable[[int], Bags]]],
    high: HighResolution,
    ids: list[str],
    distill: DistillSettings,
    device: torch.device,
) -> pd.DataFrame | None:
    """Attention agreement of teacher and students on the held-out slides, one row a student and slide; None if none is known."""
    at = {s: i for i, s in enumerate(ids)}
    rows = []
    for who, (results, bags_of) in students.items():
        for r in results:
            teacher = guide.head(r.fold)[1].to(device)
            for slide_id in r.parts["test"]:
                i = at[slide_id]
                if high.bags[i] is not None:
                    rows.append(
                        {
                            "student": who,
                            "slide_id": slide_id,
                            "fold": r.fold,
                            **slide_agreement(
                                teacher,
                                r.fit.head,
                                high.bags[i],
                                bags_of(r.fold).all[i],
                                high.parents[i],
                                distill.k,
                                distill.region_attention,
                            ),
                        }
                    )
    return pd.DataFrame(rows).astype({"rank_correlation": float, "overlap": float, "chance": float}) if rows else None


def _baseline_encoder(baseline: str | None, lr: Encoder, tile_px: int, warn: Callable[[str], None]) -> Encoder | None:
    """The undistilled encoder, for the LR-only student.

    None where it is not wanted, or, unless it is named, where the student's own encoder is not distilled.

    Raises:
        InputError, MachineError: it cannot be had; the message says how to name it or do without.
    """
    about, auto = lr.info.distilled, baseline == "auto"
    if baseline is None or (auto and about is None):
        return None
    spec = about.get("base_spec") if auto else baseline
    if spec is None or (auto and lr.info.random_init):
        warn(
            "no LR-only student is trained for comparison: the encoder file does not say what it was distilled from "
            "(or that had random weights); name it with --baseline-encoder"
        )
        return None
    try:
        return load_encoder(spec, tile_px=tile_px, input_size=lr.info.image_size, embedding=lr.info.embedding)
    except (InputError, MachineError) as e:
        raise type(e)(
            f"the encoder for the LR-only student of the receipt cannot be loaded: {e}; name another with --baseline-encoder, "
            "or leave the comparison out with --no-baseline"
        ) from e


def _encoders(
    args: EncoderArgs, folds: int, tile_px: int, warn: Callable[[str], None]
) -> tuple[list[Encoder], list[int]]:
    """One shared encoder, or one a fold where the spec holds ``{fold}``; and which encoder each fold uses."""
    specs = [args.spec.replace("{fold}", str(k)) for k in range(1, folds + 1)] if "{fold}" in args.spec else [args.spec]
    encoders = [
        load_encoder(
            s,
            tile_px=tile_px,
            input_size=args.input_size,
            embedding=args.embedding,
            random_init=args.random_init,
            warn=warn,
        )
        for s in specs
    ]
    return encoders, list(range(folds)) if len(specs) > 1 else [0] * folds


def _compare_embeddings(guide: Teacher, own: str, say: Callable[[str], None], warn: Callable[[str], None]) -> None:
    """LR and HR side should describe a tile by the same kind of embedding (method 3.3); features of other tools do not name theirs."""
    theirs = guide.header["encoder"]["embedding"]
    if theirs is None:
        say(
            f"the teacher learned from features of {NAMES[guide.header['made_by']]}, which do not say what embedding they are; "
            f"the student's is {own}, please compare"
        )
    elif theirs != own:
        warn(f"the student's embedding is {own}, the teacher's {theirs}; use the same --embedding on both sides")
