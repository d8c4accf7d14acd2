"""The table of slides in commands that need labels: its options, and reading it aloud."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from lrmil_cli.errors import UsageError

if TYPE_CHECKING:
    from lrmil_cli.commands.report import Report
    from lrmil_cli.files.manifest import Manifest
    from lrmil_cli.files.manifest_rows import Labels

Label = Annotated[
    Optional[str],
    typer.Option("--label", metavar="COLUMN", help="Column of the labels.  [default: label]", show_default=False),
]
DropMissing = Annotated[
    bool,
    typer.Option("--drop-missing", help="Leave out slides without label (empty, NA, unknown, ...), and say how many."),
]
Classes = Annotated[
    Optional[list[str]],
    typer.Option(
        "--class",
        metavar="NAME",
        help="A class that is really called so, where its name looks like a missing value (None, NA, -). "
        "May be repeated.",
        show_default=False,
    ),
]
ClassMap = Annotated[
    Optional[list[str]],
    typer.Option(
        "--class-map",
        metavar="OLD=NEW",
        help="Rename a class, or make one of two spellings: --class-map msi=MSI. May be repeated.",
        show_default=False,
    ),
]


BY_SITE = ("preserve", "leave-one-out")
BySite = Annotated[
    Optional[str],
    typer.Option(
        "--by-site",
        help="Draw folds so that no site (column `site`, or TCGA ids) is on both sides of a split: preserve (as many "
        "as --folds), or leave-one-out (each site is tested once).  [default: sites are not looked at; paper]",
        show_default=False,
    ),
]


def read_cohort(
    report: Report, path: str, values: dict[str, Any], *, need_labels: bool = True, need_slides: bool = True
) -> Manifest:
    """Read a manifest and say what was understood.

    Args:
        values: parameters of the command, with ``label, drop_missing, classes, class_map``, and ``by_site`` if it has
            that.

    Raises:
        UsageError: a --class-map that is none. InputError: as :func:`lrmil_cli.files.manifest.read_manifest`.
    """
    from lrmil_cli.files.manifest import read_manifest

    labels = labels_of(values)
    by_site = values.get("by_site")
    if by_site not in (None, *BY_SITE):
        raise UsageError(f"--by-site {by_site}: choose one of {', '.join(BY_SITE)}")
    manifest = read_manifest(path, need_labels=need_labels, need_slides=need_slides, labels=labels)
    manifest = replace(manifest, by_site=by_site)
    report.say(f"{path}: {manifest.understood()}")
    if need_labels and manifest.unknown_patients:
        report.warn(f"{path}: {manifest.patients_warning()}")
    return manifest


def labels_of(values: dict[str, Any]) -> Labels:
    """How labels are taken from a table, as the options of a command say.

    Raises:
        UsageError: a --class-map that is none.
    """
    from lrmil_cli.files.manifest_rows import Labels

    renamed = {}
    for pair in values["class_map"] or []:
        old, equals, new = pair.partition("=")
        if not equals or not new.strip():
            raise UsageError(f"--class-map {pair}: give OLD=NEW, the name in the table and the name of the class")
        renamed[old.strip()] = new.strip()
    return Labels(values["label"], renamed, values["classes"] or (), values["drop_missing"])


def asks_for_labels(values: dict[str, Any]) -> bool:
    """Whether any of these options is given."""
    return any(values[name] for name in ("label", "drop_missing", "classes", "class_map"))
