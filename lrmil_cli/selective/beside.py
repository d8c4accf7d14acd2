"""What stands beside a model file of this room: out-of-fold predictions, metrics, curves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from lrmil_cli.files.header import make_header
from lrmil_cli.files.manifest import Manifest
from lrmil_cli.files.tables import write_table
from lrmil_cli.training import out_of_fold
from lrmil_cli.training.crossval import FoldResult
from lrmil_cli.training.teacher import write_curves


def write_beside(
    model: Path,
    history: list[dict[str, Any]],
    manifest: Manifest,
    predictions: pd.DataFrame,
    metrics: pd.DataFrame,
    results: Sequence[FoldResult],
    panels: list[tuple[str, list[str]]] | None = None,
) -> None:
    """Write ``.predictions.csv``, ``.metrics.csv``, ``.curves.csv`` and ``.curves.png`` beside a model file.

    Args:
        history: of the model; panels: as of :func:`lrmil_cli.training.curves.plot_curves`.

    Raises:
        MachineError: a file cannot be written.
    """
    common: dict[str, Any] = {"settings": {}, "history": history}
    about = out_of_fold.table_header(manifest, results)
    for kind, rows, more in (("predictions", predictions, about), ("metrics", metrics, {})):
        write_table(model.with_suffix(f".{kind}.csv"), make_header(kind, **common, **more), rows)
    write_curves(model.with_suffix(".curves.csv"), make_header("curves", **common), results, panels, manifest.task)
