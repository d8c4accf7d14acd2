"""The chain of ``lrmil run`` as command lines: which option goes to which step, and where everything lies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Union

from lrmil_cli.chain.steps import Step

#: Of an option: a list where it may be repeated, a bool of a flag.
Value = Union[str, int, float, bool, list[str]]

#: Steps by name -> their command.
COMMANDS = {
    "tile-lr": "tile",
    "tile-hr": "tile",
    "match": "match",
    "train-teacher": "train-teacher",
    "distill-encoder": "distill-encoder",
    "distill-student": "distill-student",
    "predict": "predict",
    "export-geojson": "export-geojson",
    "report": "report",
}
_TILE = ("tile-lr", "tile-hr")
_TRAIN = ("train-teacher", "distill-encoder", "distill-student")
_HEADS = ("train-teacher", "distill-student")


def _as_is(option: str, *steps: str) -> dict[str, str]:
    return {step: option for step in steps}


LABELS = ("label", "task", "time", "event", "drop-missing", "class", "class-map")
#: Of a task and its bags, what the teacher alone is told; the student learns what its teacher learned.
OF_TEACHER = ("loss", "intervals", "risk-set", "bag")
#: The table of slides that could be tiled, where others are left out.
LEFT = "slides.csv"

#: Options of ``lrmil run`` -> steps they go to -> what they are called there.
ROUTES: dict[str, dict[str, str]] = {
    **{name: _as_is(name, *_TRAIN) for name in LABELS},
    **{name: _as_is(name, "train-teacher") for name in OF_TEACHER},
    "mpp": {"tile-lr": "mpp"},
    "hr-mpp": {"tile-hr": "mpp"},
    "tile-px": _as_is("tile-px", *_TILE),
    "min-tissue": _as_is("min-tissue", *_TILE),
    "embedding": _as_is("embedding", "train-teacher", "distill-encoder"),
    "input-size": _as_is("input-size", "train-teacher", "distill-encoder"),
    "student": _as_is("student", "distill-encoder"),
    "stage1-epochs": {"distill-encoder": "epochs"},
    "head": _as_is("head", *_HEADS),
    "head-option": _as_is("head-option", *_HEADS),
    "folds": _as_is("folds", "train-teacher"),
    "by-site": _as_is("by-site", "train-teacher"),
    "recipe": _as_is("recipe", *_HEADS),
    "epochs": _as_is("epochs", *_HEADS),
    "preset": _as_is("preset", "distill-student"),
    "device": _as_is("device", *_TRAIN, "predict"),
    "batch-size": _as_is("batch-size", *_HEADS, "predict"),
    "workers": _as_is("workers", *_TILE, *_TRAIN, "predict"),
    "memory": _as_is("memory", *_HEADS),
    "dtype": _as_is("dtype", *_HEADS),
    "seed": _as_is("seed", *_TRAIN),
    "on-bad-tile": _as_is("on-bad-tile", *_TILE, *_TRAIN, "predict"),
}
#: Options of the steps that connect them, or that the run has itself: not for ``--set``.
CONNECTIONS: dict[str, set[str]] = {
    "tile-lr": {"mpp", "mag"},
    "tile-hr": {"mpp", "mag"},
    "train-teacher": {"tiles", "encoder", "fold", "folds", "by-site"},
    "distill-encoder": {"slides", "fold", "folds", "by-site", "teacher", "encoder"},
    "distill-student": {"tiles", "pairs", "teacher", "encoder", "method", "fold", "folds", "by-site"},
    "predict": {"model"},
}
OF_THE_RUN = {"output", "json", "overwrite", "dry-run", "quiet", "verbose", "debug"}
#: Options of the run that are no option of a step.
OWN = {"one-encoder", "on-bad-slide"}
#: What may differ between two runs of the same numbers.
OF_THE_MACHINE = {"device", "batch-size", "workers", "memory"}


@dataclass(frozen=True)
class Settings:
    """All that a run is made of, but for the place of its results.

    Attributes:
        options: of ``lrmil run``, by their names without dashes in front, as given; what is not there has the default
            of the steps.
        of_steps: further options of steps, by step or command; they win.
    """

    slides: str
    encoder: str
    options: dict[str, Value] = field(default_factory=dict)
    of_steps: dict[str, dict[str, Value]] = field(default_factory=dict)

    @property
    def one_encoder(self) -> bool:
        """Whether all folds share one LR encoder."""
        return bool(self.options.get("one-encoder"))

    @property
    def skip_slides(self) -> bool:
        """Whether slides that cannot be tiled are left out, and do not end the run."""
        return self.options.get("on-bad-slide") == "skip"

    def of(self, step: str) -> dict[str, Value]:
        """Options of a step: those routed to it, then those of its command, then its own."""
        routed = {to[step]: self.options[name] for name, to in ROUTES.items() if step in to and name in self.options}
        return routed | self.of_steps.get(COMMANDS[step], {}) | self.of_steps.get(step, {})


def chain_steps(settings: Settings, out: Path, folds: int, overwrite: bool = False) -> list[Step]:
    """The chain on a cohort, into ``out``, with the paths that chain/README 2 lists.

    Args:
        folds: that the cohort has; overwrite: replace what was made by other settings.
    """
    slides, encoder, skip = settings.slides, settings.encoder, settings.skip_slides
    cohort = str(out / LEFT) if skip else slides  # what can be trained on
    tiles_lr, tiles_hr, pairs, teacher, results = (
        str(out / name) for name in ("tiles-lr", "tiles-hr", "pairs", "teacher", "results")
    )
    model = str(out / "model.safetensors")
    lr_encoder = str(out / ("lr-encoder.safetensors" if settings.one_encoder else "lr-encoder.fold{fold}.safetensors"))

    def step(name: str, inputs: Sequence[str], wired: dict[str, Value], made: str, marker: str = "") -> Step:
        own = settings.of(name)
        useless: set[str] = set()
        if name == "distill-encoder" and settings.one_encoder:
            useless = set(LABELS)  # it reads none
        elif skip and name in _TRAIN:
            useless = {"drop-missing", "class-map"}  # the table has them as they are to be
            useless |= {"label"} if own.get("task") in (None, "classification") else set()
        own = {key: value for key, value in own.items() if key not in useless}
        again = ["--overwrite"] if overwrite else []
        args = [COMMANDS[name], *inputs, *words(wired | own), "-o", made, *again]
        return Step(name, tuple(args), Path(made, marker), skip and name not in _TRAIN)

    def stage1(fold: int | None) -> Step:
        one: dict[str, Value] = {} if fold is None else {"slides": cohort, "teacher": teacher, "fold": fold}
        made = lr_encoder.replace("{fold}", str(fold))
        return step("distill-encoder", [pairs], {**one, "encoder": encoder, "cache": str(out / "targets")}, made)

    trained: dict[str, Value] = {"tiles": tiles_lr, "pairs": pairs, "teacher": teacher, "encoder": lr_encoder}
    return [
        step("tile-lr", [slides], {"mpp": 2.0}, tiles_lr),
        step("tile-hr", [slides], {"mpp": 0.5}, tiles_hr),
        step("match", [tiles_lr, tiles_hr], {}, pairs),
        step("train-teacher", [cohort], {"tiles": tiles_hr, "encoder": encoder}, teacher, "teacher.json"),
        *(stage1(k) for k in ([None] if settings.one_encoder else range(1, folds + 1))),
        step("distill-student", [cohort], trained, model),
        step("predict", [slides], {"model": model}, results),
        step("export-geojson", [results], {}, results),
        step("report", [results], {}, results, "index.html"),
    ]


def words(options: dict[str, Value]) -> list[str]:
    """Options as words of a command line."""
    out: list[str] = []
    for name, value in options.items():
        if isinstance(value, bool):
            out += [f"--{name}"] if value else []
        else:
            for one in value if isinstance(value, list) else [value]:
                out += [f"--{name}", str(one)]
    return out
