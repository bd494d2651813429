"""kill -9 at random moments of every command that works for long: nothing is lost but the work in flight.

    PYTHONPATH=.:tests/train python reports/guard/kills.py [--kills 200] [--out reports/guard/kills.json]

Each command is started, killed after a random time, and started again until it ends by itself; then what it left is held
against that of an undisturbed process. Of a training in two processes one of them or the launcher is killed, at random.
A training run computes what came after its last checkpoint again, to the same bits.
Evidence: predicted (the CPU and its byte meter; no GPU took part).
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
from drawn import draw_examples
from PIL import Image
from safetensors.numpy import load_file

from budgetft.data.examples import Example, write_dataset
from budgetft.measure.ledger import Ledger
from budgetft.plan import read_plan

COMMANDS = ("plan", "train", "predict", "cache", "convert", "merge", "pair", "run")
MODEL = "tiny-qwen2.5-vl"
BUDGETFT = (sys.executable, "-m", "budgetft")
SMALL_SHARDS = (
    *(sys.executable, "-c"),
    "import budgetft.data.features as features; features.SHARD_BYTES = 2**17; from budgetft.cli import run; run()",
)
"""budgetft that writes features in files of 128 KiB instead of 256 MiB, so that a kill finds some written and some not."""


class Command:
    """A budgetft command that is killed now and then."""

    def __init__(self, arguments: Callable[[], list[str]], cache: Path, program: tuple[str, ...] = BUDGETFT) -> None:
        self.arguments = arguments
        self.program = program
        self.environment = {**os.environ, "BUDGETFT_CACHE": str(cache), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}

    def run_group(self, draw: random.Random, kill_after: float | None = None) -> bool:
        """The same of a launcher and its processes: one of them all is killed. Whether all ended by themselves."""
        with tempfile.TemporaryFile() as told:
            process = subprocess.Popen([*self.program, *self.arguments()], env=self.environment, stdout=told, stderr=told)
            try:
                code = process.wait(kill_after)
            except subprocess.TimeoutExpired:
                others = descendants(process.pid)
                victim = draw.choice([process.pid, *others])
                with suppress(ProcessLookupError):
                    os.kill(victim, signal.SIGKILL)
                process.wait(120 if victim != process.pid else 5)  # a launcher ends the others itself
                for other in others:
                    with suppress(ProcessLookupError):
                        os.kill(other, signal.SIGKILL)
                return False
            if code:
                told.seek(0)
                raise SystemExit(f"exit code {code}: {told.read().decode()[-3000:]}")
        return True

    def run(self, kill_after: float | None = None, ready: Callable[[], bool] = lambda: True) -> tuple[bool, float]:
        """Whether the process ended by itself, and its seconds; an end with an error stops the script.

        It is killed ``kill_after`` seconds after ``ready`` first said so.
        """
        began = time.monotonic()
        with tempfile.TemporaryFile() as told:
            process = subprocess.Popen([*self.program, *self.arguments()], env=self.environment, stdout=told, stderr=told)
            while not ready() and process.poll() is None:
                time.sleep(0.002)
            try:
                code = process.wait(kill_after)
            except subprocess.TimeoutExpired:
                process.kill()
                code = process.wait()
            if code not in (0, -signal.SIGKILL):
                told.seek(0)
                raise SystemExit(f"exit code {code}: {told.read().decode()[-3000:]}")
        return code == 0, time.monotonic() - began


def descendants(pid: int) -> list[int]:
    """The processes that ``pid`` started, and those that they did."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
    found = [pid]
    for one in found:
        found += [child for child, parent in parents.items() if parent == one]
    return found[1:]


def disturbed(command: Command, seconds: float, kills: int, draw: random.Random, check: Callable[[], None]) -> int:
    """Kill ``command`` up to ``kills`` times, then let it end; ``check`` is called after each kill. Returns the kills."""
    done = 0
    while done < kills:
        ended, _ = command.run(draw.uniform(0.35, 0.95) * seconds)
        if ended:
            return done
        done += 1
        check()
    command.run()
    return done


def losses(run: Path) -> list[tuple[int, float]]:
    return [(row["step"], row["loss"]) for row in map(json.loads, (run / "log.jsonl").read_text().splitlines())]


def texts(path: Path) -> list[tuple[str, str]]:
    return [(row["id"], row["text"]) for row in map(json.loads, path.read_text().splitlines())]


def plan_arguments(data: Path, out: Path) -> list[str]:
    fixed = ["--gpu", "v100-16g", "--model", MODEL, "--rank", "4", "--effective-batch", "4", "--budget", "700MiB"]
    return ["plan", *fixed, "--data", str(data), "--probe", "always", "--max-probes", "6", "--quiet", "--out", str(out)]


def kill_plans(folder: Path, data: Path, kills: int, draw: random.Random) -> dict:
    whole = folder / "whole.json"
    _, seconds = Command(lambda: plan_arguments(data, whole), folder / "whole-cache").run()
    done, lost, probes = 0, 0, []
    for number in range(1000):
        if done >= kills:
            break
        cache, out = folder / f"cache-{number}", folder / f"plan-{number}.json"
        seen: list[str] = []

        def check(cache: Path = cache, out: Path = out, seen: list[str] = seen) -> None:
            nonlocal lost
            rows = []
            if (cache / "ledger.sqlite3").is_file():
                rows = [outcome.model_dump_json() for _, outcome in Ledger(cache / "ledger.sqlite3").rows()]
            lost += rows[: len(seen)] != seen
            seen[:] = rows
            if out.exists():  # whole, or not at all: the kill came after it was written
                read_plan(out)

        command = Command(lambda out=out: plan_arguments(data, out), cache)
        done += disturbed(command, seconds, min(6, kills - done), draw, check)
        probes.append(len(Ledger(cache / "ledger.sqlite3")))
        read_plan(out)
    undisturbed = len(Ledger(folder / "whole-cache" / "ledger.sqlite3"))
    return {"command": "plan", "kills": done, "ends": len(probes), "lost": lost,
            "compared": f"ledger rows never lost; {probes} probes paid where {undisturbed} are undisturbed"}  # fmt: skip


def kill_trainings(folder: Path, plan: Path, kills: int, draw: random.Random, steps: int) -> dict:
    def arguments(run: Path) -> list[str]:
        fixed = ["train", "--plan", str(plan), "--out", str(run), "--steps", str(steps), "--save-every", "4", "--device", "cpu"]
        return [*fixed, "--weights", "random", "--quiet", *(["--resume"] if (run / "run.json").is_file() else [])]

    whole = folder / "whole"
    _, seconds = Command(lambda: arguments(whole), folder / "cache").run()
    done, ends, differing = 0, 0, 0
    while done < kills:
        run = folder / f"run-{ends}"
        command = Command(lambda run=run: arguments(run), folder / "cache")
        done += disturbed(command, seconds, min(9, kills - done), draw, lambda: None)
        ends += 1
        same = (run / "adapter" / "adapter_model.safetensors").read_bytes() == (
            whole / "adapter" / "adapter_model.safetensors"
        ).read_bytes()
        differing += not (same and losses(run) == losses(whole))
    return {"command": "train", "kills": done, "ends": ends, "lost": differing,
            "compared": f"adapter bytes and the losses of {steps} steps"}  # fmt: skip


def kill_predictions(folder: Path, run: Path, data: Path, kills: int, draw: random.Random) -> dict:
    def arguments(out: Path) -> list[str]:
        fixed = ["predict", "--run", str(run), "--data", str(data), "--out", str(out), "--device", "cpu", "--quiet"]
        return [*fixed, "--weights", "random", "--max-new-tokens", "16", "--batch", "2"]

    whole = folder / "whole.jsonl"
    _, seconds = Command(lambda: arguments(whole), folder / "cache").run()
    done, ends, differing = 0, 0, 0
    while done < kills:
        out = folder / f"predictions-{ends}.jsonl"
        command = Command(lambda out=out: arguments(out), folder / "cache")
        done += disturbed(command, seconds, min(9, kills - done), draw, lambda: None)
        ends += 1
        differing += texts(out) != texts(whole)
    return {"command": "predict", "kills": done, "ends": ends, "lost": differing,
            "compared": f"ids and texts of {len(texts(whole))} predictions"}  # fmt: skip


def features(cache: Path) -> dict[str, bytes]:
    """Of each image, every byte of its features; an image in two files, or a file that is not whole, stops the script."""
    found: dict[str, bytes] = {}
    for path in cache.glob("*.safetensors"):
        shard = {digest: tensor.tobytes() for digest, tensor in load_file(path).items()}
        assert not shard.keys() & found.keys(), path
        found |= shard
    return found


def kill_caches(folder: Path, kills: int, draw: random.Random) -> dict:
    data = draw_noise(folder / "data", 300)

    def arguments(cache: Path) -> list[str]:
        return ["data", "cache", str(data), "--model", MODEL, "--weights", "random", "--device", "cpu", "--out", str(cache)]

    whole = folder / "whole"
    _, seconds = Command(lambda: arguments(whole), folder / "own", SMALL_SHARDS).run()
    expected, files = features(whole), len(list(whole.glob("*.safetensors")))
    done, ends, lost, partly = 0, 0, 0, 0
    while done < kills:
        cache = folder / f"cache-{ends}"
        seen: set[str] = set()

        def check(cache: Path = cache, seen: set[str] = seen) -> None:
            nonlocal lost, partly
            now = features(cache)
            lost += not seen <= now.keys() or any(expected[digest] != value for digest, value in now.items())
            partly += 0 < len(now) < len(expected)
            seen |= now.keys()

        command = Command(lambda cache=cache: arguments(cache), folder / "own", SMALL_SHARDS)
        for _ in range(min(6, kills - done)):
            enough = draw.randint(0, files - 1)  # files, some of them of earlier tries; with none, any moment after the start
            after = draw.uniform(0.0, 0.05) if enough else draw.uniform(0.0, 0.5) * seconds
            if command.run(after, lambda cache=cache, enough=enough: len(list(cache.glob("*.safetensors"))) >= enough)[0]:
                break
            done += 1
            check()
        command.run()
        ends += 1
        left = {path.name for path in cache.iterdir() if path.suffix != ".safetensors"} - {"cache.json", ".lock"}
        lost += features(cache) != expected or bool(left)
    return {"command": "data cache", "kills": done, "ends": ends, "lost": lost,
            "compared": f"every byte of the features of {len(expected)} images; {partly} kills left a part"}  # fmt: skip


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder; what a kill left beside the work in hidden names is not read by anything."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files if not path.name.startswith(".")}


def kill_writers(
    name: str, arguments: Callable[[Path], list[str]], folder: Path, kills: int, draw: random.Random, what: str
) -> dict:
    """A command that makes a folder: it is there whole or not at all."""
    whole = folder / "whole"
    _, seconds = Command(lambda: arguments(whole), folder / "own").run()
    expected = contents(whole)
    done, ends, lost = 0, 0, 0
    while done < kills:
        out = folder / f"out-{ends}"

        def check(out: Path = out) -> None:
            nonlocal lost
            lost += out.exists() and contents(out) != expected

        command = Command(lambda out=out: arguments(out), folder / "own")
        for _ in range(min(6, kills - done)):
            if out.exists() or command.run(draw.uniform(0.3, 1.0) * seconds)[0]:
                break
            done += 1
            check()
        if not out.exists():
            command.run()
        ends += 1
        lost += contents(out) != expected
    return {
        "command": name,
        "kills": done,
        "ends": ends,
        "lost": lost,
        "compared": f"every byte of {what}; none was there in part",
    }


def write_rows(folder: Path, *, pictures: int, rows: int) -> None:
    """``rows.jsonl``, of images with captions, and the images."""
    drawings = folder / "drawings"
    drawings.mkdir()
    for number in range(pictures):
        noise = np.random.default_rng(number).integers(0, 256, (112, 112, 3), np.uint8)
        Image.fromarray(noise).save(drawings / f"{number}.png")
    made = [{"image": f"drawings/{n % pictures}.png", "caption": f"noise number {n}"} for n in range(rows)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in made))


def kill_conversions(folder: Path, kills: int, draw: random.Random) -> dict:
    write_rows(folder, pictures=60, rows=4000)

    def arguments(out: Path) -> list[str]:
        return ["data", "convert", str(folder / "rows.jsonl"), "--out", str(out)]

    return kill_writers("convert", arguments, folder, kills, draw, "a dataset of 4,000 examples")


def save_base(folder: Path) -> Path:
    """Random weights of the tiny model."""
    import torch
    from transformers import AutoModelForImageTextToText

    from budgetft.model import load_model
    from budgetft.step.build import model_config

    torch.manual_seed(3)
    AutoModelForImageTextToText.from_config(model_config(load_model(MODEL)), dtype=torch.float32).save_pretrained(folder)
    return folder


def kill_merges(folder: Path, plan: Path, kills: int, draw: random.Random) -> dict:
    base, run = save_base(folder / "base"), folder / "run"
    fixed = ["--out", str(run), "--steps", "2", "--device", "cpu", "--weights", str(base), "--quiet"]
    Command(lambda: ["train", "--plan", str(plan), *fixed], folder / "own").run()
    return kill_writers("merge", lambda out: ["merge", str(run), "--out", str(out)], folder, kills, draw, "a merged checkpoint")


def kill_pairs(folder: Path, plan: Path, kills: int, draw: random.Random, steps: int) -> dict:
    launch = [*("--multi_gpu", "--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no")]
    launch += ["--dynamo_backend", "no", "--main_process_port", "0", "-m", "budgetft"]
    program = (sys.executable, "-m", "accelerate.commands.launch", *launch)
    small = read_plan(plan)
    half = small.knobs.replace(micro_batch=1, grad_accum=small.contract.effective_batch)
    (folder / "plan.json").write_text(small.replace(knobs=half).model_dump_json())

    def arguments(run: Path) -> list[str]:
        fixed = ["train", "--plan", str(folder / "plan.json"), "--out", str(run), "--steps", str(steps), "--save-every", "4"]
        fixed += ["--device", "cpu", "--weights", "random", "--quiet"]
        return [*fixed, *(["--resume"] if (run / "run.json").is_file() else [])]

    whole = folder / "whole"
    began = time.monotonic()
    Command(lambda: arguments(whole), folder / "own", program).run_group(draw)
    seconds, done, ends, differing = time.monotonic() - began, 0, 0, 0
    while done < kills:
        run = folder / f"run-{ends}"
        command = Command(lambda run=run: arguments(run), folder / "own", program)
        for _ in range(min(5, kills - done)):
            if command.run_group(draw, draw.uniform(0.4, 0.95) * seconds):
                break
            done += 1
        if not (run / "summary.json").is_file():
            command.run_group(draw)
        ends += 1
        adapters = [(each / "adapter" / "adapter_model.safetensors").read_bytes() for each in (run, whole)]
        differing += adapters[0] != adapters[1] or losses(run) != losses(whole)
    return {"command": "train in two", "kills": done, "ends": ends, "lost": differing,
            "compared": f"adapter bytes and the losses of {steps} steps"}  # fmt: skip


WORKFLOW = """
[data]
from = "convert"
file = "{rows}"

[plan]
gpu = "v100-16g"
model = "tiny-qwen2.5-vl"
budget = "700MiB"
rank = 4
effective-batch = 4
probe = "never"

[train]
weights = "random"
steps = 8
device = "cpu"

[predict]
max-new-tokens = 8
device = "cpu"

[report]
"""


def kill_workflows(folder: Path, kills: int, draw: random.Random) -> dict:
    write_rows(folder, pictures=8, rows=8)
    (folder / "flow.toml").write_text(WORKFLOW.format(rows=folder / "rows.jsonl"))

    def results(out: Path) -> tuple[bytes, list[tuple[int, float]], list[tuple[str, str]]]:
        adapter = (out / "run" / "adapter" / "adapter_model.safetensors").read_bytes()
        return adapter, losses(out / "run"), texts(next(out.rglob("predictions.jsonl")))

    whole = folder / "whole"
    _, seconds = Command(lambda: ["run", str(folder / "flow.toml"), "--out", str(whole)], folder / "own").run()
    expected, done, ends, differing = results(whole), 0, 0, 0
    while done < kills:
        out = folder / f"out-{ends}"
        command = Command(lambda out=out: ["run", str(folder / "flow.toml"), "--out", str(out)], folder / "own")
        done += disturbed(command, seconds, min(5, kills - done), draw, lambda: None)
        ends += 1
        differing += results(out) != expected
    return {"command": "run", "kills": done, "ends": ends, "lost": differing, "compared": "adapter bytes, losses and captions"}


def draw_noise(folder: Path, count: int) -> Path:
    """A dataset of ``count`` different images."""
    drawings = folder.with_name("drawings")
    drawings.mkdir()
    for number in range(count):
        noise = np.random.default_rng(number).integers(0, 256, (224, 224 + 28 * (number % 3), 3), np.uint8)
        Image.fromarray(noise).save(drawings / f"{number}.png")
    examples = [Example(id=str(n), images=(f"{n}.png",), prompt="What?", answer="noise") for n in range(count)]
    return write_dataset(examples, folder, images_root=drawings).folder


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=200, help="in equal parts")
    parser.add_argument("--commands", nargs="+", choices=COMMANDS, default=COMMANDS, help="the others are run undisturbed")
    parser.add_argument("--steps", type=int, default=40, help="of a training")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    each = -(-chosen.kills // len(chosen.commands))
    kills = {name: each if name in chosen.commands else 0 for name in COMMANDS}
    draw = random.Random(chosen.seed)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for name in ("plans", "trainings", "predictions", "caches", "conversions", "merges", "pairs", "workflows"):
            (folder / name).mkdir()
        data = draw_examples(folder / "data", 24).folder
        whole_plan, whole_run = folder / "plans" / "whole.json", folder / "trainings" / "whole"
        # What follows needs the plan and the run of the commands before it, killed or not.
        calls: dict[str, Callable[[], dict]] = {
            "plan": lambda: kill_plans(folder / "plans", data, kills["plan"], draw),
            "train": lambda: kill_trainings(folder / "trainings", whole_plan, kills["train"], draw, chosen.steps),
            "predict": lambda: kill_predictions(folder / "predictions", whole_run, data, kills["predict"], draw),
            "cache": lambda: kill_caches(folder / "caches", kills["cache"], draw),
            "convert": lambda: kill_conversions(folder / "conversions", kills["convert"], draw),
            "merge": lambda: kill_merges(folder / "merges", whole_plan, kills["merge"], draw),
            "pair": lambda: kill_pairs(folder / "pairs", whole_plan, kills["pair"], draw, 12),
            "run": lambda: kill_workflows(folder / "workflows", kills["run"], draw),
        }
        alone = {"cache", "convert", "run"}
        needed = [
            name for name in COMMANDS if name in chosen.commands or (name in ("plan", "train") and set(chosen.commands) - alone)
        ]
        rows = []
        for name in needed:
            rows.append(calls[name]())
            print(rows[-1], flush=True)
    print(f"{'command':<10}  {'kills':>5}  {'ends':>4}  {'lost or differing':>17}  compared")
    for row in rows:
        print(f"{row['command']:<10}  {row['kills']:>5}  {row['ends']:>4}  {row['lost']:>17}  {row['compared']}")
    total = sum(row["kills"] for row in rows)
    print(f"{total} kills, {sum(row['lost'] for row in rows)} losses (predicted: CPU, no GPU took part)")
    if chosen.out:
        chosen.out.write_text(json.dumps(rows, indent=1) + "\n")
    raise SystemExit(any(row["lost"] for row in rows))


if __name__ == "__main__":
    main()
