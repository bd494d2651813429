"""What a GPU and its host did in ten seconds of measuring (:mod:`budgetft.predict.look`), kept for every later plan there.

The figures are those that the priors of the time model (:mod:`budgetft.predict.clock`) are about.
"""

import hashlib
import json
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import AliasChoices, Field

from budgetft.cache import cache_folder
from budgetft.errors import BudgetftError
from budgetft.gpu import Gpu
from budgetft.host_gpus import driver_version, first_visible, memory_of, pinned
from budgetft.measure.kernels import Product, Reading
from budgetft.outcome import Stack, processor
from budgetft.plan import write_text_atomically
from budgetft.predict.clock import STEP_BANDWIDTH, Speeds
from budgetft.value import Value, read_json

if TYPE_CHECKING:
    pass

LOOK_SECONDS = 180.0
"""That the measuring process may take, its imports included; on an H200 it took 12."""
STEP_PRODUCTS = 0.92
"""Of the rate of one large product, what those of a step reach beside their bytes: 0.57 to 0.6 against 0.64 on an H200."""
SMALL_IN_STEP = 2.4
"""Times as long as in a CUDA graph that a small kernel takes in a step: 2.0 to 2.2 against 0.85 microseconds on an H200."""
NOISY = 0.15
"""Spread of repeats over which a measurement says that something else used the GPU or that its clock changed."""


class Attended(Value):
    """One fused causal attention, forward and backward."""

    tokens: int
    heads: int
    head_size: int
    kernel: str
    reading: Reading

    @property
    def flops(self) -> float:
        """Seven products of tokens x tokens x head size; causality is not subtracted, as a memory model does not."""
        return 7 * 2.0 * self.heads * self.tokens**2 * self.head_size


class Machine(Value):
    """A GPU with its driver, torch and host, and what was measured there. Nothing in it names a person or a computer."""

    gpu: str = Field(validation_alias=AliasChoices("gpu", "card"))
    """What the driver calls it."""
    driver: str | None
    torch: str
    host: str
    """The processor's name."""
    multiprocessors: int
    forward_launch: Reading
    """Seconds a kernel that Python launches: forward passes, and what is computed again in a backward pass."""
    backward_launch: Reading
    """Seconds a kernel that autograd's engine launches."""
    small_kernel: Reading
    """Seconds on the GPU of a kernel with next to nothing to do."""
    products: tuple[Product, ...]
    attention: tuple[Attended, ...]
    elementwise: Reading
    """Of adding two numbers ``elementwise_bytes`` long, reads and writes counted."""
    elementwise_bytes: int
    from_host: Reading
    """Of a copy of ``host_bytes`` from pinned memory of the host to the GPU."""
    host_bytes: int

    def fits(self, *, gpu: str, driver: str | None, torch: str, host: str) -> bool:
        """Whether it was measured on this very GPU model, driver, torch and host."""
        return (self.gpu, self.driver, self.torch, self.host) == (gpu, driver, torch, host)

    def warnings(self) -> list[str]:
        """What of it repeated badly: a GPU that is shared or that changed its clock, or a busy host."""
        named: dict[str, Reading] = {
            "launches": self.forward_launch,
            "matrix products": self.products[0].reading,
            "element-wise kernels": self.elementwise,
            "copies from the host": self.from_host,
        }
        noisy = [(name, reading.spread) for name, reading in named.items() if reading.spread > NOISY]
        return [f"{name} varied by {spread:.0%} between repeats" for name, spread in noisy]

    def teach(self, speeds: Speeds, gpu: Gpu) -> Speeds:
        """``speeds`` after this: each belief weighed with what was measured of it. ``gpu``: whose attention kernels will run.

        What a step reaches of each is from reports/prediction, as are the factors to which it held there.
        """
        largest = max(self.products, key=lambda product: product.flops)
        said = {
            "forward_launch_seconds": (self.forward_launch.seconds, 1.3),
            "backward_launch_seconds": (self.backward_launch.seconds, 1.6),
            "small_kernel_seconds": (SMALL_IN_STEP * self.small_kernel.seconds, 1.25),
            "product_share": (STEP_PRODUCTS * largest.flops / largest.reading.seconds / (speeds.tflops * 1e12), 1.12),
            "bandwidth_share": (
                STEP_BANDWIDTH * self.elementwise_bytes / self.elementwise.seconds / (speeds.gb_per_s * 1e9),
                1.12,
            ),
            "host_copy_gb_per_s": (self.host_bytes / self.from_host.seconds / 1e9, 1.15),
        }
        kernel = "flash" if gpu.flash_attention else "efficient"
        attended = [each for each in self.attention if each.kernel == kernel]
        if attended:
            longest = max(attended, key=lambda each: each.tokens)
            said["attention_share"] = longest.flops / longest.reading.seconds / (speeds.tflops * 1e12), 1.3
        seen = {
            name: getattr(speeds, name).seen(value, factor, f"measured on {self.gpu}, {self.host}, torch {self.torch}")
            for name, (value, factor) in said.items()
        }
        return speeds.replace(**seen)


def processor_name() -> str:
    """Of the host, as ``/proc/cpuinfo`` has it; what Python knows elsewhere."""
    with suppress(OSError):
        for line in open("/proc/cpuinfo", encoding="utf-8", errors="replace"):  # noqa: SIM115 - read once
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return processor()


def known_machine(stack: Stack) -> Machine | None:
    """What was measured before on this GPU, driver, torch and host; a damaged file, or one of others, counts as none."""
    path = _path(stack)
    try:
        found = Machine.read(read_json(path), source=str(path)) if path.is_file() else None
    except BudgetftError:
        return None
    known = {"gpu": stack.gpu, "driver": stack.driver, "torch": stack.torch, "host": processor_name()}
    return found if found is not None and found.fits(**known) else None


def keep_machine(machine: Machine, stack: Stack) -> None:
    """Store it for next time; a cache that cannot be written is no reason to fail."""
    with suppress(BudgetftError):
        write_text_atomically(_path(stack), machine.model_dump_json(indent=1) + "\n")


def measure_machine(stack: Stack, gpu: Gpu, *, seconds: float = LOOK_SECONDS) -> Machine:
    """Measure in a process of its own, whose kernels and memory are gone when it ends, and keep what was found.

    Raises ``BudgetftError`` when that process fails or takes longer than ``seconds``.
    """
    environment = {**os.environ, **pinned(os.environ)}
    asked = {"stack": stack.model_dump(mode="json"), "gpu": gpu.model_dump(mode="json")}
    command = [sys.executable, "-m", "budgetft.predict.look", json.dumps(asked)]
    try:
        ended = subprocess.run(command, capture_output=True, text=True, timeout=seconds, env=environment)
    except subprocess.TimeoutExpired:
        raise BudgetftError(f"measuring the GPU and its host took more than {seconds:.0f} s") from None
    if ended.returncode:
        last = (ended.stderr.strip().splitlines() or ["no message"])[-1]
        raise BudgetftError(f"measuring the GPU and its host failed: {last[:300]}")
    machine = Machine.read_text(ended.stdout.strip().splitlines()[-1], source="the measuring process")
    keep_machine(machine, stack)
    return machine


def speeds_here(speeds: Speeds, gpu: Gpu, *, kernels_of: Gpu) -> Speeds:
    """``speeds`` of ``gpu``, and where that very GPU is at hand and was measured before, with what was found.

    ``kernels_of``: the GPU whose attention kernels run, which is another where ``gpu`` stands in for it.
    """
    host_gpu = first_visible(os.environ)
    if host_gpu is None or not gpu.is_gpu(host_gpu.name, memory_of(host_gpu)):
        return speeds
    machine = known_machine(Stack.here(host_gpu.name, driver_version()))
    return speeds if machine is None else machine.teach(speeds, kernels_of)


def _path(stack: Stack) -> Path:
    facts = [stack.gpu, stack.driver, stack.torch, processor_name()]
    return cache_folder() / "machines" / f"{hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:24]}.json"
