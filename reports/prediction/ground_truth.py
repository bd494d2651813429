"""Ground truth for the predictor: settings chosen at random, predicted and written down, then measured on one card.

    python reports/prediction/ground_truth.py choose N > settings.jsonl
    python reports/prediction/ground_truth.py predict settings.jsonl > predictions.jsonl      # no card
    python reports/prediction/ground_truth.py measure settings.jsonl LEDGER SECONDS           # on the card
    python reports/prediction/ground_truth.py table predictions.jsonl LEDGER

The full-size qwen2.5-vl-3b, V100 kernels on whatever card is there, without the 14 GiB cap, so that settings on both sides
of the budget end well and their true peaks are known. Predictions are a trace of the very setting and a replay of the
allocator; the context and cuBLAS workspace come from the calibration, which was made on other settings.
"""

import gc
import json
import random
import sys
import time
from pathlib import Path
from statistics import mean, quantiles
from typing import Any

from budgetft.contract import Contract
from budgetft.gpu import load_gpu
from budgetft.knobs import Knobs
from budgetft.measure.job import Job
from budgetft.model import load_model
from budgetft.value import Value
from budgetft.workload import Shape, Workload

GIB = 2**30
BUDGET_BYTES = 14 * GIB
UNCAPPED_BYTES = 70 * GIB
LAYERS = 36
IMAGES = ((448, 448), (672, 672), (896, 504), (1288, 728), (280, 504))
MOST_TOKENS = 7000


class Setting(Value):
    """One entry of settings.jsonl."""

    rank: int
    shape: Shape
    knobs: Knobs


def choose(count: int) -> list[Setting]:
    """Random settings, grouped by rank so that few models are built; a quarter are the stock recipe."""
    draw = random.Random(20261124)
    found: dict[str, Setting] = {}
    while len(found) < count:
        images = (draw.choice(IMAGES),) * draw.choice((1, 1, 1, 2, 3, 4))
        supervised = draw.choice((60, 160, 300))
        shape = Shape(images=images, text_tokens=supervised + draw.choice((96, 200, 400)), supervised_tokens=supervised)
        micro_batch = draw.choice((1, 2, 3, 4, 6, 8, 12, 16))
        if micro_batch * shape.total_tokens(28) > MOST_TOKENS:
            continue
        stock = draw.random() < 0.25
        knobs = Knobs(
            micro_batch=micro_batch,
            grad_accum=draw.choice((1, 2)),
            checkpointed_layers=LAYERS if stock else draw.choice((0, 6, 12, 18, 24, 30, 33, LAYERS, LAYERS)),
            loss="full" if stock else draw.choice(("chunked", "chunked", "chunked", "supervised", "full")),
            vision="stock" if stock else "frozen",
            attention="stock" if stock else draw.choice(("efficient", "efficient", "efficient", "math")),
            lora="stock" if stock else draw.choice(("lean", "lean", "lean", "stock")),
            allocator="default" if stock else draw.choice(("default", "expandable")),
        )
        setting = Setting(rank=draw.choice((8, 16, 16, 64, 128)), shape=shape, knobs=knobs)
        found.setdefault(setting.model_dump_json(), setting)
    return sorted(found.values(), key=lambda setting: (setting.knobs.allocator, setting.rank))


def job_of(setting: Setting) -> Job:
    """The planning problem that the setting belongs to, uncapped."""
    effective = setting.knobs.micro_batch * setting.knobs.grad_accum
    return Job(
        gpu=load_gpu("v100-16g"),
        budget_bytes=UNCAPPED_BYTES,
        model=load_model("qwen2.5-vl-3b"),
        contract=Contract(rank=setting.rank, alpha=2 * setting.rank, effective_batch=effective, max_length=8192),
        workload=Workload.uniform(setting.shape),
        evidence="emulated",
    )


def read(path: str) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file."""
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def predict(path: str) -> None:
    """One line a setting: the bytes that a trace and a replay say."""
    from budgetft.predict.allocator import CachingAllocator
    from budgetft.predict.calibrate import load_calibration
    from budgetft.predict.trace import trace_step

    calibration = load_calibration("h100-80g")
    for row in read(path):
        setting = Setting.read(row, source=path)
        job = job_of(setting)
        shapes = job.micro_batch_shapes(setting.knobs, worst=True)
        trace = trace_step(job.model, job.contract, setting.knobs, shapes, gpu=job.gpu)
        allocator = CachingAllocator(setting.knobs.allocator)
        allocator.run(trace.static_events)
        half = calibration.workspace_bytes // 2
        allocator.run([(-1, half), (-2, half)])
        allocator.run(trace.events)
        answer = {
            "tensors": allocator.allocated_peak_bytes,
            "reserved": allocator.reserved_peak_bytes,
            "process": allocator.reserved_peak_bytes + calibration.context_bytes,
            "flops": trace.flops,
        }
        print(json.dumps({**row, "predicted": answer}), flush=True)


def measure(path: str, ledger_path: str, seconds: float) -> None:
    """Measure in order until the time is up; every outcome is in the ledger when its line is printed."""
    import torch

    from budgetft.measure.child import Probing, current_stack
    from budgetft.measure.ledger import Ledger

    started, ledger, stack = time.monotonic(), Ledger(Path(ledger_path)), current_stack("cuda")
    settings = [Setting.read(row, source=path) for row in read(path)]
    probing, rank = None, None
    for number, setting in enumerate(settings):
        job = job_of(setting)
        if ledger.find(job, setting.knobs, stack) is not None:
            continue
        if time.monotonic() - started > seconds:
            print(f"time is up after {number} of {len(settings)}")
            return
        torch.cuda.memory._set_allocator_settings(f"expandable_segments:{setting.knobs.allocator == 'expandable'}")
        if probing is None or rank != setting.rank:
            probing = None
            gc.collect()
            torch.cuda.empty_cache()
            probing, rank = Probing(job, setting.knobs, lambda phase: None), setting.rank
        probing.rebind(job)
        begun = time.monotonic()
        outcome = probing.probe(setting.knobs, timed_steps=1)
        outcome = outcome.replace(stack=stack, wall_seconds=time.monotonic() - begun)
        ledger.append(job, outcome)
        peak = (outcome.process_peak_bytes or 0) / GIB
        print(f"{number:3} {outcome.status} {peak:6.2f} GiB {outcome.wall_seconds:5.1f} s", flush=True)


def table(predictions: str, ledger_path: str) -> None:
    """Errors by kind of bytes, for stock and for all, near the budget and anywhere."""
    from budgetft.knobs import is_stock
    from budgetft.measure.ledger import Ledger

    said = {}
    for row in read(predictions):
        setting = Setting.read({key: row[key] for key in ("rank", "shape", "knobs")}, source=predictions)
        said[job_of(setting).fingerprint(), setting.knobs] = row["predicted"]
    groups: dict[str, list[dict[str, float]]] = {"all": [], "stock": [], "within 10 % of 14 GiB": []}
    for job, outcome in Ledger(Path(ledger_path)).rows():
        predicted = said.get((job.fingerprint(), outcome.knobs))
        if predicted is None or outcome.process_peak_bytes is None or outcome.allocated_peak_bytes is None:
            continue
        assert outcome.reserved_peak_bytes is not None
        error = {
            "tensors": predicted["tensors"] / outcome.allocated_peak_bytes - 1,
            "reserved": predicted["reserved"] / outcome.reserved_peak_bytes - 1,
            "process": predicted["process"] / outcome.process_peak_bytes - 1,
        }
        groups["all"].append(error)
        if is_stock(outcome.knobs):
            groups["stock"].append(error)
        if abs(outcome.process_peak_bytes / BUDGET_BYTES - 1) <= 0.1:
            groups["within 10 % of 14 GiB"].append(error)
    print("| settings | bytes | n | mean | p95 | worst | worst under |\n|---|---|---|---|---|---|---|")
    for name, rows in groups.items():
        for kind in ("tensors", "reserved", "process"):
            values = [row[kind] for row in rows]
            if len(values) > 1:
                sizes = [abs(value) for value in values]
                print(
                    f"| {name} | {kind} | {len(sizes)} | {mean(sizes):.2%} | {quantiles(sizes, n=20)[-1]:.2%}"
                    f" | {max(sizes):.2%} | {min(values):+.2%} |"
                )


def main() -> None:
    """See the module."""
    command, *words = sys.argv[1:]
    if command == "choose":
        for setting in choose(int(words[0])):
            print(setting.model_dump_json())
    elif command == "predict":
        predict(words[0])
    elif command == "measure":
        measure(words[0], words[1], float(words[2]))
    else:
        table(*words)


if __name__ == "__main__":
    main()
