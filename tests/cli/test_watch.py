"""``lrmil predict --watch`` as a service runs it: slides that come, SIGTERM, the same command again."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading

import pandas as pd

from tests.conftest import not_on_windows


@not_on_windows
def test_an_inbox(chain, cohort, tmp_path):
    inbox, out = tmp_path / "inbox", tmp_path / "out"
    inbox.mkdir()
    (inbox / "torn.svs").write_bytes(b"no slide")
    one, two = sorted((cohort.parent / "slides").glob("*.svs"))[:2]
    shutil.copy(one, inbox)
    line = [sys.executable, "-m", "lrmil_cli", "predict", inbox, "--watch", "--interval", "0.3", "-m", chain.model]
    line += ["-o", out, "--report", "--json"]

    def start():
        process = subprocess.Popen([str(a) for a in line], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        threading.Timer(120, process.kill).start()
        return process

    def answers(process, count):
        records = [json.loads(process.stdout.readline()) for _ in range(count)]
        return {r["slide_id"]: r["status"] for r in records}

    first = start()
    assert answers(first, 2) == {one.stem: "ok", "torn": "failed"}
    whole = two.read_bytes()
    with open(inbox / two.name, "wb") as fh:  # as it comes over a slow line: its head opens already
        fh.write(whole[: len(whole) // 2])
        fh.flush()
        os.fsync(fh.fileno())
        fh.write(whole[len(whole) // 2 :])
    assert answers(first, 1) == {two.stem: "ok"}
    first.send_signal(signal.SIGTERM)
    rest, said = first.communicate(timeout=120)
    assert first.returncode == 130 and rest == "" and "Traceback" not in said
    assert "the same command goes on from there\nnext: lrmil predict" in said
    assert not list(out.rglob("*.tmp*")) and not list(out.rglob(".*"))
    assert sorted(pd.read_csv(out / "predictions.csv", comment="#")["slide_id"]) == [one.stem, two.stem]
    page = (out / "index.html").read_text(encoding="utf-8")
    assert all(f"{s.stem}.html" in page for s in (one, two))
    assert (out / "failures.csv").read_text().count("torn.svs") >= 1

    before = {p: p.stat().st_mtime_ns for p in out.glob("*.attention.csv")}
    again = start()
    assert answers(again, 3) == {one.stem: "skipped", two.stem: "skipped", "torn": "failed"}
    again.send_signal(signal.SIGTERM)
    assert again.communicate(timeout=120)[0] == "" and again.returncode == 130
    assert before == {p: p.stat().st_mtime_ns for p in out.glob("*.attention.csv")}
