"""Two command lines for each command, for its help and for messages."""

from __future__ import annotations

#: Two command lines each.
EXAMPLES = {
    "tile": ("tile slides/ --mpp 2.0 -o tiles-lr", "tile slide.svs --mpp 0.5 -o tiles --thumbnail"),
    "match": ("match tiles-lr tiles-hr -o pairs", "match tiles-lr trident/20x_256px/patches -o pairs"),
    "distill-encoder": (
        "distill-encoder pairs --encoder uni -o lr-encoder.safetensors",
        "distill-encoder pairs --encoder uni --student vit_small_patch16_224 -o small.safetensors",
    ),
    "train-teacher": (
        "train-teacher slides.csv --tiles tiles-hr --encoder uni -o teacher",
        "train-teacher slides.csv --features trident/features --head clam_sb -o teacher",
    ),
    "distill-student": (
        "distill-student slides.csv --tiles tiles-lr --pairs pairs --teacher teacher --encoder lr-encoder.safetensors "
        "-o model.safetensors",
        "distill-student slides.csv --tiles tiles-lr --pairs pairs --teacher teacher --encoder fold{fold}.safetensors "
        "-o model.safetensors",
    ),
    "predict": (
        "predict slide.svs -m model.safetensors -o results --geojson results",
        "predict slides/ -m subtype.safetensors -m grade.safetensors -o results --report",
    ),
    "report": ("report results", "report results --slides slides/ --top-tiles tiles -o pages"),
    "export-geojson": (
        "export-geojson results/slide.attention.csv -o slide.geojson",
        "export-geojson results/ --style both --top 10 -o maps",
    ),
    "export-onnx": ("export-onnx model.safetensors", "export-onnx model.safetensors --int8 --check slide.svs"),
    "evaluate": (
        "evaluate model.predictions.csv -o evaluation",
        "evaluate results --slides slides.csv --level patient -o evaluation",
    ),
    "calibrate": (
        "calibrate model.safetensors model.predictions.csv -o calibrated.safetensors",
        "calibrate model.safetensors results --slides slides.csv -o ours.safetensors",
    ),
    "verify": ("verify model.safetensors", "verify model.safetensors --runtime onnx-int8"),
    "embed": (
        "embed tiles-hr --encoder uni -o features",
        "embed trident/features --repack --dtype float16 -o features",
    ),
    "benchmark": (
        "benchmark slide.svs --encoder uni --max-tiles 64",
        "benchmark slide.svs --read-only",
    ),
    "info": ("info slide.svs", "info --encoders"),
    "doctor": ("doctor", "doctor slides/ -m model.safetensors"),
    "run": (
        "run slides.csv --encoder uni -o run",
        "run slides.csv --encoder uni -o run --dry-run",
    ),
    "demo": ("demo demo-folder", "demo demo-folder --slides 24"),
}
