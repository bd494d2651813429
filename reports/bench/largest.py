"""The largest example that trains inside the budget: frames of 1288x728 in one example, baseline and budgetft's settings.

    python reports/bench/largest.py predict > largest.jsonl                # no GPU: traced and replayed; minutes
    python reports/bench/largest.py measure largest.jsonl > largest-measured.jsonl      # on a GPU: N, and a tenth more

One example a micro-batch, two accumulated, rank 16; 256 text tokens with the first frame and 2 for each further one, 160 of
them label tokens. Predicted, then emulated: an H100 in a V100's place.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from harness.arguments import commands, parser, there
from harness.evidence import read_lines, tell
from harness.jobs import BUDGET_BYTES, LARGE, job, kept, probed, replayed, shape
from harness.tables import gib

from budgetft.contract import Contract
from budgetft.knobs import Knobs, stock_knobs
from budgetft.measure.job import Job
from budgetft.model import load_model
from budgetft.predict.calibrate import load_calibration

MODEL = load_model("qwen2.5-vl-3b")
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
    contract = Contract(rank=16, effective_batch=2, max_length=MODEL.max_positions, frames_per_example=frames)
    work = shape(LARGE).with_frames(frames, MODEL, video=False)
    return job("v100-16g", MODEL, work, contract, budget_bytes=BUDGET_BYTES, host="h100-80g", evidence="emulated")


def tokens(frames: int) -> int:
    return job_of(frames).workload.worst[0].visual_tokens(MODEL.pixel_step)


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
    calibration = load_calibration("h100-80g", "emulated")
    for name, knobs in PATHS.items():
        found: dict[int, int] = {}

        def fits(frames: int, knobs: Knobs = knobs, found: dict[int, int] = found) -> bool:
            found[frames] = replayed(job_of(frames), knobs, calibration)[0]["process"]
            print(f"{frames} frames: {gib(found[frames])} GiB", file=sys.stderr)
            return found[frames] <= BUDGET_BYTES

        frames = most(fits)
        row: dict[str, Any] = {"path": name, "frames": frames, "visual_tokens": tokens(frames)}
        tell({**row, "predicted_bytes": found.get(frames), "knobs": knobs.model_dump()})


def measure(path: Path) -> None:
    """Probe what was predicted to be the most, and a tenth (at least one frame) more, under the cap."""
    for row in read_lines(path):
        knobs = Knobs.read(row["knobs"], source=path.name)
        for frames in (row["frames"], row["frames"] + max(1, row["frames"] // 10)):
            outcome = probed(job_of(frames), knobs, timed_steps=1)
            names = ("status", "phase", "evidence", "allocated_peak_bytes", "process_peak_bytes", "micro_seconds")
            tell({"path": row["path"], "frames": frames, "visual_tokens": tokens(frames), **kept(outcome, *names)})


options = parser(__doc__)
commands(options, {"predict": {}, "measure": {"predicted": there}})


def main() -> None:
    asked = options.parse_args()
    if asked.what == "predict":
        predict()
    else:
        measure(asked.predicted)


if __name__ == "__main__":
    main()
