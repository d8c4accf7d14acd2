"""A student that is smaller than its teacher, from stage 1 to the prediction."""

import json

import pytest

from lrmil_cli.encoders.build import create_vit
from lrmil_cli.encoders.encoder_file import save_encoder
from lrmil_cli.encoders.spec import load_encoder
from lrmil_cli.encoders.vit import Encoder, EncoderInfo
from lrmil_cli.files.header import step
from lrmil_cli.files.tensors import read_tensor_header

pytestmark = pytest.mark.usefixtures("all_unpainted")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A ViT of another width, depth and patch side than the demo's, in a file of ours."""
    args = {"embed_dim": 32, "depth": 3, "num_heads": 2}
    info = EncoderInfo(
        "tiny", "vit_tiny_patch16_224", 64, (0.5,) * 3, (0.5,) * 3, arch_args=args, license="CC-BY-NC-4.0"
    )
    path = tmp_path_factory.mktemp("tiny") / "tiny.safetensors"
    save_encoder(path, Encoder(create_vit(info.architecture, 64, args), info), [step("x", {}, {})], {})
    return path


def stage1(chain, out, *more):
    few = ["--epochs", "1", "--batch-size", "32", "--max-tiles-per-slide", "4", "--cache", out.with_suffix(".cache")]
    fold = ["--slides", chain.manifest, "--fold", "1"]
    return ["distill-encoder", chain.pairs, *fold, "--encoder", "demo-vit", *few, *more, "-o", out]


def test_from_stage_1_to_the_prediction(chain, tiny, tmp_path, lrmil):
    small = tmp_path / "small.safetensors"
    said = lrmil(*stage1(chain, small, "--student", tiny))
    assert said.code == 0, said.err
    assert "must not be used commercially" in said.err  # the licence of what it started as
    encoder, info = load_encoder(str(small)), load_encoder(str(small)).info
    assert (encoder.width, encoder.depth, info.base) == (32, 3, "demo-vit and tiny")
    assert (info.distilled["final_loss"], info.distilled["lr"]) == ("uniform", 1e-4)
    own, teacher = info.distilled["student"], info.distilled["teacher"]
    depth = load_encoder("demo-vit").depth
    assert (own["width"], own["depth"], own["start"], teacher["depth"]) == (32, 3, "tiny", depth)
    assert own["pairs"] == [[l, max(0, int((l + 1) * 3 / depth + 0.5) - 1)] for l in info.distilled["layers"]]
    assert lrmil(*stage1(chain, small, "--student", tiny)).err.count("up to date") == 1

    model = tmp_path / "model.safetensors"
    again = ["--also-encoder", chain.encoder, "--epochs", "2", "--lr", "1e-3"]
    sides = ["--tiles", chain.tiles_lr, "--pairs", chain.pairs, "--teacher", chain.teacher]
    said = lrmil("distill-student", chain.manifest, *sides, "--encoder", small, *again, "-o", model)
    assert said.code == 0 and "--embedding" not in said.err, said.err
    receipt = json.loads((tmp_path / "model.receipt.json").read_text())
    assert list(receipt["models"]) == ["teacher", "lr_only", "also", "distilled"]
    assert receipt["models"]["also"]["title"] == "student of a copy"
    assert {(d["a"], d["b"]) for d in receipt["differences"]} >= {("distilled", "also"), ("distilled", "lr_only")}
    assert receipt["cost"]["also"]["tiles"] == receipt["cost"]["lr"]["tiles"] and "also" in receipt["agreement"]
    header = read_tensor_header(model, "model")
    assert [h["in_dim"] for h in header["heads"]] == [32] and "CC-BY-NC" in header["license"]
    assert load_encoder(str(tiny)).digest() == header["settings"]["baseline"]  # LR-only: the same small architecture

    slide = chain.manifest.parent / "slides" / "s13.svs"
    answers = []
    for runtime in ("torch", "onnx"):  # the graphs came with the model
        said = lrmil("predict", slide, "-m", model, "--runtime", runtime, "-o", tmp_path / runtime, "--json")
        assert said.code == 0, said.err
        answers.append(said.records[0]["prediction"]["probabilities"])
    assert answers[0] == pytest.approx(answers[1], abs=1e-4)
    assert lrmil("export-onnx", model, "--int8", "--check", slide).code == 0
    # A second look takes the HR encoder that the small one learned from.
    look = ["--escalate", chain.teacher, "--confidence", "1", "--budget", "2"]
    said = lrmil("predict", slide, "-m", model, "-o", tmp_path / "q", *look, "--json")
    assert said.code == 0, said.err
    assert said.records[0]["prediction"]["answered_at"] == "hr"
    said = lrmil("doctor", slide, "-m", model)
    assert "demo-vit and tiny" in said.out


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        (["--init", "teacher", "--student", "{tiny}"], 2, "--init is of a copy"),
        (["--student-input-size", "64"], 2, "--student-input-size is of --student"),
        (["--student", "{tiny}", "--student-input-size", "48"], 2, "--student-input-size 64"),
        (["--student", "vit_base_patch16_224", "--random-init"], 2, "choose a smaller architecture"),
        (["--student", "vit_tiny_patch16_224@{tiny}"], 3, "--student: vit_tiny_patch16_224@tiny.safetensors"),
        (["--student", "{tiny}", "--freeze-blocks", "3", "--final-loss", "none"], 2, "nothing to train below block 2"),
    ],
)
def test_students_that_do_not_fit_are_one_line(chain, tiny, tmp_path, lrmil, args, code, says):
    said = lrmil(*stage1(chain, tmp_path / "e.safetensors", *(a.format(tiny=tiny) for a in args)))
    errors = [line for line in said.err.splitlines() if line.startswith("error")]
    assert said.code == code and says in said.err and len(errors) <= 1, said.err
    assert not (tmp_path / "e.safetensors").exists()
