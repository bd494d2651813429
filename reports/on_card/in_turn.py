"""Run the commands of a file on the GPUs of this host: a queue a GPU, each command once, what it printed kept.

    python reports/on_card/in_turn.py reports/on_card/commands.txt --out FOLDER [--cards 0,1]

A line is a name, on how many GPUs (1, or ``all``: then nothing else runs), how many such lines may share a GPU, and the
command; ``{out}`` in it is FOLDER. Lines start in their order as soon as a GPU has room. FOLDER/NAME.txt has what a command
printed, FOLDER/queue.jsonl its exit code and seconds. Started again with the same FOLDER it goes on: what ended with 0 is not
run again. An interrupt ends what runs, which then counts as not run.
What is measured and what is emulated the commands say.
"""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from harness.arguments import comma, flag, parser, there
from harness.evidence import read_lines

options = flag(parser(__doc__, out=...), "commands", type=there)
flag(options, "--gpus", type=comma, default=["0"], help="as CUDA_VISIBLE_DEVICES names them")


@dataclass(frozen=True, kw_only=True)
class Line:
    """One command. ``most``: lines on a GPU while it is there; ``everywhere``: it takes all GPUs, alone."""

    name: str
    everywhere: bool
    most: int
    words: tuple[str, ...]


@dataclass(kw_only=True)
class Running:
    line: Line
    gpus: tuple[str, ...]
    process: subprocess.Popen
    began: float = field(default_factory=time.monotonic)

    def ended(self, log: Path) -> bool:
        """Whether it did; then it is in the log."""
        code = self.process.poll()
        if code is not None:
            seconds = round(time.monotonic() - self.began, 1)
            with log.open("a") as file:
                print(json.dumps({"name": self.line.name, "code": code, "seconds": seconds, "cards": self.gpus}), file=file)
            print(f"{self.line.name}: exit code {code} after {seconds} s", flush=True)
        return code is not None


def read_commands(path: Path, out: Path) -> list[Line]:
    """Raises ``SystemExit`` for a line that is not one."""
    found = []
    for number, text in enumerate(path.read_text().splitlines(), 1):
        words = shlex.split(text.replace("{out}", str(out)), comments=True)
        if words and (len(words) < 4 or words[1] not in ("1", "all") or not words[2].isdigit()):
            raise SystemExit(f"{path}:{number}: write NAME 1|all MOST COMMAND...")
        if words:
            found.append(Line(name=words[0], everywhere=words[1] == "all", most=int(words[2]), words=tuple(words[3:])))
    return found


def place(line: Line, gpus: list[str], running: list[Running]) -> tuple[str, ...] | None:
    """The GPUs that ``line`` may start on now; None while there is no room."""
    if line.everywhere or any(each.line.everywhere for each in running):
        return tuple(gpus) if not running else None
    beside = {gpu: [each.line for each in running if gpu in each.gpus] for gpu in gpus}
    gpu = min(gpus, key=lambda name: len(beside[name]))
    most = min((other.most for other in (*beside[gpu], line)), default=line.most)
    return (gpu,) if len(beside[gpu]) < most else None


def start(line: Line, gpus: tuple[str, ...], out: Path) -> Running:
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ",".join(gpus), "PYTHONUNBUFFERED": "1"}
    with (out / f"{line.name}.txt").open("wb") as printed, (out / f"{line.name}.err").open("wb") as told:
        command = [sys.executable if word == "python" else word for word in line.words]
        process = subprocess.Popen(command, stdout=printed, stderr=told, env=environment, start_new_session=True)
    print(f"{line.name}: started on {','.join(gpus)}", flush=True)
    return Running(line=line, gpus=gpus, process=process)


def main() -> None:
    asked = options.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    log, running = asked.out / "queue.jsonl", list[Running]()
    done = {row["name"] for row in (read_lines(log) if log.exists() else ()) if row["code"] == 0}
    waiting = [line for line in read_commands(asked.commands, asked.out) if line.name not in done]
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        while waiting or running:
            running = [each for each in running if not each.ended(log)]
            if waiting and (gpus := place(waiting[0], asked.gpus, running)) is not None:
                running.append(start(waiting.pop(0), gpus, asked.out))
            time.sleep(0.5)
    finally:
        for each in running:
            if each.process.poll() is None:
                os.killpg(each.process.pid, signal.SIGKILL)


if __name__ == "__main__":
    main()
