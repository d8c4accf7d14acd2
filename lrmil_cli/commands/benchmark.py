"""``lrmil benchmark``: HR against LR on this machine, and reader against reader."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from lrmil_cli.commands import encoder_options, options
from lrmil_cli.commands.report import Report
from lrmil_cli.commands.screen import line_cleared
from lrmil_cli.errors import InputError, UsageError
from lrmil_cli.slide_names import slide_id_of

if TYPE_CHECKING:
    from lrmil_cli.encoders.vit import EncoderInfo

#: What is timed where the user names no encoder: the size that most pathology encoders are larger than.
DEFAULT_ENCODER = "vit_small_patch16_224"
#: What may encode LR, and how the table says so.
RUNTIMES = {"torch": "", "onnx": ", by ONNX Runtime", "onnx-int8": ", by ONNX Runtime in int8"}

SlidePath = Annotated[str, typer.Argument(metavar="SLIDE", help="A slide of yours.")]
Model = Annotated[
    Optional[str],
    typer.Option("-m", "--model", metavar="MODEL.safetensors", help="Time this model."),
]
HrEncoder = Annotated[
    Optional[str],
    typer.Option(
        "--hr-encoder",
        metavar="SPEC",
        help="Time HR with another encoder, such as the one that a small student learned from.  [default: that of LR]",
    ),
]
Runtime = Annotated[
    str,
    typer.Option(
        "--runtime",
        help="What encodes LR: torch, onnx or onnx-int8 (CPU). HR is always encoded by torch.",
        metavar="torch|onnx|onnx-int8",
    ),
]
ReadOnly = Annotated[bool, typer.Option("--read-only", help="Compare readers only; nothing is encoded.")]
Mpp = Annotated[
    Optional[float],
    typer.Option(
        "--mpp",
        min=0.05,
        help="Um per pixel of LR.  "
        "[default: 2.0, or as the model says; ours: what the official code's 5x nominally is]",
    ),
]
HrMpp = Annotated[
    float,
    typer.Option(
        "--hr-mpp",
        min=0.05,
        help="Um per pixel of HR.  [default: 0.5; ours: what the official code's 20x nominally is]",
        show_default=False,
    ),
]
TilePx = Annotated[
    Optional[int],
    typer.Option(
        "--tile-px",
        min=16,
        max=4096,
        help="Side of a tile in pixels.  [default: 256, or as the model says; official code]",
    ),
]
MaxTiles = Annotated[
    Optional[int],
    typer.Option(
        "--max-tiles",
        min=1,
        help="Tiles measured at most on each side; the rest is extrapolated.  [default: 128 on a CPU, 2048 on a GPU]",
    ),
]
Rounds = Annotated[
    int,
    typer.Option("--rounds", min=1, help="LR and HR take turns so many times; the median counts."),
]
Plot = Annotated[Optional[str], typer.Option("--plot", metavar="FILE.png", help="Also draw it.")]


def benchmark(
    slide: SlidePath,
    model: Model = None,
    encoder: encoder_options.EncoderOrNone = None,
    hr_encoder: HrEncoder = None,
    runtime: Runtime = "torch",
    read_only: ReadOnly = False,
    mpp: Mpp = None,
    hr_mpp: HrMpp = 0.5,
    tile_px: TilePx = None,
    max_tiles: MaxTiles = None,
    rounds: Rounds = 3,
    plot: Plot = None,
    embedding: encoder_options.Embedding = None,
    input_size: encoder_options.InputSize = None,
    random_init: encoder_options.RandomInit = False,
    slide_mpp: options.SlideMpp = None,
    batch_size: options.BatchSize = None,
    workers: options.Workers = None,
    device: options.Device = "auto",
    json: options.Json = False,
) -> None:
    """Time LR against HR on your machine.

    The same slide, code and encoder (yours, or a ViT-S with random weights) at both resolutions, or each with its own
    (--hr-encoder, --runtime): tissue, reading, encoding, head, beside what the encoder alone would take. Then the same
    LR tiles by every reader there is. All is read once before, so it comes from the system's file cache; a network
    drive is slower.
    """
    from lrmil_cli.benchmark import report as reports
    from lrmil_cli.benchmark.readers import compare_readers, middle_part, shifted
    from lrmil_cli.slides.slide import open_slide
    from lrmil_cli.slides.tiles import TileSettings, boxes_of, find_tiles
    from lrmil_cli.units import LevelPx, Mpp

    report = Report(json)
    if plot is not None and not plot.lower().endswith(".png"):
        raise UsageError(f"--plot {plot}: give a name that ends in .png")
    if model is not None and encoder is not None:
        raise UsageError("give --model or --encoder, not both")
    if model is not None:
        options.check_model(model)
    if runtime not in RUNTIMES:
        raise UsageError(f"--runtime {runtime}: choose one of {', '.join(RUNTIMES)}")
    by_onnx = runtime != "torch"
    if read_only and (model is not None or encoder is not None or hr_encoder is not None or random_init or by_onnx):
        raise UsageError(
            "--read-only encodes nothing; leave out --model, --encoder, --hr-encoder, --runtime and --random-init"
        )
    if by_onnx and device not in ("auto", "cpu"):
        raise UsageError(f"--runtime {runtime} runs on the CPU; leave out --device {device}, or use --runtime torch")
    base = TileSettings(Mpp(mpp or 2.0), LevelPx(tile_px or 256))
    began = time.perf_counter()
    record: dict[str, Any] = {
        "slide": slide,
        "slide_id": slide_id_of(Path(slide)),
        "command": "benchmark",
        "status": "ok",
        "output": plot,
        "error": None,
        "hr": None,
        "lr": None,
        "gflops": None,
        "device": None,
        "encoder": None,
        "hr_encoder": None,
        "runtime": None if read_only else runtime,
        "rounds": rounds,
        "file_cache": "warm",
    }
    texts = []
    if not read_only:
        from lrmil_cli.benchmark.speed import arithmetic, as_record, bare_model, in_onnx, in_torch, measure
        from lrmil_cli.device import device_label, pick_device
        from lrmil_cli.encoders.spec import load_encoder, names_weights
        from lrmil_cli.models.model_file import load_model

        where = pick_device("cpu" if by_onnx else device)
        if model is not None:
            timed = load_model(model)
            own = timed.tiles
            base = replace(own, mpp=Mpp(mpp or own.mpp), tile_px=LevelPx(tile_px or own.tile_px))
        else:
            # Beside an HR encoder with random weights, a file may stand on the LR side.
            given = encoder is not None and hr_encoder is not None and names_weights(encoder)
            timed = bare_model(
                load_encoder(
                    encoder or DEFAULT_ENCODER,
                    tile_px=base.tile_px,
                    input_size=input_size,
                    embedding=embedding,
                    random_init=(random_init and not given) or encoder is None,
                    warn=report.warn,
                ),
                base,
            )
        if hr_mpp >= base.mpp:
            raise UsageError(f"--hr-mpp {hr_mpp:g} must be finer than --mpp {base.mpp:g}")
        fine = replace(base, mpp=Mpp(hr_mpp))
        high = timed
        if hr_encoder is not None:
            other = load_encoder(hr_encoder, tile_px=base.tile_px, random_init=random_init, warn=report.warn)
            high = bare_model(other, fine)
        names = {side: _name(m.encoders[0].info) for side, m in (("lr", timed), ("hr", high))}
        record |= {"device": device_label(where), "encoder": names["lr"], "hr_encoder": names["hr"]}
        if by_onnx:
            low = in_onnx(timed, base, model, int8=runtime == "onnx-int8", batch_size=batch_size)
        else:
            low = in_torch(timed, base, where, batch_size, report.say)
        record |= as_record(
            measure(
                slide,
                {"lr": low, "hr": in_torch(high, fine, where, batch_size, report.say)},
                device=where,
                workers=workers,
                slide_mpp=slide_mpp,
                most=max_tiles,
                rounds=rounds,
                say=report.say,
            )
        )
        if not by_onnx:
            record["gflops"] = arithmetic(timed, where, batch_size=batch_size or 8, tile_px=base.tile_px, rounds=rounds)
        texts += [
            ("" if hr_encoder is None else f"HR: {names['hr']}\nLR: ")
            + f"{names['lr']}{RUNTIMES[runtime]}; {record['device']}",
            reports.sides_table(record, {"lr": base.mpp, "hr": fine.mpp}),
            *([] if by_onnx else [reports.arithmetic_line(record["gflops"])]),
        ]
    with open_slide(slide, slide_mpp=slide_mpp, workers=workers) as opened:
        record["workers"] = opened.workers
        head = (
            f"{Path(slide).name}: {opened.width} x {opened.height} px, {opened.mpp:.4g} um/px, "
            f"{len(opened.levels)} levels"
        )
        parts = {"readers": (base, False)}
        if read_only:
            parts |= {"readers_shifted": (base, True), "readers_hr": (replace(base, mpp=Mpp(hr_mpp)), False)}
        tables = {}
        for key, (settings, off) in parts.items():
            if settings.mpp < opened.mpp / 1.05:
                report.warn(f"{slide}: coarser than {settings.mpp:g} um/px, so that side is left out")
                continue
            tiles, level, _ = find_tiles(opened, settings)
            boxes = middle_part(boxes_of(tiles), max_tiles or 512)
            boxes = shifted(boxes, opened.levels[level].downsample) if off else boxes
            record[key], notes = compare_readers(
                slide, opened.mpp, boxes, level, settings.tile_px, workers=opened.workers, rounds=max(rounds, 9)
            )
            title = f"{settings.mpp:g} um/px" + (", shifted" if off else "")
            tables[title] = record[key]
            report.say(
                f"readers, {title}: {len(boxes)} tiles of level {level}, all from the file cache"
                + "".join(f"; {n}" for n in notes)
            )
    if not tables:
        raise InputError(f"{slide}: coarser than any side that would be read; give an --mpp and --hr-mpp that it has")
    texts.append(reports.readers_table(tables))
    if plot is not None:
        reports.plot(plot, record, tables, head + (f"\n{texts[0]}" if not read_only else ""))
    report.result({**record, "seconds": round(time.perf_counter() - began, 3)})
    if not json:
        with line_cleared():
            print("\n\n".join([head, *texts]), flush=True)


def _name(info: EncoderInfo) -> str:
    return info.name + (", random weights" if info.random_init else "")
