"""Every default of a method says in its help where it is from, and is what the code has."""

import re

import pytest

from lrmil_cli.commands.all_commands import COMMANDS
from lrmil_cli.commands.declared import declared
from lrmil_cli.heads import head_defaults, head_names, head_sources

#: Defaults that change no result, are a matter of taste, or say where files lie.
NO_SOURCE = set(
    "batch_size workers device seed on_bad_tile on_bad_slide runtime rounds max_tiles style top colormap origin "
    "features label reader image memory lr_features cache baseline_encoder hr_encoder slide slides method keep_min "
    "keep_max interval time event".split()
)
SAID = re.compile(r"\[default: (?P<value>[^\]]*?)(?:; (?P<source>(?:paper|official code|ours)[^\]]*))?\]")
OPTIONS = [(name, p) for name, command in COMMANDS.items() for p in declared(command)]


def help_of(command: str, name: str) -> str:
    return next(p.help for p in declared(COMMANDS[command]) if p.name == name)


def same(text: str, value: object) -> bool:
    """Whether help shows a value of the settings."""
    if isinstance(value, tuple):
        return text == ",".join(f"{v:g}" for v in value)
    if value is None or isinstance(value, bool):
        return text == {True: "freeze", False: "tune", None: "none"}[value]
    return text == value if isinstance(value, str) else float(text) == value


@pytest.mark.parametrize(("command", "p"), OPTIONS, ids=[f"{name}-{p.name}" for name, p in OPTIONS])
def test_every_default_of_a_method_has_a_source(command, p):
    text = SAID.search(p.help)
    assert p.help and (text is None) == ("[default" not in p.help), p.help
    if text is not None and p.name not in NO_SOURCE:
        assert text["source"] or re.search("ours, |official code", text["value"]), p.help
    if not p.required and p.default is not None and p.default is not False:
        assert (text is None) == bool(p.info.show_default), f"shown twice, or not at all: {p.help}"
        assert text is not None or p.name in NO_SOURCE, f"{p.name}: where is the default {p.default} from?"
        assert text is None or same(text["value"].split(",")[0], p.default)


def test_help_has_the_values_of_the_settings():
    from lrmil_cli.commands.second_look import BUDGET, CONFIDENCE
    from lrmil_cli.distill.settings import DistillSettings
    from lrmil_cli.inference.screened import Budget
    from lrmil_cli.slides.region import MIN_INSIDE
    from lrmil_cli.slides.tiles import TileSettings
    from lrmil_cli.training.loop import TrainSettings

    settings = DistillSettings().as_json() | {"crossfit": "off"}
    wanted = {("distill-student", name): value for name, value in settings.items()}
    for command in ("train-teacher", "distill-student"):
        wanted |= {(command, n): getattr(TrainSettings(), n) for n in ("lr", "epochs", "patience", "weight_decay")}
    wanted |= {
        ("tile", "mpp"): TileSettings().mpp,
        ("tile", "min_inside"): MIN_INSIDE,
        ("benchmark", "mpp"): TileSettings().mpp,
        ("benchmark", "tile_px"): TileSettings().tile_px,
        ("predict", "min_inside"): MIN_INSIDE,
        ("predict", "budget"): BUDGET,
        ("predict", "confidence"): CONFIDENCE,
        ("predict", "keep_min"): Budget().least,
        ("predict", "keep_max"): Budget().most,
        ("predict", "keep_threshold"): Budget().threshold,
    }
    for (command, name), value in wanted.items():
        assert same(re.split("[,;]", SAID.search(help_of(command, name))["value"])[0], value), (command, name, value)


def test_help_has_the_values_of_ahdmil_and_hdmil():
    from lrmil_cli.selective.asymmetric_distillation import screen_settings

    ahdmil, hdmil = screen_settings("ahdmil", {}), screen_settings("hdmil", {})
    fields = {"screen_source": "source", "keep_rate_window": "window"}
    for (
        name
    ) in "screen_px screen_source branches p_soft cross_ema freeze_dmin lipn_lr dmin_lr keep_rate_window".split():
        own, _, other = SAID.search(help_of("distill-student", name))["value"].partition("; hdmil: ")
        assert same(own, getattr(ahdmil, fields.get(name, name))), name
        assert same(other or own, getattr(hdmil, fields.get(name, name))), name
    assert f"of ahdmil, hdmil: {ahdmil.patience}, official code" in help_of("distill-student", "patience")
    assert ahdmil.patience == hdmil.patience and ahdmil.epochs == hdmil.epochs == 200


def test_stage_1_has_the_same_defaults_as_command_and_as_library():
    from lrmil_cli.distill.settings import WITH_STUDENT, Stage1Settings

    own = {p.name: p.default for p in declared(COMMANDS["distill-encoder"])}
    for name, value in Stage1Settings().as_json().items():
        if name in WITH_STUDENT:  # by whether there is a student
            text = help_of("distill-encoder", name)
            assert own[name] is None and same(SAID.search(text)["value"], value), name
            assert same(re.search("With --student ([^;]*);", text)[1], WITH_STUDENT[name]), name
        else:
            assert own[name] == value or name == "layers", name


def test_the_preset_of_the_official_code_is_explained_where_it_is_offered():
    from lrmil_cli.distill.settings import PRESETS

    text = help_of("distill-student", "preset")
    assert all(name in text for name in PRESETS)
    for name, value in PRESETS["official-code"].items():
        assert f"--{name.replace('_', '-')} {value}" in text


def test_info_says_of_every_option_of_a_head_where_its_default_is_from(lrmil):
    text = " ".join(lrmil("info", "--heads").out.split())
    for head in head_names():
        own = text[text.index(f"{head}: ") :]
        for option, source in head_sources(head).items():
            assert f"{option}=" in own and f"[{source}]" in own


def test_zoommil_has_the_options_that_help_names():
    text = help_of("distill-student", "head_option")
    own = {k: v for k, v in head_defaults("zoommil").items() if k != "levels"}
    assert ", ".join(f"{k}={v}" for k, v in own.items()) in text
