"""An external validation as the blocks of a page."""

from __future__ import annotations

from collections.abc import Mapping

from lrmil_cli.evaluation.evaluate_models import ModelEvaluation
from lrmil_cli.evaluation.external import External
from lrmil_cli.evaluation.operating_point import Share
from lrmil_cli.evaluation.page import Block, Heading, Picture, Table, Text
from lrmil_cli.evaluation.plots import decision_picture

TITLES = {
    "sensitivity": "sensitivity",
    "specificity": "specificity",
    "ppv": "positive predictive value",
    "npv": "negative predictive value",
    "accuracy": "accuracy",
}


def external_blocks(m: ModelEvaluation, found: External, several: bool, pictures: Mapping[str, bytes]) -> list[Block]:
    """Operating point, decision curve, flow and worst errors of a model.

    Args:
        several: name the model, since there are others; pictures: slide id -> PNG of the slide beside its attention.
    """
    who = f" ({m.name})" if several else ""
    out: list[Block] = [Heading(f"Operating point{who}"), Text(threshold_text(found))]
    for name, own in found.at.items():
        sure = None if found.sure is None else found.sure[name]
        rows = [
            [TITLES[k], share_text(s), f"{s.hits} of {s.n}", *([share_text(sure[k])] if sure else [])]
            for k, s in own.items()
        ]
        headers = [f"of {name}", "all answers", "cases", *(["answers that are not uncertain"] if sure else [])]
        out.append(Table(headers, rows, _note(found)))
    if found.curve is not None:
        picture = decision_picture([(m.name, found.curve[0])], found.curve[1])
        out += [
            Heading(f"Decision curve{who}"),
            Picture(picture, "net benefit against the threshold", f"evaluation.decision{_ending(m, several)}.png"),
            Text(
                "Net benefit of acting on the model from a threshold on, against acting on all and on none: cases "
                "found, less those acted on in vain, weighed by the odds of the threshold."
            ),
        ]
    rows = [[what, str(n), detail] for what, n, detail in found.flow]
    out += [Heading(f"Flow of participants{who}"), Table(["slides", "", ""], rows)]
    out.append(Heading(f"Worst errors{who}"))
    if not found.errors:
        out.append(Text("No answer is wrong."))
    for e in found.errors:
        unlike = "; unlike the training slides" if e["unlike_training"] else ""
        text = (
            f"{e['slide_id']}: is {e['label']} (probability {e['probability_of_label']:.3f}), said {e['said']}{unlike}."
        )
        out.append(Text(text))
        if e["slide_id"] in pictures:
            name = f"evaluation.error.{found.errors.index(e) + 1}{_ending(m, several)}.png"
            alt = f"{e['slide_id']}: the slide, and where the model looked"
            out.append(Picture(pictures[e["slide_id"]], alt, name, shrink=True))
    return out


def threshold_text(found: External) -> str:
    """Which operating point, and where it is from."""
    t = found.threshold
    if t is None:
        return "The likeliest class is the answer."
    if not t.patients:
        return f"Positive from a probability of {t.value:g} on, a threshold that was given."
    return (
        f"Positive from a probability of {t.value:.4g} on, chosen by {t.rule} on the {t.patients} held-out patients of "
        f"the training record (sensitivity {t.sensitivity:.3f}, specificity {t.specificity:.3f} there), fixed before "
        "this cohort was seen."
    )


def share_text(s: Share) -> str:
    """``0.812 (0.740 to 0.880)``."""
    return "undefined" if s.value is None else f"{s.value:.3f} ({s.low:.3f} to {s.high:.3f})"


def _note(found: External) -> str:
    name = "Wilson" if found.method == "wilson" else "Clopper and Pearson"
    note = f"In brackets 95 % intervals of {name}. Predictive values are those at this cohort's share of classes."
    if found.several:
        note += (
            f" {found.several} patients have several slides, which are not independent: the intervals are too narrow "
        )
        note += "(--level patient)."
    return note


def _ending(m: ModelEvaluation, several: bool) -> str:
    return f".{''.join(c if c.isalnum() else '_' for c in m.name)}" if several else ""
