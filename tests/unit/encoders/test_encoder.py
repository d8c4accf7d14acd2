"""The encoder contract, and what stage 1 does to the weights."""

from dataclasses import replace

import numpy as np
import pytest
import timm
import torch

from lrmil_cli.distill.learner import make_learner
from lrmil_cli.distill.patch_loss import batch_loss
from lrmil_cli.distill.regions import pooling_matrix
from lrmil_cli.distill.settings import Stage1Settings
from lrmil_cli.encoders.build import build_encoder, create_vit
from lrmil_cli.encoders.encoder_file import save_encoder
from lrmil_cli.encoders.sizes import default_input_size
from lrmil_cli.encoders.spec import load_encoder
from lrmil_cli.encoders.vit import Encoder, EncoderInfo, check_grid, parse_layers
from lrmil_cli.errors import InputError, UsageError
from lrmil_cli.files.header import step


@pytest.fixture(scope="module")
def tiny():
    torch.manual_seed(0)
    return load_encoder("demo-vit")


def tiles(n=2, px=128, seed=0):
    return torch.randint(0, 256, (n, px, px, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("name", "prefix", "grid", "embedding"),
    [
        ("vit_tiny_patch16_224", 1, 16, "cls"),
        ("vit_small_patch14_reg4_dinov2", 5, 16, "cls"),
        ("vit_base_patch16_siglip_224", 0, 16, "mean"),
    ],
)
def test_tokens_summary_and_embedding_by_kind_of_encoder(name, prefix, grid, embedding):
    e = load_encoder(name, random_init=True)
    assert (e.num_prefix, e.grid, e.info.embedding, e.info.random_init) == (prefix, grid, embedding, True)
    with torch.inference_mode():
        out = e(tiles(), (0, 3))
        x = e.preprocess(tiles())
        h = e.model.norm_pre(e.model._pos_embed(e.model.patch_embed(x)))
        h = e.model.blocks[0](h)
    assert out["tokens"][3].shape == (2, grid, grid, e.width)
    spatial = h[:, prefix:]
    torch.testing.assert_close(out["tokens"][0].flatten(1, 2), spatial, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(out["summary"][0], h[:, 0] if prefix else spatial.mean(1), atol=1e-4, rtol=1e-4)


SMALL = {"embed_dim": 32, "depth": 3, "num_heads": 2}

#: architecture, arguments, prefix tokens, class token, default embedding's width, width of ``pool`` (None: it has none)
KINDS = {
    "class token": ("vit_tiny_patch16_224", {}, 1, True, 32),
    "registers": ("vit_small_patch14_reg4_dinov2", {}, 5, True, 32),
    "registers only": (
        "vit_tiny_patch16_224",
        {"class_token": False, "reg_tokens": 3, "global_pool": "avg"},
        3,
        False,
        32,
    ),
    "mean pooling": ("vit_tiny_patch16_224", {"class_token": False, "global_pool": "avg"}, 0, False, 32),
    "attention pooling": ("vit_base_patch16_siglip_224", {}, 0, False, 32),
    "no pooling": ("vit_tiny_patch16_224", {"global_pool": ""}, 1, True, None),
    "absolute and rotary": ("eva02_tiny_patch14_224", {}, 1, True, 32),
    "rotary": ("vit_small_patch16_dinov3", {}, 5, True, 32),
    "distilled": ("deit_tiny_distilled_patch16_224", {}, 2, True, 32),
    "hybrid": ("vit_tiny_r_s16_p8_224", {}, 1, True, 32),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_encoder_keeps_the_contract(kind):
    architecture, args, prefix, has_class, pool = KINDS[kind]
    if not timm.is_model(architecture):
        pytest.skip(f"this timm has no {architecture}")
    patch = 14 if "patch14" in architecture else 32 if kind == "hybrid" else 16
    model = create_vit(architecture, 4 * patch, {**SMALL, **args}).eval()
    info = EncoderInfo(kind, architecture, 4 * patch, (0.5,) * 3, (0.5,) * 3, embedding="cls" if has_class else "mean")
    e = Encoder(model, info)
    assert (e.num_prefix, e.has_class_token, e.grid, e.width, e.depth, e.embed_dim) == (prefix, has_class, 4, 32, 3, 32)
    seen = []
    hooks = [b.register_forward_hook(lambda m, i, o: seen.append(o)) for b in model.blocks]
    with torch.inference_mode():
        out = e(tiles(px=4 * patch), (0, 2))
        for h in hooks:
            h.remove()
        last = model.forward_features(e.preprocess(tiles(px=4 * patch)))
    for l in (0, 2):
        assert seen[l].shape == (2, prefix + 16, 32)
        assert torch.equal(out["tokens"][l].flatten(1, 2), seen[l][:, prefix:])
        assert torch.equal(out["summary"][l], seen[l][:, 0] if has_class else seen[l][:, prefix:].mean(1))
    torch.testing.assert_close(out["final"], last[:, 0] if has_class else last[:, prefix:].mean(1))
    for embedding, width in {
        "mean": 32,
        "cls": 32 if has_class else None,
        "cls+mean": 64 if has_class else None,
        "pool": pool,
    }.items():
        if width is None:
            with pytest.raises(UsageError, match="--embedding"):
                Encoder(model, replace(info, embedding=embedding))
        else:
            e = Encoder(model, replace(info, embedding=embedding))
            assert e.embed_dim == width and e(tiles())["final"].shape == (2, width)


def test_a_side_that_is_not_a_multiple_of_the_patch_would_lose_pixels():
    with pytest.raises(UsageError, match="--input-size 250 is not a multiple of its patch side, 16 px"):
        load_encoder("vit_tiny_patch16_224", random_init=True, input_size=250)


def test_embeddings(tiny):
    x = tiles()
    by = {k: load_encoder("demo-vit", embedding=k)(x)["final"] for k in ("cls", "mean", "cls+mean", "pool")}
    with torch.inference_mode():
        sequence = tiny.model.forward_features(tiny.preprocess(x))
    torch.testing.assert_close(by["cls"], sequence[:, 0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(by["mean"], sequence[:, 1:].mean(1), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(by["cls+mean"], torch.cat([by["cls"], by["mean"]], 1))


def test_blocks_after_the_last_layer_are_not_run_when_the_final_is_not_needed(tiny):
    ran = []
    hooks = [b.register_forward_hook(lambda *_, i=i: ran.append(i)) for i, b in enumerate(tiny.model.blocks)]
    tiny(tiles(), (0, 1), need_final=False)
    for h in hooks:
        h.remove()
    assert ran == [0, 1]


def test_rows_are_y_and_columns_are_x(tiny):
    plain = torch.full((1, 128, 128, 3), 255, dtype=torch.uint8)
    marked = plain.clone()
    marked[0, 0:32, 96:128] = 0  # top right: cell row 0, column 3 of 4
    with torch.inference_mode():
        change = (
            (tiny.model.patch_embed(tiny.preprocess(marked)) - tiny.model.patch_embed(tiny.preprocess(plain)))
            .abs()
            .sum(-1)
        )
    assert change.reshape(8, 8).nonzero().tolist() == [[0, 6], [0, 7], [1, 6], [1, 7]]


def test_tiles_of_another_size_are_resized_whole(tiny):
    assert tiny.preprocess(tiles(px=256)).shape == (2, 3, 128, 128)
    same = tiny.preprocess(tiles())
    torch.testing.assert_close(same, (tiles().permute(0, 3, 1, 2) / 255 - tiny.mean) / tiny.std)


def test_position_grid_is_interpolated_not_cut():
    small, large = load_encoder("demo-vit"), load_encoder("demo-vit", input_size=256)
    assert large.grid == 16
    own, other = small.model.pos_embed[0, 1:].reshape(8, 8, -1), large.model.pos_embed[0, 1:].reshape(16, 16, -1)
    corner = torch.nn.functional.interpolate(own.permute(2, 0, 1)[None], (16, 16), mode="bicubic", antialias=True)[
        0
    ].permute(1, 2, 0)
    torch.testing.assert_close(other, corner, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "native", "size"), [("eva02_tiny_patch14_224", 224, 112), ("vit_small_patch16_dinov3", 256, 128)]
)
def test_rotary_positions_of_another_size(name, native, size, tmp_path):
    if not timm.is_model(name):
        pytest.skip(f"this timm has no {name}")
    source = timm.create_model(name, num_classes=0, img_size=native, dynamic_img_size=True, **SMALL).eval()
    with torch.no_grad():
        for p in source.parameters():
            p.uniform_(-0.3, 0.3)
    info = EncoderInfo("rotary", name, size, (0.5,) * 3, (0.5,) * 3, arch_args=SMALL)
    e = build_encoder(info, source.state_dict(), "here")
    with torch.inference_mode():
        torch.testing.assert_close(
            e(tiles())["final"], source.forward_features(e.preprocess(tiles()))[:, 0], atol=1e-5, rtol=1e-4
        )


@pytest.mark.parametrize(
    ("patch", "native", "tile", "ratio", "size"),
    [
        (16, 224, 256, 4, 256),
        (14, 224, 256, 4, 224),
        (14, 518, 256, 4, 224),
        (16, 448, 256, 4, 256),
        (8, 224, 256, 4, 224),
        (16, 128, 128, 4, 128),
        (16, 224, 256, 2, 224),
    ],
)
def test_default_input_size(patch, native, tile, ratio, size):
    assert default_input_size(patch, native, tile, ratio) == size


@pytest.mark.parametrize(
    ("text", "layers"),
    [("lrmil", (0, 1, 10)), ("vitkd", (0, 1, 11)), ("0,-1", (0, 11)), ("3", (3,)), ("1,0,1", (0, 1))],
)
def test_layers(text, layers):
    assert parse_layers(text, 12) == layers


@pytest.mark.parametrize("text", ["12", "-13", "one", "", "0;1"])
def test_layers_that_there_are_not(text):
    with pytest.raises(UsageError, match="--layers"):
        parse_layers(text, 12)


def test_a_grid_that_does_not_divide_is_an_error_that_lists_sizes():
    e = load_encoder("vit_tiny_patch16_224", random_init=True, input_size=224)
    with pytest.raises(UsageError, match="--input-size .*256"):
        check_grid(e, 4)
    check_grid(e, 4, allow_fractional=True)
    check_grid(e, 2)


@pytest.mark.parametrize(("layers", "idle"), [("lrmil", {"blocks.5", "norm"}), ("vitkd", {"norm"})])
def test_stage_1_moves_the_blocks_it_should_and_no_others(tiny, layers, idle):
    settings = Stage1Settings(layers=parse_layers(layers, tiny.depth))
    learner = make_learner(tiny, None, settings, 4)
    targets = torch.randn(3, 16, len(settings.layers), tiny.width)
    loss, parts = batch_loss(learner, tiles(3), targets, torch.ones(3, 16, dtype=torch.bool), settings)
    loss.backward()
    still = {
        ".".join(n.split(".")[: 2 if n.startswith("blocks") else 1])
        for n, p in learner.encoder.model.named_parameters()
        if p.grad is None or not p.grad.abs().sum()
    }
    assert still == {i.replace("blocks.5", f"blocks.{tiny.depth - 1}") for i in idle}
    assert all(p.grad is None for p in tiny.parameters())
    assert set(parts) == {f"{a}_{l}" for a in ("loss", "cosine") for l in settings.layers}


def test_final_loss_trains_the_last_block_and_freezing_holds_the_first(tiny):
    settings = Stage1Settings(layers=(3,), final_loss="uniform", freeze_blocks=2)
    learner = make_learner(tiny, None, settings, 4)
    mask = torch.ones(2, 16, dtype=torch.bool)
    targets, final = torch.randn(2, 16, 1, tiny.width), torch.randn(2, 16, tiny.embed_dim)
    loss, _ = batch_loss(learner, tiles(), targets, mask, settings, final)
    loss.backward()
    moved = {n for n, p in learner.encoder.model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert any(n.startswith(f"blocks.{tiny.depth - 1}") for n in moved) and "norm.weight" in moved
    assert not any(n.startswith(("blocks.0.", "blocks.1.", "patch_embed", "cls_token", "pos_embed")) for n in moved)


def test_loss_is_zero_on_the_students_own_means(tiny):
    from lrmil_cli.distill.regions import region_means

    settings = Stage1Settings(layers=(0, 2))
    pooling = pooling_matrix(tiny.grid, 4)
    with torch.inference_mode():
        out = tiny(tiles(), settings.layers)
        targets = torch.stack([region_means(out["tokens"][l], pooling) for l in settings.layers], 2)
        learner = make_learner(tiny, None, settings, 4)
        loss, parts = batch_loss(learner, tiles(), targets, torch.ones(2, 16, dtype=torch.bool), settings)
    assert loss.item() == pytest.approx(0, abs=1e-10) and parts["cosine_0"].item() == pytest.approx(1, abs=1e-4)


def test_a_saved_encoder_is_the_same_encoder(tiny, tmp_path):
    save_encoder(tmp_path / "e.safetensors", tiny, [step("x", {}, {})], {})
    back = load_encoder(str(tmp_path / "e.safetensors"))
    assert back.digest() == tiny.digest()
    assert torch.equal(back(tiles())["final"], tiny(tiles())["final"])


def test_weights_that_share_one_block_of_memory_are_saved(tmp_path):
    state = create_vit("vit_tiny_patch16_224", 64, SMALL).state_dict()
    block = torch.cat([v.flatten() for v in state.values()])
    views = {
        k: part.view(v.shape) for (k, v), part in zip(state.items(), block.split([v.numel() for v in state.values()]))
    }
    e = build_encoder(EncoderInfo("x", "vit_tiny_patch16_224", 64, (0.5,) * 3, (0.5,) * 3, arch_args=SMALL), views, "x")
    save_encoder(tmp_path / "e.safetensors", e, [step("x", {}, {})], {})
    assert load_encoder(str(tmp_path / "e.safetensors")).digest() == e.digest()


def test_demo_vit_says_what_it_is(tiny):
    from lrmil_cli.encoders.spec import DEMO_VIT

    assert DEMO_VIT.stat().st_size < 5e6
    assert "demonstration" in tiny.info.note and tiny.info.license == "Apache-2.0"


# ---- specs -------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("spec", "error", "says"),
    [
        ("vit_nothing", UsageError, "no such timm architecture"),
        ("resnet18", UsageError, "not a plain ViT"),
        ("swin_tiny_patch4_window7_224", UsageError, "not a plain ViT"),
        ("cait_xxs24_224", UsageError, "not a plain ViT"),
        ("mixer_s16_224", UsageError, "not a plain ViT"),
        ("vit_tiny_patch16_224@/no/file.safetensors", InputError, "no such weights file"),
        ("/no/file.safetensors", InputError, "no such file"),
    ],
)
def test_specs_that_cannot_work(spec, error, says):
    with pytest.raises(error, match=says):
        load_encoder(spec, random_init=not ("@" in spec or spec.startswith("/")))


def test_encode_batch_size_changes_nothing(tiny):
    x = tiles(7)
    with torch.inference_mode():
        whole = tiny(x)["final"]
        parts = torch.cat([tiny(x[i : i + 3])["final"] for i in range(0, 7, 3)])
    assert np.abs((whole - parts).numpy()).max() < 1e-5


@pytest.mark.parametrize("view", range(8))
def test_augmentation_turns_tiles_and_their_cells_together(view):
    from lrmil_cli.distill.region_batches import turn, turn_cells
    from lrmil_cli.distill.regions import region_means

    tiles = torch.rand(2, 12, 12, 3)
    pooling = pooling_matrix(12, 4)
    cells = region_means(tiles, pooling)
    torch.testing.assert_close(region_means(turn(tiles, view), pooling), turn_cells(cells, view), atol=1e-6, rtol=1e-5)
    mask = torch.rand(2, 16) > 0.5
    assert turn_cells(mask, view).sum() == mask.sum()
    assert (view == 0) == torch.equal(turn(tiles, view), tiles)


def test_absolute_spec_names_the_same_encoder_from_anywhere(tmp_path, monkeypatch):
    from lrmil_cli.encoders.spec import absolute_spec

    monkeypatch.chdir(tmp_path)
    (tmp_path / "w.bin").touch()
    (tmp_path / "e.safetensors").touch()
    (tmp_path / "folder").mkdir()
    assert absolute_spec("uni@w.bin") == f"uni@{tmp_path / 'w.bin'}"
    assert absolute_spec("e.safetensors") == f"{tmp_path / 'e.safetensors'}"
    assert absolute_spec("local-dir:folder") == f"local-dir:{tmp_path / 'folder'}"
    for name in ("uni", "demo-vit", "vit_small_patch16_224"):
        (tmp_path / name).mkdir()  # a name wins over a folder of that name
    for spec in ("demo-vit", "uni", "hf-hub:ORG/NAME@REV", "vit_small_patch16_224"):
        assert absolute_spec(spec) == spec


def test_paths_may_hold_an_at_sign(tiny, tmp_path, monkeypatch):
    from lrmil_cli.encoders.spec import absolute_spec

    monkeypatch.chdir(tmp_path)
    (tmp_path / "me@lab").mkdir()
    save_encoder("me@lab/e.safetensors", tiny, [step("x", {}, {})], {})
    assert load_encoder("me@lab/e.safetensors").digest() == tiny.digest()
    assert absolute_spec("me@lab/e.safetensors") == f"{tmp_path / 'me@lab' / 'e.safetensors'}"
    assert absolute_spec("uni@me@lab/e.safetensors") == f"uni@{tmp_path / 'me@lab' / 'e.safetensors'}"


def test_paths_of_windows_come_through_whole():
    with pytest.raises(InputError, match=r"^C:\\lab\\w\.safetensors: no such weights file"):
        load_encoder("vit_tiny_patch16_224@C:\\lab\\w.safetensors")
    with pytest.raises(InputError, match=r"^C:\\lab\\e\.safetensors: no such file"):
        load_encoder("C:\\lab\\e.safetensors")
    with pytest.raises(InputError, match=r"C:\\lab\\vit.*config\.json: no such file"):
        load_encoder("local-dir:C:\\lab\\vit")
    with pytest.raises(UsageError, match="local weights go with an alias"):
        load_encoder("hf-hub:some/page@C:\\lab\\w.bin")
