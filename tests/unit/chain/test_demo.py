"""Parts of the demo's chain; the whole of it is in ``tests/cli/test_demo.py``."""

import numpy as np
import pandas as pd
import pytest
from shapely.geometry import box

from lrmil_cli.chain.demo import lesion_share


def test_the_share_of_a_tile_in_the_lesion_by_hand():
    rows = pd.DataFrame({"x": [0, 100], "y": [0, 0], "width": [100, 100], "height": [100, 100]})
    assert lesion_share(rows, box(50, 0, 120, 50)).tolist() == pytest.approx([0.25, 0.1])
    assert np.all(lesion_share(rows, box(500, 500, 600, 600)) == 0)
