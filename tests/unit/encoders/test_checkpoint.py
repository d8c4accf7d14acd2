"""Weights as people have them: whose names, prefixes, containers, chunks and shards; what is no weights at all."""

import json
import re
import time

import huggingface_hub
import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from lrmil_cli.encoders.aliases import ALIASES
from lrmil_cli.encoders.checkpoint import MARK, find_trunk, flat_state, read_state
from lrmil_cli.encoders.hub import hub_client, no_answer
from lrmil_cli.encoders.spec import load_encoder
from lrmil_cli.errors import InputError, MachineError, UsageError
from tests.conftest import SHARED, needs_shared

#: The smallest ViT of timm, 6 blocks of width 64.
TINY = "test_vit"


def model(name=TINY, **args):
    torch.manual_seed(3)
    made = timm.create_model(name, num_classes=0, **args).eval()
    with torch.no_grad():
        for p in made.parameters():
            p.normal_(std=0.2)
    return made


@pytest.fixture
def tiny():
    return model()


def far_apart(encoder, source, px=160):
    """How far apart what they say of the same tiles is: 0 where it agrees to 1e-5, with 1e-4 of its size."""
    tiles = torch.randint(0, 256, (2, px, px, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        rgb = (tiles.permute(0, 3, 1, 2) / 255 - encoder.mean) / encoder.std
        ours, theirs = encoder(tiles)["final"], source.forward_features(rgb)[:, 0]
    return float(((ours - theirs).abs() - 1e-5 - 1e-4 * theirs.abs()).clamp(min=0).max())


def under(prefix, state):
    return {prefix + k: v for k, v in state.items()}


# ---- prefixes and containers -------------------------------------------------------
LAYOUTS = {
    "plain": lambda s: s,
    "student.": lambda s: under("student.", s),
    "teacher.backbone.": lambda s: under("teacher.backbone.", s) | {"teacher.dino_head.w": torch.zeros(2)},
    "_orig_mod.": lambda s: under("_orig_mod.", s),
    "module.": lambda s: under("module.", s),
    "encoder.": lambda s: under("encoder.", s) | {"classifier.weight": torch.zeros(2)},
    "model.encoder.": lambda s: under("model.encoder.", s),
    "module.model.visual.trunk.": lambda s: under("module.model.visual.trunk.", s),
    "a prefix of nobody's": lambda s: under("lab.vit_tower.", s),
    "compiled by block": lambda s: {re.sub(r"(blocks\.\d+\.)", r"\1_orig_mod.", k): v for k, v in s.items()},
    "model_state_dict": lambda s: {"epoch": 3, "model_state_dict": s, "optimizer": {"state": {0: {"step": 1}}}},
    "state_dict": lambda s: {"state_dict": under("module.backbone.", s), "loss": 0.5},
    "model": lambda s: {"model": s, "args": {"lr": 0.1}},
    "half precision": lambda s: {k: v.half().float() for k, v in s.items()},
    "teacher beside student": lambda s: {
        "student": under("module.backbone.", {k: torch.zeros_like(v) for k, v in s.items()}),
        "teacher": under("backbone.", s),
    },
    "average beside the model": lambda s: {"model": {k: torch.zeros_like(v) for k, v in s.items()}, "model_ema": s},
    "with a classifier": lambda s: s | {"head.weight": torch.zeros(5, 64), "head.bias": torch.zeros(5)},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_whole_trunk_is_read_from_wherever_it_stands(layout, tiny, tmp_path):
    torch.save(LAYOUTS[layout](tiny.state_dict()), tmp_path / "w.pth")
    told = []
    encoder = load_encoder(f"{TINY}@{tmp_path / 'w.pth'}", input_size=160, warn=told.append)
    if layout == "half precision":
        tiny.load_state_dict({k: v.half() for k, v in tiny.state_dict().items()})
    assert far_apart(encoder, tiny) == 0
    several = {"teacher beside student": "teacher.backbone.", "average beside the model": "model_ema."}.get(layout)
    assert [f"{several} is taken" in text for text in told] == ([True] if several else [])


@given(
    st.lists(st.from_regex(r"[a-z_]{1,8}", fullmatch=True), max_size=4),
    st.lists(st.from_regex(r"[a-z_]{1,8}", fullmatch=True), max_size=2),
)
def test_any_prefix_that_leaves_a_trunk_is_taken_off(inner, outer):
    trunk = {MARK: torch.zeros(1), "blocks.0.attn.qkv.weight": torch.ones(1), "norm.weight": torch.ones(2)}
    state = under("".join(f"{p}." for p in inner), trunk)
    for name in outer:
        state = {name: state, f"{name}0": torch.zeros(1)} if inner or outer[1:] else {name: state}
    found, said = find_trunk(flat_state(state, "w"), "w")
    assert found == trunk and not said


def test_several_trunks_of_which_none_is_the_average_are_refused(tiny, tmp_path):
    state = tiny.state_dict()
    torch.save(under("base.", state) | under("momentum_encoder.", state), tmp_path / "w.pth")
    with pytest.raises(InputError, match=r"several encoders \(base\., momentum_encoder\.\)"):
        load_encoder(f"{TINY}@{tmp_path / 'w.pth'}")


# ---- DINOv2, as its authors publish it ---------------------------------------------
def chunked(state, sizes, through):
    """Blocks in chunks, counted through as DINOv2 does, or in each chunk."""
    place = {}
    for chunk, size in enumerate(sizes):
        place |= {len(place) + i: f"{chunk}.{len(place) + i if through else i}" for i in range(size)}
    return {re.sub(r"^blocks\.(\d+)", lambda m: f"blocks.{place[int(m[1])]}", k): v for k, v in state.items()}


@pytest.mark.parametrize("through", [True, False])
@pytest.mark.parametrize("registers", [0, 4])
def test_dinov2_as_its_authors_write_it(registers, through, tmp_path):
    name = "vit_small_patch14_reg4_dinov2" if registers else "vit_small_patch14_dinov2"
    source = model(name, img_size=112, depth=12)
    state = source.state_dict()
    theirs = chunked(state, (3, 4, 5), through) | {"mask_token": torch.zeros(1, 384)}
    if registers:  # theirs have a place for the class token in the table, timm's has added it to the token
        place = torch.randn(1, 1, 384)
        theirs["register_tokens"] = theirs.pop("reg_token")
        theirs["cls_token"] = state["cls_token"] - place
        theirs["pos_embed"] = torch.cat([place, state["pos_embed"]], 1)
    torch.save(
        {"teacher": under("backbone.", theirs) | {"dino_head.last": torch.zeros(3)}},
        tmp_path / "teacher_checkpoint.pth",
    )
    assert far_apart(load_encoder(f"{name}@{tmp_path / 'teacher_checkpoint.pth'}", input_size=112), source, 112) == 0


def test_positions_of_another_grid_are_interpolated_by_timm_and_noted(tiny, tmp_path):
    torch.save(tiny.state_dict(), tmp_path / "w.pth")
    encoder = load_encoder(f"{TINY}@{tmp_path / 'w.pth'}", input_size=256)
    assert "position embeddings interpolated from 101 to 257" in encoder.info.note
    other = timm.create_model(TINY, num_classes=0, img_size=256).eval()
    from timm.models.vision_transformer import checkpoint_filter_fn

    other.load_state_dict(checkpoint_filter_fn(tiny.state_dict(), other))
    assert far_apart(encoder, other, 256) == 0
    assert "interpolated" not in load_encoder(f"{TINY}@{tmp_path / 'w.pth'}", input_size=160).info.note


@needs_shared
def test_a_real_dinov2_in_its_authors_layout(tmp_path):
    real = SHARED / "data" / "encoders" / "vit_small_patch14_dinov2.fp16.safetensors"
    state = load_file(str(real))
    torch.save({"teacher": under("backbone.", chunked(state, (3, 3, 3, 3), True))}, tmp_path / "teacher_checkpoint.pth")
    plain, theirs = (load_encoder(f"vit_small_patch14_dinov2@{p}") for p in (real, tmp_path / "teacher_checkpoint.pth"))
    assert plain.digest() == theirs.digest()


# ---- shards ------------------------------------------------------------------------
@pytest.mark.parametrize("given_as", ["index", "folder", "shard"])
def test_shards_are_read_together(given_as, tiny, tmp_path):
    state = tiny.state_dict()
    names = sorted(state)
    where = {n: f"model-0000{1 + (i > len(names) // 2)}-of-00002.safetensors" for i, n in enumerate(names)}
    for part in set(where.values()):
        save_file({n: state[n] for n in names if where[n] == part}, tmp_path / part)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": where}))
    file = {"index": index, "folder": tmp_path, "shard": tmp_path / "model-00002-of-00002.safetensors"}[given_as]
    assert far_apart(load_encoder(f"{TINY}@{file}", input_size=160), tiny) == 0
    (tmp_path / "model-00001-of-00002.safetensors").unlink()
    with pytest.raises(InputError, match="only the list of 2 shards.*beside it: model-00001-of-00002.safetensors$"):
        load_encoder(f"{TINY}@{file}")
    index.unlink()
    with pytest.raises(
        InputError,
        match={"shard": "one of 2 shards was given", "index": "no such weights file"}.get(
            given_as, "no weights in this folder"
        ),
    ):
        load_encoder(f"{TINY}@{file}")


# ---- what is no weights ------------------------------------------------------------
NO_WEIGHTS = [
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:1234\nsize 86\n", "pointer of Git LFS.*git lfs pull"),
    (b"\n<!DOCTYPE html>\n<html><body>Log in</body></html>", "web page"),
    (b"<html><head></head></html>", "web page"),
    (b'{"error": "Access to model is restricted"}', "text of JSON"),
]


@pytest.mark.parametrize(("content", "message"), NO_WEIGHTS)
@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors", "model.safetensors.index.json"])
def test_what_stands_in_for_weights_is_named(name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content)
    for spec in (f"uni@{tmp_path / name}", f"{TINY}@{tmp_path}"):
        with pytest.raises(InputError, match=f"{re.escape(name)}: an? {message}"):
            load_encoder(spec)
    if name == "model.safetensors":
        with pytest.raises(InputError, match=message):
            load_encoder(str(tmp_path / name))


def test_weights_whose_header_length_looks_like_a_brace_are_weights(tmp_path):
    # Of a text of JSON the first byte is 0x7b; so is that of a header of 379 bytes.
    header = json.dumps({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).ljust(0x17B).encode()
    (tmp_path / "w.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"\0\0\x80\x3f")
    assert read_state(tmp_path / "w.safetensors")["w"].item() == 1


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.pth", "weights.bin"])
def test_weights_without_a_name_are_asked_for_it(name, tiny, tmp_path):
    (save_file if name.endswith("safetensors") else torch.save)(tiny.state_dict(), tmp_path / name)
    with pytest.raises(UsageError, match=re.escape(f"NAME@{tmp_path / name}")):
        load_encoder(str(tmp_path / name))


def test_a_pickle_with_more_than_tensors_is_not_loaded(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "was-run"), "w"))

    torch.save({"w": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(InputError, match="not loaded"):
        read_state(tmp_path / "evil.pt")
    assert not (tmp_path / "was-run").exists()
    for value in ([1, 2], torch.zeros(2), {"epoch": 1}):
        torch.save(value, tmp_path / "none.pt")
        with pytest.raises(InputError, match="no state dict of tensors"):
            read_state(tmp_path / "none.pt")


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda s: s.pop("norm.weight"), "missing: norm.weight; unexpected: none"),
        (lambda s: s.update({"extra.w": torch.zeros(1)}), "missing: none; unexpected: extra.w"),
        (lambda s: [s.pop(k) for k in list(s) if "blocks.5" in k], r"missing: blocks\.5\..* and \d+ more"),
        (lambda s: s.update({"norm.bias": torch.zeros(3)}), r"of another shape: norm.bias \[3\] for \[64\]"),
        (lambda s: s.update({"pos_embed": torch.zeros(1, 100, 64)}), "of another shape: pos_embed"),
        (lambda s: s.update({MARK: torch.zeros(64, 3, 14, 14)}), "patches are of 14 px, its of 16 px"),
    ],
)
@pytest.mark.parametrize("prefix", ["", "teacher.backbone."])
def test_weights_that_do_not_fit_are_refused_with_the_names(harm, message, prefix, tiny, tmp_path):
    state = tiny.state_dict()
    harm(state)
    save_file(under(prefix, state), tmp_path / "w.safetensors")
    with pytest.raises(InputError, match=message):
        load_encoder(f"{TINY}@{tmp_path / 'w.safetensors'}", input_size=160 if MARK in message else None)


# ---- a hub that does not answer ----------------------------------------------------
@pytest.fixture
def nobody_there(monkeypatch, tmp_path):
    """A hub at a port where nobody listens, and an empty cache."""
    from huggingface_hub import constants, file_download

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", "http://127.0.0.1:9/{repo_id}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    for module in (constants, file_download):
        monkeypatch.setattr(module, "ENDPOINT", "http://127.0.0.1:9", raising=False)
    no_answer.cache_clear()
    yield
    no_answer.cache_clear()


@pytest.mark.parametrize(
    ("spec", "advice"),
    [
        ("uni", r"https://huggingface.co/MahmoodLab/uni elsewhere and give --encoder uni@FILE"),
        ("conch", r"conch@pytorch_model.bin"),
        ("hf-hub:some/page", "local-dir:PATH"),
        ("vit_tiny_patch16_224", r"huggingface.co/timm/vit_tiny_patch16_224\S* elsewhere .* vit_tiny_patch16_224@FILE"),
    ],
)
def test_offline_fails_at_once_and_says_what_to_do(spec, advice, nobody_there, monkeypatch):
    waited = []
    monkeypatch.setattr(time, "sleep", waited.append)
    with pytest.raises(MachineError, match=f"not in the cache.*the hub does not answer .*{advice}"):
        load_encoder(spec)
    assert not waited  # as one does before the next of several attempts
    assert not huggingface_hub.constants.HF_HUB_OFFLINE  # as it was


def test_offline_what_is_in_the_cache_is_taken(nobody_there, tmp_path):
    page = tmp_path / "hub" / "models--MahmoodLab--conch"
    (page / "snapshots" / "abc").mkdir(parents=True)
    (page / "refs").mkdir()
    (page / "refs" / "main").write_text("abc")
    (page / "snapshots" / "abc" / "pytorch_model.bin").write_bytes(b"there")
    from lrmil_cli.encoders.hub import hub_file

    assert hub_file(ALIASES["conch"], "pytorch_model.bin").read_bytes() == b"there"


def test_a_hub_that_answers_is_left_alone(monkeypatch):
    monkeypatch.setattr("lrmil_cli.encoders.hub.no_answer", lambda: None)
    before = huggingface_hub.constants.HF_HUB_OFFLINE
    with hub_client():
        assert huggingface_hub.constants.HF_HUB_OFFLINE == before
