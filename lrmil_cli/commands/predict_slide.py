"""One slide of ``lrmil predict``: read once for all models, and all that is made of what each says."""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional

from lrmil_cli.commands import options, overlays, predict_outputs, report_pages
from lrmil_cli.commands.batch import Outcome, planned
from lrmil_cli.commands.overlays import PictureStyle
from lrmil_cli.commands.report import Report
from lrmil_cli.errors import UsageError
from lrmil_cli.targets.answers import answer_text

if TYPE_CHECKING:
    from lrmil_cli.inference.prediction import Prediction, Predictor
    from lrmil_cli.qupath.geojson import Style
    from lrmil_cli.slides.region import Region
    from lrmil_cli.slides.slide import Slide

#: Header and tables by name of a prediction.
Found = tuple[dict[str, Any], dict[str, Any]]


@dataclass(frozen=True)
class Wanted:
    """What is made of a model's answers, and where it goes: the options of ``lrmil predict`` about outputs.

    Attributes:
        skip_bad: a prediction that left out tiles which cannot be decoded is good enough.
    """

    output: str
    geojson: Optional[str]
    overlay: Optional[str]
    pages: bool
    top_tiles: Optional[str]
    style: Style
    look: PictureStyle
    origin: str
    image_size: Optional[tuple[int, int]]
    fine: Optional[int]
    audit: Optional[str]
    overwrite: bool
    skip_bad: bool

    def of(self, name: str) -> Wanted:
        """The same for one of several models, which has a folder of its own in each folder of outputs; itself for
        ""."""
        if not name:
            return self

        def within(folder: str | None) -> str | None:
            return None if folder is None else str(Path(folder) / name)

        return replace(
            self,
            output=str(Path(self.output) / name),
            geojson=within(self.geojson),
            overlay=within(self.overlay),
            top_tiles=within(self.top_tiles),
        )


@dataclass(frozen=True)
class Asked:
    """A model: its name among several, "" alone; what predicts with it; what is wanted of its answers."""

    name: str
    predictor: Predictor
    wanted: Wanted

    @property
    def output(self) -> str:
        return self.wanted.output


@dataclass
class Answers:
    """Rows of ``predictions.csv``, by model and, of several, of all of them together in the folder above."""

    folder: Path
    names: Sequence[str]
    rows: dict[str, list[dict[str, str]]] = field(default_factory=dict)

    @property
    def some(self) -> bool:
        """Whether there is any row."""
        return any(self.rows.values())

    def add(self, asked: Asked, slide_id: str, tables: dict[str, Any], files: dict[str, dict[str, Any]]) -> None:
        own = Path(asked.output)
        self.rows.setdefault(asked.name, []).append(predict_outputs.answer(own, slide_id, tables, files))
        if asked.name:
            together = predict_outputs.answer(own, slide_id, tables, files, seen_from=self.folder)
            self.rows.setdefault("", []).append(together | {"model": asked.name})

    def note(self, record: dict[str, Any], files: Sequence[str | Path]) -> None:
        """The row of an answer for a patient, by the one model there is."""
        from lrmil_cli.inference.answers import answer_row

        self.rows.setdefault("", []).append(answer_row(record, [f for f in files if f != "-"], self.folder))

    def keep(self, overwrite: bool, report: Report) -> None:
        """Write what there is; twice does no harm."""
        several = [n for n in self.names if n]
        for name, rows in self.rows.items():
            predict_outputs.keep_answers(self.folder / name, rows, overwrite, report, [] if name else several)

    def forget(self) -> None:
        """What is written by now."""
        self.rows.clear()


def model_names(paths: Sequence[str]) -> list[str]:
    """What the folders of several models are called: after their files, or after the folders of those where files are
    called alike; [""] for one model.

    Raises:
        UsageError: two models cannot be told apart by that.
    """
    from lrmil_cli.evaluation.training_slides import model_name

    if len(paths) == 1:
        return [""]
    files = [model_name(Path(p).name) for p in paths]
    folders = [Path(p).absolute().parent.name for p in paths]
    counts = Counter(f.casefold() for f in files)
    names = [file if counts[file.casefold()] == 1 else folder for file, folder in zip(files, folders)]
    twice = [n for n, k in Counter(n.casefold() for n in names).items() if k > 1 or not n]
    if twice:
        raise UsageError(
            f"--model: two models would both be called {twice[0]!r}, and their outputs overwrite each other; copy one "
            "to another name"
        )
    return names


def planned_slide(models: Sequence[Asked], slide: Slide, region: Region | None, report: Report) -> Outcome:
    """What would be done of a slide: tiles to read and seconds, or that all is there."""
    from lrmil_cli.inference.fine import plan_fine, shiftable
    from lrmil_cli.inference.plain import plan_together

    there = [_there(asked, slide, region) for asked in models]
    missing = [asked.predictor for asked, found in zip(models, there) if found is None]
    table = " and ".join("-" if a.output == "-" else str(_table(a, slide)) for a in models)
    if not missing:
        told = [f"{_named(a)}{answer_text(f[0]['prediction'])}" for a, f in zip(models, there) if f is not None]
        extra = [{"prediction": f[0]["prediction"]} for f in there if f is not None]
        return Outcome(
            _output(models), "skipped", f"{', '.join(told)}, up to date ({table})", _of_models(models, extra)
        )
    tiles, seconds = plan_together(missing, slide, region)
    if models[0].wanted.fine is not None:
        for asked, found in zip(models, there):
            if found is None:
                more = plan_fine(shiftable(asked.predictor), slide, region, models[0].wanted.fine).more
                tiles, seconds = tiles + more, seconds * (1 + more / max(1, tiles))
    report.notes(slide)
    return planned(tiles, seconds, slide, table)


def predict_slide(
    models: Sequence[Asked], slide: Slide, region: Region | None, opened: float, answers: Answers, report: Report
) -> Generator[None, None, Outcome]:
    """Answer by all models, and make what is wanted of the answers; what is up to date is left alone.

    Args:
        opened: seconds that opening the slide took; answers: filled with the rows of ``predictions.csv``.

    Raises:
        as :meth:`lrmil_cli.inference.prediction.Predictor.predict`, and of what cannot be written.
    """
    from lrmil_cli.inference.plain import predict_together

    there: dict[int, Found] = {}
    for n, asked in enumerate(models):
        if found := _there(asked, slide, region):
            path = Path(asked.output)
            moved = predict_outputs.follow_prediction(path, slide.slide_id, found[0], slide.path.absolute())
            there[n] = (moved, found[1])
    missing = [n for n in range(len(models)) if n not in there]
    if missing:
        predictors = [models[n].predictor for n in missing]
        said = yield from predict_together(predictors, slide, region)
    else:
        said = []
        yield  # pictures and GeoJSON are made in turn
    report.notes(slide)
    new = dict(zip(missing, said))
    told, states = [], set()
    extras: list[dict[str, Any]] = []
    for n, asked in enumerate(models):
        record, header, tables, message = (
            _written(asked, new[n], slide, region, opened, report)
            if n in new
            else (there[n][0]["prediction"], *there[n], _up_to_date(asked, slide, there[n][0]))
        )
        predict_outputs.warn_of(report, slide.slide_id, record)
        files = _made(asked, slide, region, header, tables, record, report)
        if asked.wanted.audit is not None:
            _audit(asked, slide, header, known=n in there)
        if asked.output != "-":
            answers.add(asked, slide.slide_id, tables, files)
        made = [f["path"] for f in files.values() if f["written"]]
        told.append(_named(asked) + message + (f"; made {', '.join(made)}" if n in there and made else ""))
        states.add("skipped" if n in there and not made else "uncertain" if record.get("uncertain") else "ok")
        extras.append(
            {
                "prediction": record,
                "attention": None if asked.output == "-" else str(_table(asked, slide)),
                "files": {kind: f["path"] for kind, f in files.items()},
            }
        )
    if len(models) > 1 and models[0].wanted.pages:
        names = [asked.name for asked in models]
        page = report_pages.page_of_several(answers.folder, slide, models[0].wanted.overwrite, names)
        for extra in extras:
            extra["files"]["page"] = str(page)
    status = next(s for s in ("uncertain", "ok", "skipped") if s in states)
    return Outcome(_output(models), status, "; ".join(told), _of_models(models, extras))


def _audit(asked: Asked, slide: Slide, header: dict[str, Any], *, known: bool) -> None:
    """A line in the audit trail; ``known``: the answer was there already."""
    from lrmil_cli.files.audit import append_line, audit_line
    from lrmil_cli.files.header import last_digest

    assert asked.wanted.audit is not None
    model = {"path": asked.predictor.path, "digest": last_digest(asked.predictor.header)}
    output = None if asked.output == "-" else str(_table(asked, slide))
    append_line(asked.wanted.audit, audit_line(header, model, known=known, output=output))


def _table(asked: Asked, slide: Slide) -> Path:
    return Path(asked.output) / f"{slide.slide_id}.attention.csv"


def _named(asked: Asked) -> str:
    return f"{asked.name}: " if asked.name else ""


def _output(models: Sequence[Asked]) -> str:
    return models[0].output if len(models) == 1 else str(Path(models[0].output).parent)


def _of_models(models: Sequence[Asked], extras: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What ``--json`` says besides: of several models under ``models``, by their names."""
    return dict(extras[0]) if len(models) == 1 else {"models": {a.name: e for a, e in zip(models, extras)}}


def _made_of(slide: Slide, region: Region | None) -> dict[str, str]:
    return slide.made_of | ({"roi": region.digest} if region else {})


def _there(asked: Asked, slide: Slide, region: Region | None) -> Found | None:
    from lrmil_cli.files.header import digest

    if asked.output == "-":
        return None
    wanted = digest(asked.predictor.settings, _made_of(slide, region))
    return predict_outputs.predicted_before(
        Path(asked.output), slide.slide_id, wanted, asked.wanted.overwrite, asked.wanted.skip_bad
    )


def _up_to_date(asked: Asked, slide: Slide, header: dict[str, Any]) -> str:
    return f"{answer_text(header['prediction'])}, up to date ({_table(asked, slide)})"


def _written(
    asked: Asked, p: Prediction, slide: Slide, region: Region | None, opened: float, report: Report
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any], str]:
    """Record, header and tables of a new prediction, which are written but for ``-o -``; and what is said of it."""
    from lrmil_cli.files.header import step
    from lrmil_cli.inference.record import attention_table, prediction_record

    predictor = asked.predictor
    p.seconds = {"open": round(opened, 3), **p.seconds}
    history = [step("predict", predictor.settings, _made_of(slide, region))]
    record = prediction_record(predictor, p, slide, history, region)
    header, rows = attention_table(predictor, p, record)
    tables = {"": rows, **p.tables}
    if record.get("bad_tiles"):
        report.warn(options.bad_tiles_text(slide.slide_id, record["bad_tiles"], record["tiles"]))
    if asked.output != "-":
        predict_outputs.write_prediction(Path(asked.output), slide.slide_id, record, header, tables)
    return record, header, tables, predict_outputs.summary(record, timed=report.verbose)


def _made(
    asked: Asked,
    slide: Slide,
    region: Region | None,
    header: dict[str, Any],
    tables: dict[str, Any],
    record: dict[str, Any],
    report: Report,
) -> dict[str, dict[str, Any]]:
    """What is wanted besides of an answer: kind -> ``path`` and ``written``."""
    from lrmil_cli.files.tables import write_table

    wanted = asked.wanted

    def shown(of: dict[str, Any], rows: dict[str, Any]) -> dict[str, dict[str, Any]]:
        return overlays.write_overlays(
            report,
            slide,
            of,
            rows,
            geojson=wanted.geojson,
            picture=wanted.overlay,
            style=wanted.style,
            look=wanted.look,
            origin=wanted.origin,
            image_size=wanted.image_size,
            region=region,
            overwrite=wanted.overwrite,
        )

    files = shown(header, tables)
    if asked.output == "-":
        write_table("-", header, tables[""])
        return files
    if wanted.fine is not None:
        fine_header, rows, file = _finer(asked, slide, region, header, tables[""], record, report)
        files |= {"fine": file, **shown(fine_header, {"fine": rows})}
    folder, pages = Path(asked.output), wanted.pages and not asked.name
    if pages or wanted.top_tiles is not None:
        files |= report_pages.pages_of(folder, slide, slide.slide_id, pages, wanted.top_tiles, wanted.overwrite)
    return files


def _finer(
    asked: Asked,
    slide: Slide,
    region: Region | None,
    header: dict[str, Any],
    rows: Any,
    record: dict[str, Any],
    report: Report,
) -> tuple[dict[str, Any], Any, dict[str, Any]]:
    """Header and rows of the finer map, made unless it is up to date, and its file."""
    from lrmil_cli.files.header import up_to_date
    from lrmil_cli.files.tables import read_table, write_table
    from lrmil_cli.inference.fine import NAME, fine_header, fine_map, fine_step, plan_fine, shiftable

    assert asked.wanted.fine is not None
    path = Path(asked.output) / f"{slide.slide_id}.{NAME}.attention.csv"
    made = fine_step(asked.predictor, header, asked.wanted.fine)
    if up_to_date(path, made["digest"], lambda p: read_table(p, "attention")[0], asked.wanted.overwrite):
        return *read_table(path, "attention"), {"path": str(path), "written": False}
    model = shiftable(asked.predictor)
    plan = plan_fine(model, slide, region, asked.wanted.fine)
    tiles = len(rows["x"])
    seconds = record.get("seconds") or predict_outputs.seconds_of(Path(asked.output), slide.slide_id)
    spent = sum(seconds.get(k, 0.0) for k in ("read", "encode"))
    about = f", about {max(1, round(spent / tiles * plan.more))} s" if spent else ""
    report.say(
        f"{slide.slide_id}: {_named(asked)}the finer map reads {plan.more} tiles more, "
        f"{plan.more / tiles:.1f} times as many as the answer{about}"
    )
    columns, seconds = fine_map(model, slide, plan, rows)
    new = fine_header(header, made, plan, seconds)
    write_table(path, new, columns)
    return new, columns, {"path": str(path), "written": True}
