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
was made on other settings. Several WORKERS measure memory side by side; what they say about seconds is worth nothing.
"""

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from statistics import mean, quantiles
from typing import Any

from budgetft.contract import Contract
from budgetft.gpu import load_gpu
from budgetft.knobs import Knobs, is_stock, stock_knobs
from budgetft.measure.job import Job
from budgetft.model import load_model
from budgetft.predict.calibrate import Calibration
from budgetft.predict.estimator import Estimator
from budgetft.search.space import settings as planner_settings
from budgetft.search.space import stock_settings
from budgetft.value import Value, read_json
from budgetft.workload import Shape, Workload

GIB = 2**30
BUDGET_BYTES = 14 * GIB
UNCAPPED_BYTES = 70 * GIB
ANY_BYTES = 60 * GIB
LAYERS = 36
IMAGES = ((448, 448), (672, 672), (896, 504), (1288, 728), (280, 504))
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
    """Random settings, grouped by rank so that few models are built; a quarter are the stock recipe."""
    draw, layers = random.Random(20261124), load_model(model_name).layers
    found: dict[str, Setting] = {}
    while len(found) < count:
        images = (draw.choice(IMAGES),) * draw.choice((1, 1, 1, 2, 3, 4))
        supervised = draw.choice((60, 160, 300))
        shape = Shape(images=images, text_tokens=supervised + draw.choice((96, 200, 400)), supervised_tokens=supervised)
        micro_batch = draw.choice((1, 2, 3, 4, 6, 8, 12, 16))
        if micro_batch * shape.total_tokens(28) > MOST_TOKENS:
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
        setting = Setting(model=model_name, rank=draw.choice((8, 16, 16, 64, 128)), shape=shape, knobs=knobs)
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
        shape = Shape(images=images, text_tokens=supervised + draw.choice((96, 200, 400)), supervised_tokens=supervised)
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
        job = job_of(Setting(model=model_name, rank=rank, shape=shape, knobs=candidates[0]))
        estimator = Estimator(job, calibration=CALIBRATION)
        near = [k for k in candidates if abs(estimator.estimate(k).process_peak_bytes / BUDGET_BYTES - 1) <= 0.12]
        draw.shuffle(near)
        near = sorted(near[:per_memory_model], key=lambda knobs: knobs.allocator)
        found += [Setting(model=model_name, rank=rank, shape=shape, knobs=knobs) for knobs in near]
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
            shape = Shape(images=(size,), text_tokens=text, supervised_tokens=draw.randint(1, text))
            knobs = Knobs(
                micro_batch=draw.choice((1, 1, 2, 3, 5, 8)),
                grad_accum=2,
                checkpointed_layers=draw.choice((model.layers, model.layers, model.layers * 3 // 4, model.layers // 2)),
                pointwise="fused",
                allocator=draw.choice(("expandable", "expandable", "default")),
            )
            setting = Setting(model=model_name, rank=rank, shape=shape, knobs=knobs)
            job = job_of(setting)
            if shape.total_tokens(step) > job.contract.max_length:
                continue
            if Estimator(job, calibration=CALIBRATION).estimate(knobs).process_peak_bytes < ANY_BYTES:
                found.append(setting)
    return sorted(found, key=lambda setting: (setting.knobs.allocator, setting.rank))


def choose_grid(size: str) -> list[Setting]:
    """The planner's whole grid for one image, rank 16, 32 examples a step; what would take more than 17 GiB is left out."""
    width, height = map(int, size.split("x"))
    shape = Shape(images=((width, height),), text_tokens=256, supervised_tokens=160)
    job = job_of(Setting(rank=16, shape=shape, knobs=Knobs(micro_batch=1, grad_accum=32, checkpointed_layers=LAYERS)))
    estimator = Estimator(job, calibration=CALIBRATION)
    grid = [k for k in (*planner_settings(job), *stock_settings(job)) if estimator.estimate(k).process_peak_bytes < 17 * GIB]
    return [Setting(rank=16, shape=shape, knobs=k) for k in sorted(grid, key=lambda k: k.allocator)]


def job_of(setting: Setting) -> Job:
    """The planning problem that the setting belongs to, uncapped."""
    effective = setting.knobs.micro_batch * setting.knobs.grad_accum
    return Job(
        gpu=load_gpu("v100-16g"),
        budget_bytes=UNCAPPED_BYTES,
        model=load_model(setting.model),
        contract=Contract(rank=setting.rank, alpha=2 * setting.rank, effective_batch=effective, max_length=8192),
        workload=Workload.uniform(setting.shape),
        evidence="emulated",
    )


def read(path: str) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file."""
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def predict(path: str) -> None:
    """One line a setting: the bytes that a trace and a replay say."""
    from budgetft.predict.allocator import CachingAllocator
    from budgetft.predict.trace import trace_step

    calibration = CALIBRATION
    for row in read(path):
        setting = Setting.read(row, source=path)
        job = job_of(setting)
        shapes = job.worst_micro_batch(setting.knobs)
        trace = trace_step(job.model, job.contract, setting.knobs, shapes, gpu=job.gpu)
        allocator = CachingAllocator(setting.knobs.allocator)
        allocator.run(trace.static_events)
        half = calibration.workspace_bytes // 2
        allocator.run([(-1, half), (-2, half)])
        allocator.run(trace.events)
        answer = {
            "tensors": allocator.allocated_peak_bytes,
            "reserved": allocator.reserved_peak_bytes,
            "process": allocator.reserved_peak_bytes + calibration.context_bytes,
            "flops": trace.flops,
        }
        print(json.dumps({**row, "predicted": answer}), flush=True)


def predict_by_memory_model(path: str) -> None:
    """One line a setting: the bytes that ``estimate`` and ``plan`` go by."""
    calibration, estimators = CALIBRATION, dict[str, Estimator]()
    for row in read(path):
        setting = Setting.read(row, source=path)
        job = job_of(setting)
        estimator = estimators.setdefault(job.fingerprint(), Estimator(job, calibration=calibration))
        estimate = estimator.estimate(setting.knobs)
        answer = {
            "tensors": estimate.tensor_peak_bytes,
            "reserved": estimate.reserved_peak_bytes,
            "process": estimate.process_peak_bytes,
            "seconds": estimate.step_seconds,
        }
        print(json.dumps({**row, "predicted": answer}), flush=True)


def measure(path: str, ledger_path: str, seconds: float, workers: int) -> None:
    """Measure until the time is up; every outcome is in the ledger when its line is printed.

    A process measures the settings of one model, rank and allocator: an allocator switched in mid-process keeps segments of
    the other kind.
    """
    if workers > 1 and not _own_process_is_listed():
        print("NVML does not list this process: one worker only")
        workers = 1
    started = time.monotonic()
    settings = [Setting.read(row, source=path) for row in read(path)]
    groups = list(dict.fromkeys(_group(setting) for setting in settings))
    running: list[subprocess.Popen[bytes]] = []
    for group in groups:
        while sum(process.poll() is None for process in running) >= workers:
            time.sleep(0.2)
        left = seconds - (time.monotonic() - started)
        if left <= 0:
            print("time is up")
            break
        environment = dict(os.environ)
        if group.endswith("expandable"):
            environment["PYTORCH_CUDA_ALLOC_CONF"] = environment["PYTORCH_ALLOC_CONF"] = "expandable_segments:True"
        timed = "2" if workers == 1 else "1"
        command = [sys.executable, __file__, "measure-group", path, ledger_path, str(left), group, timed]
        running.append(subprocess.Popen(command, env=environment))
    for process in running:
        process.wait()


def _group(setting: Setting) -> str:
    return f"{setting.model}/{setting.rank}/{setting.knobs.allocator}"


def _own_process_is_listed() -> bool:
    """Whether NVML can tell this process's bytes from another's; asked in a child, so that no context stays behind."""
    code = "import os; from budgetft.meter.cuda import CudaMeter; print(CudaMeter().own_pids == {os.getpid()})"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "True"


def _measure_group(path: str, ledger_path: str, seconds: float, group: str, timed_steps: int) -> None:
    import torch

    from budgetft.measure.child import Probing, current_stack
    from budgetft.measure.ledger import Ledger

    started, ledger, stack = time.monotonic(), Ledger(Path(ledger_path)), current_stack("cuda")
    settings = [Setting.read(row, source=path) for row in read(path)]
    settings = [setting for setting in settings if _group(setting) == group]
    left = [setting for setting in settings if ledger.find(job_of(setting), setting.knobs, stack) is None]
    if not left:
        return
    probing = Probing(job_of(left[0]), left[0].knobs, lambda phase: None)
    for number, setting in enumerate(left):
        if time.monotonic() - started > seconds:
            print(f"{group}: time is up after {number} of {len(left)}")
            return
        job = job_of(setting)
        probing.rebind(job)
        begun = time.monotonic()
        outcome = probing.probe(setting.knobs, timed_steps=timed_steps)
        outcome = outcome.replace(stack=stack, wall_seconds=time.monotonic() - begun)
        ledger.append(job, outcome)
        peak = (outcome.process_peak_bytes or 0) / GIB
        print(f"{group} {number:3} {outcome.status} {peak:6.2f} GiB {outcome.wall_seconds:5.1f} s", flush=True)
        torch.cuda.empty_cache()


def table(ledger_path: str, *predictions: str) -> None:
    """Errors by file, kind of bytes, model, for stock and near the budget; and the verdicts at the planner's margin."""
    from budgetft.measure.ledger import Ledger

    said: dict[tuple[str, Knobs], tuple[str, Setting, dict[str, float]]] = {}
    for path in predictions:
        for row in read(path):
            setting = Setting.read({key: value for key, value in row.items() if key != "predicted"}, source=path)
            said[job_of(setting).fingerprint(), setting.knobs] = Path(path).stem, setting, row["predicted"]
    groups: dict[str, list[dict[str, float]]] = {}
    near: dict[str, list[tuple[float, float]]] = {}
    for job, outcome in Ledger(Path(ledger_path)).rows():
        found = said.get((job.fingerprint(), outcome.knobs))
        if found is None or outcome.process_peak_bytes is None or outcome.allocated_peak_bytes is None:
            continue
        assert outcome.reserved_peak_bytes is not None
        name, setting, predicted = found
        error = {
            "tensors": predicted["tensors"] / outcome.allocated_peak_bytes - 1,
            "reserved": predicted["reserved"] / outcome.reserved_peak_bytes - 1,
            "process": predicted["process"] / outcome.process_peak_bytes - 1,
        }
        kernel = "the math kernel, N x N scores" if outcome.knobs.attention == "math" else "all but the math kernel"
        names = ["all", name, setting.model, kernel] + (["stock recipe"] if is_stock(outcome.knobs) else [])
        if abs(outcome.process_peak_bytes / BUDGET_BYTES - 1) <= 0.1:
            names.append("within 10 % of 14 GiB")
            near.setdefault("all", []).append((predicted["process"], outcome.process_peak_bytes))
            near.setdefault(kernel, []).append((predicted["process"], outcome.process_peak_bytes))
        for each in names:
            groups.setdefault(each, []).append(error)
    print("| settings | bytes | n | mean | p95 | worst | worst under |\n|---|---|---|---|---|---|---|")
    for name, rows in groups.items():
        for kind in ("tensors", "reserved", "process"):
            values = [row[kind] for row in rows]
            if len(values) > 1:
                sizes = [abs(value) for value in values]
                p95 = quantiles(sizes, n=20, method="inclusive")[-1]
                print(
                    f"| {name} | {kind} | {len(sizes)} | {mean(sizes):.2%} | {p95:.2%}"
                    f" | {max(sizes):.2%} | {min(values):+.2%} |"
                )
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


def main() -> None:
    """See the module."""
    command, *words = sys.argv[1:]
    chosen: list[Setting] = []
    if command == "choose":
        chosen = choose(int(words[0]), *words[1:])
    elif command == "choose-near":
        chosen = choose_near(int(words[0]), words[1])
    elif command == "choose-any":
        chosen = choose_any(int(words[0]), words[1])
    elif command == "choose-grid":
        chosen = choose_grid(words[0])
    elif command == "predict":
        predict(words[0])
    elif command == "predict-by-law":
        predict_by_memory_model(words[0])
    elif command == "measure":
        measure(words[0], words[1], float(words[2]), int(words[3]) if len(words) > 3 else 1)
    elif command == "measure-group":
        _measure_group(words[0], words[1], float(words[2]), words[3], int(words[4]))
    else:
        table(*words)
    for setting in chosen:
        print(setting.model_dump_json())


if __name__ == "__main__":
    main()
