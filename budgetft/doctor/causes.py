"""The messages of broken environments, as users post them, and what they mean."""

import re

from budgetft.doctor.finding import Kind

_NO_LIBRARIES = "unset LD_LIBRARY_PATH"
_AGAIN = "pip install --force-reinstall torch"
_ISOLATE = "budgetft doctor --env env.sh && bash env.sh"
_SYMPTOMS: tuple[tuple[str, Kind, str], ...] = (
    # two torches mixed: pytorch/pytorch#56126, #137247
    (r"torch\._C'? has no attribute|from 'torch", "packages", "unset PYTHONPATH; export PYTHONNOUSERSITE=1"),
    # NCCL of another CUDA: pytorch/pytorch#119932, #120186, #186591
    (r"undefined symbol: nccl", "libraries", f"{_NO_LIBRARIES}; pip list | grep nccl: keep the one of torch's CUDA"),
    # a module's cuDNN before torch's own: pytorch/pytorch#80637, #80877
    (r"cuDNN version incompatib|libcudnn\S*.*undefined symbol", "libraries", _NO_LIBRARIES),
    (r"Could not load library libcudnn", "libraries", _NO_LIBRARIES),
    (r"undefined symbol|version `\S+' not found", "libraries", f"{_NO_LIBRARIES}; if it stays, reinstall what fails"),
    (r"lib(cu|nccl|nv)\S*: cannot open shared object", "packages", _AGAIN),
    (r"file too short|invalid ELF header", "libraries", f"{_NO_LIBRARIES}; if it stays: {_AGAIN}"),
    # pytorch/pytorch#162531, #4546
    (r"driver on your system is too old|driver version is insufficient", "driver", _ISOLATE),
    # meizhong986/WhisperJAV#333
    (r"no kernel image is available", "build", _ISOLATE),
    # Triton with bf16 below sm_80: facebookresearch/chameleon#39; unslothai/unsloth#2947
    (r"requires \.target sm_80|PassManager::run failed", "gpu", "no torch.compile and no Triton kernels in bf16 on this GPU"),
    (r"compiled using NumPy 1|multiarray failed|_ARRAY_API", "packages", 'pip install "numpy<2"'),
    (r"No module named '(?P<name>\w+)", "packages", "pip install {name}"),
    (r"no answer within", "host", "the file system hangs or is slow; put the environment on a local disk"),
)
DISTRIBUTIONS = {"PIL": "pillow", "flash_attn": "flash-attn", "liger_kernel": "liger-kernel", "qwen_vl_utils": "qwen-vl-utils"}


def cause_of(error: str, name: str) -> tuple[Kind, str]:
    """The class and the remedy of ``error``, met while ``name`` was loaded."""
    for pattern, kind, fix in _SYMPTOMS:
        match = re.search(pattern, error, flags=re.IGNORECASE)
        if match:
            module = match.groupdict().get("name") or name
            return kind, fix.format(name=DISTRIBUTIONS.get(module, module))
    return "packages", f"pip install --force-reinstall --no-deps {DISTRIBUTIONS.get(name, name)}"
