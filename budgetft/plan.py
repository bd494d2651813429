"""What planning hands to training: one JSON file that says what to run, how sure it is, and why."""

import hashlib
import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from pydantic import AliasChoices, Field, model_validator

from budgetft.contract import Contract
from budgetft.duration import RunTime, time_under
from budgetft.errors import UsageError
from budgetft.families import lever_problems
from budgetft.goal import Goal
from budgetft.gpu import Gpu
from budgetft.knobs import Knobs
from budgetft.model import Model, load_model
from budgetft.once import OneTime
from budgetft.outcome import Estimate, Evidence, Outcome, speed_text
from budgetft.precision import Precision
from budgetft.shown import Rows, Shown, contract_text, shape_text, time_of
from budgetft.units import format_gib
from budgetft.value import Value, read_json
from budgetft.weights import BaseWeights
from budgetft.workload import Workload, frames_label

SCHEMA_VERSION = 1


class Target(Value):
    """The GPU that is planned for, and how much of it may be used."""

    name: str
    budget_bytes: int = Field(gt=0)
    """Of each GPU, where there are several."""
    display_bytes: int = Field(default=0, ge=0, exclude_if=lambda kept: kept == 0)
    """What the budget leaves to a display on the GPU."""
    profile: Gpu
    gpus: int = Field(default=1, ge=1, validation_alias=AliasChoices("gpus", "cards"), exclude_if=lambda gpus: gpus == 1)
    """Alike and in one machine: they share the micro-batches of a step."""
    shared: bool = Field(default=False, exclude_if=lambda shared: not shared)
    """They share the frozen decoder layers out too, where each would hold the whole base."""


class ModelReference(Value):
    """Which model the plan is for; ``fingerprint`` is of its configuration."""

    name: str
    family: str
    hub_id: str | None
    weights: str | None
    fingerprint: str
    layers: int | None = Field(default=None, exclude_if=lambda layers: layers is None)
    """Decoder layers of the language model; None in older plans."""
    base: BaseWeights | None = Field(default=None, exclude_if=lambda base: base is None)
    """What its weights were when the plan was made; None where they were not at hand, and in older plans."""


class Proof(Value):
    """What stands behind the plan: its kind, every probe, and the confirmation in a fresh process."""

    kind: Evidence
    outcomes: tuple[Outcome, ...]
    confirmed: Outcome | None
    wall_seconds: float | None = None
    """Of the whole planning, tracing and probing included."""
    statement: str
    """In words: on what the numbers were obtained."""
    predictions: tuple[Estimate, ...] = ()
    """Of each outcome, made before it, terms left out; empty in plans of before this was kept."""
    workers: tuple[str, ...] = ()
    """Who made each outcome, where several workers share the study; empty where one planned alone."""
    calibration: str | None = Field(default=None, exclude_if=lambda name: name is None)
    """By which predictions were made; ``assumed``: the GPU has never been calibrated. None: older plans."""
    uncertainty_share: float | None = Field(default=None, ge=0, exclude_if=lambda share: share is None)
    """Half-width of the interval around a predicted peak, as a share of it."""


class Candidate(Shown, Value):
    """A setting with what is known of it."""

    knobs: Knobs
    estimate: Estimate
    outcome: Outcome | None = None


FRAMES = "frames_per_example"
"""An axis of the trade-offs that is a fact of the data, not a minimum of the contract."""


class CostRow(Value):
    """What one step along a contract axis costs."""

    axis: str
    value: str
    knobs: Knobs | None
    """The best setting there; None when nothing fits."""
    samples_per_second: float | None
    speed_low: float | None = Field(default=None, exclude_if=lambda value: value is None)
    """With ``speed_high``, as of :class:`budgetft.outcome.Estimate`."""
    speed_high: float | None = Field(default=None, exclude_if=lambda value: value is None)
    process_peak_bytes: int | None
    evidence: Evidence

    def speed_text(self) -> str:
        """The speed for people, or that nothing fits."""
        if self.samples_per_second is None:
            return "does not fit"
        return speed_text(self.samples_per_second, self.speed_low, self.speed_high)


class Features(Value):
    """The cache that a plan with cached vision trains on, and what making it takes: ``missing`` images are to be computed."""

    folder: str
    images: int | None = None
    """Distinct images of the data; None, as all that follows, when the plan was made for a typed shape."""
    missing: int | None = None
    disk_bytes: int | None = None
    """Of the missing ones."""
    seconds: float | None = None
    """Predicted, for the missing ones, once; None also when the GPU's rates are unknown."""

    def describe(self) -> str:
        """The one-time cost in a line."""
        if self.images is None or self.disk_bytes is None:
            return self.folder
        if not self.missing:
            return f"all {self.images} images are in {self.folder}"
        seconds = "" if self.seconds is None else f", about {self.seconds:.0f} s once (predicted)"
        return (
            f"{self.missing} of {self.images} images to compute, {format_gib(self.disk_bytes)} on disk{seconds},"
            f" in {self.folder}"
        )


class StagePeak(Value):
    """Highest bytes of one stage of a run, if nothing else holds memory."""

    stage: Literal["train", "evaluation", "merge"]
    process_peak_bytes: int
    """Everything that the process holds on the GPU."""
    host_peak_bytes: int | None = None
    """Of tensors in the host's memory, where they decide."""
    evidence: Evidence

    def describe(self, budget_bytes: int) -> str:
        """In words: the peak on the GPU, or on the host where the stage takes no GPU."""
        over = self.process_peak_bytes > budget_bytes
        peak = "no GPU" if self.process_peak_bytes == 0 else format_gib(self.process_peak_bytes)
        on_host = "" if self.host_peak_bytes is None else f", {format_gib(self.host_peak_bytes)} of host memory"
        fewer = ", over the budget: it goes through fewer examples at a time" if over else ""
        return f"{self.stage} {peak}{on_host}{fewer} ({self.evidence})"


class Pictures(Value):
    """Which images of the data the contract makes smaller, and what it would take to keep them."""

    examples: int = Field(ge=1)
    shrunk: int = Field(ge=0)
    """Examples with an image that is made smaller than the model's own limit would make it."""
    pixels: int = Field(ge=1)
    """``max_pixels`` that would keep every image as large as the model takes it."""
    keeping: CostRow | None = None
    """The best setting there, by prediction; None: not looked for, or an example would be longer than ``max_length``."""


class Padding(Value):
    """Share of padding among the tokens that are computed, at the plan's micro-batch, by batching."""

    padded: float
    bucketed: float
    examples: int
    """Ordinary ones, by which it was computed."""


class Plan(Shown, Value):
    """See the module; the field order is the order of the file."""

    schema_version: Literal[1] = SCHEMA_VERSION
    gpu: Target
    model: ModelReference
    contract: Contract
    knobs: Knobs
    estimate: Estimate
    evidence: Proof
    baseline: Candidate | None
    """The stock recipe at its best micro-batch; None when it fits at none."""
    over_baseline: tuple[float, float] | None = Field(default=None, exclude_if=lambda value: value is None)
    """Both ends of the range that holds the plan's speed over the baseline's with 80 %; None: both were measured, or older."""
    stages: tuple[StagePeak, ...] = Field(default=(), exclude_if=lambda stages: not stages)
    """Training, evaluation and merge; empty in plans of before they were planned."""
    price_list: tuple[CostRow, ...] = ()
    goal: Goal | None = Field(default=None, exclude_if=lambda goal: goal is None)
    """The time that its contract was chosen for; None where the contract was given."""
    runners_up: tuple[Candidate, ...] = ()
    workload: Workload
    padding: Padding | None = None
    precision: Precision | None = Field(default=None, exclude_if=lambda found: found is None)
    """What overflows fp16 in its weights; None where they were not at hand, or it computes in another type."""
    data: str | None = None
    features: Features | None = None
    pictures: Pictures | None = Field(default=None, exclude_if=lambda pictures: pictures is None)
    """None where a shape was typed in, and in older plans."""
    once: tuple[OneTime, ...] = Field(default=(), exclude_if=lambda costs: not costs)
    """What a run costs beside its steps; empty in older plans."""
    environment: dict[str, str]

    def stage(self, name: str) -> StagePeak | None:
        """The stage called ``name``; None in a plan of before it was planned."""
        return next((each for each in self.stages if each.stage == name), None)

    def run_time(self, examples: int | None = None) -> RunTime | None:
        """Of the plan's own data unless ``examples`` are given; None where the speed or their number is not known."""
        return time_under(self.contract, self.estimate, examples or self.workload.examples)

    def over_baseline_text(self) -> str:
        """How many times as fast as the baseline, for people; empty where that is not known."""
        ours, theirs = self.estimate.samples_per_second, self.baseline and self.baseline.estimate.samples_per_second
        if not ours or not theirs:
            return ""
        return speed_text(ours / theirs, *(self.over_baseline or (None, None)), unit=" times")

    def hours(self, examples: int | None = None, epochs: int | None = None) -> RunTime:
        """The time of the run, by its own data and epochs unless others are given; prints as epochs, steps and minutes.

        Raises ``UsageError`` where the speed is not known, or examples are not given and the plan is of no data.
        """
        return time_of(self.estimate, self.contract, self.workload.examples if examples is None else examples, epochs)

    def to_dict(self) -> dict[str, Any]:
        """The plan as its file has it."""
        return self.model_dump(mode="json")

    def _title(self) -> str:
        gpus = f"{self.gpu.gpus} x " if self.gpu.gpus > 1 else ""
        return f"plan for {self.model.name} on {gpus}{self.gpu.name}"

    def _limits(self) -> tuple[int | None, float | None]:
        return self.gpu.budget_bytes, self.evidence.uncertainty_share

    def _rows(self) -> Rows:
        rows = [*super()._rows(), ("training", contract_text(self.contract)), ("example", shape_text(self.workload.worst[0]))]
        if self.workload.examples is not None and self.examples_per_second:
            rows.append(("time", f"{self.hours()} for {self.workload.examples:,} examples"))
        if self.baseline is not None and (ratio := self.over_baseline_text()):
            rows.append(("baseline", f"{ratio} as fast as Hugging Face Trainer defaults, {self.baseline._verdict()}"))
        kind, said = self.evidence.kind, self.evidence.statement
        rows.append(("evidence", said if said.startswith(kind) else f"{kind}: {said}"))
        return rows

    @property
    def made_on(self) -> str | None:
        """The GPU on which it was tried, as its driver calls it; None where nothing was run on one."""
        return self.environment.get("gpu", self.environment.get("card"))  # the second as before 0.2

    def is_own(self, row: CostRow) -> bool:
        """Whether ``row`` of the trade-offs is the plan itself."""
        if row.axis == FRAMES:
            return row.value == frames_label(self.workload.most_frames, video=self.workload.is_video)
        return row.value == str(getattr(self.contract, row.axis, None))

    @model_validator(mode="after")
    def _consistent(self) -> "Plan":
        problems = knob_problems(self.knobs, self.contract, self.gpu.profile, self.model.family)
        if self.estimate.process_peak_bytes > self.gpu.budget_bytes:
            peak, budget = self.estimate.process_peak_bytes, self.gpu.budget_bytes
            problems.append(f"estimate.process_peak_bytes {peak} is above gpu.budget_bytes {budget}")
        if problems:
            raise ValueError("; ".join(problems))
        return self


def knob_problems(knobs: Knobs, contract: Contract, gpu: Gpu, model_type: str) -> list[str]:
    """Why ``knobs`` cannot be run under ``contract`` on ``gpu`` with a type of model; empty when it can."""
    problems = lever_problems(model_type, knobs)
    product, wanted = knobs.micro_batch * knobs.grad_accum, contract.effective_batch
    if product != wanted:
        problems.append(f"micro_batch {knobs.micro_batch} x grad_accum {knobs.grad_accum} is not the effective batch {wanted}")
    if knobs.attention == "flash" and not gpu.flash_attention:
        problems.append(f"attention 'flash' needs compute capability 8.0; {gpu.name} has {gpu.compute_capability}")
    if knobs.attention == "efficient" and not gpu.efficient_attention:
        problems.append(f"attention 'efficient' does not run on {gpu.name}")
    if knobs.base_precision == "bf16" and not gpu.native_bf16:
        problems.append(f"base_precision 'bf16' is emulated on {gpu.name} (compute capability {gpu.compute_capability})")
    if knobs.base_precision == "nf4" and not contract.allow_nf4:
        problems.append("base_precision 'nf4' rounds the base weights; the contract does not allow it (--allow-nf4)")
    if knobs.optimizer == "adamw8bit" and not contract.allow_adamw8bit:
        problems.append("optimizer 'adamw8bit' rounds its moments; the contract does not allow it (--allow-adamw8bit)")
    if knobs.lora == "lean" and contract.needs_stock_lora:
        problems.append(f"lora 'lean' {contract.needs_stock_lora}")
    if knobs.base_precision == "nf4" and contract.use_dora:
        problems.append("base_precision 'nf4' has no DoRA, which reads base weights; the contract has (--use-dora)")
    return problems


def config_fingerprint(model: Model) -> str:
    """SHA-256 of the model's configuration, key order aside."""
    return hashlib.sha256(json.dumps(model.config, sort_keys=True).encode()).hexdigest()


def refer(model: Model, base: BaseWeights | None = None) -> ModelReference:
    """The reference a plan keeps of ``model``, whose weights are ``base``."""
    return ModelReference(
        name=model.name,
        family=model.family,
        hub_id=model.hub_id,
        weights=model.weights,
        fingerprint=config_fingerprint(model),
        layers=model.layers,
        base=base,
    )


def write_plan(plan: Plan, path: Path) -> None:
    """Write whole or not at all."""
    write_text_atomically(path, plan.model_dump_json(indent=2) + "\n")


def write_text_atomically(path: Path, text: str) -> None:
    """Write ``text`` beside ``path``, then rename over it."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(text, encoding="utf-8")
        os.replace(part, path)
    except OSError as error:
        with suppress(OSError):
            part.unlink()
        raise UsageError(f"cannot write {path}: {error.strerror}") from None


def check_file(path: Path) -> None:
    """Raise ``UsageError`` unless ``path`` could be written as a file: before work that is lost."""
    if path.is_dir():
        raise UsageError(f"cannot write {path}: it is a folder", hint="name a file in it")
    check_folder(path.parent)


def check_folder(folder: Path) -> None:
    """Raise ``UsageError`` unless a file could be written into ``folder``, which is not made yet: before work that is lost."""
    there = folder.absolute()
    while not os.path.lexists(there):
        there = there.parent
    if not there.is_dir():
        raise UsageError(f"cannot write into {folder}: {there} is not a folder", hint="choose another --out")
    if not os.access(there, os.W_OK | os.X_OK):
        raise UsageError(f"cannot write into {folder}: no leave to make files in {there}", hint="choose another --out")


def read_plan(path: Path) -> Plan:
    """The plan in ``path``; refused, with every reason, when it is newer, inconsistent or not a plan."""
    data: dict[str, Any] = read_json(path)
    version = data.get("schema_version")
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise UsageError(
            f"{path} has plan schema {version}; this budgetft reads up to {SCHEMA_VERSION}",
            hint="upgrade budgetft, or make the plan again with this version",
        )
    return Plan.read(data, source=str(path))


def load_planned_model(plan: Plan, *, name: str | None = None) -> Model:
    """The plan's model, loaded again from ``name`` or where the plan found it; another configuration is refused."""
    model = load_model(name or plan.model.weights or plan.model.name)
    if config_fingerprint(model) != plan.model.fingerprint:
        raise UsageError(
            f"the plan was made for {plan.model.name} with another configuration than {model.name} has now",
            hint="plan again for this model: budgetft plan --model ...",
        )
    if plan.knobs.checkpointed_layers > model.layers:
        raise UsageError(f"the plan checkpoints {plan.knobs.checkpointed_layers} layers; {model.name} has {model.layers}")
    return model
