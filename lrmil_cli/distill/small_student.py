"""A student of stage 1 that is no copy of its teacher: loaded, checked, and described for its file (distill/README
4.7)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lrmil_cli.device import seed_everything
from lrmil_cli.distill.learner import paired_blocks
from lrmil_cli.encoders.aliases import joint_licence
from lrmil_cli.encoders.spec import load_encoder
from lrmil_cli.encoders.vit import Encoder, check_grid
from lrmil_cli.errors import LrmilError, UsageError


def load_student(
    spec: str,
    teacher: Encoder,
    *,
    tile_px: int,
    ratio: int,
    input_size: int | None,
    random_init: bool,
    seed: int,
    allow_fractional: bool,
    warn: Callable[[str], None],
) -> Encoder:
    """The encoder that ``--student SPEC`` names, with the embedding that it has of its own (class token, or mean).

    Args:
        tile_px, ratio, input_size: as of :func:`lrmil_cli.encoders.spec.load_encoder`.
        random_init, seed: random weights, drawn by the seed, so that an interrupted run starts from the same.
        allow_fractional: take a token grid that does not divide into cells.

    Raises:
        UsageError: wider than the teacher, a grid that does not divide; else as ``load_encoder``.
    """
    seed_everything(seed)
    try:
        student = load_encoder(
            spec, tile_px=tile_px, ratio=ratio, input_size=input_size, random_init=random_init, warn=warn
        )
        check_grid(student, ratio, allow_fractional=allow_fractional)
    except LrmilError as e:
        own = str(e).replace("--input-size", "--student-input-size").replace("--encoder", "--student")
        raise type(e)(f"--student: {own}") from e
    if student.width > teacher.width:
        raise UsageError(
            f"--student {spec}: {student.width} wide, and the HR encoder {teacher.info.name} {teacher.width}; choose a "
            "smaller architecture, or leave out --student for a copy"
        )
    return student


def about_student(student: Encoder, teacher: Encoder, spec: str, layers: tuple[int, ...]) -> dict[str, Any]:
    """Of both sides, for the encoder file (encoders/README 4).

    Args:
        spec: what the student was loaded from; kept where the same weights can be had from it again.
        layers: the teacher's blocks.
    """
    info = student.info
    blocks = paired_blocks(layers, teacher.depth, student.depth)
    return {
        "student": {
            **_shape(student),
            "start": "random" if info.random_init else info.name,
            "spec": None if info.random_init else spec,
            "pairs": [list(pair) for pair in zip(layers, blocks)],
        },
        "teacher": {"name": teacher.info.name, **_shape(teacher)},
    }


def _shape(encoder: Encoder) -> dict[str, Any]:
    return {"architecture": encoder.info.architecture, "width": encoder.width, "depth": encoder.depth}


def origin(student: Encoder, teacher: Encoder) -> dict[str, Any]:
    """Base, licence and note of a student: it derives from its teacher and its own start (encoders/README 6)."""
    own = student.info
    sides = [teacher.info] if own.random_init else [teacher.info, own]
    return {
        "base": " and ".join(dict.fromkeys(i.base or i.name for i in sides)),
        "license": joint_licence(sides),
        "random_init": teacher.info.random_init,
        "note": f"a smaller student of {teacher.info.name}, started from "
        + ("random weights" if own.random_init else own.name),
    }
