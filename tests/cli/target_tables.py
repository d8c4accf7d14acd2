"""Made cohorts of numbers and of survival, and what models say of them, as training and predict write it."""

import json

import numpy as np
import pandas as pd

from lrmil_cli.evaluation.receipt import FILES, SEEDS
from lrmil_cli.files.header import make_header, step
from lrmil_cli.files.tables import write_table
from lrmil_cli.files.tensors import save_tensors
from lrmil_cli.targets.task import make_task

TIMES = (6.0, 12.0, 24.0)


def cohort(n=60, seed=0):
    """A severity that sets the number and the hazard, and what is known of ``n`` patients."""
    rng = np.random.default_rng(seed)
    severity = rng.normal(size=n)
    happens, leaves = rng.exponential(20 * np.exp(-severity)), rng.exponential(40, n)
    return pd.DataFrame(
        {
            "slide_id": [f"s{i}" for i in range(n)],
            "patient_id": [f"p{i}" for i in range(n)],
            "severity": severity,
            "amount": 10 + 3 * severity + rng.normal(size=n),
            "months": np.minimum(happens, leaves),
            "died": (happens < leaves).astype(int),
            "age": rng.integers(40, 80, n).astype(str),
            "stage": rng.choice(["I", "II", "III"], n),
        }
    )


def numbers(known, noise, seed=1):
    """What a model says of the amounts."""
    rng = np.random.default_rng(seed)
    rows = known[["slide_id", "patient_id"]].assign(label=known["amount"], fold=np.arange(len(known)) % 3 + 1)
    return rows.assign(predicted=10 + 3 * known["severity"] + noise * rng.normal(size=len(known)))


def risks(known, noise, seed=1):
    """What a model says of survival; risks of a fold have a unit and a cut of their own."""
    rng = np.random.default_rng(seed)
    said = known["severity"] + noise * rng.normal(size=len(known))
    fold = np.arange(len(known)) % 3 + 1
    rows = known[["slide_id", "patient_id"]].assign(time=known["months"], event=known["died"], fold=fold)
    rows = rows.assign(risk=said * fold + 5 * fold, group=np.where(said > 0, "high", "low"), median=np.nan)
    curves = np.exp(-np.exp(said.to_numpy())[:, None] * np.array(TIMES) / 20)
    return rows.assign(**{f"survival_{t:.6g}": curves[:, i] for i, t in enumerate(TIMES)})


TASKS = {
    "regression": make_task("regression", label="amount"),
    "survival": make_task("survival", time="months", event="died"),
}


def write_target(path, rows, kind, of="a"):
    """A table of out-of-fold predictions."""
    times = {"times": list(TIMES)} if kind == "survival" else {}
    history = [step("train-teacher", {"of": of}, {})]
    header = make_header("predictions", settings={}, target=TASKS[kind].as_json(), **times, history=history)
    write_table(path, header, rows)
    return path


def write_answers(folder, rows, kind, of="m"):
    """The folder that predict writes, of the same answers; of every second slide a cascade, unsure at last, read HR."""
    folder.mkdir(exist_ok=True)
    for n, row in enumerate(rows.to_dict("records")):
        if kind == "regression":
            own = {"predicted": row["predicted"], "spread": 0.1, "folds": [row["predicted"]]}
        else:
            survival = [row[f"survival_{t:.6g}"] for t in TIMES]
            own = {"risk": row["risk"], "group": row["group"], "times": list(TIMES), "survival": survival}
            own |= {"predicted": row["group"], "median": None, "cut": 0.0, "folds": [row["risk"]], "spread": 0.1}
        model = {"path": "model.safetensors", "digest": step("distill-student", {"of": of}, {})["digest"]}
        record = make_header(
            "prediction",
            slide={"id": row["slide_id"]},
            settings={"tiles": {"mpp": 2.0}},
            target=TASKS[kind].as_json(),
            history=[step("predict", {"slide": row["slide_id"]}, {})],
            model=model,
            tiles_read={"lr": 10, "hr": 30 * (n % 2)},
            seconds={"open": 0.5, "encode": 1.0},
            uncertain="the heads differ" if n % 2 else None,
            unlike_training={"unlike": n % 3 == 1},
            escalation={"reason": None, "lr": own, "hr": None},
            **own,
        )
        (folder / f"{row['slide_id']}.prediction.json").write_text(json.dumps(record))
    return folder


def write_student(path, known, kind, noise, seeds=()):
    """A model file with what training leaves beside it: teacher, LR-only and distilled student, by their noise.

    Args:
        seeds: noise of the distilled student by seed; the LR-only student's is its own.
    """
    import torch

    history = [step("distill-student", {"of": kind}, {})]
    header = make_header(
        "model",
        settings={"head": "abmil", "seed": 0},
        target=TASKS[kind].as_json(),
        classes=[],
        preset="lrmil",
        encoder_saw_test_pixels=False,
        patients={"from": "column"},
        history=history,
        cost={},
    )
    save_tensors(path, {"x": torch.zeros(1)}, header)
    says = numbers if kind == "regression" else risks
    times = {"times": list(TIMES)} if kind == "survival" else {}
    common = {"settings": {}, "target": TASKS[kind].as_json(), **times, "history": history}
    for n, (who, ending) in enumerate(FILES.items()):
        if who in noise:
            rows = says(known, noise[who], n)
            write_table(f"{path.with_suffix('')}{ending}", make_header("predictions", **common), rows)
    if seeds:
        runs = [("distilled", n, own) for n, own in enumerate(seeds, 1)]
        runs += [("lr_only", n, noise["lr_only"]) for n in range(1, len(seeds) + 1)]
        rows = pd.concat([says(known, own, 10 + n).assign(student=who, seed=n) for who, n, own in runs])
        write_table(f"{path.with_suffix('')}{SEEDS}", make_header("seeds", **common), rows)
    return path
