"""The index of a results folder: a row a slide, with a filter and columns to sort by (pages/README 4)."""

from __future__ import annotations

import json
import os
from collections import Counter
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import quote

from lrmil_cli.errors import InputError
from lrmil_cli.evaluation.page import Heading, Table, block_html, document, escaped, read_about
from lrmil_cli.evaluation.wording import count_text
from lrmil_cli.files.header import step
from lrmil_cli.inference.answers import models_in
from lrmil_cli.pages.results import failures, page_name, record_of, record_path
from lrmil_cli.pages.style import SCRIPT, STYLE
from lrmil_cli.targets.answers import answer_text, sort_value
from lrmil_cli.targets.task import task_of

#: Letters of a page within which it mostly says how it was made; its pictures come behind.
HEAD = 64_000
#: Raised where the index looks otherwise than before.
LOOK = 2
#: Columns of one model's answers; of several, the model's name stands for ``answer``.
#: What answers are sorted by, where it is no probability.
SORTED = {"regression": "number", "survival": "risk"}
COST = [("tiles", "number less"), ("seconds", "number less")]


@dataclass(frozen=True)
class Row:
    """A slide of the index.

    Attributes:
        records: by model; page: the name of its page; thumbnail: base64 of a JPEG. Both are "" without a page.
    """

    slide_id: str
    records: dict[str, dict[str, Any]]
    page: str
    thumbnail: str


def read_page(path: Path) -> dict[str, Any]:
    """What a page, or an index, keeps of how it was made.

    Raises:
        InputError: it is none of ours.
    """
    try:
        with open(path, encoding="utf-8") as fh:
            text = fh.read(HEAD)
            text += "" if "<title>" in text else fh.read()
        about = json.loads(read_about(text) or "null")
    except (OSError, ValueError) as e:
        raise InputError(f"{path}: not a page made by lrmil") from e
    steps = about.get("history") if isinstance(about, dict) else None
    if not isinstance(steps, list) or not steps or not all(isinstance(s, dict) and "digest" in s for s in steps):
        raise InputError(f"{path}: not a page made by lrmil")
    return about


def index_page(
    folder: Path, out: Path, ids: list[str], unshown: dict[str, str], there: str | None = None
) -> str | None:
    """The index as HTML, of the records of a folder and of the pages that are there.

    Args:
        out: where the pages are; unshown: slide id -> why its page could not be made.
        there: digest of the index that is there, if any.

    Returns:
        None where it shows all this already.
    """
    names = [name for name, _ in models_in(folder)]
    rows, wrong = [], dict(unshown)
    for slide_id in ids:
        try:
            rows.append(_row(folder, out, slide_id))
        except InputError as e:
            wrong.setdefault(slide_id, str(e))
    records = [record for r in rows for record in r.records.values()]
    models = {record["model"]["digest"]: Path(record["model"]["path"]).name for record in records}
    body = [
        *(f'<p class="counts">{escaped(_counts(rows, name))}</p>' for name in names),
        _several(models) if names == [""] else "",
        '<div class="tools" hidden><input id="filter" type="search" placeholder="Filter: name, class, uncertain" '
        'aria-label="Filter slides"><span id="count" class="counts" aria-live="polite"></span></div>',
        _table(rows, names),
        _failures(folder, wrong),
    ]
    shown = sha256("\n".join([*body, *sorted(models)]).encode()).hexdigest()[:32]
    made = step("report", {"index": LOOK}, {"shown": shown})
    if made["digest"] == there:
        return None
    body.append(f'<p class="note">{escaped(_made_by(models, made))} For research use only; not a medical device.</p>')
    about = json.dumps({"kind": "page", "history": [made]})
    return document(f"Predictions: {folder.resolve().name}", "\n".join(body), style=STYLE, script=SCRIPT, about=about)


def _row(folder: Path, out: Path, slide_id: str) -> Row:
    records = {}
    for name, own in models_in(folder):
        path = record_path(own, slide_id)
        if name and not path.exists():
            continue
        records[name] = record_of(path, slide_id)
        if not records[name]["history"]:
            raise InputError(f"{path}: does not say how it was made; run `lrmil predict` again")
    page = page_name(slide_id)
    try:
        return Row(slide_id, records, page, str(read_page(out / page).get("thumbnail", "")))
    except InputError:
        return Row(slide_id, records, "", "")


def _counts(rows: list[Row], name: str) -> str:
    shown = [r.records[name] for r in rows if name in r.records]
    own = list({r.get("patient", n): r for n, r in enumerate(shown)}.values())  # one answer a patient
    said = Counter(str(r["predicted"]) if task_of(r).kind != "regression" else "with a number" for r in own)
    doubt = sum(bool(record.get("uncertain")) for record in own)
    parts = [f"{n} {label}" for label, n in sorted(said.items())] + ([f"{doubt} uncertain"] if doubt else [])
    slides = count_text(len(shown), "slide") if own else "No slides."
    if own and "patient" in own[0]:
        slides += f" of {count_text(len(own), 'patient')}, each answered as a whole"
    slides += f": {', '.join(parts)}" if own else ""
    return f"{name}: {slides}" if name else slides


def _several(models: dict[str, str]) -> str:
    if len(models) < 2:
        return ""
    return (
        '<ul class="warnings"><li>The slides were predicted by '
        f"{len(models)} different models; what they say need not be on one scale.</li></ul>"
    )


def _made_by(models: dict[str, str], made: dict[str, Any]) -> str:
    named = "; ".join(f"{name}, digest {digest}" for digest, name in models.items())
    return f"Model{'s' if len(models) > 1 else ''}: {named}. Made {made['date']} by lrmil {made['lrmil']}."


def _table(rows: list[Row], names: list[str]) -> str:
    kinds = {name: next((task_of(r.records[name]).kind for r in rows if name in r.records), "") for name in names}
    answers = [
        own for name in names for own in ((name or "answer", ""), (SORTED.get(kinds[name], "probability"), "number"))
    ]
    heads = "".join(
        f'<th scope="col" class="{kind}"><button type="button">{escaped(name)}</button></th>'
        for name, kind in [("slide", ""), *answers, *COST]
    )
    body = "\n".join(_cells(row, names) for row in rows)
    return (
        '<div class="wide" tabindex="0" role="group" aria-label="table"><table id="slides">'
        f'<thead><tr><td class="thumb"></td>{heads}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>'
    )


def _cells(row: Row, names: list[str]) -> str:
    slide_id = escaped(row.slide_id)
    href = quote(os.fsencode(row.page))
    name = f'<a href="{href}">{slide_id}</a>' if row.page else slide_id
    patient = next((str(r["patient"]) for r in row.records.values() if "patient" in r), "")
    name += f"<br><small>patient {escaped(patient)}</small>" if patient else ""
    picture = (
        f'<img src="data:image/jpeg;base64,{escaped(row.thumbnail)}" alt="" loading="lazy">' if row.thumbnail else ""
    )
    linked = f'<a href="{href}" tabindex="-1" aria-hidden="true">{picture}</a>' if row.page else ""
    answers = "".join(_answer(row.records.get(model)) for model in names)
    tiles = max(record["tiles"] for record in row.records.values())
    spent = [sum((record.get("seconds") or {}).values()) for record in row.records.values()]
    # Models that share a reading each have all of it.
    seconds = max(spent) if any(record.get("read_with") for record in row.records.values()) else sum(spent)
    return (
        f'<tr><td class="thumb">{linked}</td><th scope="row">{name}</th>{answers}'
        f'<td class="number less" data-v="{tiles}">{tiles:,}</td>'
        f'<td class="number less" data-v="{seconds:.3f}">{seconds:.1f}</td></tr>'
    )


def _answer(record: dict[str, Any] | None) -> str:
    """The cells of what one model says; empty where it says nothing of the slide."""
    if record is None:
        return '<td></td><td class="number" data-v="-1"></td>'
    said = escaped(answer_text(record))
    if record.get("uncertain"):
        said += f' <span class="badge" title="{escaped(str(record["uncertain"]))}">uncertain</span>'
    own = sort_value(record)
    return f'<td>{said}</td><td class="number" data-v="{own:.9g}">{own:.3f}</td>'


def _failures(folder: Path, unshown: dict[str, str]) -> str:
    failed = [[r.get("slide_id", ""), r.get("status", ""), r.get("error", "")] for r in failures(folder)]
    failed += [[slide_id, "no page", why] for slide_id, why in unshown.items()]
    if not failed:
        return ""
    return block_html(Heading("Not shown")) + "\n" + block_html(Table(["slide", "what", "why"], failed))
