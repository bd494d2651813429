"""A GPU by its memory: ``24GiB``, or ``24GiB:sm_86`` with the compute capability."""

import re
from dataclasses import dataclass

from budgetft.errors import UsageError
from budgetft.units import GIB, format_gib, parse_bytes

ASSUMED_CAPABILITY = "8.6"
"""RTX 30, A10, A40, RTX A: bf16 and flash attention as on all later ones."""
CAPABILITIES = {
    "5.0": "Maxwell", "5.2": "Maxwell", "5.3": "Maxwell", "6.0": "Pascal", "6.1": "Pascal", "6.2": "Pascal", "7.0": "Volta",
    "7.2": "Volta", "7.5": "Turing", "8.0": "Ampere", "8.6": "Ampere", "8.7": "Ampere", "8.9": "Ada", "9.0": "Hopper",
    "10.0": "Blackwell", "10.3": "Blackwell", "11.0": "Blackwell", "12.0": "Blackwell", "12.1": "Blackwell",
}  # fmt: skip
"""Those that torch has kernels for: developer.nvidia.com/cuda-gpus and /cuda-legacy-gpus, from sm_50 on."""
_FAMILIES = {
    "maxwell": "5.2", "pascal": "6.1", "volta": "7.0", "turing": "7.5", "ampere": "8.6", "ada": "8.9", "hopper": "9.0",
    "blackwell": "12.0",
}  # fmt: skip
"""The capability of most of a family's GPUs."""
_USUAL = "sm_75 is RTX 20 and T4, sm_80 A100, sm_86 RTX 30, sm_89 RTX 40 and L4, sm_90 H100, sm_120 RTX 50"
LEAST_BYTES, MOST_BYTES = GIB, 320 * 10**9
"""The context alone takes half of the least; the largest GPU is the B300 with 288 GB (NVIDIA data sheet)."""
_WRITTEN = re.compile(
    r"([+-]?\d+(?:\.\d+)?)\s*([kmgtp]i?b|g)\s*(?:of\s+)?(?:vram|memory|gpu)?\s*(?:[\s:,@/_-]\s*(.+))?", re.IGNORECASE
)
_CAPABILITY = re.compile(r"(?:sm|compute|cc)?[\s_-]*(\d{1,3})(?:\.(\d))?[af]?", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Size:
    """What was typed for a GPU that is known by its memory alone."""

    memory_bytes: int
    compute_capability: str
    assumed: bool
    """The capability was not typed."""
    written: str
    """The memory as it was typed, in the unit's own letters."""

    @property
    def name(self) -> str:
        return f"{self.written}-sm{self.compute_capability.replace('.', '')}".lower()


def is_size(text: str) -> bool:
    """Whether ``text`` is a size whatever GPU is called like its end: ``24GiB:50`` has a capability, ``24 GB 5090`` may not."""
    found = _WRITTEN.fullmatch(text.strip())
    return found is not None and (found[3] is None or re.search(r"[:@]|sm", text, re.IGNORECASE) is not None)


def parse_gpu_size(text: str) -> Size | None:
    """The size in ``text``; None when it is none. Units are taken at their word: GiB and G are 2^30 bytes, GB is 10^9.

    Raises ``UsageError`` for memory that no GPU has, and for a compute capability that there is not.
    """
    found = _WRITTEN.fullmatch(text.strip())
    if found is None:
        return None
    number, unit, behind = found.groups()
    unit = {"g": "GiB", "m": "MiB", "t": "TiB", "k": "KiB", "p": "PiB"}.get(unit.lower(), unit)
    capability = None if behind is None else _capability(text, behind)
    memory_bytes = _bytes(text, number, unit)
    return Size(
        memory_bytes=memory_bytes,
        compute_capability=capability or ASSUMED_CAPABILITY,
        assumed=capability is None,
        written=f"{float(number):g}{unit}",
    )


def _bytes(text: str, number: str, unit: str) -> int:
    """``unit`` in any case."""
    proper = unit[0].upper() + unit[1:].lower().replace("b", "B")
    scale = {"T": 1024, "P": 1024**2}.get(proper[0])
    memory_bytes = scale and float(number) * scale * GIB
    if memory_bytes is None and not number.startswith("-"):
        memory_bytes = parse_bytes(f"{number.lstrip('+')}{proper}")
    if memory_bytes is None or not LEAST_BYTES <= memory_bytes <= MOST_BYTES:
        raise UsageError(
            f"--gpu {text.strip()[:40]}: no NVIDIA GPU that can train has that memory; they have {format_gib(LEAST_BYTES)}"
            f" to {format_gib(MOST_BYTES)}",
            hint="write what nvidia-smi shows as total, for example --gpu 24GiB or --gpu 15360MiB",
        )
    return int(memory_bytes)


def _capability(text: str, behind: str) -> str:
    family = _FAMILIES.get(behind.strip().lower())
    if family is not None:
        return family
    found = _CAPABILITY.fullmatch(behind.strip())
    if found is None:
        raise UsageError(
            f"--gpu {text.strip()[:40]}: {behind[:20]!r} is no compute capability",
            hint=f"write for example --gpu 24GiB:sm_86; {_USUAL}",
        )
    number, minor = found.groups()
    if minor is None and (len(number) == 1 or f"{number}.0" in CAPABILITIES):  # sm_9, sm_12
        minor = "0"
    capability = f"{number}.{minor}" if minor is not None else f"{number[:-1]}.{number[-1]}"
    if capability not in CAPABILITIES:
        old = float(capability) < 5
        why = "too old: no current torch build has kernels for it" if old else "none that an NVIDIA GPU has"
        raise UsageError(f"--gpu {text.strip()[:40]}: compute capability {capability} is {why}", hint=_USUAL)
    return capability
