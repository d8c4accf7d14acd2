"""What one model says of some slides, read from any file of the chain that holds predictions (evaluation/README 8)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np
import pandas as pd

from lrmil_cli.errors import InputError, no_such_file
from lrmil_cli.evaluation.scores import Cases
from lrmil_cli.evaluation.target_predictions import TRUTH, check_record, said_of_records, said_of_table
from lrmil_cli.evaluation.tiles_read import Reading, read_reading
from lrmil_cli.evaluation.training_slides import LABELS, PIXELS, model_name, training_slides
from lrmil_cli.files.header import check_seal, last_digest, parse_header
from lrmil_cli.files.tables import read_table, read_table_header, table_suffix
from lrmil_cli.files.tensors import read_tensor_header
from lrmil_cli.targets.task import SLIDE, Task, bag_of, task_of

#: Further columns, of tables that know them; ids of the slides of a patient, with ``|`` between them.
SITE, SLIDES = "site", "slides"


@dataclass(frozen=True)
class Predictions:
    """What one model says of some slides.

    Attributes:
        name: what the user calls the model; source: the file or folder; kind: ``out-of-fold`` or ``predict``.
        classes: names of the columns of :attr:`probabilities`.
        rows: ``slide_id, patient_id, label, fold``; the last three None where the file does not say; ``site``, and
            what else cases are to be grouped by (text, "" where nobody says it), where that is known.
        probabilities: [n, C].
        made_by: history entry of the command that made them.
        seen: slides its heads were trained or selected on (of a model that ``predict`` used).
        pixels: slides its LR encoder was distilled on.
        leaks: why the figures may be too good; remarks: what else a reader should know.
        reading: what was read of each slide, where the predictions say so.
        raw: [n, C], the same before calibration, where the file has them and they are others.
        sets: bool [n, C], the prediction sets, where all predictions have one; coverage: what they promise.
        heads: [n, F, C], what each head of the model said before calibration, of ``lrmil predict``.
        of_model: digest of the model that made them; model_header: its header, where its file was found.
        unlike: bool [n], slides unlike the training slides, where all predictions say so.
        task: what is predicted; of numbers and of survival there are no classes, ``rows`` has the columns of
            ``target_predictions.TRUTH`` in place of ``label``, and said what the model says of each slide.
        bag: what a row is: a ``slide``, or a ``patient`` (``slide_id`` is the patient then) with its ``slides``.
        times: at which the curves of ``said`` are known.
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
    raw: np.ndarray | None = None
    sets: np.ndarray | None = None
    coverage: float | None = None
    heads: np.ndarray | None = None
    of_model: str | None = None
    model_header: dict[str, Any] | None = None
    unlike: np.ndarray | None = None
    task: Task = Task()
    said: pd.DataFrame | None = None
    times: tuple[float, ...] = ()
    bag: str = SLIDE

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
            raw=None if self.raw is None else self.raw[index],
            sets=None if self.sets is None else self.sets[index],
            heads=None if self.heads is None else self.heads[index],
            unlike=None if self.unlike is None else self.unlike[index],
            said=None if self.said is None else self.said.iloc[index].reset_index(drop=True),
        )

    def as_raw(self) -> Predictions:
        """The same with the probabilities before calibration."""
        assert self.raw is not None
        return replace(self, probabilities=self.raw)


def read_predictions(argument: str) -> Predictions:
    """Read ``PATH`` or ``NAME=PATH``.

    A predictions table, a teacher folder, a model file, a folder of prediction JSONs, or one of these.

    Raises:
        InputError: no such file, nothing that holds predictions, damaged, a slide twice.
    """
    name, given, rest = argument.partition("=")
    name, source = (name, rest) if given and name and not Path(argument).exists() else ("", argument)
    path = Path(source)
    if path.is_dir():
        table = path / "predictions.csv"
        if (path / "teacher.json").exists() or (table.exists() and not _is_answers(table)):
            found = _table(table)
        else:
            found = _records(sorted(path.glob("*.prediction.json")), path)
    elif source.endswith(".safetensors"):
        found = _of_model(path)
    elif source.endswith(".json"):
        found = _records([path], path.parent)
    elif source != "-" and table_suffix(source) and _is_answers(path):
        found = _records(sorted(path.parent.glob("*.prediction.json")), path.parent)
    elif source == "-" or table_suffix(source):
        found = _table(source)
    elif not path.exists():
        raise InputError(no_such_file(source, what="file or folder"))
    else:
        raise InputError(
            f"{source}: holds no predictions; give a predictions table, a teacher folder, a model file, or the folder "
            "of `lrmil predict`"
        )
    _check(found, source)
    return replace(found, name=name or found.name or _default_name(source), source=source)


def _is_answers(table: Path) -> bool:
    """Whether a table is the one that ``predict`` keeps of its records, which say more."""
    try:
        read_table_header(table, "answers")
    except InputError:
        return False
    return True


def _models_of(folder: Path) -> list[str]:
    """Names of the models whose answers a folder holds in folders of their own."""
    try:
        return [str(m) for m in read_table_header(folder / "predictions.csv", "answers").get("models", [])]
    except (InputError, OSError):
        return []


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
    if SITE in rows:
        rows[SITE] = rows[SITE].fillna("").astype(str)
    made_by, task = _made_by(header), task_of(header)
    kept = [*_columns(task), *(c for c in (SITE, SLIDES) if c in rows)]
    common: dict[str, Any] = {"of_model": made_by.get("digest"), "bag": bag_of(header)}
    if not task.classes:
        said, times = said_of_table(task, header, rows, str(path))
        own: dict[str, Any] = {"task": task, "said": said, "times": times, **common}
        return Predictions("", str(path), "out-of-fold", (), rows[kept], np.empty((len(rows), 0)), made_by, **own)
    columns = [c for c in rows.columns if c.startswith("prob_")]
    if not columns:
        raise InputError(f"{path}: no column prob_<class>; run the command that made it again")
    probabilities = rows[columns].apply(pd.to_numeric, errors="coerce").to_numpy(np.float64)
    classes = tuple(c.removeprefix("prob_") for c in columns)
    raw = None
    if all(f"raw_{c}" in rows for c in classes):
        raw = rows[[f"raw_{c}" for c in classes]].apply(pd.to_numeric, errors="coerce").to_numpy(np.float64)
    found = Predictions("", str(path), "out-of-fold", classes, rows[kept], probabilities, made_by, **common)
    return _with_raw(found, raw)


def _columns(task: Task) -> list[str]:
    return ["slide_id", "patient_id", *TRUTH[task.kind], "fold"]


def _with_raw(found: Predictions, raw: np.ndarray | None) -> Predictions:
    """With the probabilities before calibration, where there are any and calibration changed some."""
    return found if raw is None or np.allclose(raw, found.probabilities, atol=1e-8) else replace(found, raw=raw)


def _made_by(header: dict[str, Any]) -> dict[str, Any]:
    """The last entry of a file's history; empty where it has none."""
    return header["history"][-1] if header["history"] else {}


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
        several = _models_of(folder)
        raise InputError(
            f"{folder}: answers of several models; give the folder of one, such as {folder / several[0]}"
            if several
            else f"{folder}: no predictions in it (looked for predictions.csv and *.prediction.json)"
        )
    records = [read_record(p) for p in paths]
    bags = {bag_of(r) for r in records}
    if len(bags) > 1:
        raise InputError(f"{folder}: answers for slides and for patients; keep one folder a model")
    both: dict[str, Any] = {"of_model": records[0]["model"]["digest"], "bag": bags.pop()}
    first, task = records[0], task_of(records[0])
    classes = tuple(first["probabilities"]) if task.classes else ()
    for path, r in zip(paths, records):
        if r["model"]["digest"] != first["model"]["digest"]:
            raise InputError(f"{path}: predicted by another model than {paths[0].name}; keep one folder a model")
        if task.classes and set(r["probabilities"]) != set(classes):
            raise InputError(f"{path}: other classes than {paths[0].name}; keep one folder a model")
    rows = pd.DataFrame({"slide_id": [r["slide"]["id"] for r in records]}).reindex(columns=_columns(task))
    rows = rows.astype(object).where(rows.notna(), None)
    name = Path(_file_name(first["model"]["path"])).stem
    try:
        both["reading"] = read_reading(records, classes)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as e:
        raise InputError(
            f"{folder}: a prediction does not say what was read as it should ({e!r}); run `lrmil predict` again"
        ) from e
    if not task.classes:
        said, times = said_of_records(task, records, str(folder))
        own: dict[str, Any] = {"task": task, "said": said, "times": times, **both}
        nothing = np.empty((len(rows), 0))
        found = Predictions(name, str(folder), "predict", (), rows, nothing, _made_by(first), **own)
        return _with_training(_with_unlike(found, records), records, folder)
    probabilities = np.array([[r["probabilities"][c] for c in classes] for r in records], dtype=np.float64)
    both["heads"] = _heads(records, classes)
    found = Predictions(name, str(folder), "predict", classes, rows, probabilities, _made_by(first), **both)
    if all("probabilities_raw" in r for r in records):
        found = _with_raw(found, np.array([[r["probabilities_raw"][c] for c in classes] for r in records]))
    return _with_training(_with_sets(_with_unlike(found, records), records, folder), records, folder)


def _with_unlike(found: Predictions, records: list[dict[str, Any]]) -> Predictions:
    if not all(isinstance(r.get("unlike_training"), dict) for r in records):
        return found
    return replace(found, unlike=np.array([bool(r["unlike_training"].get("unlike")) for r in records]))


def _heads(records: list[dict[str, Any]], classes: Sequence[str]) -> np.ndarray | None:
    """What each head said before calibration, [n, F, C]; None where a record does not say it, or a teacher did.

    Before there was a calibration of each head, ``folds`` were as the heads are.
    """
    if any(r.get("answered_at") == "hr" for r in records):
        return None
    try:
        said = [r["folds_raw"] if "folds_raw" in r else r["folds"] for r in records]
        return np.array([[own[c] for c in classes] for own in said], np.float64).transpose(0, 2, 1)
    except (KeyError, TypeError, ValueError):
        return None


def _with_sets(found: Predictions, records: list[dict[str, Any]], folder: Path) -> Predictions:
    """With the prediction sets, where all predictions have one.

    Raises:
        InputError: sets of several coverages, or damaged ones.
    """
    if not all("prediction_set" in r for r in records):
        return found
    try:
        own = [r["prediction_set"] for r in records]
        promised = {(float(s["coverage"]), str(s["by"])) for s in own}
        sets = np.array([[c in s["classes"] for c in found.classes] for s in own])
    except (KeyError, TypeError, ValueError) as e:
        raise InputError(f"{folder}: a prediction set is damaged ({e!r}); run `lrmil predict` again") from e
    if len(promised) > 1:
        raise InputError(f"{folder}: its prediction sets are of several coverages; keep one folder a coverage")
    return replace(found, sets=sets, coverage=promised.pop()[0])


def _file_name(path: str) -> str:
    """The last part of a path that may have been written on Windows and be read elsewhere."""
    return PureWindowsPath(path).name if "\\" in path else Path(path).name


def read_record(path: Path) -> dict[str, Any]:
    """A prediction JSON of ``predict``, with numbers for probabilities where it is of classes.

    Raises:
        InputError: no such file, another kind of file, damaged.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as e:
        raise InputError(no_such_file(path)) from e
    except (OSError, UnicodeDecodeError) as e:
        raise InputError(f"{path}: cannot be read ({type(e).__name__}); copy it, or predict again") from e
    record = check_seal(parse_header(text, "prediction", str(path)), str(path))
    try:
        json.dumps([record["slide"]["id"] + "", record["model"]["path"] + "", record["model"]["digest"] + ""])
        task = task_of(record)
        if not task.classes:
            check_record(task, record)
            return record
        if not record["probabilities"]:
            raise ValueError("no class")
        for key in ("probabilities", "probabilities_raw"):
            if key in record:
                record[key] = {str(c): float(v) for c, v in record[key].items()}
        if record.get("probabilities_raw", record["probabilities"]).keys() != record["probabilities"].keys():
            raise ValueError("classes")
    except (KeyError, TypeError, ValueError, AttributeError) as e:
        raise InputError(f"{path}: the prediction is damaged; run `lrmil predict` again") from e
    return record


def _with_training(found: Predictions, records: list[dict[str, Any]], folder: Path) -> Predictions:
    """Add what the model that made the predictions has seen in training: of all slides, where its file is found, else
    of those that were predicted, as the predictions say."""
    model = records[0]["model"]
    for path in _model_files(model, folder):
        try:
            header = read_tensor_header(path, "model")
        except InputError:
            continue
        if last_digest(header) == model["digest"]:
            own = training_slides(path, header)
            return replace(found, seen=own.labels, pixels=own.pixels, model_header=header)
    saw = {r["slide"]["id"]: r["model"].get("saw") for r in records}
    if None in saw.values():  # of a version that did not say it
        remark = "so whether it was trained on these slides is not checked"
    else:
        remark = "so whether it was trained on other slides of the same patients is not checked"
    seen, pixels = (frozenset(s for s, what in saw.items() if what == of) for of in (LABELS, PIXELS))
    remark = f"the model file {model['path']} was not found, {remark}"
    return replace(found, seen=seen, pixels=seen | pixels, remarks=(remark,))


def _model_files(model: dict[str, Any], folder: Path) -> Iterator[Path]:
    """Where the file of a model may be: where it was, where it lies as seen from the predictions, beside these or a
    folder above, under its own name or another. The digest tells which it is."""
    name = _file_name(model["path"])
    for path in (Path(model["path"]), folder / str(model.get("beside", name)), folder / name, folder.parent / name):
        if path.name:
            yield path.with_name(f"{model_name(path.name)}.safetensors")
    for place in (folder, folder.parent):
        yield from sorted(place.glob("*.safetensors"))


def _no_probabilities(p: np.ndarray) -> np.ndarray:
    """bool [n], rows that are not finite, not negative and of sum 1."""
    return ~np.isfinite(p).all(1) | (p < 0).any(1) | (np.abs(p.sum(1) - 1) > 1e-3)


def _check(found: Predictions, source: str) -> None:
    twice = found.rows.duplicated(["slide_id", "fold"])
    if twice.any():
        raise InputError(f"{source}: slide {found.rows['slide_id'][twice].iloc[0]!r} is predicted twice; take one out")
    if not len(found.rows):
        raise InputError(f"{source}: holds no predictions of any slide; make them with `lrmil predict`")
    if not found.task.classes:
        return  # numbers were checked as they were read
    for p in (found.probabilities, found.raw):
        bad = np.flatnonzero(_no_probabilities(found.probabilities if p is None else p))
        if bad.size:
            slide = found.rows["slide_id"].iloc[bad[0]]
            raise InputError(f"{source}: slide {slide!r}: its probabilities do not sum to 1; predict again")
    if len(found.classes) < 2 or len(set(found.classes)) < len(found.classes):
        raise InputError(
            f"{source}: the classes are {', '.join(found.classes)}; at least two different ones are needed"
        )
