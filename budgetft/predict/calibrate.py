"""What a trace cannot see, per GPU and software stack: context, workspace, real speed; measured, or assumed and said so."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
from pydantic import AliasChoices, Field

from budgetft.cache import cache_folder
from budgetft.errors import UsageError
from budgetft.gpu import Gpu, load_gpu
from budgetft.outcome import Evidence
from budgetft.plan import write_text_atomically
from budgetft.predict.clock import LAUNCHES, PARAMETERS, Clock, Speeds, StepWork, prior_speeds, rows_of
from budgetft.predict.memory_model import Work
from budgetft.profiles import profiles_folder
from budgetft.units import format_gib
from budgetft.value import Value, read_json

FOREIGN_STACK_SHARE = 0.01
"""Of a process peak. Traces on torch 2.14 were that far from probes on 2.11 at the 95th percentile (reports/prediction)."""
OLDER = 1.5
"""To which factor the three speeds of an older calibration are believed: the formula that they were fitted with was another."""
MOST_UNCERTAIN = 0.2
"""Of a process peak: a calibration that leaves more is of no use."""
LEAST_LAUNCH = 5e-7
"""Seconds: the driver alone takes more."""
MOST_COPY = 500.0
"""GB/s from the host: NVLink to a Grace host has 450."""
FEW_PROBES = 20
FEW_SHARE = 0.03
"""Of a process peak: the least uncertainty that so few probes leave; 60 of one job had a worst error of 2.9 %."""


class Calibration(Value):
    """Residuals between a trace and a process. ``assumed.json`` serves GPUs that have none of their own."""

    name: str
    evidence: Evidence
    gpu: str | None = Field(validation_alias=AliasChoices("gpu", "card"))
    """The profile that this calibration is for; None for any."""
    torch: str | None
    context_bytes: int = Field(ge=0)
    """What the process holds outside torch's allocator."""
    workspace_bytes: int = Field(ge=0)
    """What torch allocates for cuBLAS, once per thread that uses it."""
    uncertainty_share: float = Field(ge=0)
    """Half-width of the interval around a predicted process peak, as a share of it."""
    speeds: Speeds | None = None
    """None: what is believed of the GPU's class (:func:`budgetft.predict.clock.prior_speeds`)."""
    matmul_efficiency: float | None = Field(default=None, gt=0, le=1)
    """In files of before ``speeds``, this and the next two: shares of the data sheet's rates, and host seconds a launch."""
    bandwidth_efficiency: float | None = Field(default=None, gt=0, le=1)
    launch_seconds: float | None = Field(default=None, ge=0)
    host_gb_per_s: float = Field(default=12.0, gt=0)
    """Copies between pinned host memory and the GPU; the default is what PCIe 3 x16 gives, assumed."""
    connection_bytes: int = Field(default=887_095_296, ge=0)
    """What a process holds to be connected to others on other GPUs; the default is what NCCL took between two H100s
    (reports/guard/cards.json)."""
    link_gb_per_s: float = Field(default=12.0, gt=0)
    """What reaches a GPU from the others; the default is what PCIe 3 x16 gives, assumed."""
    source: str

    def on_torch(self, version: str) -> "Calibration":
        """This calibration for use with another torch than it was made on: the interval is wider, and ``name`` says so."""
        series, ours = (".".join(text.split(".")[:2]) for text in (version, self.torch or version))
        if series == ours:
            return self
        name = f"{self.name} (made on torch {ours}, used with {series}: {FOREIGN_STACK_SHARE:.0%} wider)"
        return self.replace(name=name, uncertainty_share=self.uncertainty_share + FOREIGN_STACK_SHARE)

    def speeds_of(self, gpu: Gpu) -> Speeds:
        """What is believed of the speed of ``gpu``: this calibration's where it has been measured, else its class's."""
        if self.speeds is not None:
            return self.speeds.elsewhere()
        speeds, older = prior_speeds(gpu), f"calibration {self.name!r}, of before"
        if self.matmul_efficiency is not None and self.gpu is not None:
            speeds = speeds.replace(product_share=speeds.product_share.seen(self.matmul_efficiency, OLDER, older))
        if self.bandwidth_efficiency is not None and self.gpu is not None:
            speeds = speeds.replace(bandwidth_share=speeds.bandwidth_share.seen(self.bandwidth_efficiency, OLDER, older))
        if self.launch_seconds and self.gpu is not None:
            launch = speeds.forward_launch_seconds.seen(self.launch_seconds, OLDER, older)
            speeds = speeds.replace(forward_launch_seconds=launch)
        return speeds

    def micro_seconds(self, work: Sequence[Work], gpu: Gpu) -> float:
        """Seconds of one micro-batch that does ``work``, at the medians of what is believed."""
        rows, speeds = rows_of(work), self.speeds_of(gpu)
        once = StepWork(micro_RSF=rows[None], times_R=np.ones(1), optimizer_bytes=0.0)
        clock = Clock(works=[once], tflops=speeds.tflops, gb_per_s=speeds.gb_per_s, optimizer=False)
        return float(np.exp(clock.log_seconds(speeds.middle_Q[None])[0, 0]))


@dataclass(frozen=True, kw_only=True)
class Observation:
    """One probe beside its prediction without a calibration: bytes of tensors in their blocks, and what its step does."""

    blocks_bytes: int
    reserved_bytes: int
    work: StepWork
    allocated_peak_bytes: int
    reserved_peak_bytes: int
    process_peak_bytes: int
    step_seconds: float | None
    error: float | None = None
    """Standard error of ``step_seconds`` as a share of them."""
    stock: bool = False
    """Of the stock recipe: its peaks are predicted up to 6 % too high, which says nothing of other settings."""


def load_calibration(name: str, evidence: Evidence = "measured") -> Calibration:
    """The calibration made for the GPU profile ``name`` (``cpu`` for the byte meter), else the assumed one.

    The user's own (:func:`add_calibration`) come before those that ship.

    A GPU that stands in for others (``evidence`` emulated) runs other kernels than by itself: of two, the one made so.
    """
    folder = profiles_folder() / "calibrations"
    files = [*sorted((cache_folder() / "calibrations").glob("*.json")), *sorted(folder.glob("*.json"))]
    found = [(path, data) for path in files if (data := read_json(path)).get("gpu", data.get("card")) == name]
    for path, data in sorted(found, key=lambda pair: pair[1].get("evidence") != evidence):
        calibration = Calibration.read(data, source=str(path))
        if path.parent != folder:
            check_calibration(calibration, load_gpu(name))
        return calibration
    return Calibration.read(read_json(folder / "assumed.json"), source="assumed.json")


def fit_calibration(
    observations: Sequence[Observation],
    gpu: Gpu,
    *,
    name: str,
    evidence: Evidence,
    torch: str,
    source: str,
    speeds: Speeds | None = None,
) -> Calibration:
    """Context and workspace are medians; the uncertainty is the worst error that is left, and more after few probes.

    ``speeds``: what is believed beforehand; None: what is of the GPU's class.
    """
    if len(observations) < 3:
        raise UsageError(f"{len(observations)} probes are too few to calibrate {gpu.name}; at least 3 are needed")
    context = int(median(o.process_peak_bytes - o.reserved_peak_bytes for o in observations))
    workspace = max(0, int(median(o.allocated_peak_bytes - o.blocks_bytes for o in observations)))
    ours = [o for o in observations if not o.stock] or observations
    errors = [(o.reserved_bytes + workspace + context) / o.process_peak_bytes - 1 for o in ours]
    least = FEW_SHARE if len(observations) < FEW_PROBES else 0.0
    return Calibration(
        name=name,
        evidence=evidence,
        gpu=name,
        torch=torch,
        context_bytes=context,
        workspace_bytes=workspace,
        uncertainty_share=max(least, round(max(abs(error) for error in errors) + 0.0005, 3)),
        speeds=_speeds([o for o in observations if o.step_seconds], speeds or prior_speeds(gpu), source),
        source=source,
    )


def _speeds(observations: Sequence[Observation], speeds: Speeds, source: str) -> Speeds:
    """The parameters, believed beforehand as ``speeds`` says; each observation is a setting of its own."""
    from budgetft.predict.learn import Learner, Reading, learned_speeds

    if not observations:
        return speeds
    clock = Clock(works=[o.work for o in observations], tflops=speeds.tflops, gb_per_s=speeds.gb_per_s)
    places = np.arange(len(observations), dtype=float)[:, None] * 10.0  # far apart: nothing is shared but the parameters
    learner = Learner(places, clock.log_seconds(speeds.middle_Q[None])[0], clock=clock, speeds=speeds)
    read = [
        Reading(setting=number, log_seconds=math.log(o.step_seconds or 1.0), error=o.error)
        for number, o in enumerate(observations)
    ]
    return learned_speeds(speeds, learner.learn(read), source)


def check_calibration(calibration: Calibration, gpu: Gpu) -> None:
    """Raises ``UsageError`` for what no ``gpu`` can do: rates above its data sheet, a context larger than its memory."""
    problems, speeds = [], calibration.speeds
    if calibration.gpu != gpu.name:
        problems.append(f"it is of {calibration.gpu}, not of {gpu.name}")
    if calibration.context_bytes + calibration.workspace_bytes > gpu.memory_bytes / 2:
        held = format_gib(calibration.context_bytes + calibration.workspace_bytes)
        problems.append(f"a context of {held} on a GPU of {format_gib(gpu.memory_bytes)}")
    if calibration.uncertainty_share > MOST_UNCERTAIN:
        problems.append(f"peaks off by {calibration.uncertainty_share:.0%}, more than {MOST_UNCERTAIN:.0%}")
    if speeds is not None:
        if gpu.fp16_tflops is not None and speeds.tflops > 1.01 * gpu.fp16_tflops:
            problems.append(f"{speeds.tflops:g} TFLOP/s, where the data sheet has {gpu.fp16_tflops:g}")
        if gpu.memory_bandwidth_gb_per_s is not None and speeds.gb_per_s > 1.01 * gpu.memory_bandwidth_gb_per_s:
            problems.append(f"{speeds.gb_per_s:g} GB/s, where the data sheet has {gpu.memory_bandwidth_gb_per_s:g}")
        shares = {name: getattr(speeds, name).value for name in ("product_share", "attention_share", "bandwidth_share")}
        problems += [
            f"{name} {value:.2f}: more than the data sheet's whole rate" for name, value in shares.items() if value > 1
        ]
        launches = {name: getattr(speeds, name).value for name in PARAMETERS[LAUNCHES]}
        problems += [f"{name} {value:.1e}: no host is so fast" for name, value in launches.items() if value < LEAST_LAUNCH]
        if speeds.host_copy_gb_per_s.value > MOST_COPY:
            problems.append(f"host_copy_gb_per_s {speeds.host_copy_gb_per_s.value:.0f}: more than {MOST_COPY:.0f}")
    if problems:
        raise UsageError(f"calibration {calibration.name!r} cannot be true: {'; '.join(problems)}")


def add_calibration(path: Path) -> Calibration:
    """Check the calibration in ``path`` and keep it: estimates and plans for its GPU use it from now on.

    Raises ``UsageError`` when it cannot be read, is of a GPU without a profile, or claims what is physically impossible.
    """
    found = Calibration.read(read_json(path), source=str(path))
    if found.gpu is None:
        raise UsageError(f"{path} is of no GPU in particular", hint="budgetft gpus --calibrate writes one that is")
    check_calibration(found, load_gpu(found.gpu))
    write_calibration(found, cache_folder() / "calibrations" / f"{found.gpu}-{found.evidence}.json")
    return found


def write_calibration(calibration: Calibration, path: Path) -> None:
    """Write whole or not at all."""
    write_text_atomically(path, calibration.model_dump_json(indent=2) + "\n")
