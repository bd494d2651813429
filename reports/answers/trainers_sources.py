"""Two claims about other trainers, by their own code: what becomes of the frozen vision tower under gradient checkpointing.

    python reports/answers/trainers_sources.py FOLDER

FOLDER holds the unpacked wheels llamafactory-0.9.5 and ms_swift-4.6.0. LLaMA-Factory's checkpointing function with peft's hook,
and ms-swift's patch of a frozen module, run on a tiny Qwen2.5-VL on the CPU, whose byte meter counts live tensors; beside them
the settings that stand for them.
"""

import ast
import sys
from collections.abc import Callable, Mapping
from functools import WRAPPER_ASSIGNMENTS, partial, wraps
from pathlib import Path
from types import MethodType
from typing import Any, Union

import torch
from torch.utils.checkpoint import checkpoint

from budgetft.contract import Contract
from budgetft.data.collate import synthetic_batch
from budgetft.knobs import Vision, stock_knobs
from budgetft.meter.live import LiveBytes
from budgetft.model import load_model
from budgetft.step.build import build_model
from budgetft.step.step import Step
from budgetft.workload import Shape

MODEL = load_model("tiny-qwen2.5-vl")
SHAPES = [Shape(images=((448, 448),), text_tokens=64, supervised_tokens=32)] * 2
GIVEN = {
    "torch": torch, "nn": torch.nn, "partial": partial, "wraps": wraps, "WRAPPER_ASSIGNMENTS": WRAPPER_ASSIGNMENTS, "Any": Any,
    "Union": Union, "Callable": Callable, "Mapping": Mapping, "MethodType": MethodType,
}  # fmt: skip
"""What the functions take from their modules."""


def function_of(path: Path, name: str) -> Any:
    """The function ``name`` in the file ``path``, without the rest of its package."""
    node = next(n for n in ast.parse(path.read_text()).body if isinstance(n, ast.FunctionDef) and n.name == name)
    names: dict[str, Any] = dict(GIVEN)
    exec(compile(ast.Module(body=[node], type_ignores=[]), str(path), "exec"), names)
    return names[name]


def measured(vision: Vision, change: Callable[[Any], None] = lambda base: None) -> tuple[int, bool]:
    """Peak of live bytes of one micro-batch, and whether the tower's output is in the graph."""
    contract = Contract(rank=4, effective_batch=2)
    knobs = stock_knobs(micro_batch=2, effective_batch=2, layers=MODEL.layers, base_precision="fp32").replace(vision=vision)
    peft_model = build_model(MODEL, contract, base_precision="fp32", device=torch.device("cpu"), vision=vision)
    step = Step(peft_model, contract, knobs, device=torch.device("cpu"))
    change(step.base)
    inputs, seen = step.prepare(synthetic_batch(SHAPES, MODEL, seed=0)), []
    step.base.model.visual.blocks[-1].register_forward_hook(lambda module, args, output: seen.append(output.requires_grad))
    with LiveBytes() as meter:
        step.micro(inputs, total_supervised=64)
    return meter.peak_bytes, any(seen)


def main() -> None:
    """See the module."""
    folder = Path(sys.argv[1])
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


if __name__ == "__main__":
    main()
