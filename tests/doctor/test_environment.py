"""Broken environments, built for real, and what is said of them."""

import json
import os
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from patience import HANG_SECONDS

from budgetft import __version__
from budgetft.doctor.children import isolated, look
from budgetft.doctor.examine import examine
from budgetft.doctor.finding import EXIT_CODES, Finding, exit_code
from budgetft.doctor.host import cache_folders, check_caches, check_locking, check_memory, check_shared_memory
from budgetft.doctor.libraries import check_cuda_packages, check_library_path, check_mapped, check_modules
from budgetft.doctor.packages import check_imports, check_paths, check_versions, import_stack
from budgetft.units import MIB

MIXED = "raise AttributeError(\"module 'torch._C' has no attribute '_cuda_changeCurrentAllocator'\")"


def clean(**more: str) -> dict[str, str]:
    return {**isolated(), **more}


def module(folder: Path, name: str, text: str = "") -> Path:
    (folder / name).mkdir(parents=True)
    (folder / name / "__init__.py").write_text(text)
    return folder


def distribution(folder: Path, name: str, version: str, *requires: str) -> None:
    info = folder / f"{name}-{version}.dist-info"
    info.mkdir(parents=True)
    lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}", *(f"Requires-Dist: {each}" for each in requires)]
    (info / "METADATA").write_text("\n".join(lines) + "\n")


def paths_of(environment: dict[str, str], *names: str, python: str = sys.executable) -> dict:
    reply = look("paths", names, environment=environment, python=python)
    assert reply.ended is None, reply.stderr
    return reply.first("paths")


def problems(findings: list[Finding]) -> list[Finding]:
    return [finding for finding in findings if finding.level == "problem"]


def test_a_clean_environment_has_no_problem_with_its_packages():
    paths = paths_of(clean(), "torch", "numpy", "transformers")
    assert [finding.level for finding in check_paths(paths, clean())] == ["ok"]
    assert problems(check_versions(paths)) == []


def test_a_second_torch_on_pythonpath_is_named_with_the_place_it_comes_from(tmp_path):
    environment = clean(PYTHONPATH=str(module(tmp_path, "torch")))
    (found,) = problems(check_paths(paths_of(environment, "torch", "numpy"), environment))
    assert found.kind == "packages"
    assert str(tmp_path) in found.text
    assert found.fix == "unset PYTHONPATH"


def test_a_mixed_torch_is_explained_and_its_cure_was_tried(tmp_path):
    environment = clean(PYTHONPATH=str(module(tmp_path, "torch", MIXED)))
    (found,) = problems(check_imports(import_stack(["numpy", "torch"], environment), environment))
    assert found.kind == "packages"
    assert "torch._C" in found.text
    assert found.fix is not None
    assert found.fix.startswith("it loads without PYTHONPATH")


def test_a_package_that_is_broken_everywhere_is_not_said_to_load_in_isolation():
    reply = import_stack(["budgetft_is_not_called_this"], clean())
    (found,) = check_imports(reply, clean())
    assert found.fix == "pip install budgetft_is_not_called_this"


def test_the_user_site_is_found_where_it_hides_the_environment(tmp_path):
    python = str(Path(sys.base_prefix) / "bin" / "python3")
    environment = {**clean(), "PYTHONUSERBASE": str(tmp_path / "user")}
    del environment["PYTHONNOUSERSITE"]
    own = Path(paths_of(environment, python=python)["site"][0])
    hidden = next((path.parent.name for path in sorted(own.glob("*/__init__.py"))), None)
    if hidden is None:
        pytest.skip(f"no package in {own} that could be hidden")
    user = module(tmp_path / "user" / "lib" / own.parent.name / "site-packages", hidden)
    (found,) = problems(check_paths(paths_of(environment, hidden, python=python), environment))
    assert str(user) in found.text
    assert found.fix == "export PYTHONNOUSERSITE=1"
    shut_out = {**environment, "PYTHONNOUSERSITE": "1"}
    assert problems(check_paths(paths_of(shut_out, hidden, python=python), shut_out)) == []


def test_a_package_that_only_the_user_site_has_is_warned_of(tmp_path):
    made = tmp_path / "made"
    subprocess.run(
        [sys.executable, "-m", "venv", "--without-pip", "--system-site-packages", made], check=True, timeout=HANG_SECONDS
    )
    python, environment = str(made / "bin" / "python"), {**clean(), "PYTHONUSERBASE": str(tmp_path / "user")}
    del environment["PYTHONNOUSERSITE"]
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    module(tmp_path / "user" / "lib" / version / "site-packages", "torch")
    (found,) = check_paths(paths_of(environment, "torch", python=python), environment)
    assert (found.level, found.fix) == ("warning", "export PYTHONNOUSERSITE=1")


def test_a_crash_while_importing_does_not_hide_the_packages_after_it(tmp_path):
    module(tmp_path, "torchvision", "import os; os.abort()")
    environment = clean(PYTHONPATH=str(tmp_path))
    reply = import_stack(["numpy", "torchvision", "safetensors"], environment)
    (found,) = problems(check_imports(reply, environment))
    assert "torchvision does not load: the process died of it: killed by signal 6" in found.text
    assert [each["imported"] for each in reply.all("imported")] == ["numpy", "safetensors"]


def test_a_hanging_child_is_ended_and_what_it_said_is_kept(tmp_path):
    """How long the child needs until it hangs depends on the machine: it is given more until it gets there."""
    module(tmp_path, "slow", f"import time; time.sleep({HANG_SECONDS})")
    seconds, begun = 0.25, []
    while begun != ["json", "slow"]:
        assert seconds < HANG_SECONDS, f"the child came no further than {begun}"
        reply = look("stack", ["json", "slow"], environment=clean(PYTHONPATH=str(tmp_path)), seconds=seconds)
        assert reply.ended == f"no answer within {seconds:.0f} s"
        begun, seconds = [each["begin"] for each in reply.all("begin")], 2 * seconds


def test_a_too_new_numpy_and_a_missing_package_are_named_with_the_line_that_mends_them(tmp_path):
    distribution(tmp_path, "job", "1.0", "needy>=1", "absent>=2; python_version > '3'", "numpy", "extra-only; extra == 'x'")
    distribution(tmp_path, "needy", "1.0", "numpy<2")
    distribution(tmp_path, "numpy", "99.0")
    paths = paths_of(clean(PYTHONPATH=str(tmp_path)))
    found = problems(check_versions(paths, "job"))
    assert {(each.text.split(" is installed")[0].split("; job")[0], each.fix) for each in found} == {
        ("needy needs numpy<2; 99.0", "pip install 'numpy<2'"),
        ("absent>=2 is missing", "pip install 'absent>=2'"),
    }


def test_cuda_libraries_on_the_library_path_are_named_and_the_rest_of_it_is_kept(tmp_path):
    for name in ("libcudnn.so.9", "libcudart.so.13"):
        (tmp_path / name).write_text("not a library")
    (found,) = check_library_path({"LD_LIBRARY_PATH": f"/nowhere:{tmp_path}"})
    assert (found.kind, found.level, found.fix) == ("libraries", "warning", "export LD_LIBRARY_PATH=/nowhere")
    assert "libcudart, libcudnn" in found.text
    assert check_library_path({"LD_LIBRARY_PATH": "/nowhere"}) == []


def test_a_foreign_library_that_torch_runs_with_is_found_in_its_memory(tmp_path):
    site = paths_of(clean(), "torch")["site"]
    own = next((path for folder in site for path in Path(folder).glob("nvidia/*/lib/libcudart.so*")), None)
    if own is None:
        pytest.skip("torch is a CPU build: it loads no CUDA library")
    foreign = tmp_path / own.name
    shutil.copyfile(own, foreign)
    reply = import_stack(["torch"], clean(LD_PRELOAD=str(foreign)))
    (found,) = problems(check_mapped(reply.first("mapped"), site))
    assert str(foreign) in found.text
    assert [each.level for each in check_mapped(import_stack(["torch"], clean()).first("mapped"), site)] == ["ok"]


def test_a_library_that_does_not_load_is_put_down_to_the_library_path(tmp_path):
    library = tmp_path / "libbroken.so"
    library.write_text("not a library")
    module(tmp_path, "torchvision", f"import ctypes; ctypes.CDLL({str(library)!r})")
    environment = clean(PYTHONPATH=str(tmp_path))
    (found,) = problems(check_imports(import_stack(["torchvision"], environment), environment))
    assert found.kind == "libraries"
    assert "unset LD_LIBRARY_PATH" in (found.fix or "")


def test_a_library_in_memory_must_be_of_this_environment():
    site = ["/env/lib/python3.11/site-packages"]
    own = f"{site[0]}/nvidia/cudnn/lib/libcudnn.so.9"
    assert check_mapped([own, "/usr/lib/libcuda.so.1"], site)[0].level == "ok"
    assert check_mapped([own, "/opt/cuda/lib64/libnccl.so.2"], site)[0].level == "problem"


def test_a_clusters_modules_are_named_when_they_bring_cuda_or_python():
    (found,) = check_modules({"LOADEDMODULES": "slurm/23:cuda/11.8:PyTorch/1.13"})
    assert found.fix == "module unload cuda/11.8 PyTorch/1.13"
    assert check_modules({"LOADEDMODULES": "slurm/23:vim/9"}) == []


def test_packages_of_another_cuda_than_torchs_are_named():
    copies = {"nvidia-nccl-cu13": [], "nvidia-nccl-cu12": [], "nvidia-ml-py": [], "nvidia-cublas": []}
    (found,) = check_cuda_packages(copies, "13.0")
    assert "installed: nvidia-nccl-cu12" in found.text
    assert check_cuda_packages(copies, None) == []


def test_a_cache_that_cannot_be_written_is_found_by_writing(tmp_path):
    (tmp_path / "file").write_text("")
    folders = {"BUDGETFT_CACHE": tmp_path / "new" / "cache", "HF_HOME": tmp_path / "file" / "hub", "OTHER": Path("/proc/hub")}
    found = {each.fix for each in problems(check_caches(folders))}
    assert found == {"export HF_HOME=/a/folder/you/can/write", "export OTHER=/a/folder/you/can/write"}
    assert not (tmp_path / "new").exists()


def test_the_caches_are_where_the_variables_put_them(tmp_path):
    folders = cache_folders({"HOME": "/home/me", "TRITON_CACHE_DIR": "/fast"}, tmp_path)
    assert folders["HF_HOME"] == Path("/home/me/.cache/huggingface")
    assert folders["TRITON_CACHE_DIR"] == Path("/fast")


def test_a_small_shared_memory_is_a_problem_and_a_missing_one_a_warning(tmp_path):
    (found,) = check_shared_memory(free_bytes=64 * MIB)
    assert "64 MiB" in found.text
    assert "--shm-size" in (found.fix or "")
    assert check_shared_memory(free_bytes=2048 * MIB) == []
    assert check_shared_memory(tmp_path / "none")[0].level == "warning"


def test_a_limit_of_the_job_counts_before_the_memory_of_the_machine(tmp_path):
    (tmp_path / "meminfo").write_text("MemTotal: 65536000 kB\nMemAvailable: 64000000 kB\n")
    (tmp_path / "max").write_text("4294967296\n")
    (found,) = check_memory(tmp_path / "meminfo", (tmp_path / "max",))
    assert found.level == "warning"
    assert "4.00 GiB usable (limit of this job or container)" in found.text
    (tmp_path / "max").write_text("max\n")
    assert check_memory(tmp_path / "meminfo", (tmp_path / "max",))[0].level == "ok"


def test_little_lockable_memory_is_noted():
    assert check_locking(64 * 1024)[0].level == "note"
    assert check_locking(-1) == []


def test_the_exit_code_is_of_the_class_to_mend_first():
    def made(kind, level):
        return Finding(kind=kind, level=level, text="x")

    assert exit_code([made("host", "problem"), made("libraries", "problem"), made("packages", "warning")]) == 11
    assert exit_code([made("gpu", "warning"), made("driver", "note")]) == 0
    assert sorted(EXIT_CODES.values()) == list(EXIT_CODES.values())


def test_a_python_that_does_not_start_is_a_finding(tmp_path):
    findings = examine(environment={**clean(), "PYTHONHOME": str(tmp_path)}, budgetft_cache=tmp_path)
    assert findings[0].kind == "packages"
    assert findings[0].level == "problem"
    assert "PYTHONHOME" in (findings[0].fix or "")


def test_the_command_tells_what_a_v100_needs_without_one(tmp_path):
    environment = {**os.environ, "PYTHONPATH": os.environ.get("PYTHONPATH", ""), "BUDGETFT_CACHE": str(tmp_path / "cache")}
    command = [sys.executable, "-m", "budgetft", "doctor", "--gpu", "v100-16g", "--json"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=HANG_SECONDS)
    told = json.loads(done.stdout)
    assert done.returncode == told["exit_code"]
    assert told["budgetft"] == __version__
    assert told["packages"]["torch"] == version("torch")
    builds = [each for each in told["findings"] if each["kind"] == "build"]
    assert builds[0]["fix"] == "pip install torch==2.10.0 torchvision==0.25.0"
    assert any("lacks bf16" in each["text"] for each in told["findings"])
