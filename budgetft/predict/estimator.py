"""From a memory model and a calibration to an Estimate: peaks of the tensors, the allocator and the process; seconds of a
step.
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from copy import copy
from importlib.metadata import version

import numpy as np

from budgetft.data.bucket import padded_tokens
from budgetft.errors import BudgetftError, UsageError
from budgetft.gpu import Gpu
from budgetft.knobs import STOCK_TOWERS, Knobs, is_stock
from budgetft.measure.job import Job
from budgetft.outcome import CONNECTION, Estimate, Term
from budgetft.predict.blocks import fp32_ratio, in_layers, mixed_memory_model
from budgetft.predict.calibrate import FOREIGN_STACK_SHARE, Calibration, load_calibration
from budgetft.predict.clock import (
    MIDDLE_80,
    OPTIMIZER_PASSES,
    Clock,
    MicroWork,
    Speeds,
    StepWork,
    spread_of,
)
from budgetft.predict.fit import compose_memory_model, fit_memory_model, with_optimizer
from budgetft.predict.machine import speeds_here
from budgetft.predict.memory_model import LARGEST_MICRO_BATCH, SHALLOW, Layout, MemoryModel
from budgetft.predict.recording import Recorded, Recording, covers
from budgetft.predict.replay import Replays
from budgetft.predict.store import (
    find_foreign_memory_model,
    find_foreign_recording,
    find_memory_model,
    find_recording,
    keep_memory_model,
    keep_recording,
    memory_model_key,
    recording_key,
)

Recordings = dict[str, tuple[Recording | None, str]]
"""By key; with each, the software that it is of where that is not what is installed."""
STATIC_TERMS = ("weights", "adapter", "gradients", "optimizer", "inputs", "workspace")

MATH_SHARE = 0.15
"""N x N scores leave gaps in the allocator that one replayed micro-batch does not show (reports/prediction)."""


class Estimator:
    """Estimates of one job. Memory models are fitted on first use and kept.

    ``at_once``: rather than trace, take a memory model of other versions of torch, transformers or peft, with a wider interval.
    ``recordings``: those read so far, which estimators of several jobs may share. ``only``: the layouts that will be asked for.
    ``record_missing``: make a recording where there is none, and keep it: a minute or two that serve every size and rank.
    """

    def __init__(
        self,
        job: Job,
        *,
        calibration: Calibration | None = None,
        speeds: Speeds | None = None,
        on_trace: Callable[[str], None] = lambda text: None,
        at_once: bool = False,
        recordings: Recordings | None = None,
        only: tuple[Layout, ...] | None = None,
        record_missing: bool = False,
    ) -> None:
        self.job = job
        self.only = only
        self._record_missing = record_missing
        self.at_once = at_once
        self.foreign: dict[Knobs, str] = {}
        """Combinations whose memory model is of other software, and of which."""
        self.calibration = calibration or _calibration_of(job).on_torch(version("torch"))
        self.speeds = speeds or self._speeds_of(job)
        """Of the GPU that the probes run on, else of the planned one."""
        self._middle_Q = self.speeds.middle_Q
        self._rows: dict[tuple[Knobs, int, float], MicroWork] = {}
        self._clocks: dict[tuple[Knobs, ...], Clock] = {}
        self._lives: dict[Knobs, tuple[int, dict[str, int]]] = {}
        self._recordings = {} if recordings is None else recordings
        self._on_trace = on_trace
        self._combinations: dict[Knobs, Knobs] = {}
        self._memory_models: dict[Knobs, MemoryModel] = {}
        self._replays: dict[Knobs, Replays] = {}
        self._sizes: dict[tuple[int, str], tuple[int, Counter[float]]] = {}

    def on(self, gpu: Gpu, budget_bytes: int, *, calibration: Calibration, speeds: Speeds) -> "Estimator":
        """The same job on another GPU that runs the same kernels: memory models, replays and clocks are shared: most of the
        work.

        Raises ``ValueError`` for a GPU with other kernels.
        """
        if (gpu.flash_attention, gpu.efficient_attention) != (self.job.gpu.flash_attention, self.job.gpu.efficient_attention):
            raise ValueError(f"{gpu.name} runs other attention kernels than {self.job.gpu.name}")
        other = copy(self)
        other.job = self.job.replace(gpu=gpu, budget_bytes=budget_bytes)
        other.calibration, other.speeds, other._middle_Q = calibration, speeds, speeds.middle_Q
        return other

    def _speeds_of(self, job: Job) -> Speeds:
        gpu = job.host or job.gpu
        believed = self.calibration.speeds_of(gpu)
        return believed if job.device == "cpu" else speeds_here(believed, gpu, kernels_of=job.gpu)

    def memory_model(self, knobs: Knobs) -> MemoryModel:
        """The memory model of everything but micro-batch and checkpointed layers."""
        combination = self.combination(knobs)
        memory_model = self._memory_models.get(combination)
        if memory_model is None:
            mixed = in_layers(combination.fp32_blocks)
            memory_model = self._memory_models[combination] = (
                self._mixed(combination) if mixed else self._found_or_traced(combination)
            )
        return memory_model

    def _mixed(self, combination: Knobs) -> MemoryModel:
        from budgetft.predict.short import static_sizes  # loads torch

        sizes = static_sizes(self.job.model, self.job.contract, combination)
        static = {name: sum(each) for name, each in sizes.items()}
        layers, names = self.job.model.layers, combination.fp32_blocks
        return mixed_memory_model(
            names, layers, lambda blocks: self.memory_model(combination.replace(fp32_blocks=blocks)), static
        )

    def combination(self, knobs: Knobs) -> Knobs:
        """As :meth:`combined`, each found once."""
        found = self._combinations.get(knobs)
        if found is None:
            found = self._combinations[knobs] = self.combined(knobs)
        return found

    @staticmethod
    def combined(knobs: Knobs) -> Knobs:
        """The knobs that a memory model is of: one serves every micro-batch, number of checkpointed layers, allocator and
        batching.
        """
        return knobs.replace(
            micro_batch=1, grad_accum=1, checkpointed_layers=0, allocator="default", batching="padded", deterministic=False
        )

    def _found_or_traced(self, combination: Knobs) -> MemoryModel:
        """Of this software: from a recording, or stored; with ``at_once``, of other software; else traced here."""
        key = self._memory_model_key(combination)
        place = recording_key(self.job.model, self.job.contract, combination, self.job.gpu)
        if combination.fp32_blocks:
            return find_memory_model(key) or self._traced(combination, key)
        recording, others = self._recording(combination, place)
        if not others and (memory_model := self._from_recording(combination, recording)) is not None:
            return memory_model
        if (memory_model := find_memory_model(key)) is not None:
            return memory_model
        if self.at_once and (found := find_foreign_memory_model(key)):
            memory_model, self.foreign[combination] = found
            return memory_model
        if others and (memory_model := self._from_recording(combination, recording)) is not None:
            self.foreign[combination] = others
            return memory_model
        return self._traced(combination, key)

    def _recording(self, combination: Knobs, key: str) -> tuple[Recording | None, str]:
        """The recording stored under ``key``, and the software that it is of where that is not what is installed."""
        if key not in self._recordings:
            found: tuple[Recording | None, str] = find_recording(key), ""
            if found[0] is None and self.at_once:
                found = find_foreign_recording(key) or found
            if found[0] is None and self._record_missing and self.job.model.packed:
                found = self._recorded(combination, key), ""
            self._recordings[key] = found
        return self._recordings[key]

    def _recorded(self, combination: Knobs, key: str) -> Recording | None:
        """Made here, for next time too; None where the model's sizes follow no formula."""
        from budgetft.predict.record import record  # loads torch

        job, other = self.job, combination.replace(offload="none")
        kept = None
        if combination.offload != "none":
            kept = self._recording(other, recording_key(job.model, job.contract, other, job.gpu))[0]

        def tell(part: str) -> None:
            self._on_trace(f"tracing {job.model.name} ({combination.base_precision}), {part}: once, it is kept for next time")

        try:
            made = record(job.model, job.contract, combination, gpu=job.gpu, kept=kept, on_trace=tell)
        except BudgetftError:
            return None
        keep_recording(key, made)
        return made

    def _memory_model_key(self, combination: Knobs) -> str:
        job = self.job
        return memory_model_key(job.model, job.contract, combination, job.workload.worst[0], job.gpu, self.layouts(combination))

    def _from_recording(self, combination: Knobs, recording: Recording | None) -> MemoryModel | None:
        job = self.job
        model, shape, rank = job.model, job.workload.worst[0], job.contract.rank
        if recording is None or not covers(recording, model, shape):
            return None
        source = Recorded(recording=recording, model=model, shape=shape, rank=rank, loss_chunk=combination.loss_chunk)
        if combination.optimizer in recording.static:
            static = source.at(1).static(combination.optimizer)
        else:
            from budgetft.predict.short import static_sizes  # loads torch

            static = static_sizes(model, job.contract, combination)
        layouts = self.layouts(combination)
        replays = compose_memory_model(source, model, combination, shape, static=static, layouts=layouts)
        self._replays[combination] = replays
        return replays.memory_model

    def _traced(self, combination: Knobs, key: str) -> MemoryModel:
        job = self.job
        if combination.optimizer != "adamw":  # nothing but its states depends on it, and no recording serves either
            memory_model = with_optimizer(
                self.memory_model(combination.replace(optimizer="adamw")), job.model, job.contract, combination
            )
        else:
            shape, layouts = job.workload.worst[0], self.layouts(combination)
            memory_model = fit_memory_model(
                job.model, job.contract, combination, shape, gpu=job.gpu, layouts=layouts, on_trace=self._on_trace
            )
        keep_memory_model(key, memory_model)
        return memory_model

    def overhead(self, knobs: Knobs) -> tuple[int, int]:
        """(allocated, reserved) bytes that the allocator adds to the live ones of ``knobs`` at their peak."""
        if knobs.fp32_blocks:
            return self.overhead(knobs.replace(fp32_blocks=()))
        memory_model, combination = self.memory_model(knobs), self.combination(knobs)
        if (replays := self._replays.get(combination)) is not None:
            return replays.at(knobs.allocator, knobs.micro_batch, knobs.checkpointed_layers)
        return memory_model.overhead[knobs.allocator].at(knobs.micro_batch, knobs.checkpointed_layers)

    def layouts(self, combination: Knobs) -> tuple[Layout, ...]:
        """The templates that a memory model of ``combination`` needs."""
        if self.only is not None:
            return self.only
        if is_stock(combination):  # the stock recipe checkpoints all layers or none
            return ("checkpointed",)
        if combination.vision in STOCK_TOWERS:  # nor does any other trainer
            return ("checkpointed", "plain")
        return ("checkpointed", "mixed", "plain") if self.job.model.layers >= SHALLOW else ("checkpointed", "plain")

    def saved_bytes(self, knobs: Knobs) -> int:
        """Of the frozen layers, what each of several GPUs does not hold."""
        if not self.job.shared:
            return 0
        from budgetft.predict.sharing import saved_bytes  # loads torch

        return saved_bytes(self.job, knobs.base_precision)

    def gather_seconds(self, knobs: Knobs) -> float:
        """In which a micro-batch's layers reach a GPU, where several share them; computing goes on beside it."""
        if not self.job.shared:
            return 0.0
        from budgetft.predict.sharing import gathered_bytes

        return gathered_bytes(self.job, knobs.base_precision) / (self.calibration.link_gb_per_s * 1e9)

    def uncertainty_of(self, knobs: Knobs) -> float:
        """Half-width of the interval around the process peak of ``knobs``, as a share of it."""
        share = self.calibration.uncertainty_share
        if self.combination(knobs) in self.foreign:
            share += FOREIGN_STACK_SHARE
        scores = knobs.attention in ("math", "eager") and self.job.device == "cuda"
        return max(share, MATH_SHARE) if scores else share

    def least_bytes(self, knobs: Knobs) -> int:
        """The process peak of ``knobs`` but for what the allocator adds: cheap, and never more than the estimate's.

        Raises ``UsageError`` above the largest micro-batch that a memory model covers.
        """
        if knobs.micro_batch > LARGEST_MICRO_BATCH:
            raise UsageError(
                f"micro_batch {knobs.micro_batch} is above {LARGEST_MICRO_BATCH}, the largest that is predicted",
                hint="choose a smaller one, with more accumulation",
            )
        live, _ = self._live(knobs)
        return live + self.calibration.workspace_bytes - self.saved_bytes(knobs) + self._outside_bytes()

    def may_fit(self, knobs: Knobs) -> bool:
        """Whether ``knobs`` would fit if the allocator added nothing."""
        return self._within(self.least_bytes(knobs), knobs)

    def _within(self, process_bytes: int, knobs: Knobs) -> bool:
        return process_bytes * (1 + self.uncertainty_of(knobs)) <= self.job.budget_bytes

    def _live(self, knobs: Knobs) -> tuple[int, dict[str, int]]:
        if knobs not in self._lives:
            memory_model, accumulating = self.memory_model(knobs), knobs.grad_accum > 1
            self._lives[knobs] = memory_model.peak_bytes(
                knobs.micro_batch, knobs.checkpointed_layers, accumulating=accumulating
            )
        return self._lives[knobs]

    def _outside_bytes(self) -> int:
        """Of the process, not in the allocator: context, kernels, and connections to other GPUs."""
        many = self.job.gpus > 1 and self.job.device == "cuda"
        return self.calibration.context_bytes + (self.calibration.connection_bytes if many else 0)

    def process_bytes(self, knobs: Knobs) -> int:
        """The process peak of ``knobs``."""
        return self.least_bytes(knobs) + (max(self.overhead(knobs)) if self.job.device == "cuda" else 0)

    def fits(self, knobs: Knobs) -> bool:
        """Whether ``knobs`` stays inside the budget, with the calibration's uncertainty as margin."""
        return self._within(self.process_bytes(knobs), knobs)

    def estimate(self, knobs: Knobs) -> Estimate:
        """What ``knobs`` is computed to need; ``fits`` leaves the calibration's uncertainty as margin.

        Raises ``UsageError`` above the largest micro-batch that a memory model covers.
        """
        least = self.least_bytes(knobs)
        _, parts = self._live(knobs)
        known, outside, saved = self.calibration, self._outside_bytes(), self.saved_bytes(knobs)
        # The CPU's byte meter counts tensors, not blocks.
        blocks, kept = self.overhead(knobs) if self.job.device == "cuda" else (0, 0)
        process = least + max(blocks, kept)
        reserved = process - outside
        tensor_peak = least - outside + blocks
        clock, effective = self.clock([knobs]), self.job.contract.effective_batch
        seconds = float(clock.seconds(self.speeds)[0])
        spread = float(spread_of(self.speeds, clock.derivatives(self._middle_Q))[0])
        parts = parts | {
            "weights": parts["weights"] - saved,
            "workspace": known.workspace_bytes,
            "allocator (blocks larger than their tensor)": blocks,
            "allocator (fragmentation)": reserved - tensor_peak,
            "context and kernels": known.context_bytes,
        }
        if outside > known.context_bytes:
            parts[CONNECTION] = outside - known.context_bytes
        return Estimate(
            tensor_peak_bytes=tensor_peak,
            reserved_peak_bytes=reserved,
            process_peak_bytes=process,
            step_seconds=seconds,
            samples_per_second=effective / seconds,
            speed_low=effective / seconds * math.exp(-MIDDLE_80 * spread),
            speed_high=effective / seconds * math.exp(MIDDLE_80 * spread),
            fits=self._within(process, knobs),
            terms=tuple(Term(name=name, memory_bytes=size) for name, size in parts.items()),
        )

    def step_work(self, knobs: Knobs) -> StepWork:
        """What one optimizer step of ``knobs`` does on one GPU.

        The memory model is of the worst example. An ordinary micro-batch counts as so many of these as its padded tokens make.
        Layers that several GPUs share are gathered while others compute: the longer of the two counts.
        """
        memory_model = self.memory_model(knobs)
        ratio = self._fp32_ratio() if memory_model.computes_fp32 else 1.0
        key = self.combination(knobs), knobs.checkpointed_layers, ratio
        if key not in self._rows:
            self._rows[key] = MicroWork.of(memory_model, knobs.checkpointed_layers, fp32_ratio=ratio)
        examples, sizes = self._ordinary(knobs)
        turns = math.ceil(knobs.grad_accum / self.job.gpus) / knobs.grad_accum  # the GPUs share a step's micro-batches
        return StepWork(
            micro_RSF=self._rows[key].at(np.array(list(sizes))),
            times_R=np.array(list(sizes.values())) * turns * self.job.contract.effective_batch / examples,
            optimizer_bytes=OPTIMIZER_PASSES * memory_model.static["adapter"],
            least_seconds=self.gather_seconds(knobs),
        )

    def _fp32_ratio(self) -> float:
        speeds, gpu = self.speeds, self.job.host or self.job.gpu
        return fp32_ratio(speeds.tflops, speeds.product_share.value, gpu.fp32_tflops)

    def clock(self, grid: Sequence[Knobs]) -> Clock:
        """The seconds of every setting of ``grid`` as functions of the parameters of speed."""
        settings = tuple(grid)
        if settings not in self._clocks or self.job.shared or any(self.memory_model(knobs).computes_fp32 for knobs in settings):
            works = [self.step_work(knobs) for knobs in settings]
            self._clocks[settings] = Clock(works=works, tflops=self.speeds.tflops, gb_per_s=self.speeds.gb_per_s)
        return self._clocks[settings].at_rates(self.speeds.tflops, self.speeds.gb_per_s)

    def ratio_range(self, knobs: Knobs, other: Knobs) -> tuple[float, float]:
        """Both ends of the range that holds the speed of ``knobs`` over that of ``other`` with 80 %.

        What is not known of the GPU moves both; only what moves them apart widens this.
        """
        clock = self.clock([knobs, other])
        middle, slopes = clock.log_seconds(self._middle_Q[None])[0], clock.derivatives(self._middle_Q)
        spread = spread_of(self.speeds.replace(left_over=self.speeds.left_over * 2**0.5), slopes[:1] - slopes[1:])
        width = math.exp(MIDDLE_80 * float(spread[0]))
        ratio = math.exp(float(middle[1] - middle[0]))
        return ratio / width, ratio * width

    def _ordinary(self, knobs: Knobs) -> tuple[int, Counter[float]]:
        """How many examples the ordinary micro-batches hold, and their sizes in worst examples."""
        key = knobs.micro_batch, knobs.batching
        if key not in self._sizes:
            step = self.job.model.pixel_step
            worst = self.job.workload.worst[0].total_tokens(step)
            batches = self.job.typical_micro_batches(knobs)
            self._sizes[key] = sum(map(len, batches)), Counter(padded_tokens(batch, step) / worst for batch in batches)
        return self._sizes[key]


def _calibration_of(job: Job) -> Calibration:
    """Whose context and speed a probe has: the CPU meter's, the GPU's that stands in, or the planned one's."""
    if job.device == "cpu":
        return load_calibration("cpu")
    if job.host is None or job.host.name == job.gpu.name:
        return load_calibration(job.gpu.name)
    return load_calibration(job.host.name, "emulated")
