"""Many estimates as rows of a table: every combination of the values that are asked for."""

import math
from collections.abc import Mapping, Sequence
from itertools import product
from typing import TYPE_CHECKING, Any

from budgetft.asked import as_gpu, as_model, as_plain, is_whole, split_settings
from budgetft.duration import HOUR
from budgetft.errors import UsageError
from budgetft.knobs import Knobs
from budgetft.live import Tell
from budgetft.questions import question
from budgetft.results import Estimated

if TYPE_CHECKING:
    from budgetft.predict.estimator import Estimator

MOST_ROWS = 100_000


def combinations(arguments: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every combination of the lists among ``arguments``, the last one changing fastest; single values are in all."""
    ranges = {name: _values(name, value) for name, value in arguments.items() if value is not None or name in ("gpu", "model")}
    for name, load in (("gpu", as_gpu), ("model", as_model)):
        ranges[name] = [load(value) for value in ranges[name]]
    empty = [name for name, values in ranges.items() if not values]
    if empty:
        raise UsageError(f"{empty[0]} is an empty list")
    count = math.prod(map(len, ranges.values()))
    if count > MOST_ROWS:
        raise UsageError(f"a sweep of {count:,} combinations", hint=f"ask for at most {MOST_ROWS:,}")
    return [dict(zip(ranges, values, strict=True)) for values in product(*ranges.values())]


def _values(name: str, value: Any) -> Sequence[Any]:
    """The values of a range. A pair of numbers for an image is one size, and a list of names one value of ``targets``."""
    if hasattr(value, "tolist") and getattr(value, "ndim", 0) == 1:
        value = value.tolist()
    if not isinstance(value, list | tuple | range):
        return (value,)
    if name == "image" and len(value) == 2 and all(is_whole(as_plain(side)) for side in value):
        return (tuple(value),)
    if name in ("targets", "fp32_blocks") and not any(isinstance(each, list | tuple) for each in value):
        return (tuple(value),)
    return value


def table_of(ranges: Mapping[str, Any], examples: int | None, epochs: int | None, tell: Tell) -> list[dict[str, Any]]:
    """A row for each combination of ``ranges``: what was asked, what it needs, and what was chosen.

    A combination that cannot be run has its reason in the column ``problem``; raises ``UsageError`` when none can.
    """
    split_settings({name: None for name in ranges if name not in ARGUMENTS})  # a name that is not known is wrong in every row
    asked = combinations(ranges)
    several = [name for name in ("gpu", "model") if len({each[name].name for each in asked}) > 1]
    varied = several + [name for name in asked[0] if name not in ("gpu", "model")]
    estimators: dict[str, Estimator] = {}
    rows, problems = [], []
    for number, each in enumerate(asked, start=1):
        row = {name: _cell(each[name]) for name in varied}
        tell(f"{number} of {len(asked)}")
        try:
            found = _estimated(each, estimators, tell)
            row |= _numbers(found, examples, epochs) | _chosen(found.knobs, skip=row)
        except UsageError as error:
            row |= {"fits": False, "problem": error.message}
            problems.append(error)
        rows.append(row)
    if len(problems) == len(rows):
        raise problems[0]
    return _even(rows)


def _estimated(each: Mapping[str, Any], estimators: "dict[str, Estimator]", tell: Tell) -> Estimated:
    """One estimate. Combinations that differ in knobs alone share what is known of their job."""
    from budgetft.search.predicted import estimated

    named = {name: value for name, value in each.items() if name in ARGUMENTS and name not in ("gpu", "model")}
    settings = {name: value for name, value in each.items() if name not in ARGUMENTS}
    asked = question(each["gpu"], each["model"], settings, **named)
    key = repr([(name, str(value)) for name, value in each.items() if name not in Knobs.model_fields])
    if key not in estimators:
        estimators[key] = asked.estimator(tell)
    return estimated(estimators[key], asked.given)


ARGUMENTS = ("gpu", "model", "budget", "work", "data", "image", "images", "text_tokens", "label_tokens", "contract", "qlora")
"""What a sweep may range over besides fields of the contract and knobs."""


def _cell(value: Any) -> Any:
    value = as_plain(value)
    if isinstance(value, tuple | list) and len(value) == 2 and all(map(is_whole, value)):
        return f"{value[0]}x{value[1]}"
    return value if isinstance(value, str | int | float | bool) or value is None else getattr(value, "name", None) or str(value)


def _numbers(found: Estimated, examples: int | None, epochs: int | None) -> dict[str, Any]:
    low, high = found.examples_per_second_range or (None, None)
    speeds = {
        "examples_per_second_low": low,
        "examples_per_second": found.examples_per_second,
        "examples_per_second_high": high,
    }
    row = {"peak_gib": round(found.peak_gib, 3), "fits": found.fits, **speeds}
    if examples is None and found.examples is None:
        return row
    if found.examples_per_second is None:
        return {**row, "hours_low": None, "hours": None, "hours_high": None}
    time = found.hours(examples, epochs)
    ends = [None if end is None else end / HOUR for end in (time.low_seconds, time.high_seconds)]
    return {**row, "hours_low": ends[0], "hours": time.hours, "hours_high": ends[1]}


def _chosen(knobs: Knobs, *, skip: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in knobs.model_dump().items() if name not in skip}


def _even(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every row with every column; None where it has nothing."""
    columns = dict.fromkeys(name for row in sorted(rows, key=len, reverse=True) for name in row)
    return [{name: row.get(name) for name in columns} for row in rows]
