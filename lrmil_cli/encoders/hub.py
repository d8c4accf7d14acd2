"""What is had from elsewhere than a plain file: pages of the Hugging Face hub, and folders in timm's form."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from lrmil_cli.encoders.aliases import CONCH, Alias
from lrmil_cli.encoders.checkpoint import State, flat_state, not_only_tensors
from lrmil_cli.errors import InputError, LrmilError, MachineError

HUB = "https://huggingface.co/"


def folder_config(folder: Path) -> tuple[dict[str, Any], str, dict[str, Any]]:
    """Preprocessing, architecture and its arguments from the ``config.json`` that timm writes beside weights.

    Raises:
        InputError: no such folder or file, or not a config of timm.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise InputError(
            f"{path}: no such file; an encoder folder holds config.json and the weights "
            "(weights alone go with a name: NAME@FILE)"
        )
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        architecture, args = config["architecture"], config.get("model_args") or {}
        about = config.get("pretrained_cfg", config)
        if not (isinstance(architecture, str) and isinstance(args, dict) and isinstance(about, dict)):
            raise ValueError("a value of the wrong type")
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise InputError(
            f"{path}: not a config of timm ({type(e).__name__}: {e}); weights of other libraries must be converted"
        ) from e
    return about, architecture, args


@cache
def no_answer() -> Exception | None:
    """Why the hub does not answer; None where it does. Asked once a process, and not for longer than the hub's client
    is set to wait (``HF_HUB_ETAG_TIMEOUT``): that client would ask again and again, for 25 s a file."""
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    try:
        get_session().head(constants.ENDPOINT, timeout=constants.HF_HUB_ETAG_TIMEOUT)
    except Exception as e:  # the hub client has dozens of errors
        return e
    return None


@contextmanager
def hub_client() -> Iterator[None]:
    """Where the hub does not answer, its client works within this as with ``HF_HUB_OFFLINE``: it takes what is in its
    cache, and does not ask."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or no_answer() is not None
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def hub_config(name: str, alias: Alias | None = None) -> tuple[dict[str, Any], str, dict[str, Any]]:
    """The same of ``hf-hub:ORG/NAME``.

    Raises:
        MachineError: the hub does not give it.
    """
    from timm.models import load_model_config_from_hf

    try:
        with hub_client():
            about, architecture, args = load_model_config_from_hf(name[len("hf-hub:") :])
        return dict(about), architecture, dict(args or {})
    except Exception as e:  # all of the client's errors mean that the model cannot be had
        raise unreachable(name, e, alias) from e


def hub_state(name: str, alias: Alias | None = None) -> State:
    """State dict of ``hf-hub:ORG/NAME``: ``model.safetensors``, or else ``pytorch_model.bin``.

    Raises:
        MachineError: the hub does not give it.
        InputError: there is more than tensors in it.
    """
    from timm.models import load_state_dict_from_hf

    try:
        with hub_client():
            state = load_state_dict_from_hf(name[len("hf-hub:") :], weights_only=True)
    except Exception as e:  # as above
        if type(e).__name__ == "UnpicklingError":
            raise not_only_tensors(name) from e
        raise unreachable(name, e, alias) from e
    return flat_state(state, name)


def hub_file(alias: Alias, filename: str) -> Path:
    """Path of one file of an alias's page, downloaded unless it is there.

    Raises:
        MachineError: the hub does not give it.
    """
    import huggingface_hub

    try:
        with hub_client():
            return Path(huggingface_hub.hf_hub_download(alias.hub, filename))
    except Exception as e:  # as above
        raise unreachable(alias.name, e, alias) from e


def unreachable(name: str, e: Exception, alias: Alias | None = None) -> LrmilError:
    """The error for weights that the hub does not give: why, and all ways to get them."""
    why = f"encoder {alias.name if alias else name}: pretrained weights cannot be had"
    silence = no_answer()
    if silence is None:
        why, network = f"{why} ({type(e).__name__})", "check the network"
    else:
        why = f"{why}: they are not in the cache, and the hub does not answer ({type(silence).__name__})"
        network = "go online and say the same again"
    if alias is not None:
        asking = f"ask for access at {alias.page}, then `hf auth login`; " if alias.access == "gated" else ""
        file = "pytorch_model.bin" if alias.architecture == CONCH else "FILE"
        return MachineError(
            f"{why}; {asking}{network}; or download the weights from {alias.page} elsewhere and give "
            f"--encoder {alias.name}@{file} (--encoder {alias.name} --random-init is for dry runs)"
        )
    if name.startswith("hf-hub:"):
        page = f"{HUB}{name[len('hf-hub:') :].partition('@')[0]}"
        return MachineError(
            f"{why}; check the name; if {page} asks for it, request access and run `hf auth login`; {network}; "
            "or download config.json and the weights elsewhere and give their folder as --encoder local-dir:PATH"
        )
    return MachineError(
        f"{why}; {network}; or download the weights from {_timm_page(name)} elsewhere and give "
        f"--encoder {name}@FILE (--random-init is for dry runs)"
    )


def _timm_page(name: str) -> str:
    """Where timm has the weights of one of its architectures."""
    import timm

    cfg = timm.get_pretrained_cfg(name)
    return HUB + (cfg.hf_hub_id if cfg is not None and cfg.hf_hub_id else "timm")
