"""Options of ``lrmil run`` alone, and its settings: from the command line and a saved file, each name and value
checked."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from lrmil_cli.commands import head_options, options
from lrmil_cli.commands.declared import Declared, declared, options_of
from lrmil_cli.errors import InputError, UsageError

if TYPE_CHECKING:
    from lrmil_cli.chain.plan import Settings, Value

Slides = Annotated[
    Optional[str],
    typer.Argument(
        metavar="slides.csv",
        help="Table with the columns slide, label (and slide_id, patient_id, split or fold, mpp); or in --config.",
    ),
]
Output = Annotated[str, typer.Option("-o", "--output", metavar="DIR", help="Folder for all that the steps make.")]
Config = Annotated[
    Optional[str],
    typer.Option(
        "--config",
        metavar="run.toml",
        help="Settings of a run, as every run leaves them in its folder; what is given here besides wins.",
    ),
]
Mpp = Annotated[
    float,
    typer.Option(
        "--mpp",
        min=0.05,
        help="Micrometres per pixel of the LR tiles.  [default: 2.0; ours: what the official code's 5x nominally is]",
        show_default=False,
    ),
]
HrMpp = Annotated[
    float,
    typer.Option(
        "--hr-mpp",
        min=0.05,
        help="Of the HR tiles; --mpp should be a whole multiple.  "
        "[default: 0.5; ours: what the official code's 20x nominally is]",
        show_default=False,
    ),
]
OneEncoder = Annotated[
    bool,
    typer.Option(
        "--one-encoder",
        help="One LR encoder for all folds: one stage 1, and predicting encodes each slide once; "
        "it has seen the pixels (not the labels) of the test slides, so its figures are not quite inductive.  "
        "[default: one a fold; ours]",
    ),
]
OnBadSlide = Annotated[
    str,
    typer.Option(
        "--on-bad-slide",
        help="fail, or skip: leave out slides that cannot be tiled, and say which.  [default: fail; ours]",
        show_default=False,
    ),
]
Stage1Epochs = Annotated[
    int,
    typer.Option(
        "--stage1-epochs",
        min=1,
        help="Epochs of distill-encoder at most.  [default: 50; ours: the paper's number is not known to us]",
        show_default=False,
    ),
]
Set = Annotated[
    Optional[list[str]],
    typer.Option(
        "--set",
        metavar="STEP.OPTION=VALUE",
        help="Any other option of a step, such as distill-encoder.lr=3e-5 or tile.keep-pen=true. May be repeated.",
    ),
]

DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run",
        help="Write nothing into the folder; say the command lines, how many tiles, how many hours and gigabytes.",
    ),
]


def read_settings(ctx: typer.Context, config: str | None) -> Settings:
    """The settings of a run: of its file, and those given on the command line, which win.

    Raises:
        UsageError: no slides or no encoder, or a --set that no step has. InputError: the file, or a name in it.
    """
    from lrmil_cli.chain.plan import COMMANDS, CONNECTIONS, OF_THE_RUN, OWN, ROUTES, Settings
    from lrmil_cli.chain.run_file import read_run_file

    assert ctx.parent is not None
    commands: Mapping[str, Any] = getattr(ctx.parent.command, "commands")  # noqa: B009  of a group
    this = commands["run"].callback
    own = {"slides": next(p for p in declared(this) if not p.names), **options_of(this)}
    saved = ["slides", "encoder", *ROUTES, *sorted(OWN)]
    values: dict[str, Value] = {}
    steps: dict[str, dict[str, Value]] = {}
    connections = {**CONNECTIONS, "tile": CONNECTIONS["tile-lr"]}

    def step_option(step: str, name: str, value: Any, where: str, error: type[InputError | UsageError]) -> None:
        command = COMMANDS.get(step, step)
        if command not in COMMANDS.values():
            raise error(f"{where}: no step {step!r}{_near(step, {*COMMANDS, *COMMANDS.values()})}")
        known = options_of(commands[command].callback)
        if name in connections.get(step, set()) | OF_THE_RUN:
            raise error(f"{where}: `lrmil run` itself gives {step} its --{name}")
        if name not in known:
            raise error(f"{where}: `lrmil {command}` has no option --{name}{_near(name, known)}")
        steps.setdefault(step, {})[name] = _checked(known[name], value, where, error)

    for name, value in (read_run_file(config) if config else {}).items():
        if isinstance(value, dict):
            for option, text in value.items():
                step_option(name, option, text, f"{config}: [{name}] {option}", InputError)
        elif name not in saved:
            raise InputError(f"{config}: {name}: `lrmil run` has no such setting{_near(name, saved)}")
        else:
            values[name] = _checked(own[name], value, f"{config}: {name}", InputError)
    for name in saved:
        source = ctx.get_parameter_source(own[name].name)
        if source is not None and source.name == "COMMANDLINE":
            values[name] = ctx.params[own[name].name]
    for step, its in _set(ctx.params["further"] or []).items():
        for name, texts in its.items():
            where = f"--set {step}.{name}={texts[-1]}"
            step_option(step, name, texts if len(texts) > 1 else texts[0], where, UsageError)
    for name, what in (("slides", "a table of slides"), ("encoder", "--encoder")):
        if name not in values:
            raise UsageError(f"give {what}, or --config with a file that has `{name}`")
    slides, encoder = str(values.pop("slides")), str(values.pop("encoder"))
    return Settings(slides, encoder, {name: values[name] for name in saved if name in values}, steps)


def check_settings(settings: Settings) -> None:
    """What a step would refuse hours later is refused now.

    Raises:
        UsageError, MachineError: as the options' own checks.
    """
    import torch

    from lrmil_cli.chain.run_encoders import run_encoders
    from lrmil_cli.device import pick_device
    from lrmil_cli.distill.settings import preset_settings
    from lrmil_cli.training.crossval import head_spec
    from lrmil_cli.training.recipes import recipe_options

    if settings.options.get("on-bad-slide", "fail") not in ("fail", "skip"):
        raise UsageError(f"--on-bad-slide {settings.options['on-bad-slide']}: choose fail or skip")
    for step in ("train-teacher", "distill-student"):
        own: dict[str, Any] = settings.of(step)
        options.check_dtype(own.get("dtype"))
        options.memory_bytes(own.get("memory"))
        of_head = [own.get("gated", False), own.get("proj-dim", 0), own.get("classifier"), own.get("head-option")]
        head = own.get("head", "abmil")
        head_spec(head, recipe_options(own.get("recipe", "common"), head, head_options.head_options(*of_head)))
        pick_device(own.get("device", "auto"))
    if "student" in settings.of("distill-encoder"):
        run_encoders(settings, torch.device("cpu"))
    preset = str(settings.of("distill-student").get("preset", "lrmil"))
    preset_settings(preset, {})
    if preset == "lr-only":
        raise UsageError("--preset lr-only distils nothing; the receipt of every run has the LR-only student too")


def _set(given: list[str]) -> dict[str, dict[str, list[str]]]:
    """Values of ``--set`` by step and option; a flag may stand without a value."""
    out: dict[str, dict[str, list[str]]] = {}
    for text in given:
        key, equals, value = text.partition("=")
        step, dot, name = key.strip().partition(".")
        if not (step and dot and name):
            raise UsageError(f"--set {text}: give STEP.OPTION=VALUE, such as distill-encoder.lr=3e-5")
        out.setdefault(step, {}).setdefault(name, []).append(value if equals else "true")
    return out


def _checked(option: Declared, value: Any, where: str, error: type[InputError | UsageError]) -> Value:
    """A value as the option has it, from text or from TOML."""
    if option.kind is bool:
        if value in (True, False, "true", "false"):
            return value in (True, "true")
        raise error(f"{where}: give true or false")
    values = value if isinstance(value, list) else [value]
    if not values or (len(values) > 1 and not option.many):
        raise error(f"{where}: give one value")
    found = [_one_value(option, v, where, error) for v in values]
    return found if option.many else found[0]


def _one_value(option: Declared, value: Any, where: str, error: type[InputError | UsageError]) -> Any:
    what = {str: "text", int: "a whole number", float: "a number"}[option.kind]
    if option.kind is str and not isinstance(value, str):
        raise error(f"{where}: give {what}, in quotes")
    try:
        found = option.kind(str(value))
    except ValueError as e:
        raise error(f"{where}: {value} is not {what}") from e
    low, high = option.info.min, option.info.max
    if isinstance(found, float) and not math.isfinite(found):
        raise error(f"{where}: {value} is not {what}")
    if (low is not None and found < low) or (high is not None and found > high):
        raise error(f"{where}: {value} is not {'at least ' + f'{low:g}' if high is None else f'{low:g} to {high:g}'}")
    return found


def _near(name: str, known: Iterable[str]) -> str:
    close = get_close_matches(name, sorted(known), 1)
    return f"; did you mean {close[0]}?" if close else ""
