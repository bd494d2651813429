"""`plan --hours` for the 3B model on two GPUs, by prediction: what it prints, its seconds, and brute force beside it.

    python reports/answers/goal.py [--goals N] [--out reports/answers/goal.md]      # half an hour of a core, no GPU: predicted

Brute force estimates every contract of the ranges on its own, each by the fastest of all settings that fit, and takes the
lexicographic maximum of those in time. It shares the estimator with the search, and neither the walk nor what is skipped.
"""

import random
import sys
import tempfile
import time
from itertools import product
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from harness.arguments import flag, parser
from harness.children import budgetft, environment
from harness.jobs import job, shape
from harness.tables import head, row

from budgetft.contract import Contract
from budgetft.data.tokens import resized_size
from budgetft.duration import HOUR, RunTime, time_under
from budgetft.goal import AXES, pixel_steps
from budgetft.gpu import Gpu, load_gpu
from budgetft.model import Model, load_model
from budgetft.predict.estimator import Estimator
from budgetft.search.goal import GoalRequest, predicted_choice
from budgetft.search.run import PlanRequest
from budgetft.search.space import settings
from budgetft.workload import Workload

GPUS = ("v100-16g", "rtx3060-12g")
EXAMPLES, EPOCHS, LENGTH = 20_000, 3, 16_384
IMAGE = (1920, 1080)
LADDERS = {"pixels": [200_704, *pixel_steps(200_704, 1_605_632, 28)], "rank": [8, 16, 32, 64], "frames": [1, 2, 4]}
ASKED = (
    ["--hours", "10", "--max-pixels", "200704..1605632", "--rank", "8..64"],
    ["--hours", "08:00:00", "--max-pixels", "200704..802816", "--frames-per-example", "1..4", "--prefer", "frames", "--sure"],
    ["--hours", "90min", "--prefer", "rank", "--max-pixels", "200704..1605632", "--rank", "8..64"],
)
Key = tuple[int, int, int]


def workload_of(model: Model, contract: Contract) -> Workload:
    return Workload.uniform(shape(resized_size(*IMAGE, model, contract)))


def brute(gpu: Gpu, model: Model) -> dict[Key, RunTime | None]:
    """The time of every contract, by pixels, rank and frames; None where it does not fit."""
    found: dict[Key, RunTime | None] = {}
    for pixels, rank, frames in product(*LADDERS.values()):
        contract = Contract(max_pixels=pixels, rank=rank, alpha=2 * rank, epochs=EPOCHS, max_length=LENGTH)
        problem = job(gpu, model, workload_of(model, contract).with_frames(frames, model, video=False), contract)
        fitting = [each for each in map(Estimator(problem).estimate, settings(problem)) if each.fits]
        best = max(fitting, key=lambda each: each.samples_per_second or 0.0, default=None)
        found[pixels, rank, frames] = best and time_under(contract, best, EXAMPLES)
    return found


def goal(gpu: Gpu, model: Model, draw: random.Random) -> tuple[GoalRequest, list[list[int]], list[str]]:
    """A random goal: axes, their ranges, the order of preference, hours, and whether they must be sure."""
    names = draw.sample(list(LADDERS), draw.randint(1, 3))
    ladders = []
    for name in LADDERS:
        values = LADDERS[name]
        first = draw.randrange(len(values) - 1) if name in names else draw.randrange(len(values)) if name != "frames" else 0
        ladders.append(values[first : draw.randint(first + 2, len(values))] if name in names else [values[first]])
    pixels, ranks, frames = ladders
    contract = Contract(max_pixels=pixels[0], rank=ranks[0], alpha=2 * ranks[0], epochs=EPOCHS, max_length=LENGTH)
    ranges = {AXES[name]: values[(name != "frames") :] for name, values in zip(LADDERS, ladders, strict=True) if name in names}
    planning = PlanRequest(
        gpu=gpu,
        budget_bytes=gpu.budget_bytes,
        model=model,
        contract=contract,
        workload_under=lambda changed: workload_of(model, changed),
        ranges=ranges,
        probe="never",
    )
    hours, sure = 2 * 30 ** draw.random(), draw.random() < 0.3
    request = GoalRequest(planning=planning, hours=hours, prefer=names, sure=sure, examples=EXAMPLES)
    return request, [pixels, ranks, frames or [1]], names


def agreement(name: str, goals: int) -> str:
    """In a line: of how many goals the choice is that of brute force."""
    gpu, model, draw = load_gpu(name), load_model("qwen2.5-vl-3b"), random.Random(7)
    started = time.monotonic()
    times = brute(gpu, model)
    brute_seconds = time.monotonic() - started
    agree, none, wrong = 0, 0, []
    started = time.monotonic()
    for number in range(goals):
        request, ladders, names = goal(gpu, model, draw)
        order = [list(LADDERS).index(each) for each in names]
        possible = []
        for key in product(*ladders):
            run = times[key]
            seconds = None if run is None else (run.high_seconds if request.sure else None) or run.seconds
            if seconds is not None and seconds <= request.hours * HOUR:
                possible.append(tuple(key[place] for place in order))
        best, look = max(possible, default=None), predicted_choice(request)
        chosen = None if look is None else tuple(look.values[AXES[each]] for each in names)
        agree, none = agree + (chosen == best), none + (best is None)
        if chosen != best:
            wrong.append(f"goal {number}: {names}, {request.hours:.2f} h: {chosen}, brute force {best}")
    each = (time.monotonic() - started) / goals
    told = row(name, f"{agree} of {goals}", none, f"{len(times)} in {brute_seconds:.0f} s", f"{each:.1f} s a goal")
    return "\n".join([told, *wrong])


def shown(name: str, words: list[str]) -> str:
    """One command with its output at 80 columns and its seconds, the memory models of its sizes at hand."""
    asked = ["--gpu", name, "--image", f"{IMAGE[0]}x{IMAGE[1]}", "--examples", str(EXAMPLES), "--epochs", str(EPOCHS)]
    command = ["plan", *asked, *words, "--probe", "never", "--quiet"]
    out = Path(tempfile.gettempdir()) / "goal-plan.json"
    for _ in range(2):  # the first traces what does not ship
        found = budgetft(*command, "--out", out, env=environment(COLUMNS="80"))
    lines = found.out.splitlines()
    first = next((place for place, line in enumerate(lines) if line.startswith("  Goal")), 0)
    said = "\n".join(line for line in lines[first:] if not line.startswith(("written to", "next:"))).strip("\n")
    text, typed = said or found.err.strip(), " ".join(command[:-1])
    return f"```\n$ budgetft {typed}\n{text}\n```\n\nexit code {found.code}, {found.seconds:.0f} s wall\n"


options = flag(
    parser(__doc__, out=Path(__file__).with_name("goal.md")), "--goals", type=int, default=40, help="drawn, on each GPU"
)


def main() -> None:
    asked = options.parse_args()
    outputs = "\n".join(f"## {name}\n\n" + "\n".join(shown(name, words) for words in ASKED) for name in GPUS)
    rows = "\n".join(agreement(name, asked.goals) for name in GPUS)
    asked.out.write_text(
        f"""# A time, and the largest contract that ends in it

Qwen2.5-VL-3B, {EXAMPLES:,} examples of one {IMAGE[0]}x{IMAGE[1]} image, {EPOCHS} epochs.
Everything here is predicted: no GPU took part. Made by `python reports/answers/goal.py`.
The memory models of a size that does not ship are traced once and kept; the seconds are of the second run, on one of two
shared cores.

{outputs}
## Against brute force

Random goals: which axes have a range, from where to where, the order of preference, 2 to 60 hours, the middle or the slow end.
Brute force estimates all contracts of pixels x rank x frames and takes the lexicographic maximum.

{head("GPU", "same choice", "nothing in time", "contracts estimated by brute force", "walking", rule=" --- ")}
{rows}
"""
    )


if __name__ == "__main__":
    main()
