"""What `--gpu` makes of what people type: the GPU that it is taken for, or the sentence said, and how long that takes.

    python reports/answers/gpu_names.py [--out FOLDER]      # a second of one core, no GPU

Writes gpu_names.md beside this script or into FOLDER. Milliseconds are measured, of the processor, in one process that looks
names up one after another: the first reads what all profiles are called, the rest do not.
"""

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from harness.arguments import parser
from harness.children import clocked
from harness.tables import head, row

from budgetft.errors import UsageError
from budgetft.gpu import all_gpus, look_up

TYPED = (
    "rtx 3060", "RTX 3060", "rtx3060", "3060", "geforce rtx 3060 12gb", "RTX 3060 8GB", "NVIDIA GeForce RTX 3060",
    "Tesla V100-SXM2-16GB", "NVIDIA RTX A6000", "NVIDIA A100-SXM4-80GB", "NVIDIA H100 80GB HBM3",
    "NVIDIA GeForce RTX 4070 Laptop GPU", "4070 laptop", "4070m", "rtx3090-24g", "4090 24 GB", "4070 Ti Super", "rtx titan",
    "A10G", "agx orin 64gb", "1080ti", "v100", "RTX 4060 Ti", "RTX 6000", "40", "24", "rtx3090-48g", "rtx4090ti", "rtx 9999",
    "", "24GiB", "24GB", "24g:sm_75", "24GiB:blackwell", "0GiB", "10TB", "-5GiB", "24GiB:sm_999", "24GiB:sm_37", "RX 7900 XTX",
    "MI300X", "Radeon", "Arc A770", "M3 Max", "Apple M2", "Gaudi", "tpu v5e", "cpu", "K80", "M60", "GTX 970", "GTX 1080", "P4",
    "x" * 300,
)  # fmt: skip


def answer(text: str) -> str:
    """The GPU with what was assumed, or what is said instead, as two cells of a table."""
    try:
        gpu, assumed = look_up(text)
    except UsageError as error:
        return f"*{error.message}* | {error.hint}"
    return f"`{gpu.name}` | {assumed or ' '}"


def line(text: str) -> str:
    """The row of one text."""
    started = time.process_time()
    said = answer(text)
    seconds = time.process_time() - started
    shown = text if len(text) <= 40 else f"{text[:12]}... ({len(text)} characters)"
    return row(f"`{shown or ' '}`", said, f"{seconds * 1e3:.1f} ms")


options = parser(__doc__, out=Path(__file__).resolve().parent)


def main() -> None:
    written, rows = options.parse_args().out / "gpu_names.md", list(map(line, TYPED))
    seconds = clocked(all_gpus, time.process_time)
    lines = [
        "# What `--gpu` takes",
        "",
        "Made by `python reports/answers/gpu_names.py`; a sentence in italics is an error, beside it the hint.",
        f"All {len(all_gpus())} profiles with their sources are read in {seconds * 1e3:.0f} ms of the processor.",
        "",
        head("typed", "taken as, or said", "note, or hint", "time", rule=" --- "),
        *rows,
        "",
    ]
    written.write_text("\n".join(lines), encoding="utf-8")
    print(f"written to {written}")


if __name__ == "__main__":
    main()
