"""Every file that the tool reads, damaged ten thousand times: each is taken, or refused with a clear error; never a traceback.

python reports/guard/fuzz.py [--inputs 700] [--seed 0] [--only READER]     (inputs are per reader)
"""

import argparse
import contextlib
import io
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from mutate import mutate_bytes, mutate_json
from readers import READERS, Reader

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
            _damage(reader, bad, random.Random(f"{reader.name} {seed} {index}"))
            outcome, trace = _try(reader, bad)
            setattr(count, outcome, getattr(count, outcome) + 1)
            count.inputs += 1
            if trace:
                told.setdefault(trace, index)
    return count, told


def _damage(reader: Reader, folder: Path, rng: random.Random) -> None:
    if reader.damage is not None and rng.random() < 0.6:
        reader.damage(folder, rng)
        return
    paths = [path for pattern in reader.files for path in sorted(folder.glob(pattern))]
    path = rng.choice(paths)
    content = path.read_bytes()
    if path.suffix == ".json" and rng.random() < 0.6:
        content = mutate_json(content.decode(), rng).encode(errors="surrogatepass")
    elif path.suffix == ".jsonl" and rng.random() < 0.6:
        lines = content.decode().splitlines()
        place = rng.randrange(len(lines))
        lines[place] = mutate_json(lines[place], rng)
        content = "\n".join(lines).encode(errors="surrogatepass") + b"\n"
    else:
        content = mutate_bytes(content, rng)
    path.write_bytes(content)


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
    total, told, start, began = Count(), [], 0, time.monotonic()
    while start < inputs:
        command = [sys.executable, __file__, "--child", reader.name, "--inputs", str(inputs), "--seed", str(seed)]
        done = subprocess.run([*command, "--start", str(start)], capture_output=True, text=True, errors="replace")
        lines = done.stdout.splitlines()
        if done.returncode == 0:
            answer = json.loads(lines[-1])
            for name, value in answer["count"].items():
                setattr(total, name, getattr(total, name) + value)
            told += answer["told"]
            break
        reached = [int(line) for line in lines if line.isdigit()]
        if not reached:
            raise SystemExit(f"{reader.name}: {done.stderr[-2000:]}")
        told.append(f"input {reached[-1]}: the process died: {done.returncode}; {done.stderr.strip()[-200:]}")
        total.died += 1
        total.inputs += len(reached)
        total.accepted += len(reached) - 1  # taken or refused: what they were is lost with the process
        start = reached[-1] + 1
    total.seconds = time.monotonic() - began
    return total, told


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=700)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--start", type=int, default=0)
    parser.add_argument("--only")
    parser.add_argument("--child")
    options = parser.parse_args()
    readers = {reader.name: reader for reader in READERS}
    if options.child:
        say = lambda index: print(index, flush=True)  # noqa: E731
        count, told = fuzz(readers[options.child], inputs=options.inputs, seed=options.seed, start=options.start, on_input=say)
        texts = [f"input {index}: {trace}" for trace, index in told.items()]
        print(json.dumps({"count": vars(count), "told": texts}))
        return 0
    print(f"{'reader':<22}{'inputs':>8}{'accepted':>10}{'refused':>9}{'tracebacks':>12}{'died':>6}{'seconds':>9}")
    whole, all_told = Count(), []
    for reader in [readers[options.only]] if options.only else READERS:
        count, told = _in_a_child(reader, options.inputs, options.seed)
        _row(reader.name, count)
        for name, value in vars(count).items():
            setattr(whole, name, getattr(whole, name) + value)
        all_told += [f"{reader.name}: {text}" for text in told]
    _row("all", whole)
    print("\n".join(all_told))
    return 1 if whole.tracebacks or whole.died else 0


def _row(name: str, count: Count) -> None:
    numbers = f"{count.inputs:>8}{count.accepted:>10}{count.refused:>9}{count.tracebacks:>12}{count.died:>6}"
    print(f"{name:<22}{numbers}{count.seconds:>9.1f}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
