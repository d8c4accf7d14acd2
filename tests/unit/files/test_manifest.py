"""Tables of slides as people write them: what is understood, what is said of it, what is refused."""

import csv
import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lrmil_cli.errors import InputError, MachineError
from lrmil_cli.files.manifest import Manifest, read_manifest, survey_manifest
from lrmil_cli.files.manifest_about import describe_manifest
from lrmil_cli.files.manifest_columns import MISSING
from lrmil_cli.files.manifest_rows import Labels
from lrmil_cli.slide_names import slide_id_of
from lrmil_cli.targets.task import make_task

TCGA = "TCGA-A1-{}-01Z-00-DX1.1A2B-3C"


def manifest(folder, text, name="slides.csv", **kwargs) -> Manifest:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_manifest(path, **kwargs)


def test_defaults(tmp_path):
    m = manifest(tmp_path, '\ufeffslide,label,mpp\nsub/a.svs,x,"0,25"\nb.svs,y,\n\n')
    assert [e.slide_id for e in m] == ["a", "b"] and m.entries[0].path == tmp_path / "sub/a.svs"
    assert m.entries[0].mpp == 0.25 and m.entries[0].patient_id == "a" and m.classes == ("x", "y")
    assert m.patients_from == "slides" and "patients unknown" in m.understood()


def test_settings_of_single_slides(tmp_path):
    m = manifest(tmp_path, 'slide,Mask,roi,min tissue\na.svs,m/a.png,,\nb.svs,NA,r/b.geojson.gz,0\nc.svs,,,"0,5"\n')
    a, b, c = m.entries
    assert (a.mask, a.roi, a.min_tissue) == (tmp_path / "m/a.png", None, None)
    assert (b.mask, b.roi, b.min_tissue) == (None, tmp_path / "r/b.geojson.gz", 0.0)
    assert (c.mask, c.roi, c.min_tissue) == (None, None, 0.5)
    assert "mask of 1 slide, roi of 1 slide, min_tissue of 2 slides" in m.understood() and not m.ignored


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("slide,label\na.svs,x\na.svs,y\n", "slide_id 'a' stands in 2 rows"),
        ("slide,label,patient_id,split\na.svs,x,p,train\nb.svs,y,p,test\n", "patient 'p' is in two parts"),
        ("slide,label\na.svs,x\nb.svs,x\nc.svs,y\n", "'y' stands in one slide only"),
        ("slide,label\na.svs,x\nb.svs,x\n", "only one label"),
        ("slide,label\na.svs,x\nb.svs,\n", r"1 slide without label, row 3 \(empty\)"),
        (b"slide,label\na.svs,x\nb.svs,\xfcber\n", "line 3 is not UTF-8"),
        ("thing,label\na.svs,x\n", r"no column `slide`.*\(found: thing, label\)"),
        ("slide,diagnosis\na.svs,x\nb.svs,y\n", r"no column `label` \(found: slide, diagnosis\); name .* --label"),
        ("slide,label\n", "no slides"),
        ("", "the table is empty"),
        ("slide,label,split\na.svs,x,later\n", "'later' is none of"),
        ("slide,label,mpp\na.svs,x,half\n", "'half' is not a number"),
        ("slide,label,mpp\na.svs,x,nan1\n", "'nan1' is not a number"),
        ("slide,label,min_tissue\na.svs,x,0.1\nb.svs,y,10\n", "row 3, min_tissue '10' is not a number from 0 to 1"),
        ("slide,label,min_tissue\na.svs,x,little\n", "row 2, min_tissue 'little' is not a number from 0 to 1"),
        ("slide,label,mask\na.svs,x,yes\n", "row 2, mask 'yes' is no file that ends in .png"),
        ("slide,label,roi\na.svs,x,a.png\n", "row 2, roi 'a.png' is no file that ends in .geojson"),
        ("slide,label,slide_id\na.svs,x,../../etc\n", "cannot be part of a file name"),
        ("# lrmil {}\nx,y\n", "not a manifest"),
        ("slide,label,Label\na.svs,x,y\n", "2 columns are called 'label'"),
        ("slide,label\na.svs,Adenocarcinoma, NOS\n", r"row 2 has more cells .*left over: 'NOS'"),
        ('slide,label\n"a.svs,x\nb.svs,y\n', "not a table of text"),
        ("slide,label,case_id,patient\na.svs,x,p1,q1\nb.svs,y,p2,q1\n", "could both be `patient_id`, and they differ"),
    ],
)
def test_what_is_refused_and_why(tmp_path, text, says):
    with pytest.raises(InputError, match=says):
        manifest(tmp_path, text, need_labels=True)


@pytest.mark.parametrize(
    "word", ["NA", "N/A", "nan", "None", "null", "#N/A", "-", ".", "unknown", "[Not Available]", " "]
)
def test_a_missing_label_is_no_class(tmp_path, word):
    text = f"slide,label\na.svs,x\nb.svs,y\nc.svs,{word}\nd.svs,x\ne.svs,y\n"
    with pytest.raises(InputError, match="1 slide without label, row 4 .*--drop-missing"):
        manifest(tmp_path, text, need_labels=True)
    m = manifest(tmp_path, text, need_labels=True, labels=Labels(drop_missing=True))
    assert [e.slide_id for e in m] == ["a", "b", "d", "e"] and "1 left out without label" in m.understood()
    assert [e.label for e in manifest(tmp_path, text)] == [
        "x",
        "y",
        None,
        "x",
        "y",
    ]  # a prediction wants the slide all the same


def test_a_class_that_is_really_called_so(tmp_path):
    text = "slide,label\na.svs,None\nb.svs,y\nc.svs,none\nd.svs,y\n"
    m = manifest(tmp_path, text, need_labels=True, labels=Labels(kept=["None"], renamed={"none": "None"}))
    assert m.classes == ("None", "y")


@pytest.mark.parametrize(
    ("first", "second"), [("MSI", "msi"), ("0", "0.0"), ("1", "1,0"), ("grade 1", "grade_1"), ("1", "01")]
)
def test_one_class_written_twice(tmp_path, first, second):
    text = f'slide,label\na.svs,"{first}"\nb.svs,"{second}"\nc.svs,other\nd.svs,other\n'
    with pytest.raises(InputError, match=r"may be one class: .* in 1 slide, .* in 1 slide; .*--class-map"):
        manifest(tmp_path, text, need_labels=True)
    m = manifest(tmp_path, text, need_labels=True, labels=Labels(renamed={second: first}))
    assert m.classes == tuple(sorted((first, "other")))


@pytest.mark.parametrize("column", ["case_id", "PATIENT", "Patient_ID", "patient", "P_ID", "Patient ID", "patient-id"])
def test_columns_for_patients(tmp_path, column):
    m = manifest(
        tmp_path, f"Slide,LABEL,{column},age\na.svs,x,p,1\nb.svs,y,p,2\nc.svs,x,NA,3\nd.svs,y,N/A,4\n", need_labels=True
    )
    assert [e.patient_id for e in m] == ["p", "p", "c", "d"]  # missing is missing: no patient is called NA
    assert m.unknown_patients == 2 and m.ignored == ("age",)
    assert "3 patients, 2 slides of unknown patients" in m.understood() and "ignored: age" in m.understood()


@pytest.mark.parametrize(
    ("column", "words"),
    [("Split", "train,test"), ("SPLIT", "Training,Test"), ("set", "train,testing"), ("dataset", "valid,dev")],
)
def test_columns_for_splits(tmp_path, column, words):
    a, b = words.split(",")
    m = manifest(tmp_path, f"slide,label,{column}\na.svs,x,{a}\nb.svs,y,{b}\n")
    assert all(e.split in ("train", "val", "test") for e in m) and column.lower() not in m.ignored


def test_a_dataset_may_be_something_else(tmp_path):
    m = manifest(tmp_path, "slide,label,dataset\na.svs,x,TCGA\nb.svs,y,CPTAC\n")
    assert [e.split for e in m] == [None, None] and m.ignored == ("dataset",)


def test_fold_columns_are_numbered(tmp_path):
    m = manifest(tmp_path, "slide,label,fold_change_0,Fold_1,fold_2\na.svs,x,3.4,train,test\nb.svs,y,1.2,test,train\n")
    assert [e.folds for e in m] == [{"fold_1": "train", "fold_2": "test"}, {"fold_1": "test", "fold_2": "train"}]
    assert m.ignored == ("fold_change_0",) and "2 folds as given" in m.understood()
    assert "3 folds as given" in manifest(tmp_path, "slide,label,FOLD\na.svs,x,1\nb.svs,y,2\nc.svs,y,3\n").understood()


def test_patients_of_tcga(tmp_path):
    rows = "".join(f"{TCGA.format(p)}.svs,{l}\n" for p, l in (("AAAA", "x"), ("AAAA", "y"), ("BBBB", "x")))
    m = manifest(
        tmp_path,
        "slide,slide_id,label\n"
        + "".join(
            f"{n}/{r.split(',')[0]},{r.split('.')[0]}-{n},{r.split(',')[1]}"
            for n, r in enumerate(rows.splitlines(True))
        ),
    )
    assert [e.patient_id for e in m] == ["TCGA-A1-AAAA", "TCGA-A1-AAAA", "TCGA-A1-BBBB"]
    assert m.patients_from == "tcga" and "2 patients by their TCGA ids" in m.understood()


@pytest.mark.parametrize("text", [
    "slide;label;mpp\na.svs;x;0,25\nb.svs;y, or z;0,5\n",
    "slide\tlabel\tmpp\na.svs\tx\t0.25\nb.svs\ty, or z\t0,5\n",
    "sep=;\r\nslide;label;mpp\r\na.svs;x;0,25\r\nb.svs;y, or z;0,5\r\n",
    'slide, label, mpp\na.svs, x, "0,25"\nb.svs, "y, or z", "0,5"\n',
])  # fmt: skip
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le"])
def test_separators_and_encodings(tmp_path, text, encoding):
    m = manifest(tmp_path, text.encode(encoding))
    assert [(e.slide_id, e.label, e.mpp) for e in m] == [("a", "x", 0.25), ("b", "y, or z", 0.5)]
    said = m.understood()
    assert ("UTF-16" in said) == encoding.startswith("utf-16")
    assert ("semicolon" in said) == (";" in text) and ("tab" in said) == ("\t" in text)


def test_a_workbook(tmp_path, monkeypatch):
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    for row in (["slide", "label", "Patient", "mpp"], ["a.svs", 1, "p", 0.25], ["b.svs", 0, "q", None], [None] * 4):
        book.active.append(row)
    book.create_sheet("notes")
    book.save(tmp_path / "slides.xlsx")
    m = read_manifest(tmp_path / "slides.xlsx")
    assert [(e.slide_id, e.label, e.patient_id, e.mpp) for e in m] == [("a", "1", "p", 0.25), ("b", "0", "q", None)]
    assert "Excel workbook, sheet 'Sheet', 1 further sheet(s) not read" in m.understood()
    monkeypatch.setitem(__import__("sys").modules, "openpyxl", None)
    with pytest.raises(MachineError, match=r"lrmil-cli\[excel\]"):
        read_manifest(tmp_path / "slides.xlsx")


def test_ids_alone_where_no_pixel_is_read(tmp_path):
    text = "case_id,slide_id,label\np,s.1,x\nq,s.2.svs,y\n"
    with pytest.raises(InputError, match="no column `slide` with the paths.*ids alone do where only features are read"):
        manifest(tmp_path, text)
    m = manifest(tmp_path, text, need_slides=False)
    assert [(e.slide_id, e.patient_id) for e in m] == [("s.1", "p"), ("s.2", "q")] and not m.has_paths


DX = TCGA.format("AAAA")


@pytest.mark.parametrize(
    ("name", "slide_id"),
    [
        (f"{DX}.svs", DX),
        (DX, DX),
        ("case.ome.tif", "case"),
        ("x/case.OME.TIFF", "case"),
        ("S22-1.A.3.ndpi", "S22-1.A.3"),
        ("C:\\slides\\a.b.svs", "a.b"),
        (".svs", ".svs"),
        ("a.tif.svs", "a.tif"),
        ("plain", "plain"),
    ],
)
def test_ids_keep_their_dots(name, slide_id):
    assert slide_id_of(name) == slide_id


LABELS = (
    st.text("abcXYZ019 -_./äß", min_size=1, max_size=6).map(str.strip).filter(lambda s: s.casefold() not in MISSING)
)


@given(
    labels=st.lists(LABELS, min_size=1, max_size=8),
    separator=st.sampled_from(",;\t"),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
    extra=st.sampled_from([[], ["age"], ["note", "ward"]]),
)
def test_what_was_written_is_read_or_refused_by_its_spelling(tmp_path_factory, labels, separator, encoding, extra):
    """Whatever writer made it: a table comes back label for label."""
    sink = io.StringIO()
    writer = csv.writer(sink, delimiter=separator)
    writer.writerow(["slide", "label", *extra])
    writer.writerows([f"s{n}.svs", label, *["1"] * len(extra)] for n, label in enumerate(labels))
    try:
        m = manifest(tmp_path_factory.mktemp("m"), sink.getvalue().encode(encoding))
    except InputError as e:
        assert "formula" in str(e)
        return
    assert [e.label for e in m] == labels and m.ignored == tuple(extra)


ROW = st.tuples(
    st.sampled_from(["a.svs", "b.svs", "c.svs", "d.svs", ""]),
    st.sampled_from(["x", "X", "y", "NA", ""]),
    st.sampled_from(["p", "q", ""]),
    st.sampled_from(["train", "test", "val", "later", ""]),
)


@given(st.lists(ROW, max_size=6), st.booleans(), st.booleans())
def test_a_manifest_is_refused_for_the_first_of_what_a_survey_finds(tmp_path_factory, rows, need_labels, drop):
    path = tmp_path_factory.mktemp("survey") / "slides.csv"
    path.write_text("\n".join(["slide,label,patient_id,split", *map(",".join, rows)]))
    asked = {"need_labels": need_labels, "labels": Labels(drop_missing=drop)}
    try:
        survey, problems = survey_manifest(path, **asked)
    except InputError as e:  # nothing that could be surveyed
        with pytest.raises(InputError) as refused:
            read_manifest(path, **asked)
        assert str(refused.value) == str(e)
        return
    about = describe_manifest(survey, problems)
    assert json.loads(json.dumps(about)) == about
    assert about["slides"] == sum(about["classes"].values()) + about["without_label"]
    told = [p for p in problems if need_labels or not p.training]
    if not told:
        assert read_manifest(path, **asked) == survey
        return
    with pytest.raises(InputError) as refused:
        read_manifest(path, **asked)
    assert str(refused.value) == f"{path}: {told[0].text}"


def test_sites_are_those_of_the_column_else_of_tcga(tmp_path):
    m = manifest(tmp_path, "slide,label,Centre\na.svs,x,Basel\nTCGA-AB-1234-01.svs,y,\nc.svs,x,Bern\n")
    assert [e.site for e in m] == ["Basel", None, "Bern"] and m.sites_from == "column"
    assert "2 sites, 1 slide of unknown sites" in m.understood()
    m = manifest(tmp_path, "slide,label\nTCGA-AB-1234-01.svs,x\nTCGA-CD-1234-01.svs,y\nc.svs,x\n")
    assert [e.site for e in m] == ["AB", "CD", None] and "2 sites by their TCGA ids" in m.understood()
    assert manifest(tmp_path, "slide,label\na.svs,x\n").sites_from is None


def of_task(tmp_path, lines, *named, **columns):
    (tmp_path / "m.csv").write_text("\n".join(lines))
    asked = Labels(columns.get("label"), task=make_task(*named, **columns), asked=True)
    return read_manifest(tmp_path / "m.csv", need_labels=True, labels=asked)


def test_numbers_and_times_are_read_and_said(tmp_path):
    number = of_task(tmp_path, ["slide,ki67", 'a.svs,"1,5"', "b.svs,20"], "regression", label="ki67")
    assert (
        [e.value for e in number] == [1.5, 20.0] and number.classes == () and [e.label for e in number] == ["1.5", "20"]
    )
    assert "ki67 from 1.5 to 20" in number.understood()
    lines = ["slide,patient,Months,died", "a.svs,p,12.5,1", "b.svs,p,12.5,1.0", "c.svs,q,3,0"]
    followed = of_task(tmp_path, lines, "survival", time="months", event="died")
    assert [(e.time, e.event, e.label) for e in followed] == [(12.5, 1, "12.5"), (12.5, 1, "12.5"), (3.0, 0, "3+")]
    assert followed.events == 2 and "2 events, times from 3 to 12.5" in followed.understood()


@pytest.mark.parametrize(
    "labels, refused",
    [
        (range(20), False),
        (range(21), True),
        ([n / 4 for n in range(10)], False),
        ([n / 4 for n in range(11)], True),
        ([*range(30), "x"], False),
    ],
)
def test_labels_that_look_like_a_number_to_learn_want_a_task(tmp_path, labels, refused):
    rows = [f"s{n}.svs,{label}" for n, label in enumerate([*labels, *labels])]
    (tmp_path / "m.csv").write_text("\n".join(["slide,label", *rows]))
    for asked in (False, True):
        problems = survey_manifest(tmp_path / "m.csv", need_labels=True, labels=Labels(asked=asked))[1]
        assert any("say --task regression" in p.text for p in problems) == (refused and not asked)
