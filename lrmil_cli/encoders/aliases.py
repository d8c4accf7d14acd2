"""Published pathology encoders by short name (encoders/README 5): where they are, how timm builds them, their licence.

A row is plain data, so that this module needs neither torch nor timm. Classes among the arguments stand by their name;
:func:`lrmil_cli.encoders.build.create_vit` resolves them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lrmil_cli.encoders.sizes import default_input_size

if TYPE_CHECKING:
    from lrmil_cli.encoders.vit import EncoderInfo

#: Architecture of CONCH, which timm does not have: :mod:`lrmil_cli.encoders.conch`.
CONCH = "conch"

RGB = tuple[float, float, float]

IMAGENET: tuple[RGB, RGB] = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
OPENAI_CLIP: tuple[RGB, RGB] = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
HALF: tuple[RGB, RGB] = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
OPTIMUS: tuple[RGB, RGB] = ((0.707223, 0.578729, 0.703617), (0.211883, 0.230117, 0.177517))
#: Lunit's training statistics; the config of the timm port carries ImageNet's.
LUNIT: tuple[RGB, RGB] = ((0.70322989, 0.53606487, 0.66096631), (0.21716536, 0.26081574, 0.20723464))

SWIGLU = {"mlp_layer": "SwiGLUPacked", "act_layer": "SiLU"}
NC_ND = "CC-BY-NC-ND-4.0"


@dataclass(frozen=True)
class Alias:
    """One published encoder.

    Attributes:
        hub: ORG/NAME on the Hugging Face hub; architecture, arch_args: for ``timm.create_model`` (JSON types only).
        width, blocks, patch, native: token width D, blocks L, patch side p and native input side in px.
        rgb: mean and std of RGB in 0..1 that it was trained with.
        access: ``gated`` (account, accepted terms, token) or ``open``.
        embedding: what its authors use for MIL, where that is not the class token.
    """

    name: str
    hub: str
    architecture: str
    width: int
    blocks: int
    patch: int
    rgb: tuple[RGB, RGB]
    license: str
    access: str = "gated"
    native: int = 224
    embedding: str = "cls"
    arch_args: dict[str, Any] = field(default_factory=dict)

    @property
    def page(self) -> str:
        return f"https://huggingface.co/{self.hub}"


def _kaiko(name: str, architecture: str, port: str, width: int, blocks: int, patch: int) -> Alias:
    hub = f"1aurent/{port}.kaiko_ai_towards_large_pathology_fms"
    return Alias(name, hub, architecture, width, blocks, patch, HALF, "Kaiko non-commercial", "open")


_UNI = {"init_values": 1e-5}
_UNI2_SIZE = {"depth": 24, "num_heads": 24, "embed_dim": 1536, "mlp_ratio": 2.66667 * 2}
_UNI2 = {**_UNI2_SIZE, "init_values": 1e-5, "no_embed_class": True, "reg_tokens": 8, **SWIGLU}
_VIRCHOW = {"init_values": 1e-5, "mlp_ratio": 5.3375, "global_pool": "", **SWIGLU}
_VIRCHOW2 = {**_VIRCHOW, "reg_tokens": 4}
_OPTIMUS = {"init_values": 1e-5, "global_pool": "token"}
_H0_MINI = {"mlp_ratio": 2.66667 * 2, "init_values": 1e-5, **SWIGLU}
_GIGAPATH = {"patch_size": 16, "embed_dim": 1536, "depth": 40, "num_heads": 24, "mlp_ratio": 5.33334}

_HUGE, _GIANT, _GIANT_DINO = "vit_huge_patch14_224", "vit_giant_patch14_224", "vit_giant_patch14_dinov2"
_BASE_REG4, _GIANT_REG4 = "vit_base_patch14_reg4_dinov2", "vit_giant_patch14_reg4_dinov2"
_PHIKON, _LUNIT = "1aurent/vit_base_patch16_224.owkin_pancancer", "1aurent/vit_small_patch8_224.lunit_dino"
_APACHE, _RESEARCH, _BOTH = "Apache-2.0", "Apache-2.0, research use", "cls+mean"

_ROWS = (
    Alias("conch", "MahmoodLab/conch", CONCH, 768, 12, 16, OPENAI_CLIP, NC_ND, native=448, embedding="pool"),
    Alias("uni", "MahmoodLab/uni", "vit_large_patch16_224", 1024, 24, 16, IMAGENET, NC_ND, arch_args=_UNI),
    Alias("uni2-h", "MahmoodLab/UNI2-h", _GIANT, 1536, 24, 14, IMAGENET, NC_ND, arch_args=_UNI2),
    Alias("virchow", "paige-ai/Virchow", _HUGE, 1280, 32, 14, IMAGENET, _APACHE, embedding=_BOTH, arch_args=_VIRCHOW),
    Alias("virchow2", "paige-ai/Virchow2", _HUGE, 1280, 32, 14, IMAGENET, NC_ND, embedding=_BOTH, arch_args=_VIRCHOW2),
    Alias("h-optimus-0", "bioptimus/H-optimus-0", _GIANT_REG4, 1536, 40, 14, OPTIMUS, _APACHE, arch_args=_OPTIMUS),
    Alias("h-optimus-1", "bioptimus/H-optimus-1", _GIANT_REG4, 1536, 40, 14, OPTIMUS, NC_ND, arch_args=_OPTIMUS),
    Alias("h0-mini", "bioptimus/H0-mini", _BASE_REG4, 768, 12, 14, OPTIMUS, NC_ND, arch_args=_H0_MINI),
    Alias(
        "gigapath", "prov-gigapath/prov-gigapath", _GIANT_DINO, 1536, 40, 16, IMAGENET, _RESEARCH, arch_args=_GIGAPATH
    ),
    Alias("phikon", _PHIKON, "vit_base_patch16_224", 768, 12, 16, IMAGENET, "Owkin non-commercial", "open"),
    _kaiko("kaiko-vits16", "vit_small_patch16_224", "vit_small_patch16_224", 384, 12, 16),
    _kaiko("kaiko-vits8", "vit_small_patch8_224", "vit_small_patch8_224", 384, 12, 8),
    _kaiko("kaiko-vitb16", "vit_base_patch16_224", "vit_base_patch16_224", 768, 12, 16),
    _kaiko("kaiko-vitb8", "vit_base_patch8_224", "vit_base_patch8_224", 768, 12, 8),
    _kaiko("kaiko-vitl14", "vit_large_patch14_reg4_dinov2", "vit_large_patch14_reg4_224", 1024, 24, 14),
    Alias("lunit-vits8", _LUNIT, "vit_small_patch8_224", 384, 12, 8, LUNIT, "Lunit non-commercial", "open"),
)

ALIASES: dict[str, Alias] = {a.name: a for a in _ROWS}


def find_alias(name: str) -> Alias | None:
    """The alias that ``name`` means: its short name, or its hub name as ``hf-hub:ORG/NAME``; the hub ignores case."""
    wanted = name.lower()
    return next((a for a in ALIASES.values() if wanted in (a.name, f"hf-hub:{a.hub.lower()}")), None)


def alias_table(ratio: int = 4, tile_px: int = 256) -> list[dict[str, Any]]:
    """All aliases as plain records; ``input_size`` is the default input side in px for ``ratio`` and ``tile_px``."""
    return [
        {
            "name": a.name,
            "hub": f"hf-hub:{a.hub}",
            "width": a.width,
            "blocks": a.blocks,
            "patch": a.patch,
            "input_size": default_input_size(a.patch, a.native, tile_px, ratio),
            "embedding": a.embedding,
            "license": a.license,
            "access": a.access,
        }
        for a in ALIASES.values()
    ]


def joint_licence(infos: Sequence[EncoderInfo]) -> str:
    """The licence of what is derived from several encoders: all of theirs hold."""
    return " and ".join(dict.fromkeys(i.license for i in infos))


def licence_warning(info: EncoderInfo) -> str | None:
    """What the licence of an encoder's base forbids to do with what is derived from it; None where it forbids nothing.

    A distilled encoder, and every model that holds one, is a derivative of its base (encoders/README 6).
    """
    words = re.split(r"[^A-Z]+", info.license.upper())
    if "ND" in words:
        forbidden = "passed on"
    elif "NC" in words or {"NON", "COMMERCIAL"} <= set(words):
        forbidden = "used commercially"
    else:
        return None
    base = info.base or info.name
    return f"{base} is under {info.license}: the output holds weights derived from it and must not be {forbidden}"
