"""Searches over forty made-up GPUs: what the planner of the product loses on a GPU that nobody has measured.

    python reports/prediction/made_up.py [SAMPLER,...] [--gpus 40] [--each]      # printed: made_up.txt; an hour, no GPU

Every GPU has 8 to 80 GB, 20 to 1,000 TFLOP/s, 200 to 4,800 GB/s, a host that launches a kernel in 5 to 120 microseconds, and
a job: a bundled model, one image, an effective batch. Its true seconds come from a simulation of its own, not from the formula
that the planner learns: products lose efficiency with few rows (up to 1,500 rows for half the rate), the host runs at most
1,024 kernels ahead and pays for each micro-batch and now and then for a garbage collection, kernels with little data run from
the cache, long steps are throttled, every setting has a quirk of its own (which kernel the library picks), and backward passes
launch faster by a factor of their own. Readings scatter by 1 to 15 %, more where the host decides, and drift between probes.
True peaks are the memory model's with a context of their own, an error that is smooth over the settings and one that is not.
"""

import hashlib
import math
import random
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
from harness.arguments import comma, flag, parser
from harness.jobs import LARGE, SMALL, job, shape, uncalibrated
from harness.tables import GIB
from replaying import HEAD, Found, True_, row, search

from budgetft.contract import Contract
from budgetft.data.tokens import resized_size
from budgetft.gpu import Gpu
from budgetft.knobs import Knobs
from budgetft.measure.job import Job
from budgetft.model import load_model
from budgetft.outcome import Estimate
from budgetft.predict.estimator import Estimator
from budgetft.search.space import settings, stock_settings
from budgetft.search.study import SamplerName

GB = 10**9
MODELS = ("qwen2-vl-2b", "qwen2.5-vl-3b", "qwen3-vl-2b", "qwen3-vl-4b", "qwen2.5-vl-7b")
CAPABILITIES = ("7.0", "7.5", "8.0", "8.6", "8.9", "9.0", "12.0")
MAX_PROBES = 12
QUEUE = 1024
"""Kernels that a host may be ahead of the GPU."""


@dataclass(frozen=True, kw_only=True)
class MadeUp:
    """What the generator knows of a GPU and its host, and the planner does not."""

    gpu: Gpu
    product: float
    half_rows: float
    attention: float
    bandwidth: float
    cached_bytes: float
    """Segments that move less than this run from the cache, twice as fast."""
    small_kernel: float
    forward_launch: float
    backward_launch: float
    micro_host: float
    collect_every: float
    """Kernels between two garbage collections of the host, of 40 ms."""
    throttle: float
    quirk: float
    noise: float
    drift: float
    context_bytes: int
    peak_tilt: tuple[float, float, float]


def make(draw: random.Random, number: int) -> MadeUp:
    """A GPU: rates within the stated ranges, bandwidth loosely with the matrix rate."""

    def between(low: float, high: float) -> float:
        return math.exp(draw.uniform(math.log(low), math.log(high)))

    memory_gb = between(8, 80)
    tflops = min(1000.0, max(20.0, between(20, 1000)))
    gb_per_s = min(4800.0, max(200.0, tflops * between(2.5, 20)))
    capability = draw.choice(CAPABILITIES)
    ampere = float(capability) >= 8
    forward = between(5e-6, 120e-6)
    noise = between(0.01, 0.15)
    return MadeUp(
        gpu=Gpu(
            name=f"made-up-{number}",
            title=f"made-up GPU {number}",
            memory_mib=int(memory_gb * GB / 2**20),
            compute_capability=capability,
            memory_bandwidth_gb_per_s=round(gb_per_s, 1),
            fp16_tflops=round(tflops, 1),
            native_bf16=ampere,
            flash_attention=ampere,
            efficient_attention=True,
            sources={},
        ),
        product=min(0.95, between(0.4, 1.0)),
        half_rows=between(60, 1500) * min(1.0, tflops / 300),
        attention=between(0.1, 0.6),
        bandwidth=between(0.5, 0.92),
        cached_bytes=between(1e6, 4e7),
        small_kernel=between(1.5e-6, 4e-6),
        forward_launch=forward,
        backward_launch=forward * between(0.12, 0.7),
        micro_host=between(1e-3, 2e-2),
        collect_every=between(8e3, 1e5),
        throttle=draw.uniform(0.0, 0.15),
        quirk=draw.uniform(0.0, 0.03),
        noise=noise,
        drift=noise * draw.uniform(0.2, 1.0),
        context_bytes=int(draw.uniform(0.3, 0.85) * GIB),
        peak_tilt=(draw.gauss(0, 0.01), draw.gauss(0, 0.006), draw.gauss(0, 0.006)),
    )


def job_for(draw: random.Random, made: MadeUp) -> Job | None:
    """A job that some setting fits with room; None when the draw has none."""
    model, pixels = load_model(draw.choice(MODELS)), draw.choice((SMALL, LARGE))
    work = shape(resized_size(*pixels, model, Contract(max_pixels=pixels[0] * pixels[1])))
    problem = job(made.gpu, model, work, Contract(effective_batch=draw.choice((8, 16, 32, 64))), evidence="measured")
    estimator, most = estimator_of(problem), 0.95 * problem.budget_bytes
    fitting = [knobs for knobs in settings(problem) if estimator.estimate(knobs).process_peak_bytes < most]
    return problem if len(fitting) >= 8 else None


def estimator_of(job: Job) -> Estimator:
    """Of the product, for a GPU that nobody has calibrated."""
    return Estimator(job, calibration=uncalibrated())


def seconds(made: MadeUp, estimator: Estimator, knobs: Knobs) -> tuple[float, float]:
    """(seconds of a true step, share of it in which the GPU waits for the host)."""
    work = estimator.step_work(knobs)
    tokens = knobs.micro_batch * estimator.job.workload.worst[0].total_tokens(estimator.job.model.pixel_step)
    rate = made.gpu.fp16_tflops * 1e12 * made.product * tokens / (tokens + made.half_rows)
    attention = made.gpu.fp16_tflops * 1e12 * made.attention * min(1.0, 0.5 + tokens / 8000)
    memory = made.gpu.memory_bandwidth_gb_per_s * 1e9 * made.bandwidth
    host = gpu = waited = made.micro_host
    launched: list[tuple[float, float]] = []
    since = 0.0
    for products, attended, moved, product_bytes, kernels, python, from_host in work.micro_RSF[0]:
        launch = made.forward_launch * python + made.backward_launch * (kernels - python)
        since += kernels
        if since > made.collect_every:
            launch, since = launch + 0.04, 0.0
        faster = 2.0 if kernels and moved / kernels < made.cached_bytes else 1.0
        compute = products / rate
        busy = max(compute, product_bytes / memory) + 0.3 * min(compute, product_bytes / memory)
        busy += attended / attention + moved / (memory * faster) + made.small_kernel * kernels + from_host / 12e9
        host += launch
        ahead = [end for count, end in launched if count > QUEUE]
        host = max(host, ahead[-1] if ahead else 0.0)
        began = max(gpu, host - 0.7 * launch)
        waited += max(0.0, began - gpu)
        gpu = max(began + busy, host)
        launched = [(count + kernels, end) for count, end in launched if count <= 4 * QUEUE] + [(kernels, gpu)]
    idle = min(1.0, waited / gpu)
    micro = gpu * (1 + made.throttle * (1 - idle))
    quirk = math.exp(made.quirk * own(f"{made.gpu.name} {knobs.micro_batch} {knobs.checkpointed_layers}"))
    return float(micro * work.times_R.sum() * quirk + 120 * made.forward_launch), idle


NORMAL = np.random.default_rng(7).normal(size=4096)


def own(text: str) -> float:
    """A number of its own for every text, normally distributed, always the same."""
    return NORMAL[int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") % len(NORMAL)]


def truth_of(made: MadeUp, estimator: Estimator) -> dict[Knobs, True_]:
    """Of every setting that the planner may ask for; those that do not fit are there with their peak."""
    truth = {}
    for knobs in (*settings(estimator.job), *stock_settings(estimator.job)):
        estimate = estimator.estimate(knobs)
        step, idle = seconds(made, estimator, knobs)
        truth[knobs] = True_(
            samples_per_second=estimator.job.contract.effective_batch / step,
            process_peak_bytes=_peak(made, estimate, knobs, estimator.job.model.layers),
            step_noise=made.noise * (0.15 + 0.85 * idle),
            drift=made.drift * idle,
        )
    return truth


def _peak(made: MadeUp, estimate: Estimate, knobs: Knobs, layers: int) -> int:
    steps = (1.0, math.log2(knobs.micro_batch) / 2.5 - 1, 2 * knobs.checkpointed_layers / layers - 1)
    quirk = own(f"peak {made.gpu.name} {knobs.micro_batch} {knobs.checkpointed_layers}")
    error = float(np.dot(made.peak_tilt, steps)) + 0.004 * quirk
    return int(estimate.reserved_peak_bytes * math.exp(error)) + made.context_bytes


options = flag(parser(__doc__, seed=1), "samplers", type=comma, nargs="?", default="residual,tpe,gp")
flag(options, "--gpus", type=int, default=40)
flag(options, "--each", action="store_true", help="a line for each GPU too")


def main() -> None:
    """Print a table, and with --each a line a GPU."""
    asked = options.parse_args()
    draw = random.Random(f"made-up {asked.seed}")
    made: list[tuple[MadeUp, Estimator, dict[Knobs, True_]]] = []
    while len(made) < asked.gpus:
        one = make(draw, len(made))
        problem = job_for(draw, one)
        if problem is not None:
            estimator = estimator_of(problem)
            made.append((one, estimator, truth_of(one, estimator)))
    names: list[SamplerName] = [name for name in ("residual", "tpe", "gp") if name in asked.samplers]
    print(HEAD)
    for name in names:
        found: list[Found] = []
        for number, (one, estimator, truth) in enumerate(made):
            each = search(estimator, truth, sampler=name, seed=number, max_probes=MAX_PROBES)
            found.append(each)
            if asked.each:
                print(_line(one, estimator, truth, each), flush=True)
        print(row(name, found), flush=True)


def _line(made: MadeUp, estimator: Estimator, truth: dict[Knobs, True_], found: Found) -> str:
    gpu, job = made.gpu, estimator.job
    fitting = [knobs for knobs, true in truth.items() if true.process_peak_bytes <= job.budget_bytes]
    best = max(fitting, key=lambda knobs: truth[knobs].samples_per_second)
    size = job.workload.worst[0].images[0]
    return (
        f"{gpu.name}: {gpu.memory_mib / 1024:.0f} GiB, {gpu.fp16_tflops:.0f} TFLOP/s, {gpu.memory_bandwidth_gb_per_s:.0f} GB/s,"
        f" launch {made.forward_launch * 1e6:.0f} us, noise {made.noise:.0%}, {job.model.name} {size[0]}x{size[1]}"
        f" batch {job.contract.effective_batch}: best {best.micro_batch}/{best.checkpointed_layers}"
        f" {truth[best].samples_per_second:.2f}/s, found {found.winner.micro_batch}/{found.winner.checkpointed_layers},"
        f" regret {found.regret:.1%}, {found.probes} probes, {found.lost} out of memory"
    )


if __name__ == "__main__":
    main()
