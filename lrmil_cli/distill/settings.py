"""What a distillation is made of: weights and forms of its terms, and the presets."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from lrmil_cli.distill.regions import REGION_ATTENTION
from lrmil_cli.errors import UsageError


@dataclass(frozen=True)
class DistillSettings:
    """Weights and forms of the distillation terms. Defaults and their sources: method 6.2 to 6.6."""

    lambda_bag: float = 1.0
    lambda_soft: float = 1.0
    lambda_hard: float = 0.5
    temperature_bag: float = 1.0
    temperature_attention: float = 1.0
    region_attention: str = "logmeanexp"
    soft_reduction: str = "sum"
    hard: str = "attention"
    k: int = 4
    unmatched: str = "leave-out"
    missing_teacher: str = "error"
    attention_row: str = "predicted"
    crossfit: int = 0

    def __post_init__(self) -> None:
        for name, value, choices in (
            ("--region-attention", self.region_attention, REGION_ATTENTION),
            ("--soft-reduction", self.soft_reduction, ("sum", "instances")),
            ("--hard", self.hard, ("attention", "feature")),
            ("--unmatched", self.unmatched, ("leave-out", "zero")),
            ("--missing-teacher", self.missing_teacher, ("error", "ce-only")),
            ("--attention-row", self.attention_row, ("predicted", "label")),
        ):
            if value not in choices:
                raise UsageError(f"{name} {value}: choose one of {', '.join(choices)}")
        if min(self.temperature_bag, self.temperature_attention) <= 0 or self.k < 1:
            raise UsageError("temperatures must be above 0 and --k at least 1")

    @property
    def uses_teacher(self) -> bool:
        """Whether any term needs the teacher at all."""
        return max(self.lambda_bag, self.lambda_soft, self.lambda_hard) > 0

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


#: Rows of the paper's Table 3 (method 9), and the parity preset of the official code.
PRESETS: dict[str, dict[str, Any]] = {
    "lrmil": {},
    "lr-only": {"lambda_bag": 0.0, "lambda_soft": 0.0, "lambda_hard": 0.0},
    "patch": {"lambda_bag": 0.0, "lambda_soft": 0.0, "lambda_hard": 0.0},
    "bag": {"lambda_soft": 0.0, "lambda_hard": 0.0},
    "bag-soft": {"lambda_hard": 0.0},
    "bag-hard": {"lambda_soft": 0.0},
    "official-code": {
        "region_attention": "mean-logit",
        "unmatched": "zero",
        "soft_reduction": "instances",
        "hard": "feature",
    },
}


def preset_settings(preset: str, changes: dict[str, Any]) -> DistillSettings:
    """Settings of a preset with the user's own values on top.

    Raises:
        UsageError: unknown preset or value.
    """
    if preset not in PRESETS:
        raise UsageError(f"--preset {preset}: choose one of {', '.join(PRESETS)}")
    return replace(DistillSettings(**PRESETS[preset]), **changes)


def preset_warning(preset: str, encoder_is_distilled: bool) -> str | None:
    """A preset that gets the other kind of encoder would give its result the wrong name."""
    if preset == "lr-only" and encoder_is_distilled:
        return "preset lr-only expects the HR encoder as it is, but this one was distilled (that is preset patch)"
    if preset != "lr-only" and not encoder_is_distilled:
        return f"preset {preset} expects an encoder made by distill-encoder, but this one was not distilled"
    return None
