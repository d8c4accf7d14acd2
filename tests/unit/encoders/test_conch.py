"""CONCH's trunk and pooler, from checkpoints in the published layout, with random weights."""

import math
from dataclasses import replace

import huggingface_hub
import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from lrmil_cli.distill.learner import make_learner
from lrmil_cli.distill.patch_loss import batch_loss
from lrmil_cli.distill.settings import Stage1Settings
from lrmil_cli.encoders import aliases
from lrmil_cli.encoders.aliases import ALIASES
from lrmil_cli.encoders.build import create_vit
from lrmil_cli.encoders.encoder_file import load_encoder_file, save_encoder
from lrmil_cli.encoders.spec import load_encoder
from lrmil_cli.errors import InputError
from lrmil_cli.files.header import make_header, step
from lrmil_cli.heads import build_head
from lrmil_cli.models.model_file import load_model, save_model
from lrmil_cli.slides.tiles import TileSettings

WIDTH, POOL, HEADS = 48, 32, 8
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
P = "visual.attn_pool_contrast."


def trunk():
    return timm.create_model(
        "vit_base_patch16_224",
        img_size=448,
        num_classes=0,
        dynamic_img_size=True,
        embed_dim=WIDTH,
        depth=2,
        num_heads=4,
    ).eval()


def checkpoint(seed=0):
    """Random weights under the published names, text tower and captioner included."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {f"visual.trunk.{k}": v.shape for k, v in trunk().state_dict().items()}
    for pool, ln in (("contrast", "ln_contrast"), ("caption", "ln_caption")):
        p = f"visual.attn_pool_{pool}."
        queries = 1 if pool == "contrast" else 256
        shapes |= {
            p + "query": (queries, POOL),
            p + "attn.q_proj_weight": (POOL, POOL),
            p + "attn.k_proj_weight": (POOL, WIDTH),
            p + "attn.v_proj_weight": (POOL, WIDTH),
            p + "attn.in_proj_bias": (3 * POOL,),
            p + "attn.out_proj.weight": (POOL, POOL),
            p + "attn.out_proj.bias": (POOL,),
            p + "ln_q.weight": (POOL,),
            p + "ln_q.bias": (POOL,),
            p + "ln_k.weight": (WIDTH,),
            p + "ln_k.bias": (WIDTH,),
            f"visual.{ln}.weight": (POOL,),
            f"visual.{ln}.bias": (POOL,),
        }
    shapes |= {
        "visual.proj_contrast": (POOL, POOL),
        "logit_scale": (),
        "text.token_embedding.weight": (5, POOL),
        "text_decoder.resblocks.0.ln_1.bias": (POOL,),
    }
    return {k: torch.rand(s, generator=generator) * 0.8 - 0.4 for k, s in shapes.items()}


def reference(state, x):
    """Trunk tokens and pooled embedding of float images, head by head from the formulas; the grid is interpolated by
    timm."""
    model = trunk()
    model.load_state_dict({k[len("visual.trunk.") :]: v for k, v in state.items() if k.startswith("visual.trunk.")})
    with torch.inference_mode():
        tokens = model.forward_features(x)
        s = {k: v.double() for k, v in state.items()}
        t = tokens.double()
        kv = F.layer_norm(t, (WIDTH,), s[P + "ln_k.weight"], s[P + "ln_k.bias"], 1e-5)
        q = F.layer_norm(s[P + "query"], (POOL,), s[P + "ln_q.weight"], s[P + "ln_q.bias"], 1e-5)
        bias_q, bias_k, bias_v = s[P + "attn.in_proj_bias"].split(POOL)
        query = q @ s[P + "attn.q_proj_weight"].T + bias_q
        key = kv @ s[P + "attn.k_proj_weight"].T + bias_k
        value = kv @ s[P + "attn.v_proj_weight"].T + bias_v
        d = POOL // HEADS
        pooled = []
        for b in range(len(x)):
            heads = []
            for h in range(HEADS):
                part = slice(h * d, (h + 1) * d)
                scores = key[b, :, part] @ query[0, part] / math.sqrt(d)
                heads.append(torch.softmax(scores, 0) @ value[b, :, part])
            o = torch.cat(heads) @ s[P + "attn.out_proj.weight"].T + s[P + "attn.out_proj.bias"]
            pooled.append(F.layer_norm(o, (POOL,), s["visual.ln_contrast.weight"], s["visual.ln_contrast.bias"], 1e-5))
    return tokens, torch.stack(pooled).float()


def tiles(n, px):
    return torch.randint(0, 256, (n, px, px, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def conch(monkeypatch, tmp_path):
    """The checkpoint's path; the alias builds the small stand-in."""
    args = {"embed_dim": WIDTH, "depth": 2, "num_heads": 4, "pool_dim": POOL, "pool_heads": HEADS}
    monkeypatch.setitem(aliases.ALIASES, "conch", replace(ALIASES["conch"], arch_args=args, width=WIDTH, blocks=2))
    torch.save(checkpoint(), tmp_path / "pytorch_model.bin")
    return tmp_path / "pytorch_model.bin"


@pytest.mark.parametrize(("size", "grid"), [(None, 16), (448, 28)])
def test_tokens_and_pooler_match_the_reference(conch, size, grid):
    e = load_encoder(f"conch@{conch}", embedding="pool", input_size=size)
    assert (e.info.image_size, e.grid, e.embed_dim) == (
        16 * grid,
        grid,
        POOL,
    )  # 256 px by default: the grid shrinks from 28 to 16
    x = tiles(2, 16 * grid)
    rgb = (x.permute(0, 3, 1, 2) / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    tokens, pooled = reference(checkpoint(), rgb)
    with torch.inference_mode():
        out = e(x, (1,))
    assert (out["final"] - pooled).abs().max() < 1e-5
    assert pooled.std() > 0.05  # or the line above would say little
    assert (e.model.norm(out["summary"][1]) - tokens[:, 0]).abs().max() < 1e-5
    assert (e.model.norm(out["tokens"][1]).flatten(1, 2) - tokens[:, 1:]).abs().max() < 1e-5
    for kind, expected in (("cls", tokens[:, 0]), ("mean", tokens[:, 1:].mean(1))):
        final = load_encoder(f"conch@{conch}", embedding=kind, input_size=size)(x)["final"]
        assert (final - expected).abs().max() < 1e-5


def test_names_and_shapes_of_the_real_one():
    with torch.device("meta"):
        shapes = {k: tuple(v.shape) for k, v in create_vit("conch", 448, {}).state_dict().items()}
        vit = {
            k: tuple(v.shape)
            for k, v in timm.create_model("vit_base_patch16_224", img_size=448, num_classes=0).state_dict().items()
        }
    assert {k: v for k, v in shapes.items() if not k.startswith("attn_pool.")} == vit
    assert {k: v for k, v in shapes.items() if k.startswith("attn_pool.")} == {
        f"attn_pool.{k}": v
        for k, v in {
            "query": (1, 512),
            "attn.q_proj_weight": (512, 512),
            "attn.k_proj_weight": (512, 768),
            "attn.v_proj_weight": (512, 768),
            "attn.in_proj_bias": (1536,),
            "attn.out_proj.weight": (512, 512),
            "attn.out_proj.bias": (512,),
            "ln_q.weight": (512,),
            "ln_q.bias": (512,),
            "ln_k.weight": (768,),
            "ln_k.bias": (768,),
            "ln_out.weight": (512,),
            "ln_out.bias": (512,),
        }.items()
    }


def test_the_class_token_is_the_default_and_the_pooler_is_advised(conch):
    e = load_encoder(f"conch@{conch}")
    assert (e.info.embedding, e.info.note, e.info.license) == (
        "cls",
        "its authors use --embedding pool for MIL; position embeddings interpolated from 785 to 257",
        "CC-BY-NC-ND-4.0",
    )


def test_safetensors_and_the_hub_give_the_same(conch, tmp_path, monkeypatch):
    save_file(checkpoint(), tmp_path / "model.safetensors")
    asked = []
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *args: asked.append(args) or str(conch))
    loaded = [
        load_encoder(spec)
        for spec in (f"conch@{conch}", f"conch@{tmp_path / 'model.safetensors'}", "conch", "hf-hub:MahmoodLab/CONCH")
    ]
    assert len({e.digest() for e in loaded}) == 1 and asked == [("MahmoodLab/conch", "pytorch_model.bin")] * 2


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda s: s.pop(P + "query"), "missing: attn_pool.query; unexpected: none"),
        (lambda s: s.pop("visual.trunk.blocks.1.norm1.bias"), "missing: blocks.1.norm1.bias"),
        (lambda s: s.update({"visual.new": torch.zeros(1)}), "missing: none; unexpected: visual.new"),
        (lambda s: s.update({P + "query": torch.zeros(2, POOL)}), "do not fit the architecture"),
    ],
)
def test_another_layout_is_refused_with_the_list(conch, change, says):
    state = checkpoint()
    change(state)
    torch.save(state, conch)
    with pytest.raises(InputError, match=says):
        load_encoder(f"conch@{conch}")


def test_it_is_rebuilt_from_encoder_and_model_files(conch, tmp_path):
    e = load_encoder(f"conch@{conch}", embedding="pool")
    x = tiles(2, 64)
    save_encoder(tmp_path / "e.safetensors", e, [step("x", {}, {})], {})
    assert torch.equal(load_encoder(str(tmp_path / "e.safetensors"))(x)["final"], e(x)["final"])
    smaller = load_encoder_file(tmp_path / "e.safetensors", input_size=128, embedding="cls")
    assert (smaller.grid, smaller.embed_dim) == (8, WIDTH)
    header = make_header(
        "model", settings={}, history=[step("x", {}, {})], classes=["a", "b"], tiles=TileSettings().as_json()
    )
    head = build_head("abmil", POOL, 2)
    save_model(tmp_path / "m.safetensors", header, [e], [head], [0])
    assert torch.equal(load_model(tmp_path / "m.safetensors").encoders[0](x)["final"], e(x)["final"])


@pytest.mark.parametrize("init", ["teacher", "random"])
def test_stage_1_trains_the_trunk_and_keeps_the_pooler(conch, init):
    e = load_encoder(f"conch@{conch}", embedding="pool")
    settings = Stage1Settings(layers=(0,), final_loss="uniform", init=init)
    learner = make_learner(e, None, settings, 4)
    student, mask = learner.encoder, torch.ones(2, 16, dtype=torch.bool)
    targets, final = torch.randn(2, 16, 1, WIDTH), torch.randn(2, 16, POOL)
    loss, _ = batch_loss(learner, tiles(2, 256), targets, mask, settings, final)
    loss.backward()
    moved = {n for n, p in student.model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert (
        not any(n.startswith("attn_pool.") for n in moved)
        and "blocks.1.mlp.fc2.weight" in moved
        and "norm.weight" in moved
    )
    for name, value in e.model.attn_pool.state_dict().items():
        assert torch.equal(student.model.attn_pool.state_dict()[name], value), name
    assert torch.equal(student.model.blocks[0].mlp.fc1.weight, e.model.blocks[0].mlp.fc1.weight) == (init == "teacher")
