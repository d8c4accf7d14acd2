"""The card of a model: what it is for, what it learned from, how it was judged, where it ends (evaluation/README 14).

Written from the model's header and the receipt beside it; what only a person can say comes from a TOML file.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

from lrmil_cli.errors import InputError
from lrmil_cli.evaluation.calibration import FIGURES
from lrmil_cli.evaluation.metrics import TARGET_TITLES, TITLES, decimals, show
from lrmil_cli.evaluation.page import Block, Heading, Table, Text, to_markdown
from lrmil_cli.evaluation.prediction_sets import calibration_patients, lowest_error, patients_needed
from lrmil_cli.evaluation.receipt_page import headline, lead_of, site_text, value_text
from lrmil_cli.files.header import last_digest
from lrmil_cli.files.tensors import read_tensor_header
from lrmil_cli.targets.task import PATIENT, bag_of, task_of

#: Keys of the statement, and what the card calls them.
STATEMENT = {
    "intended_use": "Intended use",
    "not_for": "Not for",
    "population": "Patients and tissue it is meant for",
    "ethics": "Ethics and consent",
    "risks": "Risks and what guards against them",
    "authors": "Made by",
    "contact": "Contact",
    "citation": "How to cite",
}
MISSING = (
    "NOT COMPLETE: intended use, contact and ethics are for a person to say; give them with --statement FILE.toml "
    f"(keys: {', '.join(STATEMENT)})."
)


def read_statement(path: str) -> dict[str, list[str]]:
    """What a person says of a model: key -> paragraphs.

    Raises:
        InputError: no such file, no TOML, or keys that the card does not have.
    """
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        found = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as e:
        raise InputError(f"{path}: cannot be read ({type(e).__name__}); name a TOML file") from e
    except tomllib.TOMLDecodeError as e:
        raise InputError(f'{path}: not TOML ({e}); write lines such as intended_use = "..."') from e
    unknown = sorted(found.keys() - STATEMENT.keys())
    if unknown:
        raise InputError(f"{path}: the card has no {', '.join(unknown)}; its keys are {', '.join(STATEMENT)}")
    said = {k: [v] if isinstance(v, str) else v for k, v in found.items()}
    for key, value in said.items():
        if not isinstance(value, list) or not all(isinstance(v, str) and v.strip() for v in value):
            raise InputError(f"{path}: {key} is no text; write a string, or a list of them")
    return said


def model_card(path: str, statement: dict[str, list[str]] | None = None) -> str:
    """The card as Markdown.

    Args:
        path: of a model file; its receipt is looked for beside it.

    Raises:
        InputError: not a model file.
    """
    header = read_tensor_header(path, "model")
    said = statement or {}
    blocks: list[Block] = [
        *_purpose(header, said),
        *_data(header),
        *_training(header),
        *_judged(header, _receipt(Path(path), header)),
        *_promises(header, path),
        *_limits(header),
        *_checks(header),
        *_origin(header),
    ]
    text = to_markdown(f"Model card: {Path(path).name}", blocks)
    lacking = [k for k in STATEMENT if k not in said]
    if not said:
        return f"{MISSING}\n\n{text}"
    return text if not lacking else f"NOT COMPLETE: nobody says {', '.join(lacking)}.\n\n{text}"


def _receipt(path: Path, header: dict[str, Any]) -> dict[str, Any] | None:
    """The receipt beside a model, if it is of this one."""
    try:
        found = json.loads(path.with_name(f"{path.stem}.receipt.json").read_text(encoding="utf-8"))
        lead = lead_of(found)
        both = found["models"]["distilled"]["metrics"][lead]["value"], header["metrics"][lead]
        # Tables keep nine digits of a number.
        same = both[0] == both[1] or (None not in both and math.isclose(*both, rel_tol=1e-6))
        known = found["model"] == path.name and found["classes"] == header["classes"]
        return found if known and same else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _purpose(header: dict[str, Any], said: dict[str, list[str]]) -> list[Block]:
    tiles, task = header["tiles"], task_of(header)
    whom = "patients" if bag_of(header) == PATIENT else "slides"
    does = f"Classifies {whom} as {_or(header['classes'])}" if task.classes else f"Predicts {task.name} of {whom}"
    together = " of all their slides together" if whom == "patients" else ""
    what = (
        f"{does} from tiles of {tiles['tile_px']} px at {tiles['mpp']:g} um/px{together}, "
        "and says where it looked. For research use only; not a medical device."
    )
    blocks: list[Block] = [Heading("What it is for"), Text(what)]
    for key in (k for k in STATEMENT if k in said):
        blocks += [Heading(STATEMENT[key], 3), *map(Text, said[key])]
    open_ = [title for key, title in STATEMENT.items() if key not in said]
    return [*blocks, *([Text(f"To be said by a person: {'; '.join(open_)}.")] if open_ else [])]


def _data(header: dict[str, Any]) -> list[Block]:
    about = header.get("data")
    if about is None:
        return [Heading("Data"), Text(f"{len(header.get('slides', []))} slides; nothing else is recorded.")]
    classes = [[c, str(n["slides"]), str(n["patients"])] for c, n in about["classes"].items()]
    target = [[k.replace("_", " "), f"{v:.4g}"] for k, v in (about.get("target") or {}).items()]
    counts = Table(["class", "slides", "patients"], classes) if classes else Table([task_of(header).name, ""], target)
    rows = [["patients come from", str(header.get("patients", {}).get("from", "not recorded"))]]
    sites, mpp = about["sites"], about["mpp"]
    rows.append(["sites", _counts(sites) if sites else "unknown (no column `site`)"])
    rows += [[name, _counts(about[name])] for name in ("organ", "stain") if about.get(name)]
    rows.append(["scanners, by the files", _counts(about["scanners"])])
    rows += [["painted by `lrmil demo`", f"{about['painted']} slides"]] if about.get("painted") else []
    rows.append(
        ["um/px of the slides", f"{mpp[0]:.3g} to {mpp[2]:.3g}, median {mpp[1]:.3g}" if mpp else "not recorded"]
    )
    probe = header.get("site_probe")
    text = [Text(site_text({"apart": about.get("sites_apart"), "probe": probe}))] if sites and len(sites) > 1 else []
    return [
        Heading("Data"),
        Text(f"{about['slides']} slides of {about['patients']} patients, for training, selection and test."),
        counts,
        Table(["", ""], rows),
        *text,
    ]


def _training(header: dict[str, Any]) -> list[Block]:
    settings, encoder = header["settings"], header["encoders"][0]
    about = encoder.get("distilled")
    heads = len(header["heads"])
    rows = [
        ["method", f"{header.get('method', 'lrmil')}, preset {header.get('preset') or 'none'}"],
        ["heads", f"{heads} of kind {header['heads'][0]['name']}, the mean of all answers"],
        ["encoder", f"{encoder['architecture']}, {encoder['embedding']} at {encoder['image_size']} px"],
        ["distilled from", str(encoder.get("base") or "?") if about else "not distilled"],
        ["epochs, seed", f"{settings.get('epochs', '?')} at most, {settings.get('seed', '?')}"],
        ["teacher", "used" if header.get("teacher") else "none"],
    ]
    return [Heading("Training"), Table(["", ""], rows)]


def _judged(header: dict[str, Any], receipt: dict[str, Any] | None) -> list[Block]:
    blocks: list[Block] = [Heading("How it was judged")]
    known = TITLES | TARGET_TITLES
    if receipt is None:
        rows = [
            [title, show(header["metrics"][k], decimals(k))] for k, title in known.items() if k in header["metrics"]
        ]
        note = "Out of fold, all held-out slides together, without intervals: no receipt is beside the model."
        return [*blocks, Table(["", "value"], rows, note)]
    own = receipt["models"]["distilled"]
    rows = [[title, value_text(own["metrics"][k], metric=k)] for k, title in known.items() if k in own["metrics"]]
    note = (
        f"On {receipt['slides']} held-out slides of {receipt['patients']} patients, {receipt['folds']} fold(s); in "
        "brackets 95 % bootstrap intervals over patients. Slides of the same cohort: an internal validation."
    )
    blocks += [Text(headline(receipt)), Table(["", "value"], rows, note)]
    if "calibration" in own:  # receipts of earlier versions lack it
        calibrated = [[title, value_text(own["calibration"]["given"][k])] for k, title in FIGURES.items()]
        note = "Slope 1, intercept 0 and error 0 are perfect."
        blocks += [Heading("Calibration", 3), Table(["", "value"], calibrated, note)]
    if sets := receipt.get("prediction_sets"):
        text = f"Sets that promise {sets['promised']:g} held the true class in {value_text(sets['reached'])}"
        blocks.append(
            Text(f"{text} of {sets['n']} held-out patients; {show(sets['one_class'])} of them name one class.")
        )
    return blocks


def _promises(header: dict[str, Any], path: str) -> list[Block]:
    if not task_of(header).classes:
        return []
    about = header.get("calibration") or {}
    blocks: list[Block] = [Heading("What its probabilities and sets lean on")]
    if "heads" not in about:
        return [*blocks, Text("Of an earlier version: not calibrated head by head, and no set can be promised.")]
    kinds = sorted({h["method"] for h in about["heads"]})
    of = f"slides that a user named on {about.get('date', '?')}" if about["of"] == "named" else "validation slides"
    blocks.append(Text(f"Each head is calibrated ({', '.join(kinds)}) by {of}."))
    known = calibration_patients(header, path)
    n, lowest = len(known.head), lowest_error(known)
    can = [f"{c:g}" for c in (0.8, 0.9, 0.95, 0.99) if n >= patients_needed(c)]
    blocks.append(
        Text(
            f"{n} patients that a head did not see are kept without names: `--coverage` of "
            f"{', '.join(can) or 'no usual value'} can be promised; the lowest `--max-error` is "
            f"{'none' if lowest is None else f'{lowest:g}'}. A laboratory may calibrate to its own patients with "
            "`lrmil calibrate`."
        )
    )
    return blocks


def _limits(header: dict[str, Any]) -> list[Block]:
    about, patients = header.get("data") or {}, header.get("patients", {})
    known, whom = header.get("training_features") or {}, f"{bag_of(header)}s"
    marked = f"are marked as unlike the training {whom}"
    unlike = f"{whom.capitalize()} beyond 99 % of {known.get('held_out')} held-out {whom} {marked}"
    if "screen" in header:
        unlike += ", by the HR tiles that are read; with --keep-min, --keep-max or --keep-threshold none is"
    plain = [h for h in (header.get("calibration") or {}).get("heads", []) if h["method"] == "none"]
    said = [
        "Patients are not known: slides were taken for patients, so figures may be too good."
        if patients.get("from") == "slides"
        else "",
        "Sites are not known: whether it recognises hospitals is not checked." if about and not about["sites"] else "",
        "All slides are of one site: nothing is known of others." if len(about.get("sites") or {}) == 1 else "",
        "The encoder saw pixels, not labels, of test slides." if header.get("encoder_saw_test_pixels") else "",
        f"{len(plain)} head(s) are not calibrated: {plain[0]['reason']}." if plain else "",
        f"It cannot tell {whom} that are unlike its training {whom}"
        + (f": {known['reason']}." if "reason" in known else ".")
        if "slide" not in known
        else f"{unlike}.",
    ]
    return [Heading("Limits"), Table(["what is not known, or known to be so"], [[text] for text in said if text])]


def _checks(header: dict[str, Any]) -> list[Block]:
    fixture = header.get("fixture")
    if fixture is None:
        text = "The model holds no tiles to verify it by."
    elif fixture["of"] == "painted":
        text = f"`lrmil verify` replays {fixture['count']} painted tiles; the model holds no tissue."
    else:
        text = (
            f"`lrmil verify` replays {fixture['count']} tiles of a validation slide: THE FILE HOLDS PIXELS OF TISSUE."
        )
    return [Heading("Does it compute here what it computed there"), Text(text)]


def _origin(header: dict[str, Any]) -> list[Block]:
    steps = [[h["command"], str(h.get("lrmil", "?")), str(h.get("date", "?")), h["digest"]] for h in header["history"]]
    rows = [
        ["licence of the encoder", str(header.get("license") or "unknown")],
        ["digest of the model", last_digest(header)],
        ["checksum of the file", str(header.get("content", "none"))],
    ]
    return [
        Heading("Licence, versions, digests"),
        Table(["", ""], rows),
        Table(["made by", "lrmil", "date", "digest"], steps),
    ]


def _counts(counts: dict[str, int], most: int = 12) -> str:
    shown = [f"{k} {v}" for k, v in list(counts.items())[:most]]
    return ", ".join(shown) + (f" and {len(counts) - most} more" if len(counts) > most else "")


def _or(names: list[str]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}"
