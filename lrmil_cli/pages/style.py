"""What the pages look like, and the script of the index: it sorts and filters, and asks nobody for anything."""

from __future__ import annotations

STYLE = """
body { max-width: 90rem; }
nav { margin: 0 0 1rem; font-size: .92rem; }
a { color: var(--link); }
:root { --link: #0b5cad; --mark: #8a4b00; --track: #e3e7ec; --bar: #2166ac; --dot: #14171a; }
@media (prefers-color-scheme: dark) {
  :root { --link: #82b7f0; --mark: #f0b35f; --track: #2c333b; --bar: #5c9bd6; --dot: #f2f4f7; }
}
.answer { font-size: 1.25rem; margin: 0 0 .6rem; max-width: none; }
.answer b { font-size: 1.5rem; }
.model { color: var(--faint); margin: .6rem 0 0; font-weight: 600; }
.model + .answer { margin-top: 0; }
.set { margin: .2rem 0 .6rem; }
.badge { display: inline-block; padding: 0 .55rem; border: 1.5px solid var(--mark); border-radius: 1rem;
  color: var(--mark); font-size: .88rem; font-weight: 600; white-space: nowrap; }
.warnings { margin: .8rem 0; padding: .6rem 1rem .6rem 2rem; border-left: 4px solid var(--mark);
  background: var(--soft); max-width: 60rem; }
.views { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); gap: 0 1.5rem; }
.frame { position: relative; background: #ffffff; border: 1px solid var(--line); }
.frame img { width: 100%; }
.frame svg { position: absolute; inset: 0; width: 100%; height: 100%; }
.outline { fill: none; stroke: #007a3d; stroke-width: 1.6; vector-effect: non-scaling-stroke; }
.mark rect { fill: none; stroke: #000000; stroke-width: 1.6; vector-effect: non-scaling-stroke; }
.mark rect.halo { stroke: #ffffff; stroke-width: 4; }
.mark text { font: 700 1px system-ui, sans-serif; fill: #000000;
  paint-order: stroke; stroke: #ffffff; stroke-width: .22px; }
.scale { position: absolute; left: 3%; bottom: 3%; color: #000000; background: rgb(255 255 255 / .85);
  border-bottom: 4px solid #000000; box-shadow: 0 0 0 2px rgb(255 255 255 / .85);
  font-size: .78rem; line-height: 1.25; text-align: center; white-space: nowrap; }
figcaption { color: var(--faint); font-size: .88rem; margin-top: .35rem; }
figcaption b { color: var(--ink); font-size: .98rem; }
.legend { display: block; width: 100%; max-width: 36rem; height: auto; margin: .4rem 0; }
.legend text { fill: currentColor; font: 13px system-ui, sans-serif; }
.tiles { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 21rem), 1fr)); gap: 0 1.25rem; }
.tiles figure { margin: .6rem 0; }
.chance { width: 60%; min-width: 8rem; }
.chance svg { display: block; width: 100%; height: auto; margin-top: .25rem; }
.chance .track { fill: var(--track); } .chance .bar { fill: var(--bar); }
.chance circle { fill: var(--dot); stroke: var(--paper); stroke-width: 1.2; }
.curve { display: block; width: 100%; max-width: 34rem; height: auto; }
.curve line { stroke: var(--track); } .curve text { fill: currentColor; font: 11px system-ui, sans-serif; }
.curve polyline { fill: none; stroke: var(--bar); stroke-width: 2.5; }
.full { width: 100%; max-width: 56rem; }
.pairs th { white-space: nowrap; } .pairs td { overflow-wrap: anywhere; }
code { font-size: .88em; overflow-wrap: anywhere; }
.tools { display: flex; flex-wrap: wrap; gap: .4rem 1rem; align-items: center; margin: 1rem 0 .4rem; }
.tools[hidden] { display: none; }
.tools input { font: inherit; color: inherit; background: var(--paper); border: 1px solid var(--faint);
  border-radius: .3rem; padding: .35rem .6rem; width: min(100%, 24rem); }
#slides { width: 100%; }
#slides td, #slides th { vertical-align: middle; }
#slides .thumb { width: 7.6rem; } #slides thead .thumb { background: var(--soft); border-bottom-width: 2px; }
#slides .thumb img { margin: 0 auto; max-height: 5.2rem; width: auto; border: 1px solid var(--line); }
#slides button { all: unset; cursor: pointer; font-weight: 600; }
#slides button:focus-visible { outline: 2px solid var(--link); outline-offset: 2px; }
#slides th[aria-sort=ascending] button::after { content: " ▲"; font-size: .7em; }
#slides th[aria-sort=descending] button::after { content: " ▼"; font-size: .7em; }
.counts { color: var(--faint); }
@media (max-width: 40rem) {
  body { padding: 1rem .8rem 3rem; } h1 { font-size: 1.35rem; }
  th, td { padding: .35rem .4rem; }
  .pairs th { white-space: normal; width: 35%; } .full .number { white-space: normal; } .chance { min-width: 5rem; }
  #slides { font-size: .8rem; } #slides .less { display: none; }
  #slides .thumb { width: 3.6rem; padding: .3rem .2rem; } #slides .thumb img { max-width: 3rem; }
}
@media print {
  :root { --link: #000000; --mark: #000000; --track: #dddddd; --bar: #2166ac; --dot: #000000; }
  nav, .tools { display: none !important; }
  .views { grid-template-columns: 1fr 1fr; } .tiles { grid-template-columns: 1fr 1fr 1fr; }
  figure, .warnings, .answer, .pairs, .full, .legend { break-inside: avoid; }
  .frame { max-width: 100% !important; }
}
"""

SCRIPT = """
"use strict";
const table = document.getElementById("slides"), body = table.tBodies[0], rows = [...body.rows];
const box = document.getElementById("filter"), count = document.getElementById("count");
const valueOf = ({ cells }, n) => "v" in cells[n].dataset ? Number(cells[n].dataset.v) : cells[n].textContent;
const compare = (a, b) => typeof a === "number" && typeof b === "number" ? a - b
  : String(a).localeCompare(String(b), undefined, { numeric: true });
for (const button of table.tHead.querySelectorAll("button")) {
  button.addEventListener("click", () => {
    const head = button.parentElement, n = head.cellIndex, up = head.getAttribute("aria-sort") !== "ascending";
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    rows.sort((a, b) => (up ? 1 : -1) * compare(valueOf(a, n), valueOf(b, n)));
    body.append(...rows);
  });
}
const show = () => {
  const words = box.value.toLowerCase().split(/\\s+/).filter(Boolean);
  let n = 0;
  for (const row of rows) {
    const text = row.textContent.toLowerCase();
    row.hidden = !words.every((w) => text.includes(w));
    n += row.hidden ? 0 : 1;
  }
  count.textContent = `${n} of ${rows.length} shown`;
};
box.addEventListener("input", show);
document.querySelector(".tools").hidden = false;
show();
"""
