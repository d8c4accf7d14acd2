"""What a model is for, by what it was trained on: said with its first answer and on pages; without torch and pandas."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

#: The encoder that comes with the package, and knows painted slides alone.
DEMO = "demo-vit"
#: What is said of a model that learned from painted slides, and of one whose encoder did, where a slide is not painted.
PAINTED_TEXT = "the model was trained on slides that `lrmil demo` painted: what it says of real tissue means nothing"
DEMO_TEXT = f"the model's encoder, {DEMO}, knows painted slides alone: what it says of real tissue means nothing"


def purpose(header: Mapping[str, Any]) -> dict[str, Any]:
    """What a model was trained on, as far as its header says: ``slides``, ``classes`` (slides of each), ``organ``,
    ``stain``, ``mpp`` (lowest, median, highest), ``scanners``, each None where it is not recorded; ``target``: the
    numbers or times of the slides, where it learned those; ``painted``: whether all of them were painted;
    ``demo_encoder``: whether its encoder knows painted slides alone.
    """
    about = header.get("data") or {}
    classes = {name: n.get("slides") for name, n in (about.get("classes") or {}).items()} or None
    bases = [str(e.get("base") or e.get("name")) for e in header.get("encoders") or []]
    return {
        "slides": about.get("slides") or len(header.get("slides") or []) or None,
        "classes": classes,
        **({"target": about["target"]} if about.get("target") else {}),
        **{name: about.get(name) for name in ("organ", "stain", "mpp", "scanners")},
        "painted": bool(about.get("painted")) and about["painted"] == about.get("slides"),
        "demo_encoder": DEMO in bases,
    }


def purpose_text(known: Mapping[str, Any]) -> str:
    """The same in one line."""
    classes, mpp = known.get("classes"), known.get("mpp")
    target = {k.replace("_", " "): f"{v:.4g}" for k, v in (known.get("target") or {}).items()}
    counts = f" ({_counts(classes)})" if classes else f" ({_named(target)})" if target else ""
    parts = [f"trained on {known['slides']} {'painted ' if known.get('painted') else ''}slides{counts}"
             if known.get("slides") else "training slides not recorded"]  # fmt: skip
    if known.get("painted"):
        return f"{parts[0]}; it knows no tissue"
    for name in ("organ", "stain"):
        words = known.get(name)
        parts.append(f"{name} {', '.join(words) if words else 'not recorded'}")
    if mpp:
        parts.append(f"{mpp[0]:.3g} um/px" if mpp[0] == mpp[2] else f"{mpp[0]:.3g} to {mpp[2]:.3g} um/px")
    else:
        parts.append("um/px not recorded")
    scanners = known.get("scanners")
    parts.append(f"scanners {', '.join(scanners) if scanners else 'not recorded'}")
    if known.get("demo_encoder"):
        parts.append(f"its encoder, {DEMO}, knows painted slides alone")
    return "; ".join(parts)


def _counts(of: Mapping[str, Any]) -> str:
    return ", ".join(f"{n} {name}" for name, n in of.items())


def _named(of: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in of.items())


def means_nothing(known: Mapping[str, Any], slide: Mapping[str, Any]) -> str:
    """Why an answer on a slide means nothing, "" where it may mean something: the model, or its encoder, knows painted
    slides alone, and this one is not painted."""
    if slide.get("painted"):
        return ""
    return PAINTED_TEXT if known.get("painted") else DEMO_TEXT if known.get("demo_encoder") else ""
