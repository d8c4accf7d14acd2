"""All commands by name, in the order in which ``lrmil --help`` shows them."""

from __future__ import annotations

from collections.abc import Callable

from lrmil_cli.commands import (
    benchmark,
    calibrate,
    demo,
    distill_encoder,
    distill_student,
    doctor,
    embed,
    evaluate,
    export_geojson,
    export_onnx,
    info,
    match,
    predict,
    report_pages,
    run,
    tile,
    train_teacher,
    verify,
)

COMMANDS: dict[str, Callable[..., None]] = {
    "tile": tile.tile,
    "match": match.match,
    "distill-encoder": distill_encoder.distill_encoder,
    "train-teacher": train_teacher.train_teacher,
    "distill-student": distill_student.distill_student,
    "predict": predict.predict,
    "report": report_pages.report,
    "export-geojson": export_geojson.export_geojson,
    "export-onnx": export_onnx.export_onnx,
    "run": run.run,
    "evaluate": evaluate.evaluate,
    "calibrate": calibrate.calibrate,
    "embed": embed.embed,
    "verify": verify.verify,
    "benchmark": benchmark.benchmark,
    "info": info.info,
    "doctor": doctor.doctor,
    "demo": demo.demo,
}
