"""What is wrong with a table of slides as a whole, in sentences: what was found, after the last semicolon what to do.

Each function looks at columns of cells alone, one cell a slide.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence

from lrmil_cli.files.manifest_columns import bare, parse_number
from lrmil_cli.files.names import as_file


def clashing_ids(ids: Sequence[str]) -> Iterator[str]:
    """Results are named after the slide id, so that no two may be one file."""
    said = Counter(map(as_file, ids))
    for slide_id in {as_file(i): i for i in reversed(ids)}.values():
        if (count := said[as_file(slide_id)]) > 1:
            yield f"slide_id {slide_id!r} stands in {count} rows; make them unique (column slide_id)"


def torn_patients(patients: Sequence[str], column: str, parts: Sequence[str | None]) -> Iterator[str]:
    """A patient's slides must stay together in every split that the table defines."""
    seen: dict[str, str | None] = {}
    said = set()
    for patient, part in zip(patients, parts):
        if seen.setdefault(patient, part) != part and patient not in said:
            said.add(patient)
            yield (
                f"patient {patient!r} is in two parts of column {column!r} ({seen[patient]} and {part}); all slides of "
                "a patient belong to one part"
            )


def spelled_twice(labels: Iterable[str]) -> Iterator[str]:
    """Labels that differ by case, spaces or the form of a number alone are one class, written twice."""
    spellings: dict[object, Counter[str]] = defaultdict(Counter)
    for label in labels:
        spellings[_meaning(label)][label] += 1
    for own in spellings.values():
        if len(own) > 1:
            text = ", ".join(f"{name!r} in {count(n, 'slide')}" for name, n in own.items())
            first, second = list(own)[:2]
            yield f"labels that may be one class: {text}; write them alike, or say --class-map {second}={first}"


def too_few(labels: Iterable[str]) -> Iterator[str]:
    """A class needs several slides to be learnt, and a classifier several classes."""
    counts = Counter(labels)
    for label in sorted(c for c, n in counts.items() if n == 1):
        yield f"label {label!r} stands in one slide only; a class needs several slides to be learnt"
    if len(counts) < 2:
        yield f"only one label ({next(iter(counts), '')!r}); a classifier needs two classes at least"


def count(n: int, what: str) -> str:
    """``1 slide``, ``2 slides``."""
    return f"{n} {what}{'' if n == 1 else 's'}"


def listed(items: Sequence[str], between: str = ", ", most: int = 5) -> str:
    """The first of them, and dots for the others."""
    return between.join([*items[:most], *(["..."] if len(items) > most else [])])


def _meaning(label: str) -> object:
    try:
        return parse_number(label)
    except ValueError:
        return bare(label)
