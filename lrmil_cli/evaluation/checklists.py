"""Reporting checklists of journals: which items the record of an evaluation answers, and which are a person's to write.

Item numbers are those of the lists, labels are ours and say in two or three words what an item is about; the lists
themselves are to be read where they were published (evaluation/README 17).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from lrmil_cli.evaluation.page import Block, Table, Text, to_markdown
from lrmil_cli.targets.task import task_of

OPEN = "to be written by you"


def _cells(lines: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("|")] for line in lines.strip().splitlines()]


#: List -> (what it is, its items, a line each: number, label, the fact that answers it if there is one).
_LISTS = {
    "tripod-ai": (
        "TRIPOD+AI (Collins et al., BMJ 2024), prediction models",
        """
1 | title |
2 | abstract |
3a | why the model is needed |
3b | who is to use it |
3c | known inequalities |
4 | aims |
5a | where data come from | data
5b | dates of data |
6a | setting, number of sites | sites
6b | who was eligible |
6c | treatments |
7 | preparing data | tiles
8a | outcome | classes
8b | who judged the outcome |
8c | blinding |
9a | choice of predictors | input
9b | predictors defined | input
9c | who judged predictors | input
10 | sample size | counts
11 | missing data | flow
12a | how data were used | split
12b | handling of predictors | tiles
12c | model, building, validation | model
12d | differences between sites | groups
12e | measures of performance | metrics
12f | changes to the model | calibration
12g | how predictions are computed | model
13 | class imbalance | balance
14 | fairness | groups
15 | what the model outputs | threshold
16 | training and evaluation data compared | unlike
17 | ethics |
18a | funding |
18b | conflicts of interest |
18c | protocol |
18d | registration |
18e | data sharing |
18f | code sharing | software
19 | patients involved |
20a | flow of participants | flow
20b | characteristics of participants | groups
20c | compared with training | unlike
21 | numbers in each analysis | counts
22 | full model | model
23a | performance with intervals | metrics
23b | differences between sites | groups
24 | results of updating | calibration
25 | interpretation |
26 | limitations |
27a | poor or missing input | unlike
27b | what users need to know |
27c | next steps |
""",
    ),
    "stard-ai": (
        "STARD-AI, diagnostic accuracy; numbers are those of STARD 2015 (Bossuyt et al.), which it extends",
        """
1 | title names a measure of accuracy |
2 | abstract |
3 | background, role of the test |
4 | aims |
5 | prospective or not |
6 | who was eligible |
7 | how found |
8 | setting, places, dates | sites
9 | consecutive, random or chosen |
10a | index test | model
10b | reference standard |
11 | why this reference |
12a | cut-offs of the index test | threshold
12b | cut-offs of the reference |
13a | index test read blind | blind
13b | reference read blind |
14 | measures of accuracy | metrics
15 | indeterminate results | uncertain
16 | missing results | flow
17 | variability of accuracy | groups
18 | sample size | counts
19 | flow | flow
20 | characteristics | groups
21a | severity of disease |
21b | other diagnoses |
22 | time between both tests |
23 | cross table | confusion
24 | accuracy with intervals | metrics
25 | harms |
26 | limits |
27 | implications |
28 | registration |
29 | protocol |
30 | funding |
AI | data of training | data
AI | training and test apart | split
AI | software and version | software
AI | input that is unlike | unlike
AI | fairness | groups
AI | errors looked at | errors
""",
    ),
    "claim": (
        "CLAIM, 2024 update (Tejani et al., Radiology: AI), imaging studies",
        """
1 | title names the method |
2 | abstract |
3 | background |
4 | aims |
5 | prospective or not |
6 | goal |
7 | sources of data | data
8 | who was eligible |
9 | preprocessing | tiles
10 | parts of images used | tiles
11 | de-identification |
12 | missing data | flow
13 | imaging protocol | scanners
14 | reference standard | classes
15 | why this reference |
16 | who annotated |
17 | annotation of the test set |
18 | agreement of annotators |
19 | how parts were made | split
20 | at which level parts are apart | split
21 | sample size | counts
22 | model in detail | model
23 | software | software
24 | first weights | encoder
25 | training | training
26 | choice of the final model | selection
27 | ensembles | ensemble
28 | metrics | metrics
29 | uncertainty | metrics
30 | robustness | unlike
31 | explanations | attention
32 | internal data | split
33 | external data | external
34 | registration |
35 | flow | flow
36 | demographics | groups
37 | performance on all parts | metrics
38 | accuracy with intervals | metrics
39 | failures | errors
40 | limits |
41 | implications |
42 | protocol |
43 | software, model and data available | software
44 | funding |
""",
    ),
    "remark": (
        "REMARK (McShane et al. 2005; Altman et al. 2012), prognostic markers",
        """
1 | marker, aims, hypotheses |
2 | patients | flow
3 | treatments |
4 | material | tiles
5 | assay | model
6 | design, selection, follow-up | follow_up
7 | end points | classes
8 | variables considered | input
9 | sample size | counts
10 | statistics, handling of marker values | metrics
11 | cut points | threshold
12 | flow | flow
13 | distributions of variables | groups
14 | marker against standard variables | beside
15 | univariable results | univariable
16 | multivariable results | adjusted
17 | estimates with intervals | metrics
18 | further analyses | calibration
19 | interpretation, limits |
20 | implications |
""",
    ),
}
#: List -> (what it is, items: number, label, the fact that answers it, "" for none).
CHECKLISTS: dict[str, tuple[str, list[tuple[str, str, str]]]] = {
    name: (title, [(n, label, fact) for n, label, fact in _cells(lines)]) for name, (title, lines) in _LISTS.items()
}


def checklist(name: str, record: dict[str, Any], header: dict[str, Any] | None) -> str:
    """A checklist as Markdown, of the first model of an evaluation.

    Args:
        name: of :data:`CHECKLISTS`; record: ``evaluation.json``; header: of the model file, None where it is not known.
    """
    title, items = CHECKLISTS[name]
    known = facts(record, header)
    rows = [[number, label, known.get(fact) or OPEN] for number, label, fact in items]
    answered = sum(row[2] != OPEN for row in rows)
    blocks: list[Block] = [
        Text(
            f"{title}. {answered} of {len(rows)} items are answered from the record, the others are to be written by "
            "you. Labels are short and ours: read the list itself where it was published. What stands here is a draft "
            "to be checked, of the files that were evaluated."
        ),
        Table(["item", "about", "answer"], rows),
    ]
    return to_markdown(f"Checklist {name}: {record['models'][0]['name']}", blocks)


def facts(record: dict[str, Any], header: dict[str, Any] | None) -> dict[str, str]:
    """What the record of an evaluation and the model's header answer, by fact; what they do not know is missing."""
    m, h = record["models"][0], header or {}
    outside = m.get("external")
    data = h.get("data") or {}
    task = task_of(record)
    out = {
        **FACTS[task.kind](record, m),
        "split": "each case was predicted by heads that did not train on it, folds by patient"
        if m["kind"] == "out-of-fold"
        else "predicted by a finished model; "
        + ("it knows some of these cases: " + m["leaks"][0] if m["leaks"] else "it was trained on none of these cases"),
        "blind": "labels had no part in the predictions" if m["kind"] == "predict" and not m["leaks"] else "",
        "input": "pixels of the slide alone",
        "attention": "attention of each tile, as table and as GeoJSON for QuPath",
    }
    if m.get("groups"):
        out["groups"] = "judged by " + ", ".join(f"{c} ({len(own)} groups)" for c, own in m["groups"].items())
    if (own := m.get("reading")) is not None:
        out["uncertain"] = f"{own['uncertain']} answers were uncertain and are counted as they stand"
    if outside:
        t = outside["threshold"]
        out["external"] = (
            f"{m['n']} {record['level']}s that the model was not trained on, {outside['intervals']} intervals"
        )
        out["threshold"] = (
            "the likeliest class" if t is None else f"positive from {t['value']:.4g} on ({t['rule']}), fixed before"
        )
        out["flow"] = ", ".join(f"{f['what']} {f['slides']}" for f in outside["flow"])
        out["errors"] = f"the {len(outside['worst_errors'])} worst errors are shown with picture and attention"
    if data:
        sites = data.get("sites")
        out["data"] = f"trained with {data['slides']} slides of {data['patients']} patients"
        out["sites"] = f"{len(sites)} sites in training" if sites else ""
        out["scanners"] = "scanners of training: " + ", ".join(data["scanners"])
    if h:
        tiles, encoder, settings = h["tiles"], h["encoders"][0], h["settings"]
        out["tiles"] = f"tissue found, tiles of {tiles['tile_px']} px at {tiles['mpp']:g} um/px"
        out["model"] = (
            f"{h.get('method', 'lrmil')} {h.get('preset') or ''}: {len(h['heads'])} heads {h['heads'][0]['name']} on "
            f"{encoder['architecture']}; digest {h['history'][-1]['digest']}"
        )
        out["encoder"] = f"encoder from {encoder.get('base') or encoder['name']}"
        out["training"] = f"at most {settings.get('epochs', '?')} epochs, seed {settings.get('seed', '?')}"
        out["selection"] = "the epoch of each head by validation slides"
        says = "the calibrated probabilities" if task.classes else "the answers"
        out["ensemble"] = f"mean of {says} of {len(h['heads'])} heads"
        known = h.get("training_features") or {}
        out["unlike"] = "slides unlike the training slides are marked" if "slide" in known else ""
    made = record["history"][-1]
    out["software"] = f"lrmil {made['lrmil']}; command: {made['argv'] or 'lrmil evaluate'}"
    return out


def _value(v: dict[str, Any] | None) -> str:
    if v is None or v["value"] is None:
        return "undefined"
    interval = "" if v["low"] is None else f" ({v['low']:.3f} to {v['high']:.3f})"
    return f"{v['value']:.3f}{interval}"


def _of_classes(record: dict[str, Any], m: dict[str, Any]) -> dict[str, str]:
    metrics = _metrics(m)
    return {
        "counts": f"{m['n']} {record['level']}s of {m['patients']} patients: "
        + ", ".join(f"{n} {c}" for c, n in m["counts"].items()),
        "classes": f"classes {', '.join(record['classes'])}, from the table of slides; who judged them is yours to say",
        "balance": f"always saying {m['majority_class']} would be right in {m['majority_rate']:.1%}; balanced accuracy "
        f"{_value(m['metrics'].get('balanced_accuracy'))}",
        "metrics": metrics,
        "univariable": metrics,
        "calibration": "; ".join(
            f"{k} {_value(m['calibration']['given'].get(k))}" for k in ("slope", "intercept", "ece")
        )
        + ("; probabilities were calibrated on validation slides" if "raw" in m["calibration"] else ""),
        "confusion": f"rows are labels {', '.join(record['classes'])}: {m['confusion']}",
    }


def _of_numbers(record: dict[str, Any], m: dict[str, Any]) -> dict[str, str]:
    d, label = m["regression"], record["target"]["label"]
    agreed = d["bland_altman"]
    limits = f"{agreed['low']:.4g} to {agreed['high']:.4g}" if agreed else ""
    return {
        "counts": f"{m['n']} {record['level']}s of {m['patients']} patients; {label} from {d['least']:.4g} to "
        f"{d['most']:.4g}",
        "classes": f"the number in the column {label!r} of the table of slides; who measured it is yours to say",
        "metrics": _metrics(m),
        "univariable": _metrics(m),
        "calibration": f"bias {agreed['bias']:.4g}, 95 % limits of agreement {limits}" if agreed else "",
        "flow": _flow(m),
    }


def _of_survival(record: dict[str, Any], m: dict[str, Any]) -> dict[str, str]:
    d, target = m["survival"], record["target"]
    alone = [r for r in d["ratios"] if not r["adjusted_for"]]
    beside = [r for r in d["ratios"] if r["adjusted_for"]]
    p = "not known, all are in one group" if d["log_rank"] is None else f"{d['log_rank']:.3g}"
    out = {
        "counts": f"{m['slides']} slides of {d['patients']} patients, {d['events']} with the event",
        "classes": f"time in the column {target['time']!r}, event in {target['event']!r} (1 it happened, 0 censored); "
        "from when time counts, and who judged the event, is yours to say",
        "metrics": _metrics(m),
        "calibration": "; ".join(
            f"{k.replace('_', ' ')} {_value(v)}" for k, v in m["metrics"].items() if k.startswith(("ibs", "brier"))
        ),
        "threshold": "high and low risk by the median risk of the training slides of each head; no case that is judged "
        "had a say in it",
        "univariable": f"log-rank p {p}; {_ratios(alone)}",
        "adjusted": _ratios(beside),
        "beside": f"adjusted for {', '.join(d['adjust']['columns'])}; {d['adjust']['left_out']} patients left out, of "
        "whom one of them is not known"
        if d["adjust"]
        else "",
        "flow": _flow(m),
    }
    if d["follow_up"] is not None:
        out["follow_up"] = f"median follow-up {d['follow_up']:.4g} (reverse Kaplan-Meier); design is yours to say"
    return out


#: Task -> what the record of an evaluation answers of it.
FACTS: dict[str, Callable[[dict[str, Any], dict[str, Any]], dict[str, str]]] = {
    "classification": _of_classes,
    "regression": _of_numbers,
    "survival": _of_survival,
}


def _metrics(m: dict[str, Any]) -> str:
    return "; ".join(f"{k} {_value(v)}" for k, v in m["metrics"].items()) + " (95 % bootstrap intervals over patients)"


def _flow(m: dict[str, Any]) -> str:
    return "; ".join([f"{m['slides']} slides of {m['patients']} patients were judged", *m["remarks"]])


def _ratios(ratios: Sequence[dict[str, Any]]) -> str:
    """Hazard ratios with Wald intervals, those of a fit together."""
    said = []
    for r in ratios:
        rows = [
            f"{v['name']} {v['hazard_ratio']:.3g} ({v['low']:.3g} to {v['high']:.3g}, p {v['p']:.3g})"
            for v in r["rows"]
        ]
        said.append(f"hazard ratios of {r['n']} patients: {', '.join(rows)}" if rows else r["reason"])
    return "; ".join(said)
