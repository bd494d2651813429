"""What other trainers need of a GPU, by prediction, and beside what was measured or reported of them.

    python reports/answers/trainers.py [all]                # seconds of one core; with all minutes; no GPU: predicted
    python reports/answers/trainers.py --sources FOLDER     # their own code on a tiny model: where the frozen tower is

Prints the tables of ``trainers.md``. The first is of Qwen2.5-VL-3B, one image of 448x448, 256 text tokens of which 160 are
labels, rank 16, effective batch 32. With ``all`` also Liger, 4-bit bases and public reports of larger models, each of which is
traced for a minute. FOLDER holds the unpacked wheels llamafactory-0.9.5 and ms_swift-4.6.0: LLaMA-Factory's checkpointing
function with peft's hook, and ms-swift's patch of a frozen module, run on the CPU, whose byte meter counts live tensors; beside
them the settings that stand for them.
"""

import ast
import sys
from collections.abc import Callable, Mapping
from functools import WRAPPER_ASSIGNMENTS, partial, wraps
from pathlib import Path
from types import MethodType
from typing import Any, Union

sys.path.insert(0, str(Path(__file__).parents[1]))

from harness.arguments import flag, parser, there
from harness.jobs import LARGE, SMALL, job, shape
from harness.tables import gib, head, row

from budgetft.contract import Contract
from budgetft.export.peer_table import PeerTable, peer_table
from budgetft.export.peers import PEERS, setup_of
from budgetft.units import GIB
from budgetft.workload import Shape

GPUS = ("rtx3060-12g", "rtx4090", "v100-16g")


def table_of(trainer: str, gpu: str, model: str, work: Shape, contract: Contract, **options: Any) -> PeerTable:
    """The table of ``trainer`` with ``options`` of :func:`setup_of`."""
    problem = job(gpu, model, work, contract)
    return peer_table(setup_of(trainer, problem.gpu, problem.model, **options), problem)


def one(size: tuple[int, int], **text: int) -> tuple[Shape, Contract]:
    """Examples of one image, and a contract that keeps its size."""
    return shape(size, **text), Contract(max_pixels=size[0] * size[1], max_length=8192)


def by_trainer(*, everything: bool) -> None:
    """The first table: every trainer with a base in 16 bits; with ``everything`` also with Liger and in 4 bits."""
    print(head("trainer", "GPU", "peak at micro-batch 1, 4, 16 (GiB)", "best that fits", "its peak", "examples/s"))
    for name, peer in PEERS.items():
        variants = [{"load_in_4bit": False}]
        variants += [{"gradient_checkpointing": True}] if not peer.checkpointing else []
        if everything:
            variants += [{"liger": True, "gradient_checkpointing": True}] if peer.liger_name else []
            variants += [{"load_in_4bit": True, "gradient_checkpointing": True}]
        for options in variants:
            for gpu in GPUS:
                found = table_of(name, gpu, "qwen2.5-vl-3b", *one(SMALL), **options)
                peaks = ", ".join(gib(found.row(size).estimate.process_peak_bytes) for size in (1, 4, 16))
                title = f"{peer.title}, {found.setup.describe()}"
                told = ("none", "-", "-")
                if found.best is not None:
                    best = found.row(found.best).estimate
                    told = (found.best, gib(best.process_peak_bytes), best.speed_text(""))
                print(row(title, gpu, peaks, *told))


def against_our_measurements() -> None:
    """The second: what was measured on an H200 (bf16, flash attention, 14 GiB cap), by the size of the image."""
    rows = (
        ("unsloth", {"load_in_4bit": False}, SMALL, 16, 9.9, 7.85),
        ("unsloth", {"load_in_4bit": False}, LARGE, 4, 9.7, 1.62),
        ("trainer", {"gradient_checkpointing": True}, SMALL, 4, 13.68, 2.95),
        ("trainer", {"gradient_checkpointing": True}, LARGE, 1, 12.36, 0.71),
    )
    names = ("trainer", "image", "micro-batch", "predicted GiB", "measured GiB", "off", "predicted examples/s", "measured")
    print("\n" + head(*names))
    for name, options, size, micro, peak, speed in rows:
        said = table_of(name, "h200-141g", "qwen2.5-vl-3b", *one(size), **options).row(micro).estimate
        off = f"{said.process_peak_bytes / GIB / peak - 1:+.0%}"
        print(row(name, f"{size[0]}x{size[1]}", micro, gib(said.process_peak_bytes), peak, off, said.speed_text(""), speed))


def against_reports() -> None:
    """The third: public reports whose settings are known well enough to be predicted, in their own units."""
    work, contract = one((512, 512), text=512, labels=128)
    found = table_of("llamafactory", "rtx5090-32g", "qwen2.5-vl-7b", work, contract.replace(rank=8))
    peak = gib(found.row(1).estimate.process_peak_bytes)
    print(f"\nLlamaFactory#9331: Qwen2.5-VL-7B, rank 8, 512x512, micro-batch 1, RTX 5090: predicted {peak} GiB")
    print("\ndeepspeed-course#31: Qwen3-VL-8B LoRA on an A40, micro-batch 1, GB (1e9 bytes)")
    for visual, reported in ((276, 22.1), (540, 25.3), (1068, 31.6), (1596, 37.9)):
        work, contract = one((12 * 32, visual // 12 * 32), text=128, labels=64)
        said = []
        for checkpointing in (False, True):
            # An A40 has the kernels and twice the memory of an RTX 3090.
            found = table_of("trainer", "rtx3090", "qwen3-vl-8b", work, contract, gradient_checkpointing=checkpointing)
            said.append(found.row(1).estimate.process_peak_bytes / 1e9)
        print(f"{visual} visual tokens: predicted {said[0]:.1f} without checkpointing, {said[1]:.1f} with; reported {reported}")


def function_of(path: Path, name: str) -> Any:
    """The function ``name`` in the file ``path``, without the rest of its package but for what it takes from there."""
    import torch

    node = next(n for n in ast.parse(path.read_text()).body if isinstance(n, ast.FunctionDef) and n.name == name)
    names: dict[str, Any] = {
        "torch": torch, "nn": torch.nn, "partial": partial, "wraps": wraps, "WRAPPER_ASSIGNMENTS": WRAPPER_ASSIGNMENTS,
        "Any": Any, "Union": Union, "Callable": Callable, "Mapping": Mapping, "MethodType": MethodType,
    }  # fmt: skip
    exec(compile(ast.Module(body=[node], type_ignores=[]), str(path), "exec"), names)
    return names[name]


def measured(vision: Any, change: Callable[[Any], None] = lambda base: None) -> tuple[int, bool]:
    """Peak of live bytes of one micro-batch, and whether the tower's output is in the graph."""
    import torch

    from budgetft.data.collate import synthetic_batch
    from budgetft.knobs import stock_knobs
    from budgetft.meter.live import LiveBytes
    from budgetft.model import load_model
    from budgetft.step.build import build_model
    from budgetft.step.step import Step

    model, contract, cpu = load_model("tiny-qwen2.5-vl"), Contract(rank=4, effective_batch=2), torch.device("cpu")
    knobs = stock_knobs(micro_batch=2, effective_batch=2, layers=model.layers, base_precision="fp32").replace(vision=vision)
    peft_model = build_model(model, contract, base_precision="fp32", device=cpu, vision=vision)
    step = Step(peft_model, contract, knobs, device=cpu)
    change(step.base)
    inputs, seen = step.prepare(synthetic_batch([shape(text=64, labels=32)] * 2, model, seed=0)), []
    step.base.model.visual.blocks[-1].register_forward_hook(lambda module, args, output: seen.append(output.requires_grad))
    with LiveBytes() as meter:
        step.micro(inputs, total_supervised=64)
    return meter.peak_bytes, any(seen)


def by_their_code(folder: Path) -> None:
    """What becomes of the frozen vision tower under gradient checkpointing."""
    from torch.utils.checkpoint import checkpoint

    factory = next(folder.rglob("llamafactory/model/model_utils/checkpointing.py"))
    swift = next(folder.rglob("swift/model/patcher.py"))

    def as_llamafactory(base: Any) -> None:
        theirs = function_of(factory, "get_custom_gradient_checkpointing_func")(partial(checkpoint, use_reentrant=True))

        def recompute(function: Any, *args: Any) -> Any:
            """As transformers up to 5.6 calls it: with a bound method, of which it takes the module."""
            module, *rest = function.args
            return theirs(partial(MethodType(function.func, module), *rest, **function.keywords), *args)

        base._set_gradient_checkpointing(enable=True, gradient_checkpointing_func=recompute)
        base.enable_input_require_grads()  # peft's, for a model whose checkpointing is on

    def as_swift(base: Any) -> None:
        base._set_gradient_checkpointing(enable=True, gradient_checkpointing_func=partial(checkpoint, use_reentrant=True))
        base.enable_input_require_grads()
        function_of(swift, "patch_frozen_module")(base.model.visual)

    rows = {
        "Trainer (vision stock)": measured("stock"),
        "LLaMA-Factory's own code": measured("no_grad", as_llamafactory),
        "vision uncheckpointed": measured("uncheckpointed"),
        "ms-swift's own code": measured("no_grad", as_swift),
        "vision no_grad": measured("no_grad"),
    }
    for name, (peak, in_graph) in rows.items():
        print(f"{name:<26} {peak / 2**20:8.1f} MiB live at the peak; tower {'in' if in_graph else 'outside'} the graph")


options = flag(parser(__doc__), "extent", nargs="?", choices=("all",), help="also what is traced for minutes")
flag(options, "--sources", type=there, metavar="FOLDER", help="run other trainers' own code from there")


def main() -> None:
    asked = options.parse_args()
    if asked.sources:
        by_their_code(asked.sources)
        return
    everything = asked.extent == "all"
    by_trainer(everything=everything)
    against_our_measurements()
    if everything:
        against_reports()


if __name__ == "__main__":
    main()
