"""Published encoders: the table, and loading them from files, folders and the hub, on stand-ins with random weights."""

import json
from dataclasses import replace

import huggingface_hub
import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.layers import SwiGLUPacked

from lrmil_cli.encoders import aliases
from lrmil_cli.encoders.aliases import ALIASES, Alias, alias_table, find_alias, licence_warning
from lrmil_cli.encoders.build import create_vit
from lrmil_cli.encoders.encoder_file import load_encoder_file, save_encoder
from lrmil_cli.encoders.sizes import default_input_size
from lrmil_cli.encoders.spec import load_encoder
from lrmil_cli.encoders.vit import Encoder, EncoderInfo, info_from_json
from lrmil_cli.errors import InputError, MachineError, UsageError
from lrmil_cli.files.header import step

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = ((0.5,) * 3,) * 2
OPTIMUS = ((0.707223, 0.578729, 0.703617), (0.211883, 0.230117, 0.177517))

#: As published: width, blocks, heads, patch, native, prefix tokens, input side for ratio 4, mean and std, millions of
#: parameters.
PUBLISHED = {
    "conch": (
        768,
        12,
        12,
        16,
        448,
        1,
        256,
        ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
        None,
    ),
    "uni": (1024, 24, 16, 16, 224, 1, 256, IMAGENET, 303),
    "uni2-h": (1536, 24, 24, 14, 224, 9, 224, IMAGENET, 681),
    "virchow": (1280, 32, 16, 14, 224, 1, 224, IMAGENET, 631),
    "virchow2": (1280, 32, 16, 14, 224, 5, 224, IMAGENET, 631),
    "h-optimus-0": (1536, 40, 24, 14, 224, 5, 224, OPTIMUS, 1135),
    "h-optimus-1": (1536, 40, 24, 14, 224, 5, 224, OPTIMUS, 1135),
    "h0-mini": (768, 12, 12, 14, 224, 5, 224, OPTIMUS, 86),
    "gigapath": (1536, 40, 24, 16, 224, 1, 256, IMAGENET, 1135),
    "phikon": (768, 12, 12, 16, 224, 1, 256, IMAGENET, 86),
    "kaiko-vits16": (384, 12, 6, 16, 224, 1, 256, HALF, 21.7),
    "kaiko-vits8": (384, 12, 6, 8, 224, 1, 224, HALF, 21.7),
    "kaiko-vitb16": (768, 12, 12, 16, 224, 1, 256, HALF, 86),
    "kaiko-vitb8": (768, 12, 12, 8, 224, 1, 224, HALF, 86),
    "kaiko-vitl14": (1024, 24, 16, 14, 224, 5, 224, HALF, 304),
    "lunit-vits8": (
        384,
        12,
        6,
        8,
        224,
        1,
        224,
        ((0.70322989, 0.53606487, 0.66096631), (0.21716536, 0.26081574, 0.20723464)),
        21.7,
    ),
}


def tiles(n=2, px=64, seed=0):
    return torch.randint(0, 256, (n, px, px, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def randomize(model, seed=0):
    """Random values everywhere: fresh layer scales of 1e-5 would hide the blocks."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.rand(p.shape, generator=generator) * 0.6 - 0.3)
    return model.eval()


def shrink(monkeypatch, name, **more) -> Alias:
    """The row ``name`` with the same kinds of arguments but few and narrow blocks."""
    args = {**ALIASES[name].arch_args, "embed_dim": 32, "depth": 2, "num_heads": 2, **more}
    small = replace(ALIASES[name], arch_args=args, width=32, blocks=2)
    monkeypatch.setitem(aliases.ALIASES, name, small)
    return small


def published_model(alias: Alias, **more):
    """As the model cards build it: timm at the native size with a dynamic grid, classes given as classes."""
    classes = {"SwiGLUPacked": SwiGLUPacked, "SiLU": torch.nn.SiLU}
    args = {k: classes.get(v, v) for k, v in alias.arch_args.items()}
    return randomize(
        timm.create_model(
            alias.architecture, num_classes=0, img_size=alias.native, dynamic_img_size=True, **args, **more
        )
    )


# ---- the table ---------------------------------------------------------------------
@pytest.mark.parametrize("name", PUBLISHED)
def test_architectures_are_those_of_the_table(name):
    width, blocks, heads, patch, native, prefix, size, (mean, std), millions = PUBLISHED[name]
    a = ALIASES[name]
    assert (a.width, a.blocks, a.patch, a.native, a.rgb) == (width, blocks, patch, native, (mean, std))
    assert default_input_size(a.patch, a.native, 256, 4) == size
    with torch.device("meta"):  # giants must not be allocated
        model = create_vit(a.architecture, size, a.arch_args)
        info = info_from_json(
            json.loads(json.dumps(EncoderInfo(name, a.architecture, size, mean, std, arch_args=a.arch_args).as_json())),
            name,
        )
        encoder = Encoder(model, info)
    assert info.arch_args == a.arch_args
    assert (encoder.width, encoder.depth, encoder.num_prefix, encoder.grid, encoder.embed_dim) == (
        width,
        blocks,
        prefix,
        size // patch,
        width,
    )
    assert encoder.has_class_token and encoder.grid % 4 == 0
    assert model.blocks[0].attn.num_heads == heads and model.patch_embed.proj.weight.shape[-1] == patch
    if millions:
        assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, rel=0.01)


def test_every_row_is_tested_and_shown():
    assert set(ALIASES) == set(PUBLISHED) == {r["name"] for r in alias_table()}
    assert {r["name"]: r["input_size"] for r in alias_table()} == {n: row[6] for n, row in PUBLISHED.items()}
    assert {n for n, a in ALIASES.items() if a.embedding != "cls"} == {"conch", "virchow", "virchow2"}


def test_names_of_the_hub_mean_the_same_row():
    assert find_alias("hf-hub:MahmoodLab/UNI") is find_alias("uni") is ALIASES["uni"]
    assert find_alias("hf-hub:paige-ai/Virchow") is ALIASES["virchow"]
    assert find_alias("vit_small_patch16_224") is None and find_alias("MahmoodLab/uni") is None


def test_the_list_of_encoders_fits_a_terminal(lrmil):
    said = lrmil("info", "--encoders")
    lines = said.out.splitlines()
    assert said.code == 0 and max(map(len, lines)) <= 80
    for r in lrmil("info", "--encoders", "--json").records:
        at = next(i for i, line in enumerate(lines) if line.split()[:1] == [r["name"]])
        assert lines[at].split()[1:5] == [str(r[k]) for k in ("width", "blocks", "patch", "input_size")]
        assert r["license"] in lines[at] and r["access"] in lines[at] and r["hub"] in lines[at + 1]
    assert lrmil("info").code == 2 and lrmil("info", "--encoders", "x.svs").code == 2


# ---- local weights -----------------------------------------------------------------
@pytest.mark.parametrize(
    "name",
    [
        "uni",
        "uni2-h",
        "virchow",
        "virchow2",
        "h-optimus-0",
        "h0-mini",
        "gigapath",
        "kaiko-vits8",
        "kaiko-vitl14",
        "lunit-vits8",
        "phikon",
    ],
)
def test_local_weights_get_the_alias_s_architecture_and_preprocessing(name, monkeypatch, tmp_path):
    small = shrink(monkeypatch, name)
    *_, prefix, size, (mean, std), _ = PUBLISHED[name]
    source = published_model(small)
    torch.save(source.state_dict(), tmp_path / "weights.bin")
    e = load_encoder(f"{name}@{tmp_path / 'weights.bin'}")
    assert (e.info.name, e.info.image_size, e.info.base, e.info.license) == (
        f"{name}@weights.bin",
        size,
        f"hf-hub:{small.hub}",
        small.license,
    )
    x = tiles(px=size)
    with torch.inference_mode():
        rgb = (x.permute(0, 3, 1, 2) / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
        expected = source.forward_features(rgb)  # timm interpolates the grid itself
        first = source.blocks[0](source.norm_pre(source._pos_embed(source.patch_embed(rgb))))
        out = e(x, (0,))
    side = size // small.patch
    assert out["tokens"][0].shape == (2, side, side, 32)
    torch.testing.assert_close(out["tokens"][0].flatten(1, 2), first[:, prefix:], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(out["summary"][0], first[:, 0], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(out["final"], expected[:, 0], atol=1e-5, rtol=1e-4)
    both = load_encoder(f"{name}@{tmp_path / 'weights.bin'}", embedding="cls+mean")
    assert both.embed_dim == 64
    torch.testing.assert_close(
        both(x)["final"], torch.cat([expected[:, 0], expected[:, prefix:].mean(1)], 1), atol=1e-5, rtol=1e-4
    )


def test_a_plain_timm_name_keeps_timm_s_mean_and_the_digest_tells_them_apart(monkeypatch, tmp_path):
    small = shrink(monkeypatch, "phikon", embed_dim=192, num_heads=3, depth=12)
    monkeypatch.setitem(aliases.ALIASES, "phikon", replace(small, architecture="vit_tiny_patch16_224", arch_args={}))
    save_file(timm.create_model("vit_tiny_patch16_224", num_classes=0).state_dict(), tmp_path / "w.safetensors")
    ours, plain = (load_encoder(f"{n}@{tmp_path / 'w.safetensors'}") for n in ("phikon", "vit_tiny_patch16_224"))
    assert ours.info.mean == IMAGENET[0] and plain.info.mean == (0.5, 0.5, 0.5) == plain.info.std
    assert ours.digest() != plain.digest()
    assert not torch.equal(ours(tiles())["final"], plain(tiles())["final"])


def test_an_encoder_with_classes_among_its_arguments_is_saved_and_rebuilt(monkeypatch, tmp_path):
    small = shrink(monkeypatch, "uni2-h")
    save_file(published_model(small).state_dict(), tmp_path / "w.safetensors")
    e = load_encoder(f"uni2-h@{tmp_path / 'w.safetensors'}")
    save_encoder(tmp_path / "e.safetensors", e, [step("x", {}, {})], {})
    back = load_encoder_file(tmp_path / "e.safetensors").eval()
    assert back.info.arch_args["mlp_layer"] == "SwiGLUPacked" and back.digest() == e.digest()
    assert torch.equal(back(tiles())["final"], e(tiles())["final"])


def test_weights_of_another_architecture_are_refused(monkeypatch, tmp_path):
    shrink(monkeypatch, "virchow2")
    save_file(published_model(shrink(monkeypatch, "virchow")).state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(InputError, match="missing: reg_token; unexpected: none"):
        load_encoder(f"virchow2@{tmp_path / 'w.safetensors'}")
    save_file(
        {**published_model(shrink(monkeypatch, "virchow2")).state_dict(), "pos_embed": torch.zeros(1, 259, 32)},
        tmp_path / "w.safetensors",
    )
    with pytest.raises(InputError, match="do not fit the architecture.*pos_embed"):
        load_encoder(f"virchow2@{tmp_path / 'w.safetensors'}")


def test_the_authors_embedding_is_said_and_not_taken(monkeypatch, tmp_path):
    save_file(published_model(shrink(monkeypatch, "virchow")).state_dict(), tmp_path / "w.safetensors")
    spec = f"virchow@{tmp_path / 'w.safetensors'}"
    assert (load_encoder(spec).info.embedding, load_encoder(spec).info.note) == (
        "cls",
        "its authors use --embedding cls+mean for MIL",
    )
    assert load_encoder(spec, embedding="cls+mean").info.note == ""
    with pytest.raises(UsageError, match="no pooling of its own"):
        load_encoder(spec, embedding="pool")


def test_random_weights_of_an_alias(monkeypatch):
    shrink(monkeypatch, "uni2-h")
    e = load_encoder("uni2-h", random_init=True)
    assert e.info.random_init and "random weights" in e.info.note and e.num_prefix == 9
    for spec in ("uni@w.bin", "hf-hub:MahmoodLab/uni", "local-dir:x"):
        with pytest.raises(UsageError, match="--random-init"):
            load_encoder(spec, random_init=True)


def test_an_unknown_name_is_told_the_aliases():
    with pytest.raises(UsageError, match="no such timm architecture, alias or file.*conch, uni, uni2-h"):
        load_encoder("uni3")


# ---- folders -----------------------------------------------------------------------
@pytest.fixture
def folder(tmp_path):
    """A folder as timm writes it, and the model in it."""
    from timm.models import save_for_hf

    model = randomize(timm.create_model("test_vit", num_classes=0))
    save_for_hf(model, tmp_path / "mine", safe_serialization=True)
    return tmp_path / "mine", model


def test_a_folder_with_config_and_weights(folder):
    path, model = folder
    e = load_encoder(f"local-dir:{path}", tile_px=160)
    assert (e.info.name, e.info.architecture, e.info.image_size, e.grid) == ("local-dir:mine", "test_vit", 256, 16)
    e = load_encoder(str(path), input_size=160)
    cfg = json.loads((path / "config.json").read_text())["pretrained_cfg"]
    assert e.info.mean == tuple(cfg["mean"])
    x = tiles(px=160)
    with torch.inference_mode():
        rgb = (x.permute(0, 3, 1, 2) / 255 - e.mean) / e.std
        torch.testing.assert_close(e(x)["final"], model.forward_features(rgb)[:, 0], atol=1e-5, rtol=1e-4)


def test_a_folder_s_own_arguments_count_and_the_size_is_ours(folder):
    path, _ = folder
    config = json.loads((path / "config.json").read_text())
    args = {"depth": 3, "img_size": 64, "num_classes": 5, "dynamic_img_size": True, "checkpoint_path": "/no/such/file"}
    (path / "config.json").write_text(json.dumps({**config, "model_args": args}))
    with pytest.raises(InputError, match="unexpected: blocks.3"):
        load_encoder(f"local-dir:{path}")
    (path / "config.json").write_text(json.dumps({**config, "model_args": {**args, "depth": 6}}))
    assert load_encoder(f"local-dir:{path}", input_size=96).info.arch_args == {"depth": 6}


def test_folders_that_cannot_work(folder, tmp_path):
    path, _ = folder
    text = (path / "config.json").read_text()
    for broken, says in (
        ("{", "not a config of timm"),
        ('{"architectures": ["Dinov2Model"]}', "must be converted"),
        ("[]", "not a config of timm"),
    ):
        (path / "config.json").write_text(broken)
        with pytest.raises(InputError, match=says):
            load_encoder(f"local-dir:{path}")
    (path / "config.json").write_text(text)
    (path / "model.safetensors").unlink()
    with pytest.raises(InputError, match="no weights in this folder"):
        load_encoder(f"local-dir:{path}")
    with pytest.raises(InputError, match="config.json: no such file"):
        load_encoder(f"local-dir:{tmp_path}")


def test_without_mean_and_std_imagenet_s_are_taken_with_a_warning(folder):
    path, _ = folder
    (path / "config.json").write_text('{"architecture": "test_vit"}')
    warnings = []
    assert load_encoder(f"local-dir:{path}", warn=warnings.append).info.mean == IMAGENET[0]
    assert len(warnings) == 1 and "ImageNet" in warnings[0]


# ---- the hub -----------------------------------------------------------------------
def hub(monkeypatch, config=None, state=None, error=None):
    """Let timm's hub functions answer with these; returns the names that were asked for."""
    asked = []

    def answer(value):
        def get(name, *args, **kwargs):
            asked.append(name)
            if error is not None:
                raise error
            return value

        return get

    monkeypatch.setattr("lrmil_cli.encoders.hub.no_answer", lambda: None)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", answer(None))
    monkeypatch.setattr(timm.models, "load_model_config_from_hf", answer(config))
    monkeypatch.setattr(timm.models, "load_state_dict_from_hf", answer(state))
    return asked


@pytest.mark.parametrize("spec", ["virchow2", "hf-hub:paige-ai/Virchow2"])
def test_a_known_page_gets_what_its_config_cannot_carry(spec, monkeypatch):
    small = shrink(monkeypatch, "virchow2")
    own = {
        "embed_dim": 32,
        "depth": 2,
        "num_heads": 2,
        "init_values": 1e-5,
        "mlp_ratio": 5.3375,
        "global_pool": "",
        "reg_tokens": 4,
        "img_size": 224,
        "num_classes": 0,
        "dynamic_img_size": True,
    }
    asked = hub(
        monkeypatch,
        ({"mean": HALF[0], "std": HALF[1]}, "vit_huge_patch14_224", own),
        published_model(small).state_dict(),
    )
    e = load_encoder(spec)
    assert set(asked) == {"paige-ai/Virchow2"} and e.info.name == spec
    assert e.num_prefix == 5 and e.info.arch_args["mlp_layer"] == "SwiGLUPacked" and e.info.mean == IMAGENET[0]


def test_an_unknown_page_goes_by_its_config_strictly(monkeypatch):
    state = randomize(timm.create_model("test_vit", num_classes=10)).state_dict()
    about = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "input_size": [3, 160, 160], "license": "mit"}
    asked = hub(monkeypatch, (about, "test_vit", {"num_classes": 10}), state)
    e = load_encoder("hf-hub:some/page@abc", input_size=96)
    assert set(asked) == {"some/page@abc"} and (e.info.mean, e.info.license, e.grid) == ((0.1, 0.2, 0.3), "mit", 6)
    del state["norm.weight"]
    with pytest.raises(InputError, match="missing: norm.weight"):
        load_encoder("hf-hub:some/page@abc")
    with pytest.raises(UsageError, match="local weights go with an alias"):
        load_encoder("hf-hub:some/page@/tmp/weights.bin")


class GatedRepoError(Exception):
    """The hub client's own needs a response to be made."""


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("conch", ["https://huggingface.co/MahmoodLab/conch", "hf auth login", "conch@pytorch_model.bin"]),
        (
            "hf-hub:MahmoodLab/CONCH",
            ["https://huggingface.co/MahmoodLab/conch", "hf auth login", "conch@pytorch_model.bin"],
        ),
        ("uni", ["https://huggingface.co/MahmoodLab/uni", "hf auth login", "uni@FILE"]),
        ("kaiko-vits16", ["https://huggingface.co/1aurent/vit_small", "kaiko-vits16@FILE"]),
        ("hf-hub:some/page", ["https://huggingface.co/some/page", "hf auth login", "local-dir:PATH"]),
    ],
)
def test_weights_that_cannot_be_had_say_how_to_get_them(spec, says, monkeypatch):
    hub(monkeypatch, error=GatedRepoError("403"))
    with pytest.raises(MachineError) as e:
        load_encoder(spec)
    assert e.value.exit_code == 5 and "GatedRepoError" in str(e.value) and all(s in str(e.value) for s in says)
    assert ("ask for access" in str(e.value)) == (spec != "kaiko-vits16" and spec != "hf-hub:some/page")


def test_a_gated_encoder_ends_a_command_with_5(monkeypatch, lrmil, slide, tmp_path):
    hub(monkeypatch, error=GatedRepoError("403"))
    assert lrmil("tile", slide, "--mpp", "2.0", "-o", tmp_path / "t.csv").code == 0
    said = lrmil("embed", tmp_path / "t.csv", "--encoder", "uni2-h", "-o", tmp_path / "f.h5")
    assert (
        said.code == 5
        and said.err.count("error:") == 1
        and "hf auth login" in said.err
        and not (tmp_path / "f.h5").exists()
    )


def test_local_weights_go_with_an_alias_even_by_its_hub_name(monkeypatch, tmp_path):
    save_file(published_model(shrink(monkeypatch, "uni")).state_dict(), tmp_path / "w.safetensors")
    asked = hub(monkeypatch, error=AssertionError("no network"))
    by_hub, by_name = (load_encoder(f"{n}@{tmp_path / 'w.safetensors'}") for n in ("hf-hub:MahmoodLab/UNI", "uni"))
    (tmp_path / "w.safetensors").rename(tmp_path / "model.safetensors")
    by_folder = load_encoder(f"uni@{tmp_path}")
    assert by_hub.digest() == by_name.digest() == by_folder.digest() and not asked


# ---- licences ----------------------------------------------------------------------
@pytest.mark.parametrize(
    ("license", "says"),
    [
        ("CC-BY-NC-ND-4.0", "must not be passed on"),
        ("cc-by-nc-4.0", "must not be used commercially"),
        ("Owkin non-commercial", "must not be used commercially"),
        ("Apache-2.0", None),
        ("unknown", None),
        ("mit", None),
    ],
)
def test_what_licences_forbid(license, says):
    info = EncoderInfo("lr.safetensors", "x", 224, HALF[0], HALF[1], license=license, base="hf-hub:a/b")
    text = licence_warning(info)
    assert text is None if says is None else says in text and "hf-hub:a/b" in text and license in text
