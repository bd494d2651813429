"""Peak bytes of families beyond Qwen-VL: settings are chosen, predicted and written down, then measured on one GPU.

    python reports/families/ground_truth.py predict > predictions.jsonl             # no GPU: as estimate and plan do
    python reports/families/ground_truth.py measure predictions.jsonl LEDGER SECONDS        # on the GPU
    python reports/families/ground_truth.py table LEDGER predictions.jsonl
    python reports/families/ground_truth.py speed LEDGER predictions.jsonl

Full-size models with random weights. ``native`` is bf16 with flash, as the GPU has it; ``emulated`` is fp16 with a V100's
kernels (flash, bf16 and TF32 off), for types that stand fp16. No cap: settings on both sides of 14 GiB end well.
"""

import os
import random
import sys
from pathlib import Path
from typing import Any, Literal

sys.path.insert(0, str(Path(__file__).parents[1] / "prediction"))
sys.path.insert(0, str(Path(__file__).parents[1]))

import measuring
from harness.arguments import commands, parser, there
from harness.evidence import read_lines, tell
from harness.jobs import UNCAPPED_BYTES, job
from harness.tables import GIB, head, row, spread

from budgetft.contract import Contract
from budgetft.data.shapes import shape_of
from budgetft.knobs import Knobs, is_stock, stock_knobs
from budgetft.measure.job import Job
from budgetft.measure.ledger import Ledger
from budgetft.model import load_model
from budgetft.predict.estimator import Estimator
from budgetft.search.space import settings
from budgetft.value import Value
from budgetft.workload import Shape

HOST = "h200-141g"
MODELS = ("gemma-3-4b", "internvl3.5-4b", "smolvlm2-2.2b", "ministral-3-3b", "qwen3.5-2b", "lfm2.5-vl-1.6b", "gemma-4-e2b")
SIZES = (((448, 448),), ((1280, 720),), ((640, 480), (640, 480)))
SETTINGS = 30
"""Of each model, a sixth of them as a Trainer's defaults have them."""
MOST_BYTES = 60 * GIB


class Setting(Value):
    """One line of predictions.jsonl, less what was predicted."""

    kind: Literal["native", "emulated"]
    model: str
    shape: Shape
    knobs: Knobs


def job_of(setting: Setting) -> Job:
    """The planning problem that the setting belongs to, uncapped."""
    effective = setting.knobs.micro_batch * setting.knobs.grad_accum
    contract = Contract(rank=16, effective_batch=effective, max_length=8192)
    gpu, evidence = (HOST, "measured") if setting.kind == "native" else ("v100-16g", "emulated")
    host = None if setting.kind == "native" else HOST
    return job(gpu, setting.model, setting.shape, contract, budget_bytes=UNCAPPED_BYTES, host=host, evidence=evidence)


def choose(name: str, kind: Any, count: int, draw: random.Random) -> list[tuple[Setting, dict[str, Any]]]:
    """``count`` settings of the planner's grid and of the baseline, spread over sizes, with what is predicted of them."""
    model, found = load_model(name), []
    estimators: dict[str, Estimator] = {}
    for number in range(count):
        pictures, stock = SIZES[number % len(SIZES)], number % 6 == 1
        size = draw.choice((1, 2) if stock else (1, 1, 2, 2, 3, 4, 6, 8))
        shape = shape_of(pictures, 320 + 120 * len(pictures), 160, model)
        # Two micro-batches make a step, so that gradients are there while a micro-batch runs.
        one = Setting(kind=kind, model=name, shape=shape, knobs=Knobs(micro_batch=size, grad_accum=2, checkpointed_layers=0))
        problem = job_of(one)
        if stock:
            precision = "bf16" if kind == "native" else "fp16"
            knobs = stock_knobs(micro_batch=size, effective_batch=2 * size, layers=model.layers, base_precision=precision)
        else:
            grid = [each for each in settings(problem) if each.micro_batch == size]
            knobs = draw.choice(grid).replace(allocator=draw.choice(("default", "expandable", "expandable")))
        said = estimators.setdefault(problem.fingerprint(), Estimator(problem)).estimate(knobs)
        if said.process_peak_bytes < MOST_BYTES:
            predicted = {
                "tensors": said.tensor_peak_bytes, "reserved": said.reserved_peak_bytes, "process": said.process_peak_bytes,
                "seconds": said.step_seconds,
            }  # fmt: skip
            found.append((one.replace(knobs=knobs), predicted))
    return found


def predict(names: tuple[str, ...]) -> None:
    """One line a setting: what ``estimate`` and ``plan`` say of it."""
    for name in names:
        kinds = ("native",) if load_model(name).facts.fp16 else ("native", "emulated")
        for kind in kinds:
            for setting, predicted in choose(name, kind, SETTINGS // len(kinds), random.Random(f"{name} {kind}")):
                tell({**setting.model_dump(mode="json"), "predicted": predicted})
                sys.stdout.flush()


def read(path: Path) -> list[Setting]:
    """The settings of a file, without what was predicted."""
    rows = read_lines(path)
    return [Setting.read({key: value for key, value in line.items() if key != "predicted"}, source=path.name) for line in rows]


def _group(setting: Setting) -> str:
    return f"{setting.model}/{setting.kind}/{setting.knobs.allocator}/{setting.knobs.base_precision}"


def measure(path: Path, ledger: Path, seconds: float, workers: int) -> None:
    """A process for each model, kind of kernels and allocator."""

    def environment(group: str) -> dict[str, str]:
        kind = f"expandable_segments:{group.split('/')[2] == 'expandable'}"
        return {**os.environ, "PYTORCH_CUDA_ALLOC_CONF": kind, "PYTORCH_ALLOC_CONF": kind}

    command = [__file__, "measure-group", str(path), str(ledger)]
    measuring.in_groups(command, dict.fromkeys(map(_group, read(path))), seconds, workers=workers, environment=environment)


def rows(ledger: Path, path: Path) -> list[tuple[Setting, dict[str, float], Any]]:
    """(setting, what was predicted, what was measured) of every setting that ended well."""
    said = {}
    for line, setting in zip(read_lines(path), read(path), strict=True):
        said[job_of(setting).fingerprint(), setting.knobs] = setting, line["predicted"]
    found = []
    for problem, outcome in Ledger(ledger).rows():
        known = said.get((problem.fingerprint(), outcome.knobs))
        if known is not None and outcome.process_peak_bytes is not None:
            found.append((*known, outcome))
    return found


def table(ledger: Path, path: Path) -> None:
    """Errors of the predicted peaks by model and kind of kernels."""
    groups: dict[str, list[dict[str, float]]] = {}
    for setting, predicted, outcome in rows(ledger, path):
        true = {
            "tensors": outcome.allocated_peak_bytes,
            "reserved": outcome.reserved_peak_bytes,
            "process": outcome.process_peak_bytes,
        }
        names = ["all", setting.kind, f"{setting.model}, {setting.kind}"]
        names += ["Trainer defaults"] if is_stock(outcome.knobs) else [f"{setting.knobs.allocator} segments"]
        for name in names:
            groups.setdefault(name, []).append({kind: predicted[kind] / size - 1 for kind, size in true.items()})
    print(head("settings", "bytes", "n", "mean", "p95", "worst", "worst under"))
    for name in sorted(groups):
        for kind in ("tensors", "process"):
            off = spread([each[kind] for each in groups[name]])
            print(row(name, kind, off.count, f"{off.mean:.2%}", f"{off.p95:.2%}", f"{off.worst:.2%}", f"{off.under:+.2%}"))


def speed(ledger: Path, path: Path) -> None:
    """Examples a second of the fastest setting beside the fastest of a Trainer's defaults, by model, kind and pictures."""
    best: dict[tuple[str, str, str], dict[bool, float]] = {}
    for setting, _, outcome in rows(ledger, path):
        if outcome.samples_per_second is None:
            continue
        pictures = " + ".join(f"{width}x{height}" for width, height in setting.shape.images)
        place = best.setdefault((setting.model, setting.kind, pictures), {})
        stock = is_stock(outcome.knobs)
        place[stock] = max(place.get(stock, 0.0), outcome.samples_per_second)
    print(head("model", "kernels", "pictures", "Trainer defaults", "ours", "ratio"))
    for key, found in sorted(best.items()):
        if len(found) == 2:
            print(row(*key, f"{found[True]:.2f}", f"{found[False]:.2f}", f"{found[False] / found[True]:.1f}x"))


options = parser(__doc__)
commands(
    options,
    {
        "predict": {"model?": str},
        "measure": {"settings": there, "ledger": Path, "seconds": float, "workers?": int},
        "measure-group": {"settings": there, "ledger": Path, "seconds": float, "group": str},
        "table": {"ledger": there, "settings": there},
        "speed": {"ledger": there, "settings": there},
    },
)


def main() -> None:
    asked = options.parse_args()
    if asked.what == "predict":
        predict((asked.model,) if asked.model else MODELS)
    elif asked.what == "measure":
        measure(asked.settings, asked.ledger, asked.seconds, asked.workers or 1)
    elif asked.what == "measure-group":
        wanted = [(job_of(one), one.knobs, asked.group) for one in read(asked.settings) if _group(one) == asked.group]
        measuring.group(wanted, asked.ledger, asked.seconds, timed_steps=2, told=lambda outcome: "")
    else:
        (table if asked.what == "table" else speed)(asked.ledger, asked.settings)


if __name__ == "__main__":
    main()
