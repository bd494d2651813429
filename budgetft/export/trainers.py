"""A plan in the words of other trainers: what they share with it, what they cannot do, and what they need themselves.

A trainer's peak and micro-batch are those of its own step (:mod:`budgetft.export.peers`), not the plan's: the best micro-batch
that fits, and of several that no prediction or measurement tells apart the largest.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from budgetft.errors import unknown_name
from budgetft.export.peers import PEERS, Peer, Setup
from budgetft.export.trainer_files import HALF, Draft, llamafactory_file, lora_fields, swift_file, transformers_file
from budgetft.export.trainer_scripts import trl_script, unsloth_script
from budgetft.knobs import Knobs, differences, is_stock
from budgetft.model import Model
from budgetft.outcome import KNOWN_FACTOR, Estimate, Outcome, speed_text
from budgetft.plan import Candidate, Plan
from budgetft.units import format_gib
from budgetft.wording import settings_words

Trainer = Literal["transformers", "trl", "llamafactory", "swift", "unsloth"]
PEER_OF = {"transformers": "trainer"}
"""Names of trainers that ``estimate --trainer`` calls otherwise."""
WRITE: dict[str, Callable[[Draft], str]] = {
    "transformers": transformers_file,
    "trl": trl_script,
    "llamafactory": llamafactory_file,
    "swift": swift_file,
    "unsloth": unsloth_script,
}
BATCH = {"micro_batch", "grad_accum"}


@dataclass(frozen=True, kw_only=True)
class Exported:
    """The trainer's file, and what to know before it is run."""

    trainer: Trainer
    release: str
    """For which the file is written."""
    text: str
    knobs: Knobs
    """The trainer's own step, as a setting of ours."""
    estimate: Estimate
    """Of those knobs, on the plan's GPU."""
    lacks: dict[str, Any]
    """The plan's settings that the trainer has not."""
    lacks_words: tuple[str, ...]
    """The same for people."""
    warnings: tuple[str, ...]
    lora: dict[str, Any] | None = None
    """The fields of peft's LoraConfig, where the trainer's file has no place for them."""


def export_plan(
    plan: Plan,
    model: Model,
    trainer: str,
    *,
    output: str = "runs/exported",
    dataset: str | None = None,
    on_trace: Callable[[str], None] = lambda text: None,
) -> Exported:
    """``plan`` for ``trainer``; ``dataset`` is what that trainer calls the data. Raises ``UsageError`` for another one."""
    if trainer not in get_args(Trainer):
        raise unknown_name("trainer", trainer, get_args(Trainer))
    peer = PEERS[PEER_OF.get(trainer, trainer)]
    draft = Draft(plan=plan, knobs=plan.knobs, model=model, output=output, dataset=dataset)
    WRITE[trainer](draft)  # what it cannot express is refused before anything is traced
    own = _own(plan, model, trainer, on_trace)
    draft = Draft(plan=plan, knobs=own.knobs, model=model, output=output, dataset=dataset)
    notes = f"# for {peer.release} ({peer.runs})\n" if trainer in ("llamafactory", "swift") else ""
    return Exported(
        trainer=trainer,  # pyright: ignore[reportArgumentType]
        release=peer.release,
        text=notes + WRITE[trainer](draft),
        knobs=own.knobs,
        estimate=own.estimate,
        lacks={name: value for name, value in differences(plan.knobs, own.knobs).items() if name not in BATCH},
        lacks_words=lacking(plan.knobs, own.knobs, model.layers),
        warnings=tuple(_warnings(draft, own, trainer, peer)),
        lora=lora_fields(plan) if trainer == "transformers" else None,
    )


def lacking(planned: Knobs, own: Knobs, layers: int) -> tuple[str, ...]:
    """What ``planned`` has and a trainer's ``own`` step has not, in words: not the batch and the type of the base, nor what
    every trainer can do without, gradient checkpointing."""
    shared = {name: getattr(own, name) for name in (*BATCH, "base_precision")}
    if planned.checkpointed_layers == 0:
        shared["checkpointed_layers"] = own.checkpointed_layers
    if planned.loss == own.loss:
        shared["loss_chunk"] = own.loss_chunk
    theirs = set(settings_words(own, layers))
    return tuple(words for words in settings_words(planned.replace(**shared), layers) if words not in theirs)


def _own(plan: Plan, model: Model, trainer: str, on_trace: Callable[[str], None]) -> Candidate:
    """The trainer's own step at its best micro-batch that fits; the smallest where none does."""
    measured = _measured(plan) if trainer == "transformers" else None
    if measured is not None:
        return measured
    from budgetft.export.peer_table import peer_table
    from budgetft.measure.job import planned_job

    setup = Setup.make(
        trainer=PEER_OF.get(trainer, trainer),
        gradient_checkpointing=True,
        load_in_4bit=plan.knobs.base_precision == "nf4",
    )
    job = planned_job(plan, device="cuda", evidence="predicted", model=model).replace(fp32_blocks=(), deterministic=False)
    table = peer_table(setup, job, base_precision=plan.knobs.base_precision, on_trace=on_trace)
    row = table.rows[0] if table.best is None else table.row(table.best)
    return Candidate(knobs=row.knobs, estimate=row.estimate)


def _measured(plan: Plan) -> Candidate | None:
    """The baseline that a probe of the plan measured, or a larger one that it measured as fast; None: it is predicted."""
    baseline = plan.baseline
    if baseline is None or baseline.estimate.evidence == "predicted" or not is_stock(baseline.knobs):
        return None
    found = [each for each in plan.evidence.outcomes if is_stock(each.knobs) and each.fits and each.samples_per_second]
    largest = max(_as_fast(found), key=lambda outcome: outcome.knobs.micro_batch, default=None)
    if largest is None or largest.knobs.micro_batch <= baseline.knobs.micro_batch:
        return baseline
    estimate = baseline.estimate.replace(
        tensor_peak_bytes=largest.allocated_peak_bytes or baseline.estimate.tensor_peak_bytes,
        reserved_peak_bytes=largest.reserved_peak_bytes or baseline.estimate.reserved_peak_bytes,
        process_peak_bytes=largest.process_peak_bytes or baseline.estimate.process_peak_bytes,
        step_seconds=largest.step_seconds,
        samples_per_second=largest.samples_per_second,
        terms=(),
    )
    return Candidate(knobs=largest.knobs, estimate=estimate, outcome=largest)


def _as_fast(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """Those within what timings of one setting differ by, of the fastest."""
    speeds = [outcome.samples_per_second or 0.0 for outcome in outcomes]
    fastest = max(speeds, default=0.0)
    return [outcome for outcome, speed in zip(outcomes, speeds, strict=True) if speed * KNOWN_FACTOR >= fastest]


def _warnings(draft: Draft, own: Candidate, trainer: str, peer: Peer) -> list[str]:
    plan, said = draft.plan, own.estimate
    found = []
    if not said.fits:
        over = said.process_peak_bytes - plan.gpu.budget_bytes
        margin = f"{format_gib(over)} over" if over > 0 else "within the uncertainty of"
        found.append(
            f"{trainer} will not fit: its smallest setting takes {format_gib(said.process_peak_bytes)} ({said.evidence}),"
            f" {margin} the budget of {format_gib(plan.gpu.budget_bytes)}"
        )
    elif compared := _compared(draft, own):
        found.append(compared)
    found.append("no memory cap: nothing stops that trainer at the budget, and its own evaluation and saving are not counted")
    if plan.knobs.checkpointed_layers == 0 and own.knobs.checkpointed_layers:
        found.append("gradient checkpointing is on here and off in the plan: without it that trainer needs more than the plan")
    if plan.gpu.gpus > 1:
        found.append(f"gradient_accumulation_steps is of one process: on {plan.gpu.gpus} GPUs divide it by {plan.gpu.gpus}")
    if draft.steps is None and trainer in ("transformers", "trl", "unsloth"):
        found.append("warmup_steps below 1 is a share of all steps: for transformers 5; older ones want whole steps")
    return [*found, *_of_the_trainer(draft, trainer, peer)]


def _compared(draft: Draft, own: Candidate) -> str:
    """The trainer's speed beside the plan's; empty where one is predicted and the other measured, perhaps on another GPU."""
    plan, theirs = draft.plan, own.estimate
    ours = plan.estimate
    if not ours.samples_per_second or not theirs.samples_per_second or ours.evidence != theirs.evidence:
        return ""
    if theirs.evidence != "predicted":
        low = high = ours.samples_per_second / theirs.samples_per_second
    else:
        from budgetft.measure.job import planned_job
        from budgetft.predict.estimator import Estimator

        job = planned_job(plan, device="cuda", evidence="predicted", model=draft.model)
        low, high = Estimator(job, at_once=True).ratio_range(plan.knobs, own.knobs)
    kind = theirs.evidence
    if low <= 1:
        return f"about as fast as the plan: the plan is {speed_text((low * high) ** 0.5, low, high, ' times')} as fast ({kind})"
    return f"slower than the plan, which is {speed_text((low * high) ** 0.5, low, high, ' times')} as fast ({kind})"


def _of_the_trainer(draft: Draft, trainer: str, peer: Peer) -> list[str]:
    """What is to be known of this trainer alone."""
    plan, found = draft.plan, []
    if trainer == "transformers":
        kind = "in 4 bits (BitsAndBytesConfig)" if draft.four_bit else f"in {HALF[draft.precision]}"
        found.append(f"load the model {kind} and wrap it with the LoraConfig that is given beside it")
    elif draft.dataset is None:
        what = "the script reads data.jsonl" if trainer in ("trl", "unsloth") else "no dataset is named"
        found.append(f"{what}: give --dataset as that trainer knows it")
    if plan.workload.is_video:
        frames, pixels = plan.workload.most_frames, plan.contract.max_pixels
        found.append(f"examples are videos of up to {frames} frames of {pixels} pixels: its own video settings must say so")
    if trainer == "llamafactory":
        found.append("cutoff_len truncates longer examples; budgetft refuses them")
        if plan.contract.init_lora != "default":
            found.append(
                f"it has no name for the start of the adapter: it will be peft's default, not {plan.contract.init_lora}"
            )
        if peer.tower == draft.knobs.vision and plan.model.family != "qwen3_vl":
            found.append("it keeps all activations of the frozen vision tower: large images cost it most")
    if trainer == "unsloth":
        found.append("its kernels are approximated by ours: peak and speed are neither lower nor upper bounds")
    return found
