"""Eight frames of 1288x728 as one video, and the four images that have as many visual tokens: predicted, then probed.

    python reports/data/video_peak.py predict > video_peak.jsonl                             # no GPU: traced, 100 s
    python reports/data/video_peak.py measure video_peak.jsonl > video_peak-measured.jsonl      # on a GPU; emulated

Qwen2.5-VL-3B for a V100's 14 GiB, one example a micro-batch, four accumulated, rank 16, about 256 text tokens, 160 of them
label tokens; as few decoder layers are checkpointed as fit by the prediction for the images. Two frames make a temporal slice
of a video, which costs what one image does: the peaks should be the same, and so should the seconds.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from harness.arguments import commands, parser, there
from harness.evidence import gpu_name, read_lines, tell
from harness.jobs import LARGE, job, kept, probed, shape

from budgetft.contract import Contract
from budgetft.knobs import Knobs
from budgetft.measure.job import Job
from budgetft.model import load_model
from budgetft.predict.estimator import Estimator

FRAMES = 8
BATCH = 4
MODEL = load_model("qwen2.5-vl-3b")
SHAPES = {
    "images": shape(LARGE).with_frames(FRAMES // MODEL.temporal_patch_size, MODEL, video=False),
    "video": shape(LARGE).with_frames(FRAMES, MODEL, video=True),
}
KEPT = (
    *("status", "phase", "detail", "evidence", "allocated_peak_bytes", "reserved_peak_bytes", "process_peak_bytes"),
    *("step_seconds", "wall_seconds"),
)

options = parser(__doc__)
commands(options, {"predict": {}, "measure": {"predicted": there}})


def job_of(name: str) -> Job:
    """Examples of that shape for a V100, probed on an H100 in its place."""
    pixels = LARGE[0] * LARGE[1]
    contract = Contract(rank=16, effective_batch=BATCH, max_length=8192, max_pixels=pixels, frames_per_example=FRAMES)
    return job("v100-16g", MODEL, SHAPES[name], contract, host="h100-80g", evidence="emulated")


def settings(checkpointed: int) -> Knobs:
    fixed = {"pointwise": "fused", "allocator": "expandable", "base_precision": "fp16"}
    return Knobs(micro_batch=1, grad_accum=BATCH, checkpointed_layers=checkpointed, **fixed)


def predict() -> None:
    """A JSON line for the images and one for the video, with the same settings."""
    estimators = {name: Estimator(job_of(name), on_trace=lambda text: print(text, file=sys.stderr)) for name in SHAPES}
    every = map(settings, range(MODEL.layers + 1))
    knobs = next(knobs for knobs in every if estimators["images"].estimate(knobs).fits)
    for name, estimator in estimators.items():
        estimate, work = estimator.estimate(knobs), SHAPES[name]
        tell({
            "examples": name, "frames": work.frames, "visual_tokens": work.visual_tokens(MODEL.pixel_step),
            "text_tokens": work.text_tokens, "budget_bytes": job_of(name).budget_bytes, "evidence": estimate.evidence,
            "predicted_process_peak_bytes": estimate.process_peak_bytes, "predicted_step_seconds": estimate.step_seconds,
            "knobs": knobs.model_dump(),
        })  # fmt: skip


def measure(path: Path) -> None:
    """Probe both under the cap; what was predicted stays beside it."""
    for row in read_lines(path):
        knobs = Knobs.read(row.pop("knobs"), source=path.name)
        outcome = probed(job_of(row["examples"]), knobs, timed_steps=3)
        row |= {**kept(outcome, *KEPT), "card": outcome.stack.gpu if outcome.stack else gpu_name()}
        if outcome.process_peak_bytes is not None:
            row["peak_off_percent"] = round(100 * (row["predicted_process_peak_bytes"] / outcome.process_peak_bytes - 1), 2)
        tell(row)


def main() -> None:
    asked = options.parse_args()
    if asked.what == "predict":
        predict()
    else:
        measure(asked.predicted)


if __name__ == "__main__":
    main()
