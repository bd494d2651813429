"""Seconds of a step from what it does: a few physical parameters, each with its uncertainty.

A host launches kernels one after the other; a GPU runs them in that order. Segment j of a micro-batch takes the host h_j and
the GPU w_j seconds; the GPU cannot end segment j before the host has launched it, nor before its own earlier work is done. With
H_j the sum of the h up to j and W_j that of the w, the micro-batch ends at max over j of H_j + W_n - W_j (j from 0, all its
segments n): the longest path through launches, then work.

    h = forward_launch x kernels from Python + backward_launch x kernels from autograd's engine
    w = product flops / (product_share x rate) + attention flops / (attention_share x rate)
        + (element-wise bytes + product_bytes_share x bytes of products) / (bandwidth_share x bandwidth)
        + small_kernel x kernels + bytes from the host / host_copy

A product with few rows or columns is slow by its bytes and by ``small_kernel``, not by its flops. The optimizer adds
``OPTIMIZER_LAUNCHES`` launches and its own bytes, once a step.

Legend of array suffixes: R micro-batches, S segments, F quantities, P sets of parameters, G settings, Q parameters.
"""

import math
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
from pydantic import Field

from budgetft.gpu import Gpu
from budgetft.predict.memory_model import Affine, MemoryModel, StepSegment, Work
from budgetft.profiles import profiles_folder
from budgetft.value import Value, read_toml

PARAMETERS = (
    *("forward_launch_seconds", "backward_launch_seconds", "small_kernel_seconds"),
    *("product_share", "attention_share", "bandwidth_share", "product_bytes_share", "host_copy_gb_per_s"),
)
"""In the order of every array of parameters, which holds their logarithms."""
LAUNCHES = slice(0, 2)
OPTIMIZER_LAUNCHES = 150
"""Of unscaling, clipping and AdamW over all adapters at once: 7 to 15 ms on hosts with 53 to 78 microseconds a launch."""
OPTIMIZER_PASSES = 10
"""Times that an adapter's size is read or written in fp32: gradient, weight and two moments, and for the norm."""
DRIFT = 0.08
"""How much a host's launches vary from one minute to the next, beside what the repeats of one probe show: a standard deviation
of a logarithm, before it is fitted to what is seen. On the hosts of reports/prediction it was 0.1 to 0.2."""
LEFT_OVER = 0.1
"""What the formula misses between settings, likewise."""
STEP_BANDWIDTH = 0.8
"""Of the bandwidth of one large addition, what the kernels of a step reach: 0.7 against 0.88 of the data sheet on an H200."""
ELSEWHERE = 1.6
"""To which factor the launches of one host are believed on another."""
MIDDLE_80 = 1.2816
"""Standard deviations on each side of the median that hold 80 % of a normal distribution."""
MOST_NUMBERS = 4_000_000
"""In one array while several sets of parameters are tried at once."""
STEP = 0.1
"""Of a logarithm, to each side, over which derivatives are taken: the longest path changes from segment to segment."""


class Belief(Value):
    """A positive quantity with a log-normal distribution: its median, and the factor of one standard deviation."""

    value: float = Field(gt=0)
    factor: float = Field(ge=1)
    source: str = ""

    @property
    def spread(self) -> float:
        """Standard deviation of the logarithm."""
        return math.log(self.factor)

    def seen(self, value: float, factor: float, source: str) -> "Belief":
        """This belief after a measurement of ``value`` that is right to ``factor``: both weighed by their variances."""
        ours, theirs = 1 / max(self.spread, 1e-6) ** 2, 1 / max(math.log(factor), 1e-6) ** 2
        middle = (ours * math.log(self.value) + theirs * math.log(value)) / (ours + theirs)
        return Belief(value=math.exp(middle), factor=math.exp((ours + theirs) ** -0.5), source=source)


class Speeds(Value):
    """What is believed of a GPU and its host. Rates are shares of ``tflops`` and ``gb_per_s``."""

    tflops: float = Field(gt=0)
    """Dense 16-bit matrix rate that the shares are of: the data sheet's where it is known."""
    gb_per_s: float = Field(gt=0)
    forward_launch_seconds: Belief
    """Host time a kernel that Python launches: in forward passes, and where a backward pass computes them again."""
    backward_launch_seconds: Belief
    """Host time a kernel that autograd's engine launches."""
    small_kernel_seconds: Belief
    """GPU time that every kernel takes whatever it does."""
    product_share: Belief
    attention_share: Belief
    """Fused attention, both passes; causality is not subtracted from its flops."""
    bandwidth_share: Belief
    product_bytes_share: Belief
    host_copy_gb_per_s: Belief
    drift: float = Field(default=DRIFT, ge=0)
    left_over: float = Field(default=LEFT_OVER, ge=0)

    @property
    def middle_Q(self) -> np.ndarray:
        """Logarithms of the medians."""
        return np.log([getattr(self, name).value for name in PARAMETERS])

    @property
    def spread_Q(self) -> np.ndarray:
        """Standard deviations of the logarithms."""
        return np.array([getattr(self, name).spread for name in PARAMETERS])

    def with_parameters(self, middle_Q: np.ndarray, spread_Q: np.ndarray, source: str) -> "Speeds":
        """The same with other medians and standard deviations, all of logarithms."""
        beliefs = {
            name: Belief(value=float(math.exp(middle)), factor=float(math.exp(spread)), source=source)
            for name, middle, spread in zip(PARAMETERS, middle_Q, spread_Q, strict=True)
        }
        return self.replace(**beliefs)

    def elsewhere(self) -> "Speeds":
        """The same GPU in another host, whose launches and copies are its own."""
        wider = {
            name: belief.replace(factor=max(belief.factor, ELSEWHERE))
            for name in (*PARAMETERS[LAUNCHES], "host_copy_gb_per_s")
            if (belief := getattr(self, name))
        }
        return self.replace(**wider)


@cache
def _priors() -> dict[str, Any]:
    return read_toml(profiles_folder() / "speed_priors.toml")


def prior_speeds(gpu: Gpu) -> Speeds:
    """What is believed of ``gpu`` before anything is measured: by its class, and by its data sheet where the profile has it.

    Without a rate in the profile the class's is taken, and the share of it is less sure.
    """
    classes = sorted(_priors()["class"], key=_capability, reverse=True)
    own = _priors()["class"][next((each for each in classes if _capability(each) <= gpu.capability), classes[-1])]
    beliefs = {name: _belief(entry) for name, entry in [*_priors()["host"].items(), *own.items()]}
    beliefs = _measured_rates(gpu, beliefs)
    tflops, gb_per_s = gpu.fp16_tflops, gpu.memory_bandwidth_gb_per_s
    unknown_tflops, unknown_gb_per_s = beliefs.pop("unknown_tflops"), beliefs.pop("unknown_gb_per_s")
    if tflops is None:
        tflops = unknown_tflops.value
        for name in ("product_share", "attention_share"):
            beliefs[name] = _wider(beliefs[name], unknown_tflops)
    if gb_per_s is None:
        gb_per_s = unknown_gb_per_s.value
        beliefs["bandwidth_share"] = _wider(beliefs["bandwidth_share"], unknown_gb_per_s)
    return Speeds.model_validate({"tflops": tflops, "gb_per_s": gb_per_s, **beliefs})


def _measured_rates(gpu: Gpu, beliefs: dict[str, Belief]) -> dict[str, Belief]:
    """``beliefs`` for a profile whose rates were measured on the GPU: they are reached already, and shares are of those."""
    if "measured" in gpu.sources.get("fp16_tflops", ""):
        reached = beliefs["product_share"].value
        ours = beliefs["product_share"].replace(value=0.95, factor=1.15, source="the profile's rate was measured")
        attention = beliefs["attention_share"]
        beliefs = {**beliefs, "product_share": ours, "attention_share": attention.replace(value=attention.value / reached)}
    if "measured" in gpu.sources.get("memory_bandwidth_gb_per_s", ""):
        ours = beliefs["bandwidth_share"].replace(value=STEP_BANDWIDTH, source="the profile's bandwidth was measured")
        beliefs = {**beliefs, "bandwidth_share": ours}
    return beliefs


def _capability(text: str) -> tuple[int, int]:
    major, minor = text.split(".")
    return int(major), int(minor)


def _belief(entry: Sequence) -> Belief:
    value, factor, source = entry
    return Belief(value=float(value), factor=float(factor), source=source)


def _wider(belief: Belief, other: Belief) -> Belief:
    source = f"{belief.source}; the profile has no rate: {other.source}"
    return belief.replace(factor=math.exp(math.hypot(belief.spread, other.spread)), source=source)


@dataclass(frozen=True, kw_only=True)
class StepWork:
    """What one optimizer step of a setting does: micro-batches, how often each, and the optimizer's bytes."""

    micro_RSF: np.ndarray
    times_R: np.ndarray
    optimizer_bytes: float
    least_seconds: float = 0.0
    """That a micro-batch takes at least, whatever it does: layers that come from other GPUs."""


QUANTITIES = ("products", "attention", "moved", "product_bytes", "kernels", "python_kernels", "host_bytes")


def rows_of(work: Sequence[Work]) -> np.ndarray:
    """(S, F): the same of segments that are at hand one by one."""
    return np.array(
        [
            (
                *(each.flops - each.attention_flops, each.attention_flops, each.moved_bytes, each.product_bytes),
                *(each.kernels, each.python_kernels, each.host_bytes),
            )
            for each in work
        ]
    )


@dataclass(frozen=True, kw_only=True)
class MicroWork:
    """What every segment of a micro-batch does, as a function of its size."""

    at_zero_SF: np.ndarray
    slope_SF: np.ndarray
    tower_S: np.ndarray
    """Whether a segment's part at zero is done anew for every group of images."""
    vision_group: float

    @classmethod
    def of(cls, memory_model: MemoryModel, checkpointed_layers: int, *, fp32_ratio: float = 1.0) -> "MicroWork":
        """``fp32_ratio``: how many times as long a product takes in fp32 as in 16 bits; it then counts so many times."""
        sequence = memory_model.sequence(checkpointed_layers)
        places: dict[int, int] = memory_model.kept.setdefault(
            "places", {}
        )  # one inner layer stands for many, in every sequence
        new = {id(each): each for each in sequence if id(each) not in places}
        if new:
            places |= {key: len(places) + number for number, key in enumerate(new)}
            more_U2F = np.array(
                [[*zip(*((part.at_zero, part.slope) for part in _parts(each)), strict=True)] for each in new.values()]
            )
            memory_model.kept["work"] = (
                np.concatenate([memory_model.kept["work"], more_U2F]) if "work" in memory_model.kept else more_U2F
            )
        at_zero_SF, slope_SF = memory_model.kept["work"][[places[id(each)] for each in sequence]].transpose(1, 0, 2).copy()
        at_zero_SF[:, 0] += (fp32_ratio - 1) * np.array([each.fp32_flops.at_zero for each in sequence])
        slope_SF[:, 0] += (fp32_ratio - 1) * np.array([each.fp32_flops.slope for each in sequence])
        for rows in (at_zero_SF, slope_SF):
            rows[:, 0] -= rows[:, 1]  # the flops of all products hold those of attention
        tower_S = np.array([each.phase == "vision" for each in sequence])
        return cls(at_zero_SF=at_zero_SF, slope_SF=slope_SF, tower_S=tower_S, vision_group=memory_model.vision_group)

    def at(self, size_R: np.ndarray) -> np.ndarray:
        """(R, S, F) of micro-batches of ``size_R`` worst examples."""
        groups_R1 = np.maximum(1, np.ceil(size_R / self.vision_group))[:, None]
        rounds_RS1 = np.where(self.tower_S, groups_R1, 1)[..., None]
        return self.at_zero_SF * rounds_RS1 + self.slope_SF * size_R[:, None, None]


def _parts(each: StepSegment) -> tuple[Affine, ...]:
    """In the order of ``QUANTITIES``."""
    return each.flops, each.attention_flops, each.moved, each.product_bytes, each.kernels, each.python_kernels, each.host


@dataclass(frozen=True, kw_only=True)
class Clock:
    """The seconds of some settings as a function of the parameters. ``tflops`` and ``gb_per_s`` as of :class:`Speeds`."""

    works: Sequence[StepWork]
    tflops: float
    gb_per_s: float
    optimizer: bool = True
    """Whether the optimizer's launches count."""
    _rows_RSF: np.ndarray = field(init=False)
    _times_R: np.ndarray = field(init=False)
    _least_R: np.ndarray = field(init=False)
    _first_G: np.ndarray = field(init=False)
    _optimizer_G: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        segments = max(work.micro_RSF.shape[1] for work in self.works)
        counts = [len(work.times_R) for work in self.works]
        rows_RSF, first = np.zeros((sum(counts), segments, len(QUANTITIES))), 0
        for work, count in zip(self.works, counts, strict=True):
            rows_RSF[first : first + count, : work.micro_RSF.shape[1]] = work.micro_RSF
            first += count
        made = {
            "_rows_RSF": rows_RSF,
            "_times_R": np.concatenate([work.times_R for work in self.works]),
            "_least_R": np.repeat([work.least_seconds for work in self.works], counts),
            "_first_G": np.cumsum([0, *counts[:-1]]),
            "_optimizer_G": np.array([work.optimizer_bytes for work in self.works]),
        }
        for name, array in made.items():
            object.__setattr__(self, name, array)

    def at_rates(self, tflops: float, gb_per_s: float) -> "Clock":
        """The same settings on a GPU of other rates."""
        if (tflops, gb_per_s) == (self.tflops, self.gb_per_s):
            return self
        other = copy(self)
        object.__setattr__(other, "tflops", tflops)
        object.__setattr__(other, "gb_per_s", gb_per_s)
        return other

    def log_seconds(self, parameters_PQ: np.ndarray) -> np.ndarray:
        """(P, G): logarithm of the seconds of an optimizer step of each setting."""
        sets = max(1, MOST_NUMBERS // self._rows_RSF[..., 0].size)
        parts = [parameters_PQ[start : start + sets] for start in range(0, len(parameters_PQ), sets)]
        return np.log(np.concatenate([self._seconds(part) for part in parts]))

    def seconds(self, speeds: Speeds) -> np.ndarray:
        """(G,): of an optimizer step of each setting, with the middle of what is believed of the GPU."""
        return np.exp(self.log_seconds(speeds.middle_Q[None])[0])

    def _seconds(self, parameters_PQ: np.ndarray) -> np.ndarray:
        forward, backward, small, product, attention, bandwidth, product_bytes, copy = np.exp(parameters_PQ.T)
        rate, moving, none = self.tflops * 1e12, self.gb_per_s * 1e9 * bandwidth, np.zeros(len(parameters_PQ))
        work_FP = [1 / (rate * product), 1 / (rate * attention), 1 / moving, product_bytes / moving, small, none, 1e-9 / copy]
        host_FP = [none, none, none, none, backward, forward - backward, none]
        host_RSP = np.cumsum(self._rows_RSF @ np.array(host_FP), axis=1)
        work_RSP = np.cumsum(self._rows_RSF @ np.array(work_FP), axis=1)
        micro_RP = work_RSP[:, -1] + np.maximum(0, (host_RSP - work_RSP).max(axis=1))
        each_RP = np.maximum(micro_RP, self._least_R[:, None]) * self._times_R[:, None]
        step_GP = np.add.reduceat(each_RP, self._first_G, axis=0)
        optimizer_GP = self._optimizer_G[:, None] / moving + self.optimizer * OPTIMIZER_LAUNCHES * forward
        return (step_GP + optimizer_GP).T

    def derivatives(self, parameters_Q: np.ndarray) -> np.ndarray:
        """(G, Q): of each setting's logarithm of seconds by each parameter's logarithm, over ``STEP`` to each side."""
        steps = STEP * np.eye(len(parameters_Q))
        up, down = self.log_seconds(parameters_Q + steps), self.log_seconds(parameters_Q - steps)
        return ((up - down) / (2 * STEP)).T


def launch_share(derivatives_GQ: np.ndarray) -> np.ndarray:
    """How much of each setting's seconds the host's launches decide, 0 to 1: its share of the host's drift."""
    return derivatives_GQ[:, LAUNCHES].sum(axis=1)


def spread_of(speeds: Speeds, derivatives_GQ: np.ndarray) -> np.ndarray:
    """Standard deviation of each setting's logarithm of seconds under ``speeds``, what the formula misses included."""
    parameters = ((derivatives_GQ * speeds.spread_Q) ** 2).sum(axis=1)
    return np.sqrt(parameters + speeds.left_over**2 + (launch_share(derivatives_GQ) * speeds.drift) ** 2)
