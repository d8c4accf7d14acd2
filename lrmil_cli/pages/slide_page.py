"""The page of one slide (pages/README 3)."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from lrmil_cli.evaluation.page import Heading, Table, block_html, document, escaped
from lrmil_cli.evaluation.purpose import means_nothing, purpose_text
from lrmil_cli.evaluation.unlike_training import unlike_text
from lrmil_cli.evaluation.wording import count_text
from lrmil_cli.files.header import step
from lrmil_cli.pages import attention_map
from lrmil_cli.pages.answers import answer_html, detail_html, detail_title, set_html
from lrmil_cli.pages.attention_map import View, attention_picture, jpeg, kept_picture
from lrmil_cli.pages.results import INDEX, Result
from lrmil_cli.pages.style import STYLE
from lrmil_cli.pages.tile_pictures import BOTTOM, MPP, TOP, TilePicture, times_text
from lrmil_cli.qupath.colours import HIGHEST, LOWEST, NAMES, colours, multiples, times_of
from lrmil_cli.qupath.geojson import READ
from lrmil_cli.qupath.pictures import bar_length, length_text
from lrmil_cli.slide_places import as_seen_from

#: Raised where pages look otherwise than before, so that they are made anew.
LOOK = 2
#: What pictures may take, so that a page stays below 2 MB: those of slides, those of tiles, together.
VIEWS_BYTES, TILES_BYTES = 420_000, 900_000
#: Further attention tables of a prediction: what is shown of each.
FURTHER = {
    "fine": "<b>Finer map</b> the mean over tiles that are shifted by parts of one; the answer is of the map before.",
    "hr": "<b>Attention at 20x</b> of the tiles that were read there.",
    "mid": "<b>Attention at the middle scale</b> of the tiles that were read there.",
    "screen": "<b>What was read at 20x</b> green: read; blue: a candidate, not read.",
}

#: What one model says of a slide, and the tiles to show of it.
Shown = tuple[Result, Sequence[TilePicture]]


def page_step(results: Sequence[Result], read_from: str) -> dict[str, Any]:
    """What a page is made of; its digest decides whether it is up to date.

    Args:
        read_from: fingerprint of the slide, or what is said where it could not be read.
    """
    settings = {"page": LOOK, "top": TOP, "bottom": BOTTOM}
    own = {f"result {r.model}".strip(): r.digest for r in results}
    return step("report", settings, {**own, "slide": read_from})


def slide_page(shown: Sequence[Shown], out: Path, view: View, made: dict[str, Any], why_not: str = "") -> str:
    """The page as HTML.

    Args:
        shown: by model; out: the folder that it will be in, for links.
        why_not: why there are no pixels of the slide, if so.
        made: :func:`page_step`.
    """
    first = shown[0][0]
    kept = {
        "kind": "page",
        "history": [*(s for r, _ in shown for s in r.record["history"]), made],
        "thumbnail": base64.b64encode(attention_map.thumbnail(view)).decode("ascii"),
    }
    views = sum(1 + len(r.further) for r, _ in shown) + 1
    body = [f'<nav><a href="{INDEX}">All slides</a></nav>']
    if len(shown) > 1:
        body += [f"{_model(r)}{answer_html(r.record)}" for r, _ in shown]
    for result, tiles in shown:
        record = result.record
        times = multiples(result.rows["attention"].to_numpy(np.float64))
        body += [
            block_html(Heading(result.model)) if len(shown) > 1 else answer_html(record),
            _of_patient(record),
            set_html(record),
            _warnings(record, why_not),
            _views(result, view, tiles, times, VIEWS_BYTES // views),
            _tiles(tiles, bool(why_not), TILES_BYTES // (len(shown) * (TOP + BOTTOM)), 2 if len(shown) == 1 else 3),
            _heading(detail_title(record), shown),
            detail_html(record),
            _heading("What was read, and what it cost", shown),
            _pairs(_cost(record)),
        ]
    body += [block_html(Heading("Files")), _links([r for r, _ in shown], out), block_html(Heading("How it was made"))]
    body += [f"{_model(r) if len(shown) > 1 else ''}{_pairs(_making(r.record, made))}" for r, _ in shown]
    body.append(
        '<p class="note">For research use only; not a medical device. Attention says where a model looked, '
        "not why, and not where disease is.</p>"
    )
    about = json.dumps(kept, allow_nan=False)
    return document(first.slide["id"], "\n".join(body), style=STYLE, about=about)


def _heading(text: str, shown: Sequence[Shown]) -> str:
    return block_html(Heading(text, 2 if len(shown) == 1 else 3))


def _model(result: Result) -> str:
    return f'<p class="model">{escaped(result.model)}</p>'


def _of_patient(record: dict[str, Any]) -> str:
    """Of an answer for a patient, that it is one, and how much this slide has to do with it."""
    if "patient" not in record:
        return ""
    by = count_text(record["of"], "slide")
    return (
        f'<p class="note">The answer is for patient {escaped(record["patient"])}, by {by} together; '
        f"this slide holds {record['share']:.0%} of the attention.</p>"
    )


def _warnings(record: dict[str, Any], why_not: str) -> str:
    saw = (record.get("model") or {}).get("saw")
    said = [
        means_nothing((record.get("model") or {}).get("trained_on") or {}, record["slide"]),
        f"uncertain: {record['uncertain']}" if record.get("uncertain") else "",
        "" if record.get("uncertain") else unlike_text(record.get("unlike_training")) or "",
        "the model was trained or selected on the label of this slide: its answer says nothing of new slides"
        if saw == "labels"
        else "",
        f"{record.get('bad_tiles')} tiles could not be decoded and were left out" if record.get("bad_tiles") else "",
        f"{why_not}; this page is made from the tables alone" if why_not else "",
        "made of a part of the slide, the regions that were chosen" if record.get("roi") else "",
    ]
    items = "".join(f"<li>{escaped(text)}</li>" for text in said if text)
    return f'<ul class="warnings">{items}</ul>' if items else ""


def _views(result: Result, view: View, tiles: Sequence[TilePicture], times: np.ndarray, at_most: int) -> str:
    """The slide, its attention, and what further tables say, each picture of at most so many bytes."""
    mpp = result.slide["mpp"]
    what = (
        "the slide, its tissue outlined" if view.outlines else "the slide" if view.of_slide else "where the tiles lie"
    )
    marks = _marks(view, result, tiles)
    left = (
        f"<b>{'Slide' if view.of_slide else 'Tiles'}</b>{', tissue outlined in green' if view.outlines else ''}; "
        "numbered: the most attended tiles"
    )
    figures = [
        (view.image, _outline(view) + marks, what, left),
        (
            attention_picture(view, result.rows, times),
            marks,
            "attention of each tile over the slide in grey",
            f"<b>Attention</b> {escaped(_spread(times))}",
        ),
    ]
    for name, rows in result.further.items():
        caption = FURTHER.get(name, f"<b>{escaped(name)}</b>")
        if READ in rows:
            kept = rows[READ].to_numpy(np.float64)
            caption += f" {int((kept > 0).sum()):,} of {len(kept):,}."
            figures.append((kept_picture(view, rows, kept), "", "which tiles were read", caption))
        else:
            figures.append((attention_picture(view, rows, times_of(rows)), "", "attention of further tiles", caption))
    drawn = "".join(
        _figure(image, over, alt, caption, mpp * view.scale_x, at_most) for image, over, alt, caption in figures
    )
    return f'<div class="views">{drawn}</div>\n{legend()}'


def _spread(times: np.ndarray) -> str:
    """How uneven the attention is, in a sentence."""
    n = len(times)
    half = int(np.searchsorted(np.cumsum(np.sort(times)[::-1]), times.sum() / 2 * (1 - 1e-9))) + 1
    most = f"The most attended of {n} tile{'s' if n != 1 else ''} has {times_text(float(times.max()))} an even share"
    if n > 1 and times.max() < 2:
        return f"{most}: the model looked everywhere nearly alike."
    return f"{most}; half of all attention lies on {half} of them."


def legend() -> str:
    """The scale of colours, which is the same on every page."""
    low, high = LOWEST, HIGHEST
    steps, left, width = 112, 14, 540
    log = np.linspace(low, high, steps + 1)
    of = colours(2 ** ((log[:-1] + log[1:]) / 2))
    seen = np.rint(of[:, :3] * of[:, 3:] + 215 * (1 - of[:, 3:])).astype(int)
    bars = "".join(
        f'<rect x="{left + width * k / steps:.2f}" y="4" width="{width / steps + 0.3:.2f}" height="18" '
        f'fill="rgb({r},{g},{b})"/>'
        for k, (r, g, b) in enumerate(seen.tolist())
    )
    ticks = "".join(
        f'<line x1="{left + width * k / 7:.1f}" x2="{left + width * k / 7:.1f}" y1="22" y2="27" stroke="currentColor"/>'
        f'<text x="{left + width * k / 7:.1f}" y="41" text-anchor="middle">{name}</text>'
        for k, name in enumerate(NAMES)
    )
    return (
        f'<svg class="legend" viewBox="0 0 {width + 2 * left} 46" role="img" aria-label="colour scale" '
        'shape-rendering="crispEdges">'
        f"{bars}{ticks}</svg>"
        '<p class="note">Colours are multiples of the attention that each tile would have, were all looked at alike: '
        "the same scale for every slide, no colour at 1×, and the ends for all beyond. A slide that shows little "
        "colour was looked at evenly.</p>"
    )


def _outline(view: View) -> str:
    if not view.outlines:
        return ""
    path = "".join("M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in ring.tolist()) + "Z" for ring in view.outlines)
    return f'<path class="outline" d="{path}"/>'


def _marks(view: View, result: Result, tiles: Sequence[TilePicture]) -> str:
    """The most attended tiles, numbered as their pictures are."""
    top = [t for t in tiles if t.name.startswith("top")]
    boxes = view.boxes(result.rows.iloc[[t.row for t in top]])
    size = max(view.image.shape[:2]) / 45
    out = []
    for tile, (x0, y0, x1, y1) in zip(top, boxes.tolist()):
        box = f'x="{x0:.1f}" y="{y0:.1f}" width="{x1 - x0:.1f}" height="{y1 - y0:.1f}"'
        number = tile.name.removeprefix("top")
        place = f"translate({x0 + size * 0.2:.1f} {y0 + size:.1f}) scale({size:.1f})"
        out.append(f'<rect class="halo" {box}/><rect {box}/><text transform="{place}">{number}</text>')
    return f'<g class="mark">{"".join(out)}</g>'


def _figure(image: np.ndarray, over: str, alt: str, caption: str, mpp: float, at_most: int) -> str:
    """A picture with what lies over it as vectors, and a scale bar; ``over`` and ``caption`` are HTML."""
    height, width = image.shape[:2]
    data = base64.b64encode(jpeg(image, at_most)).decode("ascii")
    svg = f'<svg viewBox="0 0 {width} {height}" aria-hidden="true">{over}</svg>' if over else ""
    return (
        f'<figure><div class="frame" style="max-width:{46 * width / height:.1f}rem">'
        f'<img src="data:image/jpeg;base64,{data}" alt="{escaped(alt)}" width="{width}" height="{height}">{svg}'
        f"{_scale_bar(width * mpp)}</div><figcaption>{caption}</figcaption></figure>"
    )


def _scale_bar(width_um: float) -> str:
    um = bar_length(width_um)
    return f'<span class="scale" style="width:{100 * um / width_um:.2f}%">{length_text(um)}</span>'


def _tiles(tiles: Sequence[TilePicture], gone: bool, at_most: int, level: int) -> str:
    out = []
    for kind, title in (("top", "The most attended tiles"), ("bottom", "The least attended tiles")):
        own = [t for t in tiles if t.name.startswith(kind)]
        if not own:
            continue
        out.append(block_html(Heading(title, level)))
        if gone:
            rows = [[t.name.removeprefix(kind), times_text(t.times), *map(str, t.box)] for t in own]
            out.append(block_html(Table(["", "attention", "x", "y", "width", "height"], rows, "Level-0 pixels.")))
        else:
            out.append(f'<div class="tiles">{"".join(_tile(t, kind, at_most) for t in own)}</div>')
    return "\n".join(out)


def _tile(tile: TilePicture, kind: str, at_most: int) -> str:
    x, y, w, h = tile.box
    number = f"{tile.name.removeprefix(kind)}: " if kind == "top" else ""
    where = f"<b>{number}{times_text(tile.times)}</b> x {x}, y {y}, {w} × {h} px"
    if tile.pixels is None:
        return f"<figure><figcaption>{where}; its pixels cannot be decoded</figcaption></figure>"
    side = len(tile.pixels)
    data = base64.b64encode(jpeg(tile.pixels, at_most)).decode("ascii")
    zoom = "20x" if abs(tile.mpp / MPP - 1) < 0.05 else "the finest the slide has"
    return (
        f'<figure><div class="frame"><img src="data:image/jpeg;base64,{data}" width="{side}" height="{side}" '
        f'alt="tile at x {x}, y {y}">{_scale_bar(side * tile.mpp)}</div>'
        f"<figcaption>{where}; {zoom}, {tile.mpp:.3g} µm/px</figcaption></figure>"
    )


def _cost(record: dict[str, Any]) -> list[list[str]]:
    seconds = record.get("seconds") or {}
    names = {
        "lr": "tiles read at the model's own scale",
        "mid": "tiles read at the middle scale",
        "hr": "tiles read at 20x",
    }
    tiles = [[names.get(k, f"tiles read ({k})"), f"{n:,}"] for k, n in (record.get("tiles_read") or {}).items()]
    kept = [["candidates at 20x", f"{record['candidates']:,}"]] if record.get("candidates") else []
    phases = ", ".join(f"{name} {value:.2f}" for name, value in seconds.items())
    return [
        *(tiles or [["tiles read", f"{record['tiles']:,}"]]),
        *kept,
        ["time", f"{sum(seconds.values()):.1f} s ({phases})"],
        ["device", f"{record.get('device', 'unknown')}, {record.get('runtime', 'torch')}"],
    ]


def _making(record: dict[str, Any], made: dict[str, Any]) -> list[list[str]]:
    model, slide, tiles = record["model"], record["slide"], (record.get("settings") or {}).get("tiles") or {}
    last = record["history"][-1] if record["history"] else {}
    rows = [
        ["model", f"{model['path']}, digest {model['digest']}"],
        ["trained on", purpose_text(model.get("trained_on") or {})],
        ["preset, licence", f"{model.get('preset') or 'none'}, {model.get('license') or 'unknown'}"],
        ["slide", f"{slide['path']}, fingerprint {slide['fingerprint']}"],
        ["size", f"{slide['width']:,} × {slide['height']:,} px, {slide['mpp']:.4g} µm/px ({slide['mpp_source']})"],
        ["scanner", str(slide.get("vendor", "unknown"))],
        ["tiles", f"{tiles.get('tile_px', '?')} px at {tiles.get('mpp', '?')} µm/px"],
        ["predicted", f"{last.get('date', '?')} by lrmil {last.get('lrmil', '?')}, digest {last.get('digest', '?')}"],
        ["command", str(last.get("argv", ""))],
        ["this page", f"{made['date']} by lrmil {made['lrmil']}"],
    ]
    return [row for row in rows if row[1]]


def _pairs(rows: list[list[str]]) -> str:
    """Names and values, as a table without heads."""
    cells = "".join(f'<tr><th scope="row">{escaped(a)}</th><td>{escaped(b)}</td></tr>' for a, b in rows)
    return f'<table class="pairs"><tbody>{cells}</tbody></table>'


def _links(results: Sequence[Result], out: Path) -> str:
    """Links to what is there; as relative paths, so that a folder can be moved with what lies in it."""
    named = [(f"{r.model}/{p.name}" if r.model else p.name, p) for r in results for p in r.files]
    items = "".join(
        f'<li><a href="{escaped(_href(out, path))}">{escaped(text)}</a></li>'
        for text, path in (*named, *_slide_place(results[0]))
    )
    return (
        f"<ul>{items}</ul>"
        '<p class="note">Drop a .geojson.gz on the slide in QuPath, press F, then Measure &gt; Show measurement '
        "maps.</p>"
    )


def _slide_place(result: Result) -> list[tuple[str, Path]]:
    path = Path(result.slide["path"])
    return [(f"the slide, {path.name}", path)] if os.path.isfile(path) else []


def _href(out: Path, path: Path) -> str:
    beside = as_seen_from(out, path).get("beside")
    return quote(os.fsencode(beside)) if beside is not None else path.absolute().as_uri()
