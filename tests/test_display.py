"""Room for a display: asked for, found by the driver, or Windows' own."""

from types import SimpleNamespace

import pynvml
import pytest

from budgetft import display, host_gpus
from budgetft.cli import main, options
from budgetft.display import DESKTOP_BYTES, WINDOWS_BYTES, display_reserve, is_wsl
from budgetft.errors import UsageError
from budgetft.gpu import load_gpu
from budgetft.plan import Target
from budgetft.units import GIB, MIB

RTX_3060 = load_gpu("rtx3060-12g")
T4 = load_gpu("t4")


@pytest.fixture
def here(monkeypatch):
    """Puts a GPU into the machine: its driver's name and memory, and whether a display is on it (None: it does not say)."""

    def put(name="NVIDIA GeForce RTX 3060", mib=12288, active: bool | None = True, release="6.8.0-45-generic"):
        def display_active(handle):
            if active is None:
                raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
            return int(active)

        def no_mig(handle):
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)

        fake = {
            "nvmlInit": lambda: None,
            "nvmlDeviceGetCount": lambda: 1,
            "nvmlDeviceGetHandleByIndex": lambda index: index,
            "nvmlDeviceGetUUID": lambda handle: "GPU-1",
            "nvmlDeviceGetName": lambda handle: name,
            "nvmlDeviceGetNumGpuCores": lambda handle: 1,
            "nvmlDeviceGetMaxClockInfo": lambda handle, kind: 1,
            "nvmlDeviceGetCudaComputeCapability": lambda handle: (8, 6),
            "nvmlDeviceGetMigMode": no_mig,
            "nvmlDeviceGetMemoryInfo": lambda handle: SimpleNamespace(total=mib * MIB),
            "nvmlDeviceGetDisplayActive": display_active,
        }
        for attribute, value in fake.items():
            monkeypatch.setattr(pynvml, attribute, value)
        monkeypatch.setattr(display.platform, "release", lambda: release)

    return put


@pytest.fixture
def nothing_here(monkeypatch):
    monkeypatch.setattr(host_gpus, "list_gpus", list)


def test_a_display_on_the_gpu_at_hand_is_found(here):
    here()
    reserve = display_reserve(RTX_3060, None, {})
    assert reserve is not None
    assert reserve.memory_bytes == DESKTOP_BYTES
    assert "--no-display" in reserve.describe()
    assert display_reserve(RTX_3060, False, {}) is None


@pytest.mark.parametrize("active", [False, None])
def test_without_a_display_or_a_word_of_it_nothing_is_kept(here, active):
    here(active=active)
    assert display_reserve(RTX_3060, None, {}) is None
    assert display_reserve(RTX_3060, True, {}) is not None


def test_the_display_of_another_gpu_than_the_planned_one_is_none_of_its(here):
    here()
    assert display_reserve(T4, None, {}) is None
    assert display_reserve(RTX_3060, None, {"CUDA_VISIBLE_DEVICES": ""}) is None


def test_under_wsl_windows_keeps_more_whatever_the_driver_says(here):
    here(active=False, release="5.15.167.4-microsoft-standard-WSL2")
    reserve = display_reserve(RTX_3060, None, {})
    assert reserve is not None
    assert (reserve.memory_bytes, "Windows" in reserve.why) == (WINDOWS_BYTES, True)
    assert display_reserve(T4, None, {}) is None, "it is not in this machine"
    assert display_reserve(RTX_3060, False, {}) is None


@pytest.mark.parametrize(
    ("release", "expected"),
    [("5.15.167.4-microsoft-standard-WSL2", True), ("4.4.0-19041-Microsoft", True), ("6.8.0-45-generic", False)],
)
def test_wsl_is_known_by_its_kernel(release, expected):
    assert is_wsl(release) is expected


def test_the_default_budget_leaves_the_room_and_a_typed_one_does_not(nothing_here, capsys):
    default = RTX_3060.budget_bytes
    assert options.budget_and_display(None, RTX_3060, True) == (default - DESKTOP_BYTES, DESKTOP_BYTES)
    assert "kept for the display" in capsys.readouterr().err
    assert options.budget_and_display("11GiB", RTX_3060, True) == (11 * GIB, 0)
    assert options.budget_and_display(None, RTX_3060, None) == (default, 0)
    assert capsys.readouterr().err == ""


def test_a_small_gpu_keeps_at_least_half_of_its_budget(nothing_here):
    small = RTX_3060.replace(memory_mib=1500)
    budget, kept = options.budget_and_display(None, small, True)
    assert budget >= kept > 0
    assert budget + kept == small.budget_bytes


def test_the_gpu_in_the_machine_is_taken_when_none_is_named(here, capsys):
    here()
    assert options.gpu_of(None).name == "rtx3060-12g"
    assert "NVIDIA GeForce RTX 3060 12 GB" in capsys.readouterr().err
    here(name="NVIDIA RTX 3060 Unheard", mib=9000)
    assert options.gpu_of(None).memory_mib == 9000


@pytest.mark.parametrize("command", [["plan"], ["estimate"], ["bench"]])
def test_without_any_gpu_one_sentence_says_how_to_name_one(nothing_here, command, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main([*command, "--image", "448x448"]) == 2
    said = capsys.readouterr().err
    assert "no NVIDIA GPU is in this machine" in said
    assert '--gpu "RTX 3060"' in said
    assert not list(tmp_path.glob("*.json"))


def test_memory_that_is_the_cpus_too_is_no_traceback(here, monkeypatch):
    here()

    def unsupported(handle):
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)

    monkeypatch.setattr(pynvml, "nvmlDeviceGetMemoryInfo", unsupported)
    assert display_reserve(RTX_3060, None, {}) is None
    with pytest.raises(UsageError, match="no NVIDIA GPU"):
        options.gpu_of(None)


def test_a_plan_keeps_what_the_display_has_and_older_plans_have_none():
    target = Target(name=T4.name, budget_bytes=GIB, display_bytes=DESKTOP_BYTES, profile=T4)
    assert Target.read_text(target.model_dump_json(), source="plan") == target
    without = target.replace(display_bytes=0)
    assert "display_bytes" not in without.model_dump()
    assert Target.read(without.model_dump(mode="json"), source="plan") == without
