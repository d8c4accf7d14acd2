"""What the tests of stage 1 share."""

import pytest

from lrmil_cli.app import run
from lrmil_cli.distill.distill_encoder import collect


@pytest.fixture(scope="package")
def cohort(slide, tmp_path_factory):
    """The pairs of one small slide."""
    at = tmp_path_factory.mktemp("stage1")
    for line in (
        ["tile", slide, "--mpp", "2.0", "--tile-px", "128", "-o", at / "lr.csv"],
        ["tile", slide, "--mpp", "0.5", "--tile-px", "128", "-o", at / "hr.csv"],
        ["match", at / "lr.csv", at / "hr.csv", "-o", at / "blob.pairs.csv"],
    ):
        assert run([*map(str, line), "--quiet"]) == 0
    return collect([str(at / "blob.pairs.csv")], None, None, 5, None, 0)
