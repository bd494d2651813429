"""From a time to a contract: the largest that was offered whose run ends in it, then the plan of that, and what else there is.

Axes are walked in the order of preference: the largest value of the first at which anything is possible, then of the second at
that. Whether anything is possible is asked of the smallest values of the later axes. Larger values need more of both, but for
steps of the allocator and of the settings that just fit; so where the smallest miss by little, others are asked too.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import product

from budgetft.duration import HOUR, RunTime, duration_text, time_under
from budgetft.errors import NothingFits, UsageError
from budgetft.goal import AXES, MOST_ROWS, Goal, GoalRow, Values, preferred, values_text
from budgetft.measure.probe import Prober
from budgetft.plan import FRAMES, Plan
from budgetft.search.events import Event
from budgetft.search.goal_probes import FEWEST_PROBES, Probing, Tried
from budgetft.search.looks import NEVER, Look, Looks, MakeEstimator, miss, planned_time, traced_estimator
from budgetft.search.place import Place, find_place
from budgetft.search.run import PlanRequest, make_plan, precision_of
from budgetft.search.storage import is_shared
from budgetft.units import format_gib
from budgetft.weights import base_here

NEAR = 0.1
"""Share of the time or of the budget by which a contract may miss and a larger one still be possible."""
MOST_LOOKS = 80
"""At other contracts, beside those that the choice took."""


@dataclass(frozen=True, kw_only=True)
class GoalRequest:
    """What ``budgetft plan --hours`` was asked."""

    planning: PlanRequest
    """With its ranges: the contract has their lower ends."""
    hours: float
    prefer: str | Sequence[str] | None = None
    sure: bool = False
    """The slow end of a predicted time counts, not its middle."""
    examples: int | None = None
    """Of one epoch, where a shape was typed."""
    make_prober: Callable[..., Prober] = Prober
    make_estimator: MakeEstimator = traced_estimator
    plan_one: Callable[[PlanRequest], Plan] = make_plan
    """Plans the contract that was chosen."""
    find_place: Callable[[PlanRequest], Place | None] = find_place


def plan_goal(request: GoalRequest) -> Plan:
    """The plan of the largest contract whose run ends in time and inside the budget, with its goal.

    Raises ``NothingFits`` where none does, and ``UsageError`` for what cannot be a goal.
    """
    _check(request)
    return _Search(request).plan()


def predicted_choice(request: GoalRequest) -> Look | None:
    """What would be planned by prediction alone; None where nothing is possible."""
    search = _Search(request)
    values = largest(search.ladders, search._ask)
    return None if values is None else search.looks.at(values)


def ladders_of(planning: PlanRequest, fields: Sequence[str]) -> list[list[int]]:
    """The values of each of ``fields``, rising; of frames also what the examples have, if it lies among them."""
    found = []
    for name in fields:
        values = set(planning.ranges[name])
        if name != FRAMES:
            values.add(getattr(planning.contract, name))
        elif min(values) <= (own := planning.workload_under(planning.contract).most_frames) <= max(values):
            values.add(own)
        found.append(sorted(values))
    return found


def largest(ladders: Sequence[Sequence[int]], ask: Callable[[Values], float]) -> Values | None:
    """The lexicographic maximum of what is possible; ``ask`` tells by which share values miss, 0 or less: possible."""

    def under(chosen: Values) -> Values | None:
        if len(chosen) == len(ladders):
            return chosen if ask(chosen) <= 0 else None
        for value in reversed(ladders[len(chosen)]):
            tried = (*chosen, value)
            least = (*tried, *(ladder[0] for ladder in ladders[len(tried) :]))
            if ask(least) <= NEAR and (found := under(tried)) is not None:
                return found
        return None

    return under(())


def others(ladders: Sequence[Sequence[int]], ask: Callable[[Values], float], *, go_on: Callable[[], bool]) -> list[Values]:
    """What is possible and no larger in every axis is; asked from the middle out, and nothing of which the answer follows."""
    middle = sum(len(ladder) - 1 for ladder in ladders) / 2
    ranks = [{value: place for place, value in enumerate(ladder)} for ladder in ladders]

    def off_middle(values: Values) -> float:
        return abs(sum(rank[value] for rank, value in zip(ranks, values, strict=True)) - middle)

    possible: list[Values] = []
    beyond: list[Values] = []
    for values in sorted(product(*ladders), key=off_middle):
        if any(_covers(each, values) for each in possible) or any(_covers(values, each) for each in beyond):
            continue
        if not go_on():
            break
        missed = ask(values)
        if missed <= 0:
            possible.append(values)
        elif missed > NEAR:
            beyond.append(values)
    return [each for each in possible if not any(_covers(more, each) for more in possible if more != each)]


def _covers(more: Values, less: Values) -> bool:
    return all(a >= b for a, b in zip(more, less, strict=True))


def _check(request: GoalRequest) -> None:
    planning = request.planning
    if strange := sorted(set(planning.ranges) - set(AXES.values())):
        raise UsageError(
            f"a goal trades {', '.join(AXES.values())}, not {', '.join(strange)}", hint="leave that range out, or --hours"
        )
    if is_shared(planning.storage):
        raise UsageError(
            "several workers cannot look for a contract together",
            hint="leave --storage out with --hours; then plan the contract that was chosen with all workers",
        )
    if planning.cache is not None and planning.data is None:
        raise UsageError("--hours with --cache: what the cache takes once is not known of a typed shape", hint="give --data")
    if planning.cache is not None and FRAMES in planning.ranges:
        raise UsageError(
            "--hours with --cache: what the cache takes once is not known of frames that the data does not have",
            hint="leave --frames-per-example or --cache out",
        )


class _Search:
    """One goal being looked for."""

    def __init__(self, request: GoalRequest) -> None:
        planning = request.planning
        fields = preferred(request.prefer, list(planning.ranges))
        self.request, self.place = request, request.find_place(planning)
        checkpoint = base_here(planning.model.weights or planning.model.hub_id)
        precision = precision_of(planning, self.place, checkpoint)
        blocks = planning.fp32_blocks if precision is None else precision.fp32_blocks
        self.looks = Looks(
            planning=replace(planning, fp32_blocks=blocks),
            fields=fields,
            examples=request.examples,
            place=None if self.place is not None and self.place.evidence == "emulated" else self.place,
            make_estimator=request.make_estimator,
        )
        self.ladders = ladders_of(planning, fields)
        self.least = tuple(ladder[0] for ladder in self.ladders)
        self.refuted: dict[Values, Tried] = {}
        """What planning found of contracts that had been chosen."""
        self.probing: Probing | None = None
        self.quiet = False

    def plan(self) -> Plan:
        first = self.looks.first(self.least)
        if first.run is None:
            raise UsageError("how many examples an epoch has is not known of a typed shape", hint="give --examples N")
        if not self.ladders or self.place is None:
            return self._planned()
        with Probing.opened(self.looks, self.ladders, self.place, self.request) as self.probing:
            self.probing.choose(self._choose)
        return self._planned()

    def _planned(self) -> Plan:
        """The plan of the first choice that planning agrees with."""
        left = self.request.planning.max_probes - (self.probing.made if self.probing is not None else 0)
        while True:
            values = self._choose()
            if values is None and self._fits(self.least):
                raise self._nothing_in_time()
            values = values or self.least  # where nothing fits, planning tells best what would, and may find that this does
            plan = self.request.plan_one(replace(self.looks.request(values), max_probes=left))
            run = self._time(values, plan)
            found = Tried(
                fits=True,
                run=run,
                once=0.0 if plan.features is None else plan.features.seconds or 0.0,
                peak_bytes=plan.estimate.process_peak_bytes,
                evidence=plan.estimate.evidence,
            )
            if found.seconds(sure=self.request.sure) <= self.request.hours * HOUR:
                return plan.replace(goal=self._goal(values, found, run))
            self.refuted[values] = found
            left -= len(plan.evidence.outcomes)
            if self.place is not None and left < FEWEST_PROBES and self._choose() is not None:
                raise self._out_of_probes(values)

    def _fits(self, values: Values) -> bool:
        tried = self._tried(values)
        return self.looks.at(values).fits if tried is None else tried.fits

    def _time(self, values: Values, plan: Plan) -> RunTime:
        """Of ``plan``: as measured on the GPU itself, else as predicted for it."""
        own = self.place is None or self.place.evidence == "measured"
        count = self.looks.count(plan.workload)
        found = time_under(plan.contract, plan.estimate, count) if own else self._predicted(values, plan)
        assert found is not None  # it was of the first look
        return found

    def _predicted(self, values: Values, plan: Plan) -> RunTime | None:
        return planned_time(self.looks, values, plan.knobs, plan.contract)

    # What is known of contracts

    @property
    def factor(self) -> float:
        return 1.0 if self.probing is None else self.probing.factor

    def _tried(self, values: Values) -> Tried | None:
        return self.refuted.get(values) or (None if self.probing is None else self.probing.tried.get(values))

    def _ask(self, values: Values) -> float:
        request, tried = self.request, self._tried(values)
        if tried is not None:
            over = tried.seconds(sure=request.sure) / (request.hours * HOUR) - 1
            return over if tried.fits else max(over, 2 * NEAR)
        new = values not in self.looks.known
        look = self.looks.at(values)
        missed = miss(look, request.hours, sure=request.sure, factor=self.factor)
        if new and not self.quiet:
            self._tell(look)
        return missed

    def _tell(self, look: Look) -> None:
        row = self._row(look.values, look, None)
        memory = "" if row.process_peak_bytes is None else f", {format_gib(row.process_peak_bytes)}"
        text = f"{values_text(look.values)}: {row.time_text()}{memory}: {row.verdict}"
        self.request.planning.on_event(Event(stage="trace", text=text))

    def _choose(self) -> Values | None:
        if not self.ladders:  # there is nothing to choose: planning tells the time
            return None if () in self.refuted else ()
        return largest(self.ladders, self._ask)

    # What is told

    def _goal(self, values: Values, found: Tried, run: RunTime) -> Goal:
        rows, left_out = self._rows(values, found) if self.ladders else ((), 0)
        return Goal(
            hours=self.request.hours,
            prefer=self.looks.fields,
            sure=self.request.sure,
            run=run,
            one_time_seconds=found.once,
            values=self.looks.named(values),
            data_frames=self.looks.data_frames(values),
            rows=rows,
            left_out=left_out,
            probes=0 if self.probing is None else self.probing.made,
            speed_factor=self.factor,
        )

    def _rows(self, values: Values, found: Tried) -> tuple[tuple[GoalRow, ...], int]:
        possible = [each for each in self._others() if each != values and not _covers(values, each)]
        larger = [each for each in self._larger(values) if self._ask(each) > 0]
        room = MOST_ROWS - 1 - min(len(larger), MOST_ROWS // 3)
        kept = [*sorted(possible, reverse=True)[:room], *sorted(larger)[: MOST_ROWS - 1 - min(len(possible), room)]]
        rows = [self._row(self.looks.named(each), self.looks.at(each), self._tried(each)) for each in kept]
        own = self._row(self.looks.named(values), self.looks.at(values), found)
        return (own, *rows), max(0, len(possible) - room)

    def _others(self) -> list[Values]:
        left, self.quiet = MOST_LOOKS, True

        def go_on() -> bool:
            nonlocal left
            left -= 1
            return left >= 0 and not self.looks.traced  # a trace takes many seconds: then what was asked so far is told

        if not self.looks.traced:
            self.request.planning.on_event(Event(stage="trace", text="what else is possible"))
        return others(self.ladders, self._ask, go_on=go_on)

    def _larger(self, values: Values) -> list[Values]:
        """Those that were asked on the way to the choice, and a step more of each axis."""
        steps: list[Values] = []
        for place, ladder in enumerate(self.ladders):
            following = [each for each in ladder if each > values[place]][:1]
            steps += [(*values[:place], each, *values[place + 1 :]) for each in following]
        least: list[Values] = [(*values[:place], each, *self.least[place + 1 :]) for place, ladder in enumerate(self.ladders)
                 for each in ladder if each > values[place]]  # fmt: skip
        found: dict[Values, None] = dict.fromkeys([*least, *([] if self.looks.traced else steps)])
        none = [each for each in found if self.looks.at(each).problem]  # of these one is enough
        return [each for each in found if each not in none[1:]]

    def _row(self, values: dict[str, int], look: Look, tried: Tried | None) -> GoalRow:
        run, once, factor = (look.run, look.once, self.factor) if tried is None else (tried.run, tried.once, 1.0)
        ends = [None if run is None else run.low_seconds, None if run is None else run.high_seconds]
        low, high = (None if end is None else factor * end + once for end in ends)
        seconds = None if run is None else factor * run.seconds + once
        judged = (high if self.request.sure else None) or seconds or NEVER
        peak = look.candidate and look.candidate.estimate.process_peak_bytes
        return GoalRow(
            values=values,
            seconds=seconds,
            low_seconds=low,
            high_seconds=high,
            process_peak_bytes=peak if tried is None or tried.peak_bytes is None else tried.peak_bytes,
            fits=look.fits if tried is None else tried.fits,
            in_time=judged <= self.request.hours * HOUR,
            evidence="predicted" if tried is None else tried.evidence,
            problem=look.problem,
        )

    # What is refused

    def _nothing_in_time(self) -> NothingFits:
        look, tried, request = self.looks.at(self.least), self._tried(self.least), self.request
        row, planning = self._row(look.values, look, tried), request.planning
        assert row.seconds is not None
        judged = (row.high_seconds if request.sure else None) or row.seconds
        counted = "at its slow end, " if request.sure and row.high_seconds is not None else ""
        fastest = f"even {values_text(look.values)}, the fastest of these ranges," if look.values else "the run"
        limit = request.hours * HOUR
        epochs = int(planning.contract.epochs * limit / judged)
        ways = [f"--hours {_rounded_up(judged / HOUR)}", *([f"--epochs {epochs}"] if epochs >= 1 else [])]
        ways += [*(["ranges that begin lower"] if look.values else ["lower --max-pixels or --rank"]), "a faster GPU"]
        kind = "predicted" if row.evidence == "predicted" else f"{row.evidence}, by one probe"
        return NothingFits(
            f"nothing ends within {duration_text(limit)} on {planning.gpu.name}: {fastest} takes {counted}about"
            f" {row.time_text()} ({kind})",
            hint=f"what would do: {', or '.join(ways)}",
        )

    def _out_of_probes(self, values: Values) -> NothingFits:
        name, took = values_text(self.looks.named(values)), self.refuted[values].seconds(sure=self.request.sure)
        return NothingFits(
            f"no probe is left: {name} turned out to take {duration_text(took)}",
            hint="the same command resumes from these probes; or give --max-trials more",
        )


def _rounded_up(hours: float) -> str:
    """One of few digits that is not below ``hours``."""
    for step in (0.05, 0.5, 1.0, 12.0, 24.0):
        if hours <= 40 * step or step == 24.0:
            return f"{-(-hours // step) * step:g}"
    raise AssertionError
