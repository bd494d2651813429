"""The Python API: what the commands do, as functions on values. Importing this loads no torch.

>>> from budgetft.api import Shape, plan, train
>>> made = plan("v100-16g", "qwen2.5-vl-3b", work=Shape(images=((448, 448),), text_tokens=256, supervised_tokens=160))
>>> summary = train(made, "runs/first", data="captions")

Everything raises :class:`BudgetftError`, which has a ``message``, a ``hint`` and the command line's ``exit_code``.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from budgetft.asked import LABEL_TOKENS, TEXT_TOKENS
from budgetft.contract import Contract
from budgetft.errors import BudgetftError, NothingFits, UsageError
from budgetft.gpu import Gpu, load_gpu
from budgetft.knobs import Knobs
from budgetft.model import Model, load_model, model_names
from budgetft.plan import Candidate, Plan, load_planned_model, read_plan, write_plan
from budgetft.units import format_gib, parse_bytes
from budgetft.what_fits import PICTURES, FitAsked, FitTable
from budgetft.workload import Shape, Workload

if TYPE_CHECKING:
    from budgetft.export.merge import Merged
    from budgetft.export.trainers import Exported, Trainer
    from budgetft.search.planner import Event
    from budgetft.search.port import Port
    from budgetft.train.record import Record, Summary

__all__ = [
    "BudgetftError",
    "Candidate",
    "Contract",
    "FitTable",
    "Gpu",
    "Knobs",
    "Model",
    "NothingFits",
    "Plan",
    "Shape",
    "UsageError",
    "Workload",
    "estimate",
    "export",
    "fit",
    "load_gpu",
    "load_model",
    "merge",
    "plan",
    "port",
    "read_plan",
    "train",
    "write_plan",
]

Work = Shape | Workload | str | Path
"""What is trained on: one shape for all examples, their distribution, or a dataset folder."""
Probe = Literal["auto", "always", "never"]


def plan(
    gpu: str | Gpu,
    model: str | Model = "qwen2.5-vl-3b",
    *,
    work: Work,
    budget: str | int | None = None,
    cards: int = 1,
    contract: Contract | None = None,
    ranges: dict[str, list[int]] | None = None,
    probe: Probe = "auto",
    max_probes: int = 20,
    ledger: str | Path | None = None,
    storage: str | None = None,
    on_event: "Callable[[Event], None]" = lambda event: None,
) -> Plan:
    """The fastest way to run ``work`` under ``contract`` that stays inside ``budget`` (bytes, or text such as 14GiB).

    ``gpu`` and ``model`` are values or the names of profiles. Several ``cards``, each with that budget, hold the whole base
    each or share its layers out, whichever is faster. ``ranges``: further values of contract fields to price. ``probe`` as on
    the command line; finished probes go to ``ledger`` and the Optuna ``storage``, in the cache when left out. Raises
    ``NothingFits`` with the smallest budget that would work.
    """
    from budgetft.search.run import PlanRequest, make_plan

    card, architecture = _gpu(gpu), _model(model)
    request = PlanRequest(
        gpu=card,
        budget_bytes=_budget(budget, card),
        cards=cards,
        model=architecture,
        contract=contract or Contract(),
        ranges=ranges or {},
        workload_under=lambda changed: _workload(work, architecture, changed),
        data=str(Path(work).resolve()) if isinstance(work, str | Path) else None,
        probe=probe,
        max_probes=max_probes,
        on_event=on_event,
        **_files(ledger, storage),
    )
    return make_plan(request)


def port(
    plan: Plan,
    gpu: str | Gpu,
    *,
    budget: str | int | None = None,
    display_bytes: int = 0,
    precision: Literal["keep", "native"] = "keep",
    probe: Probe = "auto",
    model: str | None = None,
    ledger: str | Path | None = None,
    storage: str | None = None,
    on_event: "Callable[[Event], None]" = lambda event: None,
) -> "Port":
    """``plan`` for another card or budget, from the same evidence and at most three probes: the plan, and what changed.

    ``display_bytes``: what the budget leaves to a display, for the plan to say.
    ``precision``: keep the plan's 16-bit type, or take what the card runs natively. Raises ``UsageError`` when the
    plan's type only runs emulated there, ``NothingFits`` with what to give up.
    """
    from budgetft.search.port import PortRequest, port_plan

    card = _gpu(gpu)
    request = PortRequest(
        plan=plan,
        model=load_planned_model(plan, name=model),
        gpu=card,
        budget_bytes=_budget(budget, card),
        display_bytes=display_bytes,
        precision=precision,
        probe=probe,
        on_event=on_event,
        **_files(ledger, storage),
    )
    return port_plan(request)


def estimate(
    gpu: str | Gpu,
    model: str | Model = "qwen2.5-vl-3b",
    *,
    work: Work,
    budget: str | int | None = None,
    contract: Contract | None = None,
    **knobs: Any,
) -> Candidate:
    """The setting with these ``knobs`` (others: the fastest that is predicted to fit), and what it is computed to need."""
    from budgetft.measure.job import Job
    from budgetft.predict.estimator import Estimator
    from budgetft.search.predicted import fastest

    card, architecture, fixed = _gpu(gpu), _model(model), contract or Contract()
    job = Job(
        gpu=card,
        budget_bytes=_budget(budget, card),
        model=architecture,
        contract=fixed,
        workload=_workload(work, architecture, fixed),
        evidence="predicted",
    )
    return fastest(Estimator(job, at_once=True), knobs)


def fit(
    gpu: str | Gpu | Sequence[str | Gpu],
    model: str | Model | Sequence[str | Model] | None = None,
    *,
    images: Sequence[tuple[int, int]] = PICTURES,
    text_tokens: int = TEXT_TOKENS,
    label_tokens: int = LABEL_TOKENS,
    rank: int = 16,
    effective_batch: int = 32,
    examples: int = 2000,
    epochs: int = 3,
    budget: str | int | None = None,
) -> FitTable:
    """What runs on ``gpu``: each model (every bundled one when left out) by LoRA and QLoRA, with pictures of ``images`` pixels.

    Of each the peak memory, the speed, the time of ``epochs`` over ``examples``, and the largest square picture that fits.
    ``gpu`` and ``model`` may be several, whose ``budget`` is each GPU's own. All of it is predicted; torch is not loaded.

    >>> table = fit("rtx3060-12g")
    >>> table.row("qwen3-vl-4b", "QLoRA").largest.image
    """
    from budgetft.search.what_fits import what_fits

    gpus = [_gpu(each) for each in ([gpu] if isinstance(gpu, str | Gpu) else gpu)]
    if model is None:
        model = [name for name in model_names() if not name.startswith("tiny")]
    models = [_model(each) for each in ([model] if isinstance(model, str | Model) else model)]
    asked = FitAsked.make(
        images=tuple((width, height) for width, height in images),
        text_tokens=text_tokens,
        label_tokens=label_tokens,
        rank=rank,
        effective_batch=effective_batch,
        examples=examples,
        epochs=epochs,
    )
    if not gpus or not models:
        raise UsageError("name at least one GPU and one model")
    return what_fits(gpus, models, asked, budget_bytes=lambda each: _budget(budget, each))


def train(
    plan: Plan,
    out: str | Path,
    *,
    data: str | Path | None = None,
    weights: str | None = None,
    steps: int | None = None,
    resume: bool = False,
    save_every: int | None = None,
    heldout: str | Path | None = None,
    heldout_every: int | None = None,
    keep_best: bool | None = None,
    early_stopping: int | None = None,
    sample_captions: int | None = None,
    deterministic: bool | None = None,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    trackers: Sequence[Any] = (),
    on_progress: "Callable[[Record], None]" = lambda record: None,
) -> "Summary":
    """Run ``plan`` into the folder ``out``; see :func:`budgetft.train.loop.run_training`."""
    from budgetft.train.loop import run_training

    return run_training(
        plan,
        out=Path(out),
        data=None if data is None else Path(data),
        weights=weights,
        steps=steps,
        resume=resume,
        save_every=save_every,
        heldout=None if heldout is None else Path(heldout),
        heldout_every=heldout_every,
        keep_best=keep_best,
        early_stopping=early_stopping,
        sample_captions=sample_captions,
        deterministic=deterministic,
        device=device,
        trackers=trackers,
        on_progress=on_progress,
    )


def merge(
    run: str | Path, out: str | Path, *, weights: str | None = None, on_file: Callable[[str], None] = lambda name: None
) -> "Merged":
    """The adapter of ``run`` merged into its base checkpoint, in the new folder ``out``; never the whole model in memory."""
    from budgetft.export.merge import merge_run

    return merge_run(Path(run), Path(out), weights=weights, on_file=on_file)


def export(
    plan: Plan,
    to: "Trainer",
    *,
    model: str | None = None,
    output: str = "runs/exported",
    dataset: str | None = None,
) -> "Exported":
    """``plan`` as the settings of another trainer, with that trainer's own predicted peak and the levers it lacks."""
    from budgetft.export.trainers import export_plan

    return export_plan(plan, load_planned_model(plan, name=model), to, output=output, dataset=dataset)


def _gpu(gpu: str | Gpu) -> Gpu:
    return load_gpu(gpu) if isinstance(gpu, str) else gpu


def _model(model: str | Model) -> Model:
    return load_model(model) if isinstance(model, str) else model


def _budget(budget: str | int | None, gpu: Gpu) -> int:
    size = parse_bytes(budget) if isinstance(budget, str) else gpu.budget_bytes if budget is None else budget
    if not 0 < size <= gpu.memory_bytes:
        raise UsageError(f"the budget is {format_gib(size)}; {gpu.name} has {format_gib(gpu.memory_bytes)}")
    return size


def _workload(work: Work, model: Model, contract: Contract) -> Workload:
    if isinstance(work, Workload):
        return work
    if isinstance(work, Shape):
        return Workload.uniform(work)
    from budgetft.data.examples import read_dataset
    from budgetft.data.processor import load_processor
    from budgetft.data.stats import measure_workload

    return measure_workload(read_dataset(Path(work)), load_processor(model), model, contract)


def _files(ledger: str | Path | None, storage: str | None) -> dict[str, Any]:
    """Where outcomes and trials are kept."""
    from budgetft.cache import cache_folder

    cache = cache_folder()
    cache.mkdir(parents=True, exist_ok=True)
    return {
        "ledger": cache / "ledger.sqlite3" if ledger is None else Path(ledger),
        "storage": storage or f"sqlite:///{cache / 'studies.sqlite3'}",
    }
