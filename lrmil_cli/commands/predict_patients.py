"""``lrmil predict`` by a model of patients: the slides of each patient are read, and answered as one bag."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lrmil_cli.commands import options, overlays, predict_outputs, report_pages
from lrmil_cli.commands.batch import Outcome
from lrmil_cli.commands.inputs import SlideInput
from lrmil_cli.commands.predict_slide import Answers, Asked
from lrmil_cli.commands.report import Report
from lrmil_cli.errors import InputError, LrmilError, UsageError
from lrmil_cli.files.manifest_rows import tcga_patient
from lrmil_cli.files.names import as_file, fits_file_name
from lrmil_cli.targets.answers import answer_text

if TYPE_CHECKING:
    from lrmil_cli.inference.patients import Part
    from lrmil_cli.inference.prediction import Predictor

#: How a slide is opened, with what is given of its tissue, and the part of it that is asked about.
Opened = Callable[[SlideInput, ExitStack], "Part"]


@dataclass(frozen=True)
class PatientInput:
    """A patient to answer for; ``slide_id`` is what a batch, and the files of the answer, call the patient."""

    slide_id: str
    slides: tuple[SlideInput, ...]

    @property
    def path(self) -> Path:
        """Of the first slide."""
        return self.slides[0].path


def answers_for_patients(predictors: Sequence[Predictor]) -> bool:
    """Whether a model of patients is among some."""
    from lrmil_cli.targets.task import PATIENT, bag_of

    return any(bag_of(p.header) == PATIENT for p in predictors)


def check_patients(predictors: Sequence[Predictor], unfit: dict[str, bool]) -> None:
    """Raises UsageError for what a model of patients cannot do.

    Args:
        unfit: options that show or read a single slide -> whether they are given.
    """
    path = next(p.path for p in predictors if answers_for_patients([p]))
    if len(predictors) > 1:
        raise UsageError(f"{path} answers for patients; give it as the only --model")
    given = [name for name, there in unfit.items() if there]
    if given:
        raise UsageError(f"{path} answers for patients, and {given[0]} is about single slides; leave it out")


def by_patient(slides: Sequence[SlideInput], model: str, report: Report) -> list[PatientInput]:
    """The patients of some slides, in the order of their first slides.

    Raises:
        UsageError: several slides whose patients nobody names.
        InputError: a patient that no file can be called after, or two that would be one file.
    """
    found: dict[str, list[SlideInput]] = {}
    for item in slides:
        patient = item.patient_id or tcga_patient(item.slide_id)
        if patient is None and len(slides) > 1:
            raise UsageError(
                f"{model} answers for patients, and nobody names that of {item.slide_id}; give a table with the "
                "columns slide and patient_id"
            )
        found.setdefault(patient or item.slide_id, []).append(item)
    for patient in found:
        if not fits_file_name(patient):
            raise InputError(f"patient_id {patient!r} cannot be part of a file name; call the patient otherwise")
    twice = [name for name, n in Counter(map(as_file, found)).items() if n > 1]
    if twice:
        raise InputError(f"two patients would share the files of {twice[0]!r}; call one of them otherwise")
    if len(slides) > 1 and all(item.patient_id == item.slide_id for item in slides):
        report.warn("patients unknown: each slide is taken for a patient of its own (add a column patient_id)")
    return [PatientInput(patient, tuple(own)) for patient, own in found.items()]


def planned_patient(asked: Asked, patient: PatientInput, opened: Opened) -> Outcome:
    """What would be done of a patient: tiles to read and seconds, or that all is there."""
    with ExitStack() as stack:
        parts = [opened(item, stack) for item in patient.slides]
        record_path = _record_path(asked, patient.slide_id)
        if there := _there(asked, patient.slide_id, parts):
            return Outcome(asked.output, "skipped", f"{answer_text(there[0])}, up to date ({record_path})")
        plans = [asked.predictor.plan(slide, region) for slide, region in parts]
    tiles, seconds = sum(n for n, _ in plans), sum(s for _, s in plans)
    text = f"would be made: {tiles} tiles of {len(parts)} slides, about {max(1, round(seconds))} s -> {record_path}"
    extra = {"tiles": tiles, "slides": len(parts), "expected_seconds": round(seconds, 4)}
    return Outcome(str(record_path), "planned", text, extra)


def predict_patient(asked: Asked, patient: PatientInput, opened: Opened, answers: Answers, report: Report) -> Outcome:
    """Answer for a patient, and make what is wanted of the answer; what is up to date is left alone.

    Raises:
        LrmilError: of the slide that cannot be opened or read, by its name: no slide is left out unasked.
    """
    from lrmil_cli.files.header import step
    from lrmil_cli.inference import patients

    predictor, folder, name = asked.predictor, Path(asked.output), patient.slide_id
    began = time.perf_counter()
    with ExitStack() as stack:
        parts: list[Part] = []
        for item in patient.slides:
            with _named([item.slide_id], len(patient.slides)):
                parts.append(opened(item, stack))
        spent = time.perf_counter() - began
        found = _there(asked, name, parts)
        known = found is not None
        if found is None:
            at = [parts[0][0].slide_id]
            with _named(at, len(parts)):
                p, cuts = patients.predict_patient(predictor, parts, lambda slide: at.__setitem__(0, slide.slide_id))
            p.seconds = {"open": round(spent, 3), **p.seconds}
            history = [step("predict", predictor.settings, _made_of(parts))]
            record = patients.patient_record(predictor, p, name, parts, cuts, history)
            tables = patients.slide_tables(predictor, p, record, parts, cuts)
            if record.get("bad_tiles"):
                report.warn(options.bad_tiles_text(name, record["bad_tiles"], record["tiles"]))
            predict_outputs.write_patient(folder, name, record, tables)
            message = predict_outputs.summary(record, timed=report.verbose)
        else:
            record, tables = found
            message = f"{answer_text(record)}, up to date ({_record_path(asked, name)})"
        predict_outputs.warn_of(report, name, record)
        made: dict[str, dict[str, Any]] = {}
        for (slide, region), (header, rows) in zip(parts, tables):
            report.notes(slide)
            files = overlays.write_overlays(
                report,
                slide,
                header,
                {"": rows},
                geojson=asked.wanted.geojson,
                picture=asked.wanted.overlay,
                style=asked.wanted.style,
                look=asked.wanted.look,
                origin=asked.wanted.origin,
                image_size=asked.wanted.image_size,
                region=region,
                overwrite=asked.wanted.overwrite,
            )
            if asked.wanted.pages or asked.wanted.top_tiles is not None:
                shown = asked.wanted.pages, asked.wanted.top_tiles, asked.wanted.overwrite
                files |= report_pages.pages_of(folder, slide, slide.slide_id, *shown)
            made |= {f"{slide.slide_id}.{kind}": file for kind, file in files.items()}
            if asked.wanted.audit is not None:
                _audit(asked, header, slide.slide_id, known)
    own = [folder / f"{slide.slide_id}.attention.csv" for slide, _ in parts]
    answers.note(record, [_record_path(asked, name), *own, *(f["path"] for f in made.values())])
    new = [f["path"] for f in made.values() if f["written"]]
    message += f"; {len(parts)} slide{'' if len(parts) == 1 else 's'}"
    message += f"; made {', '.join(new)}" if known and new else ""
    status = "skipped" if known and not new else "uncertain" if record.get("uncertain") else "ok"
    extra = {
        "prediction": {k: v for k, v in record.items() if k in tables[0][0]["prediction"]},
        "slides": {s["id"]: s["attention"] for s in record["slides"]},
        "attention": [str(path) for path in own],
        "files": {kind: f["path"] for kind, f in made.items()},
    }
    return Outcome(asked.output, status, message, extra)


@contextmanager
def _named(slide_id: list[str], slides: int) -> Iterator[None]:
    """An error names its slide, where a patient has several; ``slide_id``: a list of the one that is at work."""
    try:
        yield
    except LrmilError as e:
        if slides == 1:
            raise
        raise type(e)(f"slide {slide_id[0]}: {e}; take it out of the table to answer without it") from e


def _made_of(parts: Sequence[Part]) -> dict[str, str]:
    """What of all slides of a patient decides the answer, for digests."""
    return {
        f"{slide.slide_id}/{name}": str(value)
        for slide, region in parts
        for name, value in (slide.made_of | ({"roi": region.digest} if region else {})).items()
    }


def _record_path(asked: Asked, patient: str) -> Path:
    return Path(asked.output) / f"{patient}.prediction.json"


def _there(
    asked: Asked, patient: str, parts: Sequence[Part]
) -> tuple[dict[str, Any], list[tuple[dict[str, Any], Any]]] | None:
    """Record and tables of a patient whose answer is there, whole and up to date; None where it must be made.

    Raises:
        as :func:`lrmil_cli.commands.predict_outputs.predicted_before`.
    """
    from lrmil_cli.evaluation.predictions import read_record
    from lrmil_cli.files.header import digest, last_digest

    wanted, folder = digest(asked.predictor.settings, _made_of(parts)), Path(asked.output)
    tables = []
    for slide, _ in parts:
        how = asked.wanted.overwrite, asked.wanted.skip_bad
        found = predict_outputs.predicted_before(folder, slide.slide_id, wanted, *how, of=patient)
        if found is None:
            return None
        place = slide.path.absolute()
        tables.append((predict_outputs.follow_prediction(folder, slide.slide_id, found[0], place), found[1][""]))
    try:
        record = read_record(_record_path(asked, patient))
    except InputError:
        return None
    return (record, tables) if last_digest(record) == wanted else None


def _audit(asked: Asked, header: dict[str, Any], slide_id: str, known: bool) -> None:
    """A line in the audit trail for each slide of the patient."""
    from lrmil_cli.files.audit import append_line, audit_line
    from lrmil_cli.files.header import last_digest

    assert asked.wanted.audit is not None
    model = {"path": asked.predictor.path, "digest": last_digest(asked.predictor.header)}
    output = str(Path(asked.output) / f"{slide_id}.attention.csv")
    line = audit_line(header, model, known=known, output=output)
    append_line(asked.wanted.audit, {**line, "patient_id": header["patient"]})
