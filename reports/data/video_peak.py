"""Eight frames of 1288x728 as one video, and the four images that have as many visual tokens: predicted, then probed.

    cd reports/data
    python video_peak.py predict > video_peak.jsonl                           # no GPU: a memory model is traced for each, 100 s
    python video_peak.py measure video_peak.jsonl > video_peak-measured.jsonl      # on a GPU

Qwen2.5-VL-3B for a V100's 14 GiB, one example a micro-batch, four accumulated, rank 16, about 256 text tokens, 160 of them
supervised; as few decoder layers are checkpointed as fit by the prediction for the images. Two frames make a temporal slice
of a video, which costs what one image does: the peaks should be the same, and so should the seconds.
"""

import json
import sys
from pathlib import Path

from budgetft.contract import Contract
from budgetft.gpu import load_gpu
from budgetft.knobs import Knobs
from budgetft.measure.child import current_stack
from budgetft.measure.job import Job
from budgetft.measure.probe import Prober
from budgetft.model import load_model
from budgetft.predict.estimator import Estimator
from budgetft.workload import Shape, Workload

FRAMES = 8
BATCH = 4
MODEL = load_model("qwen2.5-vl-3b")
ONE = Shape(images=((1288, 728),), text_tokens=256, supervised_tokens=160)
SHAPES = {
    "images": ONE.with_frames(FRAMES // MODEL.temporal_patch_size, MODEL, video=False),
    "video": ONE.with_frames(FRAMES, MODEL, video=True),
}


def job_of(name: str) -> Job:
    """Examples of that shape for a V100, probed on an H100 in its place."""
    gpu = load_gpu("v100-16g")
    contract = Contract(rank=16, effective_batch=BATCH, max_length=8192, max_pixels=1288 * 728, frames_per_example=FRAMES)
    return Job(
        gpu=gpu, budget_bytes=gpu.budget_bytes, model=MODEL, contract=contract, workload=Workload.uniform(SHAPES[name]),
        host=load_gpu("h100-80g"), evidence="emulated",
    )  # fmt: skip


def settings(checkpointed: int) -> Knobs:
    return Knobs(
        micro_batch=1,
        grad_accum=BATCH,
        checkpointed_layers=checkpointed,
        pointwise="fused",
        allocator="expandable",
        base_precision="fp16",
    )


def predict() -> None:
    """A JSON line for the images and one for the video, with the same knobs."""
    estimators = {name: Estimator(job_of(name), on_trace=lambda text: print(text, file=sys.stderr)) for name in SHAPES}
    counts = range(MODEL.layers + 1)
    knobs = next(knobs for knobs in map(settings, counts) if estimators["images"].estimate(knobs).fits)
    for name, estimator in estimators.items():
        estimate, shape = estimator.estimate(knobs), SHAPES[name]
        row = {
            "examples": name, "frames": shape.frames, "visual_tokens": shape.visual_tokens(MODEL.pixel_step),
            "text_tokens": shape.text_tokens, "budget_bytes": job_of(name).budget_bytes, "evidence": estimate.evidence,
            "predicted_process_peak_bytes": estimate.process_peak_bytes, "predicted_step_seconds": estimate.step_seconds,
            "knobs": knobs.model_dump(),
        }  # fmt: skip
        print(json.dumps(row), flush=True)


def measure(path: Path) -> None:
    """Probe both under the cap; what was predicted stays beside it."""
    for row in map(json.loads, path.read_text().splitlines()):
        knobs = Knobs.read(row.pop("knobs"), source=path.name)
        stack = current_stack("cuda")
        with Prober(job_of(row["examples"]), stack=stack, timed_steps=3) as prober:
            outcome = prober.probe(knobs)
        kept = ("status", "phase", "detail", "evidence", "allocated_peak_bytes", "reserved_peak_bytes", "process_peak_bytes",
                "step_seconds", "wall_seconds")  # fmt: skip
        row |= {name: getattr(outcome, name) for name in kept} | {"card": stack.gpu}
        if outcome.process_peak_bytes is not None:
            row["peak_off_percent"] = round(100 * (row["predicted_process_peak_bytes"] / outcome.process_peak_bytes - 1), 2)
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    if sys.argv[1:] == ["predict"]:
        predict()
    elif sys.argv[1:2] == ["measure"] and len(sys.argv) == 3:
        measure(Path(sys.argv[2]))
    else:
        raise SystemExit(__doc__)
