"""``--dry-run``: what would be made, is there, or would fail; nothing is written."""

import numpy as np
import pytest

from tests.conftest import blob_image, write_tiff


def files_in(folder):
    return {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("command", ["tile", "predict"])
def test_a_dry_run_says_what_the_run_then_does(command, chain, tmp_path, lrmil, glass):
    slides = [chain.manifest.parent / "slides" / f"s{i:02d}.svs" for i in (12, 13)]
    silent = write_tiff(tmp_path / "silent.tiff", blob_image(), mpp=None)
    out = tmp_path / "out"
    line = {
        "tile": ["tile", "--mpp", "2.0", "--tile-px", "128", "-o", f"{out}/"],
        "predict": ["predict", "-m", chain.model, "-o", f"{out}/"],
    }[command]
    assert lrmil(*line, slides[0]).code == 0  # one is there already
    before = files_in(tmp_path)
    said = lrmil(*line, *slides, glass, silent, "--dry-run", "--json")
    assert said.code == 4 and files_in(tmp_path) == before
    assert [r["status"] for r in said.records] == ["skipped", "planned", "no_tissue", "failed"]
    plan = said.records[1]
    assert (
        plan["mpp_source"] == "metadata" and plan["expected_seconds"] >= 0 and "--slide-mpp" in said.records[3]["error"]
    )
    assert "nothing was written: 1 would be made" in said.err and "1 up to date, 2 would fail" in said.err
    text = lrmil(*line, slides[1], "--dry-run")
    assert text.code == 0 and "0.5 um/px (metadata)" in text.err and "s13" in text.err and files_in(tmp_path) == before
    done = lrmil(*line, *slides, glass, silent, "--json")
    assert done.code == 4 and [r["status"] for r in done.records] == ["skipped", "ok", "no_tissue", "failed"]
    made = done.records[1]
    assert plan["tiles"] == (made["tiles"] if command == "tile" else made["prediction"]["tiles"])
    assert (out / "failures.csv").exists()


def test_a_dry_run_sees_outputs_of_other_settings(chain, tmp_path, lrmil):
    slide = chain.manifest.parent / "slides" / "s12.svs"
    assert lrmil("tile", slide, "-o", tmp_path / "t.csv").code == 0
    said = lrmil("tile", slide, "--mpp", "1.0", "-o", tmp_path / "t.csv", "--dry-run")
    assert said.code == 2 and "--overwrite" in said.err
    assert (
        lrmil("tile", slide, "--mpp", "1.0", "-o", tmp_path / "t.csv", "--dry-run", "--overwrite", "--json").records[0][
            "status"
        ]
        == "planned"
    )


def test_the_seconds_of_a_plan_scale_with_the_tiles(chain, monkeypatch):
    """Against a clock that encoding turns: 2 s a tile after a slow first batch."""
    import torch

    from lrmil_cli.encoders.pipeline import BatchSize
    from lrmil_cli.inference import low_resolution as m
    from lrmil_cli.models.model_file import load_model
    from lrmil_cli.slides.slide import open_slide

    loaded, now, calls, cpu = load_model(chain.model), [0.0], [], torch.device("cpu")

    def encode(encoders, tiles, count, **kwargs):
        calls.append(count)
        now[0] += count * (100 if len(calls) == 1 else 2)
        return [np.zeros((count, e.embed_dim), np.float32) for e in encoders]

    monkeypatch.setattr(m.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(m, "embed_tiles", encode)
    with open_slide(chain.manifest.parent / "slides" / "s13.svs") as slide:
        tiles, seconds = m.LowResolutionPredictor("m", loaded, cpu, BatchSize(2, cpu)).plan(slide, None)
    assert calls == [2, 2] and tiles > 4 and seconds == pytest.approx(2 * tiles)
