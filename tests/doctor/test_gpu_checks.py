"""Torch builds, drivers and GPUs: what goes with what."""

import os
import subprocess
from pathlib import Path

import pytest
from patience import HANG_SECONDS

from budgetft.cli import main
from budgetft.doctor.builds import carries, choose_build, load_builds, numbers
from budgetft.doctor.causes import cause_of
from budgetft.doctor.children import Reply
from budgetft.doctor.gpu import (
    check_build,
    check_container,
    check_driver,
    check_kernels,
    check_sharing,
    needs_of,
    visible_gpu,
)
from budgetft.doctor.recipe import write_recipe
from budgetft.errors import BudgetftError
from budgetft.gpu import gpu_names, load_gpu
from budgetft.units import GIB

NEW_TORCH = {
    "version": "2.14.1+cu130",
    "cuda": "13.0",
    "architectures": ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"],
}
GPU = {
    "index": 0,
    "uuid": "GPU-1",
    "name": "Tesla V100-SXM2-16GB",
    "total_bytes": 16 * GIB,
    "used_bytes": 0,
    "capability": [7, 0],
    "processes": [],
    "ecc": False,
    "mig": None,
    "display": False,
    "compute_mode": 0,
}
STARTED = {"start": "Tesla V100-SXM2-16GB", "native_bf16": False}


@pytest.mark.parametrize(
    ("architectures", "capability", "expected"),
    [
        (["sm_70", "sm_80"], (7, 0), True),
        (["sm_75", "sm_80"], (7, 0), False),
        (["sm_80", "sm_86"], (8, 9), True),
        (["sm_60"], (6, 1), True),
        (["sm_90"], (12, 0), False),
        (["sm_50", "compute_90"], (12, 0), True),
        (["compute_90"], (8, 0), False),
        (["sm_90a"], (9, 0), True),
        (["sm_90a"], (9, 1), False),
        (["sm_100"], (10, 0), True),
        ([], (8, 0), False),
    ],
)
def test_code_runs_on_later_minor_versions_of_its_major_one(architectures, capability, expected):
    assert carries(architectures, capability) is expected


@pytest.mark.parametrize("name", gpu_names())
def test_every_known_gpu_gets_a_build_with_its_kernels(name):
    gpu = load_gpu(name)
    assert carries(choose_build(gpu.capability).architectures, gpu.capability)


@pytest.mark.parametrize("driver", [None, "525.60.13", "580.82", "600.0"])
def test_a_newer_driver_never_takes_a_v100_to_a_build_without_its_kernels(driver):
    assert choose_build((7, 0), driver).install_line == "pip install torch==2.10.0 torchvision==0.25.0"


def test_the_driver_rules_out_builds_and_the_gpu_chooses_among_the_rest():
    assert choose_build((6, 0)).cuda == "12.6"
    assert choose_build((7, 0), "470.57").install_line.endswith("--index-url https://download.pytorch.org/whl/cu118")
    assert choose_build((8, 6), "550.1").torch == "2.10.0"
    assert choose_build((12, 0), "580.82").cuda == "13.0"
    with pytest.raises(BudgetftError, match="older than any build"):
        choose_build((7, 0), "410.48")
    with pytest.raises(BudgetftError, match="no torch build"):
        choose_build((3, 5))


def test_the_list_of_builds_agrees_with_the_torch_that_is_installed():
    torch = pytest.importorskip("torch")
    flags = torch._C._cuda_getArchFlags() if torch.version.cuda else None
    known = {(build.torch, build.cuda): build for build in load_builds()}
    build = known.get((torch.__version__.split("+")[0], torch.version.cuda))
    if build is None or flags is None:
        pytest.skip(f"torch {torch.__version__} is not in the list")
    assert tuple(name for name in flags.split() if name.startswith("sm_")) == build.architectures


def test_a_v100_with_todays_torch_is_a_problem_with_the_line_that_mends_it():
    (found,) = check_build((7, 0), NEW_TORCH, "580.82", "v100-16g")
    assert (found.kind, found.level) == ("build", "problem")
    assert found.fix == "pip install torch==2.10.0 torchvision==0.25.0"
    assert check_build((8, 6), NEW_TORCH, None, "rtx3090")[0].level == "ok"
    assert "CPU build" in check_build((8, 6), {**NEW_TORCH, "architectures": []}, None, "rtx3090")[0].text
    assert check_build((8, 6), None, None, "rtx3090")[0].level == "problem"


def test_a_gpu_with_everything_is_not_said_to_lack_anything():
    assert any("lacks bf16" in each.text for each in needs_of(load_gpu("v100-16g")))
    assert not any("lacks" in each.text for each in needs_of(load_gpu("h100-80g")))


def test_a_driver_below_the_floor_of_torchs_cuda_is_a_problem():
    facts = {"driver": "470.57", "gpus": [GPU]}
    (found,) = check_driver(facts, "13.0")
    assert found.kind == "driver"
    assert "580.65" in found.text
    assert "cu118" in (found.fix or "")
    assert check_driver({**facts, "driver": "580.82"}, "13.0")[0].level == "ok"
    assert check_driver(facts, None)[0].level == "ok"


def test_no_gpu_is_no_problem_but_a_driver_that_is_there_and_silent_is():
    assert check_driver({"error": "NVMLError_LibraryNotFound", "nodes": False}, "13.0")[0].level == "note"
    assert check_driver({"error": "NVMLError_DriverNotLoaded", "nodes": True}, "13.0")[0].level == "problem"


def test_the_visible_gpu_is_the_one_that_the_variable_names():
    other = {**GPU, "index": 1, "uuid": "GPU-2"}
    facts = {"gpus": [GPU, other]}
    assert visible_gpu(facts, {"CUDA_VISIBLE_DEVICES": "1"}) == (other, [])
    assert visible_gpu(facts, {"CUDA_VISIBLE_DEVICES": "GPU-2,0"}) == (other, [])
    assert visible_gpu(facts, {}) == (GPU, [])
    for wrong in ("7", "", "-1"):
        gpu, (found,) = visible_gpu(facts, {"CUDA_VISIBLE_DEVICES": wrong})
        assert gpu is None
        assert found.level == "problem"


def test_gpus_of_several_kinds_are_warned_of_unless_the_bus_numbers_them():
    slow, fast = {**GPU, "speed": 7}, {**GPU, "index": 1, "uuid": "GPU-2", "name": "Faster", "speed": 9}
    facts = {"gpus": [slow, fast]}
    for environment in ({}, {"CUDA_VISIBLE_DEVICES": "0"}):
        gpu, (mixed,) = visible_gpu(facts, environment)
        assert gpu == fast
        assert mixed.level == "warning"
        assert visible_gpu(facts, {**environment, "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}) == (slow, [])
    assert visible_gpu(facts, {"CUDA_VISIBLE_DEVICES": "GPU-1"}) == (slow, [])


def test_what_else_is_on_the_gpu_is_told():
    assert check_sharing(GPU) == []
    busy = {**GPU, "used_bytes": 9 * GIB, "processes": [{"pid": 4242, "bytes": 9 * GIB}], "mig": True, "display": True}
    told = " ".join(each.text for each in check_sharing(busy))
    assert "4242 (9.00 GiB)" in told
    assert "MIG" in told
    assert "display" in told
    assert [each.level for each in check_sharing({**GPU, "compute_mode": 2})] == ["problem"]
    assert [each.level for each in check_sharing({**GPU, "ecc": True})] == []
    assert [each.level for each in check_sharing({**GPU, "ecc": True, "capability": [8, 6]})] == ["note"]


def test_a_container_of_cuda_13_is_told_on_volta_only():
    container = {"NVIDIA_VISIBLE_DEVICES": "all", "CUDA_VERSION": "13.0.1"}
    assert len(check_container(container, (7, 0))) == 1
    assert check_container(container, (7, 5)) == []
    assert check_container({**container, "CUDA_VERSION": "12.6.3"}, (7, 0)) == []


def test_a_kernel_that_fails_is_a_problem_of_the_build_or_the_gpu():
    missing = {"tried": "float16", "problem": "AcceleratorError: CUDA error: no kernel image is available for execution"}
    assert [each.kind for each in check_kernels(Reply(said=[STARTED, missing]), None) if each.level == "problem"] == ["build"]
    wrong = {"tried": "float16", "problem": "a product that is 32 came out as 0.0"}
    assert [each.kind for each in check_kernels(Reply(said=[STARTED, wrong]), None) if each.level == "problem"] == ["gpu"]
    died = Reply(said=[{"begin": "start"}, STARTED, {"begin": "float16"}], ended="killed by signal 11")
    assert any("float16: the process died" in each.text for each in check_kernels(died, None))
    never = Reply(said=[{"begin": "start"}], ended="killed by signal 6", stderr="boom\n")
    assert "boom" in check_kernels(never, None)[0].text
    busy = Reply(said=[{"start": None, "problem": "RuntimeError: The NVIDIA driver on your system is too old"}])
    assert check_kernels(busy, None)[0].kind == "driver"


def test_a_gpu_that_runs_its_kernels_is_well_and_triton_only_a_warning():
    fine = Reply(said=[STARTED, {"tried": "float16", "problem": None}])
    levels = [each.level for each in check_kernels(fine, Reply(ended="exit code 1", stderr="no gcc"))]
    assert levels == ["warning", "note", "ok"]


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        ("ImportError: libtorch_cuda.so: undefined symbol: ncclCommRegister", "libraries"),
        (
            "RuntimeError: cuDNN version incompatibility: PyTorch was compiled against (9, 1, 0)",
            "libraries",
        ),
        ("Could not load library libcudnn_cnn_train.so.8. Error: undefined symbol: _ZN5cudnn", "libraries"),
        ("AttributeError: module 'torch._C' has no attribute '_x'", "packages"),
        ("RuntimeError: The NVIDIA driver on your system is too old (found version 12080)", "driver"),
        ("CUDA error: no kernel image is available for execution on the device", "build"),
        ("ptxas: Feature '.bf16' requires .target sm_80 or higher", "gpu"),
        ("A module that was compiled using NumPy 1.x cannot be run in NumPy 2.4.6", "packages"),
        ("something new", "packages"),
    ],
)
def test_what_users_see_is_put_into_its_class(message, kind):
    assert cause_of(message, "torch")[0] == kind


def test_a_missing_module_is_named_by_what_is_missing():
    assert cause_of("ModuleNotFoundError: No module named 'PIL'", "torchvision")[1] == "pip install pillow"


def test_versions_are_compared_as_numbers():
    assert numbers("525.60.13") > numbers("525.60")
    assert numbers("1000.1") > numbers("580.65")
    assert numbers("unknown") == ()


STUB = """#!/bin/sh
# Stands for Python: makes a folder like a virtual environment's and writes down what it is asked.
if [ "$1" = -m ] && [ "$2" = venv ]; then
  mkdir -p "$3/bin"; cp "$0" "$3/bin/python"; echo "# activate" > "$3/bin/activate"
fi
echo "$@ | site=${PYTHONNOUSERSITE-} path=${PYTHONPATH-} lib=${LD_LIBRARY_PATH-}" >> "$ASKED"
"""


@pytest.fixture
def recipe(tmp_path: Path):
    """The written recipe, run with a stand-in for Python in a polluted environment; what pip was asked."""
    (tmp_path / "python").write_text(STUB)
    (tmp_path / "python").chmod(0o755)
    (tmp_path / "driver").mkdir()
    (tmp_path / "driver" / "libcuda.so.1").touch()
    (tmp_path / "cuda").mkdir()
    (tmp_path / "cuda" / "libcudnn.so.9").touch()
    (tmp_path / "env.sh").write_text(write_recipe("v100-16g", choose_build((6, 0)), package="/a folder/budgetft"))
    environment = {
        **os.environ,
        "PYTHON": str(tmp_path / "python"),
        "ASKED": str(tmp_path / "asked"),
        "PYTHONPATH": "/foreign",
        "LD_LIBRARY_PATH": f"{tmp_path}/cuda:{tmp_path}/driver",
        "LD_PRELOAD": "",
    }
    done = subprocess.run(
        ["bash", "env.sh", "made"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=HANG_SECONDS
    )
    assert done.returncode == 0, done.stderr
    return tmp_path, environment


def test_the_recipe_installs_the_build_first_and_holds_the_rest_to_the_lock(recipe):
    folder, _ = recipe
    asked = [line for line in (folder / "asked").read_text().splitlines() if "pip" in line]
    assert asked[0].startswith(
        "-m pip install torch==2.14.1+cu126 torchvision==0.29.1+cu126 --index-url https://download.pytorch.org/whl/cu126"
    )
    assert asked[1].startswith("-m pip install --constraint made/lock.txt /a folder/budgetft")
    assert all(line.endswith(f"| site=1 path= lib={folder}/driver") for line in asked)
    lock = (folder / "made" / "lock.txt").read_text()
    assert "torch==2.14.1+cu126" in lock
    assert "\ntransformers==" in lock


@pytest.mark.parametrize("shell", [["bash", "-u"], ["sh"]])
def test_entering_the_environment_keeps_the_machines_libraries_out(recipe, shell):
    folder, environment = recipe
    show = '. made/bin/activate; echo "${PYTHONPATH-none} $PYTHONNOUSERSITE $LD_LIBRARY_PATH"'
    done = subprocess.run(
        [*shell, "-c", show], cwd=folder, env=environment, capture_output=True, text=True, timeout=HANG_SECONDS
    )
    assert done.stderr == ""
    assert done.stdout.split() == ["none", "1", f"{folder}/driver"]


def test_the_command_writes_the_recipe_for_a_gpu_that_is_not_here(tmp_path, capsys):
    assert main(["doctor", "--gpu", "v100-16g", "--env", str(tmp_path / "env.sh")]) == 0
    assert "torch 2.10.0 with CUDA 12.8" in capsys.readouterr().out
    assert "pip install torch==2.10.0 torchvision==0.25.0\n" in (tmp_path / "env.sh").read_text()
    assert main(["doctor", "--gpu", "v100", "--env", str(tmp_path / "env.sh")]) == 2
