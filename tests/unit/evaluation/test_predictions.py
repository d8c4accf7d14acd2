"""Predictions read from files of the chain; the rest is in ``tests/cli/test_evaluate.py``."""

import pytest

from lrmil_cli.evaluation.predictions import _file_name


@pytest.mark.parametrize("path", ["m.safetensors", "/models/m.safetensors", "C:\\models\\m.safetensors"])
def test_a_path_written_on_windows_has_a_file_name_elsewhere(path):
    assert _file_name(path) == "m.safetensors"
