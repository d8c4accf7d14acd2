"""``lrmil doctor``: what it says of machines, slides and models that are well, and of those that are not."""

import numpy as np
import pytest

from lrmil_cli.doctor import machine
from lrmil_cli.doctor.check import FAIL, PASS, WARN, Check, failed, worst
from lrmil_cli.doctor.slide import check_slide
from lrmil_cli.errors import InputError, MachineError
from lrmil_cli.slides.tiles import TileSettings
from tests.conftest import blob_image, write_tiff


def by_name(checks):
    return {c["name"] if isinstance(c, dict) else c.name: c for c in checks}


def test_the_machine(lrmil, monkeypatch):
    monkeypatch.setattr(machine, "PROBE_SECONDS", 0.2)
    said = lrmil("doctor", "--json")
    assert said.code == 0, said.err
    (about,) = said.records
    checks = by_name(about["checks"])
    assert about["kind"] == "machine" and {
        "packages",
        "device",
        "memory",
        "disk",
        "openslide",
        "parquet",
        "speed",
    } <= set(checks)
    assert "tiles/s" in checks["speed"]["found"] and all(c["fix"] for c in about["checks"] if c["status"] != "PASS")
    text = lrmil("doctor", "--quick")
    assert text.code == 0 and "speed" not in text.out and max(map(len, text.out.splitlines())) <= 80


def test_a_machine_that_lacks_something(lrmil, monkeypatch):
    monkeypatch.setattr(machine, "PACKAGES", ("numpy", "no_such_package"))
    monkeypatch.setattr(machine, "available_memory", lambda: 500_000_000)
    said = lrmil("doctor", "no.svs")
    assert said.code == 5 and "2 of" in said.err and "no_such_package" in said.out and "-> " in said.out
    monkeypatch.undo()
    monkeypatch.setattr(machine, "available_memory", lambda: 2_000_000_000)
    assert machine.check_memory().status == WARN
    said = lrmil("doctor", "--quick", "--device", "cuda:99")
    assert said.code == 5 and "FAIL  device" in said.out


def test_the_rate_is_tiles_a_second(monkeypatch):
    """Against a clock that the encoder itself turns: 0.25 s a tile."""
    now = [0.0]
    monkeypatch.setattr(machine.time, "perf_counter", lambda: now[0])
    encoder = lambda tiles: now.__setitem__(0, now[0] + 0.25 * len(tiles))
    import torch

    assert machine.encoder_speed(encoder, torch.device("cpu"), seconds=10) == pytest.approx(4)
    assert now[0] <= 12
    now[0] = 0.0
    assert machine.encoder_speed(encoder, torch.device("cpu"), seconds=0.3) == pytest.approx(4) and now[0] == 0.25


def test_a_slide_and_a_model_that_fit(lrmil, chain, tmp_path, monkeypatch):
    slide = chain.manifest.parent / "slides" / "s13.svs"
    said = lrmil("doctor", slide, "-m", chain.model, "--quick", "--json")
    assert said.code == 0, said.err
    _, model, about = said.records
    checks = by_name(about["checks"])
    assert [model["kind"], about["kind"]] == ["model", "slide"]
    assert (
        "checksum is right" in by_name(model["checks"])["complete"]["found"]
        and "Apache" in by_name(model["checks"])["licence"]["found"]
    )
    assert "0.5 um/px (metadata)" in checks["mpp"]["found"] and checks["damage"]["status"] == "PASS"
    assert checks["fit"]["status"] == "WARN" and "s13" in checks["fit"]["found"]  # it was in the model's cohort
    made = lrmil("tile", slide, "--mpp", "2.0", "--tile-px", "128", "-o", tmp_path / "t.csv", "--json").records[0]
    assert checks["tiles"]["found"].startswith(f"{made['tiles']} of 128 px at 2 um/px")
    assert lrmil("doctor", chain.encoder, "--quick").code == 0


def test_what_does_not_fit_or_is_damaged_fails(lrmil, chain, tmp_path, glass):
    bad = tmp_path / "m.safetensors"
    data = bytearray(chain.model.read_bytes())
    data[-100] ^= 1
    bad.write_bytes(data)
    coarse = write_tiff(tmp_path / "coarse.svs", blob_image(), mpp=4.0)
    said = lrmil("doctor", bad, coarse, glass, "-m", chain.model, "--quick", "--json")
    assert said.code == 3
    _, good, broken, coarse_about, glass_about = said.records
    assert good["status"] == "pass" and broken["status"] == "fail" and "changed after" in broken["checks"][0]["found"]
    fit = by_name(coarse_about["checks"])["fit"]
    assert fit["status"] == "FAIL" and "--allow-upsample" in fit["fix"]
    assert by_name(glass_about["checks"])["tissue"]["status"] == "FAIL"
    said = lrmil("doctor", chain.manifest.parent / "slides" / "s00.svs", "-m", chain.encoder, "--quick")
    assert said.code == 3 and "predicts nothing" in said.out


def test_scale_and_damage_of_a_slide(tmp_path):
    import tifffile

    silent = by_name(check_slide(write_tiff(tmp_path / "silent.tiff", blob_image(), mpp=None), TileSettings()))
    assert silent["opens"].status == PASS and silent["mpp"].status == FAIL and "--slide-mpp" in silent["mpp"].fix
    about = "Aperio Image Library (test)\n1600x1200|AppMag = 40|MPP = 0.5"
    wrong = by_name(check_slide(write_tiff(tmp_path / "wrong.svs", blob_image(), description=about), TileSettings()))
    assert wrong["mpp"].status == WARN and "40x" in wrong["mpp"].found
    path = write_tiff(tmp_path / "bad.svs", blob_image())
    with tifffile.TiffFile(path) as tif:
        page = tif.pages[0]
        blocks = list(zip(page.dataoffsets, page.databytecounts))[1:-1]
    with open(path, "r+b") as fh:  # all of level 0 but its corners, which are looked at when opening
        for offset, count in blocks:
            fh.seek(offset)
            fh.write(b"\xff" * count)
    bad = by_name(check_slide(path, TileSettings()))
    assert bad["opens"].status == PASS and bad["damage"].status == FAIL and "level 0" in bad["damage"].found
    assert by_name(check_slide(tmp_path / "no.svs", TileSettings()))["opens"].found == "no such file"


def test_places_lie_inside_and_on_tissue(slide):
    from lrmil_cli.doctor.slide import _places
    from lrmil_cli.slides.slide import open_slide
    from lrmil_cli.slides.tiles import find_tissue

    with open_slide(slide) as s:
        tissue = find_tissue(s, TileSettings().tissue)
        at = np.array(_places(s, 0, tissue, 30))
        assert (at >= 0).all() and (at <= [s.width - 256, s.height - 256]).all() and 15 < len(at) <= 30
        centre = ((at + 128) / (tissue.scale_x, tissue.scale_y)).astype(int)
        assert tissue.mask[centre[:, 1], centre[:, 0]].mean() > 0.5


def test_messages_become_what_was_found_and_what_to_do():
    assert failed("x", InputError("a.svs: the file is empty; copy it again"), "a.svs") == Check(
        "x", FAIL, "the file is empty", "copy it again", 3
    )
    assert failed("x", MachineError("needs OpenSlide: pip install it")) == Check(
        "x", FAIL, "needs OpenSlide: pip install it", "", 5
    )
    assert worst([Check("a", PASS, ""), Check("b", WARN, "")]) == WARN and worst([]) == PASS
    assert [machine.duration(s) for s in (0.2, 40, 600, 9000)] == ["1 s or less", "40 s", "10 min", "2.5 h"]
