"""Ports an existing plan to other GPUs and searches afresh there, on the GPU at hand; JSON lines, then a table.

    python reports/port/port.py [--cards rtx3060-12g rtx3090] [--plan reports/spine/plan-448.json] [--out FOLDER]
    python reports/port/port.py --cards rtx3070-8g --model qwen2-vl-2b      # a plan for 16 GB is probed first, then ported
    python reports/port/port.py --table reports/port/plans                  # the table alone, of an earlier --out; no GPU

GPU:BUDGET sets another budget than the GPU's own. Each search has a ledger and a study of its own; neither a ported plan nor
a fresh one probes the baseline. Nothing is begun after --seconds; what was left out is said. Two probes of one setting
differ by some percent, so the table gives a plan the median speed of all probes of its setting on that GPU, by whichever
of the two searches; the speeds that each was confirmed with stand beside it. Measured, or emulated where a GPU stands in.
"""

import json
import sys
import time
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from harness import SPINE, evidence
from harness.arguments import flag, parser, there
from harness.jobs import shape
from harness.tables import gib, head, row

from budgetft.contract import Contract
from budgetft.errors import BudgetftError
from budgetft.gpu import Gpu, load_gpu
from budgetft.knobs import describe
from budgetft.model import Model, load_model
from budgetft.plan import Plan, load_planned_model, read_plan, write_plan
from budgetft.search.port import PortRequest, port_plan
from budgetft.search.run import PlanRequest, make_plan
from budgetft.units import parse_bytes
from budgetft.workload import Workload

RESULTS = "results.jsonl"
Tell = Callable[[dict[str, Any]], None]
Made = tuple[Plan, dict[str, Any]]

options = parser(__doc__, out=Path("port-results"))
flag(
    options,
    "--gpus",
    nargs="+",
    default=["rtx3060-12g", "rtx3090"],
    help="GPUs to port to, each with :BUDGET if it is another",
)
flag(options, "--plan", type=there, default=SPINE)
flag(options, "--model", help="probe a plan of this model first, instead of --plan")
flag(options, "--old-probes", type=int, default=6)
flag(options, "--fresh-probes", type=int, default=8)
flag(options, "--probe", choices=("auto", "always"), default="auto")
flag(options, "--seconds", type=int, default=280)
flag(options, "--table", type=there)


def measure(asked: Namespace, tell: Tell) -> None:
    """The old plan, then each GPU: ported, and searched afresh with the same 16-bit type."""
    deadline = time.monotonic() + asked.seconds
    old = _old_plan(asked, tell)
    model = load_planned_model(old)
    for each in asked.gpus:
        name, _, budget = each.partition(":")
        gpu = load_gpu(name)
        size = parse_bytes(budget) if budget else gpu.budget_bytes
        for kind, make in (("ported", _ported), ("fresh", _fresh)):
            if time.monotonic() > deadline:
                tell({"card": name, "kind": kind, "skipped": f"more than {asked.seconds} s had passed"})
                continue
            started = time.monotonic()
            try:
                plan, facts = make(old, model, gpu, size, asked)
            except BudgetftError as error:
                tell({"card": name, "kind": kind, "error": error.message})
                continue
            write_plan(plan, asked.out / f"{kind}-{name}.json")
            tell({"card": name, "kind": kind, **_facts(plan), **facts, "wall_seconds": round(time.monotonic() - started, 1)})


def _old_plan(asked: Namespace, tell: Tell) -> Plan:
    """The plan that is ported; for --model it is probed now, for a V100 of 16 GB under 14 GiB."""
    if asked.model is None:
        return read_plan(asked.plan)
    started, gpu = time.monotonic(), load_gpu("v100-16g")
    facts = {
        "contract": Contract(),
        "workload_under": lambda contract: Workload.uniform(shape()),
        "max_probes": asked.old_probes,
    }
    plan = make_plan(PlanRequest(**_request(load_model(asked.model), gpu, gpu.budget_bytes, asked, "old"), **facts))
    write_plan(plan, asked.out / "old.json")
    tell({"card": gpu.name, "kind": "old", **_facts(plan), "wall_seconds": round(time.monotonic() - started, 1)})
    return plan


def _ported(old: Plan, model: Model, gpu: Gpu, size: int, asked: Namespace) -> Made:
    made = port_plan(PortRequest(plan=old, **_request(model, gpu, size, asked, f"ported-{gpu.name}")))
    confirmed = made.plan.evidence.confirmed
    measured = None if confirmed is None else confirmed.process_peak_bytes
    predicted = made.predicted.process_peak_bytes
    return made.plan, {
        "predicted_peak_bytes": predicted,
        "peak_error_share": None if measured is None else predicted / measured - 1,
        "uncertainty_share": made.uncertainty_share,
        "predicted_samples_per_second": made.predicted.samples_per_second,
        "carried": made.carried,
        "changes": [f"{change.knob} {change.before} -> {change.after}" for change in made.changes],
    }


def _fresh(old: Plan, model: Model, gpu: Gpu, size: int, asked: Namespace) -> Made:
    facts = {"contract": old.contract, "workload_under": lambda contract: old.workload, "max_probes": asked.fresh_probes}
    facts |= {"base_precision": old.knobs.base_precision, "lessons": ()}
    return make_plan(PlanRequest(**_request(model, gpu, size, asked, f"fresh-{gpu.name}"), **facts)), {}


def _request(model: Model, gpu: Gpu, size: int, asked: Namespace, name: str) -> dict[str, Any]:
    """What every search is told, its files among it."""

    def note(event: Any) -> None:
        if event.outcome is not None:
            what = f"{event.outcome.status} {describe(event.outcome.knobs)}"
            print(f"  {name} {event.stage} {event.number}: {what}", file=sys.stderr, flush=True)

    files = {"storage": f"sqlite:///{asked.out / f'study-{name}.sqlite3'}", "ledger": asked.out / f"ledger-{name}.sqlite3"}
    return {"model": model, "gpu": gpu, "budget_bytes": size, "probe": asked.probe, "on_event": note, **files}


def _facts(plan: Plan) -> dict[str, Any]:
    """What the table needs of a plan."""
    statuses = [outcome.status for outcome in plan.evidence.outcomes]
    return {
        "model": plan.model.name,
        "evidence": plan.evidence.kind,
        "budget_bytes": plan.gpu.budget_bytes,
        "knobs": describe(plan.knobs),
        "process_peak_bytes": plan.estimate.process_peak_bytes,
        "samples_per_second": plan.estimate.samples_per_second,
        "probes": len(statuses),
        "ooms": statuses.count("oom"),
    }


def print_table(folder: Path) -> None:
    """Markdown: a line per GPU with the ported plan beside the fresh search."""
    columns = ("GPU", "model", "budget, GiB", "peak: predicted, then found, GiB", "error", "probes: ported, fresh")
    print(head(*columns, "examples/s: ported, fresh", "ratio", "as confirmed"))
    for each in evidence.read_lines(folder / RESULTS):
        if "skipped" in each or "error" in each:
            why = each.get("error") or each["skipped"]
            print(f"| {each['card']} | {each['kind']}: {why[:150]} | | | | | | | |")
        elif each["kind"] == "ported" and (folder / f"fresh-{each['card']}.json").is_file():
            print(_line(each, *(read_plan(folder / f"{kind}-{each['card']}.json") for kind in ("ported", "fresh"))))


def _line(each: dict[str, Any], ported: Plan, fresh: Plan) -> str:
    both = [*ported.evidence.outcomes, *fresh.evidence.outcomes]
    rates = [median(o.samples_per_second or 0 for o in both if o.knobs == plan.knobs and o.fits) for plan in (ported, fresh)]
    confirmed = ", ".join(f"{plan.estimate.samples_per_second or 0:.1f}" for plan in (ported, fresh))
    peaks = f"{gib(each['predicted_peak_bytes'])}, {gib(each['process_peak_bytes'])} ({each['evidence']})"
    error = "-" if each["peak_error_share"] is None else f"{each['peak_error_share']:+.1%}"
    probes = f"{len(ported.evidence.outcomes)}, {len(fresh.evidence.outcomes)}"
    place = (each["card"], each["model"], gib(each["budget_bytes"]), peaks, error, probes)
    return row(*place, f"{rates[0]:.1f}, {rates[1]:.1f}", f"{rates[0] / rates[1]:.2f}", confirmed)


def main() -> None:
    """Run what was asked, or print the table of earlier lines."""
    asked = options.parse_args()
    if not asked.table:
        asked.out.mkdir(parents=True, exist_ok=True)

        def tell(row: dict[str, Any]) -> None:
            with (asked.out / RESULTS).open("a") as file:
                print(json.dumps(row), file=file)
            evidence.tell(row)

        measure(asked, tell)
    print_table(asked.table or asked.out)


if __name__ == "__main__":
    main()
