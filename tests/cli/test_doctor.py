"""``lrmil doctor``: what it says of machines, slides and models that are well, and of those that are not."""

from lrmil_cli.doctor import machine
from lrmil_cli.doctor.check import WARN
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
