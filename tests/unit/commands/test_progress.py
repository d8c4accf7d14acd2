"""How far a command is, in one line: its words, when they come, what is left, and what a terminal gets of them."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st

from lrmil_cli import progress
from lrmil_cli.app import app
from lrmil_cli.commands import next_step, progress_line
from lrmil_cli.commands.progress_line import ProgressLine, ended_text, progress_text
from lrmil_cli.commands.screen import wrap
from lrmil_cli.progress import Phase, seconds_left
from tests.conftest import not_on_windows

PARSERS = typer.main.get_command(app).commands


def test_the_line_says_phase_slide_rate_and_time_left():
    command, step = Phase("predict", whole=True, started=0), Phase("", 12, "step", even=False, done=4, started=0)
    slides = Phase("predicting", 14, "slide", done=2, item="case-7", started=0)
    tiles = Phase("", 400, "tiles", done=120, started=0)
    assert progress_text([command], 4, None) == "predict, 4 s"
    one = progress_text([command, slides, tiles], 60, 412.4)
    assert (
        one == "predicting slide 3 of 14 (case-7), 120 of 400 tiles, 412 tiles/s, about 5 min left"
    )  # 60 * 11.7 / 2.3
    assert progress_text([command, step, command, slides], 60, 412.0).startswith(
        "step 5 of 12, predicting slide 3 of 14"
    )
    assert "case" not in progress_text([command, slides], 60, None, 30)
    assert progress_text([command, slides], 60, None, 58) == "predicting slide 3 of 14 (case-7), about 6 min left"
    deep = [command, step, slides, tiles]
    assert progress_text(deep, 60, 412.4, 79).startswith("step 5 of 12, predicting slide 3 of 14, 120 of 400 tiles, ab")
    assert progress_text(deep, 60, 412.4, 45) == "120 of 400 tiles, about 5 min left"
    epochs = Phase("stage 1", 50, "epoch", at_most=True, done=10, started=0)
    assert progress_text([command, epochs], 100, None) == "stage 1 epoch 11 of 50, at most 7 min left"
    assert progress_text([command, Phase("receipt", started=50)], 60, None) == "receipt, 10 s"
    assert ended_text(slides, 120) == "predicting: 2 slides in 2 min"


@given(st.integers(1, 50), st.integers(0, 50), st.floats(1, 1000), st.data())
def test_time_left_is_what_the_rest_takes_at_the_pace_so_far(work, idle, each, data):
    """``idle`` slides were there already; ``work`` take ``each`` seconds, of which some are done."""
    done = data.draw(st.integers(1, work))
    p = Phase("", work + idle, "slide", done=done + idle, idle=idle, started=0.0)
    left = seconds_left([Phase("run", 9, "step", even=False, started=0.0), p], done * each)
    assert left == pytest.approx((work - done) * each, abs=1e-6)
    half = Phase("", 10, "tiles", done=5, started=0.0)
    if done < work:
        assert seconds_left([p, half], (done + 0.5) * each) == pytest.approx((work - done - 0.5) * each, abs=1e-6)


@given(st.text("ab /\\ -.\n", max_size=120), st.integers(12, 40))
def test_lines_break_between_words_and_after_slashes(text, width):
    lines = wrap(text, width).split("\n")
    assert all(len(line) <= width for line in lines)
    assert re.sub(r"\s", "", "".join(lines)) == re.sub(r"\s", "", text)
    room = width // 2 - 2  # beside the margin
    parts = [p for p in re.findall(r"[^\s/\\]+[/\\]*", text) if len(p) <= room]
    assert all(any(p in line for line in lines) for p in parts)


@pytest.fixture
def heard(monkeypatch, capsys):
    """A command that runs without a terminal: its voice, and what it has said, each with whether it is to be seen."""
    said = []
    monkeypatch.setattr(progress_line.threading.Thread, "start", lambda self: None)
    monkeypatch.setattr(progress_line.threading.Thread, "join", lambda self: None)
    line = ProgressLine(lambda text, show=True: said.append(text), quiet=False, verbose=False)
    with progress.listening(line), progress.phase("predict", whole=True):
        yield line, said


def test_without_a_terminal_a_line_comes_after_five_seconds_and_every_thirty(heard, capsys):
    line, said = heard
    with progress.phase("predicting", 3, "slide") as slides:
        began = slides.started
        for second in range(0, 100):
            if second == 50:
                slides.advance()
            line.beat(began + second)
        assert said[0] == "predicting slide 1 of 3" and len(said) == 4  # at 5, 35, 65 and 95
        assert said[2].startswith("predicting slide 2 of 3, about ")
        slides.started -= 100
    assert said[-1] == "predicting: 1 slide in 2 min"
    shown = capsys.readouterr().err.splitlines()
    assert [text[10:] for text in shown] == said and re.fullmatch(r"\d\d:\d\d:\d\d  .*", shown[0])


def test_short_phases_say_nothing_and_what_an_error_leaves_open_is_closed(heard):
    line, said = heard
    with progress.phase("tiling", 2, "slide") as slides:
        for _ in range(2):
            progress.phase("", 4, "tiles").__enter__()  # as a generator whose frame an error keeps
            slides.advance()
    assert [p.name for p in progress.open_phases()] == ["predict"] and said == []


# ---- what comes next ------------------------------------------------------------------------------
def test_every_next_line_parses(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("tiles-lr", "tiles-hr", "pairs", "features", "results", "teacher"):
        (tmp_path / name).mkdir()
    (tmp_path / "teacher" / "teacher.json").touch()
    lines = [
        next_step.after_tile(["slides"], "tiles-lr", 2.0),
        next_step.after_tile(["a.svs"], "a.tiles.csv", 0.5, 128),
        next_step.after_match("pairs"),
        next_step.after_embed("features"),
        next_step.after_encoder("lr.safetensors", "uni", None),
        next_step.after_encoder(str(tmp_path / "none" / "lr.safetensors"), "uni", "own.csv"),
        next_step.after_teacher("s.csv", "teacher", "abmil", None),
        next_step.after_teacher("s.csv", "teacher", "dmin", "conch"),
        next_step.after_student("s.csv", "model.safetensors"),
        next_step.after_predict(["s.csv"], "results", pages=False, maps=False),
        next_step.after_predict(["s.csv"], "results", pages=True, maps=False),
        next_step.after_predict(["s.csv"], "results", pages=True, maps=True),
        next_step.after_report("results"),
        next_step.after_model("m.safetensors"),
    ]
    for line in lines:
        PARSERS[line[0]].make_context(line[0], line[1:])
    assert [line[0] for line in lines[4:8]] == [
        "distill-student",
        "train-teacher",
        "distill-encoder",
        "distill-student",
    ]
    assert next_step.after_tile(["a.svs"], "a.tiles.csv", 0.5, 128)[2:6] == ["--mpp", "2.0", "--tile-px", "128"]
    assert "--tile-px" not in next_step.after_tile(["a.svs"], "a.tiles.csv", 0.5)
    assert next_step.after_tile(["-"], "tiles-lr", 2.0) is None and next_step.after_match("-") is None


def test_the_other_side_and_the_encoders_of_folds_are_found(lrmil, slide, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    low = lrmil("tile", slide, "--mpp", "2", "-o", "five/")
    assert low.err.splitlines()[-1] == f"next: lrmil tile {slide} --mpp 0.5 -o tiles-hr"
    assert lrmil("tile", slide, "--mpp", "0.5", "-o", "twenty/").err.endswith(
        "next: lrmil match five twenty -o pairs\n"
    )
    assert "next: lrmil distill-encoder pairs" in lrmil("match", "five", "twenty", "-o", "pairs").err
    for k in (1, 2):
        (tmp_path / f"lr-encoder.fold{k}.safetensors").touch()
    line = next_step.after_teacher("s.csv", "teacher", "abmil", "uni")
    assert shlex.join(line[2:]).startswith(
        "--tiles five --pairs pairs --teacher teacher --encoder 'lr-encoder.fold{fold}."
    )


# ---- as it is seen --------------------------------------------------------------------------------
def on_a_terminal(args, *, out=subprocess.PIPE, until=None):
    """What a command writes to a terminal of 80 columns that its stderr is; its stdout; its exit code."""
    import pty  # not on Windows

    ours, theirs = pty.openpty()
    env = {**os.environ, "TERM": "xterm", "COLUMNS": "", "LINES": ""}
    process = subprocess.Popen(
        [sys.executable, "-m", *args],
        stderr=theirs,
        stdout=out,
        text=True,
        env=env,
        # A test run in the background of a shell inherits "ignore SIGINT", and so would the command.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    os.close(theirs)
    seen = b""
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:  # how a terminal on Linux says that nobody writes any more
            part = b""
        if not part:
            break
        seen += part
        if until and until in seen:
            process.send_signal(signal.SIGINT)
            until = None
    os.close(ours)
    said = process.communicate()[0]
    return seen.decode(), said, process.returncode


#: ``lrmil`` with slides that take as many seconds as one likes.
SLOW = """
import sys, time
from lrmil_cli import app
from lrmil_cli.commands import progress_line
from lrmil_cli.slides import tiles
progress_line.BEAT = 0.02
real, seconds = tiles.tile_slide, float(sys.argv.pop(1))
def slowly(*args):
    time.sleep(seconds)
    return real(*args)
tiles.tile_slide = slowly
app.main()
"""


@pytest.fixture(scope="module")
def slow(tmp_path_factory):
    folder = tmp_path_factory.mktemp("slow")
    (folder / "slow_lrmil.py").write_text(SLOW)
    return folder


@not_on_windows
def test_on_a_terminal_one_line_moves_and_stdout_stays_json(slow, slide, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(slow), *sys.path]))
    for name in ("a", "b"):
        (tmp_path / f"{name}.svs").symlink_to(slide)
    log = tmp_path / "kept.log"
    line = ["slow_lrmil", "0.3", "tile", tmp_path, "--mpp", "2", "-o", tmp_path / "t", "--json", "--log", log]
    seen, said, code = on_a_terminal(list(map(str, line)))
    assert code == 0, seen
    assert [json.loads(row)["slide_id"] for row in said.splitlines()] == ["a", "b"]
    assert "\x1b[?25l" in seen and "tiling slide 2 of 2 (b)" in seen
    assert seen.count("\x1b[1A\x1b[2K") == seen.count("\x1b[?25l"), seen  # of the moving line nothing stays
    assert "2 slides in " in seen and "next: lrmil tile" in seen
    kept = log.read_text().splitlines()
    assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d  ", row) for row in kept)
    assert "lrmil tile" in kept[0] and any("a: " in row for row in kept) and not any("\x1b" in row for row in kept)


@not_on_windows
def test_ctrl_c_takes_the_line_away_and_says_how_to_go_on(slow, slide, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(slow), *sys.path]))
    line = [str(a) for a in ("tile", slide, "--mpp", "2", "-o", tmp_path / "t.tiles.csv")]
    seen, _, code = on_a_terminal(["slow_lrmil", "60", *line], until=b"tiling")
    assert code == 130 and "Traceback" not in seen and seen.rstrip().endswith("t.tiles.csv")
    last = seen[seen.index("error: ") :].replace("\r\n", "\n").replace("\\\n", "")
    assert "interrupted; what was finished is kept, and the same command goes on from there" in " ".join(last.split())
    assert shlex.split(last[last.index("next: ") + 6 :]) == ["lrmil", *line]
    assert seen.count("\x1b[?25h") == seen.count("\x1b[?25l")  # the cursor is back
    assert not (tmp_path / "t.tiles.csv").exists()
