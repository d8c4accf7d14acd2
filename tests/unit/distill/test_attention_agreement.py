"""Attention agreement by hand."""

import pytest
import torch

from lrmil_cli.distill.attention_agreement import compare_attention, slide_agreement, teacher_regions
from lrmil_cli.heads import Bag, build_head

ALL = torch.ones(6, dtype=torch.bool)


def test_rank_correlation_and_overlap_by_hand():
    teacher = torch.tensor([6.0, 5.0, 4.0, 3.0, 2.0, 1.0])
    same = compare_attention(teacher * 3 - 7, teacher, ALL, 2)  # any increasing map is the same ranking
    assert same == {
        "regions": 6,
        "rank_correlation": pytest.approx(1),
        "k": 2,
        "overlap": 1.0,
        "chance": pytest.approx(1 / 3),
    }
    opposite = compare_attention(-teacher, teacher, ALL, 2)
    assert opposite["rank_correlation"] == pytest.approx(-1) and opposite["overlap"] == 0
    swapped = torch.tensor([4.0, 5.0, 6.0, 3.0, 2.0, 1.0])  # ranks differ by 2, 0, 2: 1 - 6 * 8 / (6 * 35)
    out = compare_attention(swapped, teacher, ALL, 2)
    assert out["rank_correlation"] == pytest.approx(1 - 48 / 210) and out["overlap"] == 0.5


def test_unmatched_regions_and_too_few_of_them():
    teacher, student = torch.tensor([3.0, 2.0, 1.0, 0.0]), torch.tensor([3.0, 2.0, 1.0, 99.0])
    out = compare_attention(student, teacher, torch.tensor([True, True, True, False]), 4)
    assert out["regions"] == 3 and out["k"] == 1 and out["overlap"] == 1 and out["rank_correlation"] == pytest.approx(1)
    two = compare_attention(student, teacher, torch.tensor([True, True, False, False]), 4)
    assert two["rank_correlation"] is None and two["k"] == 1
    one = compare_attention(student, teacher, torch.tensor([True, False, False, False]), 4)
    assert one["overlap"] is None and one["k"] == 0
    assert compare_attention(torch.zeros(4), teacher, torch.ones(4, dtype=torch.bool), 2)["rank_correlation"] is None


def test_a_head_agrees_with_itself_when_each_region_holds_one_tile():
    torch.manual_seed(0)
    head, bag = build_head("abmil", 5, 2).eval(), Bag(torch.randn(9, 5))
    order = torch.randperm(9)
    region, matched = teacher_regions(head, Bag(bag.features[order]), order, 9, "logmeanexp")
    out = slide_agreement(region, matched, head, bag, 3)
    assert out["rank_correlation"] == pytest.approx(1) and out["overlap"] == 1
