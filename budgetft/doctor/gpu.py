"""The driver, the GPU and the torch build: whether they can work together, and whether the GPU does."""

from collections.abc import Mapping
from typing import Any

from budgetft.doctor.builds import Capability, carries, choose_build, numbers, other_builds
from budgetft.doctor.causes import cause_of
from budgetft.doctor.children import Reply
from budgetft.doctor.finding import Finding, Kind, Level
from budgetft.errors import BudgetftError
from budgetft.gpu import Gpu
from budgetft.host_gpus import HostGpu, visible_gpus
from budgetft.units import format_gib

_OLDEST_DRIVERS = {11: "450.80", 12: "525.60", 13: "580.65"}
"""By CUDA's major version: older drivers load nothing built with it (CUDA release notes, minor-version compatibility)."""
NO_DRIVER = "no NVIDIA driver"
_SHARED_BYTES = 512 * 2**20


def check_driver(facts: Mapping[str, Any], torch_cuda: str | None) -> list[Finding]:
    """Whether a driver answers, and is new enough for the CUDA of the installed torch; ``facts`` as ``look/driver.py`` says."""
    if "error" in facts:
        if facts.get("nodes"):
            text = f"an NVIDIA driver is there but does not answer: {facts['error']}"
            fix = "nvidia-smi must work first; after a driver update: restart. In a container: docker run --gpus all"
            return [Finding(kind="driver", level="problem", text=text, fix=fix)]
        text = f"{NO_DRIVER}: plans are predicted here, not probed; training needs a GPU"
        return [Finding(kind="driver", level="note", text=text, fix="budgetft doctor --gpu NAME says what a GPU would need")]
    driver = facts["driver"]
    oldest = None if torch_cuda is None else _OLDEST_DRIVERS.get(int(torch_cuda.split(".")[0]))
    if oldest is not None and numbers(driver) < numbers(oldest):
        text = f"driver {driver} is too old for the installed torch: CUDA {torch_cuda} needs {oldest} or newer"
        return [Finding(kind="driver", level="problem", text=text, fix=_install_for(facts["gpus"], driver))]
    return [Finding(kind="driver", level="ok", text=f"driver {driver}, {len(facts['gpus'])} GPU(s)")]


def _install_for(gpus: list[dict[str, Any]], driver: str) -> str:
    try:
        capability = min(tuple(gpu["capability"]) for gpu in gpus)
        return choose_build((capability[0], capability[1]), driver).install_line
    except (ValueError, BudgetftError) as error:
        return getattr(error, "hint", None) or "have the driver updated"


def check_build(capability: Capability, torch: Mapping[str, Any] | None, driver: str | None, gpu: str) -> list[Finding]:
    """Whether the installed torch (as ``look/stack.py`` describes it) has kernels for ``capability``, and what would."""
    name = f"{gpu} (compute capability {capability[0]}.{capability[1]})"
    try:
        best = choose_build(capability, driver)
    except BudgetftError as error:
        return [Finding(kind="build", level="problem", text=f"{name}: {error.message}", fix=error.hint)]
    if torch is None:
        return [Finding(kind="build", level="problem", text=f"no torch that loads, for {name}", fix=best.install_line)]
    has = torch["architectures"]
    if carries(has, capability):
        text = f"torch {torch['version']} has kernels for {name}: {' '.join(has)}"
        return [Finding(kind="build", level="ok", text=text)]
    held = " ".join(has) or "none: it is a CPU build"
    text = f"torch {torch['version']} has no kernels for {name}; its own: {held}"
    return [Finding(kind="build", level="problem", text=text, fix=best.install_line)]


def needs_of(gpu: Gpu, torch: Mapping[str, Any] | None = None) -> list[Finding]:
    """What the GPU of the profile needs, whether or not it is here: a build unless ``torch`` will do; and what it lacks."""
    findings = []
    if torch is None or not carries(torch["architectures"], gpu.capability):
        best = choose_build(gpu.capability)
        text = f"the build to take for {gpu.name}: {best.name}, driver {best.minimum_driver} or newer"
        findings.append(Finding(kind="build", level="note", text=text, fix=best.install_line))
        for other in other_builds(gpu.capability, best)[:1]:
            text = f"only where that one does not install: {other.name}, driver {other.minimum_driver} or newer"
            findings.append(Finding(kind="build", level="note", text=text, fix=other.install_line))
    lacks = {
        "bf16 (it is emulated in fp32: slow, and no fused attention; use fp16)": gpu.native_bf16,
        "flash attention (the flash-attn package does not install for it; efficient attention is used)": gpu.flash_attention,
        "memory-efficient attention": gpu.efficient_attention,
    }
    missing = [what for what, has in lacks.items() if not has]
    if missing:
        findings.append(Finding(kind="gpu", level="note", text=f"{gpu.name} lacks {'; '.join(missing)}"))
    return findings


def visible_gpu(facts: Mapping[str, Any], environment: Mapping[str, str]) -> tuple[dict[str, Any] | None, list[Finding]]:
    """The GPU that a run would take, as CUDA_VISIBLE_DEVICES has it, and what is odd about the choice."""
    by_uuid = {gpu["uuid"]: gpu for gpu in facts.get("gpus", [])}
    if not by_uuid:
        return None, []
    gpus = [HostGpu(uuid=gpu["uuid"], name=gpu["name"], speed=gpu.get("speed") or 0) for gpu in by_uuid.values()]
    chosen = next(iter(visible_gpus(gpus, environment)), None)
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and visible.startswith("MIG-"):
        return by_uuid[gpus[0].uuid], []
    if chosen is not None:
        by_number = visible is None or visible.strip()[:1].isdigit()
        if not by_number or len({gpu.name for gpu in gpus}) < 2 or environment.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID":
            return by_uuid[chosen.uuid], []
        names = ", ".join(f"{gpu['index']}: {gpu['name']}" for gpu in by_uuid.values())
        text = f"GPUs of several kinds ({names}), which CUDA numbers the fastest first and nvidia-smi along the bus"
        fix = "export CUDA_DEVICE_ORDER=PCI_BUS_ID CUDA_VISIBLE_DEVICES=N"
        return by_uuid[chosen.uuid], [Finding(kind="gpu", level="warning", text=text, fix=fix)]
    text = f"CUDA_VISIBLE_DEVICES={visible!r} names no GPU here ({len(by_uuid)} present): torch will see none"
    fix = "unset CUDA_VISIBLE_DEVICES, or ask the scheduler for a GPU (SLURM: --gres=gpu:1)"
    return None, [Finding(kind="gpu", level="problem", text=text, fix=fix)]


def check_sharing(gpu: Mapping[str, Any]) -> list[Finding]:
    """What else is on the GPU: other processes, a display, MIG, ECC, exclusive mode."""
    findings = []
    processes = gpu["processes"] or []
    if processes or gpu["used_bytes"] > _SHARED_BYTES + gpu["total_bytes"] // 50:
        told = ", ".join(f"{each['pid']} ({format_gib(each['bytes'])})" for each in processes) or "not visible from here"
        text = f"{format_gib(gpu['used_bytes'])} of {gpu['name']} are taken; processes: {told}"
        findings.append(_gpu("warning", text, "plan for what is left: --budget, or wait until they end"))
    if gpu["mig"]:
        findings.append(_gpu("warning", "MIG is on: a run gets a slice of the GPU", "name it in CUDA_VISIBLE_DEVICES"))
    if gpu["ecc"] and tuple(gpu["capability"]) in ((8, 6), (8, 9)):
        text = "ECC is on and takes memory from this GPU: it shows less than its data sheet"
        findings.append(_gpu("note", text, "plan with what nvidia-smi shows as total"))
    if gpu["display"]:
        text = "a display runs on the GPU and may take memory at any time"
        findings.append(_gpu("note", text, "budgetft plan keeps room for it, in its default budget"))
    if gpu["compute_mode"] == 2:
        findings.append(_gpu("problem", "the GPU's compute mode is 'prohibited'", "sudo nvidia-smi -c 0"))
    return findings


def _gpu(level: Level, text: str, fix: str | None = None) -> Finding:
    return Finding(kind="gpu", level=level, text=text, fix=fix)


def check_container(environment: Mapping[str, str], capability: Capability) -> list[Finding]:
    """Whether the container's CUDA still knows the GPU: NVIDIA's images of CUDA 13 refuse what is older than Turing."""
    cuda = environment.get("CUDA_VERSION", "")
    if environment.get("NVIDIA_VISIBLE_DEVICES") is None or not cuda or capability >= (7, 5) or numbers(cuda) < (13,):
        return []
    text = f"this container is built on CUDA {cuda}, which dropped compute capability {capability[0]}.{capability[1]}"
    return [Finding(kind="build", level="warning", text=text, fix="use an image of CUDA 12.6 or older")]


def check_kernels(reply: Reply, triton: Reply | None) -> list[Finding]:
    """What the GPU did with small kernels; a kernel that fails is a problem, Triton and bf16 only a warning."""
    start = next(reply.all("start"), None)
    if start is None or start["start"] is None:
        problem = start["problem"] if start else f"torch died ({reply.ended}): {_last(reply.stderr)}"
        kind, fix = cause_of(problem, "torch")
        return [Finding(kind=kind if start else "gpu", level="problem", text=f"CUDA does not start: {problem}", fix=fix)]
    findings = []
    for each in reply.all("tried"):
        if each["problem"] is not None:
            kind, fix = cause_of(each["problem"], "torch")
            level: Level = "warning" if each["tried"] == "bfloat16" and not start["native_bf16"] else "problem"
            known: Kind = "build" if kind == "build" else "gpu"
            findings.append(Finding(kind=known, level=level, text=f"{each['tried']}: {each['problem']}", fix=fix))
    if reply.ended is not None:
        begun = [each["begin"] for each in reply.all("begin")][-1]
        findings.append(_gpu("problem", f"{begun}: the process died ({reply.ended}): {_last(reply.stderr)}"))
    if triton is not None and (problem := _triton_problem(triton)):
        text = f"Triton does not work on this GPU: {problem}; budgetft does without, torch.compile and Liger do not"
        findings.append(_gpu("warning", text, "install gcc and the Python headers if they are named; else avoid Triton"))
    if not start["native_bf16"]:
        findings.append(_gpu("note", "bf16 is emulated on this GPU: slow, no fused attention", "use fp16 (budgetft does)"))
    if not any(finding.level == "problem" for finding in findings):
        findings.append(_gpu("ok", f"{start['start']}: fp32, fp16 and attention kernels run and are right"))
    return findings


def _triton_problem(reply: Reply) -> str | None:
    tried = next(reply.all("tried"), None)
    return tried["problem"] if tried else _last(reply.stderr) or reply.ended


def _last(stderr: str) -> str:
    return (stderr.strip().splitlines() or [""])[-1][:300]
