"""The Python API: what the commands do, as functions on values. Importing this loads no torch.

>>> from budgetft.api import estimate
>>> found = estimate("rtx3060-12g", image="896x896", rank=16, micro_batch=1)
>>> found.fits
True
>>> found.hours(examples=2000, epochs=3).steps
188

Results show themselves: in a notebook as a small table, printed as a few lines. ``plan``, ``train`` and others show their
progress in a notebook and on a terminal; ``progress=False`` keeps them silent. Everything raises :class:`BudgetftError`, which
has a ``message``, a ``hint`` and the command line's ``exit_code``.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from budgetft import asked
from budgetft.asked import MODEL
from budgetft.cache import cache_folder
from budgetft.contract import Contract
from budgetft.duration import RunTime
from budgetft.errors import BudgetftError, NothingFits, UsageError
from budgetft.gpu import Gpu
from budgetft.knobs import Knobs
from budgetft.live import both, event_text, record_text, telling
from budgetft.model import Model
from budgetft.plan import Candidate, Plan, load_planned_model
from budgetft.plan import read_plan as _read_plan
from budgetft.plan import write_plan as _write_plan
from budgetft.questions import PROBES, as_plan, as_source, data_frame, goal_asked, kept_in, opened, plan_options, question
from budgetft.results import Estimated
from budgetft.what_fits import FitAsked, FitTable
from budgetft.workload import Shape, Workload

if TYPE_CHECKING:
    import pandas  # pyright: ignore[reportMissingTypeStubs]

    from budgetft.export.merge import Merged
    from budgetft.export.trainers import Exported, Trainer
    from budgetft.report.view import Figure, Page
    from budgetft.search.events import Event
    from budgetft.search.port import Port
    from budgetft.train.record import Record, Summary

__all__ = [
    "BudgetftError",
    "Candidate",
    "Contract",
    "Estimated",
    "FitTable",
    "Gpu",
    "Knobs",
    "Model",
    "NothingFits",
    "Plan",
    "RunTime",
    "Shape",
    "UsageError",
    "Workload",
    "estimate",
    "export",
    "figure",
    "fit",
    "load_gpu",
    "load_model",
    "merge",
    "plan",
    "port",
    "read_plan",
    "report",
    "sweep",
    "train",
    "write_plan",
]

Work = Shape | Workload | str | Path
"""What is trained on: one shape for all examples, their distribution, or data as ``budgetft plan --data`` takes it."""
Size = str | tuple[int, int]
"""Of an image in pixels: ``"896x448"`` or ``(896, 448)``, width first."""
Fields = Contract | Mapping[str, Any] | None
Probe = Literal["auto", "always", "never"]


def estimate(
    gpu: str | Gpu,
    model: str | Model = MODEL,
    *,
    work: Work | None = None,
    data: str | Path | None = None,
    image: Size | None = None,
    images: int | None = None,
    text_tokens: int | None = None,
    label_tokens: int | None = None,
    budget: str | int | None = None,
    contract: Fields = None,
    knobs: Knobs | Mapping[str, Any] | None = None,
    qlora: bool = False,
    progress: bool | None = None,
    **settings: Any,
) -> Estimated:
    """What one setting is computed to need; what is left out is the fastest that is predicted to fit. Nothing is run.

    >>> estimate("v100-16g", rank=8, micro_batch=2, checkpointed_layers=36).knobs.grad_accum
    16

    ``image`` (WIDTHxHEIGHT pixels), ``images``, ``text_tokens`` and ``label_tokens`` are of one example, 448x448, 1, 256 and
    160 when left out; or ``data`` is what ``budgetft estimate --data`` takes, or ``work`` a value. ``budget``: bytes, or text
    such as ``"14GiB"``. ``settings``: fields of :class:`Contract` (``rank=8``, ``effective_batch=16``; also in ``contract``)
    and of :class:`Knobs`, kept exactly (``micro_batch=2``; or all together in ``knobs``). Alpha is twice the rank unless given.
    ``qlora``: the base weights in 4 bits. Raises ``UsageError`` for settings that cannot be run.
    """
    from budgetft.search.predicted import estimated

    wanted = question(
        gpu, model, settings, work=work, data=data, image=image, images=images, text_tokens=text_tokens,
        label_tokens=label_tokens, budget=budget, contract=contract, knobs=knobs, qlora=qlora,
    )  # fmt: skip
    with telling(progress, "estimate") as tell:
        return estimated(wanted.estimator(tell), wanted.given)


def sweep(
    gpu: str | Gpu | Sequence[str | Gpu],
    model: str | Model | Sequence[str | Model] = MODEL,
    *,
    examples: int | None = None,
    epochs: int | None = None,
    as_rows: bool = False,
    progress: bool | None = None,
    **ranges: Any,
) -> "pandas.DataFrame | list[dict[str, Any]]":
    """:func:`estimate` for every combination of lists: a ``DataFrame``, or with ``as_rows`` a list of dicts.

    >>> rows = sweep("rtx4090", rank=[8, 64], micro_batch=[1, 2], as_rows=True)
    >>> [(row["rank"], row["micro_batch"], row["fits"]) for row in rows]
    [(8, 1, True), (8, 2, True), (64, 1, True), (64, 2, True)]

    ``ranges``: any argument of :func:`estimate`, a single value or a list of them; so may ``gpu`` and ``model`` be. Columns:
    what was asked; ``peak_gib``; ``fits``; ``examples_per_second`` with the ends of its 80 % range in ``_low`` and ``_high``;
    ``hours`` for ``examples`` and ``epochs`` (of the contract when left out), with both ends too; and the knobs.
    A combination that cannot be run says why in ``problem``; raises ``UsageError`` when none can.
    """
    from budgetft.sweeps import table_of

    examples = None if examples is None else asked.whole("examples", examples)
    epochs = None if epochs is None else asked.whole("epochs", epochs)
    make = None if asked.yes_or_no("as_rows", as_rows) else data_frame()
    with telling(progress, "sweep") as tell:
        rows = table_of({"gpu": gpu, "model": model, **ranges}, examples, epochs, tell)
    return rows if make is None else make(rows)


def plan(
    gpu: str | Gpu,
    model: str | Model = MODEL,
    *,
    work: Work | None = None,
    data: str | Path | None = None,
    image: Size | None = None,
    images: int | None = None,
    text_tokens: int | None = None,
    label_tokens: int | None = None,
    budget: str | int | None = None,
    gpus: int = 1,
    contract: Fields = None,
    ranges: Mapping[str, Sequence[int]] | None = None,
    hours: float | str | None = None,
    prefer: str | Sequence[str] | None = None,
    sure: bool = False,
    examples: int | None = None,
    qlora: bool = False,
    deterministic: bool = False,
    cache: str | Path | None = None,
    probe: Probe = "auto",
    max_probes: int = 20,
    ledger: str | Path | None = None,
    storage: str | None = None,
    on_event: "Callable[[Event], None] | None" = None,
    progress: bool | None = None,
    **fields: Any,
) -> Plan:
    """The fastest way to run the data under the contract that stays inside ``budget``; without data, for a drawn sample.

    GPU, model, examples and ``qlora`` as of :func:`estimate`. ``fields`` of the contract are given by name, or in ``contract``;
    of ``rank``, ``max_pixels`` and ``frames_per_example`` a list plans the least and tells what others cost, as in ``ranges``.
    Several ``gpus``, each with that budget, hold the whole base each or share its layers out, whichever is faster. ``cache``:
    a folder for vision features, or ``"auto"``, where computing them once may be faster. ``probe`` as on the command line;
    finished probes go to ``ledger`` and the Optuna ``storage``, in the cache when left out. ``on_event`` is called beside
    ``progress``. Raises ``NothingFits`` with the smallest budget that would work.

    ``hours`` (or text such as 90min): the largest contract of the ranges whose run ends in time, first by what ``prefer`` names
    first; ``sure`` counts the slow end of a predicted time. ``examples`` of an epoch where no data is given. The plan then has
    a ``goal``. Raises ``NothingFits`` also where nothing ends in time.
    """
    from budgetft.search.run import PlanRequest, make_plan

    wanted = question(
        gpu, model, fields, work=work, data=data, image=image, images=images, text_tokens=text_tokens,
        label_tokens=label_tokens, budget=budget, contract=contract, qlora=qlora, ranges=ranges or {},
    ).of_a_plan()  # fmt: skip
    options = plan_options(gpus, deterministic, cache, probe, max_probes) | kept_in(ledger, storage)
    goal = goal_asked(hours, prefer, sure, examples)
    listen = asked.callback("on_event", on_event)
    with telling(progress, "plan") as tell:
        used = opened(wanted.work or asked.sample_data(cache_folder(), tell), tell)
        request = PlanRequest(**wanted.planned(used), **options, on_event=both(lambda event: tell(event_text(event)), listen))
        if goal is None:
            return make_plan(request)
        from budgetft.search.goal import GoalRequest, plan_goal

        return plan_goal(GoalRequest(planning=request, **goal))


def port(
    plan: Plan | str | Path,
    gpu: str | Gpu,
    *,
    budget: str | int | None = None,
    display_bytes: int = 0,
    precision: Literal["keep", "native"] = "keep",
    probe: Probe = "auto",
    model: str | None = None,
    ledger: str | Path | None = None,
    storage: str | None = None,
    on_event: "Callable[[Event], None] | None" = None,
    progress: bool | None = None,
) -> "Port":
    """``plan`` for another GPU or budget, from the same evidence and at most three probes: the plan, and what changed.

    ``precision``: keep the plan's 16-bit type, or take what the GPU runs natively; ``display_bytes`` are left to a display.
    Raises ``UsageError`` when the plan's type only runs emulated there, ``NothingFits`` with what to give up.
    """
    from budgetft.search.port import PortRequest, port_plan

    profile, made = asked.as_gpu(gpu), as_plan(plan)
    with telling(progress, "port") as tell:
        return port_plan(
            PortRequest(
                plan=made,
                model=load_planned_model(made, name=asked.as_text("model", model)),
                gpu=profile,
                budget_bytes=asked.budget_bytes(budget, profile),
                display_bytes=display_bytes,
                precision=asked.one_of("precision", precision, ("keep", "native")),
                probe=asked.one_of("probe", probe, PROBES),
                on_event=both(lambda event: tell(event_text(event)), asked.callback("on_event", on_event)),
                **kept_in(ledger, storage),
            )
        )


def fit(
    gpu: str | Gpu | Sequence[str | Gpu],
    model: str | Model | Sequence[str | Model] | None = None,
    *,
    budget: str | int | None = None,
    **fields: Any,
) -> FitTable:
    """What runs on ``gpu``: each model (the bundled ones that have recordings when left out) by LoRA and QLoRA.

    Of each, at several picture sizes, the peak memory, the speed, the time of a run, and the largest square picture that
    fits. ``fields`` are those of :class:`budgetft.what_fits.FitAsked`: ``images=["448x448", "896x896"]``, ``rank``,
    ``examples``, ``epochs``, ``effective_batch``, ``text_tokens``, ``label_tokens``. Of several GPUs, ``budget`` is each one's.
    All is predicted.
    """
    from budgetft.search.what_fits import recorded_models, what_fits

    gpus = [asked.as_gpu(each) for each in asked.each_of(gpu)]
    models = recorded_models(gpus)[0] if model is None else [asked.as_model(each) for each in asked.each_of(model)]
    wanted = FitAsked.make(**asked.with_sizes(fields))
    if not gpus or not models:
        raise UsageError("name at least one GPU and one model")
    return what_fits(gpus, models, wanted, budget_bytes=lambda each: asked.budget_bytes(budget, each))


def train(
    plan: Plan | str | Path,
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
    on_progress: "Callable[[Record], None] | None" = None,
    progress: bool | None = None,
) -> "Summary":
    """Run ``plan`` into the folder ``out``; see :func:`budgetft.train.run.run_training`. ``progress`` as of :func:`plan`."""
    counts = {"steps": steps, "save_every": save_every, "heldout_every": heldout_every}
    zeros = {"early_stopping": early_stopping, "sample_captions": sample_captions}
    flags = {"keep_best": keep_best, "deterministic": deterministic}
    options: dict[str, Any] = {
        **{name: None if value is None else asked.whole(name, value) for name, value in counts.items()},
        **{name: None if value is None else asked.whole(name, value, least=0) for name, value in zeros.items()},
        **{name: None if value is None else asked.yes_or_no(name, value) for name, value in flags.items()},
        "resume": asked.yes_or_no("resume", resume),
        "weights": asked.as_text("weights", weights),
        "device": asked.one_of("device", device, ("auto", "cpu", "cuda")),
        "out": asked.as_path("out", out),
        "heldout": None if heldout is None else asked.as_path("heldout", heldout),
        "trackers": asked.of_kind("trackers", trackers, list, tuple),
    }
    made, used = as_plan(plan), None if data is None else asked.as_path("data", data)
    listen = asked.callback("on_progress", on_progress)
    with telling(progress, "train") as tell:
        from budgetft.train.run import run_training

        if used is not None:
            options["data"] = opened(used, tell)
        on_record = both(lambda record: tell(record_text(record)), listen)
        return run_training(made, on_progress=on_record, on_note=tell, **options)


def report(
    source: Plan | str | Path, out: str | Path | None = None, *, ledger: str | Path | None = None, progress: bool | None = None
) -> "Page":
    """The report of a plan, of a plan file or of the folder of a run, as one page: a notebook shows it.

    It is written to ``out`` (``.path``), each chart as PNG beside it, or by ``.save(path)``; ``.html`` is its text.
    """
    from budgetft.report.view import page_of

    made, kept = as_source(source), None if ledger is None else asked.as_path("ledger", ledger)
    target = None if out is None else asked.as_path("out", out)
    with telling(progress, "report") as tell:
        page = page_of(made, kept, tell)
    if target is not None:
        page.save(target)
    return page


def figure(
    source: Plan | str | Path, kind: str = "memory", *, ledger: str | Path | None = None, progress: bool | None = None
) -> "Figure":
    """One chart of :func:`report`: ``memory``, ``frontier``, ``trials``, ``baseline``, ``data`` or ``training``.

    ``.svg`` is its text; ``.save(path)`` writes ``.svg`` or ``.png``. Raises ``UsageError`` where there is nothing to draw.
    """
    from budgetft.report.view import figure_of

    made, kept = as_source(source), None if ledger is None else asked.as_path("ledger", ledger)
    with telling(progress, "figure") as tell:
        return figure_of(made, asked.of_kind("kind", kind, str), kept, tell)


def merge(
    run: str | Path, out: str | Path, *, weights: str | None = None, on_file: Callable[[str], None] = lambda name: None
) -> "Merged":
    """The adapter of ``run`` merged into its base checkpoint, in the new folder ``out``; never the whole model in memory."""
    source, target = asked.as_path("run", run), asked.as_path("out", out)
    checked = {"weights": asked.as_text("weights", weights), "on_file": asked.callback("on_file", on_file)}
    from budgetft.export.merge import merge_run

    return merge_run(source, target, **checked)


def export(
    plan: Plan | str | Path,
    to: "Trainer",
    *,
    model: str | None = None,
    output: str = "runs/exported",
    dataset: str | None = None,
) -> "Exported":
    """``plan`` as the settings of another trainer, with that trainer's own predicted peak and the levers it lacks."""
    made, trainer = as_plan(plan), asked.of_kind("to", to, str)
    names = {"output": asked.of_kind("output", output, str), "dataset": asked.as_text("dataset", dataset)}
    from budgetft.export.trainers import export_plan

    return export_plan(made, load_planned_model(made, name=asked.as_text("model", model)), trainer, **names)


def load_gpu(name: str) -> Gpu:
    """The profile of the GPU called ``name``, or the one in a TOML file. Raises ``UsageError`` with the nearest name."""
    return asked.as_gpu(name)


def load_model(name: str) -> Model:
    """A bundled model, one in a local folder, or one on the hub. Raises ``UsageError`` with the nearest name."""
    return asked.as_model(name)


def read_plan(path: str | Path) -> Plan:
    """The plan in the file ``path``; refused, with every reason, when it is newer, inconsistent or not a plan."""
    return _read_plan(asked.as_path("path", path))


def write_plan(plan: Plan, path: str | Path) -> None:
    """Write ``plan`` to the file ``path``, whole or not at all."""
    _write_plan(asked.of_kind("plan", plan, Plan), asked.as_path("path", path))
