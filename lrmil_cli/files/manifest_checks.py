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


#: More different numbers than this are no classes; of numbers that are not whole, half as many.
MOST_CLASSES = 20


def continuous(labels: Sequence[str], column: str) -> str | None:
    """Labels that are numbers, and too many of them to be classes; None where they are not."""
    try:
        own = {parse_number(label) for label in labels}
    except ValueError:
        return None
    most = MOST_CLASSES if all(v.is_integer() for v in own) else MOST_CLASSES // 2
    if len(own) <= most:
        return None
    return (
        f"column {column!r} looks like a number to learn ({len(own)} different ones from {min(own):g} to "
        f"{max(own):g}); say --task regression, or --task classification if each of them is a class"
    )


def one_number(values: Sequence[float]) -> Iterator[str]:
    """A number that is the same for all slides is nothing to learn."""
    if len(set(values)) < 2:
        yield f"the number to learn is {next(iter(values), float('nan')):g} for all slides; --label names the column"


def no_event(events: Sequence[int | None]) -> Iterator[str]:
    """Without an event there is no time to learn."""
    if not any(events):
        yield f"all {len(events)} slides are censored; without an event (1 in the column of --event) nothing is learned"


def followed_twice(told: Sequence[tuple[str, float | None, int | None]]) -> Iterator[str]:
    """A patient is followed once, so that all slides have one time and one event."""
    seen: dict[str, tuple[float | None, int | None]] = {}
    said = set()
    for patient, time, event in told:
        if seen.setdefault(patient, (time, event)) != (time, event) and patient not in said:
            said.add(patient)
            first, second = (f"{t:g}{'' if e else '+'}" for t, e in (seen[patient], (time, event)))
            yield f"patient {patient!r} has slides with different times or events ({first} and {second}); correct them"


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
