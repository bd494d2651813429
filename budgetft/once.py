"""What a run costs once, beside its steps: the download, pre-computed features, the start, and room on the disk."""

from pydantic import Field

from budgetft.duration import duration_text
from budgetft.knobs import Knobs
from budgetft.model import Model
from budgetft.outcome import Estimate
from budgetft.value import Value
from budgetft.wording import size_words

DOWNLOAD_BYTES_PER_SECOND = 12.5e6
"""100 Mbit/s, assumed."""
READ_BYTES_PER_SECOND = 5e8
"""From a disk to the GPU, assumed: a SATA SSD."""
KERNEL_SECONDS = 10.0
"""In which CUDA starts and the driver loads and compiles kernels, assumed."""
PUBLISHED_BYTES = 2
"""A parameter on the hub, in bf16."""
CHECKPOINTS = 3
"""On the disk at once: the newest two and the one that is being written (budgetft/train/checkpoint.py)."""


class OneTime(Value):
    """One cost that a run has once."""

    name: str
    seconds: float | None = Field(default=None, ge=0)
    disk_bytes: int | None = Field(default=None, ge=0)
    note: str = ""
    """What was assumed."""

    def text(self) -> str:
        """``download 7.5 GB, about 10 min (at 100 Mbit/s, assumed)``."""
        size = "" if self.disk_bytes is None else f" {size_words(self.disk_bytes)}"
        time = "" if self.seconds is None else f"{',' if size else ''} about {duration_text(self.seconds)}"
        return f"{self.name}{size}{time}" + (f" ({self.note})" if self.note else "")


def one_time_costs(
    model: Model,
    knobs: Knobs,
    estimate: Estimate,
    *,
    at_hand: bool,
    features_seconds: float | None = None,
    features_bytes: int | None = None,
) -> tuple[OneTime, ...]:
    """Those of a run of ``knobs``; ``at_hand``: the weights are on this machine already.

    ``features_seconds`` and ``features_bytes`` are of the vision features that are still to be computed; 0 or None: none.
    """
    found = []
    weights = None if model.parameters is None else model.parameters * PUBLISHED_BYTES
    if not at_hand and weights is not None:
        seconds = weights / DOWNLOAD_BYTES_PER_SECOND
        found.append(OneTime(name="download", seconds=seconds, disk_bytes=weights, note="at 100 Mbit/s, assumed"))
    if features_bytes:
        found.append(OneTime(name="vision features", seconds=features_seconds, disk_bytes=features_bytes, note="predicted"))
    read = estimate.term_bytes("weights") if weights is None else weights
    micro_seconds = (estimate.step_seconds or 0.0) / max(1, knobs.grad_accum)
    start = KERNEL_SECONDS + read / READ_BYTES_PER_SECOND + 2 * micro_seconds
    found.append(OneTime(name="start", seconds=start, note="load, then try the heaviest batch; assumed"))
    trained = estimate.term_bytes("adapter") + estimate.term_bytes("optimizer")
    disk = CHECKPOINTS * trained + estimate.term_bytes("adapter")
    found.append(OneTime(name="checkpoints and adapter", disk_bytes=disk, note="on disk"))
    return tuple(found)
