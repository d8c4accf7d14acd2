"""What was found about a document: what each version of QuPath refuses, what it shows otherwise, what it forgives."""

from __future__ import annotations

from dataclasses import dataclass, field

#: The versions of QuPath whose reader the rules follow (0.5.1, 0.6.0, 0.7.0).
VERSIONS = ("0.5", "0.6", "0.7")
SINCE_06 = VERSIONS[1:]
ONLY_05 = VERSIONS[:1]


@dataclass
class Verdict:
    """What QuPath will make of a document.

    Attributes:
        fatal, silent, notes: sentence -> (how many features, number of the first, from 1; 0 for the document).
        refusing: the versions that import nothing.
        objects: type -> count; classes: name -> count; measurements: name -> [count, lowest, highest].
    """

    fatal: dict[str, list[int]] = field(default_factory=dict)
    silent: dict[str, list[int]] = field(default_factory=dict)
    notes: dict[str, list[int]] = field(default_factory=dict)
    refusing: set[str] = field(default_factory=set)
    objects: dict[str, int] = field(default_factory=dict)
    classes: dict[str, int] = field(default_factory=dict)
    measurements: dict[str, list[float]] = field(default_factory=dict)

    @property
    def opens(self) -> bool:
        """Whether every version opens it."""
        return not self.fatal

    @property
    def opens_in(self) -> list[str]:
        """The versions that open it, be it without any object."""
        return [version for version in VERSIONS if version not in self.refusing]

    def refuse(self, text: str, number: int = 0, versions: tuple[str, ...] = VERSIONS) -> None:
        """One feature makes these versions import nothing of the whole document."""
        _count(self.fatal, text, number)
        self.refusing.update(versions)

    def shown_otherwise(self, text: str, number: int = 0) -> None:
        """QuPath opens it, but as something else than was meant."""
        _count(self.silent, text, number)

    def note(self, text: str, number: int = 0) -> None:
        """QuPath forgives it."""
        _count(self.notes, text, number)

    def add(self, other: Verdict) -> None:
        """Take in what was found about another document of the same file."""
        for own, more in ((self.fatal, other.fatal), (self.silent, other.silent), (self.notes, other.notes)):
            for text, (n, first) in more.items():
                own.setdefault(text, [0, first])[0] += n
        self.refusing |= other.refusing
        for counts, added in ((self.objects, other.objects), (self.classes, other.classes)):
            for name, n in added.items():
                counts[name] = counts.get(name, 0) + n
        for name, (count, low, high) in other.measurements.items():
            seen = self.measurements.setdefault(name, [0, low, high])
            seen[:] = [seen[0] + count, min(seen[1], low), max(seen[2], high)]


def _count(found: dict[str, list[int]], text: str, number: int) -> None:
    found.setdefault(text, [0, number])[0] += 1


def say(found: dict[str, list[int]]) -> list[str]:
    """Findings as sentences: ``feature 12: the ring is not closed (and 34 more)``."""
    return [
        text if not first else f"feature {first}: {text}" + (f" (and {n - 1} more)" if n > 1 else "")
        for text, (n, first) in found.items()
    ]
