"""What other trainers need of a GPU, by prediction, and beside what was measured or reported of them.

    python reports/answers/trainers.py [all]

Prints the tables of ``trainers.md``. The first is of Qwen2.5-VL-3B, one image of 448x448, 256 text tokens of which 160 are
labels, rank 16, effective batch 32. Takes seconds, as most of its memory models ship; with ``all`` also Liger, 4-bit bases and
public reports of larger models, each of which is traced for a minute.
"""

import sys
from typing import Any

from budgetft.contract import Contract
from budgetft.export.peer_table import PeerTable, peer_table
from budgetft.export.peers import PEERS, setup_of
from budgetft.gpu import load_gpu
from budgetft.measure.job import Job
from budgetft.model import load_model
from budgetft.units import GIB
from budgetft.workload import Shape, Workload

GPUS = ("rtx3060-12g", "rtx4090", "v100-16g")
SIZES = ((448, 448), (1288, 728))


def table_of(trainer: str, gpu: str, model: str, shape: Shape, contract: Contract, **options: Any) -> PeerTable:
    """The table of ``trainer`` with ``options`` of :func:`setup_of`."""
    profile, architecture = load_gpu(gpu), load_model(model)
    job = Job(
        gpu=profile,
        budget_bytes=profile.budget_bytes,
        model=architecture,
        contract=contract,
        workload=Workload.uniform(shape),
        evidence="predicted",
    )
    return peer_table(setup_of(trainer, profile, architecture, **options), job)


def one(size: tuple[int, int], *, images: int = 1, text: int = 256, labels: int = 160) -> tuple[Shape, Contract]:
    """Examples of so many equal images, and a contract that keeps their size."""
    contract = Contract(max_pixels=size[0] * size[1], max_length=8192)
    return Shape(images=(size,) * images, text_tokens=text, supervised_tokens=labels), contract


def gib(size_bytes: int) -> str:
    """Two digits."""
    return f"{size_bytes / GIB:.2f}"


def by_trainer(*, everything: bool) -> None:
    """The first table: every trainer with a base in 16 bits; with ``everything`` also with Liger and in 4 bits."""
    shape, contract = one(SIZES[0])
    print("| trainer | GPU | peak at micro-batch 1, 4, 16 (GiB) | best that fits | its peak | examples/s |")
    print("|---|---|---|---|---|---|")
    for name, peer in PEERS.items():
        variants = [{"load_in_4bit": False}]
        variants += [{"gradient_checkpointing": True}] if not peer.checkpointing else []
        if everything:
            variants += [{"liger": True, "gradient_checkpointing": True}] if peer.liger_name else []
            variants += [{"load_in_4bit": True, "gradient_checkpointing": True}]
        for options in variants:
            for gpu in GPUS:
                found = table_of(name, gpu, "qwen2.5-vl-3b", shape, contract, **options)
                peaks = ", ".join(gib(found.row(size).estimate.process_peak_bytes) for size in (1, 4, 16))
                title = f"{peer.title}, {found.setup.describe()}"
                if found.best is None:
                    print(f"| {title} | {gpu} | {peaks} | none | - | - |")
                    continue
                best = found.row(found.best).estimate
                print(f"| {title} | {gpu} | {peaks} | {found.best} | {gib(best.process_peak_bytes)} | {best.speed_text('')} |")


def against_our_measurements() -> None:
    """The second: what was measured on an H200 (bf16, flash attention, 14 GiB cap), by the size of the image."""
    rows = (
        ("unsloth", {"load_in_4bit": False}, SIZES[0], 16, 9.9, 7.85),
        ("unsloth", {"load_in_4bit": False}, SIZES[1], 4, 9.7, 1.62),
        ("trainer", {"gradient_checkpointing": True}, SIZES[0], 4, 13.68, 2.95),
        ("trainer", {"gradient_checkpointing": True}, SIZES[1], 1, 12.36, 0.71),
    )
    print("\n| trainer | image | micro-batch | predicted GiB | measured GiB | off | predicted examples/s | measured |")
    print("|---|---|---|---|---|---|---|---|")
    for name, options, size, micro, peak, speed in rows:
        shape, contract = one(size)
        row = table_of(name, "h200-141g", "qwen2.5-vl-3b", shape, contract, **options).row(micro)
        predicted = row.estimate.process_peak_bytes / GIB
        print(
            f"| {name} | {size[0]}x{size[1]} | {micro} | {predicted:.2f} | {peak} | {predicted / peak - 1:+.0%}"
            f" | {row.estimate.speed_text('')} | {speed} |"
        )


def against_reports() -> None:
    """The third: public reports whose settings are known well enough to be predicted, in their own units."""
    shape, contract = one((512, 512), text=512, labels=128)
    found = table_of("llamafactory", "rtx5090-32g", "qwen2.5-vl-7b", shape, contract.replace(rank=8))
    peak = gib(found.row(1).estimate.process_peak_bytes)
    print(f"\nLlamaFactory#9331: Qwen2.5-VL-7B, rank 8, 512x512, micro-batch 1, RTX 5090: predicted {peak} GiB")
    print("\ndeepspeed-course#31: Qwen3-VL-8B LoRA on an A40, micro-batch 1, GB (1e9 bytes)")
    for visual, reported in ((276, 22.1), (540, 25.3), (1068, 31.6), (1596, 37.9)):
        rows = visual // 12
        shape, contract = one((12 * 32, rows * 32), text=128, labels=64)
        said = []
        for checkpointing in (False, True):
            # An A40 has the kernels and twice the memory of an RTX 3090.
            found = table_of("trainer", "rtx3090", "qwen3-vl-8b", shape, contract, gradient_checkpointing=checkpointing)
            said.append(found.row(1).estimate.process_peak_bytes / 1e9)
        print(f"{visual} visual tokens: predicted {said[0]:.1f} without checkpointing, {said[1]:.1f} with; reported {reported}")


if __name__ == "__main__":
    everything = sys.argv[1:] == ["all"]
    by_trainer(everything=everything)
    against_our_measurements()
    if everything:
        against_reports()
