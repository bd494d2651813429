"""Twenty runs on the CPU with memory refused at random steps and depths, beside the undisturbed one.

    PYTHONPATH=.:tests/train python reports/guard/oom.py [--runs 20] [--steps 6] [--out reports/guard/oom.json]

Every run has one to three refusals: an allocation of a random phase (vision, forward, loss, backward, optimizer) of a
random step raises ``torch.OutOfMemoryError`` in the byte meter, as a GPU without a byte left would. Evidence: predicted
(the CPU's byte meter; no GPU took part), tiny-qwen2.5-vl in fp32 with random weights.
"""

import argparse
import json
import random
import tempfile
from pathlib import Path

from drawn import draw_examples
from refusing import refusing

from budgetft.contract import Contract
from budgetft.data.examples import Examples
from budgetft.gpu import load_gpu
from budgetft.knobs import Knobs
from budgetft.model import load_model
from budgetft.outcome import Estimate
from budgetft.plan import Plan, Proof, Target, refer
from budgetft.train.loop import run_training
from budgetft.units import GIB
from budgetft.workload import Shape, Workload

PHASES = ("vision", "forward", "loss", "backward", "optimizer")
LIMIT = 1e-6


def hand_made(examples: Examples) -> Plan:
    """Micro-batches of 4, 8 examples a step."""
    shape = Shape(images=((84, 84),), text_tokens=40, supervised_tokens=8)
    estimate = Estimate(
        tensor_peak_bytes=1, reserved_peak_bytes=1, process_peak_bytes=1, step_seconds=None,
        samples_per_second=None, fits=True, terms=(),
    )  # fmt: skip
    return Plan(
        gpu=Target(name="v100-16g", budget_bytes=GIB, profile=load_gpu("v100-16g")),
        model=refer(load_model("tiny-qwen2.5-vl")),
        contract=Contract(rank=4, alpha=8, effective_batch=8),
        knobs=Knobs(micro_batch=4, grad_accum=2, checkpointed_layers=1, base_precision="fp32"),
        estimate=estimate,
        evidence=Proof(kind="predicted", outcomes=(), confirmed=None, statement="made by hand"),
        baseline=None,
        workload=Workload.uniform(shape).replace(examples=len(examples), fingerprint=examples.fingerprint),
        data=str(examples.folder),
        environment={},
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    draw, rows = random.Random(chosen.seed), []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        plan = hand_made(draw_examples(folder / "data", 12))

        def run(name: str, *places: tuple[int, str, int]):
            with refusing(*places) as state:
                summary = run_training(plan, out=folder / name, weights="random", steps=chosen.steps, device="cpu")
            assert state.wanted == [], f"never reached: {state.wanted}"
            return summary, state

        whole, state = run("undisturbed")
        print(f"undisturbed: loss {whole.first_loss:.6f} to {whole.last_loss:.8f} in {chosen.steps} steps (predicted: CPU)")
        print(f"{'run':>3}  {'refused: step phase allocation':<60}  {'final loss':>12}  {'relative difference':>19}")
        for number in range(1, chosen.runs + 1):
            steps = draw.sample(range(1, chosen.steps + 1), draw.randint(1, 3))
            places = []
            for step in sorted(steps):
                phase = PHASES[(number + len(places)) % len(PHASES)]
                places.append((step, phase, draw.randint(1, state.counts[step, phase])))
            summary, _ = run(f"run-{number}", *places)
            off = abs(summary.last_loss / whole.last_loss - 1)
            told = ", ".join(" ".join(map(str, place)) for place in places)
            print(f"{number:>3}  {told:<60}  {summary.last_loss:>12.8f}  {off:>19.1e}", flush=True)
            rows.append({"refused": places, "last_loss": summary.last_loss, "relative_difference": off})
            assert len(summary.fallbacks) == len(places)
    worst = max(row["relative_difference"] for row in rows)
    total = sum(len(row["refused"]) for row in rows)
    print(f"{total} refusals in {len(rows)} runs: largest relative difference of the final loss {worst:.1e} (limit {LIMIT:g})")
    if chosen.out:
        chosen.out.write_text(json.dumps({"undisturbed": whole.last_loss, "runs": rows}, indent=1) + "\n")
    raise SystemExit(0 if worst <= LIMIT else 1)


if __name__ == "__main__":
    main()
