"""Every file that the tool reads, damaged ten thousand times: each is taken, or refused with a clear error; never a traceback.

    python reports/guard/fuzz.py [--inputs 700] [--seed 0] [--only READER]     # printed: fuzz.txt; an hour of one core, no GPU

Inputs are per reader, whose process is started again behind an input that kills it. Measured. Exit code 1 when one ends in a
traceback.
"""

import contextlib
import io
import json
import os
import random
import shutil
import sys
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from harness.arguments import flag, parser
from harness.children import run
from reader import Reader, damage_any
from readers import READERS

from budgetft.errors import BudgetftError


@dataclass
class Count:
    """What became of the inputs of one reader."""

    inputs: int = 0
    accepted: int = 0
    refused: int = 0
    tracebacks: int = 0
    died: int = 0
    seconds: float = 0.0

    def add(self, more: dict[str, float]) -> None:
        for name, value in more.items():
            setattr(self, name, getattr(self, name) + value)

    def row(self, name: str) -> str:
        numbers = f"{self.inputs:>8}{self.accepted:>10}{self.refused:>9}{self.tracebacks:>12}{self.died:>6}"
        return f"{name:<22}{numbers}{self.seconds:>9.1f}"


def fuzz(reader: Reader, *, inputs: int, seed: int, start: int = 0, on_input: Callable[[int], None] = lambda index: None):
    """Read ``inputs`` damaged copies of the reader's files; the counts, and the text of each different traceback."""
    count, told = Count(), {}
    with tempfile.TemporaryDirectory() as name:
        good, bad = Path(name) / "good", Path(name) / "bad"
        good.mkdir()
        reader.make(good)
        shutil.copytree(good, bad)
        reader.read(bad)  # an undamaged copy must be taken, or the rest says nothing
        for index in range(start, inputs):
            on_input(index)
            shutil.rmtree(bad, ignore_errors=True)
            shutil.copytree(good, bad)
            damage_any(reader, bad, random.Random(f"{reader.name} {seed} {index}"))
            outcome, trace = _try(reader, bad)
            count.add({outcome: 1, "inputs": 1})
            if trace:
                told.setdefault(trace, index)
    return count, told


def _try(reader: Reader, folder: Path) -> tuple[str, str | None]:
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            reader.read(folder)
    except BudgetftError:
        return "refused", None
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        own = next((frame for frame in reversed(frames) if "/budgetft/" in frame.filename), frames[-1])
        return "tracebacks", f"{type(error).__name__} in {Path(own.filename).name}:{own.lineno}: {str(error)[:120]!r}"
    return "accepted", None


def _in_a_child(reader: Reader, inputs: int, seed: int) -> tuple[Count, list[str]]:
    """The same in a process of its own, started again behind an input that kills it."""
    total, told, start = Count(), [], 0
    while start < inputs:
        words = ["--child", reader.name, "--inputs", inputs, "--seed", seed, "--start", start]
        done = run([sys.executable, __file__, *words])
        lines = done.out.splitlines()
        total.seconds += done.seconds
        if done.code == 0:
            answer = json.loads(lines[-1])
            total.add(answer["count"])
            return total, told + answer["told"]
        reached = [int(line) for line in lines if line.isdigit()]
        if not reached:
            raise SystemExit(f"{reader.name}: {done.err[-2000:]}")
        told.append(f"input {reached[-1]}: the process died: {done.code}; {done.err.strip()[-200:]}")
        # Taken or refused: what those before it were is lost with the process.
        total.add({"died": 1, "inputs": len(reached), "accepted": len(reached) - 1})
        start = reached[-1] + 1
    return total, told


options = flag(parser(__doc__, seed=0, only=None), "--inputs", type=int, default=700, help="of each reader")
flag(options, "--start", type=int, default=0, help="number of the first input")
flag(options, "--child", help="read in this process, and print the counts as JSON")


def main() -> int:
    asked, readers = options.parse_args(), {reader.name: reader for reader in READERS}
    if (asked.child or asked.only) not in {None, *readers}:
        options.error(f"no reader is called {asked.child or asked.only!r}; there are {', '.join(readers)}")
    if asked.child:
        how = {"inputs": asked.inputs, "seed": asked.seed, "start": asked.start}
        count, told = fuzz(readers[asked.child], **how, on_input=lambda index: print(index, flush=True))
        texts = [f"input {index}: {trace}" for trace, index in told.items()]
        print(json.dumps({"count": vars(count), "told": texts}))
        return 0
    widths = dict(zip((field.name for field in fields(Count)), (8, 10, 9, 12, 6, 9), strict=True))
    print(f"{'reader':<22}" + "".join(f"{name:>{width}}" for name, width in widths.items()))
    whole, all_told = Count(), []
    for reader in [readers[asked.only]] if asked.only else READERS:
        count, told = _in_a_child(reader, asked.inputs, asked.seed)
        print(count.row(reader.name), flush=True)
        whole.add(vars(count))
        all_told += [f"{reader.name}: {text}" for text in told]
    print(whole.row("all"), *(all_told or [""]), sep="\n")
    return 1 if whole.tracebacks or whole.died else 0


if __name__ == "__main__":
    sys.exit(main())
