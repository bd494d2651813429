"""The only place where bytes and sizes are parsed and printed; durations are in ``duration.py``."""

import re

from budgetft.errors import UsageError

KIB, MIB, GIB = 2**10, 2**20, 2**30

_FACTORS = {
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "KiB": KIB,
    "MiB": MIB,
    "GiB": GIB,
}


def parse_bytes(text: str) -> int:
    """``14GiB`` is 14 * 2**30 bytes and ``14GB`` is 14 * 10**9: the unit is required and taken at its word."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]+)\s*", text)
    if match is None or match[2] not in _FACTORS:
        raise UsageError(
            f"cannot read {text[:40]!r} as an amount of memory; allowed units: {', '.join(_FACTORS)}",
            hint="write for example 14GiB (14 * 2^30 bytes) or 14GB (14 * 10^9 bytes)",
        )
    if len(match[1]) > 15:
        raise UsageError(f"{text[:40]!r} is more memory than there is")
    return int(float(match[1]) * _FACTORS[match[2]])


def format_gib(memory_bytes: int | None) -> str:
    """Bytes as GiB with two decimals; ``-`` when unknown."""
    return "-" if memory_bytes is None else f"{memory_bytes / GIB:.2f} GiB"


def parse_size(text: str) -> tuple[int, int]:
    """``WxH`` in pixels, for example ``1288x728``."""
    match = re.fullmatch(r"\s*(\d{1,7})\s*[xX]\s*(\d{1,7})\s*", text)
    if match is None or int(match[1]) < 1 or int(match[2]) < 1:
        raise UsageError(f"cannot read {text[:40]!r} as an image size", hint="write WIDTHxHEIGHT, for example 448x448")
    return int(match[1]), int(match[2])


def counted(number: int, word: str) -> str:
    """``1 epoch``, ``1,875 steps``."""
    return f"{number:,} {word}" if number == 1 else f"{number:,} {word}s"
