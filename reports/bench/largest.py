"""The largest example that trains inside the budget: frames of 1288x728 in one example, stock recipe and budgetft's knobs.

    python reports/bench/largest.py predict > largest.jsonl                      # no GPU: traced and replayed, bisected
    python reports/bench/largest.py measure largest.jsonl > largest-measured.jsonl      # on a GPU: N, and a tenth more

One example a micro-batch, two accumulated, rank 16; 256 text tokens with the first frame and 2 for each further one, 160 of
them supervised.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from budgetft.contract import Contract
from budgetft.gpu import load_gpu
from budgetft.knobs import Knobs, stock_knobs
from budgetft.measure.child import current_stack
from budgetft.measure.job import Job
from budgetft.measure.probe import Prober
from budgetft.model import load_model
from budgetft.predict.allocator import CachingAllocator
from budgetft.predict.calibrate import load_calibration
from budgetft.workload import Shape, Workload

GIB = 2**30
BUDGET_BYTES = 14 * GIB
MODEL = load_model("qwen2.5-vl-3b")
FIRST = Shape(images=((1288, 728),), text_tokens=256, supervised_tokens=160)
OURS = Knobs(
    micro_batch=1,
    grad_accum=2,
    checkpointed_layers=MODEL.layers,
    pointwise="fused",
    allocator="expandable",
    base_precision="fp16",
)
PATHS = {
    "stock": stock_knobs(micro_batch=1, effective_batch=2, layers=MODEL.layers, base_precision="fp16"),
    "all layers checkpointed": OURS,
    "and their inputs on the host": OURS.replace(offload="activations"),
}


def job_of(frames: int) -> Job:
    """One example of so many frames a micro-batch."""
    shape = FIRST.with_frames(frames, MODEL, video=False)
    contract = Contract(rank=16, effective_batch=2, max_length=MODEL.max_positions, frames_per_example=frames)
    return Job(
        gpu=load_gpu("v100-16g"),
        budget_bytes=BUDGET_BYTES,
        model=MODEL,
        contract=contract,
        workload=Workload.uniform(shape),
        host=load_gpu("h100-80g"),
        evidence="emulated",
    )


def predicted_bytes(frames: int, knobs: Knobs) -> int:
    """Of the process: a trace of the step, replayed through the allocator."""
    from budgetft.predict.trace import trace_step

    job, calibration = job_of(frames), load_calibration("h100-80g", "emulated")
    trace = trace_step(job.model, job.contract, knobs, job.worst_micro_batch(knobs), gpu=job.gpu)
    allocator = CachingAllocator(knobs.allocator)
    allocator.run(trace.static_events)
    allocator.run([(-1 - number, calibration.workspace_bytes // 2) for number in range(2)])
    allocator.run(trace.events)
    return allocator.reserved_peak_bytes + calibration.context_bytes


def most(fits: Callable[[int], bool]) -> int:
    """The largest count that fits, found by doubling and halving; 0 when one does not."""
    low, high = 0, 1
    while fits(high):
        low, high = high, 2 * high
    while high - low > max(1, low // 20):
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def predict() -> None:
    """A JSON line a path."""
    for name, knobs in PATHS.items():
        found: dict[int, int] = {}

        def fits(frames: int, knobs: Knobs = knobs, found: dict[int, int] = found) -> bool:
            found[frames] = predicted_bytes(frames, knobs)
            print(f"{frames} frames: {found[frames] / GIB:.2f} GiB", file=sys.stderr)
            return found[frames] <= BUDGET_BYTES

        frames = most(fits)
        tokens = FIRST.with_frames(frames, MODEL, video=False).visual_tokens(MODEL.pixel_step)
        row = {"path": name, "frames": frames, "visual_tokens": tokens, "predicted_bytes": found.get(frames)}
        print(json.dumps({**row, "knobs": knobs.model_dump()}), flush=True)


def measure(path: Path) -> None:
    """Probe what was predicted to be the most, and a tenth (at least one frame) more, under the cap."""
    for row in map(json.loads, path.read_text().splitlines()):
        knobs = Knobs.read(row["knobs"], source=path.name)
        for frames in (row["frames"], row["frames"] + max(1, row["frames"] // 10)):
            told: dict[str, Any] = {"path": row["path"], "frames": frames}
            told["visual_tokens"] = FIRST.with_frames(frames, MODEL, video=False).visual_tokens(MODEL.pixel_step)
            with Prober(job_of(frames), stack=current_stack("cuda"), timed_steps=1) as prober:
                outcome = prober.probe(knobs)
            kept = ("status", "phase", "evidence", "allocated_peak_bytes", "process_peak_bytes", "micro_seconds")
            print(json.dumps(told | {name: getattr(outcome, name) for name in kept}), flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "predict":
        predict()
    else:
        measure(Path(sys.argv[2]))
