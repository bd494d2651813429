"""Which GPU of a host a process takes: as CUDA and its variables have it, not as NVML counts."""

import ctypes
import platform
import sys
from types import SimpleNamespace

import pynvml
import pytest

pytest.importorskip("optuna", reason="optuna is not installed: a search is a study of it")

from budgetft import host_gpus
from budgetft.errors import UsageError
from budgetft.host_gpus import HostGpu, first_visible, gpu_with, list_gpus, pinned, takes_expandable_segments, visible_gpus
from budgetft.knobs import Knobs
from budgetft.measure.child import current_stack
from budgetft.measure.probe import Prober
from budgetft.search.place import find_place
from budgetft.search.run import make_job

SLOW = HostGpu(uuid="GPU-aa11", name="Tesla P4", speed=2e6)
FAST = HostGpu(uuid="GPU-ab22", name="Tesla V100-SXM2-16GB", speed=8e6)
SAME_KIND = HostGpu(uuid="GPU-cd33", name="Tesla V100-SXM2-16GB", speed=8e6)
HOST = (SLOW, FAST, SAME_KIND)
BUS = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}


def chosen(named=None, host=HOST, **more):
    environment = more if named is None else {"CUDA_VISIBLE_DEVICES": named, **more}
    return visible_gpus(host, environment)


def test_the_bus_orders_gpus_of_one_kind_and_the_fastest_of_several_kinds_is_first():
    assert chosen(host=(FAST, SAME_KIND)) == [FAST, SAME_KIND]
    assert chosen() == [FAST, SLOW, SAME_KIND]
    assert chosen(**BUS) == [SLOW, FAST, SAME_KIND]


@pytest.mark.parametrize(
    ("named", "expected"),
    [
        ("1", [FAST]),
        ("2, 0", [SAME_KIND, SLOW]),
        ("GPU-ab22", [FAST]),
        ("GPU-c,GPU-aa", [SAME_KIND, SLOW]),
        ("GPU-ab,0", [FAST, SLOW]),
        ("1gpu,+2", [FAST, SAME_KIND]),
        ("", []),
        ("-1", []),
        ("NoDevFiles", []),
        ("7,1", []),
        ("1,7,0", [FAST]),
        ("GPU-a", []),
        ("MIG-x", []),
        ("1,1", []),
    ],
)
def test_the_variable_is_read_as_cuda_reads_it(named, expected):
    assert chosen(named, **BUS) == expected


def test_of_a_gpu_in_slices_a_process_gets_one_slice():
    first, second = (HostGpu(uuid=f"MIG-{name}", name="a slice", speed=0) for name in ("55", "66"))
    host = (HostGpu(uuid="GPU-ee44", name="Big", speed=1, slices=(first, second)),)
    assert chosen(host=host) == chosen("0", host=host) == [first]
    assert chosen("MIG-66", host=host) == [second]
    assert gpu_with(host, "66") == gpu_with(host, "MIG-66") == second


def test_a_gpu_is_found_by_what_torch_calls_it():
    assert gpu_with(HOST, "ab22") == gpu_with(HOST, "GPU-ab22") == FAST
    assert gpu_with(HOST, "ff99") is None


class Driver:
    """NVML of a host with ``HOST``; handles are their positions on the bus."""

    def __init__(self, host=HOST, bytes_each=(8, 16, 32)):
        self.host, self.bytes_each = host, bytes_each

    def nvmlInit(self):
        pass

    def nvmlSystemGetDriverVersion(self):
        return "570.1"

    def nvmlDeviceGetCount(self):
        return len(self.host)

    def nvmlDeviceGetHandleByIndex(self, index):
        return index

    def nvmlDeviceGetUUID(self, handle):
        return self.host[handle].uuid

    def nvmlDeviceGetName(self, handle):
        return self.host[handle].name.encode()

    def nvmlDeviceGetNumGpuCores(self, handle):
        return int(self.host[handle].speed)

    def nvmlDeviceGetMaxClockInfo(self, handle, kind):
        return 1

    def nvmlDeviceGetMigMode(self, handle):
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)

    def nvmlDeviceGetMemoryInfo(self, handle):
        info = pynvml.c_nvmlMemory_t()
        info.total = self.bytes_each[handle] * 2**30
        return info


@pytest.fixture
def driver(monkeypatch):
    """A made-up driver in NVML's place."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("CUDA_DEVICE_ORDER", raising=False)

    def install(made):
        for name in dir(type(made)):
            if name.startswith("nvml"):
                monkeypatch.setattr(pynvml, name, getattr(made, name))

    return install


def test_the_stack_of_a_probe_names_the_gpu_that_the_variable_chooses(driver, monkeypatch):
    driver(Driver())
    assert current_stack("cuda").gpu == FAST.name
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-aa")
    stack = current_stack("cuda")
    assert (stack.gpu, stack.driver) == (SLOW.name, "570.1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(UsageError, match="no CUDA GPU is visible"):
        current_stack("cuda")


def test_what_a_plan_is_probed_on_is_judged_by_the_visible_gpu(driver, monkeypatch, make_request):
    driver(Driver())
    request = make_request("v100-16g")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-ab22")
    place = find_place(request)
    assert place is not None
    assert place.evidence == "measured"
    assert place.statement.startswith(f"measured on {FAST.name}")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-cd33")
    place = find_place(request)
    assert place is not None
    assert place.evidence == "emulated"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-aa11")
    with pytest.raises(UsageError, match=r"Tesla P4 has 8\.00 GiB: too little"):
        find_place(request)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert find_place(request) is None


@pytest.fixture
def make_request():
    """A request for a plan of a bundled model, and nothing else said."""
    from budgetft.contract import Contract
    from budgetft.gpu import load_gpu
    from budgetft.model import load_model
    from budgetft.search.run import PlanRequest
    from budgetft.workload import Shape, Workload

    def make(name):
        gpu, shape = load_gpu(name), Shape(images=(), text_tokens=8, supervised_tokens=4)
        model, contract = load_model("tiny-qwen2.5-vl"), Contract(rank=4, effective_batch=1)
        return PlanRequest(
            gpu=gpu, budget_bytes=gpu.budget_bytes, model=model, contract=contract,
            workload_under=lambda contract: Workload.uniform(shape),
        )  # fmt: skip

    return make


def test_probes_are_pinned_to_the_gpu_that_the_parent_judged_by(driver):
    driver(Driver())
    for environment in ({}, {"CUDA_VISIBLE_DEVICES": "2,0", **BUS}):
        judged = first_visible(environment)
        assert judged is not None
        child = {**environment, **pinned(environment)}
        assert child["CUDA_VISIBLE_DEVICES"] == judged.uuid
        assert first_visible(child) == judged
    assert pinned({"CUDA_VISIBLE_DEVICES": ""}) == {}


def test_a_probe_s_process_sees_that_gpu_first_and_on_the_cpu_what_the_parent_sees(driver, make_request):
    driver(Driver())
    request, child = (
        make_request("v100-16g"),
        "import os, sys; sys.exit('sees ' + os.environ.get('CUDA_VISIBLE_DEVICES', 'all'))",
    )
    job = make_job(request, request.contract, None)
    knobs = Knobs(micro_batch=1, grad_accum=1, checkpointed_layers=0)
    for device, seen in (("cuda", f"sees {FAST.uuid}"), ("cpu", "sees all")):
        with Prober(job.replace(device=device), stack=None, command=(sys.executable, "-c", child)) as prober:
            assert seen in prober.probe(knobs).detail


def test_on_a_host_of_one_gpu_or_none_nothing_is_pinned(driver, monkeypatch):
    driver(Driver((FAST,)))
    assert [gpu.name for gpu in list_gpus()] == [FAST.name]
    assert pinned({}) == {}

    def absent():
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(pynvml, "nvmlInit", absent)
    assert list_gpus() == []
    assert host_gpus.first_visible({}) is None
    assert pinned({}) == {}


class CudaDriver(SimpleNamespace):
    """libcuda with a GPU that has virtual memory management or not."""

    def cuInit(self, flags):
        return self.broken

    def cuDeviceGet(self, device, number):
        return 0

    def cuDeviceGetAttribute(self, found, attribute, device):
        found._obj.value = self.attributes.get(attribute, 0)
        return 0


@pytest.mark.parametrize(
    ("system", "driver", "taken"),
    [
        ("Linux", CudaDriver(broken=0, attributes={102: 1}), True),
        ("Linux", CudaDriver(broken=0, attributes={101: 1}), False),
        ("Linux", CudaDriver(broken=100, attributes={102: 1}), False),
        ("Windows", CudaDriver(broken=0, attributes={102: 1}), False),
        ("Linux", None, False),
    ],
)
def test_expandable_segments_are_taken_on_linux_where_the_driver_maps_memory(monkeypatch, system, driver, taken):
    def load(name):
        if driver is None:
            raise OSError(f"{name}: cannot open shared object file")
        return driver

    monkeypatch.setattr(platform, "system", lambda: system)
    monkeypatch.setattr(ctypes, "CDLL", load)
    assert takes_expandable_segments() is taken


@pytest.mark.parametrize("taken", [True, False])
def test_a_plan_takes_the_allocator_that_the_platform_has_and_says_when_it_is_the_default(
    driver, monkeypatch, make_request, taken
):
    driver(Driver())
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-ab22")
    monkeypatch.setattr("budgetft.search.place.takes_expandable_segments", lambda: taken)
    place = find_place(make_request("v100-16g"))
    assert place is not None
    assert place.allocator == ("expandable" if taken else "default")
    assert ("no expandable segments" in place.statement) is not taken
