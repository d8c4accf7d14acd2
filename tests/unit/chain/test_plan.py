"""The plan of a run: its command lines, what they cost, and the file that keeps its settings."""

import sys
from dataclasses import replace

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st

from lrmil_cli.app import app
from lrmil_cli.chain.plan import COMMANDS, CONNECTIONS, OF_THE_RUN, OWN, ROUTES, Settings, chain_steps
from lrmil_cli.chain.run import as_table
from lrmil_cli.chain.run_encoders import student_share
from lrmil_cli.chain.run_file import dumps, keep_settings, read_run_file
from lrmil_cli.chain.work import Tiles, passes
from lrmil_cli.commands.declared import options_of
from lrmil_cli.commands.run_options import check_settings
from lrmil_cli.encoders.build import create_vit
from lrmil_cli.encoders.encoder_file import save_encoder
from lrmil_cli.encoders.vit import Encoder, EncoderInfo
from lrmil_cli.errors import InputError, UsageError
from lrmil_cli.files.header import step as history_step
from lrmil_cli.files.manifest import read_manifest
from lrmil_cli.files.manifest_rows import Labels
from lrmil_cli.targets.task import make_task

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
VALUE = st.one_of(
    TEXT, st.integers(-(2**53), 2**53), st.floats(allow_nan=False, allow_infinity=False), st.booleans(), st.lists(TEXT)
)


@pytest.fixture(scope="module")
def parsers():
    return typer.main.get_command(app).commands


def parsed(parsers, step):
    name, *args = step.args
    return parsers[name].make_context(name, args).params


def test_every_route_leads_to_an_option_and_every_connection_is_one(parsers):
    of = {name: options_of(command.callback) for name, command in parsers.items()}
    assert {"slides", "encoder", *ROUTES, *OWN} - {"slides"} <= of["run"].keys()
    for name, to in ROUTES.items():
        for step, there in to.items():
            assert there in of[COMMANDS[step]], (name, step)
            assert of[COMMANDS[step]][there].kind is of["run"][name].kind or name in ("mpp", "hr-mpp"), name
            # What is said of a default by the run is what the step has.
            assert of["run"][name].default in (None, of[COMMANDS[step]][there].default) or name in ("mpp", "hr-mpp")
    for step, names in CONNECTIONS.items():
        assert names <= of[COMMANDS[step]].keys()
    assert OF_THE_RUN <= set().union(*of.values())
    assert of["run"]["mpp"].default == 2.0 and of["run"]["hr-mpp"].default == 0.5


def test_the_lines_of_a_run_parse_and_are_connected(parsers, tmp_path):
    options = {"hr-mpp": 0.25, "mpp": 1.0, "label": "type", "class-map": ["a=b", "c=d"], "drop-missing": True}
    of_steps = {"tile": {"keep-pen": True}, "tile-lr": {"thumbnail": True}, "distill-encoder": {"layers": "-1"}}
    steps = chain_steps(Settings("s.csv", "demo-vit", options, of_steps), tmp_path, 3)
    assert [s.name for s in steps] == [*list(COMMANDS)[:4], *["distill-encoder"] * 3, *list(COMMANDS)[5:]]
    lr, hr, match, teacher, *stage1, student, predict, maps, pages = (parsed(parsers, s) for s in steps)
    assert (lr["mpp"], hr["mpp"], lr["thumbnail"], hr["thumbnail"], hr["keep_pen"]) == (1.0, 0.25, True, False, True)
    assert (match["lr"], match["hr"]) == (lr["output"], hr["output"]) and teacher["tiles"] == hr["output"]
    assert [s["fold"] for s in stage1] == [1, 2, 3] and all(s["teacher"] == teacher["output"] for s in stage1)
    assert {s["layers"] for s in stage1} == {"-1"} and len({s["cache"] for s in stage1}) == 1
    assert [student["encoder"].replace("{fold}", str(k)) for k in (1, 2, 3)] == [s["output"] for s in stage1]
    assert (student["teacher"], student["pairs"]) == (teacher["output"], match["output"])
    assert predict["model"] == [student["output"]] and maps["attention"] == predict["output"]
    assert pages["results"] == pages["output"] == predict["output"]
    for one in (teacher, *stage1, student):
        assert (one["label"], one["class_map"], one["drop_missing"]) == ("type", ["a=b", "c=d"], True)
    assert not any(s["overwrite"] for s in (lr, teacher, student))


def test_one_encoder_and_slides_left_out(parsers, tmp_path):
    shared = {"label": "type", "class": ["None"], "student": "vit_tiny_patch16_224"}
    one = chain_steps(Settings("s.csv", "e", {**shared, "one-encoder": True}), tmp_path, 5, overwrite=True)
    assert len(one) == 9 and all("--overwrite" in s.args for s in one)
    encoder, student = (parsed(parsers, s) for s in one[4:6])
    assert (
        encoder["slides"] is None
        and encoder["label"] is None
        and encoder["student"] == "vit_tiny_patch16_224"
        and student["encoder"] == encoder["output"]
    )
    skip = chain_steps(Settings("s.csv", "e", {**shared, "on-bad-slide": "skip"}), tmp_path, 1)
    assert [s.some_may_fail for s in skip] == [True] * 3 + [False] * 3 + [True] * 3
    teacher = parsed(parsers, skip[3])
    assert teacher["manifest"] == str(tmp_path / "slides.csv") and parsed(parsers, skip[6])["slides"] == ["s.csv"]
    assert teacher["label"] is None and teacher["classes"] == ["None"]  # that table has the labels under their name


def test_a_task_goes_to_all_that_read_the_table_and_its_loss_to_the_teacher(parsers, tmp_path):
    of = {"task": "survival", "time": "months", "event": "dead", "loss": "cox", "risk-set": 16, "intervals": 3}
    teacher, encoder, student = (
        parsed(parsers, s)
        for s in chain_steps(Settings("s.csv", "e", {**of, "on-bad-slide": "skip"}), tmp_path, 1)[3:6]
    )
    for one in (teacher, encoder, student):
        assert (one["task"], one["time"], one["event"]) == ("survival", "months", "dead")
    assert (teacher["loss"], teacher["risk_set"], teacher["intervals"]) == ("cox", 16, 3) and student["loss"] is None
    number = {"task": "regression", "label": "ki67", "on-bad-slide": "skip"}
    assert parsed(parsers, chain_steps(Settings("s.csv", "e", number), tmp_path, 1)[3])["label"] == "ki67"


def test_what_a_student_costs_is_measured_and_what_does_not_fit_refused_first(tmp_path):
    assert student_share(Settings("s.csv", "no such encoder", {})) == 1.0  # a copy; nothing is loaded
    args = {"embed_dim": 16, "depth": 1, "num_heads": 2}
    info = EncoderInfo("tiny", "vit_tiny_patch16_224", 64, (0.5,) * 3, (0.5,) * 3, arch_args=args)
    tiny = str(tmp_path / "tiny.safetensors")
    save_encoder(tiny, Encoder(create_vit(info.architecture, 64, args), info), [history_step("x", {}, {})], {})
    of_steps = {"tile": {"tile-px": 64}}
    assert student_share(Settings("s.csv", "demo-vit", {"student": tiny}, of_steps)) < 0.8  # one narrow block of six
    with pytest.raises(UsageError, match="--student demo-vit: 128 wide, and the HR encoder tiny 16"):
        check_settings(Settings("s.csv", tiny, {"student": "demo-vit"}, of_steps))


def test_passes_by_hand(tmp_path):
    """10 slides, 100 LR and 1000 HR tiles, two folds, 5 epochs."""
    tiles, options = Tiles(10, 100, 1000), {"stage1-epochs": 5}
    own = {"distill-encoder": {"max-tiles-per-slide": 8}}
    one_step = {"distill-encoder": {"steps-per-epoch": 1}}
    for of_steps, epoch, hr in (({}, 100, 1000), (own, 80, 800), (one_step, 64, 1000)):
        settings = Settings("s.csv", "e", options, of_steps)
        work = passes(settings, tiles, chain_steps(settings, tmp_path, 2))
        assert work == [0, 0, 0, 1000, 5 * 3 * epoch + hr, 5 * 3 * epoch, 300, 200, 0, 0]
        # A student of a tenth of the price: the HR side costs what it did.
        cheap = passes(settings, tiles, chain_steps(settings, tmp_path, 2), 0.1)
        assert cheap == pytest.approx([0, 0, 0, 1000, 1.5 * epoch + hr, 1.5 * epoch, 30, 20, 0, 0])


@given(TEXT, TEXT, st.dictionaries(TEXT, VALUE, max_size=4), st.dictionaries(TEXT, st.dictionaries(TEXT, VALUE)))
def test_settings_come_back_from_toml(slides, encoder, options, steps):
    tomllib = pytest.importorskip("tomllib" if sys.version_info >= (3, 11) else "tomli")
    own = {k: v for k, v in options.items() if k not in ("slides", "encoder", *steps)}
    steps = {k: v for k, v in steps.items() if k not in ("slides", "encoder")}
    text = dumps(Settings(slides, encoder, own, steps))
    assert tomllib.loads(text) == {"slides": slides, "encoder": encoder, **own, **steps}
    text.encode("utf-8")


def test_a_folder_of_other_settings_is_left_alone(tmp_path):
    settings = Settings("s.csv", "e", {"epochs": 3, "device": "cpu"}, {"distill-encoder": {"batch-size": 8}})
    keep_settings(tmp_path, settings, False)
    first = read_run_file(tmp_path / "run.toml")
    assert first["distill-encoder"] == {"batch-size": 8} and first["epochs"] == 3
    keep_settings(tmp_path, Settings("s.csv", "e", {"epochs": 3, "workers": 2}, settings.of_steps), False)
    other = Settings("s.csv", "f", {"epochs": 3, "seed": 1}, {"distill-encoder": {"batch-size": 9}})
    with pytest.raises(UsageError, match=r"\(encoder, seed, distill-encoder.batch-size\).*--overwrite"):
        keep_settings(tmp_path, other, False)
    assert read_run_file(tmp_path / "run.toml")["encoder"] == "e"
    keep_settings(tmp_path, other, True)
    assert read_run_file(tmp_path / "run.toml")["encoder"] == "f"
    (tmp_path / "run.toml").write_text("epochs = \n")
    with pytest.raises(InputError, match="not a file of settings"):
        keep_settings(tmp_path, other, False)


def test_the_table_of_slides_that_are_left_says_what_the_whole_said(tmp_path):
    """Labels renamed, ids, patients, folds, scale, tissue, whatever the folder is called."""
    folder = tmp_path / 'a, "b"'
    (folder / "m").mkdir(parents=True)
    lines = ["slide,kind,patient_id,fold,mpp,mask,min_tissue", "a.svs,x,p1,1,0.5,,", "b.svs,y,p2,2,,m/b.png,"]
    (folder / "s.csv").write_text("\n".join([*lines, "c.svs,x,p2,2,0.25,,0.3"]) + "\n")
    whole = read_manifest(folder / "s.csv", labels=Labels("kind", {"x": "z"}, (), False), need_slides=False)
    (tmp_path / "left.csv").write_text(as_table(list(whole)[1:], whole.task, patients=True), encoding="utf-8")
    left = read_manifest(tmp_path / "left.csv", need_slides=False)
    assert [replace(e, row=0) for e in left] == [replace(e, row=0) for e in list(whole)[1:]]
    assert left.classes == ("y", "z") and left.entries[0].mask == folder / "m" / "b.png"
    for task in (make_task("regression", label="ki67"), make_task("survival", time="months", event="dead")):
        (folder / "s.csv").write_text("slide,ki67,months,dead\na.svs,0.5,12,1\nb.svs,7,30.5,0\n")
        whole = read_manifest(folder / "s.csv", labels=Labels(task.label, task=task, asked=True), need_slides=False)
        (tmp_path / "left.csv").write_text(as_table(list(whole), task, patients=True), encoding="utf-8")
        left = read_manifest(tmp_path / "left.csv", labels=Labels(task.label, task=task, asked=True), need_slides=False)
        assert [replace(e, row=0) for e in left] == [replace(e, row=0) for e in whole]
