"""Where trials run: the GPU that is planned for, another that stands in for it, the CPU with its byte meter, or nowhere."""

import os
import platform
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import TYPE_CHECKING

from budgetft import __version__
from budgetft.contract import Contract
from budgetft.errors import UsageError
from budgetft.gpu import Gpu, gpu_at_hand
from budgetft.host_gpus import first_visible, memory_of, takes_expandable_segments, unlisted_gpu
from budgetft.installed import install_line
from budgetft.knobs import Allocator
from budgetft.measure.child import current_stack
from budgetft.measure.job import Device
from budgetft.outcome import Evidence, Stack
from budgetft.units import format_gib

if TYPE_CHECKING:
    from budgetft.search.run import PlanRequest


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where probes run, and what they count as."""

    device: Device
    evidence: Evidence
    stack: Stack | None
    host: Gpu | None = None
    statement: str
    allocator: Allocator = "expandable"
    """The best that there is; ``default`` where torch cannot have expandable segments."""


def find_place(request: "PlanRequest") -> Place | None:
    """None when nothing is to be probed. ``auto`` probes on a CUDA GPU only; ``always`` falls to the CPU's byte meter."""
    if request.gpus > 1 and request.probe == "always":
        raise UsageError(
            f"a probe is of one GPU; what each of {request.gpus} holds is predicted",
            hint="leave --trials out: the pre-flight of every run tries it on all GPUs before the first step",
        )
    if request.probe == "never" or request.gpus > 1:
        return None
    gpu = first_visible(os.environ)  # asking torch would load it
    if gpu is None:
        if request.probe == "auto":
            return None
        statement = "real steps on the CPU with its byte meter; bytes are those of the tensors, seconds are this CPU's"
        return Place(device="cpu", evidence="predicted", stack=current_stack("cpu"), statement=statement)
    name, memory_bytes = gpu.name, memory_of(gpu)
    stack = current_stack("cuda")
    allocator: Allocator = "expandable" if takes_expandable_segments() else "default"
    without = "" if allocator == "expandable" else "; this platform has no expandable segments: the default allocator"
    if request.gpu.is_gpu(name, memory_bytes):
        statement = f"measured on {name}{without}"
        return Place(device="cuda", evidence="measured", stack=stack, statement=statement, allocator=allocator)
    if memory_bytes < request.budget_bytes:
        raise UsageError(
            f"{name} has {format_gib(memory_bytes)}: too little to stand in for {request.gpu.name}"
            f" with {format_gib(request.budget_bytes)}",
            hint="plan without probes: --trials never",
        )
    lacks = [
        text for has, text in ((request.gpu.flash_attention, "flash"), (request.gpu.native_bf16, "bf16 and TF32")) if not has
    ]
    off = f" with {' and '.join(lacks)} off" if lacks else ""
    statement = (
        f"emulated on {name} under a cap of {format_gib(request.budget_bytes)} for the whole process{off};"
        f" the speed is that GPU's, not {request.gpu.name}'s{without}"
    )
    host = gpu_at_hand(name, memory_bytes) or unlisted_gpu(gpu, memory_bytes)
    return Place(device="cuda", evidence="emulated", stack=stack, host=host, statement=statement, allocator=allocator)


def check_packages(contract: Contract, place: Place | None) -> None:
    """Before anything is probed: whether what the contract allows can be run here. Raises ``UsageError``."""
    on_gpu = place is not None and place.device == "cuda"
    wanted = (contract.allow_nf4 and on_gpu) or (contract.allow_adamw8bit and place is not None)
    if wanted and find_spec("bitsandbytes") is None:
        raise UsageError(
            "four-bit weights and the eight-bit optimizer need bitsandbytes, which is not installed",
            hint=f"{install_line('nf4')}, or plan without --allow-nf4 and --allow-adamw8bit",
        )


def environment(place: Place | None) -> dict[str, str]:
    """The software that the plan was made with, and the GPU that took part."""
    found = {"budgetft": __version__, "python": platform.python_version(), "platform": platform.platform()}
    for name in ("torch", "transformers", "peft", "accelerate", "optuna"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    if place is not None and place.stack is not None:
        found |= {"gpu": place.stack.gpu, "driver": place.stack.driver or "none"}
    return found
