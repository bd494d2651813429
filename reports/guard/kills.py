"""kill -9 at random moments of every command that works for long: nothing is lost but the work in flight.

    python reports/guard/kills.py [--kills 200] [--out reports/guard/kills.json]      # printed: kills.txt; hours, no GPU

Each command is started, killed after a random time, and started again until it ends by itself; then what it left is held
against that of an undisturbed process. Of a training in two processes one of them or the launcher is killed, at random.
A training run computes what came after its last checkpoint again, to the same bits.
Evidence: predicted (the CPU and its byte meter; no GPU was used).
"""

import json
import random
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
from harness.arguments import flag, parser
from harness.children import BUDGETFT, KILLED, Ended, descendants, environment, run
from harness.evidence import read_lines, write
from harness.small import TINY, adapter, contents, draw_examples, losses, save_random
from PIL import Image
from safetensors.numpy import load_file

from budgetft.data.examples import Example, write_dataset
from budgetft.measure.ledger import Ledger
from budgetft.plan import read_plan

ALONE = ("cache", "convert", "run")
"""Those that need neither the plan nor the run of the commands before them."""
COMMANDS = ("plan", "train", "predict", "cache", "convert", "merge", "pair", "run")
SMALL_SHARDS = (
    *(sys.executable, "-c"),
    "import budgetft.data.features as features; features.SHARD_BYTES = 2**17; from budgetft.cli import run; run()",
)
"""budgetft that writes features in files of 128 KiB instead of 256 MiB, so that a kill finds some written and some not."""
LAUNCH = "--multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no --dynamo_backend no --main_process_port 0"
PAIR = (sys.executable, "-m", "accelerate.commands.launch", *LAUNCH.split(), "-m", "budgetft")


@dataclass(kw_only=True)
class Campaign:
    """One command, given the place it writes to, and how what a disturbed one left is held against an undisturbed one."""

    name: str
    folder: Path
    arguments: Callable[[Path], list[str]]
    same: Callable[[Path, Path], bool]
    """Whether the first place has what the second, of the undisturbed command, has."""
    compared: str
    also: Callable[[], str] = lambda: ""
    """What else is told at the end."""
    check: Callable[[Path, Path], bool] = lambda out, whole: True
    """After each kill: whether what is there may be there."""
    finished: Callable[[Path], bool] = lambda out: False
    """Whether the command must not be started again."""
    moment: Callable[[Path, random.Random, float], tuple[float, Callable[[], bool] | None]] | None = None
    """From the seconds that the whole command takes: (seconds, since when they count)."""
    cache: Callable[[Path], Path] | None = None
    program: Sequence[str] = BUDGETFT
    most: int = 9
    """Kills before it is left to end."""
    suffix: str = ""

    @property
    def whole(self) -> Path:
        return self.folder / f"whole{self.suffix}"

    def start(
        self, out: Path, draw: random.Random, after: float | None = None, ready: Callable[[], bool] | None = None
    ) -> Ended:
        cache = self.cache(out) if self.cache else self.folder / "own"
        anyone = {"victim": lambda pid: draw.choice([pid, *descendants(pid)])} if self.program == PAIR else {}
        command = [*self.program, *self.arguments(out)]
        done = run(command, env=environment(cache, OMP_NUM_THREADS="1"), kill_after=after, ready=ready, **anyone)
        return done if after is not None and (done.code == KILLED or anyone) else done.checked()

    def fight(self, kills: int, draw: random.Random) -> dict:
        """A row: at least ``kills`` kills, how often the command came to its end, and how often something was lost."""
        seconds, done, ends, lost = self.start(self.whole, draw).seconds, 0, 0, 0
        while done < kills:
            out, ended = self.folder / f"out-{ends}{self.suffix}", False
            for _ in range(min(self.most, kills - done)):
                after, ready = self.moment(out, draw, seconds) if self.moment else (draw.uniform(0.35, 0.95) * seconds, None)
                ended = self.finished(out) or self.start(out, draw, after, ready).code == 0
                if ended:
                    break
                done += 1
                lost += not self.check(out, self.whole)
            if not (ended or self.finished(out)):
                self.start(out, draw)
            ends += 1
            lost += not self.same(out, self.whole)
        return {"command": self.name, "kills": done, "ends": ends, "lost": lost, "compared": self.compared + self.also()}


def texts(path: Path) -> list[tuple[str, str]]:
    return [(row["id"], row["text"]) for row in read_lines(path)]


def same_run(run: Path, whole: Path) -> bool:
    return adapter(run).read_bytes() == adapter(whole).read_bytes() and losses(run) == losses(whole)


def same_folder(out: Path, whole: Path) -> bool:
    return contents(out) == contents(whole)


def resumed(run: Path) -> list[str]:
    return ["--resume"] if (run / "run.json").is_file() else []


def plans(folder: Path, data: Path) -> Campaign:
    words = ["--gpu", "v100-16g", "--model", TINY, "--rank", "4", "--effective-batch", "4", "--budget", "700MiB", "--quiet"]
    fixed, seen = (
        ["plan", *words, "--data", str(data), "--probe", "always", "--max-probes", "6", "--out"],
        dict[Path, list[str]](),
    )

    def check(out: Path, whole: Path) -> bool:
        """No row of the ledger is lost; the plan is there whole or not at all: a kill may come after it was written."""
        ledger = out.with_suffix("") / "ledger.sqlite3"
        rows = [outcome.model_dump_json() for _, outcome in Ledger(ledger).rows()] if ledger.is_file() else []
        before, seen[out] = seen.get(out, []), rows
        return rows[: len(before)] == before and (not out.exists() or bool(read_plan(out)))

    def also() -> str:
        probes = {out: len(Ledger(out.with_suffix("") / "ledger.sqlite3")) for out in sorted(folder.glob("*.json"))}
        undisturbed = probes.pop(folder / "whole.json")
        return f"; {list(probes.values())} probes paid where {undisturbed} are undisturbed"

    return Campaign(
        name="plan", folder=folder, arguments=lambda out: [*fixed, str(out)], cache=lambda out: out.with_suffix(""),
        check=check, same=lambda out, whole: bool(read_plan(out)), compared="ledger rows never lost", also=also,
        most=6, suffix=".json",
    )  # fmt: skip


def trainings(folder: Path, plan: Path, steps: int) -> Campaign:
    fixed = ["train", "--plan", str(plan), "--steps", str(steps), "--save-every", "4", "--device", "cpu", "--weights", "random"]
    return Campaign(
        name="train", folder=folder, arguments=lambda out: [*fixed, "--quiet", "--out", str(out), *resumed(out)], same=same_run,
        compared=f"adapter bytes and the losses of {steps} steps",
    )  # fmt: skip


def pairs(folder: Path, plan: Path, steps: int) -> Campaign:
    small = read_plan(plan)
    half = small.knobs.replace(micro_batch=1, grad_accum=small.contract.effective_batch)
    (folder / "plan.json").write_text(small.replace(knobs=half).model_dump_json())
    made = trainings(folder, folder / "plan.json", steps)
    made.name, made.program, made.most = "train in two", PAIR, 5
    made.finished = lambda out: (out / "summary.json").is_file()
    return made


def predictions(folder: Path, run: Path, data: Path) -> Campaign:
    fixed = ["predict", "--run", str(run), "--data", str(data), "--device", "cpu", "--quiet", "--weights", "random"]
    fixed += ["--max-new-tokens", "16", "--batch", "2", "--out"]
    return Campaign(
        name="predict", folder=folder, arguments=lambda out: [*fixed, str(out)], suffix=".jsonl",
        same=lambda out, whole: texts(out) == texts(whole), compared="ids and texts of 24 predictions",
    )  # fmt: skip


def features(cache: Path) -> dict[str, bytes]:
    """Of each image, every byte of its features; an image in two files, or a file that is not whole, stops the script."""
    found: dict[str, bytes] = {}
    for path in cache.glob("*.safetensors"):
        shard = {digest: tensor.tobytes() for digest, tensor in load_file(path).items()}
        assert not shard.keys() & found.keys(), path
        found |= shard
    return found


def caches(folder: Path) -> Campaign:
    draw_noise(folder / "drawings", 300, lambda number: (224, 224 + 28 * (number % 3)))
    examples = [Example(id=str(n), images=(f"{n}.png",), prompt="What?", answer="noise") for n in range(300)]
    data = write_dataset(examples, folder / "data", images_root=folder / "drawings").folder
    fixed = ["data", "cache", str(data), "--model", TINY, "--weights", "random", "--device", "cpu", "--out"]
    seen, parts = dict[Path, set[str]](), list[Path]()

    def count(cache: Path) -> int:
        return len(list(cache.glob("*.safetensors")))

    def check(out: Path, whole: Path) -> bool:
        """What was written stays, and is what an undisturbed command writes."""
        now, expected = features(out), features(whole)
        before, seen[out] = seen.get(out, set()), {*now}
        parts.extend([out] if 0 < len(now) < len(expected) else [])
        return before <= now.keys() and all(expected[digest] == value for digest, value in now.items())

    def moment(out: Path, draw: random.Random, seconds: float) -> tuple[float, Callable[[], bool] | None]:
        """When some files are there, some of earlier tries; with none, any moment after the start."""
        enough = draw.randint(0, count(folder / "whole") - 1)
        return draw.uniform(0.0, 0.05) if enough else draw.uniform(0.0, 0.5) * seconds, lambda: count(out) >= enough

    def same(out: Path, whole: Path) -> bool:
        left = {path.name for path in out.iterdir() if path.suffix != ".safetensors"} - {"cache.json", ".lock"}
        return features(out) == features(whole) and not left

    return Campaign(
        name="data cache", folder=folder, arguments=lambda out: [*fixed, str(out)], program=SMALL_SHARDS, most=6, check=check,
        moment=moment, same=same, compared="every byte of the features of 300 images",
        also=lambda: f"; {len(parts)} kills left a part",
    )  # fmt: skip


def writers(name: str, folder: Path, words: list[str], what: str) -> Campaign:
    """A command that makes a folder: it is there whole or not at all."""
    return Campaign(
        name=name, folder=folder, arguments=lambda out: [*words, "--out", str(out)], most=6, finished=Path.exists,
        same=same_folder, check=lambda out, whole: not out.exists() or same_folder(out, whole),
        compared=f"every byte of {what}; none was there in part",
    )  # fmt: skip


def draw_noise(folder: Path, count: int, size: Callable[[int], tuple[int, int]] = lambda number: (112, 112)) -> None:
    """``count`` different images."""
    folder.mkdir()
    for number in range(count):
        noise = np.random.default_rng(number).integers(0, 256, (*size(number), 3), np.uint8)
        Image.fromarray(noise).save(folder / f"{number}.png")


def write_rows(folder: Path, *, pictures: int, rows: int) -> Path:
    """``rows.jsonl``, of images with captions, and the images."""
    draw_noise(folder / "drawings", pictures)
    made = [{"image": f"drawings/{n % pictures}.png", "caption": f"noise number {n}"} for n in range(rows)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in made))
    return folder / "rows.jsonl"


def conversions(folder: Path) -> Campaign:
    rows = write_rows(folder, pictures=60, rows=4000)
    return writers("convert", folder, ["data", "convert", str(rows)], "a dataset of 4,000 examples")


def merges(folder: Path, plan: Path) -> Campaign:
    run_, base = folder / "run", save_random(TINY, folder / "base")
    fixed = ["--steps", "2", "--device", "cpu", "--weights", str(base), "--quiet"]
    run([*BUDGETFT, "train", "--plan", plan, "--out", run_, *fixed], env=environment(folder / "own")).checked()
    return writers("merge", folder, ["merge", str(run_)], "a merged checkpoint")


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


def workflows(folder: Path) -> Campaign:
    (folder / "flow.toml").write_text(WORKFLOW.format(rows=write_rows(folder, pictures=8, rows=8)))

    def same(out: Path, whole: Path) -> bool:
        captions = [texts(next(each.rglob("predictions.jsonl"))) for each in (out, whole)]
        return same_run(out / "run", whole / "run") and captions[0] == captions[1]

    return Campaign(
        name="run", folder=folder, arguments=lambda out: ["run", str(folder / "flow.toml"), "--out", str(out)], most=5,
        same=same, compared="adapter bytes, losses and captions",
    )  # fmt: skip


options = flag(parser(__doc__, steps=40, seed=0, out=None), "--kills", type=int, default=200, help="in equal parts")
flag(options, "--commands", nargs="+", choices=COMMANDS, default=COMMANDS, help="some of them, and what they need")


def main() -> None:
    asked = options.parse_args()
    draw, rows = random.Random(asked.seed), []
    with tempfile.TemporaryDirectory() as temporary:
        folders = {name: Path(temporary) / name for name in COMMANDS}
        for folder in folders.values():
            folder.mkdir()
        data, plan, trained = Path(temporary) / "data", folders["plan"] / "whole.json", folders["train"] / "whole"
        draw_examples(data, 24)
        make: dict[str, Callable[[Path], Campaign]] = {
            "plan": partial(plans, data=data), "train": partial(trainings, plan=plan, steps=asked.steps),
            "predict": partial(predictions, run=trained, data=data), "cache": caches, "convert": conversions,
            "merge": partial(merges, plan=plan), "pair": partial(pairs, plan=plan, steps=12), "run": workflows,
        }  # fmt: skip
        needed = {*asked.commands, *(("plan", "train") if set(asked.commands) - set(ALONE) else ())}
        for name in (name for name in COMMANDS if name in needed):
            kills = -(-asked.kills // len(asked.commands)) if name in asked.commands else 0
            rows.append(make[name](folders[name]).fight(kills, draw))
            print(rows[-1], flush=True)
    print(f"{'command':<10}  {'kills':>5}  {'ends':>4}  {'lost or differing':>17}  compared")
    for row in rows:
        print(f"{row['command']:<10}  {row['kills']:>5}  {row['ends']:>4}  {row['lost']:>17}  {row['compared']}")
    total = sum(row["kills"] for row in rows)
    print(f"{total} kills, {sum(row['lost'] for row in rows)} losses (predicted: CPU, no GPU took part)")
    write(asked.out, rows, "predicted")
    raise SystemExit(any(row["lost"] for row in rows))


if __name__ == "__main__":
    main()
