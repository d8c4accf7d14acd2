"""What an encoder spec stands for, before a model is built: architecture, weights, preprocessing, licence."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lrmil_cli.encoders.aliases import CONCH, Alias, find_alias
from lrmil_cli.encoders.build import OWN_ARGS, unknown_architecture
from lrmil_cli.encoders.checkpoint import MARK, State, find_trunk, read_state, unwrapped
from lrmil_cli.encoders.hub import folder_config, hub_config, hub_file, hub_state
from lrmil_cli.encoders.weights import conch_state
from lrmil_cli.errors import UsageError


@dataclass(frozen=True)
class Source:
    """What a spec stands for, before a model is built.

    Attributes:
        name, architecture, arch_args, base, license: as in :class:`lrmil_cli.encoders.vit.EncoderInfo`.
        rgb: mean and std; None where nobody says. native: input side in px; patch: side in px, None if not known yet.
        tensors: the weights; None for random ones, or for those that timm gets itself.
        choice: which of several encoders in a checkpoint they are. embedding: what its authors use for MIL.
    """

    name: str
    architecture: str
    rgb: tuple[Any, Any] | None
    native: int
    patch: int | None
    tensors: State | None
    base: str
    license: str
    arch_args: dict[str, Any] = field(default_factory=dict)
    choice: str = ""
    embedding: str = "cls"


def find_source(spec: str, random_init: bool = False) -> Source:
    """What ``spec`` stands for; weights of files and of the hub are read here, those of plain timm names are not.

    Raises:
        UsageError, InputError, MachineError: as :func:`lrmil_cli.encoders.spec.load_encoder`.
    """
    import timm

    name, _, file = spec.partition("@")
    alias = find_alias(name)
    if alias is not None:
        return _alias(alias, name, Path(file) if file else None, random_init)
    if spec.startswith("local-dir:"):
        return _folder(Path(spec.removeprefix("local-dir:")))
    if spec.startswith("hf-hub:"):
        if "/" in file or "\\" in file:  # what follows the @ of a page is a revision of it
            raise UsageError(
                f"encoder {spec}: local weights go with an alias or a timm name, as NAME@FILE, or into a folder with "
                "config.json, as local-dir:PATH"
            )
        return _timm_config(spec, *hub_config(spec), hub_state(spec))
    if timm.is_model(name):
        cfg = timm.get_pretrained_cfg(name)
        tensors = read_state(Path(file)) if file else None
        source = _timm_config(
            f"{name}@{Path(file).name}" if file else name, cfg.to_dict() if cfg else {}, name, {}, tensors
        )
        return replace(source, base=name)
    if Path(spec).is_dir():
        return _folder(Path(spec))
    if Path(spec).is_file():
        raise weights_alone(spec)
    raise unknown_architecture(name)


def weights_alone(spec: str) -> UsageError:
    """The error for weights that do not say of which architecture they are."""
    return UsageError(
        f"encoder {spec}: weights alone do not say of which architecture they are; name it, as NAME@{spec} "
        "(NAME: an alias of `lrmil info --encoders`, or an architecture of timm such as vit_small_patch14_dinov2)"
    )


def _alias(alias: Alias, name: str, file: Path | None, random_init: bool) -> Source:
    """``name`` is the alias or its hub name; ``file`` the local weights."""
    architecture, args, tensors = alias.architecture, alias.arch_args, None
    if file is not None:
        tensors = read_state(file)
    elif architecture == CONCH and not random_init:
        tensors = read_state(hub_file(alias, "pytorch_model.bin"))
    elif not random_init:
        # The page's own config wins where it speaks; the table has what a config cannot carry.
        _, architecture, own = hub_config(f"hf-hub:{alias.hub}", alias)
        args = {**args, **_without_own(own)}
        tensors = hub_state(f"hf-hub:{alias.hub}", alias)
    shown, choice = f"{name}@{file.name}" if file else name, ""
    if tensors is not None and architecture == CONCH:
        tensors = conch_state(unwrapped(tensors))
    elif tensors is not None:
        tensors, choice = find_trunk(tensors, shown)
    return Source(
        shown,
        architecture,
        alias.rgb,
        alias.native,
        alias.patch,
        tensors,
        f"hf-hub:{alias.hub}",
        alias.license,
        args,
        choice=choice,
        embedding=alias.embedding,
    )


def _folder(folder: Path) -> Source:
    return _timm_config(f"local-dir:{folder.name}", *folder_config(folder), read_state(folder))


def _timm_config(
    name: str, about: dict[str, Any], architecture: str, args: dict[str, Any], tensors: State | None
) -> Source:
    """Of timm's description of a model: ``about`` its pretraining, architecture and arguments.

    Native input side and patch side are those that the weights show, which may differ from timm's entry.
    """
    rgb = (about["mean"], about["std"]) if about.get("mean") and about.get("std") else None
    choice = ""
    if tensors is not None:
        tensors, choice = find_trunk(tensors, name)
    native, patch = int((about.get("input_size") or (3, 224, 224))[-1]), None
    if tensors is not None and MARK in tensors:
        patch = int(tensors[MARK].shape[-1])
        if "pos_embed" in tensors:  # class and register tokens never reach the next square
            native = int(tensors["pos_embed"].shape[1] ** 0.5) * patch
    return Source(
        name,
        architecture,
        rgb,
        native,
        patch,
        tensors,
        name,
        str(about.get("license") or "unknown"),
        _without_own(args),
        choice=choice,
    )


def _without_own(args: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in args.items() if k not in OWN_ARGS}
