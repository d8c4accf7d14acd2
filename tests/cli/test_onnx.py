"""ONNX graphs: the same predictions as torch, without importing it, and never those of another model."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch

import lrmil_cli
from lrmil_cli.encoders.spec import load_encoder
from lrmil_cli.files.graphs import read_graph, write_graph
from lrmil_cli.files.tables import read_table

pytestmark = pytest.mark.usefixtures("all_unpainted")

pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def exported(chain, tmp_path_factory):
    """A model file with its graphs, int8 too."""
    from lrmil_cli.app import run

    folder = tmp_path_factory.mktemp("onnx")
    model = folder / "model.safetensors"
    shutil.copy(chain.model, model)
    slides = chain.manifest.parent / "slides"
    assert (
        run(
            [
                "export-onnx",
                str(model),
                "--int8",
                "--check",
                str(slides / "s12.svs"),
                "--check",
                str(slides / "s13.svs"),
                "-q",
            ]
        )
        == 0
    )
    return model


@pytest.fixture
def slide(chain):
    return chain.manifest.parent / "slides" / "s13.svs"


def predicted(folder, slide):
    return json.loads((folder / f"{slide.stem}.prediction.json").read_text()), read_table(
        folder / f"{slide.stem}.attention.csv", "attention"
    )[1]


def test_both_runtimes_say_the_same(exported, slide, tmp_path, lrmil):
    for runtime in ("torch", "onnx", "auto"):
        said = lrmil("predict", slide, "-m", exported, "--runtime", runtime, "-o", tmp_path / runtime)
        assert said.code == 0, said.err
    (a, rows_a), (b, rows_b), (c, _) = (predicted(tmp_path / r, slide) for r in ("torch", "onnx", "auto"))
    assert (a["runtime"], b["runtime"], c["runtime"]) == ("torch", "onnx", "onnx")
    assert [b["probabilities"][k] for k in a["probabilities"]] == pytest.approx(
        list(a["probabilities"].values()), abs=1e-4
    )
    assert (rows_a[["x", "y"]].to_numpy() == rows_b[["x", "y"]].to_numpy()).all()
    assert rows_b["attention"].to_numpy() == pytest.approx(rows_a["attention"].to_numpy(), abs=1e-4)
    # what one has made is up to date for the other
    said = lrmil("predict", slide, "-m", exported, "--runtime", "torch", "-o", tmp_path / "onnx", "--json")
    assert said.records[0]["status"] == "skipped"


@pytest.mark.parametrize("name", ["model.onnx", "model.safetensors"])
def test_with_graphs_alone_or_beside_the_model_neither_torch_nor_timm_is_imported(exported, slide, tmp_path, name):
    for own in ("model.onnx", "model.heads.onnx", name):
        if not (tmp_path / own).exists():
            shutil.copy(exported.parent / own, tmp_path)
    code = (
        "import sys; from lrmil_cli.app import run\n"
        f"code = run(['predict', {str(slide)!r}, '-m', {str(tmp_path / name)!r}, '--device', 'cpu', '-o', "
        f"{str(tmp_path / 'p')!r}])\n"
        "print(code, [m for m in ('torch', 'timm', 'torchvision', 'sklearn', 'matplotlib', 'pandas') if m in "
        "sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "0 []", done.stderr
    assert predicted(tmp_path / "p", slide)[0]["runtime"] == "onnx"


def test_int8_is_asked_for_and_counts_as_another_result(exported, slide, tmp_path, lrmil):
    assert lrmil("predict", slide, "-m", exported, "--runtime", "onnx-int8", "-o", tmp_path / "p").code == 0
    record = predicted(tmp_path / "p", slide)[0]
    assert record["runtime"] == "onnx-int8"
    assert lrmil("predict", slide, "-m", exported, "-o", tmp_path / "p").code == 2
    header = read_graph(exported.with_name("model.int8.onnx"))[0]["int8"]
    assert record["int8"] == header
    said = lrmil("predict", slide, "-m", exported, "--runtime", "onnx-int8", "-o", tmp_path / "q")
    assert f"probabilities change by {header['probability_change']:.4f} at most" in said.err
    assert (
        header["slides"] == 2
        and 0.5 < header["cosine_worst"] <= header["cosine_median"] <= 1
        and header["probability_change"] > 0
    )
    said = lrmil("info", exported.with_name("model.int8.onnx"))
    assert said.code == 0 and "int8" in said.out


def test_graphs_of_another_model_are_noticed(exported, chain, slide, tmp_path, lrmil):
    from lrmil_cli.models.model_file import load_model, save_model

    model = load_model(exported)
    with torch.no_grad():
        model.heads[0].classifier.bias += 1.0
    save_model(tmp_path / "model.safetensors", model.header, model.encoders, model.heads, model.encoder_of)
    for name in ("model.onnx", "model.heads.onnx"):
        shutil.copy(exported.parent / name, tmp_path)
    said = lrmil("predict", slide, "-m", tmp_path / "model.safetensors", "-o", tmp_path / "a")
    assert said.code == 0 and "another model" in said.err and "going on with torch" in said.err
    assert predicted(tmp_path / "a", slide)[0]["runtime"] == "torch"
    said = lrmil(
        "predict", slide, "-m", tmp_path / "model.onnx", "-o", tmp_path / "b"
    )  # the model beside the graphs tells
    assert said.code == 3 and "another model" in said.err
    said = lrmil("predict", slide, "-m", tmp_path / "model.safetensors", "--runtime", "onnx", "-o", tmp_path / "b")
    assert said.code == 3 and "export-onnx" in said.err
    said = lrmil("export-onnx", tmp_path / "model.safetensors")
    assert said.code == 2 and "--overwrite" in said.err


@pytest.mark.parametrize("harm", ["flip", "cut", "foreign", "swapped"])
def test_a_damaged_graph_is_refused(exported, slide, tmp_path, lrmil, harm):
    for name in ("model.onnx", "model.heads.onnx"):
        shutil.copy(exported.parent / name, tmp_path)
    target = tmp_path / "model.onnx"
    data = bytearray(target.read_bytes())
    if harm == "flip":
        data[len(data) // 2] ^= 1
    elif harm == "cut":
        data = data[: len(data) - 100]
    elif harm == "foreign":
        data = bytearray(b"\x08\x08:\x00")
    else:
        data = bytearray((tmp_path / "model.heads.onnx").read_bytes())
    target.write_bytes(bytes(data))
    said = lrmil("predict", slide, "-m", target, "-o", tmp_path / "p")
    assert said.code == 3 and "model.onnx" in said.err and not (tmp_path / "p").exists()


@pytest.mark.parametrize(
    ("more", "says", "code"),
    [
        (["--runtime", "tensorrt"], "choose one of", 2),
        (["--runtime", "onnx", "--device", "cuda"], "runs on the CPU", 2),
    ],
)
def test_a_runtime_that_does_not_fit_is_refused(exported, slide, tmp_path, lrmil, more, says, code):
    said = lrmil("predict", slide, "-m", exported, "-o", tmp_path / "p", *more)
    assert said.code == code and says in said.err


def test_without_graphs_onnx_says_how_to_make_them(chain, slide, tmp_path, lrmil):
    said = lrmil("predict", slide, "-m", chain.model, "-o", tmp_path / "p", "--runtime", "onnx")
    assert said.code == 3 and "lrmil export-onnx" in said.err


def test_benchmark_takes_the_graphs_beside_a_model(exported, chain, slide, lrmil):
    args = ["benchmark", slide, "--rounds", "1", "--max-tiles", "4", "--json", "--runtime", "onnx-int8", "-m"]
    said = lrmil(*args, exported)
    assert said.code == 0, said.err
    (record,) = said.records
    assert record["runtime"] == "onnx-int8" and record["gflops"] is None and record["ratio"] > 1
    said = lrmil(*args, chain.model)
    assert said.code == 3 and "model.int8.onnx" in said.err and "export-onnx" in said.err


def student(chain, out, *more):
    inputs = ["--tiles", chain.tiles_lr, "--teacher", chain.teacher, "--encoder", "demo-vit", "--preset", "lr-only"]
    kept = ["--lr-features", chain.model.with_suffix(".features") / "lr-only"]
    return ["distill-student", chain.manifest, *inputs, *kept, "--epochs", "1", *more, "-o", out]


def test_a_student_comes_with_its_graphs_and_replaces_those_of_the_last_but_nothing_else(chain, tmp_path, lrmil):
    model, graphs = tmp_path / "m.safetensors", (tmp_path / "m.onnx", tmp_path / "m.heads.onnx")
    assert lrmil(*student(chain, model, "--no-onnx")).code == 0 and not any(g.exists() for g in graphs)
    assert lrmil(*student(chain, model)).code == 0  # up to date, but for the graphs
    first = read_graph(graphs[0])[0]["graph_of"]["weights"]
    assert lrmil(*student(chain, model, "--seed", "1", "--overwrite")).code == 0
    assert read_graph(graphs[0])[0]["graph_of"]["weights"] != first
    graphs[0].write_bytes(b"of someone else")
    said = lrmil(*student(chain, model, "--seed", "1"))
    assert said.code == 0 and "no ONNX graphs" in said.err and graphs[0].read_bytes() == b"of someone else"


def test_a_head_without_an_onnx_form_is_a_model_all_the_same(chain, slide, tmp_path, lrmil):
    model = tmp_path / "m.safetensors"
    said = lrmil(*student(chain, model, "--head", "dtfd"))
    assert said.code == 0 and "warning: no ONNX graphs, so that predicting imports torch" in said.err, said.err
    assert lrmil("predict", slide, "-m", model, "-o", tmp_path / "p").code == 0
    assert predicted(tmp_path / "p", slide)[0]["runtime"] == "torch"


def test_doctor_looks_at_graphs(chain, exported, tmp_path, lrmil):
    for model in (exported, exported.with_name("model.onnx")):
        said = lrmil("doctor", "-m", model, "--json")
        assert "graphs" in said.out and "ONNX Runtime opens them" in said.out, said.err
    shutil.copy(exported.with_name("model.onnx"), tmp_path)
    said = lrmil("doctor", "-m", tmp_path / "model.onnx", "--json")
    assert said.code != 0 and "model.heads.onnx" in said.out + said.err
    slide = chain.manifest.parent / "slides" / "s13.svs"
    for line in (
        ["doctor", slide, "-m", exported.with_name("model.onnx")],
        ["doctor", slide, exported.with_name("model.onnx")],
    ):
        said = lrmil(*line, "--json")
        assert "internal" not in said.err and [r["kind"] for r in said.records] == ["machine", "model", "slide"], (
            said.err
        )
    said = lrmil("predict", slide, "-m", exported.with_name("model.heads.onnx"), "-o", tmp_path / "p")
    assert said.code == 3 and "name the graph beside it" in said.err, said.err
    (tmp_path / "f.onnx").write_bytes(b"of someone else")
    shutil.copy(exported, tmp_path / "f.safetensors")
    said = lrmil("export-onnx", tmp_path / "f.safetensors")
    assert said.code == 2 and (tmp_path / "f.onnx").read_bytes() == b"of someone else", said.err


def test_exporting_again_is_up_to_date(exported, chain, tmp_path, lrmil):
    slides = [chain.manifest.parent / "slides" / f"{s}.svs" for s in ("s13", "s12")]
    shutil.copy(slides[0], tmp_path / "moved.svs")
    for check in (
        (),
        ("--check", slides[0], "--check", slides[1]),
        ("--check", tmp_path / "moved.svs", "--check", slides[1]),
    ):
        said = lrmil("export-onnx", exported, "--int8", *check, "--json")
        assert said.code == 0 and said.records[0]["status"] == "skipped" and said.records[0]["int8"]["slides"] == 2
    for file in exported.parent.glob("model*.onnx"):
        shutil.copy(file, tmp_path)
    shutil.copy(exported, tmp_path)
    other = lrmil("export-onnx", tmp_path / exported.name, "--int8", "--check", slides[0], "--json")
    assert other.records[0]["status"] == "ok" and other.records[0]["int8"]["slides"] == 1
    assert not [line for line in other.err.splitlines() if "WARNING" in line or "elem_type" in line], other.err
    assert lrmil("export-onnx", exported, "--check", "x.svs").code == 2


@pytest.mark.parametrize("size", [64, 128, 112, 200])
def test_the_resizing_by_matrices_is_that_of_the_encoder(size):
    from lrmil_cli.inference.onnx_export import resize_matrix

    e = load_encoder("demo-vit", tile_px=128)
    e.info = type(e.info)(**{**e.info.__dict__, "image_size": size})
    tiles = torch.randint(0, 256, (2, 128, 128, 3), dtype=torch.uint8)
    x = tiles.permute(0, 3, 1, 2).float() / 255
    w = resize_matrix(128, size)
    own = ((x if size == 128 else (w @ x @ w.T).clamp(0, 1)) - e.mean) / e.std
    assert torch.allclose(own, e.preprocess(tiles), atol=2e-6)


@pytest.mark.parametrize(
    ("head", "options", "fits"),
    [
        ("clam_mb", {"embed_dim": 16, "hidden": 8}, True),
        ("meanpool", {"embed_dim": 16}, True),
        ("maxpool", {"embed_dim": 16}, True),
        ("dsmil", {}, True),
        ("dtfd", {}, False),
    ],
)
def test_heads_export_for_any_number_of_tiles_or_are_refused(head, options, fits, tmp_path):
    from lrmil_cli.errors import UsageError
    from lrmil_cli.heads import build_head
    from lrmil_cli.inference.onnx_export import export_model, quantise
    from lrmil_cli.inference.onnx_predictor import open_session
    from lrmil_cli.models.model_file import Model
    from lrmil_cli.slides.tiles import TileSettings

    e = load_encoder("demo-vit", tile_px=64)
    heads = [build_head(head, e.embed_dim, 3, options).eval().requires_grad_(False) for _ in range(2)]
    model = Model({"version": 1, "history": []}, [e], heads, [0, 0], ("a", "b", "c"), TileSettings(tile_px=64))
    if not fits:
        with pytest.raises(UsageError, match="--runtime torch"):
            export_model(model, tmp_path / "m.safetensors", "w")
        assert not list(tmp_path.iterdir())
        return
    encoder, path = export_model(model, tmp_path / "m.safetensors", "w")
    write_graph(tmp_path / "m.int8.onnx", quantise(encoder), {"version": 1, "history": []})
    for graph in tmp_path.glob("*.onnx"):  # no stack traces, which hold paths of this machine
        body = read_graph(graph)[1]
        assert b".py" not in body and str(lrmil_cli.__path__[0]).encode() not in body, graph
    x = torch.randn(777, e.embed_dim)
    found = open_session(read_graph(path)[1], "x").run(None, {"features0": x.numpy()})
    assert found[1] == pytest.approx(np.stack([h(x).attention.numpy() for h in heads]), abs=1e-6)


def test_a_graph_keeps_its_bytes(tmp_path):
    write_graph(tmp_path / "g.onnx", b"body" * 1000, {"version": 1, "history": [], "note": "ö" * 300})
    header, data = read_graph(tmp_path / "g.onnx")
    assert header["note"] == "ö" * 300 and data.startswith(b"body" * 1000) and header["kind"] == "graph"
