"""Ground truth for the predictor: settings are chosen, predicted and written down, then measured on one GPU.

    python reports/prediction/ground_truth.py choose N [MODEL] > settings.jsonl         # at random; a quarter are stock
    python reports/prediction/ground_truth.py choose-near N MODEL > near.jsonl          # predicted within 12 % of 14 GiB
    python reports/prediction/ground_truth.py choose-any N MODEL > any.jsonl            # any size, text and rank
    python reports/prediction/ground_truth.py choose-grid WIDTHxHEIGHT > grid.jsonl     # what the planner may choose there
    python reports/prediction/ground_truth.py predict settings.jsonl > predictions.jsonl        # no GPU: trace and replay
    python reports/prediction/ground_truth.py predict-by-law near.jsonl > predictions.jsonl     # no GPU: as estimate does
    python reports/prediction/ground_truth.py measure settings.jsonl LEDGER SECONDS [WORKERS]   # on the GPU
    python reports/prediction/ground_truth.py table LEDGER predictions.jsonl [...]

Full-size models, V100 kernels on whatever GPU is there, without the 14 GiB cap, so that settings on both sides of the
budget end well and their true peaks are known. The context and cuBLAS workspace come from the calibration of before, which
was made on other settings. Several WORKERS measure memory side by side; what they say about seconds is worth nothing. Emulated.
"""

import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import measuring
from harness.arguments import commands, parser, there
from harness.evidence import read_lines, tell
from harness.jobs import BUDGET_BYTES, LARGE, SMALL, UNCAPPED_BYTES, job, replayed, shape
from harness.tables import GIB, head, row, spread

from budgetft.contract import Contract
from budgetft.knobs import Knobs, is_stock, stock_knobs
from budgetft.measure.job import Job
from budgetft.measure.ledger import Ledger
from budgetft.model import load_model
from budgetft.predict.calibrate import Calibration
from budgetft.predict.estimator import Estimator
from budgetft.search.space import settings as planner_settings
from budgetft.search.space import stock_settings
from budgetft.units import parse_size
from budgetft.value import Value, read_json
from budgetft.workload import Shape

ANY_BYTES = 60 * GIB
LAYERS = 36
IMAGES = (SMALL, (672, 672), (896, 504), LARGE, (280, 504))
MOST_TOKENS = 7000
BEFORE = Path(__file__).with_name("calibration-before.json")
CALIBRATION = Calibration.read(read_json(BEFORE), source=BEFORE.name)
"""As it was shipped before any of these settings was measured; the one that ships now was made from 60 of them."""


class Setting(Value):
    """One entry of settings.jsonl."""

    model: str = "qwen2.5-vl-3b"
    rank: int
    shape: Shape
    knobs: Knobs


def choose(count: int, model_name: str = "qwen2.5-vl-3b") -> list[Setting]:
    """Random settings, grouped by rank so that few models are built; a quarter are the baseline."""
    draw, layers = random.Random(20261124), load_model(model_name).layers
    found: dict[str, Setting] = {}
    while len(found) < count:
        images = (draw.choice(IMAGES),) * draw.choice((1, 1, 1, 2, 3, 4))
        supervised = draw.choice((60, 160, 300))
        work = Shape(images=images, text_tokens=supervised + draw.choice((96, 200, 400)), supervised_tokens=supervised)
        micro_batch = draw.choice((1, 2, 3, 4, 6, 8, 12, 16))
        if micro_batch * work.total_tokens(28) > MOST_TOKENS:
            continue
        stock = draw.random() < 0.25
        knobs = Knobs(
            micro_batch=micro_batch,
            grad_accum=draw.choice((1, 2)),
            checkpointed_layers=layers if stock else draw.choice((0, *range(6, layers - 5, 6), layers - 3, layers, layers)),
            loss="full" if stock else draw.choice(("chunked", "chunked", "chunked", "supervised", "full")),
            vision="stock" if stock else "frozen",
            attention="stock" if stock else draw.choice(("efficient", "efficient", "efficient", "math")),
            lora="stock" if stock else draw.choice(("lean", "lean", "lean", "stock")),
            allocator="default" if stock else draw.choice(("default", "expandable")),
        )
        setting = Setting(model=model_name, rank=draw.choice((8, 16, 16, 64, 128)), shape=work, knobs=knobs)
        found.setdefault(setting.model_dump_json(), setting)
    return sorted(found.values(), key=lambda setting: (setting.knobs.allocator, setting.rank))


def choose_near(count: int, model_name: str) -> list[Setting]:
    """Settings whose predicted process peak is within 12 % of the budget: four ranks, few shapes so that few memory models are
    made.
    """
    draw, model = random.Random(f"near {model_name}"), load_model(model_name)
    ranks, per_memory_model = (8, 16, 64, 128), 8
    found: list[Setting] = []
    while len(found) < count:
        rank = ranks[(len(found) // per_memory_model) % len(ranks)]
        images = (draw.choice(IMAGES),) * draw.choice((1, 1, 2, 4))
        images = tuple(
            (model.pixel_step * round(w / model.pixel_step), model.pixel_step * round(h / model.pixel_step)) for w, h in images
        )
        supervised = draw.choice((60, 160, 300))
        work = Shape(images=images, text_tokens=supervised + draw.choice((96, 200, 400)), supervised_tokens=supervised)
        stock = draw.random() < 0.2
        base = stock_knobs(micro_batch=1, effective_batch=1, layers=model.layers, base_precision="fp16")
        if not stock:
            base = base.replace(
                loss=draw.choice(("chunked", "chunked", "supervised", "full")),
                vision="frozen",
                attention=draw.choice(("efficient", "efficient", "math")),
                lora=draw.choice(("lean", "lean", "stock")),
            )
        candidates = [
            base.replace(micro_batch=micro_batch, grad_accum=2, checkpointed_layers=checkpointed, allocator=allocator)
            for micro_batch in range(1, 33)
            for checkpointed in ((model.layers,) if stock else (0, *range(2, model.layers - 1), model.layers))
            for allocator in (("default",) if stock else ("default", "expandable"))
        ]
        problem = job_of(Setting(model=model_name, rank=rank, shape=work, knobs=candidates[0]))
        estimator = Estimator(problem, calibration=CALIBRATION)
        near = [k for k in candidates if abs(estimator.estimate(k).process_peak_bytes / BUDGET_BYTES - 1) <= 0.12]
        draw.shuffle(near)
        near = sorted(near[:per_memory_model], key=lambda knobs: knobs.allocator)
        found += [Setting(model=model_name, rank=rank, shape=work, knobs=knobs) for knobs in near]
        print(f"{len(found)} of {count}", file=sys.stderr)
    return sorted(found[:count], key=lambda setting: setting.rank)


def choose_any(count: int, model_name: str) -> list[Setting]:
    """Settings of the planner's kind at sizes, texts and ranks that no memory model was ever traced at, up to 60 GiB."""
    draw, model = random.Random(f"any {model_name}"), load_model(model_name)
    step, found = model.pixel_step, list[Setting]()
    for rank in (1, 24, 100, 256):
        while len(found) < count * (1 + (1, 24, 100, 256).index(rank)) // 4:
            size = tuple(step * round(draw.uniform(224, 2048) / step) for _ in range(2))
            text = round(2 ** draw.uniform(6, 12))
            work = Shape(images=(size,), text_tokens=text, supervised_tokens=draw.randint(1, text))
            knobs = Knobs(
                micro_batch=draw.choice((1, 1, 2, 3, 5, 8)),
                grad_accum=2,
                checkpointed_layers=draw.choice((model.layers, model.layers, model.layers * 3 // 4, model.layers // 2)),
                pointwise="fused",
                allocator=draw.choice(("expandable", "expandable", "default")),
            )
            setting = Setting(model=model_name, rank=rank, shape=work, knobs=knobs)
            problem = job_of(setting)
            if work.total_tokens(step) > problem.contract.max_length:
                continue
            if Estimator(problem, calibration=CALIBRATION).estimate(knobs).process_peak_bytes < ANY_BYTES:
                found.append(setting)
    return sorted(found, key=lambda setting: (setting.knobs.allocator, setting.rank))


def choose_grid(size: tuple[int, int]) -> list[Setting]:
    """The planner's whole grid for one image, rank 16, 32 examples a step; what would take more than 17 GiB is left out."""
    one = Setting(rank=16, shape=shape(size), knobs=Knobs(micro_batch=1, grad_accum=32, checkpointed_layers=LAYERS))
    problem = job_of(one)
    estimator, every = Estimator(problem, calibration=CALIBRATION), (*planner_settings(problem), *stock_settings(problem))
    grid = [knobs for knobs in every if estimator.estimate(knobs).process_peak_bytes < 17 * GIB]
    return [one.replace(knobs=knobs) for knobs in sorted(grid, key=lambda knobs: knobs.allocator)]


def job_of(setting: Setting) -> Job:
    """The planning problem that the setting belongs to, uncapped."""
    effective = setting.knobs.micro_batch * setting.knobs.grad_accum
    contract = Contract(rank=setting.rank, alpha=2 * setting.rank, effective_batch=effective, max_length=8192)
    return job("v100-16g", setting.model, setting.shape, contract, budget_bytes=UNCAPPED_BYTES, evidence="emulated")


def read(path: Path) -> list[Setting]:
    """The settings of a file, whatever else its lines have."""
    rows = read_lines(path)
    return [Setting.read({key: value for key, value in row.items() if key != "predicted"}, source=path.name) for row in rows]


def predict(path: Path, *, traced: bool) -> None:
    """One line a setting: the bytes that a trace and a replay say, or those that ``estimate`` and ``plan`` go by."""
    estimators = dict[str, Estimator]()
    for line, setting in zip(read_lines(path), read(path), strict=True):
        problem = job_of(setting)
        if traced:
            peaks, trace = replayed(problem, setting.knobs, CALIBRATION)
            answer: dict[str, Any] = {**peaks, "flops": trace.flops}
        else:
            estimator = estimators.setdefault(problem.fingerprint(), Estimator(problem, calibration=CALIBRATION))
            said = estimator.estimate(setting.knobs)
            answer = {
                "tensors": said.tensor_peak_bytes,
                "reserved": said.reserved_peak_bytes,
                "process": said.process_peak_bytes,
            }
            answer["seconds"] = said.step_seconds
        tell({**line, "predicted": answer})


def measure(path: Path, ledger: Path, seconds: float, workers: int) -> None:
    """A process for each model, rank and allocator: one switched in mid-process keeps segments of the other kind."""
    if workers > 1 and not _own_process_is_listed():
        print("NVML does not list this process: one worker only")
        workers = 1

    def environment(group: str) -> dict[str, str]:
        kind = f"expandable_segments:{group.endswith('expandable')}"
        return {**os.environ, "PYTORCH_CUDA_ALLOC_CONF": kind, "PYTORCH_ALLOC_CONF": kind}

    command = [__file__, "measure-group", "2" if workers == 1 else "1", str(path), str(ledger)]
    measuring.in_groups(command, dict.fromkeys(map(_group, read(path))), seconds, workers=workers, environment=environment)


def _group(setting: Setting) -> str:
    return f"{setting.model}/{setting.rank}/{setting.knobs.allocator}"


def _own_process_is_listed() -> bool:
    """Whether NVML can tell this process's bytes from another's; asked in a child, so that no context stays behind."""
    code = "import os; from budgetft.meter.cuda import CudaMeter; print(CudaMeter().own_pids == {os.getpid()})"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "True"


def table(ledger: Path, predictions: list[Path]) -> None:
    """Errors by file, kind of bytes, model, for stock and near the budget; and the verdicts at the planner's margin."""
    said: dict[tuple[str, Knobs], tuple[str, Setting, dict[str, float]]] = {}
    for path in predictions:
        for line, setting in zip(read_lines(path), read(path), strict=True):
            said[job_of(setting).fingerprint(), setting.knobs] = path.stem, setting, line["predicted"]
    groups: dict[str, list[dict[str, float]]] = {}
    near: dict[str, list[tuple[float, float]]] = {}
    for problem, outcome in Ledger(ledger).rows():
        found = said.get((problem.fingerprint(), outcome.knobs))
        if found is None or outcome.process_peak_bytes is None or outcome.allocated_peak_bytes is None:
            continue
        name, setting, predicted = found
        true = {"tensors": outcome.allocated_peak_bytes, "reserved": outcome.reserved_peak_bytes or 0}
        true["process"] = outcome.process_peak_bytes
        kernel = "the math kernel, N x N scores" if outcome.knobs.attention == "math" else "all but the math kernel"
        names = ["all", name, setting.model, kernel] + (["stock recipe"] if is_stock(outcome.knobs) else [])
        if abs(true["process"] / BUDGET_BYTES - 1) <= 0.1:
            names.append("within 10 % of 14 GiB")
            for each in ("all", kernel):
                near.setdefault(each, []).append((predicted["process"], true["process"]))
        for each in names:
            groups.setdefault(each, []).append({kind: predicted[kind] / size - 1 for kind, size in true.items()})
    print(head("settings", "bytes", "n", "mean", "p95", "worst", "worst under"))
    for name, rows in groups.items():
        for kind in ("tensors", "reserved", "process") if len(rows) > 1 else ():
            off = spread([each[kind] for each in rows])
            print(row(name, kind, off.count, f"{off.mean:.2%}", f"{off.p95:.2%}", f"{off.worst:.2%}", f"{off.under:+.2%}"))
    for name, pairs in near.items():
        _verdicts(name, pairs)


def _verdicts(name: str, near: list[tuple[float, float]]) -> None:
    """Of (predicted, measured) process peaks: a false fit is one that the planner would have run and that would not hold."""
    margin = CALIBRATION.uncertainty_share
    fits = [(said * (1 + margin) <= BUDGET_BYTES, true <= BUDGET_BYTES) for said, true in near]
    print(
        f"\n{name}: verdicts at the planner's margin of {margin:.1%} ({margin * BUDGET_BYTES / GIB:.2f} GiB),"
        f" {len(fits)} settings:"
        f" {sum(s and t for s, t in fits)} rightly fit, {sum(not s and not t for s, t in fits)} rightly not,"
        f" {sum(s and not t for s, t in fits)} false fits, {sum(t and not s for s, t in fits)} given away"
    )


CHOICES = {"choose": choose, "choose-near": choose_near, "choose-any": choose_any}
_measure = {"settings": there, "ledger": Path, "seconds": float}

options = parser(__doc__)
commands(
    options,
    {
        "choose": {"count": int, "model?": str},
        "choose-near": {"count": int, "model": str},
        "choose-any": {"count": int, "model": str},
        "choose-grid": {"size": parse_size},
        "predict": {"settings": there},
        "predict-by-law": {"settings": there},
        "measure": {**_measure, "workers?": int},
        "measure-group": {"timed_steps": int, **_measure, "group": str},
        "table": {"ledger": there, "predictions+": there},
    },
)


def main() -> None:
    asked, chosen = options.parse_args(), list[Setting]()
    if asked.what in CHOICES:
        chosen = CHOICES[asked.what](asked.count, *([asked.model] if asked.model else []))
    elif asked.what == "choose-grid":
        chosen = choose_grid(asked.size)
    elif asked.what in ("predict", "predict-by-law"):
        predict(asked.settings, traced=asked.what == "predict")
    elif asked.what == "measure":
        measure(asked.settings, asked.ledger, asked.seconds, asked.workers or 1)
    elif asked.what == "measure-group":
        wanted = [(job_of(one), one.knobs, asked.group) for one in read(asked.settings) if _group(one) == asked.group]
        measuring.group(wanted, asked.ledger, asked.seconds, timed_steps=asked.timed_steps, told=lambda outcome: "")
    else:
        table(asked.ledger, asked.predictions)
    for setting in chosen:
        print(setting.model_dump_json())


if __name__ == "__main__":
    main()
