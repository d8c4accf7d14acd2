"""What ``lrmil doctor`` says of a table of slides."""

import re

import pytest

from lrmil_cli.doctor.table import check_table
from lrmil_cli.files.manifest_rows import Labels

LABELS = Labels()


def judge(folder, text, labels=LABELS, folds=3, **kwargs):
    """The worst status of each name, the checks, and the slides that are there."""
    (folder / "slides.csv").write_text(text)
    checks, entries = check_table(folder / "slides.csv", labels, folds, **kwargs)
    said = {}
    for c in checks:
        said[c.name] = max(said.get(c.name, "PASS"), c.status, key=("PASS", "WARN", "FAIL").index)
        assert c.status == "PASS" or c.fix, c
    return said, checks, [e.slide_id for e in entries]


@pytest.fixture
def slides(tmp_path):
    """Nine files of different content; the table's checks open none of them."""
    for n in range(9):
        (tmp_path / f"s{n}.svs").write_bytes(bytes([n]) * 99)
    return tmp_path


def table(patients=lambda n: f"p{n}", labels=lambda n: "xyz"[n % 3], more=""):
    rows = (f"s{n}.svs,{labels(n)},{patients(n)}" for n in range(9))
    return "\n".join(["slide,label,patient_id", *rows, more])


def test_a_good_table(slides):
    said, checks, there = judge(slides, table())
    assert said == dict.fromkeys(("table", "slides", "patients", "classes", "folds"), "PASS") and len(there) == 9
    found = {c.name: c.found for c in checks}
    assert found["classes"] == "x 3 slides of 3 patients, y 3 slides of 3 patients, z 3 slides of 3 patients"
    assert found["folds"] == "3 folds, drawn by patient"


@pytest.mark.parametrize(
    ("text", "folds", "name", "status", "says"),
    [
        (table(more="gone.svs,x,p9"), 3, "slides", "FAIL", "1 of 10 are not there: .*gone.svs .row 11."),
        (table(more="s0.svs,x,p0"), 3, "ids", "FAIL", "'s0' stands in 2 rows"),
        (table(patients=lambda n: ""), 3, "patients", "WARN", "unknown; each slide"),
        (table(patients=lambda n: "" if n == 4 else n), 3, "patients", "WARN", "1 slide without one"),
        (table(labels=lambda n: "xX"[n % 2]), 3, "labels", "FAIL", "may be one class: 'x' in 5 slides, 'X' in 4"),
        (table(labels=lambda n: "NA" if n else "x"), 3, "labels", "FAIL", "8 slides without label, row 3 .NA."),
        (table(labels=lambda n: "x"), 3, "classes", "FAIL", "only one label"),
        (table(), 4, "folds", "FAIL", "class 'x' has 3 patient.s., too few for 4 folds"),
        (table(patients=lambda n: n // 6), 3, "folds", "FAIL", "class 'x' has 2 patient"),
        ("slide,label,mpp\ns0.svs,x,half\ns1.svs,y,0.5\n", 3, "rows", "FAIL", "row 2, mpp 'half'"),
        ("slide,mask,roi\ns0.svs,m.png,r.geojson\n", 3, "masks", "FAIL", "2 masks .*m.png .row 2, mask., .*r.geojson"),
        ("thing\n1\n", 3, "table", "FAIL", "no column `slide`"),
        ("slide_id,label\ns0,x\ns1,y\n", 3, "slides", "PASS", "ids alone"),
        ("slide\ns0.svs\n", 3, "labels", "PASS", "name one with --label"),
    ],
)
def test_what_is_wrong_and_what_to_do(slides, text, folds, name, status, says):
    said, checks, _ = judge(slides, text, folds=folds)
    assert said[name] == status and any(c.name == name and re.search(says, c.found) for c in checks), checks


def test_one_slide_under_two_ids(slides):
    (slides / "s8.svs").write_bytes((slides / "s3.svs").read_bytes())
    said, checks, _ = judge(slides, table())
    assert said["copies"] == "WARN" and any("s3 = s8" in c.found for c in checks)
    assert "copies" not in judge(slides, table(), compare=False)[0]
    (slides / "t.svs").symlink_to(slides / "s3.svs")
    assert judge(slides, table(more="t.svs,x,p11"), compare=False)[0]["copies"] == "WARN"


def test_all_that_is_wrong_is_said_in_one_go(slides):
    text = "slide,label,patient_id,split,mpp\n"
    text += "s0.svs,x,p,train,\ns1.svs,X,p,test,\ns2.svs,NA,q,train,\ns3.svs,y,q,val,\n"
    text += "s4.svs,y,r,later,\ngone.svs,y,r,val,1\n"
    said, checks, there = judge(slides, text)
    assert {n for n, s in said.items() if s == "FAIL"} == {"rows", "slides", "patients", "labels", "classes"}
    assert sum(c.status == "FAIL" and c.name == "patients" for c in checks) == 2 and there == ["s0", "s1", "s2", "s3"]
    mended = Labels(renamed={"X": "x"}, drop_missing=True)
    assert "labels" not in judge(slides, text, mended)[0]


def test_many_of_a_kind_are_counted(slides):
    rows = "\n".join(f"s0.svs,x,p{n},{n}.x" for n in range(12))
    _, checks, _ = judge(slides, f"slide,label,patient_id,mpp\n{rows}\n")
    assert [c.found for c in checks if c.name == "rows"][-1] == "and 7 more of this kind"
