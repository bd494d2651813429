"""A run from a request: settled, in its folder, with memory, step and features opened; then the loop to its end."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from budgetft.data.examples import read_dataset
from budgetft.errors import UsageError
from budgetft.outcome import Outcome
from budgetft.plan import Plan
from budgetft.step.determinism import deterministic as deterministic_algorithms
from budgetft.train.features import planned_features
from budgetft.train.folder import HELDOUT_EVERY, Identity, RunFolder
from budgetft.train.heldout import HeldOut, held_out_job
from budgetft.train.job import Job, settle
from budgetft.train.loop import Training
from budgetft.train.memory import Device, free_memory, open_memory
from budgetft.train.opening import connect, load_step, tell_peak
from budgetft.train.ranks import Ranks, claimed_by_first, launched_ranks
from budgetft.train.record import Record, Summary
from budgetft.train.samples import check_samples, wanted_samples
from budgetft.train.saving import Pace
from budgetft.train.track import unharmed
from budgetft.value import read_json


def run_training(
    plan: Plan,
    *,
    out: Path,
    data: Path | None = None,
    weights: str | None = None,
    steps: int | None = None,
    resume: bool = False,
    save_every: int | None = None,
    device: Device = "auto",
    cache: Path | None = None,
    on_progress: Callable[[Record], None] = lambda record: None,
    on_note: Callable[[str], None] = lambda note: None,
    on_refused: Callable[[Outcome], None] = lambda outcome: None,
    heldout: Path | None = None,
    heldout_every: int | None = None,
    keep_best: bool | None = None,
    early_stopping: int | None = None,
    sample_captions: int | None = None,
    deterministic: bool | None = None,
    trackers: Sequence[Any] = (),
) -> Summary:
    """Train as ``plan`` says, into the run folder ``out``; returns what is written to ``out/summary.json``.

    ``data`` and ``weights`` (a folder, a hub id or ``random``) default to the plan's. ``steps`` defaults to the
    contract's epochs, and the learning-rate schedule ends there. Examples come in a seeded order; the last incomplete
    effective batch of an epoch is filled up from the next one, so every step has the contract's effective batch.
    ``save_every``: steps between checkpoints; when left out, as often as takes at most about 2 % of the run's time. The last
    step gets one too. ``resume`` goes on from the newest whole checkpoint, with the same weights, steps, held-out data and
    cache when they are left out. ``cache`` is the folder of the features when the plan has cached vision, the plan's when
    left out; what it lacks is computed first. ``trackers`` are accelerate's: names or objects; TensorBoard's event files are
    written where it is installed.

    ``heldout`` is a dataset whose loss is computed every ``heldout_every`` steps (50 when left out) and after the last;
    ``Path("none")`` drops that of a resumed run. With it, ``keep_best`` makes the adapter that of the step with the lowest
    such loss; the run ends when ``early_stopping`` evaluations in a row bring no lower one; and of ``sample_captions``
    examples captions go to ``out/samples.jsonl`` after each. A resumed run keeps the three; False and 0 drop them.

    On a CPU, runs of one plan have the same bits; on a GPU they agree to rounding, and with ``deterministic`` to the bit, but
    slower (a resumed run keeps it).

    A step that runs out of memory is done again in smaller micro-batches, from the same examples and random numbers;
    ``on_refused`` gets the planned setting's Outcome the first time, unless others had the GPU's memory.

    Raises ``UsageError`` for a request that does not fit the plan or the folder, and ``BudgetftError`` when the run
    ends early: out of memory with one example at a time, steps that are not finite, or a signal; its last finished step is
    saved.
    """
    if save_every is not None and save_every < 1:
        raise UsageError(f"--save-every must be at least 1, not {save_every}")
    ranks = launched_ranks(plan.knobs.grad_accum, sharing_gpus=plan.gpu.gpus if plan.gpu.shared else 1)
    if not ranks.first:
        on_progress, on_note, on_refused = (lambda told: None,) * 3
    with claimed_by_first(out, ranks, resume=resume) as folder:
        known = folder.read_identity() if resume else None
        if known is not None:
            weights, steps = weights or known.given_weights, steps or known.steps
        job = settle(plan, data=data, weights=weights, steps=steps)
        if known is not None:
            folder.check_identity(job.identity)
            if folder.summary.is_file():
                on_note(f"the run in {out} is finished; nothing to do")
                return Summary.read(read_json(folder.summary), source=str(folder.summary))
        identity = job.identity.beside(
            known, heldout=heldout, heldout_every=heldout_every, cache=cache,
            keep_best=keep_best, early_stopping=early_stopping, sample_captions=sample_captions, deterministic=deterministic,
        )  # fmt: skip
        with deterministic_algorithms(plan.knobs.deterministic or bool(identity.deterministic)):
            calls = {"on_note": on_note, "on_progress": on_progress, "on_refused": on_refused}
            try:
                return _run(job, identity, folder, ranks, Pace(save_every), resume, device, trackers, **calls)
            finally:
                free_memory()  # of the model, which refers to itself: a program that trains twice has it once


def _run(
    job: Job,
    identity: Identity,
    folder: RunFolder,
    ranks: Ranks,
    pace: Pace,
    resume: bool,
    device: Device,
    trackers: Sequence[Any],
    *,
    on_note: Callable[[str], None],
    on_progress: Callable[[Record], None],
    on_refused: Callable[[Outcome], None],
) -> Summary:
    """The run itself, of a request that was settled, in its folder."""
    plan, out = job.plan, folder.path
    check_samples(job, identity.sample_captions, shared=ranks.shared)
    held_out = None if identity.heldout is None else held_out_job(read_dataset(Path(identity.heldout)), job, on_note)
    features = None if identity.cache is None else Path(identity.cache)
    features_of, heldout_features = (
        None if one is None else planned_features(one, features, device=device, on_note=on_note, fills=ranks.first)
        for one in (job, held_out)
    )
    # First: it must see the GPU before this process does.
    memory = open_memory(plan.gpu, device, plan.knobs.allocator, planned=plan.estimate, on_note=on_note)
    accelerator, connection_bytes = connect(memory, ranks, trackers, out)
    processor, step = load_step(job, memory, ranks, on_note)
    training = Training(
        job=job, identity=identity, folder=folder, memory=memory, processor=processor, step=step, ranks=ranks,
        pace=pace,
        on_note=on_note, on_progress=on_progress, on_refused=on_refused, features_of=features_of,
        accelerator=accelerator, predicted_peak_bytes=tell_peak(step, plan, ranks, connection_bytes, on_note),
    )  # fmt: skip
    if held_out is not None:
        training.heldout = HeldOut(
            job=held_out, processor=processor, step=step, memory=memory, every=identity.heldout_every or HELDOUT_EVERY,
            on_note=on_note, on_fallback=training.fell_back, features_of=heldout_features, ranks=ranks,
            samples=wanted_samples(identity, folder, held_out, processor, step, memory, on_note) if ranks.first else None,
        )  # fmt: skip
    try:
        return training.run(resume)
    finally:
        with unharmed(on_note):
            training.accelerator.end_training()
