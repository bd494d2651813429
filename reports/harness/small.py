"""Plans made by hand, small models and data (those that the tests have), and what a run left in its folder."""

import json
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from budgetft.contract import Contract
from budgetft.data.examples import Examples, read_dataset
from budgetft.gpu import load_gpu
from budgetft.knobs import Knobs
from budgetft.model import Model, load_model
from budgetft.outcome import Estimate
from budgetft.plan import Plan, Proof, Target, refer
from budgetft.profiles import profiles_folder
from budgetft.workload import Workload
from harness import ROOT
from harness.evidence import read_lines

TINY = "tiny-qwen2.5-vl"


def hand_made(
    gpu: str, model: Model, data: Path | Examples, contract: Contract, knobs: Knobs, *, budget_bytes: int | None = None,
    workload: Workload | None = None,
) -> Plan:  # fmt: skip
    """A plan that nobody searched for, of the dataset ``data``: what is looked at is what becomes of its runs."""
    profile = load_gpu(gpu)
    budget_bytes = profile.budget_bytes if budget_bytes is None else budget_bytes
    examples = data if isinstance(data, Examples) else read_dataset(data)
    if workload is None:
        from budgetft.data.processor import load_processor
        from budgetft.data.stats import measure_workload

        workload = measure_workload(examples, load_processor(model), model, contract)
    return Plan(
        gpu=Target(name=profile.name, budget_bytes=budget_bytes, profile=profile),
        model=refer(model),
        contract=contract,
        knobs=knobs,
        estimate=Estimate(
            tensor_peak_bytes=1, reserved_peak_bytes=1, process_peak_bytes=1, step_seconds=None, samples_per_second=None,
            fits=True, terms=(),
        ),
        evidence=Proof(kind="predicted", outcomes=(), confirmed=None, statement="made by hand"),
        baseline=None,
        workload=workload,
        data=str(examples.folder),
        environment={},
    )  # fmt: skip


def tests(module: str) -> Any:
    """A module of the tests' own helpers: small models, drawn data, refused memory."""
    sys.path[:0] = [path for part in ("tests", "tests/train") if (path := str(ROOT / part)) not in sys.path]
    return import_module(module)


def draw_examples(folder: Path, count: int) -> Examples:
    """``count`` examples of one or two drawn images."""
    return tests("drawn").draw_examples(folder, count)


def save_random(model: Model | str, folder: Path | str, *, dtype: Any = None, device: Any = "cpu", seed: int = 3) -> Path:
    """A checkpoint of random weights, the same for a ``seed``."""
    import torch
    from transformers import AutoModelForImageTextToText

    from budgetft.step.build import model_config

    torch.manual_seed(seed)
    config = model_config(load_model(model) if isinstance(model, str) else model)
    with torch.device(device):
        AutoModelForImageTextToText.from_config(config, dtype=dtype or torch.float32).save_pretrained(folder)
    return Path(folder)


def short_model(folder: Path, *, layers: int, blocks: int) -> Model:
    """The 3B's widths and vocabulary with few layers and vision blocks; ``folder`` says what it is, without weights."""
    made = tests("tiny").short_model(layers=layers, blocks=blocks)
    folder.mkdir()
    for path in (profiles_folder() / "models" / "qwen2.5-vl-3b").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "config.json").write_text(json.dumps(made.config))
    return load_model(str(folder))


def log(run: Path) -> list[dict[str, Any]]:
    """The records of a run's steps."""
    return [row for row in read_lines(run / "log.jsonl") if "loss" in row]


def losses(run: Path) -> list[tuple[int, float]]:
    """(step, loss) of every step of a run."""
    return [(row["step"], row["loss"]) for row in log(run)]


def summary(run: Path) -> dict[str, Any]:
    """What a run said at its end."""
    return json.loads((run / "summary.json").read_text())


def adapter(run: Path) -> Path:
    """The file of a run's adapter."""
    return run / "adapter" / "adapter_model.safetensors"


def apart(one: Path, other: Path) -> tuple[float, float]:
    """How far two runs are apart at most, relative to the second: a loss, and a tensor of the adapter by its norm."""
    from safetensors.torch import load_file

    pairs = zip(losses(one), losses(other), strict=True)
    ours, theirs = load_file(adapter(one)), load_file(adapter(other))
    norms = (float((ours[name] - each).norm() / each.norm().clamp_min(1e-30)) for name, each in theirs.items())
    return max(abs(a - b) / abs(b) for (_, a), (_, b) in pairs), max(norms)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder but hidden ones, which nothing reads."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files if not path.name.startswith(".")}
