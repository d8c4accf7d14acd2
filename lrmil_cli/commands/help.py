"""How ``--help`` and shell completion show the options of a command: in panels, those that everybody needs first, with
the values one can choose, and two examples.

Panels are plain headings: a table of options leaves 18 columns for what they mean on a terminal of 80.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Sequence
from copy import copy
from textwrap import wrap
from typing import Annotated, Any, get_args

from typer.core import TyperCommand
from typer.models import OptionInfo

from lrmil_cli.commands.examples import EXAMPLES
from lrmil_cli.commands.wrong_usage import WORDS, check_dashes

#: Panels in the order in which they are shown, and the parameters in each. One that is in none is of the first panel if
#: the command needs it, else of "Options".
PANELS = {
    "Input": "slides results encoder tiles pairs teacher features attention predictions model slide watch interval "
    "recursive slide_mpp reader image roi roi_class min_inside origin image_size mask",
    "Output": "output pages top_tiles thumbnail overlay geojson png format dpi json overwrite dry_run fail_fast "
    "lr_features cache no_onnx no_fixture plot audit card statement",
    "Tiles": "mpp mag tile_px min_tissue allow_upsample keep_pen on_bad_tile on_bad_slide",
    "Map for QuPath": "style top threshold colormap fine",
    "Method": "method student preset fold folds by_site seeds keep one_encoder layers baseline_encoder no_baseline "
    "also_encoder crossfit init",
    "Labels": "task label time event loss intervals risk_set bag drop_missing classes class_map",
    "Encoder": "embedding input_size student_input_size random_init hr_encoder dtype repack feature_set "
    "allow_fractional_regions",
    "Loss": "lambda_bag lambda_soft lambda_hard temperature_bag temperature_attention region_attention soft_reduction "
    "hard k unmatched missing_teacher attention_row final_loss lambda_final normalize weighting",
    "Head": "head head_option gated proj_dim classifier",
    "Training": "recipe stage1_epochs epochs lr patience weight_decay class_weights balanced_sampling warmup clip "
    "freeze_blocks steps_per_epoch max_tiles_per_slide augment",
    "Doubt": "escalate budget confidence max_spread abstain max_error coverage coverage_by",
    "AHDMIL and HDMIL": "screen_px screen_source branches p_soft cross_ema freeze_dmin lipn_lr dmin_lr "
    "keep_rate_window official_modes keep_min keep_max keep_threshold",
    "ZoomMIL": "mid_pairs mid_features",
    "EAGLE": "picker top_hr",
    "Options": "int8 check level metric positive by horizon adjust profile at_threshold share_interval checklist "
    "bootstrap receipt read_only hr_mpp max_tiles rounds encoders heads qupath_scripts table_only quick",
    "Machine": "device batch_size workers memory compile runtime seed devices",
    "General": "config further quiet verbose log debug help",
}
_PANEL_OF = {name: panel for panel, names in PANELS.items() for name in names.split()}
#: Values that an option takes, where they are few words; the commands check them (a test compares).
CHOICES: dict[str, Sequence[str]] = {
    "method": ("lrmil", "ahdmil", "hdmil", "zoommil", "eagle"),
    "preset": ("lrmil", "bag", "bag-soft", "bag-hard", "lr-only", "patch", "official-code"),
    "head": ("abmil", "clam_mb", "clam_sb", "dmin", "dsmil", "dtfd", "maxpool", "meanpool", "transmil"),
    "recipe": ("common", "published"),
    "task": ("classification", "regression", "survival"),
    "bag": ("slide", "patient"),
    "loss": ("huber", "mse", "nll", "cox"),
    "reader": ("auto", "tiffslide", "openslide"),
    "runtime": ("auto", "torch", "onnx", "onnx-int8"),
    "origin": ("auto", "bounds", "full"),
    "style": ("tiles", "regions", "both"),
    "format": ("png", "svg", "pdf"),
    "colormap": ("viridis", "magma", "inferno", "plasma", "cividis", "gray"),
    "on_bad_tile": ("fail", "skip"),
    "on_bad_slide": ("fail", "skip"),
    "dtype": ("float16", "float32"),
    "embedding": ("cls", "mean", "cls+mean", "pool"),
    "region_attention": ("logmeanexp", "logsumexp", "max", "mean-logit", "mean-weight"),
    "soft_reduction": ("sum", "instances"),
    "hard": ("attention", "feature"),
    "unmatched": ("leave-out", "zero"),
    "missing_teacher": ("error", "ce-only"),
    "attention_row": ("predicted", "label"),
    "final_loss": ("none", "uniform", "attention"),
    "normalize": ("none", "ln"),
    "weighting": ("region", "child"),
    "init": ("teacher", "random"),
    "screen_source": ("lr-tiles", "thumbnail"),
    "level": ("slide", "patient"),
    "coverage_by": ("all", "class"),
    "by_site": ("preserve", "leave-one-out"),
    "profile": ("external",),
    "keep": ("ensemble", "best"),
    "share_interval": ("wilson", "clopper-pearson"),
    "checklist": ("tripod-ai", "stard-ai", "claim", "remark"),
}
#: What is completed besides: words that are no closed list.
SUGGESTED: dict[str, Sequence[str]] = {
    "device": ("auto", "cpu", "cuda", "cuda:0", "cuda:1", "mps"),
    "classifier": ("linear", "mlp", "cheb", "chebyshev"),
}
#: Ends of the names of files that an argument or option takes; folders always.
SUFFIXES: dict[str, Sequence[str]] = {
    "manifest": (".csv", ".tsv", ".xlsx"),
    "model": (".safetensors", ".onnx"),
    "attention": (".csv", ".csv.gz", ".parquet"),
    "roi": (".geojson", ".geojson.gz", ".json"),
}


def shown(parameter: inspect.Parameter) -> inspect.Parameter:
    """A declared parameter with its panel, what stands for its value, and what completes it."""
    declared = get_args(parameter.annotation)
    if not declared:
        return parameter
    kind, info, name = declared[0], copy(declared[1]), parameter.name
    if isinstance(info, OptionInfo):
        info.rich_help_panel = _PANEL_OF.get(name, "Options")
        if not _has(bool, kind) and not info.metavar:
            number = "N" if _has(int, kind) else "X" if _has(float, kind) else None
            info.metavar = "|".join(CHOICES[name]) if name in CHOICES else number or "TEXT"
    words = (*CHOICES.get(name, ()), *SUGGESTED.get(name, ()))
    if words:
        info.autocompletion = _completion(words)
    elif name == "encoder":
        info.autocompletion = _encoders
    elif name in SUFFIXES:
        info.autocompletion = _files(tuple(SUFFIXES[name]))
    return parameter.replace(annotation=Annotated[kind, info])


def _has(wanted: type, kind: Any) -> bool:
    return kind is wanted or any(_has(wanted, k) for k in get_args(kind))


def _completion(words: Sequence[str]) -> Callable[[str], list[str]]:
    def complete(incomplete: str) -> list[str]:
        return [word for word in words if word.startswith(incomplete)]

    return complete


def _encoders(incomplete: str) -> list[str]:
    from lrmil_cli.encoders.aliases import ALIASES

    return [name for name in ("demo-vit", *ALIASES) if name.startswith(incomplete)]


def _files(endings: tuple[str, ...]) -> Callable[[str], list[str]]:
    def complete(incomplete: str) -> list[str]:
        folder, start = os.path.split(incomplete)
        try:
            found = [e for e in os.scandir(folder or ".") if e.name.startswith(start) and not e.name.startswith(".")]
        except OSError:
            return []
        names = sorted(e.name + "/" if e.is_dir() else e.name for e in found)
        return [os.path.join(folder, n) for n in names if n.endswith(("/", *endings))]

    return complete


def epilog(command: str) -> str:
    """The examples of a command; ``\\b`` keeps their lines."""
    lines = [wrap(f"lrmil {line}", 70, break_on_hyphens=False) for line in EXAMPLES[command]]
    return "\b\nExamples:\n" + "\n".join("  " + " \\\n      ".join(parts) for parts in lines)


class PanelCommand(TyperCommand):
    """A command whose help shows arguments, panel by panel its options, and examples, as plain text."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        ctx.meta[WORDS] = list(args)
        check_dashes(args, [name for p in self.get_params(ctx) for name in (*p.opts, *p.secondary_opts)])
        return super().parse_args(ctx, args)

    def format_options(self, ctx: Any, formatter: Any) -> None:
        panels: dict[str, list[tuple[str, str]]] = {"Arguments": []}
        panels |= {panel: [] for panel in PANELS}
        for p in self.get_params(ctx):
            about: Any = p  # typer's own kinds have more than click's
            panel = _PANEL_OF.get(p.name or "", "Options")
            names = ", ".join([*p.opts, *p.secondary_opts]) + (f" {about.metavar}" if about.metavar else "")
            if p.param_type_name == "argument":
                panel, names = "Arguments", about.metavar or p.name
            panels[panel].append((names, _described(about)))
        for panel, records in panels.items():
            if records:
                with formatter.section(panel):
                    # What must be given stands first.
                    formatter.write_dl(sorted(records, key=lambda r: not r[1].endswith("[required]")), col_max=24)


def _described(parameter: Any) -> str:
    text = " ".join((parameter.help or "").split())
    default = parameter.default
    if parameter.required:
        return f"{text}  [required]"
    if parameter.show_default and default not in (None, False, ()) and not callable(default) and "[default" not in text:
        return f"{text}  [default: {default}]"
    return text
