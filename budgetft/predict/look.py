"""Measuring a GPU and its host, in a process of its own: ``python -m budgetft.predict.look REQUEST``.

Launches are timed by the very step on a model so small that the GPU waits for the host; kernels by replays of a CUDA graph,
in which the host takes no part.
"""

import json
import sys
import time
from typing import TYPE_CHECKING, Any

from budgetft.gpu import Gpu
from budgetft.measure.kernels import REPEATS, Reading, on_device, product, reading
from budgetft.outcome import Stack
from budgetft.predict.machine import Attended, Machine, processor_name

if TYPE_CHECKING:
    import torch

PRODUCTS = ((8192, 8192, 4096), (4096, 2048, 2048), (512, 2048, 2048), (512, 11008, 2048), (4096, 16, 2048))
"""Rows, columns and depth of the matrix products that are timed: large, of a layer, with few rows, and of an adapter."""
ATTENTION = ((1024, 16, 128), (4096, 16, 128))
"""Tokens, heads and head size of the causal attentions that are timed, forward and backward."""
ELEMENTWISE_BYTES = 2**28
HOST_BYTES = 2**28
SMALL_KERNELS = 200
LAUNCH_REPEATS = 9
LAUNCH_MODEL = "tiny-qwen2.5-vl"


def read_machine(device_name: str, driver: str | None, *, dtype: "torch.dtype", gpu: Any = None) -> Machine:
    """Measure CUDA device 0 of this process and its host: some ten seconds and about a gibibyte of its memory.

    ``dtype``: fp16 or bf16, what the step computes in there. ``gpu``: a profile, whose attention kernels are timed.
    """
    import torch

    device = torch.device("cuda", 0)
    forward, backward = _launches(device)
    return Machine(
        gpu=device_name,
        driver=driver,
        torch=torch.__version__,
        host=processor_name(),
        multiprocessors=int(torch.cuda.get_device_properties(device).multi_processor_count),
        forward_launch=forward,
        backward_launch=backward,
        small_kernel=_small_kernel(device),
        products=tuple(product(*sizes, device, dtype) for sizes in PRODUCTS),
        attention=tuple(each for sizes in ATTENTION for each in _attention(*sizes, device, dtype, gpu)),
        elementwise=_elementwise(device),
        elementwise_bytes=ELEMENTWISE_BYTES,
        from_host=_from_host(device),
        host_bytes=HOST_BYTES,
    )


def _launches(device: "torch.device") -> tuple[Reading, Reading]:
    """Seconds a kernel in forward and in backward, by the step on a model that is too small to keep the GPU busy."""
    import torch

    from budgetft.contract import Contract
    from budgetft.data.collate import synthetic_batch
    from budgetft.knobs import Knobs
    from budgetft.model import load_model
    from budgetft.predict.trace import trace_step
    from budgetft.step.build import build_model
    from budgetft.step.step import Step
    from budgetft.workload import Shape

    model, contract = load_model(LAUNCH_MODEL), Contract(rank=4, alpha=8, effective_batch=2)
    knobs = Knobs(
        micro_batch=1, grad_accum=2, checkpointed_layers=0, loss="chunked", vision="frozen", attention="efficient",
        lora="lean", pointwise="fused", base_precision="fp16",
    )  # fmt: skip
    edge = 2 * model.pixel_step
    shapes = [Shape(images=((edge, edge),), text_tokens=24, supervised_tokens=8)]
    step = Step(build_model(model, contract, base_precision="fp16", device=device), contract, knobs, device=device)
    inputs = step.prepare(synthetic_batch(shapes, model, seed=0, vision="frozen"))
    marks: dict[str, float] = {}

    def mark(phase: str) -> None:
        marks.setdefault(phase, time.perf_counter())

    step.on_phase = mark
    times: list[tuple[float, float]] = []
    for _ in range(3 + LAUNCH_REPEATS):
        torch.cuda.synchronize()
        marks.clear()
        started = time.perf_counter()
        step.micro(inputs, total_supervised=16)
        ended = time.perf_counter()
        times.append((marks["backward"] - started, ended - marks["backward"]))
    counts = [0.0, 0.0]
    for segment in trace_step(model, contract, knobs, shapes, gpu=None).segments:
        counts[segment.label[0] == "backward"] += segment.kernels
    forward, backward = zip(*times[3:], strict=True)
    return reading([each / counts[0] for each in forward]), reading([each / counts[1] for each in backward])


def _attention(tokens: int, heads: int, size: int, device: "torch.device", dtype: "torch.dtype", gpu: Any) -> list[Attended]:
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    found = []
    kernels = {"flash": SDPBackend.FLASH_ATTENTION, "efficient": SDPBackend.EFFICIENT_ATTENTION}
    for kernel, backend in kernels.items():
        if gpu is not None and not getattr(gpu, f"{kernel}_attention"):
            continue
        query, key, value = (
            torch.randn(1, heads, tokens, size, device=device, dtype=dtype, requires_grad=True) for _ in range(3)
        )

        def act(tensors: Any = (query, key, value), backend: Any = backend) -> None:
            with sdpa_kernel(backend):
                out = torch.nn.functional.scaled_dot_product_attention(*tensors, is_causal=True)
            torch.autograd.grad(out, tensors, grad_outputs=out.detach())

        try:
            measured = on_device(act, device, 5)
        except RuntimeError:  # "No available kernel", or no kernel image
            torch.cuda.synchronize(device)
            continue
        found.append(Attended(tokens=tokens, heads=heads, head_size=size, kernel=kernel, reading=measured))
    return found


def _small_kernel(device: "torch.device") -> Reading:
    import torch

    number = torch.zeros(16, device=device)
    return on_device(lambda: number.add_(1.0), device, SMALL_KERNELS)


def _elementwise(device: "torch.device") -> Reading:
    import torch

    count = ELEMENTWISE_BYTES // 3 // 2
    a, b = (torch.ones(count, device=device, dtype=torch.float16) for _ in range(2))
    out = torch.empty_like(a)
    return on_device(lambda: torch.add(a, b, out=out), device, 5)


def _from_host(device: "torch.device") -> Reading:
    import torch

    source = torch.ones(HOST_BYTES, dtype=torch.uint8, pin_memory=True)
    target = torch.empty(HOST_BYTES, dtype=torch.uint8, device=device)
    seconds = []
    for number in range(REPEATS + 1):
        torch.cuda.synchronize(device)
        started = time.perf_counter()
        target.copy_(source, non_blocking=True)
        torch.cuda.synchronize(device)
        if number:
            seconds.append(time.perf_counter() - started)
    return reading(seconds)


def main() -> None:
    """Entry point of the measuring process: one line of JSON on stdout."""
    import torch

    asked = json.loads(sys.argv[1])
    stack, gpu = Stack.read(asked["stack"], source="request"), Gpu.read(asked["gpu"], source="request")
    dtype = torch.bfloat16 if gpu.native_bf16 else torch.float16
    print(read_machine(stack.gpu, stack.driver, dtype=dtype, gpu=gpu).replace(torch=stack.torch).model_dump_json())


if __name__ == "__main__":
    main()
