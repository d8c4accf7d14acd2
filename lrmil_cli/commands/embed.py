"""``lrmil embed``: tile table -> features."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Optional

import typer

from lrmil_cli.commands import encoder_options, options
from lrmil_cli.commands.batch import Outcome, Turn, failures_folder, run_batch
from lrmil_cli.commands.inputs import where_slides_are
from lrmil_cli.commands.report import Report
from lrmil_cli.errors import InputError, UsageError


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
    compile: options.Compile = False,
    json: options.Json = False,
    overwrite: options.Overwrite = False,
    fail_fast: options.FailFast = False,
) -> None:
    """Encode tiles and keep their features.

    HDF5 in the layout of TRIDENT and CLAM; the training commands read it, and make it where it is missing.
    """
    from lrmil_cli.device import device_label, pick_device
    from lrmil_cli.encoders.compiled import compile_encoder
    from lrmil_cli.encoders.embed import embed_table, features_settings
    from lrmil_cli.encoders.pipeline import BatchSize, slides_ahead
    from lrmil_cli.encoders.spec import load_encoder
    from lrmil_cli.files.tables import list_tables, read_table_header

    report = Report(json)
    options.check_dtype(dtype)
    if repack:
        return _repack(report, tiles, output, feature_set, dtype, overwrite, fail_fast, encoder)
    if encoder is None or feature_set is not None:
        raise UsageError(
            "--encoder is missing: which encoder is to read the tiles"
            if encoder is None
            else "--feature-set goes with --repack"
        )
    items: list[TableInput] = []
    for arg in tiles:
        if Path(arg).is_dir():
            found = list_tables(arg, "tiles")
            if not found:
                raise InputError(f"{arg}: no tile tables (*.tiles.csv) in this folder; make them with `lrmil tile`")
            items += [TableInput(s, p) for s, p in found.items()]
        else:
            items.append(TableInput(read_table_header(arg, "tiles")["slide"]["id"], Path(arg)))
    many = len(items) > 1
    single_file = output.endswith((".h5", ".hdf5"))
    if many and single_file:
        raise UsageError(f"-o {output} is one file, but there are several tables; give a folder")
    places = where_slides_are(slides)
    where = pick_device(device)
    tile_px = read_table_header(items[0].path, "tiles")["settings"]["tile_px"]
    model = load_encoder(
        encoder, tile_px=tile_px, input_size=input_size, embedding=embedding, random_init=random_init, warn=report.warn
    ).to(where)
    report.encoder(model.info)
    if compile:
        compile_encoder(model, tile_px, where)
    batch, settings = BatchSize(batch_size, where, report.warn), features_settings(model)

    def one(item: TableInput) -> Turn:
        target = Path(output) if single_file else Path(output) / f"{item.slide_id}.h5"
        file, there, seconds = yield from embed_table(
            model,
            item.path,
            target,
            settings=settings,
            device=where,
            batch=batch,
            workers=workers,
            on_bad_tile=on_bad_tile,
            overwrite=overwrite,
            dtype=dtype,
            slide_path=places.get(item.slide_id),
            progress=lambda: report.progress(item.slide_id, None),
        )
        if there:
            return Outcome(str(target), "skipped", f"up to date ({target})")
        n, d = file.shape
        phases = seconds.rounded()
        spent = ", ".join(f"{k} {v:.1f} s" for k, v in phases.items())
        bad = file.header.get("bad_tiles", 0)
        if bad:
            report.warn(options.bad_tiles_text(item.slide_id, bad, n))
        return Outcome(
            str(target),
            message=f"{n} tiles x {d} features ({spent}; {device_label(where)}) -> {target}",
            extra={"tiles": n, "bad_tiles": bad, "width": d, "phases": phases},
        )

    run_batch(
        "embed",
        items,
        one,
        report,
        fail_fast=fail_fast,
        failures_in=failures_folder(output, many),
        ahead=slides_ahead(where),
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
    run_batch("embed", items, one, report, fail_fast=fail_fast, failures_in=failures_folder(output, many))
