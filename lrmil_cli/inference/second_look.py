"""A second look: answer at low resolution, and read high resolution only where that answer is not sure.

``predict --escalate`` and ``--abstain`` (inference/README 4). The LR model answers first. Where ``doubt`` finds that
answer not sure, the HR tiles under its most attended LR tiles are read, and the teacher's heads answer from those
alone. Every prediction says which road was taken and what was read.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from lrmil_cli.device import pick_device
from lrmil_cli.encoders.embed import embed_tiles, features_settings
from lrmil_cli.encoders.pipeline import BatchSize, Seconds, read_ahead
from lrmil_cli.encoders.spec import load_encoder
from lrmil_cli.encoders.vit import Encoder
from lrmil_cli.errors import InputError, UsageError
from lrmil_cli.evaluation.head_calibration import calibrated_heads, common_temperature
from lrmil_cli.files.header import last_digest
from lrmil_cli.heads import Bag, MILHead
from lrmil_cli.inference.doubt import Rule, in_doubt, make_rule
from lrmil_cli.inference.prediction import Prediction, Predictor, reasons_to_abstain, said_by_heads
from lrmil_cli.inference.record import attention_rows
from lrmil_cli.matching.children import find_children
from lrmil_cli.slides.grid import split_ratio
from lrmil_cli.slides.region import Region
from lrmil_cli.slides.slide import Slide
from lrmil_cli.slides.tiles import TileSettings, boxes_of, settings_from_json
from lrmil_cli.targets.outputs import Outputs
from lrmil_cli.targets.task import PATIENT, task_of
from lrmil_cli.training.teacher import Teacher, read_teacher


@dataclass
class HighResolution:
    """What answers at high resolution: the teacher's fold heads and their encoder.

    Attributes:
        outputs: how the numbers of each head are read; empty of heads of classes.
        tiles: how a slide is tiled for them; ratio: HR tiles along a side of an LR tile.
        where: the device of heads and encoder; batch: tiles encoded at a time.
    """

    teacher: Teacher
    encoder: Encoder
    heads: list[MILHead]
    outputs: list[Outputs]
    tiles: TileSettings
    ratio: int
    where: torch.device
    batch: BatchSize


def open_high_resolution(
    teacher: str,
    base: Predictor,
    encoder: str | None,
    where: torch.device,
    batch: BatchSize,
    *,
    allow_upsample: bool = False,
) -> HighResolution:
    """Load the teacher of a cascade and its encoder.

    Args:
        encoder: spec of the HR encoder; None for the one that the model's LR encoder was distilled from.

    Raises:
        InputError: teacher and model do not fit each other, or the encoder is not the one whose features the teacher
            knows.
        UsageError: it is not known which encoder that was.
    """
    guide = read_teacher(teacher)
    if guide.task != task_of(base.header):
        raise InputError(
            f"{teacher}: the teacher learned {guide.task.name}, the model {task_of(base.header).name}; give the "
            "teacher that the model was distilled from"
        )
    if guide.bag == PATIENT:
        raise UsageError(f"--escalate {teacher}: a teacher of patients cannot look at tiles of a slide again")
    if guide.classes != base.classes:
        raise InputError(
            f"{teacher}: the teacher knows the classes {', '.join(guide.classes)}, the model "
            f"{', '.join(base.classes)}; give the teacher that the model was distilled from"
        )
    if guide.header.get("made_by", "lrmil") != "lrmil":
        raise InputError(
            f"{teacher}: trained on the features of another tool, whose tiles do not lie on the grid of this model; "
            "train one with --tiles and --encoder"
        )
    about = (base.header.get("encoders") or [{}])[0].get("distilled") or {}
    spec = encoder or about.get("base_spec")
    if spec is None:
        raise UsageError(
            f"{base.path} does not say which encoder its own was distilled from; name the teacher's with --hr-encoder "
            "SPEC"
        )
    tiles = settings_from_json(guide.header["tiles"], str(guide.path / "teacher.json"))
    tiles = replace(tiles, allow_upsample=tiles.allow_upsample or allow_upsample)
    known = guide.header["encoder"]
    loaded = load_encoder(
        spec, tile_px=tiles.tile_px, input_size=known.get("image_size"), embedding=known.get("embedding")
    )
    # Teachers made before it was kept have none; the width still tells.
    known_digest = guide.header.get("encoder_digest")
    if known_digest not in (None, loaded.digest()) or loaded.embed_dim != guide.header["in_dim"]:
        raise InputError(
            f"{teacher}: the teacher was trained on features of {known['name']}, not of {spec}; name that encoder with "
            "--hr-encoder"
        )
    heads: list[MILHead] = []
    outputs: list[Outputs] = []
    for fold in range(1, guide.header["folds"] + 1):
        header, head = guide.head(fold)
        heads.append(head.to(where))
        outputs.append(header.get("outputs") or {})
    ratio = split_ratio(base.tiles.tile_px, base.tiles.mpp, tiles.tile_px, tiles.mpp)
    return HighResolution(guide, loaded.to(where), heads, outputs, tiles, ratio, where, batch)


def tiles_under(
    slide: Slide, lr: dict[str, np.ndarray], chosen: np.ndarray, high: HighResolution
) -> tuple[np.ndarray, int]:
    """HR tiles with tissue under some LR tiles of a slide: int64 [M, 4] in level-0 px, and the level to read them from.

    Args:
        lr: columns ``col, row`` of the slide's LR tiles; chosen: rows of them.
    """
    # The teacher learned from tiles at the slide's edge too, however little of them lies on it.
    picked = {k: lr[k][chosen] for k in ("col", "row")}
    found = find_children(slide, picked, high.tiles, high.ratio, None, min_inside=0.0)
    return boxes_of(found.tiles), found.level


class Cascade:
    """A predictor with a second look by another, or, without one, one that only says when it is unsure.

    Whatever the base predictor is, it is asked first; what it says stays in the record beside the second answer.
    """

    def __init__(
        self,
        base: Predictor,
        rule: Rule,
        high: HighResolution | None,
        *,
        budget: int,
        temperature: float,
        abstain: bool,
    ):
        self.base, self.rule, self.high, self.abstain = base, rule, high, abstain
        self.budget, self.temperature = budget, temperature
        self.path, self.header, self.classes = base.path, base.header, base.classes
        self.tiles, self.device, self.ahead = base.tiles, base.device, base.ahead
        own: dict[str, Any] = {"abstain": abstain}
        if task_of(base.header).classes:
            own["confidence"] = rule.confidence
        elif rule.max_spread is not None:
            own["max_spread"] = rule.max_spread
        if high is not None:
            own |= {
                "budget": budget,
                "teacher": last_digest(high.teacher.header),
                "encoder": features_settings(high.encoder)["encoder"],
                "hr_tiles": high.tiles.as_json(),
            }
        self.settings = {**base.settings, "cascade": own}

    def plan(self, slide: Slide, region: Region | None) -> tuple[int, float]:
        return self.base.plan(slide, region)

    def predict(self, slide: Slide, region: Region | None) -> Generator[None, None, Prediction]:
        return self.judged((yield from self.base.predict(slide, region)), slide)

    def judged(self, p: Prediction, slide: Slide | None = None) -> Prediction:
        """The answer of the base, and whether it is in doubt; looked at again, where there is who looks again, on
        ``slide``."""
        reason, first = in_doubt(self.header, p, self.rule, self.temperature)
        record: dict[str, Any] = _confidence(first)
        if self.high is not None:
            record |= {
                "answered_at": "lr",
                "tiles_read": {**p.record["tiles_read"], "hr": 0},
                "escalation": {"reason": reason, "lr": first},
            }
            if reason is not None:
                assert slide is not None
                p, reason = self._again(self.high, p, slide, record, reason)
        if self.abstain:
            record["uncertain"] = reasons_to_abstain(p.record, reason)
        p.record = {**p.record, **record}
        return p

    def _again(
        self,
        high: HighResolution,
        p: Prediction,
        slide: Slide,
        record: dict[str, Any],
        reason: str,
    ) -> tuple[Prediction, str | None]:
        """The answer at high resolution, and why it is not sure either.

        The old one where no HR tile has tissue, or none can be decoded. What was read is noted in ``record``.
        """
        seconds, clock = Seconds(), time.perf_counter()
        # Of tiles with the same attention those of the lower row, so that the same slide gives the same tiles.
        chosen = np.argsort(-p.attention, kind="stable")[: self.budget]
        boxes, level = tiles_under(slide, p.tiles, chosen, high)
        seconds.add("hr_tissue", time.perf_counter() - clock)
        if not len(boxes):
            record["escalation"]["hr"] = None
            return p, reason
        where, batch, hr_seconds = high.where, high.batch, Seconds()
        bad: list[int] = []
        with (
            read_ahead(slide, boxes, level, high.tiles.tile_px, device=where, batch=batch, bad=bad) as pixels,
        ):
            (features,) = embed_tiles([high.encoder], pixels, len(boxes), device=where, batch=batch, seconds=hr_seconds)
        boxes, features = np.delete(boxes, bad, axis=0), np.delete(features, bad, axis=0)
        record["bad_tiles"] = p.record.get("bad_tiles", 0) + len(bad)
        if not len(boxes):
            record["escalation"]["hr"] = None
            return p, reason
        for phase, value in hr_seconds.phases.items():
            seconds.add(f"hr_{phase}", value)
        clock = time.perf_counter()
        bag = Bag(torch.from_numpy(features), torch.from_numpy(boxes[:, :2].copy())).to(where)
        with torch.inference_mode():
            outs = [head(*bag) for head in high.heads]
        logits = np.stack([o.logits.cpu().double().numpy() for o in outs])
        raw = said_by_heads({**high.teacher.header, "outputs": high.outputs}, logits)
        per_fold = calibrated_heads(high.teacher.header, raw)
        attention = np.mean([o.attention.cpu().double().numpy() for o in outs], axis=0)
        seconds.add("hr_head", time.perf_counter() - clock)
        temperature = common_temperature(high.teacher.header)
        again = replace(
            p,
            raw=raw,
            per_fold=per_fold,
            outputs=None if task_of(self.header).classes else high.outputs,
            seconds={**p.seconds, **seconds.rounded()},
            tables={**p.tables, "hr": attention_rows(boxes, attention / attention.sum())},
        )
        still, second = in_doubt(self.header, again, self.rule, 1.0 if temperature is None else temperature)
        record["answered_at"] = "hr"
        record["tiles_read"]["hr"] = len(boxes)
        record["escalation"]["hr"] = second | {"lr_tiles": len(chosen), "teacher": str(high.teacher.path)}
        return again, still


def _confidence(said: dict[str, Any]) -> dict[str, Any]:
    return {k: said[k] for k in ("confidence",) if k in said}


def with_second_look(
    base: Predictor,
    *,
    teacher: str | None,
    budget: int,
    confidence: float,
    max_spread: float | None,
    abstain: bool,
    encoder: str | None,
    device: str,
    batch_size: int | None,
    warn: Callable[[str], None],
    allow_upsample: bool = False,
) -> Predictor:
    """The predictor with a second look by ``teacher``, or, without one, with an eye on its own doubt.

    Raises:
        UsageError, InputError, MachineError: as :func:`open_high_resolution`; a model of another method than LRMIL.
    """
    if base.header.get("method", "lrmil") != "lrmil" and teacher is not None:
        raise UsageError(
            f"--escalate is for models of LRMIL; {base.path} reads HR tiles by itself ({base.header['method']})"
        )
    rule = make_rule(base.header, base.path, confidence, max_spread)
    temperature = common_temperature(base.header)
    if temperature is None and task_of(base.header).classes:
        warn(
            f"{base.path} holds no calibration (it was made before there was one); its probabilities are taken as they "
            "are"
        )
    high = None
    if teacher is not None:
        where = pick_device(device)
        batch = BatchSize(batch_size, where, warn)
        high = open_high_resolution(teacher, base, encoder, where, batch, allow_upsample=allow_upsample)
    return Cascade(base, rule, high, budget=budget if high else 0, temperature=temperature or 1.0, abstain=abstain)
