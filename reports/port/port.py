"""Ports an existing plan to other GPUs and searches afresh there, on the GPU at hand; JSON lines, then a table.

python reports/port/port.py [--cards rtx3060-12g rtx3090] [--plan reports/spine/plan-448.json] [--out FOLDER]
python reports/port/port.py --cards rtx3070-8g --model qwen2-vl-2b      # a plan for 16 GB is probed first, then ported
python reports/port/port.py --table FOLDER                              # the table alone, of an earlier --out

CARD:BUDGET sets another budget than the GPU's own. Each search has a ledger and a study of its own; neither a ported plan nor
a fresh one probes the stock recipe. Nothing is begun after --seconds; what was left out is said. Two probes of one setting
differ by some percent, so the table gives a plan the median speed of all probes of its setting on that GPU, by whichever
of the two searches; the speeds that each was confirmed with stand beside it.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from budgetft.contract import Contract
from budgetft.errors import BudgetftError
from budgetft.gpu import Gpu, load_gpu
from budgetft.knobs import describe
from budgetft.model import Model, load_model
from budgetft.plan import Plan, load_planned_model, read_plan, write_plan
from budgetft.search.port import PortRequest, port_plan
from budgetft.search.run import PlanRequest, make_plan
from budgetft.units import GIB, parse_bytes
from budgetft.workload import Shape, Workload

SPINE = Path(__file__).resolve().parent.parent / "spine" / "plan-448.json"
RESULTS = "results.jsonl"
SHAPE = Shape(images=((448, 448),), text_tokens=256, supervised_tokens=160)


def main() -> None:
    """Run what was asked, or print the table of earlier lines."""
    options = _options()
    if options.table:
        print_table(options.table)
        return
    options.out.mkdir(parents=True, exist_ok=True)

    def tell(row: dict[str, Any]) -> None:
        with (options.out / RESULTS).open("a") as file:
            print(json.dumps(row), file=file)
        print(json.dumps(row), flush=True)

    measure(options, tell)
    print_table(options.out)


def measure(options: argparse.Namespace, tell: Callable[[dict[str, Any]], None]) -> None:
    """The old plan, then each GPU: ported, and searched afresh with the same 16-bit type."""
    deadline = time.monotonic() + options.seconds
    old = _old_plan(options, tell)
    model = load_planned_model(old)
    for asked in options.gpus:
        name, _, budget = asked.partition(":")
        gpu = load_gpu(name)
        size = parse_bytes(budget) if budget else gpu.budget_bytes
        for kind, make in (("ported", _ported), ("fresh", _fresh)):
            if time.monotonic() > deadline:
                tell({"card": name, "kind": kind, "skipped": f"more than {options.seconds} s had passed"})
                continue
            started = time.monotonic()
            try:
                plan, facts = make(old, model, gpu, size, options)
            except BudgetftError as error:
                tell({"card": name, "kind": kind, "error": error.message})
                continue
            write_plan(plan, options.out / f"{kind}-{name}.json")
            tell({"card": name, "kind": kind, **_facts(plan), **facts, "wall_seconds": round(time.monotonic() - started, 1)})


def _old_plan(options: argparse.Namespace, tell: Callable[[dict[str, Any]], None]) -> Plan:
    """The plan that is ported; for --model it is probed now, for a V100 of 16 GB under 14 GiB."""
    if options.model is None:
        return read_plan(options.plan)
    started, model, gpu = time.monotonic(), load_model(options.model), load_gpu("v100-16g")
    request = _request(model, gpu, gpu.budget_bytes, Contract(), Workload.uniform(SHAPE), options, "old", options.old_probes)
    plan = make_plan(request)
    write_plan(plan, options.out / "old.json")
    tell({"card": gpu.name, "kind": "old", **_facts(plan), "wall_seconds": round(time.monotonic() - started, 1)})
    return plan


def _ported(old: Plan, model: Model, gpu: Gpu, size: int, options: argparse.Namespace) -> tuple[Plan, dict[str, Any]]:
    files = _files(options, f"ported-{gpu.name}")
    made = port_plan(PortRequest(plan=old, model=model, gpu=gpu, budget_bytes=size, probe=options.probe, **files))
    confirmed = made.plan.evidence.confirmed
    measured = None if confirmed is None else confirmed.process_peak_bytes
    predicted = made.predicted.process_peak_bytes
    facts = {
        "predicted_peak_bytes": predicted,
        "peak_error_share": None if measured is None else predicted / measured - 1,
        "uncertainty_share": made.uncertainty_share,
        "predicted_samples_per_second": made.predicted.samples_per_second,
        "carried": made.carried,
        "changes": [f"{change.knob} {change.before} -> {change.after}" for change in made.changes],
    }
    return made.plan, facts


def _fresh(old: Plan, model: Model, gpu: Gpu, size: int, options: argparse.Namespace) -> tuple[Plan, dict[str, Any]]:
    name = f"fresh-{gpu.name}"
    request = _request(model, gpu, size, old.contract, old.workload, options, name, options.fresh_probes, old)
    return make_plan(request), {}


def _request(
    model: Model,
    gpu: Gpu,
    size: int,
    contract: Contract,
    workload: Workload,
    options: argparse.Namespace,
    name: str,
    probes: int,
    old: Plan | None = None,
) -> PlanRequest:
    return PlanRequest(
        gpu=gpu,
        budget_bytes=size,
        model=model,
        contract=contract,
        workload_under=lambda contract: workload,
        probe=options.probe,
        max_probes=probes,
        base_precision=None if old is None else old.knobs.base_precision,
        lessons=None if old is None else (),
        **_files(options, name),
    )


def _files(options: argparse.Namespace, name: str) -> dict[str, Any]:
    def note(event: Any) -> None:
        if event.outcome is not None:
            what = f"{event.outcome.status} {describe(event.outcome.knobs)}"
            print(f"  {name} {event.stage} {event.number}: {what}", file=sys.stderr, flush=True)

    storage = f"sqlite:///{options.out / f'study-{name}.sqlite3'}"
    return {"storage": storage, "ledger": options.out / f"ledger-{name}.sqlite3", "on_event": note}


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
    rows = [json.loads(line) for line in (folder / RESULTS).read_text().splitlines()]
    print("| GPU | model | budget, GiB | peak: predicted, then found, GiB | error | probes: ported, fresh"
          " | samples/s: ported, fresh | ratio | as confirmed |")  # fmt: skip
    print("|---|---|---|---|---|---|---|---|---|")
    for row in rows:
        if "skipped" in row or "error" in row:
            why = row.get("error") or row["skipped"]
            print(f"| {row['card']} | {row['kind']}: {why[:150]} | | | | | | | |")
        elif row["kind"] == "ported" and (folder / f"fresh-{row['card']}.json").is_file():
            ported, fresh = (read_plan(folder / f"{kind}-{row['card']}.json") for kind in ("ported", "fresh"))
            print(_line(row, ported, fresh))


def _line(row: dict[str, Any], ported: Plan, fresh: Plan) -> str:
    both = [*ported.evidence.outcomes, *fresh.evidence.outcomes]
    rates = [median(o.samples_per_second or 0 for o in both if o.knobs == plan.knobs and o.fits) for plan in (ported, fresh)]
    confirmed = [plan.estimate.samples_per_second or 0 for plan in (ported, fresh)]
    error = "-" if row["peak_error_share"] is None else f"{row['peak_error_share']:+.1%}"
    return (
        f"| {row['card']} | {row['model']} | {row['budget_bytes'] / GIB:.2f}"
        f" | {row['predicted_peak_bytes'] / GIB:.2f}, {row['process_peak_bytes'] / GIB:.2f} ({row['evidence']}) | {error}"
        f" | {len(ported.evidence.outcomes)}, {len(fresh.evidence.outcomes)}"
        f" | {rates[0]:.1f}, {rates[1]:.1f} | {rates[0] / rates[1]:.2f} | {confirmed[0]:.1f}, {confirmed[1]:.1f} |"
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cards", nargs="+", default=["rtx3060-12g", "rtx3090"])
    parser.add_argument("--plan", type=Path, default=SPINE)
    parser.add_argument("--model", help="probe a plan of this model first, instead of --plan")
    parser.add_argument("--old-probes", type=int, default=6)
    parser.add_argument("--fresh-probes", type=int, default=8)
    parser.add_argument("--probe", choices=("auto", "always"), default="auto")
    parser.add_argument("--seconds", type=int, default=280)
    parser.add_argument("--out", type=Path, default=Path("port-results"))
    parser.add_argument("--table", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
