"""Parts of the demo's chain; the whole of it is in ``tests/cli/test_demo.py``."""

import numpy as np
import pandas as pd
import pytest
from shapely.geometry import box

from lrmil_cli.chain.demo import _manifest_text, lesion_share
from lrmil_cli.files.manifest import Entry, read_manifest


def test_held_out_slides_are_a_manifest_whatever_their_folder_is_called(tmp_path):
    slides = [Entry(f"s{n}", tmp_path / 'a, "b"' / f"s{n}.svs", "tumor") for n in range(2)]
    (tmp_path / "held-out.csv").write_text(_manifest_text(slides), encoding="utf-8")
    own = read_manifest(tmp_path / "held-out.csv")
    assert [(e.slide_id, e.path, e.label) for e in own] == [(e.slide_id, e.path, e.label) for e in slides]


def test_the_share_of_a_tile_in_the_lesion_by_hand():
    rows = pd.DataFrame({"x": [0, 100], "y": [0, 0], "width": [100, 100], "height": [100, 100]})
    assert lesion_share(rows, box(50, 0, 120, 50)).tolist() == pytest.approx([0.25, 0.1])
    assert np.all(lesion_share(rows, box(500, 500, 600, 600)) == 0)
