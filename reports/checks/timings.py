"""How fast what is said to be fast is: user CPU seconds of each figure, beside what is promised and beside a yardstick.

    python reports/checks/timings.py [--runs 5] [--only PART_OF_A_NAME] [--out FOLDER]      # five minutes, no GPU; measured

Each run is a process of its own, after one that is not counted: it fills the caches of Python's code, memory models and
vocabulary, in a temporary folder. Processor seconds and not the clock, since other processes may run; and their ratio to a
yardstick of the same runs, since no two processors are alike: the start of Python for commands, a million additions for the
rest. Nothing fails on a slow machine. The tests hold what makes these slow: what is loaded, traced, built and called, and how
often. Prints timings.md, and writes it beside this script or into FOLDER.
"""

import argparse
import os
import platform
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).parents[1]))

from harness import ROOT, SPINE
from harness.arguments import flag, parser
from harness.children import clocked, run, user_seconds
from harness.jobs import job
from harness.tables import head, row

from budgetft.outcome import processor

STARTS = 10
"""Of Python for one run of that yardstick: one takes a hundredth of a second, as long as the kernel's tick."""
JOB = ("--gpu", "v100-16g", "--image", "448x448")


@dataclass(frozen=True, kw_only=True)
class Figure:
    """Something that is timed: a command line, or what a function does when it is called."""

    name: str
    promised: str = "-"
    """What is said of it, in seconds of a quiet machine."""
    words: tuple[str, ...] = ()
    prepare: Callable[[], Callable[[], object]] | None = None
    times: int = 1
    """How often it is done in a run; the figure is of one."""


def _report() -> Callable[[], object]:
    """Thirty probes and ten thousand steps; the memory models are traced here the first time."""
    from budgetft.plan import read_plan
    from budgetft.report.gather import gather
    from budgetft.report.page import write_report
    from budgetft.train.record import Record

    folder = Path(tempfile.mkdtemp(dir=os.environ["BUDGETFT_CACHE"]))
    plan = read_plan(SPINE)
    outcomes = tuple(plan.evidence.outcomes[number % len(plan.evidence.outcomes)] for number in range(30))
    (folder / "plan.json").write_text(plan.replace(evidence=plan.evidence.replace(outcomes=outcomes)).model_dump_json())
    step = Record(
        step=1, steps=10_000, epoch=0.1, loss=1.0, grad_norm=1.0, finite=True, scale=1.0, learning_rate=1e-4, seconds=0.5,
        data_seconds=0.01, samples_per_second=60.0, allocated_bytes=2**30, allocated_peak_bytes=2**33, reserved_bytes=2**33,
        reserved_peak_bytes=2**33, process_bytes=2**33, process_peak_bytes=2**33,
    )  # fmt: skip
    lines = (step.replace(step=number, loss=5 / number**0.3).model_dump_json() for number in range(1, 10_001))
    (folder / "log.jsonl").write_text("\n".join(lines) + "\n")
    gather(SPINE, ledger=folder / "none.sqlite3")
    return lambda: write_report(gather(folder, ledger=folder / "none.sqlite3"), folder / "report.html")


def _tokenizer() -> Callable[[], object]:
    from budgetft.data.vocabulary import load_tokenizer

    load_tokenizer()
    return load_tokenizer


def _processor() -> Callable[[], object]:
    from budgetft.data.processor import load_processor
    from budgetft.model import load_model

    model = load_model("tiny-qwen2.5-vl")
    load_processor(model)
    return lambda: load_processor(model)


def _peaks() -> Callable[[], object]:
    estimator, knobs = _estimator()
    memory_model = estimator.memory_model(knobs)
    settings = [(1 + number % 32, (0, 12, 36)[number % 3]) for number in range(1000)]
    return lambda: [memory_model.peak_bytes(*setting, accumulating=True) for setting in settings]


def _estimates() -> Callable[[], object]:
    estimator, knobs = _estimator()
    sizes = [(size, layers) for size in (1, 2, 4, 8, 16, 32) for layers in range(37)]
    settings = [
        knobs.replace(micro_batch=size, grad_accum=32 // size, checkpointed_layers=layers)
        for size, layers in (sizes[number % len(sizes)] for number in range(1000))
    ]
    return lambda: [estimator.estimate(setting) for setting in settings]


def _estimator():
    """Of the 3B on the V100, with a memory model that ships: of this software or, where there is none, of other."""
    from budgetft.predict.estimator import Estimator

    problem, knobs = _problem()
    estimator = Estimator(problem, at_once=True)
    estimator.estimate(knobs)
    return estimator, knobs


def _problem():
    from budgetft.contract import Contract
    from budgetft.knobs import Knobs

    contract = Contract(rank=16, effective_batch=32)
    return job("v100-16g", "qwen2.5-vl-3b", contract=contract), Knobs(micro_batch=1, grad_accum=32, checkpointed_layers=0)


def _trace() -> Callable[[], object]:
    """Imports of torch and transformers included."""
    problem, knobs = _problem()

    def trace() -> None:
        from budgetft.predict.trace import trace_step

        trace_step(problem.model, problem.contract, knobs, problem.workload.worst, gpu=problem.gpu)

    return trace


def _memory_model() -> Callable[[], object]:
    estimator, knobs = _estimator()
    problem, combination = estimator.job, estimator.combination(knobs)
    layouts = estimator.layouts(combination)

    def fit() -> None:
        from budgetft.predict.fit import fit_memory_model

        fit_memory_model(
            problem.model, problem.contract, combination, problem.workload.worst[0], gpu=problem.gpu, layouts=layouts
        )

    return fit


def _additions() -> Callable[[], object]:
    def add() -> int:
        total = 0
        for number in range(1_000_000):
            total += number
        return total

    return add


START = Figure(name="yardstick: python -c pass", words=("-c", "pass"), times=STARTS)
ADDITIONS = Figure(name="yardstick: a million additions", prepare=_additions)
FIGURES = (
    Figure(name="budgetft --help", promised="0.5", words=("-m", "budgetft", "--help")),
    Figure(name="budgetft gpus", words=("-m", "budgetft", "gpus")),
    Figure(name="budgetft models", words=("-m", "budgetft", "models")),
    Figure(name="budgetft estimate, its memory model stored", promised="1", words=("-m", "budgetft", "estimate", *JOB)),
    Figure(name="1,000 peaks from a memory model", promised="1", prepare=_peaks),
    Figure(name="1,000 estimates, with their seconds of a step", prepare=_estimates),
    Figure(name="a trace of the 3B, imports included", promised="20", prepare=_trace),
    Figure(name="a whole memory model of the 3B", prepare=_memory_model),
    Figure(name="report of 30 probes and 10,000 steps, its memory models stored", promised="5", prepare=_report),
    Figure(name="second load of the tokenizer", promised="2", prepare=_tokenizer),
    Figure(name="second load of the processor", prepare=_processor),
)


def seconds_of(figure: Figure, environment: dict[str, str]) -> float:
    """User seconds of the processor, for the figure once, in a process of its own."""
    if figure.prepare is not None:
        return float(run([sys.executable, __file__, "--child", figure.name], env=environment).checked().out.splitlines()[-1])
    command = [sys.executable, *figure.words]
    return sum(run(command, env=environment).checked().user_seconds for _ in range(figure.times)) / figure.times


def measure(figures: list[Figure], runs: int) -> dict[str, list[float]]:
    """The seconds of each run of each figure, all figures in turn: a machine's load changes."""
    found: dict[str, list[float]] = {figure.name: [] for figure in figures}
    with tempfile.TemporaryDirectory(prefix="budgetft-timings-") as folder:
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        environment |= {"BUDGETFT_CACHE": folder, "PYTHONPYCACHEPREFIX": f"{folder}/code", "HF_HUB_OFFLINE": "1"}
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        for number in range(runs + 1):
            for figure in figures:
                seconds = seconds_of(figure, environment)
                if number:
                    found[figure.name].append(seconds)
            print(f"run {number} of {runs} done" if number else "caches are filled", file=sys.stderr, flush=True)
    return found


def processor_name() -> str:
    """As the kernel has it, where there is a list of processors."""
    known = Path("/proc/cpuinfo")
    lines = known.read_text(encoding="utf-8", errors="replace").splitlines() if known.is_file() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), processor())


def table(figures: list[Figure], found: dict[str, list[float]], runs: int, load: tuple[float, float]) -> str:
    """``timings.md``."""
    software = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers"))
    lines = [
        f"Seconds of user CPU time, median and range of {runs} run{'s' if runs > 1 else ''}, each in a process of its own.",
        f"{processor_name()}, {os.cpu_count()} cores, load {load[0]:.1f} before and {load[1]:.1f} after;"
        f" Python {platform.python_version()}, {software}.",
        "",
        head("what", "promised, s", "median, s", "range, s", "of the yardstick"),
    ]
    for figure in figures:
        seconds = found[figure.name]
        yardstick = median(found[(START if figure.words else ADDITIONS).name])
        spread = (f"{median(seconds):.3f}", f"{min(seconds):.3f} to {max(seconds):.3f}")
        lines.append(row(figure.name, figure.promised, *spread, f"{median(seconds) / yardstick:.1f}"))
    return "\n".join(lines) + "\n"


options = parser(__doc__, only="", out=Path(__file__).resolve().parent)
flag(options, "--runs", type=int, default=5, help="of each figure")
flag(options, "--child", help=argparse.SUPPRESS)


def main() -> None:
    asked = options.parse_args()
    if asked.runs < 1:
        options.error("--runs: at least 1")
    if asked.child:  # in this process
        (prepare,) = (each.prepare for each in (*FIGURES, ADDITIONS) if each.name == asked.child)
        assert prepare is not None
        print(clocked(prepare(), user_seconds))
        return
    figures = [START, ADDITIONS, *(figure for figure in FIGURES if asked.only in figure.name)]
    before = os.getloadavg()[0]
    found = measure(figures, asked.runs)
    text = table(figures, found, asked.runs, (before, os.getloadavg()[0]))
    print(text, end="")
    asked.out.mkdir(parents=True, exist_ok=True)
    (asked.out / "timings.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
