"""Arguments of the Python API as one question: of what GPU, model, examples, training configuration and settings it is."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from budgetft import asked
from budgetft.asked import Typed, Work, short_text, split_settings
from budgetft.contract import Contract
from budgetft.duration import MOST_EXAMPLES, parse_hours
from budgetft.errors import UsageError, refused_by_system
from budgetft.gpu import Gpu
from budgetft.knobs import Knobs
from budgetft.model import Model
from budgetft.plan import Plan, read_plan
from budgetft.workload import Shape, Workload

if TYPE_CHECKING:
    import pandas  # pyright: ignore[reportMissingTypeStubs]

    from budgetft.predict.estimator import Estimator

Tell = Callable[[str], None]
TYPED = ("image", "images", "text_tokens", "label_tokens")
PROBES = ("auto", "always", "never")
EXAMPLES = ("work", "data", *TYPED)
"""Arguments that say what is trained on."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """What is asked, as values."""

    gpu: Gpu
    model: Model
    budget_bytes: int
    contract: Contract
    ranges: dict[str, list[int]]
    work: Work | None
    """None: nothing was said."""
    given: dict[str, Any]
    """Knobs that are settled."""

    def of_a_plan(self) -> "Question":
        """The same; ``UsageError`` where knobs are settled that a plan chooses itself."""
        for name, value in self.given.items():
            if name != "base_precision" or value != "nf4":
                raise UsageError(f"a plan chooses {name} itself", hint=f"of one setting: estimate(..., {name}={value!r})")
        return self

    def planned(self, work: Work) -> dict[str, Any]:
        """The part of a request to plan that this is, for the examples of ``work``."""
        return {
            "gpu": self.gpu,
            "budget_bytes": self.budget_bytes,
            "model": self.model,
            "contract": self.contract,
            "ranges": self.ranges,
            "base_precision": self.given.get("base_precision"),
            "workload_under": lambda changed: asked.workload_of(work, self.model, changed),
            "data": str(work.resolve()) if isinstance(work, Path) else None,
        }

    def estimator(self, tell: Tell) -> "Estimator":
        """Of one setting of this, without planning; what nothing was said of is the default."""
        from budgetft.measure.job import Job
        from budgetft.predict.estimator import Estimator

        work = opened(self.work or Typed(), tell)
        job = Job(
            gpu=self.gpu,
            budget_bytes=self.budget_bytes,
            model=self.model,
            contract=self.contract,
            workload=asked.workload_of(work, self.model, self.contract),
            evidence="predicted",
        )
        return Estimator(job, at_once=True, on_trace=tell)


def question(gpu: Any, model: Any, settings: Mapping[str, Any], **arguments: Any) -> Question:
    """The question that arguments of a function make, with contract fields and knobs by name in ``settings``.

    With ``ranges``, as a plan has, a list for a contract field is one too. Raises ``UsageError``, which names the argument.
    """
    profile, architecture = asked.as_gpu(gpu), asked.as_model(model)
    fields, knobs = split_settings(settings)
    given = _knobs(arguments.get("knobs"), knobs)
    if asked.yes_or_no("qlora", arguments.get("qlora", False)):
        fields = {**fields, "allow_nf4": True}
        if given.setdefault("base_precision", "nf4") != "nf4":
            raise UsageError(f"qlora=True has a 4-bit base, and base_precision is {short_text(given['base_precision'])}")
    work, ranges = _work(arguments), {}
    if "ranges" in arguments:
        fields, ranges = asked.minima_of(fields)
        ranges |= asked.ranges_of(arguments["ranges"])
    return Question(
        gpu=profile,
        model=architecture,
        budget_bytes=asked.budget_bytes(arguments.get("budget"), profile),
        contract=_contract(arguments.get("contract"), fields, work),
        ranges=ranges,
        work=work,
        given=given,
    )


def plan_options(gpus: Any, deterministic: Any, cache: Any, probe: Any, max_probes: Any) -> dict[str, Any]:
    """How a plan is to be searched for, of a request to plan."""
    return {
        "gpus": asked.whole("gpus", gpus, most=1024),
        "deterministic": asked.yes_or_no("deterministic", deterministic),
        "cache": None if cache is None else str(asked.as_path("cache", cache)),
        "probe": asked.one_of("probe", probe, PROBES),
        "max_probes": asked.whole("max_probes", max_probes, least=5, most=10_000),
    }


def goal_asked(hours: Any, prefer: Any, sure: Any, examples: Any) -> dict[str, Any] | None:
    """What a run has to end in, and by what it is chosen; None where no time is given."""
    if asked.yes_or_no("sure", sure) and hours is None:
        raise UsageError("sure=True is of hours, and none are given", hint="plan(..., hours=10, sure=True)")
    if examples is not None:
        examples = asked.whole("examples", examples, most=MOST_EXAMPLES)
    for name in asked.each_of(prefer):
        if prefer is not None:
            asked.of_kind("prefer", name, str)
    if hours is None:
        return None
    hours = asked.as_plain(hours)
    if isinstance(hours, bool) or not isinstance(hours, int | float | str):
        raise UsageError(f"hours must be a number or text such as 90min, not {short_text(hours)}")
    text = hours if isinstance(hours, str) else f"{hours:f}" if isinstance(hours, float) else short_text(hours)
    return {"hours": parse_hours(text), "prefer": prefer, "sure": sure, "examples": examples}


def as_plan(plan: Any) -> Plan:
    """A plan, or the one in a file."""
    return plan if isinstance(plan, Plan) else read_plan(asked.as_path("plan", plan))


def as_source(source: Any) -> Plan | Path:
    """What a report is of."""
    return source if isinstance(source, Plan) else asked.as_path("source", source)


def kept_in(ledger: Any, storage: Any) -> dict[str, Any]:
    """Where outcomes and trials are kept: in the cache unless told otherwise."""
    from budgetft.cache import cache_folder

    cache = cache_folder()
    kept = cache / "ledger.sqlite3" if ledger is None else asked.as_path("ledger", ledger)
    study = asked.as_text("storage", storage) or f"sqlite:///{cache / 'studies.sqlite3'}"
    try:
        cache.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise refused_by_system(error) from None
    return {"ledger": kept, "storage": study}


def data_frame() -> "Callable[[list[dict[str, Any]]], pandas.DataFrame]":
    """What makes a table of rows; ``UsageError`` where pandas is not installed."""
    try:
        from pandas import DataFrame  # pyright: ignore[reportMissingTypeStubs]
    except ImportError:
        raise UsageError("pandas is not installed", hint="pip install pandas, or sweep(..., as_rows=True)") from None

    def frame(rows: list[dict[str, Any]]) -> "pandas.DataFrame":
        """Whole numbers stay whole beside a row that has none."""
        columns = {name: [row[name] for row in rows] for name in rows[0]}
        gaps = (name for name, values in columns.items() if None in values and any(map(asked.is_whole, values)))
        return DataFrame(columns).astype(dict.fromkeys(gaps, "Int64"))

    return frame


def opened(work: Work, tell: Tell) -> Work:
    """``work``, with data that is no dataset folder converted into the cache, once."""
    if not isinstance(work, Path):
        return work
    from budgetft.cache import cache_folder
    from budgetft.data.read.opening import dataset_folder

    return dataset_folder(
        work,
        cache=cache_folder(),
        on_convert=lambda folder: tell(f"{work} is converted into {folder}"),
        on_report=lambda report: tell("; ".join(report.notes)) if report.notes else None,
    )


def _work(arguments: Mapping[str, Any]) -> Work | None:
    given = {name: arguments[name] for name in EXAMPLES if arguments.get(name) is not None}
    kinds = [name for name in ("work", "data") if name in given] + (["image"] if set(given) & set(TYPED) else [])
    if len(kinds) > 1:
        names = [name for name in EXAMPLES if name in given]
        raise UsageError(f"{' and '.join(names)}: give work, or data, or the size of an example", hint="leave the others out")
    if "work" in given and not isinstance(given["work"], str | Path):
        return asked.of_kind("work", given["work"], Shape, Workload, str, Path)  # pyright: ignore[reportReturnType]
    if given and kinds != ["image"]:
        return asked.as_path(kinds[0], given[kinds[0]])
    if not given:
        return None
    if "image" in given:
        width, height = asked.size_of("image", given["image"])
        given["image"] = f"{width}x{height}"
    return Typed.make(**{name: value if name == "image" else asked.as_plain(value) for name, value in given.items()})


def _contract(contract: Contract | Mapping[str, Any] | None, fields: dict[str, Any], work: Work | None) -> Contract:
    """An image that is typed stays as large as it is, unless the most pixels of one are said."""
    if contract is not None and not isinstance(contract, Contract | Mapping):
        raise UsageError(f"contract must be a Contract or a dict of its fields, not {short_text(contract)}")
    base = None
    if isinstance(contract, Contract):
        base = contract
    else:
        own, knobs = split_settings(_named("contract", contract or {}))
        if knobs:
            raise UsageError(f"contract: {', '.join(knobs)}: a setting of cost, not of what is learned", hint="give knobs=")
        fields = {**own, **fields}
    said = "max_pixels" in fields or (base is not None and "max_pixels" in base.model_fields_set)
    if isinstance(work, Typed) and not said:
        fields = {**fields, "max_pixels": work.pixels}
    return asked.contract_of(fields, base)


def _knobs(knobs: Any, named: dict[str, Any]) -> dict[str, Any]:
    if isinstance(knobs, Knobs):
        whole = dict(knobs)
    elif isinstance(knobs, Mapping):
        fields, whole = split_settings(_named("knobs", knobs))
        if fields:
            raise UsageError(
                f"knobs: {', '.join(fields)}: a field of the contract", hint="give contract=, or the field by itself"
            )
    elif knobs is None:
        whole = {}
    else:
        raise UsageError(f"knobs must be Knobs or a dict of them, not {short_text(knobs)}")
    twice = sorted(set(whole) & set(named))
    if twice:
        raise UsageError(f"{', '.join(twice)}: given by itself and in knobs", hint="leave one of them out")
    return {**whole, **named}


def _named(what: str, values: Mapping[Any, Any]) -> Mapping[str, Any]:
    if not all(isinstance(name, str) for name in values):
        raise UsageError(f"{what}: names must be text, not {short_text(next(n for n in values if not isinstance(n, str)))}")
    return values
