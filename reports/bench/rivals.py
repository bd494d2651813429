"""What one would install instead, on the same GPU under the same cap: Trainer, Trainer with Liger, TRL's SFTTrainer.

    python reports/bench/rivals.py OUT.json [--kinds trainer,trainer-liger,trl] [--sizes 448x448,1288x728]
        [--start 448x448=4,1288x728=1] [--largest 32] [--seconds 240] [--budget 14GiB] [--model qwen2.5-vl-3b] [--device cuda]

Each kind runs its own loop, loss and options, on the model that budgetft trains too: random weights, base in fp16, LoRA of
rank 16 in fp32, one image and 256 text tokens of which 160 are label tokens, nothing padded. The allocator is capped and the
kernels are restricted as in a probe, so on another GPU than the V100 every row is ``emulated``: its budget and its choice of
attention kernels, not its speed, and Triton (Liger, TRL's head) is faster on newer GPUs than on Volta.

Without a GPU (``--device cpu``) it shows that the script runs. A micro-batch is tried from ``--start`` upwards in powers of two
until it does not fit. An attempt is one optimizer step to warm up and at most two timed ones, of two micro-batches each;
``samples_per_second`` is that of an effective batch of 32 made of such micro-batches and one update. Fetching the data is not
timed. After an out-of-memory the process goes on only if it holds no more than before; else it ends and the next attempt is
made in a new one. OUT.json is written after each row. PYTORCH_ALLOC_CONF reaches the rivals as it is set. Other kinds than the
three: see ``KINDS`` in ``rivals_child.py``.

Unsloth is not here. Release 2026.10.9 wants ``trl<=1.15.0`` and ``datasets<5``, so it cannot share this environment; it loads
a checkpoint from a hub or a folder, which random weights are not; and it chooses its kernels by the compute capability of the
GPU it runs on (below 7.5 its fused head is off), so that on another GPU it would show what a V100 would not do.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from harness.arguments import comma, flag, parser
from harness.evidence import write
from harness.tables import gib
from rivals_child import ACCUMULATED, EFFECTIVE_BATCH, KINDS

from budgetft.units import parse_size

Size = tuple[int, int]


def next_micro_batch(fits: dict[int, bool], start: int, largest: int) -> int | None:
    """The power of two to try after those tried: down from the start until one fits, up from there until one does not."""
    if not fits:
        return start
    if not any(fits.values()):
        return min(fits) // 2 or None
    if not all(fits.values()):
        return None
    return max(fits) * 2 if max(fits) * 2 <= largest else None


class Child:
    """A child process of one kind, started anew when the last one has ended."""

    def __init__(self, asked: dict[str, str], log: Path, until: float) -> None:
        self.asked, self.log, self.until = asked, log, until
        self.process: subprocess.Popen[str] | None = None

    def _start(self) -> dict[str, Any]:
        reading, writing = os.pipe()
        script = Path(__file__).with_name("rivals_child.py")
        command = [sys.executable, str(script), json.dumps(self.asked), str(writing)]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=log, stderr=log, pass_fds=(writing,), text=True
            )
        os.close(writing)
        self.answers = os.fdopen(reading)
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self.process is not None
        timer = threading.Timer(max(0.0, self.until - time.monotonic()), self.process.kill)
        timer.start()
        line = self.answers.readline()
        timer.cancel()
        if line:
            return json.loads(line)
        if time.monotonic() >= self.until:
            return {"ended": "time_out", "detail": "the time for this kind was over"}
        said = self.log.read_text(errors="replace").strip().splitlines() or ["it said nothing"]
        return {"ended": "crashed", "detail": f"exit code {self.process.wait()}: {said[-1][:300]}"}

    def ask(self, size: Size, micro_batch: int) -> dict[str, Any]:
        """The row of one attempt."""
        row: dict[str, Any] = {"width": size[0], "height": size[1], "micro_batch": micro_batch}
        message: dict[str, Any] = {"ready": True}
        if self.process is None or self.process.poll() is not None:
            message = self._start()
        if "ready" in message:
            assert self.process is not None
            assert self.process.stdin is not None
            print(f"{size[0]} {size[1]} {micro_batch}", file=self.process.stdin, flush=True)
            message = self._answer()
        if "row" in message:
            if not message["row"]["returned"]:
                self.close()
            return message["row"]
        self.close()
        if "unusable" in message:
            return row | {"status": "unusable", "detail": message["unusable"], "versions": message["versions"]}
        return row | {"status": message["ended"], "detail": message["detail"]}

    def close(self) -> None:
        """End the process."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


def rows_of_kind(kind: str, arguments: argparse.Namespace, until: float) -> Iterator[dict[str, Any]]:
    """Attempts of one kind at all sizes, until the time is over."""
    asked = {"kind": kind} | {name: getattr(arguments, name) for name in ("model", "device", "gpu", "budget")}
    with tempfile.TemporaryDirectory() as folder:
        child = Child(asked, Path(folder) / "log", until)
        try:
            for size in arguments.sizes:
                fits: dict[int, bool] = {}
                first, largest = arguments.start.get(size, 1), arguments.largest
                while (micro_batch := next_micro_batch(fits, first, largest)) is not None:
                    row = {"kind": kind} | child.ask(size, micro_batch)
                    yield row
                    fits[micro_batch] = row["status"] == "ok"
                    if row["status"] in ("unusable", "time_out"):
                        return
                    if row["status"] in ("failed", "crashed"):
                        break
        finally:
            child.close()


def summary(row: dict[str, Any]) -> str:
    """One line for the terminal."""
    told = f"{row['kind']:16} {row['width']}x{row['height']} micro-batch {row['micro_batch']:2}: "
    if row["status"] not in ("ok", "over_budget"):
        return told + f"{row['status']}, {row['detail']}"
    told += f"{row['status']}, {row['samples_per_second']:.2f} samples/s ({row['evidence']})"
    if "process_peak_bytes" in row:
        told += f", process peak {gib(row['process_peak_bytes'])} GiB"
    return told + ("" if row["loss_finite"] else ", loss not finite")


def best_lines(rows: list[dict[str, Any]]) -> Iterator[str]:
    """The fastest row that fits, of each kind and size that has one."""
    best: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in rows:
        key = row["kind"], row["width"], row["height"]
        rate = best[key]["samples_per_second"] if key in best else 0.0
        if row["status"] == "ok" and row["samples_per_second"] > rate:
            best[key] = row
    yield from ("best: " + summary(row) for row in best.values())


def parse_start(text: str) -> dict[Size, int]:
    """``448x448=4,1288x728=1`` as the first micro-batch of each size."""
    found = {parse_size(size): int(micro) for size, micro in (pair.split("=") for pair in text.split(","))}
    for micro in found.values():
        if micro not in (1, 2, 4, 8, 16, 32):
            raise argparse.ArgumentTypeError(f"a micro-batch is a power of two up to {EFFECTIVE_BATCH}, not {micro}")
    return found


def parse_kinds(text: str) -> list[str]:
    """Names out of ``KINDS``."""
    names = text.split(",")
    if unknown := [name for name in names if name not in KINDS]:
        raise argparse.ArgumentTypeError(f"unknown kind {unknown[0]!r}; there are {', '.join(KINDS)}")
    return names


options = parser(__doc__, gpu="v100-16g", model="qwen2.5-vl-3b")
flag(options, "out", type=Path)
flag(options, "--kinds", type=parse_kinds, default="trainer,trainer-liger,trl")
flag(options, "--sizes", type=lambda text: [parse_size(part) for part in comma(text)], default="448x448,1288x728")
flag(options, "--start", type=parse_start, default="448x448=4,1288x728=1")
flag(options, "--largest", type=int, choices=(1, 2, 4, 8, 16, 32), default=EFFECTIVE_BATCH)
flag(options, "--seconds", type=float, default=240.0, help="for everything; shared equally by the kinds left")
flag(options, "--budget", default="14GiB")
flag(options, "--device", choices=("cuda", "cpu"), default="cuda")


def main() -> None:
    """Write the JSON after every row, print a line for each."""
    asked = options.parse_args()
    rows, end = [], time.monotonic() + asked.seconds
    facts = {"model": asked.model, "budget": asked.budget, "gpu": asked.gpu}
    facts |= {"effective_batch": EFFECTIVE_BATCH, "accumulated_in_an_attempt": ACCUMULATED}
    for done, kind in enumerate(asked.kinds):
        now = time.monotonic()
        for row in rows_of_kind(kind, asked, now + (end - now) / (len(asked.kinds) - done)):
            rows.append(row)
            print(summary(row), flush=True)
            write(asked.out, {**facts, "rows": rows}, row.get("evidence", "measured"))
    print(*best_lines(rows), sep="\n")


if __name__ == "__main__":
    main()
