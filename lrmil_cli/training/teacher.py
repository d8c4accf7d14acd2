"""The HR teacher: a head a fold, kept in a folder that the student reads (training/README 6).

``fold<k>/head.safetensors``, ``folds.csv``, ``predictions.csv``, ``metrics.csv``, ``curves.csv``, ``curves.png`` and,
written last, ``teacher.json``: a folder without it is unfinished.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from lrmil_cli.errors import InputError, UsageError
from lrmil_cli.files.atomic import remove, write_text
from lrmil_cli.files.header import check_seal, digest, last_digest, make_header, parse_header, sealed, step, up_to_date
from lrmil_cli.files.manifest import Manifest
from lrmil_cli.files.patients import bag_entry
from lrmil_cli.files.tables import read_table, write_table
from lrmil_cli.heads import Bag, MILHead
from lrmil_cli.heads.checkpoint import load_head
from lrmil_cli.slide_places import as_seen_from
from lrmil_cli.targets.task import Task, bag_of, task_of
from lrmil_cli.training import crossval, out_of_fold
from lrmil_cli.training.bags import Bags, shared_tiles
from lrmil_cli.training.cohort_record import probe_of
from lrmil_cli.training.crossval import FoldResult, HeadSpec
from lrmil_cli.training.curves import NAMES, plain, plot_curves
from lrmil_cli.training.fold_files import FoldFiles, check_fold_number, only_job
from lrmil_cli.training.folds import fold_names, members, with_intervals
from lrmil_cli.training.leaks import SAW_TEST_PIXELS, check_no_label_leak, encoder_leak, patients_by_slide
from lrmil_cli.training.loop import TrainSettings
from lrmil_cli.training.objectives import watched_of
from lrmil_cli.training.patients import slide_folds
from lrmil_cli.training.seeds import header_of, kept_heads, seeds_table, settings_of_seed


@dataclass(frozen=True)
class Teacher:
    """A finished teacher folder: header of ``teacher.json`` and the fold table."""

    path: Path
    header: dict[str, Any]
    folds: pd.DataFrame

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(self.header["classes"])

    @property
    def task(self) -> Task:
        return task_of(self.header)

    @property
    def bag(self) -> str:
        """What its bags were: ``slide`` or ``patient``."""
        return bag_of(self.header)

    @property
    def features(self) -> Path:
        """The folder of HR features it was trained on: where it was, where it lies as seen from the teacher (a project
        was moved), or beside the heads (the teacher was)."""
        recorded = Path(self.header["features"])
        moved = (self.path / str(self.header.get("beside", "features")), self.path / "features")
        return next((place for place in (recorded, *moved) if place.is_dir()), recorded)

    def predictions(self) -> tuple[dict[str, Any], pd.DataFrame]:
        """Header and rows of its out-of-fold predictions."""
        return read_table(self.path / "predictions.csv", "predictions")

    def head(self, fold: int) -> tuple[dict[str, Any], MILHead]:
        """Header and head of a fold."""
        return load_head(self.path / f"fold{fold}" / "head.safetensors")


def read_teacher_header(path: str | Path) -> dict[str, Any]:
    """Header of ``teacher.json`` in a teacher folder.

    Raises:
        InputError: no teacher there, or an unfinished one.
    """
    path = Path(path)
    try:
        text = (path / "teacher.json").read_text(encoding="utf-8")
    except FileNotFoundError as e:
        what = "training was not finished" if path.is_dir() else "no such folder"
        raise InputError(f"{path}: no teacher.json in it ({what}); run `lrmil train-teacher` with -o {path}") from e
    except (OSError, UnicodeDecodeError) as e:
        raise InputError(
            f"{path}: cannot be read as a teacher folder ({type(e).__name__}); check its permissions and the disk"
        ) from e
    header = parse_header(text, "teacher", str(path / "teacher.json"))
    header = check_seal(header, str(path / "teacher.json"))
    if not (isinstance(header.get("classes"), list) and isinstance(header.get("features"), str)):
        raise InputError(f"{path / 'teacher.json'}: incomplete; run `lrmil train-teacher` again")
    return header


def read_teacher(path: str | Path) -> Teacher:
    """Open a teacher folder.

    Raises:
        InputError: as :func:`read_teacher_header`, or the fold table is damaged.
    """
    header = read_teacher_header(path)
    return Teacher(Path(path), header, read_table(Path(path) / "folds.csv", "folds")[1])


def manifest_digest(manifest: Manifest) -> str:
    """Digest of what training takes from a manifest: ids, labels, patients, splits."""
    return digest({"rows": [[e.slide_id, e.label, e.patient_id, e.split, e.folds] for e in manifest]}, {})


def train_teacher(
    manifest: Manifest,
    folds: pd.DataFrame,
    bags: Bags[Bag],
    spec: HeadSpec,
    settings: TrainSettings,
    output: str | Path,
    features: Path,
    *,
    fold: int | None = None,
    seeds: int = 1,
    overwrite: bool = False,
    say: Callable[[str], None] = lambda text: None,
) -> tuple[dict[str, Any] | None, bool]:
    """Train and write the teacher.

    Args:
        seeds: times that each fold is trained; the head that teaches is the best of them by validation.
        bags: HR bags of all entries of ``manifest``, slides or patients; features: the folder they are kept in.
        fold: the one (from 1) to train and keep, by a job of its own; the call without it puts the teacher together.

    Returns:
        the header of ``teacher.json`` (None with ``fold``), and True if it was up to date.

    Raises:
        UsageError: the folder holds a teacher of other inputs or settings and ``overwrite`` is off; or another job
            trains the fold.
        InputError: jobs have trained some folds and not all, or not as this call would.
        MachineError: a file cannot be written.
    """
    output, manifest = Path(output), with_intervals(manifest, folds)
    encoder, patients = bags.headers[0]["encoder"], patients_by_slide(manifest.slides)
    by_slide = slide_folds(manifest, folds)
    distilled = encoder.get("distilled") if isinstance(encoder, dict) else None  # other tools give a name, if at all
    for k, name in enumerate(fold_names(folds), 1):
        check_no_label_leak(distilled, members(by_slide, name)["test"], k, patients)
    saw_test = encoder_leak(distilled, by_slide, fold_names(folds), patients)
    if saw_test:
        say(SAW_TEST_PIXELS)
    plain = {"head": spec.name, "options": spec.options, **settings.as_json(), "folds": folds.to_dict("list")}
    plain |= out_of_fold.target_of(manifest.task) | bag_entry(manifest)
    own = {**plain, "seeds": seeds} if seeds > 1 else plain
    inputs = {
        "manifest": manifest_digest(manifest),
        **{f"features/{e.slide_id}": last_digest(h) for e, h in zip(manifest, bags.headers)},
    }
    wanted = digest(own, inputs)
    if (output / "teacher.json").exists() and up_to_date(
        output / "teacher.json", wanted, lambda p: read_teacher_header(p.parent), overwrite
    ):
        problem = _damage(output, wanted, len(fold_names(folds)))
        if problem is None:
            return read_teacher_header(output), True
        say(f"{problem}; what is damaged is made again")
    if output.exists() and not output.is_dir():
        raise UsageError(f"{output} is a file; -o names the teacher's folder")
    check_fold_number(fold, len(fold_names(folds)))
    remove(output / "teacher.json")
    for stale in output.glob("fold*"):
        if stale.is_dir() and stale.name[4:].isdigit() and int(stale.name[4:]) > len(fold_names(folds)):
            shutil.rmtree(stale)
    history = [step("train-teacher", own, inputs)]
    target = out_of_fold.target_of(manifest.task)

    def files(name: str, settings: dict[str, Any]) -> FoldFiles:
        made = digest(settings, inputs)
        alone = fold is not None
        return FoldFiles(
            output, name, "train-teacher", manifest.classes, settings, lambda k: inputs, lambda k: made, alone
        )

    runs = [settings_of_seed(settings, n) for n in range(seeds)]
    many = seeds > 1
    kept = [files(f"head.seed{n}" if many else "head", {**plain, "seed": r.seed}) for n, r in enumerate(runs, 1)]

    def train(n: int, only: int | None = None) -> list[FoldResult]:
        told = (lambda text: say(f"seed {n + 1}, {text}")) if many else say
        how: dict[str, Any] = {"known": kept[n].taken_over(told), "done": kept[n].keep, "only": only, "say": told}
        return crossval.train_folds(manifest, folds, lambda k: bags, spec, runs[n], who="teacher", **how)

    if fold is not None:
        with only_job(kept[0].path(fold), fold):
            for n in range(seeds):
                train(n, only=fold)
        return None, False
    for one in kept:
        one.check_collected(len(fold_names(folds)))
    trained = [train(n) for n in range(seeds)]
    results = kept_heads(trained, "best", settings.monitor, manifest.task)
    if many:
        for result in results:
            files("head", own).keep(result)
    table, pooled = out_of_fold.score(manifest, results)
    common: dict[str, Any] = {"settings": {}, "history": history}
    write_table(output / "folds.csv", make_header("folds", **common), folds)
    said = make_header("predictions", **common, **out_of_fold.table_header(manifest, results))
    write_table(output / "predictions.csv", said, out_of_fold.predictions_table(manifest, results))
    if many:
        write_table(output / "seeds.csv", make_header("seeds", **common), seeds_table(manifest, {"teacher": trained}))
    write_table(output / "metrics.csv", make_header("metrics", **common), table)
    write_curves(output / "curves.csv", make_header("curves", **common), results, task=manifest.task)
    header = make_header(
        "teacher",
        settings={k: v for k, v in own.items() if k != "folds"},
        history=history,
        classes=list(manifest.classes),
        **target,
        **bag_entry(manifest),
        features=str(Path(features).absolute()),
        **as_seen_from(output, Path(features).absolute()),
        encoder=encoder,
        tiles=shared_tiles(bags),
        made_by=bags.headers[0].get("made_by", "lrmil"),
        feature_digests={e.slide_id: last_digest(h) for e, h in zip(manifest.slides, bags.slides.headers)},
        encoder_digest=bags.headers[0]["settings"].get("encoder"),
        calibration=out_of_fold.calibration(results),
        in_dim=bags.dim,
        metrics=pooled,
        attention_kind=results[0].fit.head.attention_kind,
        folds=len(results),
        encoder_saw_test_pixels=saw_test,
        **header_of(seeds, "best", results),
        site_probe=probe_of(manifest, lambda i: bags.all.once(i).features.mean(0).cpu().numpy()),
    )
    write_text(output / "teacher.json", json.dumps(sealed(header), indent=1, allow_nan=False) + "\n")
    return header, False


def _damage(output: Path, wanted: str, folds: int) -> str | None:
    """What of a finished teacher cannot be read, or is of another run."""
    try:
        headers = [
            read_table(output / f"{kind}.csv", kind)[0] for kind in ("folds", "predictions", "metrics", "curves")
        ]
        headers += [load_head(output / f"fold{k}" / "head.safetensors")[0] for k in range(1, folds + 1)]
    except InputError as e:
        return str(e)
    return None if all(last_digest(h) == wanted for h in headers) else f"{output}: holds files of another run"


def write_curves(
    path: Path,
    header: dict[str, Any],
    results: Sequence[FoldResult],
    panels: list[tuple[str, list[str]]] | None = None,
    task: Task = Task(),
) -> None:
    """Curves as ``path`` (CSV) and as a PNG of the same stem.

    Args:
        panels: as :func:`plot_curves` takes them; by default the loss terms, and what else the head notes.
    """
    curves = out_of_fold.curves_table(results)
    write_table(path, header, curves)
    if panels is None:
        names = [c.removeprefix("train_") for c in curves.columns if c.startswith("train_") and c != "train_total"]
        panels = [(plain(name), [name]) for name in ("train_total", *watched_of(task))]
        if len(names) > 1:
            both = [name for name in names if f"val_{name}" in curves]
            panels[1:1] = [(plain(f"train_{name}"), [f"train_{name}"]) for name in names if name not in both]
            panels += [(NAMES.get(name, name), [f"val_{name}", f"train_{name}"]) for name in both]
    plot_curves(
        path.with_suffix(".png"),
        curves.fillna(dict.fromkeys(watched_of(task), float("nan"))),
        panels,
        {r.fold: r.fit.best_epoch for r in results},
    )
