"""Shell scripts in ``examples/``: their command lines parse, and what they make of the results."""

import csv
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import typer
from sklearn.metrics import roc_auc_score

from lrmil_cli.app import app
from lrmil_cli.evaluation.predictions import read_predictions

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
pytestmark = pytest.mark.skipif(shutil.which("sh") is None, reason="needs a POSIX shell")
#: Stands for lrmil: notes what it is called with, and puts down results that are there already.
LRMIL = """#!/bin/sh
for word in "$@"; do printf '%s\\n' "$word"; done >> said.txt
echo END >> said.txt
command=$1
while [ $# -gt 0 ]; do
    [ "$1" = -o ] && to=$2
    shift
done
case $command in
    info) echo '{"folds": 2}' ;;
    distill-student)
        mkdir -p "$(dirname "$to")"
        cp there/model.safetensors "$to"
        for kind in predictions.csv receipt.json; do cp there/model.$kind "${to%.safetensors}.$kind"; done ;;
    predict) mkdir -p "$to"; cp there/*.prediction.json "$to" ;;
    evaluate) mkdir -p "$to"; printf 'model,metric,mean,sd\\nlrmil,auc,0.5,0.1\\n' > "$to/metrics.csv" ;;
esac
"""


@pytest.fixture
def say(chain, lrmil, tmp_path, monkeypatch):
    """``say(script, *words)`` runs a script; returns the command lines of lrmil it said."""
    monkeypatch.chdir(tmp_path)
    there = tmp_path / "there"
    slide = chain.manifest.parent / "slides" / "s13.svs"
    assert lrmil("predict", slide, "-m", chain.model, "-o", there, "--runtime", "torch").code == 0
    for name in ("model.safetensors", "model.predictions.csv", "model.receipt.json"):
        shutil.copy(chain.model.parent / name, there)
    programs = {"lrmil": LRMIL, "python3": f'#!/bin/sh\nexec "{sys.executable}" "$@"\n'}
    for name, text in programs.items():
        (tmp_path / "bin" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    env = {**os.environ, "PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}", "SEEDS": "2"}
    env["PYTHONPATH"] = f"{EXAMPLES.parent}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"

    def call(script, *words):
        shell = (EXAMPLES / script).read_text().splitlines()[0].split("/")[-1].split()[-1]  # of "#!/usr/bin/env bash"
        done = subprocess.run([shell, EXAMPLES / script, *words], env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return [call.splitlines() for call in (tmp_path / "said.txt").read_text().split("END\n") if call]

    return call


def parsed(lines):
    """The commands of these command lines, each of which its command takes."""
    group = typer.main.get_command(app)
    for args in lines:
        group.commands[args[0]].make_context(args[0], list(args[1:]), parent=group.make_context("lrmil", list(args)))
    return [args[0] for args in lines]


@pytest.mark.parametrize(
    ("script", "students", "said"),
    [("ablation.sh", 6, "ablation.md"), ("compare_heads.sh", 1, "heads.md"), ("topk_sweep.sh", 5, "topk.md")],
)
def test_tables_of_the_paper_by_one_line(say, script, students, said):
    commands = parsed(say(script, "slides.csv", "uni", "out"))
    assert commands.count("distill-student") == students and commands.count("distill-encoder") == 2  # a fold
    assert Path("out", said).read_text().startswith("|")


def test_the_chain_as_a_script_and_one_slide_to_qupath(say):
    commands = parsed(say("quickstart.sh"))
    chain = ["tile", "tile", "match", "train-teacher", *["distill-encoder"] * 5, "distill-student", "predict"]
    assert commands == chain
    assert sorted(parsed(say("slide_to_qupath.sh", "a.svs", "m.safetensors"))[len(chain) :]) == [
        "export-geojson",
        "predict",
    ]


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("frontier.sh", ["slides.csv", "uni", "small.safetensors", "out"]),
        ("compare_methods.sh", ["slides.csv", "uni", "out"]),
    ],
)
def test_every_line_parses_and_there_is_a_table(say, chain, script, words):
    lines = say(script, *words)
    parsed(lines)
    methods = {args[args.index("--method") + 1] for args in lines if "--method" in args}
    assert methods == {"ahdmil", "hdmil", "zoommil", "eagle"}
    out = Path("out")
    if script == "compare_methods.sh":
        assert "| lrmil" in (out / "methods.md").read_text()
        return
    small = [args for args in lines if args[0] == "distill-encoder" and "--student" in args]
    assert [args[args.index("--fold") + 1] for args in small] == ["1", "2"]
    seeds = [args for args in lines if args[0] == "distill-student" and "--seed" in args]
    assert len(seeds) == 2 * 9 and len({args[-1] for args in lines if args[0] == "predict" and "-q" in args}) == 1
    (of_small,) = (r for r in csv.DictReader((out / "frontier.csv").open()) if r["method"] == "small")
    cases = read_predictions(str(chain.model)).cases()
    assert float(of_small["auc"]) == pytest.approx(roc_auc_score(cases.labels, cases.probabilities[:, 1]))
    assert float(of_small["accuracy"]) == pytest.approx(np.mean(cases.probabilities.argmax(1) == cases.labels))
    assert float(of_small["auc_low"]) <= float(of_small["auc"]) <= float(of_small["auc_high"])
    text = (out / "frontier.md").read_text()
    assert "LRMIL, small student" in text and "AUC +0.0 (+0.0 to +0.0)" in text  # all are the same model here
    assert (out / "frontier.png").read_bytes()[:4] == b"\x89PNG"
