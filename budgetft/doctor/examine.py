"""The whole examination, in the order in which things should be fixed."""

import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from budgetft.doctor import gpu as checks
from budgetft.doctor import host, libraries, packages
from budgetft.doctor.children import look
from budgetft.doctor.finding import Finding
from budgetft.gpu import Gpu
from budgetft.installed import pip_command


def examine(
    gpu: Gpu | None = None,
    *,
    environment: Mapping[str, str] | None = None,
    budgetft_cache: Path,
    on_step: Callable[[str], None] = lambda step: None,
) -> list[Finding]:
    """Look at everything; ``gpu`` is a GPU to prepare for, here or not. Nothing that is broken raises."""
    environment = dict(os.environ if environment is None else environment)
    on_step("where packages come from")
    findings, paths = _look_at_paths(environment)
    findings += libraries.check_library_path(environment) + libraries.check_modules(environment)
    on_step("importing the stack")
    names = [*packages.STACK, *(name for name in packages.OPTIONAL if paths is None or paths["modules"].get(name))]
    imported = packages.import_stack(names, environment)
    findings += packages.check_imports(imported, environment)
    torch = imported.first("torch")
    if paths is not None:
        findings += libraries.check_mapped(imported.first("mapped") or [], paths["site"])
        findings += libraries.check_cuda_packages(paths["copies"], torch["cuda"] if torch else None)
    on_step("driver and GPU")
    findings += _look_at_gpu(gpu, torch, environment)
    on_step("machine")
    findings += host.check_memory() + host.check_shared_memory() + host.check_locking()
    findings += host.check_caches(host.cache_folders(environment, budgetft_cache))
    findings += host.show_cache(budgetft_cache, environment)
    return [found.replace(fix=as_typed_here(found.fix)) if found.fix else found for found in findings]


def as_typed_here(fix: str, pip: str | None = None) -> str:
    """``fix`` with what ``pip`` is typed as in this environment, which pipx or uv may keep."""
    return re.sub(r"(?<!uv )\bpip (?=(un)?install)", lambda _: f"{pip or pip_command()} ", fix)


def _look_at_paths(environment: Mapping[str, str]) -> tuple[list[Finding], dict[str, Any] | None]:
    reply = look("paths", [*packages.STACK, *packages.OPTIONAL], environment=environment)
    paths = reply.first("paths")
    if paths is None:
        text = f"Python does not start here: {reply.ended}; {reply.stderr.strip()[-300:]}"
        fix = "unset PYTHONHOME PYTHONPATH"
        return [Finding(kind="packages", level="problem", text=text, fix=fix)], None
    return packages.check_paths(paths, environment) + packages.check_versions(paths), paths


def _look_at_gpu(gpu: Gpu | None, torch: Mapping[str, Any] | None, environment: Mapping[str, str]) -> list[Finding]:
    facts = look("driver", environment=environment).first("driver") or {"gpus": [], "error": "its reader died"}
    findings = checks.check_driver(facts, torch["cuda"] if torch else None)
    host_gpu, odd = checks.visible_gpu(facts, environment)
    findings += odd
    driver = facts.get("driver")
    if gpu is not None:
        findings += checks.check_build(gpu.capability, torch, driver, gpu.name)
        findings += checks.needs_of(gpu, torch)
        if host_gpu is None or not gpu.is_gpu(host_gpu["name"], host_gpu["total_bytes"]):
            return findings
    if host_gpu is None:
        return findings
    capability = (host_gpu["capability"][0], host_gpu["capability"][1])
    if gpu is None:
        findings += checks.check_build(capability, torch, driver, host_gpu["name"])
    findings += checks.check_sharing(host_gpu) + checks.check_container(environment, capability)
    if torch is not None and torch["cuda"] is not None:
        triton = look("triton_dot", environment=environment) if _has_triton(capability) else None
        findings += checks.check_kernels(look("gpu", environment=environment), triton)
    return findings


def _has_triton(capability: Sequence[int]) -> bool:
    """Triton compiles from compute capability 7.0 on."""
    return tuple(capability) >= (7, 0)
