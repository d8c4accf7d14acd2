"""How fast `export-geojson` writes, against building dicts, json.dumps and gzip; and in how much memory.

    python examples/geojson_speed.py [TILES]        (default 100000)

Prints seconds and size of both, their ratio (best of three runs each), and the peak memory that either adds.
"""

import gzip
import json
import sys
import tempfile
import time
import tracemalloc
import uuid
from pathlib import Path

import numpy as np
import pandas as pd

from lrmil_cli.qupath.files import write_chunks
from lrmil_cli.qupath.geojson import NAMESPACE, make_document, measurements

SIDE = 512


def make_table(n):
    """An attention table of n tiles on a square slide."""
    cols = int(np.ceil(np.sqrt(n)))
    i = np.arange(n)
    attention = np.random.default_rng(0).gamma(0.3, 1, n)
    rows = pd.DataFrame(
        {
            "x": i % cols * SIDE,
            "y": i // cols * SIDE,
            "width": SIDE,
            "height": SIDE,
            "attention": attention / attention.sum(),
            "percentile": (np.argsort(np.argsort(attention)) / (n - 1) * 100).round(4),
        }
    )
    slide = {"id": "s", "path": "s.svs", "width": cols * SIDE, "height": cols * SIDE, "mpp": 0.5, "fingerprint": "f"}
    return {"slide": slide, "history": [{"command": "predict", "digest": "d"}]}, rows


def plain(path, header, rows):
    """The obvious way, with the same content."""
    values = measurements(rows)
    columns = [c.tolist() for c in values.values()]
    features = []
    for x, y, w, h, *numbers in zip(*(rows[c].tolist() for c in ("x", "y", "width", "height")), *columns):
        ring = [[x, y], [x + w, y], [x + w, y + h], [x, y + h], [x, y]]
        features.append(
            {
                "type": "Feature",
                "id": str(uuid.uuid5(NAMESPACE, f"f|d|{x}|{y}|{w}|{h}")),
                "geometry": {"type": "Polygon", "coordinates": [ring]},
                "properties": {"objectType": "tile", "measurements": dict(zip(values, numbers))},
            }
        )
    path.write_bytes(gzip.compress(json.dumps({"type": "FeatureCollection", "features": features}).encode()))


def ours(path, header, rows):
    """What the command does."""
    write_chunks(path, make_document(header, rows, "tiles").pieces)


def measure(write, path, header, rows):
    """Best seconds of three runs, bytes of the file, peak MB that a run adds."""
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        write(path, header, rows)
        seconds.append(time.perf_counter() - started)
    tracemalloc.start()
    write(path, header, rows)
    peak = tracemalloc.get_traced_memory()[1] / 1e6
    tracemalloc.stop()
    return min(seconds), path.stat().st_size, peak


def main():
    n = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    header, rows = make_table(n)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.geojson.gz"
        results = {}
        for name, write in (("dicts + json.dumps + gzip", plain), ("lrmil export-geojson", ours)):
            results[name] = measure(write, path, header, rows)
            s, size, peak = results[name]
            print(f"{name:<28}{s:7.2f} s{size / 1e6:8.2f} MB{peak:8.0f} MB of memory")
    (a, _, _), (b, _, _) = results.values()
    print(f"ratio {b / a:.2f} for {n} tiles")


if __name__ == "__main__":
    main()
