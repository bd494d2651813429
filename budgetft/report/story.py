"""What a page is made of, as values."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import median

from budgetft.outcome import Estimate, Outcome
from budgetft.plan import Plan
from budgetft.predict.memory_model import Moment
from budgetft.train.record import Record, Summary


@dataclass(frozen=True, kw_only=True)
class Probe:
    """One outcome beside what was predicted of it."""

    outcome: Outcome
    prediction: Estimate | None

    @property
    def source(self) -> str:
        """Where the outcome is from; a real step on the CPU's byte meter counts as predicted for the GPU, but was run."""
        return "on the CPU" if self.outcome.evidence == "predicted" else self.outcome.evidence

    @property
    def peak_residual(self) -> float | None:
        """Measured process peak over the predicted one, less one; None where either is unknown or the probe was cut short."""
        peak = self.outcome.process_peak_bytes
        if self.prediction is None or not peak or not self.outcome.fits:
            return None
        return peak / self.prediction.process_peak_bytes - 1


@dataclass(frozen=True, kw_only=True)
class Sampled:
    """What a model said to one example, beside what it should have said."""

    id: str
    text: str
    reference: str
    prompt: str = ""
    pictures: tuple[str, ...] = ()
    """Thumbnails as data URIs; none where the data are not at hand."""


@dataclass(frozen=True, kw_only=True)
class Story:
    """Everything that a page shows. A ``_note`` says where a part is from, or why it is missing."""

    plan: Plan
    plan_path: Path
    run: Path | None = None
    """The folder of the run; None for a plan alone."""
    layers: int | None
    """Decoder layers of the language model; None where it is not at hand."""
    pixel_step: int | None = None
    """Pixels of a side of one visual token; None where the model is not at hand."""
    moments: tuple[Moment, ...]
    """One micro-batch of the plan, predicted; empty when its model cannot be traced here."""
    predicted: Estimate | None
    """Of the plan's knobs, whatever was measured of them."""
    timeline_note: str
    probes: tuple[Probe, ...]
    prediction_note: str
    earlier: tuple[Outcome, ...]
    """Outcomes of the same job in the ledger that are not in the plan."""
    ledger_note: str
    records: tuple[Record, ...] = ()
    summary: Summary | None = None
    run_note: str = ""
    stopped: str = ""
    """What an unfinished run met in the step that it ended in."""
    samples: tuple[Sampled, ...] = ()
    samples_note: str = ""

    @property
    def name(self) -> str:
        """Of the run's folder, or of the plan's file."""
        return self.run.resolve().name if self.run else self.plan_path.stem

    @cached_property
    def train_seconds(self) -> float:
        """Of the steps that are done."""
        return self.summary.train_seconds if self.summary else sum(record.seconds for record in self.records)

    @property
    def run_speed(self) -> float:
        """Examples per second at the median step, of a run that has one."""
        if self.summary:
            return self.summary.samples_per_second
        return self.plan.contract.effective_batch / max(median(record.seconds for record in self.records), 1e-9)

    @property
    def run_peak_bytes(self) -> int | None:
        """The highest peak of the run so far, pre-flight included where that is known; None for a plan alone."""
        peaks = [self.summary.process_peak_bytes] if self.summary else []
        peaks += [record.process_peak_bytes for record in self.records[-1:]]
        return max(peaks, default=None)
