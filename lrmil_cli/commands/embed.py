"""``lrmil embed``: tile table -> features."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Optional

import typer

from lrmil_cli.commands import encoder_options, options
from lrmil_cli.commands.batch import Outcome, Turn, failures_folder, run_batch
from lrmil_cli.commands.inputs import where_slides_are
from lrmil_cli.commands.next_step import after_embed
from lrmil_cli.commands.report import Report
from lrmil_cli.errors import InputError, UsageError
from lrmil_cli.progress import TILES, phase


@dataclass(frozen=True)
class TableInput:
    """One tile table."""

    slide_id: str
    path: Path


Tiles = Annotated[
    list[str],
    typer.Argument(metavar="TILES|DIR...", help="Tile tables, or folders of them."),
]
Output = Annotated[
    str,
    typer.Option("-o", "--output", metavar="FILE.h5|DIR", help="Feature file of one table, or a folder."),
]


Repack = Annotated[
    bool,
    typer.Option(
        "--repack",
        help="Write feature files of TRIDENT, CLAM, STAMP or AtlasPatch anew, so that training reads each in one go "
        "(they lie in a chunk a tile).  Takes feature files in place of tile tables; --dtype float16 halves them.",
    ),
]
Devices = Annotated[
    Optional[str],
    typer.Option(
        "--devices",
        metavar="DEVICE,DEVICE...",
        help="In place of --device: a process on each (cuda:0,cuda:1), which share the slides.",
    ),
]
FeatureSet = Annotated[
    Optional[str],
    typer.Option("--feature-set", metavar="NAME", help="With --repack: of files with several sets the one to keep."),
]


def embed(
    tiles: Tiles,
    output: Output,
    encoder: encoder_options.EncoderOrNone = None,
    slides: options.SlidePlaces = None,
    embedding: encoder_options.Embedding = None,
    input_size: encoder_options.InputSize = None,
    random_init: encoder_options.RandomInit = False,
    batch_size: options.BatchSize = None,
    workers: options.Workers = None,
    on_bad_tile: options.OnBadTile = "fail",
    dtype: options.Dtype = None,
    repack: Repack = False,
    feature_set: FeatureSet = None,
    device: options.Device = "auto",
    devices: Devices = None,
    compile: options.Compile = False,
    json: options.Json = False,
    overwrite: options.Overwrite = False,
    fail_fast: options.FailFast = False,
) -> None:
    """Encode tiles and keep their features.

    HDF5 in the layout of TRIDENT and CLAM; the training commands read it, and make it where it is missing.
    """
    from lrmil_cli.encoders.embedder import How, Made, Table, open_embedder
    from lrmil_cli.files.tables import list_tables, read_table_header
    from lrmil_cli.processes import processes

    report = Report(json)
    options.check_dtype(dtype)
    if devices is not None and (repack or device != "auto"):
        raise UsageError(f"--devices and {'--repack' if repack else '--device'} exclude each other")
    if repack:
        return _repack(report, tiles, output, feature_set, dtype, overwrite, fail_fast, encoder)
    if encoder is None or feature_set is not None:
        raise UsageError(
            "--encoder is missing: which encoder is to read the tiles"
            if encoder is None
            else "--feature-set goes with --repack"
        )
    found: list[TableInput] = []
    for arg in tiles:
        if Path(arg).is_dir():
            tables = list_tables(arg, "tiles")
            if not tables:
                raise InputError(f"{arg}: no tile tables (*.tiles.csv) in this folder; make them with `lrmil tile`")
            found += [TableInput(s, p) for s, p in tables.items()]
        else:
            found.append(TableInput(read_table_header(arg, "tiles")["slide"]["id"], Path(arg)))
    many = len(found) > 1
    single_file = output.endswith((".h5", ".hdf5"))
    if many and single_file:
        raise UsageError(f"-o {output} is one file, but there are several tables; give a folder")
    places = where_slides_are(slides)
    items = [
        Table(
            t.slide_id,
            t.path,
            Path(output) if single_file else Path(output) / f"{t.slide_id}.h5",
            places.get(t.slide_id),
        )
        for t in found
    ]
    tile_px = read_table_header(items[0].path, "tiles")["settings"]["tile_px"]
    how = How(
        encoder,
        tile_px,
        input_size,
        embedding,
        random_init,
        compile,
        batch_size,
        workers,
        on_bad_tile,
        dtype,
        overwrite,
    )
    left = 0

    def told(item: Table, made: Made | None) -> Outcome:
        nonlocal left
        target = str(item.target)
        if made is None:
            left += 1
            return Outcome(target, "skipped", f"left to another process, which is at it ({target})")
        if made.there:
            return Outcome(target, "skipped", f"up to date ({target})")
        spent = (
            f" ({', '.join(f'{k} {v:.1f} s' for k, v in made.phases.items())}; {made.device})" if report.verbose else ""
        )
        if devices:  # what another process has encoded counts when it is there
            with phase("", made.tiles, TILES) as encoded:
                encoded.advance(made.tiles)
        if made.bad_tiles:
            report.warn(options.bad_tiles_text(item.slide_id, made.bad_tiles, made.tiles))
        return Outcome(
            target,
            message=f"{made.tiles} tiles x {made.width} features{spent} -> {target}",
            extra={
                "tiles": made.tiles,
                "bad_tiles": made.bad_tiles,
                "width": made.width,
                "phases": made.phases,
                # Of several processes it was not waited for this one alone.
                **({"seconds": round(sum(made.phases.values()), 3)} if devices else {}),
            },
        )

    batch = partial(
        run_batch,
        "embed",
        "embedding",
        items,
        report=report,
        fail_fast=fail_fast,
        failures_in=failures_folder(output, many),
        where=output,
        then=lambda: after_embed(output),
    )
    if devices is None:
        work, ahead = open_embedder(how, device, warn=report.warn, about=report.encoder)

        def one(item: Table) -> Turn:
            return told(item, (yield from work(item)))

        batch(one, ahead=ahead)
    else:
        names = devices.split(",")
        others = Report()
        others.mute()  # the first says what holds for all
        loads = []
        for n, name in enumerate(names):
            voice = others if n else report
            loads.append(
                (name, partial(open_embedder, how, name, sharing=len(names), warn=voice.warn, about=voice.encoder))
            )
        with processes(loads) as shared:
            answers = shared.turns(items)
            batch(lambda item: told(item, next(answers)()))
    if left:
        report.say(
            f"{left} of {len(items)} slides were left to other processes; the same command says when all are there"
        )


def _repack(
    report: Report,
    given: list[str],
    output: str,
    feature_set: str | None,
    dtype: str | None,
    overwrite: bool,
    fail_fast: bool,
    encoder: str | None,
) -> None:
    from lrmil_cli.files.foreign import SUFFIXES
    from lrmil_cli.files.repack import repack

    if encoder is not None:
        raise UsageError("--repack rewrites features that are there; leave out --encoder")
    found = [p for arg in given for p in (sorted(Path(arg).iterdir()) if Path(arg).is_dir() else [Path(arg)])]
    files = [p for p in found if p.suffix.lower() in SUFFIXES or str(p) in given]
    if not files:
        raise InputError(f"{given[0]}: no feature files ({' '.join(SUFFIXES)}) in this folder")
    many = len(files) > 1 or not output.endswith(SUFFIXES)

    def one(item: TableInput) -> Outcome:
        target = Path(output) / item.path.name if many else Path(output)
        if target.resolve() == item.path.resolve():
            raise UsageError(f"{target}: the file would replace itself; choose another --output")
        if target.exists() and not overwrite:
            return Outcome(str(target), "skipped", f"there already ({target}); --overwrite writes it again")
        size = repack(item.path, target, feature_set=feature_set, dtype=dtype)
        return Outcome(
            str(target), message=f"{item.path.stat().st_size / 1e6:.1f} MB -> {size / 1e6:.1f} MB ({target})"
        )

    items = [TableInput(p.stem, p) for p in files]
    run_batch(
        "embed",
        "repacking",
        items,
        one,
        report,
        fail_fast=fail_fast,
        failures_in=failures_folder(output, many),
        where=output,
        then=lambda: after_embed(output),
    )
