"""Predictions of one model on labelled slides: read from any file the chain makes, joined with the manifest, checked for leaks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lrmil_cli.errors import InputError, UsageError
from lrmil_cli.evaluation.scores import Cases
from lrmil_cli.evaluation.tiles_read import Reading, read_reading
from lrmil_cli.files.header import check_seal, last_digest, parse_header
from lrmil_cli.files.manifest import Manifest
from lrmil_cli.files.tables import read_table, table_suffix
from lrmil_cli.files.tensors import read_tensor_header

COLUMNS = ["slide_id", "patient_id", "label", "fold"]


@dataclass(frozen=True)
class Predictions:
    """What one model says of some slides.

    Attributes:
        name: what the user calls the model; source: the file or folder; kind: ``out-of-fold`` or ``predict``.
        classes: names of the columns of :attr:`probabilities`.
        rows: ``slide_id, patient_id, label, fold``; the last three None where the file does not say.
        probabilities: [n, C].
        made_by: history entry of the command that made them.
        seen: slides its heads were trained or selected on (of a model that ``predict`` used), pixels: slides its LR
            encoder was distilled on; leaks: why the figures may be too good; remarks: what else a reader should know.
        reading: what was read of each slide, where the predictions say so.
    """

    name: str
    source: str
    kind: str
    classes: tuple[str, ...]
    rows: pd.DataFrame
    probabilities: np.ndarray
    made_by: dict[str, Any]
    seen: frozenset[str] = frozenset()
    pixels: frozenset[str] = frozenset()
    leaks: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()
    reading: Reading | None = None

    def cases(self) -> Cases:
        """The arrays that are judged."""
        folds = None if self.rows["fold"].isna().any() else self.rows["fold"].to_numpy(np.int64)
        labels = self.rows["label"].map(self.classes.index).to_numpy(np.int64)
        return Cases(labels, self.probabilities, self.rows["patient_id"].to_numpy(str), folds)

    def take(self, index: np.ndarray) -> Predictions:
        return replace(
            self,
            rows=self.rows.iloc[index].reset_index(drop=True),
            probabilities=self.probabilities[index],
            reading=self.reading.take(index) if self.reading else None,
        )


def read_predictions(argument: str) -> Predictions:
    """Read ``PATH`` or ``NAME=PATH``: a predictions table, a teacher folder, a model file, a folder of prediction JSONs, or one.

    Raises:
        InputError: no such file, nothing that holds predictions, damaged, a slide twice.
    """
    name, given, rest = argument.partition("=")
    name, source = (name, rest) if given and name and not Path(argument).exists() else ("", argument)
    path = Path(source)
    if path.is_dir():
        if (path / "teacher.json").exists() or (path / "predictions.csv").exists():
            found = _table(path / "predictions.csv")
        else:
            found = _records(sorted(path.glob("*.prediction.json")), path)
    elif source.endswith(".safetensors"):
        found = _of_model(path)
    elif source.endswith(".json"):
        found = _records([path], path.parent)
    elif source == "-" or table_suffix(source):
        found = _table(source)
    elif not path.exists():
        raise InputError(f"{source}: no such file or folder")
    else:
        raise InputError(
            f"{source}: holds no predictions; give a predictions table, a teacher folder, a model file, or the folder "
            "of `lrmil predict`"
        )
    _check(found, source)
    return replace(found, name=name or found.name or _default_name(source), source=source)


def _default_name(source: str) -> str:
    """The file name without its endings; of a teacher's folder, or of the predictions.csv in it, the folder's name."""
    path = Path(source)
    if source == "-":
        return "stdin"
    if path.is_dir() or path.name.startswith("predictions."):
        return (path if path.is_dir() else path.parent).resolve().name or "predictions"
    name = path.name.partition(".predictions.")[0]
    return name.removesuffix(table_suffix(name) or ".safetensors")


def _table(path: str | Path) -> Predictions:
    header, rows = read_table(path, "predictions")
    columns = [c for c in rows.columns if c.startswith("prob_")]
    if not columns:
        raise InputError(f"{path}: no column prob_<class>; run the command that made it again")
    probabilities = rows[columns].apply(pd.to_numeric, errors="coerce").to_numpy(np.float64)
    return Predictions(
        "",
        str(path),
        "out-of-fold",
        tuple(c.removeprefix("prob_") for c in columns),
        rows[COLUMNS],
        probabilities,
        header["history"][-1] if header["history"] else {},
    )


def _of_model(path: Path) -> Predictions:
    """The out-of-fold predictions beside a model file."""
    header = read_tensor_header(path, "model")
    table = path.with_name(f"{path.stem}.predictions.csv")
    if not table.exists():
        raise InputError(
            f"{path}: its out-of-fold predictions ({table.name}) are not beside it; copy them there, or predict slides "
            "it was not trained on with `lrmil predict` and evaluate those"
        )
    found = _table(table)
    if found.made_by.get("digest") != last_digest(header):
        raise InputError(f"{table}: not the predictions of {path.name}; run `lrmil distill-student` again")
    if header.get("encoder_saw_test_pixels"):
        return replace(found, remarks=("its LR encoder was distilled on pixels (not labels) of test slides",))
    return found


def _records(paths: list[Path], folder: Path) -> Predictions:
    """Prediction JSONs of ``lrmil predict``, all of one model."""
    if not paths:
        raise InputError(f"{folder}: no predictions in it (looked for predictions.csv and *.prediction.json)")
    records = [_record(p) for p in paths]
    first = records[0]
    classes = tuple(first["probabilities"])
    for path, r in zip(paths, records):
        if r["model"]["digest"] != first["model"]["digest"]:
            raise InputError(f"{path}: predicted by another model than {paths[0].name}; keep one folder a model")
        if set(r["probabilities"]) != set(classes):
            raise InputError(f"{path}: other classes than {paths[0].name}")
    rows = pd.DataFrame({"slide_id": [r["slide"]["id"] for r in records]}).reindex(columns=COLUMNS).astype(object)
    rows = rows.where(rows.notna(), None)
    probabilities = np.array([[r["probabilities"][c] for c in classes] for r in records], dtype=np.float64)
    name = Path(first["model"]["path"]).stem
    try:
        reading = read_reading(records, classes)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as e:
        raise InputError(
            f"{folder}: a prediction does not say what was read as it should ({e!r}); run `lrmil predict` again"
        ) from e
    found = Predictions(
        name,
        str(folder),
        "predict",
        classes,
        rows,
        probabilities,
        first["history"][-1] if first["history"] else {},
        reading=reading,
    )
    return _with_training(found, first["model"], folder)


def _record(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as e:
        raise InputError(f"{path}: no such file") from e
    except (OSError, UnicodeDecodeError) as e:
        raise InputError(f"{path}: cannot be read ({type(e).__name__})") from e
    record = check_seal(parse_header(text, "prediction", str(path)), str(path))
    try:
        json.dumps([record["slide"]["id"] + "", record["model"]["path"] + "", record["model"]["digest"] + ""])
        if not record["probabilities"]:
            raise ValueError("no class")
        record["probabilities"] = {str(c): float(v) for c, v in record["probabilities"].items()}
    except (KeyError, TypeError, ValueError, AttributeError) as e:
        raise InputError(f"{path}: the prediction is damaged; run `lrmil predict` again") from e
    return record


def _with_training(found: Predictions, model: dict[str, Any], folder: Path) -> Predictions:
    """Add what the model that made the predictions has seen in training, where its file can be found."""
    for path in (Path(model["path"]), folder / Path(model["path"]).name, folder.parent / Path(model["path"]).name):
        try:
            header = read_tensor_header(path, "model")
        except InputError:
            continue
        if last_digest(header) == model["digest"]:
            pixels, labels = (
                frozenset(s for e in header.get("encoders", []) for s in (e.get("distilled") or {}).get(key, []))
                for key in ("slides", "label_slides")
            )
            return replace(
                found, seen=frozenset(header.get("slides", [])) - _held_out(path, header) | labels, pixels=pixels
            )
    return replace(
        found,
        remarks=(
            f"the model file {model['path']} was not found, so whether it was trained on these slides is not checked",
        ),
    )


def _held_out(path: Path, header: dict[str, Any]) -> frozenset[str]:
    """Slides of the model's cohort that none of its heads was trained or selected on: test slides of every fold."""
    try:
        table, rows = read_table(path.with_name(f"{path.stem}.predictions.csv"), "predictions")
    except InputError:
        return frozenset()
    if last_digest(table) != last_digest(header):
        return frozenset()
    folds = rows.groupby("slide_id")["fold"].nunique()
    return frozenset(folds[folds == len(header.get("heads", []))].index)


def _check(found: Predictions, source: str) -> None:
    twice = found.rows.duplicated(["slide_id", "fold"])
    if twice.any():
        raise InputError(f"{source}: slide {found.rows['slide_id'][twice].iloc[0]!r} is predicted twice")
    if not len(found.rows):
        raise InputError(f"{source}: holds no predictions of any slide")
    p = found.probabilities
    bad = np.flatnonzero(~np.isfinite(p).all(1) | (p < 0).any(1) | (np.abs(p.sum(1) - 1) > 1e-3))
    if bad.size:
        raise InputError(
            f"{source}: slide {found.rows['slide_id'].iloc[bad[0]]!r}: its probabilities are not numbers that sum to 1"
        )
    if len(found.classes) < 2 or len(set(found.classes)) < len(found.classes):
        raise InputError(
            f"{source}: the classes are {', '.join(found.classes)}; at least two different ones are needed"
        )


def join(models: Sequence[Predictions], manifest: Manifest | None) -> list[Predictions]:
    """The predictions with the manifest's labels and patients, classes in one order, slides without label left out.

    Patients are the manifest's where it has any, else those of the table. Without a manifest, tables keep their own labels.

    Raises:
        UsageError: two models of one name, or a manifest is needed and missing.
        InputError: classes that do not agree, a label that differs or that no model knows, no slide in common.
    """
    names = [m.name for m in models]
    twice = next((n for n in names if names.count(n) > 1), None)
    if twice is not None:
        raise UsageError(
            f"two models are called {twice!r}; name them, as in a={models[0].source} b={models[-1].source}"
        )
    classes = tuple(sorted(models[0].classes))
    for m in models:
        if set(m.classes) != set(classes):
            raise InputError(
                f"{m.source}: knows the classes {', '.join(sorted(m.classes))}, but {models[0].source} knows {', '.join(classes)}"
            )
    out = [_labelled(_reordered(m, classes), manifest) for m in models]
    known: dict[str, tuple[str, str]] = {}
    for m in out:
        for slide, patient, label in m.rows[["slide_id", "patient_id", "label"]].itertuples(index=False):
            if known.setdefault(slide, (patient, label)) != (patient, label):
                raise InputError(
                    f"{m.source}: slide {slide!r} has another label or patient than in the other predictions; "
                    "give the true ones with --slides"
                )
    return [_with_leaks(m, manifest) for m in out]


def _reordered(m: Predictions, classes: tuple[str, ...]) -> Predictions:
    order = [m.classes.index(c) for c in classes]
    return replace(
        m,
        classes=classes,
        probabilities=m.probabilities[:, order],
        reading=m.reading.in_order(order) if m.reading else None,
    )


def _labelled(m: Predictions, manifest: Manifest | None) -> Predictions:
    if manifest is None:
        if m.rows["label"].isna().any():
            raise UsageError(f"{m.source}: the files of `lrmil predict` hold no labels; add --slides slides.csv")
        return _with_known_labels(m, m.source)
    entries = {e.slide_id: e for e in manifest if e.label is not None}
    there = m.rows["slide_id"].isin(entries).to_numpy()
    if not there.any():
        raise InputError(
            f"{m.source}: none of its {len(there)} slides has a label in {manifest.path} "
            f"(there: {next(iter(entries), 'none')}, here: {m.rows['slide_id'].iloc[0]}); is it the right manifest?"
        )
    missing = len(set(entries) - set(m.rows["slide_id"]))
    remarks = [*m.remarks]
    if not there.all():
        remarks.append(f"{_slides((~there).sum())} left out: no label in {manifest.path.name}")
    if missing:
        remarks.append(f"{_slides(missing)} of {manifest.path.name} not predicted")
    m = replace(m.take(np.flatnonzero(there)), remarks=tuple(remarks))
    rows = m.rows.copy()
    truth = [entries[s] for s in rows["slide_id"]]
    for own, e in zip(rows["label"], truth):
        if own is not None and own != e.label:
            raise InputError(
                f"{m.source}: slide {e.slide_id!r} is {own!r} there, but {e.label!r} in {manifest.path}; "
                "correct one of them, or train again"
            )
    rows["label"] = [e.label for e in truth]
    # A manifest without the column patient_id says nothing: there every slide is its own patient.
    if rows["patient_id"].isna().any() or any(e.patient_id != e.slide_id for e in manifest):
        rows["patient_id"] = [e.patient_id for e in truth]
    return _with_known_labels(replace(m, rows=rows), str(manifest.path))


def _with_known_labels(m: Predictions, where: str) -> Predictions:
    unknown = m.rows[~m.rows["label"].isin(m.classes)]
    if len(unknown):
        raise InputError(
            f"{where}: slide {unknown['slide_id'].iloc[0]!r} is of class {unknown['label'].iloc[0]!r}, which {m.source} "
            f"does not know (it knows {', '.join(m.classes)})"
        )
    return m


def _with_leaks(m: Predictions, manifest: Manifest | None) -> Predictions:
    """Say which judged slides the model may know from training."""
    ids, patients = m.rows["slide_id"], m.rows["patient_id"]
    leaks, remarks = [], list(m.remarks)
    if m.kind == "predict":
        known = ids.isin(m.seen)
        patient_of = {} if manifest is None else {e.slide_id: e.patient_id for e in manifest}
        kin = ~known & patients.isin({patient_of[s] for s in m.seen if s in patient_of})
        pixels = ids.isin(m.pixels) & ~known
        if known.any():
            leaks.append(
                f"the model was trained or selected on {known.sum()} of these {len(ids)} slides (the first: {ids[known].iloc[0]}), "
                "so its figures are too good; judge it by its out-of-fold predictions or on other slides"
            )
        if kin.any():
            leaks.append(
                f"the model was trained on other slides of the same patients for {_slides(kin.sum())} (the first: "
                f"{ids[kin].iloc[0]}), so its figures may be too good"
            )
        if pixels.any():
            remarks.append(f"its LR encoder was distilled on the pixels (not the labels) of {_slides(pixels.sum())}")
    else:
        tested = m.rows.groupby("slide_id")["fold"].agg(frozenset)
        torn = sorted(p for p, own in ids.groupby(patients) if tested[own.unique()].nunique() > 1)
        if torn:
            leaks.append(
                f"slides of {len(torn)} patient(s) were tested in different folds (the first: {torn[0]}): heads were judged on "
                "patients they were trained on, so the figures may be too good"
            )
    return replace(m, leaks=tuple(leaks), remarks=tuple(remarks))


def _slides(n: int) -> str:
    return f"{n} slide{'s' if n != 1 else ''}"


def common(models: Sequence[Predictions]) -> list[Predictions]:
    """All models on the slides that all of them predicted, in one order.

    A slide that was tested in several folds is matched fold by fold; a model that predicted it once answers for each.
    """
    repeated = [bool(m.rows["slide_id"].duplicated().any()) for m in models]
    rows = [
        {(slide, fold if again else None): i for i, (slide, fold) in enumerate(zip(m.rows["slide_id"], m.rows["fold"]))}
        for m, again in zip(models, repeated)
    ]
    asked = [r for r, again in zip(rows, repeated) if again] or rows
    found = [[r.get(key if again else (key[0], None)) for r, again in zip(rows, repeated)] for key in sorted(asked[0])]
    index = np.array([row for row in found if None not in row], dtype=np.int64).reshape(-1, len(models))
    return [m.take(index[:, n]) for n, m in enumerate(models)]
