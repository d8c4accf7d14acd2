"""Operations, counted."""

import torch

from lrmil_cli.benchmark.speed import operations


def test_operations_are_counted_as_by_hand():
    """A linear layer of 64 x 32 on 10 rows is 2 * 10 * 64 * 32; attention is two products of 50 x 16 by 16 x 50 a
    head."""
    q = torch.zeros(1, 2, 50, 16)
    with torch.inference_mode():
        assert operations(lambda: torch.nn.Linear(64, 32)(torch.zeros(10, 64))) == 2 * 10 * 64 * 32
        assert operations(lambda: torch.nn.functional.scaled_dot_product_attention(q, q, q)) == 2 * 2 * (
            2 * 50 * 50 * 16
        )
