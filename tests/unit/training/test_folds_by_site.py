"""Folds that keep sites apart."""

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lrmil_cli.errors import InputError, UsageError
from lrmil_cli.files.manifest import Manifest
from lrmil_cli.files.manifest_rows import Entry
from lrmil_cli.training.cohort_record import data_of
from lrmil_cli.training.folds import fold_names, make_folds, members


def cohort(sites, by_site="preserve", per=6, **changes):
    entries = tuple(
        Entry(f"s{k}{n}", Path("x"), "ab"[n % 2], f"p{k}{n // 2}", site=site)
        for k, site in enumerate(sites)
        for n in range(per)
    )
    return replace(Manifest(Path("m.csv"), entries, ("a", "b"), sites_from="column", by_site=by_site), **changes)


@settings(max_examples=15, deadline=None)
@given(sites=st.integers(5, 9), folds=st.integers(2, 5), seed=st.integers(0, 99), alone=st.booleans())
def test_no_site_is_on_both_sides(sites, folds, seed, alone):
    m = cohort([f"h{i}" for i in range(sites)], "leave-one-out" if alone else "preserve")
    table = make_folds(m, folds, seed)
    site = {e.slide_id: e.site for e in m}
    tested = []
    for name in fold_names(table):
        parts = [{site[s] for s in own} for own in members(table, name).values()]
        assert all(parts) and not parts[0] & parts[1] and not parts[0] & parts[2] and not parts[1] & parts[2]
        tested.append(parts[2])
    assert len(tested) == (sites if alone else folds) and set().union(*tested) == set(site.values())
    assert sum(map(len, tested)) == sites
    assert data_of(m, table, [{}] * len(m))["sites_apart"] is True


def test_what_cannot_be_kept_apart_is_refused():
    apart = data_of(plain := cohort("ABCDE", None), make_folds(plain, 3, 0), [{}] * 30)["sites_apart"]
    assert apart is False
    with pytest.raises(InputError, match="all slides are of 1 site"):
        make_folds(cohort("AAA"), 3, 0)
    with pytest.raises(InputError, match="6 slide.s. have no site"):
        make_folds(cohort(["A", "B", "C", None]), 3, 0)
    with pytest.raises(UsageError, match="with --by-site preserve 2 to 4"):
        make_folds(cohort("ABCD"), 5, 0)
    m = cohort("ABCD")
    torn = replace(m, entries=tuple(replace(e, patient_id="one") for e in m))
    with pytest.raises(InputError, match="patients of one site each"):
        make_folds(torn, 3, 0)
    with pytest.raises(UsageError, match="says its own splits"):
        make_folds(replace(m, entries=tuple(replace(e, split="train") for e in m)), 3, 0)
