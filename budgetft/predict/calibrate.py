"""What a trace cannot see, per card and software stack: context, workspace, real speed; measured, or assumed and said so."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import median

from pydantic import Field

from budgetft.errors import UsageError
from budgetft.gpu import Gpu
from budgetft.outcome import Evidence
from budgetft.plan import write_text_atomically
from budgetft.predict.law import Work
from budgetft.profiles import profiles_folder
from budgetft.value import Value, read_json

FOREIGN_STACK_SHARE = 0.01
"""Of a process peak. Traces on torch 2.14 were that far from probes on 2.11 at the 95th percentile (reports/prediction)."""
FEW_PROBES = 20
FEW_SHARE = 0.03
"""Of a process peak: the least uncertainty that so few probes leave; 60 of one job had a worst error of 2.9 %."""


class Calibration(Value):
    """Residuals between a trace and a process. ``assumed.json`` serves cards that have none of their own."""

    name: str
    evidence: Evidence
    card: str | None
    """The profile that this calibration is for; None for any."""
    torch: str | None
    context_bytes: int = Field(ge=0)
    """What the process holds outside torch's allocator."""
    workspace_bytes: int = Field(ge=0)
    """What torch allocates for cuBLAS, once per thread that uses it."""
    uncertainty_share: float = Field(ge=0)
    """Half-width of the interval around a predicted process peak, as a share of it."""
    matmul_efficiency: float = Field(gt=0, le=1)
    """Of the card's fp16 rate."""
    bandwidth_efficiency: float = Field(gt=0, le=1)
    launch_seconds: float = Field(ge=0)
    """Host time per kernel: a segment never takes less than its kernels times this."""
    host_gb_per_s: float = Field(default=12.0, gt=0)
    """Copies between pinned host memory and the card; the default is what PCIe 3 x16 gives, assumed."""
    connection_bytes: int = Field(default=887_095_296, ge=0)
    """What a process holds to be connected to others on other cards; the default is what NCCL took between two H100s
    (reports/guard/cards.json)."""
    link_gb_per_s: float = Field(default=12.0, gt=0)
    """What reaches a card from the others; the default is what PCIe 3 x16 gives, assumed."""
    source: str

    def on_torch(self, version: str) -> "Calibration":
        """This calibration for use with another torch than it was made on: the interval is wider, and ``name`` says so."""
        series, ours = (".".join(text.split(".")[:2]) for text in (version, self.torch or version))
        if series == ours:
            return self
        name = f"{self.name} (made on torch {ours}, used with {series}: {FOREIGN_STACK_SHARE:.0%} wider)"
        return self.replace(name=name, uncertainty_share=self.uncertainty_share + FOREIGN_STACK_SHARE)

    def micro_seconds(self, work: Sequence[Work], gpu: Gpu) -> float | None:
        """Seconds of one micro-batch: each segment takes its kernels' launching, or their running if that is longer.

        None when the rates of ``gpu`` are unknown.
        """
        if gpu.fp16_tflops is None or gpu.memory_bandwidth_gb_per_s is None:
            return None
        rate = gpu.fp16_tflops * 1e12 * self.matmul_efficiency
        bandwidth = gpu.memory_bandwidth_gb_per_s * 1e9 * self.bandwidth_efficiency
        fetched = sum(each.host_bytes for each in work) / (self.host_gb_per_s * 1e9)
        return fetched + sum(
            max(each.kernels * self.launch_seconds, each.flops / rate + each.moved_bytes / bandwidth) for each in work
        )


@dataclass(frozen=True, kw_only=True)
class Observation:
    """One probe beside its prediction without a calibration: bytes of tensors in their blocks, and what its segments do."""

    blocks_bytes: int
    reserved_bytes: int
    work: Sequence[Work]
    allocated_peak_bytes: int
    reserved_peak_bytes: int
    process_peak_bytes: int
    micro_seconds: float | None


def load_calibration(name: str, evidence: Evidence = "measured") -> Calibration:
    """The calibration made for the card profile ``name`` (``cpu`` for the byte meter), else the assumed one.

    A card that stands in for others (``evidence`` emulated) runs other kernels than by itself: of two, the one made so.
    """
    folder = profiles_folder() / "calibrations"
    found = [(path, data) for path in sorted(folder.glob("*.json")) if (data := read_json(path)).get("card") == name]
    for path, data in sorted(found, key=lambda pair: pair[1].get("evidence") != evidence):
        return Calibration.read(data, source=str(path))
    return Calibration.read(read_json(folder / "assumed.json"), source="assumed.json")


def fit_calibration(
    observations: Sequence[Observation], gpu: Gpu, *, name: str, evidence: Evidence, torch: str, source: str
) -> Calibration:
    """Context and workspace are medians; the uncertainty is the worst error that is left, and more after few probes; speeds
    have the least log error."""
    if len(observations) < 3:
        raise UsageError(f"{len(observations)} probes are too few to calibrate {gpu.name}; at least 3 are needed")
    context = int(median(o.process_peak_bytes - o.reserved_peak_bytes for o in observations))
    workspace = max(0, int(median(o.allocated_peak_bytes - o.blocks_bytes for o in observations)))
    errors = [(o.reserved_bytes + workspace + context) / o.process_peak_bytes - 1 for o in observations]
    least = FEW_SHARE if len(observations) < FEW_PROBES else 0.0
    matmul, bandwidth, launch = _speeds([o for o in observations if o.micro_seconds], gpu)
    return Calibration(
        name=name,
        evidence=evidence,
        card=name,
        torch=torch,
        context_bytes=context,
        workspace_bytes=workspace,
        uncertainty_share=max(least, round(max(abs(error) for error in errors) + 0.0005, 3)),
        matmul_efficiency=matmul,
        bandwidth_efficiency=bandwidth,
        launch_seconds=launch,
        source=source,
    )


def _speeds(observations: Sequence[Observation], gpu: Gpu) -> tuple[float, float, float]:
    """Efficiencies and seconds per launch, searched on a grid: three numbers, a few dozen observations."""
    import numpy as np

    if gpu.fp16_tflops is None or gpu.memory_bandwidth_gb_per_s is None or not observations:
        return 0.5, 0.7, 7e-6
    works = [np.array([(w.flops, w.moved_bytes, w.kernels) for w in o.work]) for o in observations]
    seconds = np.log([o.micro_seconds or 1.0 for o in observations])
    rate, bandwidth = gpu.fp16_tflops * 1e12, gpu.memory_bandwidth_gb_per_s * 1e9

    def error(matmul: float, moving: float, launch: float) -> float:
        said = [
            np.maximum(work[:, 2] * launch, work[:, 0] / (rate * matmul) + work[:, 1] / (bandwidth * moving)).sum()
            for work in works
        ]
        return float(np.mean((np.log(said) - seconds) ** 2))

    grid = product(np.linspace(0.1, 0.9, 33), np.linspace(0.1, 1.0, 19), np.geomspace(2e-6, 4e-4, 41))
    matmul, moving, launch = min(grid, key=lambda three: error(*three))
    return round(float(matmul), 3), round(float(moving), 3), round(float(launch), 8)


def write_calibration(calibration: Calibration, path: Path) -> None:
    """Write whole or not at all."""
    write_text_atomically(path, calibration.model_dump_json(indent=2) + "\n")
