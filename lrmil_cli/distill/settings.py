"""What decides the result of each stage, and the presets. Where every default comes from: distill/README 8."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from lrmil_cli.distill.regions import REGION_ATTENTION
from lrmil_cli.errors import UsageError


@dataclass(frozen=True)
class Stage1Settings:
    """All that decides the result of stage 1. Defaults and their sources: distill/README 8.1.

    Attributes:
        layers: zero-based blocks whose tokens are compared; normalize: "none", or "ln" for LayerNorm on both sides.
        weighting: what counts alike, a "region" or a "child".
        lr, warmup: constant after so many steps of linear warm-up; clip: gradient norm at most.
        epochs, patience: at most, and without a better validation loss; batch_size: LR tiles a step and process.
        steps_per_epoch: redefines an epoch; max_tiles_per_slide: LR tiles drawn of a slide that has more.
        final_loss: "none", "uniform" or "attention", with weight ``lambda_final``.
        freeze_blocks: so many at the start stay as they are; init: "teacher", or "random" for tests.
        augment: one of eight views for each batch, of LR tiles and targets alike.
    """

    layers: tuple[int, ...] = (0, 1, 10)
    lr: float = 1e-5
    epochs: int = 50
    patience: int = 20
    batch_size: int = 64
    warmup: int = 200
    clip: float = 1.0
    normalize: str = "none"
    weighting: str = "region"
    final_loss: str = "none"
    lambda_final: float = 1.0
    freeze_blocks: int = 0
    steps_per_epoch: int | None = None
    max_tiles_per_slide: int | None = None
    init: str = "teacher"
    augment: bool = False
    seed: int = 0

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "layers": list(self.layers)}


#: Of stage 1 with a student that is no copy of its teacher: it has projections to learn, and eq. 2 alone leaves its
#: embedding as it was (distill/README 4.7).
WITH_STUDENT: dict[str, Any] = {"final_loss": "uniform", "lr": 1e-4}


def stage1_default(name: str, student: object) -> Any:
    """Default of a setting of stage 1, for a copy of the teacher (``student`` None) or another student."""
    return getattr(Stage1Settings(), name) if student is None else WITH_STUDENT[name]


@dataclass(frozen=True)
class DistillSettings:
    """Weights and forms of the terms of stage 2, step 2. Defaults and their sources: distill/README 8.2.

    Attributes:
        lambda_bag, lambda_soft, lambda_hard: weights of equations 3, 4 and 5 in equation 6; 0 leaves a term out.
        temperature_bag, temperature_attention: of equations 3 and 4.
        region_attention: from HR tiles to regions; soft_reduction: "sum", or "instances" for the mean over regions.
        hard: equation 5 on the "attention" scores, or on the instance "feature"; k: regions at the top and the bottom.
        unmatched: regions without HR tiles, "leave-out" or scored "zero".
        missing_teacher: slides without a target are an "error", or trained "ce-only".
        attention_row: of a teacher with attention a class, that of the "predicted" class or of the "label".
        crossfit: inner folds for targets by heads that did not see the slide; 0 for none.
    """

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


#: Rows of the paper's Table 3, and the parity preset of the official code (distill/README 7).
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
