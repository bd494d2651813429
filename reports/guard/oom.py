"""Twenty runs on the CPU with memory refused at random steps and depths, beside the undisturbed one.

    python reports/guard/oom.py [--runs 20] [--steps 6] [--out reports/guard/oom.json]      # printed: oom.txt; minutes, no GPU

Every run has one to three refusals: an allocation of a random phase (vision, forward, loss, backward, optimizer) of a
random step raises ``torch.OutOfMemoryError`` in the byte meter, as a GPU without a byte left would. Evidence: predicted
(the CPU's byte meter; no GPU was used), tiny-qwen2.5-vl in fp32 with random weights.
"""

import random
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from harness.arguments import flag, parser
from harness.evidence import write
from harness.small import TINY, draw_examples, hand_made, tests

from budgetft.contract import Contract
from budgetft.knobs import Knobs
from budgetft.model import load_model
from budgetft.train.run import run_training
from budgetft.units import GIB
from budgetft.workload import Shape, Workload

PHASES = ("vision", "forward", "loss", "backward", "optimizer")
LIMIT = 1e-6


options = flag(parser(__doc__, steps=6, seed=0, out=None), "--runs", type=int, default=20)


def main() -> None:
    asked, refusing = options.parse_args(), tests("refusing").refusing
    draw, rows = random.Random(asked.seed), []
    shape = Shape(images=((84, 84),), text_tokens=40, supervised_tokens=8)
    contract = Contract(rank=4, alpha=8, effective_batch=8)
    knobs = Knobs(micro_batch=4, grad_accum=2, checkpointed_layers=1, base_precision="fp32")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        data = draw_examples(folder / "data", 12)
        workload = Workload.uniform(shape).replace(examples=len(data), fingerprint=data.fingerprint)
        plan = hand_made("v100-16g", load_model(TINY), data, contract, knobs, budget_bytes=GIB, workload=workload)

        def run(name: str, *places: tuple[int, str, int]):
            with refusing(*places) as state:
                summary = run_training(plan, out=folder / name, weights="random", steps=asked.steps, device="cpu")
            assert state.wanted == [], f"never reached: {state.wanted}"
            return summary, state

        whole, state = run("undisturbed")
        print(f"undisturbed: loss {whole.first_loss:.6f} to {whole.last_loss:.8f} in {asked.steps} steps (predicted: CPU)")
        print(f"{'run':>3}  {'refused: step phase allocation':<60}  {'final loss':>12}  {'relative difference':>19}")
        for number in range(1, asked.runs + 1):
            places = []
            for step in sorted(draw.sample(range(1, asked.steps + 1), draw.randint(1, 3))):
                phase = PHASES[(number + len(places)) % len(PHASES)]
                places.append((step, phase, draw.randint(1, state.counts[step, phase])))
            summary, _ = run(f"run-{number}", *places)
            off = abs(summary.last_loss / whole.last_loss - 1)
            told = ", ".join(" ".join(map(str, place)) for place in places)
            print(f"{number:>3}  {told:<60}  {summary.last_loss:>12.8f}  {off:>19.1e}", flush=True)
            rows.append({"refused": places, "last_loss": summary.last_loss, "relative_difference": off})
            assert len(summary.fallbacks) == len(places)
    worst, total = max(row["relative_difference"] for row in rows), sum(len(row["refused"]) for row in rows)
    print(f"{total} refusals in {len(rows)} runs: largest relative difference of the final loss {worst:.1e} (limit {LIMIT:g})")
    write(asked.out, {"undisturbed": whole.last_loss, "runs": rows}, "predicted")
    raise SystemExit(0 if worst <= LIMIT else 1)


if __name__ == "__main__":
    main()
