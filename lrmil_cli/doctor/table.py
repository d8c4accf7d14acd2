"""Checks of a table of slides: is it understood, are its slides there, can it be trained on."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lrmil_cli.doctor.check import FAIL, PASS, WARN, Check, failed
from lrmil_cli.errors import InputError
from lrmil_cli.files.manifest import Manifest, Problem, survey_manifest
from lrmil_cli.files.manifest_about import describe_manifest
from lrmil_cli.files.manifest_checks import count, listed
from lrmil_cli.files.manifest_rows import Entry, Labels
from lrmil_cli.slide_places import fingerprint

#: Of troubles of one kind so many are told one by one.
MOST = 5
MOST_CLASSES = 20


def check_table(
    path: str | Path, labels: Labels, folds: int, *, compare: bool = True
) -> tuple[list[Check], list[Entry]]:
    """All checks of a table of slides, and its entries whose slides are there.

    Args:
        labels: how labels are taken from it; folds: to draw, where the table defines none.
        compare: look for copies of one slide under several names, which reads 300 kB of each.
    """
    try:
        manifest, problems = survey_manifest(path, need_slides=False, labels=labels)
    except InputError as e:
        return [failed("table", e, str(path))], []
    about = describe_manifest(manifest, problems)
    there = [e for e in manifest if os.path.isfile(e.path)] if manifest.has_paths else []
    checks = [_understood(about), *_told("rows", problems), _found(about), *_told("ids", problems)]
    if lost := about["missing_files"]:
        which = listed([f"{path} (row {row}, {column})" for row, column, path in lost])
        fix = "correct the paths, which are relative to the folder of the table, or empty the cells"
        checks.append(Check("masks", FAIL, f"{len(lost)} masks or regions are not there: {which}", fix))
    if copies := _copies(there, compare):
        checks.append(copies)
    checks += [*_told("patients", problems), _patients(about)]
    if not {"label", "time"} & about["column_of"].keys():
        text = "no column of labels: enough for tile and predict; to train, name one with --label"
        return [*checks, Check("labels", PASS, text)], there
    troubles = [*_told("labels", problems), *_told("classes", problems)]
    checks += troubles or [_classes(about)]
    if not problems:
        checks.append(_folds(manifest, folds))
    return checks, there


def _told(about: str, problems: Sequence[Problem]) -> list[Check]:
    """What a command would refuse the table for, of one kind."""
    own = [InputError(p.text) for p in problems if p.about == about]
    checks = [failed(about, e) for e in own[:MOST]]
    if len(own) > MOST:
        checks.append(Check(about, FAIL, f"and {len(own) - MOST} more of this kind", "mend these first"))
    return checks


def _understood(about: dict[str, Any]) -> Check:
    columns = ", ".join(name if role == name else f"{name} as {role}" for role, name in about["column_of"].items())
    ignored = f"; ignored: {', '.join(about['ignored'])}" if about["ignored"] else ""
    return Check("table", PASS, f"{about['form']}; {count(about['slides'], 'slide')}; columns {columns}{ignored}")


def _found(about: dict[str, Any]) -> Check:
    if about["found"] is None:
        return Check("slides", PASS, "ids alone: enough where only features are read (--features)")
    if not (missing := about["missing"]):
        return Check("slides", PASS, f"all {about['found']} there")
    which = ", ".join(f"{path} (row {row})" for path, row in list(zip(missing, about["missing_rows"]))[:MOST])
    more = f" and {len(missing) - MOST} more" if len(missing) > MOST else ""
    return Check(
        "slides",
        FAIL,
        f"{len(missing)} of {about['slides']} are not there: {which}{more}",
        "correct the paths, which are relative to the folder of the table, or take the rows out",
    )


def _copies(entries: Sequence[Entry], compare: bool) -> Check | None:
    """One slide under two ids would be trained and tested on; None where there is no such."""
    own: dict[str, list[str]] = defaultdict(list)
    for e in entries:
        try:
            own[fingerprint(e.path) if compare else os.path.realpath(e.path)].append(e.slide_id)
        except InputError:  # said where the slide itself is looked at
            continue
    twice = [ids for ids in own.values() if len(set(ids)) > 1]
    if not twice:
        return None
    which = "; ".join(listed(ids, " = ") for ids in twice[:MOST]) + ("; ..." if len(twice) > MOST else "")
    fix = "keep one row of each: a copy in training makes figures on the other too good"
    return Check("copies", WARN, f"{count(len(twice), 'slide')} under several ids: {which}", fix)


def _patients(about: dict[str, Any]) -> Check:
    fix = "add a column patient_id: where patients have several slides, figures are too good without"
    if about["patients_from"] == "slides":
        return Check("patients", WARN, "unknown; each slide is taken for a patient of its own", fix)
    if unknown := about["unknown_patients"]:
        return Check("patients", WARN, f"{count(unknown, 'slide')} without one, each taken for one of its own", fix)
    how = "by TCGA ids" if about["patients_from"] == "tcga" else f"by column {about['column_of']['patient_id']}"
    several = about["patients_with_several_slides"]
    return Check("patients", PASS, f"{about['patients']} {how}, {several} with several slides")


def _classes(about: dict[str, Any]) -> Check:
    dropped = f"; {about['dropped']} left out without label" if about["dropped"] else ""
    if about["targets"]:
        return Check("targets", PASS, about["targets"] + dropped)
    of = about["patients_of_class"]
    named = about["patients_from"] != "slides"
    text = listed(
        [f"{c} {count(n, 'slide')}" + (f" of {count(of[c], 'patient')}" * named) for c, n in about["classes"].items()],
        most=MOST_CLASSES,
    )
    return Check("classes", PASS, text + dropped)


def _folds(manifest: Manifest, folds: int) -> Check:
    """Whether folds can be drawn, or trained as they are given."""
    from lrmil_cli.training.folds import fold_names, make_folds

    try:
        names = fold_names(make_folds(manifest, folds, seed=0))
    except InputError as e:
        return failed("folds", e, str(manifest.path))
    given = any(e.split or e.folds for e in manifest)
    return Check("folds", PASS, f"{count(len(names), 'fold')}, " + ("as given" if given else "drawn by patient"))
