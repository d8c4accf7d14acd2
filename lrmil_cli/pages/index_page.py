"""The index of a results folder: a row a slide, with a filter and columns to sort by (pages/README 4)."""

from __future__ import annotations

import json
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from lrmil_cli.errors import InputError
from lrmil_cli.evaluation.page import Heading, Table, block_html, document, escaped, read_about
from lrmil_cli.evaluation.predictions import read_record
from lrmil_cli.files.header import step
from lrmil_cli.pages.results import failures, page_name, record_path
from lrmil_cli.pages.style import SCRIPT, STYLE

#: Letters of a page within which it mostly says how it was made; its pictures come behind.
HEAD = 64_000
COLUMNS = [("slide", ""), ("answer", ""), ("probability", "number"), ("tiles", "number less"),
           ("seconds", "number less")]  # fmt: skip


@dataclass(frozen=True)
class Row:
    """A slide of the index; ``page`` is the name of its page, ``thumbnail`` base64 of a JPEG, both "" without one."""

    record: dict[str, Any]
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


def index_page(folder: Path, out: Path, ids: list[str], unshown: dict[str, str]) -> str:
    """The index as HTML, of the records of a folder and of the pages that are there.

    Args:
        out: where the pages are; unshown: slide id -> why its page could not be made.
    """
    rows, wrong = [], dict(unshown)
    for slide_id in ids:
        try:
            rows.append(_row(folder, out, slide_id))
        except InputError as e:
            wrong.setdefault(slide_id, str(e))
    made = step("report", {"index": 1}, {r.record["slide"]["id"]: r.record["history"][-1]["digest"] for r in rows})
    models = {r.record["model"]["digest"]: Path(r.record["model"]["path"]).name for r in rows}
    body = [
        f'<p class="counts">{escaped(_counts(rows))}</p>',
        _several(models),
        '<div class="tools" hidden><input id="filter" type="search" placeholder="Filter: name, class, uncertain" '
        'aria-label="Filter slides"><span id="count" class="counts" aria-live="polite"></span></div>',
        _table(rows),
        _failures(folder, wrong),
        f'<p class="note">{escaped(_made_by(models, made))} For research use only; not a medical device.</p>',
    ]
    about = json.dumps({"kind": "page", "history": [made]})
    return document(f"Predictions: {folder.resolve().name}", "\n".join(body), style=STYLE, script=SCRIPT, about=about)


def _row(folder: Path, out: Path, slide_id: str) -> Row:
    record = read_record(record_path(folder, slide_id))
    if not record["history"]:
        raise InputError(f"{record_path(folder, slide_id)}: does not say how it was made; run `lrmil predict` again")
    name = page_name(slide_id)
    try:
        return Row(record, name, str(read_page(out / name).get("thumbnail", "")))
    except InputError:
        return Row(record, "", "")


def _counts(rows: list[Row]) -> str:
    said = Counter(str(r.record["predicted"]) for r in rows)
    doubt = sum(bool(r.record.get("uncertain")) for r in rows)
    parts = [f"{n} {label}" for label, n in sorted(said.items())] + ([f"{doubt} uncertain"] if doubt else [])
    return f"{len(rows)} slide{'' if len(rows) == 1 else 's'}: {', '.join(parts)}" if rows else "No slides."


def _several(models: dict[str, str]) -> str:
    if len(models) < 2:
        return ""
    return (
        '<ul class="warnings"><li>The slides were predicted by '
        f"{len(models)} different models; their probabilities need not be on one scale.</li></ul>"
    )


def _made_by(models: dict[str, str], made: dict[str, Any]) -> str:
    named = "; ".join(f"{name}, digest {digest}" for digest, name in models.items())
    return f"Model: {named}. Made {made['date']} by lrmil {made['lrmil']}."


def _table(rows: list[Row]) -> str:
    heads = "".join(
        f'<th scope="col" class="{kind}"><button type="button">{name}</button></th>' for name, kind in COLUMNS
    )
    body = "\n".join(map(_cells, rows))
    return (
        '<div class="wide" tabindex="0" role="group" aria-label="table"><table id="slides">'
        f'<thead><tr><td class="thumb"></td>{heads}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>'
    )


def _cells(row: Row) -> str:
    record = row.record
    slide_id, p = escaped(str(record["slide"]["id"])), record["probabilities"][record["predicted"]]
    href = quote(os.fsencode(row.page))
    name = f'<a href="{href}">{slide_id}</a>' if row.page else slide_id
    picture = (
        f'<img src="data:image/jpeg;base64,{escaped(row.thumbnail)}" alt="" loading="lazy">' if row.thumbnail else ""
    )
    linked = f'<a href="{href}" tabindex="-1" aria-hidden="true">{picture}</a>' if row.page else ""
    said = escaped(str(record["predicted"]))
    if record.get("uncertain"):
        said += f' <span class="badge" title="{escaped(str(record["uncertain"]))}">uncertain</span>'
    seconds = sum((record.get("seconds") or {}).values())
    return (
        f'<tr><td class="thumb">{linked}</td><th scope="row">{name}</th><td>{said}</td>'
        f'<td class="number" data-v="{p:.9g}">{p:.3f}</td>'
        f'<td class="number less" data-v="{record["tiles"]}">{record["tiles"]:,}</td>'
        f'<td class="number less" data-v="{seconds:.3f}">{seconds:.1f}</td></tr>'
    )


def _failures(folder: Path, unshown: dict[str, str]) -> str:
    failed = [[r.get("slide_id", ""), r.get("status", ""), r.get("error", "")] for r in failures(folder)]
    failed += [[slide_id, "no page", why] for slide_id, why in unshown.items()]
    if not failed:
        return ""
    return block_html(Heading("Not shown")) + "\n" + block_html(Table(["slide", "what", "why"], failed))
