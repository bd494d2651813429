"""Seconds of single kernels, the host's part left out."""

import statistics
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from pydantic import Field

from budgetft.value import Value

if TYPE_CHECKING:
    import torch

REPEATS = 7


class Reading(Value):
    """Seconds of one thing: the median of some repeats, and half their interquartile range as a share of it."""

    seconds: float = Field(gt=0)
    spread: float = Field(ge=0)


class Product(Value):
    """One matrix product (rows x depth) times (depth x columns), 16-bit with fp32 accumulation."""

    rows: int
    columns: int
    depth: int
    reading: Reading

    @property
    def flops(self) -> float:
        return 2.0 * self.rows * self.columns * self.depth

    @property
    def memory_bytes(self) -> float:
        return 2.0 * (self.rows * self.columns + self.rows * self.depth + self.columns * self.depth)


def reading(seconds: list[float]) -> Reading:
    """The median of ``seconds`` and half their interquartile range as a share of it."""
    middle = statistics.median(seconds)
    low, _, high = statistics.quantiles(seconds, n=4, method="inclusive")
    return Reading(seconds=middle, spread=(high - low) / 2 / middle)


def on_device(act: Callable[[], object], device: "torch.device", inner: int) -> Reading:
    """Seconds of ``act`` on the device: on a GPU of ``inner`` calls captured in a CUDA graph, without the host's part."""
    import torch

    if device.type != "cuda":
        return _on_host(act)
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        for _ in range(3):
            act()
    torch.cuda.current_stream(device).wait_stream(stream)
    torch.cuda.synchronize(device)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(inner):
            act()
    graph.replay()
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    seconds = []
    for _ in range(REPEATS):
        start.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize(device)
        seconds.append(start.elapsed_time(end) / 1000 / inner)
    return reading(seconds)


def _on_host(act: Callable[[], object]) -> Reading:
    act()
    seconds = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        act()
        seconds.append(max(time.perf_counter() - started, 1e-9))
    return reading(seconds)


def product(rows: int, columns: int, depth: int, device: "torch.device", dtype: "torch.dtype") -> Product:
    """The product of a (rows, depth) and a (columns, depth) matrix, the second transposed, as in a linear layer."""
    import torch

    a = torch.randn(rows, depth, device=device).to(dtype)
    b = torch.randn(columns, depth, device=device).to(dtype)
    out = torch.empty(rows, columns, device=device, dtype=dtype)
    inner = max(3, min(60, round(2e13 / (2 * rows * columns * depth))))
    measured = on_device(lambda: torch.mm(a, b.t(), out=out), device, inner)
    return Product(rows=rows, columns=columns, depth=depth, reading=measured)


def copy(size_bytes: int, device: "torch.device") -> Reading:
    """A copy of ``size_bytes`` within the device's memory: each is read and written."""
    import torch

    source = torch.zeros(size_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return on_device(lambda: target.copy_(source), device, 5)
