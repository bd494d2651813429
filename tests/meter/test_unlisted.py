"""Where the driver keeps no list of processes (WSL, some containers), others who come and go are not taken for one's own."""

from types import SimpleNamespace

import pynvml
import pytest
import torch

from budgetft.meter.cuda import SLACK_BYTES, CudaMeter
from budgetft.meter.outside import READINGS
from budgetft.units import GIB, MIB

CONTEXT = 500 * MIB


@pytest.fixture
def gpu(monkeypatch):
    """A 16 GiB GPU of which a desktop holds 1 GiB; ``reserved`` is what torch's allocator has, ``others`` all others."""
    state = SimpleNamespace(reserved=0, others=GIB, context=0, fraction=None, listed=None)

    def make_context(*args, **kwargs):
        state.context, state.reserved = CONTEXT, 2 * MIB

    def processes(handle):
        return [] if state.listed is None else [SimpleNamespace(pid=state.listed, usedGpuMemory=state.context + state.reserved)]

    uuid = "GPU-1"
    found = SimpleNamespace(uuid=uuid, handle="handle", name="a GPU")
    monkeypatch.setattr("budgetft.meter.cuda.list_gpus", lambda: [found])
    monkeypatch.setattr("budgetft.meter.cuda.with_slices", lambda gpus: gpus)
    monkeypatch.setattr("budgetft.meter.cuda.gpu_with", lambda gpus, wanted: found)
    monkeypatch.setattr(
        pynvml, "nvmlDeviceGetMemoryInfo", lambda handle: SimpleNamespace(used=state.others + state.context + state.reserved)
    )
    monkeypatch.setattr(pynvml, "nvmlDeviceGetComputeRunningProcesses", processes)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetGraphicsRunningProcesses", lambda handle: [])
    monkeypatch.setattr(pynvml, "nvmlSystemGetProcessName", lambda pid: "python")
    properties = SimpleNamespace(uuid=uuid, total_memory=16 * GIB)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: state.reserved)
    peaks = {"allocated_bytes.all.peak": 0, "reserved_bytes.all.peak": 0}
    monkeypatch.setattr(torch.cuda, "memory_stats", lambda: peaks)
    monkeypatch.setattr(
        torch.cuda, "set_per_process_memory_fraction", lambda fraction, device: setattr(state, "fraction", fraction)
    )
    monkeypatch.setattr(torch, "zeros", make_context)
    return state


def test_what_is_there_before_is_not_ones_own(gpu):
    meter = CudaMeter()
    assert meter.process_bytes() == CONTEXT + 2 * MIB
    assert meter.non_torch_bytes() == CONTEXT


def test_a_other_process_that_comes_does_not_count_and_one_that_goes_hides_nothing(gpu):
    meter = CudaMeter()
    cap = meter.set_cap(10 * GIB)
    assert cap == 10 * GIB - CONTEXT - SLACK_BYTES
    gpu.reserved = 6 * GIB
    for others in (4 * GIB, 0):
        gpu.others = others
        assert meter.process_bytes() == CONTEXT + 6 * GIB


def test_kernels_that_are_loaded_after_the_cap_was_set_count_too(gpu):
    meter = CudaMeter()
    meter.set_cap(10 * GIB)
    gpu.reserved = 6 * GIB
    gpu.context += 40 * MIB
    assert meter.process_bytes() == CONTEXT + 40 * MIB + 6 * GIB
    gpu.context += 30 * MIB
    assert [meter.process_bytes() for _ in range(READINGS)][-1] == CONTEXT + 70 * MIB + 6 * GIB
    assert meter.read().non_torch_bytes == CONTEXT + 70 * MIB


def test_kernels_count_beside_a_other_process_that_came_and_went(gpu):
    meter = CudaMeter()
    meter.set_cap(10 * GIB)
    held = []
    for others, context in ((4 * GIB, 20 * MIB), (5 * GIB, 20 * MIB), (GIB, 20 * MIB), (0, 20 * MIB), (0, 50 * MIB)):
        gpu.others, gpu.context = others, CONTEXT + context
        held.append([meter.process_bytes() - gpu.reserved - CONTEXT for _ in range(READINGS)][-1] // MIB)
    assert held == [0, 0, 20, 20, 50], "what was loaded while it was there counts when it has gone"


def test_a_other_process_that_comes_in_two_halves_between_readings_does_not_count(gpu):
    meter = CudaMeter()
    meter.set_cap(10 * GIB)
    meter.process_bytes()
    for others in (GIB + 200 * MIB, GIB + 500 * MIB, GIB + 500 * MIB, GIB + 500 * MIB, GIB + 510 * MIB):
        gpu.others = others
        assert meter.process_bytes() == CONTEXT + gpu.reserved


def test_a_other_process_that_takes_and_gives_back_at_every_reading_does_not_add_up(gpu):
    meter = CudaMeter()
    meter.set_cap(10 * GIB)
    meter.process_bytes()
    for number in range(40):
        gpu.others = GIB + (number % 2) * 60 * MIB
        assert meter.process_bytes() == CONTEXT + gpu.reserved


def test_a_other_process_that_slowly_takes_more_counts_as_ones_own_and_never_as_less(gpu):
    """The bound is from above: who took it cannot be told."""
    meter = CudaMeter()
    meter.set_cap(10 * GIB)
    for _ in range(10):
        gpu.others += 10 * MIB
        assert meter.process_bytes() >= CONTEXT + gpu.reserved
    assert [meter.process_bytes() for _ in range(READINGS)][-1] == CONTEXT + gpu.reserved + 100 * MIB


def test_kernels_that_were_loaded_count_from_the_next_cap_on(gpu):
    meter = CudaMeter()
    gpu.context += 100 * MIB
    meter.set_cap(10 * GIB)
    assert meter.process_bytes() == CONTEXT + 100 * MIB + 2 * MIB


def test_the_driver_s_list_goes_before_all_else(gpu, monkeypatch):
    gpu.listed = 77
    monkeypatch.setattr("os.getpid", lambda: 77)
    meter = CudaMeter()
    gpu.others, gpu.context, gpu.reserved = 9 * GIB, CONTEXT + 30 * MIB, GIB
    assert meter.process_bytes() == CONTEXT + 30 * MIB + GIB
    assert meter.other_processes() == []
