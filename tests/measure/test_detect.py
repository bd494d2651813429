"""The GPU at hand as a profile. The figures themselves need a GPU; everything around them does not."""

import math

import pytest
import torch

from budgetft.cli import main
from budgetft.errors import UsageError
from budgetft.gpu import load_gpu
from budgetft.measure.detect import (
    COPY_BYTES,
    MATMUL_SIZE,
    Detected,
    copy_bytes_per_second,
    detect,
    matmul_flops,
    matmul_size,
    profile_of,
    slug,
    write_profile,
)
from budgetft.measure.kernels import REPEATS, on_device, reading
from budgetft.units import GIB, MIB

CPU = torch.device("cpu")
V100 = Detected(
    device_name='Tesla "V100"-SXM2-16GB',
    driver="580.82",
    torch="2.10.0+cu128",
    memory_bytes=16160 * MIB,
    capability=(7, 0),
    context_bytes=305 * MIB + 1,
    copy_bytes_per_second=812.34e9,
    matmul_flops={"fp16": 94.567e12, "fp32": 14.1e12},
    flash_attention=False,
    efficient_attention=True,
)


def test_a_written_profile_reads_back_as_it_was_measured(tmp_path):
    gpu = profile_of(V100)
    path = tmp_path / f"{gpu.name}.toml"
    write_profile(gpu, path)
    assert load_gpu(str(path)) == gpu
    assert (gpu.fp16_tflops, gpu.memory_bandwidth_gb_per_s, gpu.context_mib, gpu.memory_mib) == (94.57, 812.3, 306, 16160)
    assert gpu.is_gpu(V100.device_name, V100.memory_bytes)
    assert gpu.base_precision == "fp16"


def test_every_figure_says_that_it_was_measured_and_on_what():
    gpu = profile_of(V100)
    known = {name for name in type(gpu).model_fields if getattr(gpu, name) is not None} - {"name", "title", "seldom", "sources"}
    assert known == set(gpu.sources)
    assert all(source.startswith("measured: torch 2.10.0+cu128, driver 580.82") for source in gpu.sources.values())
    assert "fp32 14.1 TFLOP/s" in gpu.sources["fp16_tflops"]


def test_a_gpu_with_bf16_has_it_natively():
    assert profile_of(V100.replace(matmul_flops={"fp16": 9e14, "bf16": 9e14, "fp32": 5e13})).native_bf16


def test_a_profile_is_never_replaced(tmp_path):
    (tmp_path / "mine.toml").write_text("precious")
    with pytest.raises(UsageError, match="exists"):
        write_profile(profile_of(V100), tmp_path / "mine.toml")
    assert (tmp_path / "mine.toml").read_text() == "precious"
    with pytest.raises(UsageError, match="toml"):
        write_profile(profile_of(V100), tmp_path / "mine.txt")


@pytest.mark.parametrize(
    ("device_name", "expected"),
    [("NVIDIA GeForce RTX 3090", "geforce-rtx-3090"), ("Tesla V100-SXM2-16GB", "tesla-v100-sxm2-16gb"), ("NVIDIA", "gpu")],
)
def test_a_profile_is_named_after_the_gpu(device_name, expected):
    assert slug(device_name) == expected


def test_the_matrices_leave_room_on_a_small_gpu():
    assert matmul_size(80 * GIB) == MATMUL_SIZE
    small = matmul_size(2 * GIB)
    assert small % 256 == 0
    assert 3 * small**2 * 4 <= 2 * GIB // 8
    assert 2 * min(COPY_BYTES, 2 * GIB // 16) < 2 * GIB // 4


def test_rates_are_operations_and_bytes_over_the_middle_time():
    flops = matmul_flops(CPU, torch.float32, 256)
    assert 1e7 < flops < 1e14
    assert math.isfinite(copy_bytes_per_second(CPU, MIB))


def test_the_middle_of_the_runs_counts_and_the_first_does_not():
    runs = []

    def act():
        runs.append(len(runs))
        torch.ones(1).sum()

    assert on_device(act, CPU, 3).seconds > 0
    assert runs == list(range(1 + REPEATS))
    assert reading([1.0, 9.0, 2.0]).seconds == 2.0


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_command_says_where_to_look(capsys, tmp_path):
    assert main(["gpus", "--detect", "--out", str(tmp_path / "mine.toml")]) == 2
    assert "budgetft doctor" in capsys.readouterr().err
    assert not (tmp_path / "mine.toml").exists()


def test_a_name_and_detect_exclude_each_other(capsys):
    assert main(["gpus", "v100-16g", "--detect"]) == 2
    assert "--detect" in capsys.readouterr().err


@pytest.mark.gpu
def test_a_gpu_is_what_its_driver_says_and_its_rates_are_plausible():
    found = detect()
    assert found.memory_bytes > GIB
    assert 50 * MIB < found.context_bytes < 2 * GIB
    assert 2e10 < found.copy_bytes_per_second < 2e13
    assert found.matmul_flops["fp16"] > found.matmul_flops["fp32"] / 2
