"""What every student takes over from its teacher: classes, folds, features; checked before anything is trained.

What it must not take over, so that no label leaks: training/README 5.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd

from lrmil_cli.errors import InputError, UsageError
from lrmil_cli.files.manifest import Manifest
from lrmil_cli.targets.task import PATIENT, SLIDE
from lrmil_cli.training.folds import check_fold, fold_names, make_folds, strata
from lrmil_cli.training.high_resolution import HighResolution
from lrmil_cli.training.leaks import check_patients
from lrmil_cli.training.teacher import Teacher


def check_classes(guide: Teacher, manifest: Manifest) -> None:
    """Teacher and student learn the same: the same classes, or the same columns by the same loss, of the same bags.

    Raises:
        InputError: they do not.
    """
    if guide.task != manifest.task:
        raise InputError(
            f"{guide.path}: the teacher learned {guide.task.name} {guide.task.loss}, here it is to be "
            f"{manifest.task.name} {manifest.task.loss}; leave out --task and its columns to take the teacher's"
        )
    if (guide.bag == PATIENT) != (manifest.of is not None):
        mine = SLIDE if manifest.of is None else PATIENT
        raise InputError(
            f"{guide.path}: a bag of the teacher is a {guide.bag}, of the student a {mine}; leave out --bag to take "
            "the teacher's"
        )
    if guide.classes != manifest.classes:
        raise InputError(
            f"{guide.path}: the teacher knows the classes {', '.join(guide.classes)}, "
            f"the manifest has {', '.join(manifest.classes)}; give the table it was trained on, or --class-map OLD=NEW"
        )


def features_folder(features: str | None, guide: Teacher | None) -> Path:
    """The folder of HR features: that of ``--features``, else the teacher's.

    Raises:
        InputError: neither is given.
    """
    if features is not None:
        return Path(features)
    if guide is None:
        raise InputError(
            "give --features with the HR features of this encoder (`lrmil embed`), or --teacher, whose features and "
            "folds are taken"
        )
    return guide.features


def folds_like(manifest: Manifest, guide: Teacher | None, folds: int, seed: int) -> pd.DataFrame:
    """The teacher's folds, so that both are judged alike; drawn anew without a teacher.

    Raises:
        UsageError: folds by site are asked for, which only their teacher can make.
        InputError: the manifest has a slide that the teacher's folds do not, or lacks all training or validation slides
            of one; or they tear a patient of the manifest.
    """
    if guide is None:
        return make_folds(manifest, folds, seed)
    if manifest.by_site is not None:
        raise UsageError(f"--by-site {manifest.by_site}: the folds are those of {guide.path}; give it to train-teacher")
    known = guide.folds.set_index("slide_id")
    absent = [e.slide_id for e in manifest if e.slide_id not in known.index]
    if absent:
        raise InputError(
            f"{guide.path}: slide {absent[0]} is not in the teacher's folds.csv ({len(absent)} slide(s)); "
            "train teacher and student on one manifest"
        )
    table = known.loc[[e.slide_id for e in manifest]].reset_index()
    changed = [e.slide_id for e, label in zip(manifest, table["label"]) if e.label != label]
    if changed:
        raise InputError(
            f"{guide.path}: slide {changed[0]} had another label when the teacher was trained; train it again"
        )
    labels = strata(manifest)
    for k, name in enumerate(fold_names(table), 1):
        check_fold(
            table[name].to_numpy(),
            labels,
            k,
            manifest,
            f"the folds are those of {guide.path}; train it on this manifest too",
        )
    check_patients(table, manifest, str(guide.path))
    return table


def check_features(
    guide: Teacher, folder: Path, ids: list[str], high: HighResolution, warn: Callable[[str], None]
) -> None:
    """The teacher's heads understand the features that they were trained on and no others.

    Raises:
        InputError: the features in ``folder`` have another width.
    """
    width = guide.header["in_dim"]
    for slide_id, slide in zip(ids, high.slides):
        if slide is not None and slide.file.shape[1] != width:
            raise InputError(
                f"{folder}: the features of {slide_id} are {slide.file.shape[1]} wide, "
                f"the teacher was trained on {width}; --features names the folder that train-teacher used"
            )
    known = guide.header.get("feature_digests", {})
    other = [
        i for i in ids if f"hr/{i}" in high.inputs and known.get(i, high.inputs[f"hr/{i}"]) != high.inputs[f"hr/{i}"]
    ]
    if other:
        warn(
            f"{folder}: the features of {len(other)} slide(s) ({other[0]}, ...) are not those that the teacher was "
            "trained on"
        )
