"""Which method of ``lrmil distill-student`` reads which option, and the check that none is given in vain."""

from __future__ import annotations

import typer

from lrmil_cli.errors import UsageError

#: Those that change the distillation settings of a preset, by the settings' names.
OF_SETTINGS = set(
    "lambda_bag lambda_soft lambda_hard temperature_bag temperature_attention region_attention soft_reduction hard k "
    "unmatched missing_teacher attention_row crossfit".split()
)
#: Those of the screening network of AHDMIL and HDMIL.
OF_SCREENING = set(
    "screen_px screen_source branches p_soft cross_ema freeze_dmin lipn_lr dmin_lr keep_rate_window "
    "official_modes".split()
)
#: Those about LR features and a head trained on them, which LRMIL and ZoomMIL have in common.
OF_TRAINING = set(
    "lr_features batch_size dtype head_option folds by_site recipe lr weight_decay class_weights "
    "balanced_sampling".split()
)
#: Parameters that only some methods read. Those in no entry are read by every method.
OF_METHODS: dict[str, set[str]] = {
    "lrmil": OF_SETTINGS
    | OF_TRAINING
    | set("bag fold seeds keep preset baseline_encoder no_baseline also_encoder no_onnx no_fixture".split())
    | set("head gated proj_dim classifier random_init".split()),
    "ahdmil": OF_SCREENING,
    "hdmil": OF_SCREENING,
    "zoommil": OF_TRAINING | {"mid_pairs", "mid_features", "no_fixture"},
    "eagle": OF_TRAINING | set("picker top_hr head gated proj_dim classifier".split()),
}


def check_method(ctx: typer.Context, method: str) -> None:
    """Every option that was given is one that the method reads.

    Raises:
        UsageError: one does nothing here, or there is no such method.
    """
    if method not in OF_METHODS:
        raise UsageError(f"--method {method}: choose one of {', '.join(OF_METHODS)}")
    other = set().union(*OF_METHODS.values()) - OF_METHODS[method]
    for parameter in ctx.command.params:
        if parameter.name in other and given(ctx, parameter.name):
            owners = [m for m, own in OF_METHODS.items() if parameter.name in own]
            raise UsageError(
                f"{parameter.opts[0]} does nothing with --method {method}; it belongs to --method {' or '.join(owners)}"
            )


def given(ctx: typer.Context, name: str) -> bool:
    """Whether a parameter stands on the command line."""
    source = ctx.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"
