"""The way of tiles to the encoder: order, bounded reading ahead, batch sizes, memory that runs out, slides begun ahead
of their turn."""

import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lrmil_cli.ahead import Prefetch, in_turn
from lrmil_cli.encoders.pipeline import BatchSize, Seconds, encode_tiles, read_ahead
from lrmil_cli.errors import InputError, MachineError
from lrmil_cli.files.features import read_features
from lrmil_cli.files.tables import dumps_csv
from lrmil_cli.progress import tiles_counted
from lrmil_cli.slides.slide import open_slide
from tests.unit.slides.test_reader import boxes_of, write

CPU, GPU = torch.device("cpu"), SimpleNamespace(type="cuda")


def pieces_of(pixels, order, sizes):
    """The tiles as a reader would hand them over: in any order, in pieces of any size."""
    start = 0
    for size in sizes:
        rows = order[start : start + size]
        if len(rows):
            yield rows, pixels[rows]
        start += size


@given(st.integers(0, 40), st.integers(1, 12), st.integers(1, 12), st.randoms(use_true_random=False))
def test_results_stand_in_the_order_of_the_rows_whatever_the_batches(count, batch, piece, random):
    pixels = np.arange(count * 12, dtype=np.uint8).reshape(count, 2, 2, 3)
    order = np.array(random.sample(range(count), count), np.int64)
    seen, before = [], tiles_counted()

    def encode(x):
        seen.append(len(x))
        return x.float().mean((1, 2, 3)), x.flatten(1).float()

    out = encode_tiles(
        encode,
        pieces_of(pixels, order, [piece] * (count // piece + 1)),
        count,
        device=CPU,
        batch=BatchSize(batch, CPU),
    )
    if count == 0:
        assert out == []
        return
    assert np.allclose(out[0], pixels.mean((1, 2, 3))) and np.array_equal(out[1], pixels.reshape(count, -1))
    assert seen == [batch] * (count // batch) + ([count % batch] if count % batch else [])
    assert tiles_counted() - before == count


def test_a_size_that_was_given_stays_and_a_cpu_searches_none():
    for batch, size in ((BatchSize(7, GPU), 7), (BatchSize(None, CPU), 16), (BatchSize(48, CPU), 48)):
        for _ in range(20):
            batch.observe(batch.now, 0.001)
        assert batch.now == size and batch.piece == min(size, 32)


@pytest.mark.parametrize(
    ("rates", "best"),
    [
        ({32: 100, 64: 150, 128: 151, 256: 400}, 64),  # doubling stops where it no longer pays
        ({32: 100, 64: 80}, 32),
        ({32: 1, 64: 2, 128: 4, 256: 8, 512: 16}, 512),
    ],
)
def test_on_a_gpu_the_batch_grows_as_long_as_it_pays(rates, best):
    batch = BatchSize(None, GPU)
    for n in range(40):
        if batch.searching:
            first = n % 2 == 0  # the first batch of a size is slow and does not count
            batch.observe(batch.now, batch.now / (rates[batch.now] / (50 if first else 1)))
            batch.observe(batch.now // 2, 1e9)  # nor does the last, smaller one of a slide
    assert batch.now == best and not batch.searching


@pytest.mark.parametrize(
    "error",
    [
        torch.cuda.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("MPS backend out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
        MemoryError(),
    ],
)
def test_out_of_memory_halves_the_batch_says_so_and_loses_nothing(error):
    pixels, said, sizes = np.arange(40 * 12, dtype=np.uint8).reshape(40, 2, 2, 3), [], []

    def encode(x):
        if len(x) > 5:
            raise error
        sizes.append(len(x))
        return (x.flatten(1).float(),)

    batch = BatchSize(16, CPU, said.append)
    (out,) = encode_tiles(encode, pieces_of(pixels, np.arange(40), [16] * 3), 40, device=CPU, batch=batch)
    assert np.array_equal(out, pixels.reshape(40, -1)) and batch.now == 4 and max(sizes) == 4
    assert said == [
        "out of memory with 16 tiles at a time; going on with 8",
        "out of memory with 8 tiles at a time; going on with 4",
    ]


def test_out_of_memory_with_one_tile_is_said_and_other_errors_stay():
    pixels = np.zeros((3, 2, 2, 3), np.uint8)

    def fail(error):
        def encode(x):
            raise error

        encode_tiles(encode, pieces_of(pixels, np.arange(3), [3]), 3, device=CPU, batch=BatchSize(2, CPU))

    with pytest.raises(MachineError, match="out of memory with a single tile"):
        fail(RuntimeError("out of memory"))
    with pytest.raises(RuntimeError, match="shapes"):
        fail(RuntimeError("shapes do not fit"))


def test_reading_ahead_gives_the_same_tiles_and_a_damaged_slide_its_error(tmp_path):
    with open_slide(write(tmp_path, "jpeg ycbcr"), workers=2) as slide:
        boxes, arrays = boxes_of(100, 100, 3, 3), []
        for device in (CPU, GPU):
            seconds = Seconds()
            with read_ahead(slide, boxes, 0, 50, device=device, batch=BatchSize(8, CPU)) as tiles:
                arrays += encode_tiles(
                    lambda x: (x,), tiles, len(boxes), device=CPU, batch=BatchSize(8, CPU), seconds=seconds
                )
            assert set(seconds.phases) == {"read", "encode"}
        assert np.array_equal(*arrays)

    def broken():
        yield np.array([0]), np.zeros((1, 2, 2, 3), np.uint8)
        raise InputError("damaged at level 0")

    with Prefetch(broken(), 4) as tiles, pytest.raises(InputError, match="damaged"):
        encode_tiles(lambda x: (x,), tiles, 2, device=CPU, batch=BatchSize(1, CPU))


def test_prefetch_starts_at_once_stays_bounded_and_stops():
    made = []

    def endless():
        n = 0
        while True:
            made.append(n)
            yield n
            n += 1

    before = threading.active_count()
    with Prefetch(endless(), 3) as items:
        deadline = time.monotonic() + 60
        while len(made) < 4 and time.monotonic() < deadline:
            time.sleep(0.005)
        time.sleep(0.05)
        assert len(made) == 4  # three in the box, one in hand
        for n, item in enumerate(items):
            assert item == n
            if n == 9:
                break
    assert len(made) <= 15 and threading.active_count() == before
    made.clear()
    with Prefetch(endless(), 0):
        assert made == []


def iter_once(n):
    yield
    return n


def test_items_are_begun_one_ahead_of_their_turn():
    events, begun = [], [threading.Event() for _ in range(4)]
    assert [finish() for finish in in_turn(iter_once, range(5), ahead=3)] == list(range(5))

    def work(n):
        events.append(f"begin {n}")
        begun[n].set()
        if n == 1:
            raise InputError("bad")
        if n == 2:
            return "early"
        yield
        if n < 3:
            assert begun[n + 1].wait(5)  # would wait for ever if the next one came after
        events.append(f"finish {n}")
        return n

    out = []
    for finish in in_turn(work, [0, 1, 2, 3], ahead=1):
        try:
            out.append(finish())
        except InputError as e:
            out.append(str(e))
    assert out == [0, "bad", "early", 3] and sorted(events[:2]) == ["begin 0", "begin 1"]
    events.clear()

    def plain(n):
        events.append(f"begin {n}")
        yield
        events.append(f"finish {n}")
        return n

    assert [finish() for finish in in_turn(plain, [0, 1], ahead=0)] == [0, 1]
    assert events == ["begin 0", "finish 0", "begin 1", "finish 1"]


def test_what_was_begun_ahead_is_closed_when_the_run_stops():
    closed, begun = [], threading.Event()

    def work(n):
        if n == 1:
            begun.set()
        try:
            yield
        finally:
            closed.append(n)

    turns = in_turn(work, [0, 1, 2], ahead=1)
    next(turns)
    assert begun.wait(5)
    turns.close()
    assert sorted(closed) == [0, 1]


def test_columns_are_written_as_pandas_writes_them():
    columns = {
        "x": np.array([0, 7, -3]),
        "attention": np.array([1 / 3, np.nan, 1e-12]),
        "score_a": np.array([0.1, 1e20, -0.0], np.float32),
    }
    assert dumps_csv({"kind": "attention"}, columns) == dumps_csv({"kind": "attention"}, pd.DataFrame(columns))


def test_reader_threads_and_batches_change_no_feature(lrmil, chain, tmp_path):
    out = []
    for n, options in enumerate((["--workers", "1"], ["--workers", "3", "--batch-size", "7"])):
        said = lrmil(
            "embed", chain.tiles_hr / "s00.tiles.csv", "--encoder", "demo-vit", *options, "-o", tmp_path / f"{n}.h5"
        )
        assert said.code == 0, said.err
        out.append(read_features(tmp_path / f"{n}.h5"))
    assert np.array_equal(out[0].coords, out[1].coords) and np.allclose(out[0].features, out[1].features, atol=2e-5)
    assert len(np.unique(out[0].features[:, 0])) > len(out[0].features) / 2
    assert (
        lrmil(
            "embed",
            chain.tiles_hr / "s00.tiles.csv",
            "--encoder",
            "demo-vit",
            "--workers",
            "0",
            "-o",
            tmp_path / "x.h5",
        ).code
        == 2
    )


def test_predict_imports_no_more_than_it_uses(chain, tmp_path):
    slide = chain.manifest.parent / "slides" / "s00.svs"
    code = (
        "import sys; from lrmil_cli.app import run; code = run(sys.argv[1:]); "
        "print(code, *(m for m in ('pandas', 'scipy', 'sklearn', 'matplotlib', 'onnxruntime') if m in sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "predict", str(slide), "-m", str(chain.model), "-o", str(tmp_path), "--quiet"],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.stdout.split() == ["0"], done.stderr
