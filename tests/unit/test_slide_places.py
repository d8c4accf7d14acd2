"""A slide is found where its table says, beside the table, or where the user says; and only if it is that slide."""

import os
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lrmil_cli.errors import InputError
from lrmil_cli.slide_places import as_read, as_written, find_slide, fingerprint, moved, refreshed

NAME = st.text("abc .-", min_size=1, max_size=4).filter(lambda s: s.strip(" .") == s and s)
FOLDERS = st.lists(NAME, max_size=3)


@given(FOLDERS, FOLDERS, FOLDERS, FOLDERS)
def test_a_project_that_moves_as_a_whole_keeps_its_slides(before, after, slides, tables):
    """Wherever both lie in the project, and wherever the project goes."""
    here, there = (Path(os.path.abspath(os.sep)).joinpath(*root) for root in (before, after))
    place = Path(*slides, "a.svs")
    about = {"id": "a", "path": str(here / place)}
    header = {"slide": about, "lr": {"slide": about}, "hr": {"settings": {}, "slide": about}}
    written = as_written(header, here.joinpath(*tables))
    assert not os.path.isabs(written["slide"]["beside"]) and "\\" not in written["slide"]["beside"]
    read = as_read(written, there.joinpath(*tables))
    for of in (read, read["lr"], read["hr"]):
        assert of["slide"] == {**about, "beside": str(there / place)}
    assert as_read(as_written(header, None), there) == header  # a stream lies nowhere


@pytest.fixture
def places(tmp_path):
    """The same slide at three places, and what a table says of it."""
    names = ["was", "beside", "given"]
    for name in names:
        (tmp_path / name).write_bytes(b"slide" * 9999)
    was, beside, given_at = (tmp_path / n for n in names)
    return {"id": "a", "path": str(was), "beside": str(beside), "fingerprint": fingerprint(was)}, was, beside, given_at


def test_the_order_of_places_and_what_is_said_when_none_has_it(places):
    about, was, beside, at = places
    for place, lost in ((was, Path.unlink), (beside, Path.unlink), (at, lambda p: p.write_bytes(b"another"))):
        assert find_slide(about, "t.csv", at) == place
        lost(place)
    with pytest.raises(InputError, match=r"given: the slide has changed since t\.csv was made.*--slides"):
        find_slide(about, "t.csv", at)
    at.unlink()
    with pytest.raises(InputError) as e:
        find_slide(about, "t.csv", at)
    assert str(e.value).startswith(f"t.csv: its slide a is not at {was}, nor at {beside}, nor at {at}; say where it is")


def test_another_slide_at_the_old_place_is_passed_over(places):
    about, was, beside, _ = places
    was.write_bytes(b"another")
    assert find_slide(about, "t.csv") == beside


def test_what_is_written_next_knows_the_new_place(places, tmp_path):
    about, was, beside, at = places
    assert refreshed({"slide": about}) == {"slide": about}
    was.unlink()
    assert refreshed({"slide": about})["slide"] == moved(about, beside) == {**about_without(about), "path": str(beside)}
    shutil.copy(at, tmp_path / "copy")
    beside.write_bytes(b"another")
    new = refreshed({"slide": about, "lr": {"slide": about}}, tmp_path / "copy")
    assert new["slide"]["path"] == new["lr"]["slide"]["path"] == str(tmp_path / "copy")
    assert as_written(new, tmp_path / "t")["slide"]["beside"] == "../copy"
    assert refreshed({"slide": about}) == {"slide": about}  # nowhere: it stays as it was


def about_without(about):
    return {k: v for k, v in about.items() if k != "beside"}
