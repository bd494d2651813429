"""Ask the driver about itself and its GPUs, through NVML alone: no CUDA context is made."""

import json
import os

answer: dict[str, object] = {"gpus": [], "nodes": os.path.exists("/dev/nvidiactl") or os.path.exists("/proc/driver/nvidia")}


def text(value: object) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def gpu(index: int) -> dict[str, object]:
    handle = pynvml.nvmlDeviceGetHandleByIndex(index)
    memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
    facts: dict[str, object] = {
        "index": index,
        "uuid": text(pynvml.nvmlDeviceGetUUID(handle)),
        "name": text(pynvml.nvmlDeviceGetName(handle)),
        "total_bytes": int(memory.total),
        "used_bytes": int(memory.used),
        "capability": list(pynvml.nvmlDeviceGetCudaComputeCapability(handle)),
    }
    optional = {
        "processes": lambda: [
            {"pid": each.pid, "bytes": each.usedGpuMemory} for each in pynvml.nvmlDeviceGetComputeRunningProcesses(handle)
        ],
        "ecc": lambda: bool(pynvml.nvmlDeviceGetEccMode(handle)[0]),
        "mig": lambda: bool(pynvml.nvmlDeviceGetMigMode(handle)[0]),
        "display": lambda: bool(pynvml.nvmlDeviceGetDisplayActive(handle)),
        "speed": lambda: (
            pynvml.nvmlDeviceGetNumGpuCores(handle) * pynvml.nvmlDeviceGetMaxClockInfo(handle, pynvml.NVML_CLOCK_SM)
        ),
        "compute_mode": lambda: int(pynvml.nvmlDeviceGetComputeMode(handle)),
    }
    for name, ask in optional.items():
        try:
            facts[name] = ask()
        except pynvml.NVMLError:  # not every GPU has every setting
            facts[name] = None
    return facts


try:
    import pynvml

    pynvml.nvmlInit()
    answer["driver"] = text(pynvml.nvmlSystemGetDriverVersion())
    answer["gpus"] = [gpu(index) for index in range(pynvml.nvmlDeviceGetCount())]
except Exception as error:
    answer["error"] = f"{type(error).__name__}: {error}"
print("@@" + json.dumps({"driver": answer}), flush=True)
