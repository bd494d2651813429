"""A full disk at every place that a command writes to: one sentence, nothing whole is lost, and with room the work goes on.

    sudo python reports/guard/full_disk.py --out reports/guard/full_disk.json     # mounts a tmpfs; ten minutes, no GPU

Each command's output lies on a file system of a few MiB. It is given a part of what the command needs, then all of it, and the
command is run again (`--resume` for a run). Before it was run: with too little room every command ends with a sentence and no
traceback, and leaves nothing that looks whole and is not; with room the result is that of an undisturbed command, to the byte.
Evidence: predicted (the CPU; no GPU was used).
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from harness.arguments import flag, parser
from harness.children import budgetft, environment
from harness.evidence import write
from harness.small import TINY, adapter, contents, draw_examples, losses, save_random
from kills import resumed, texts

SHARES = (0.02, 0.2, 0.45, 0.7, 0.95)
COMMANDS = ("plan", "train", "data convert", "data cache", "predict", "merge")
Use = tuple[Callable[[Path], list[str]], Callable[[Path], object]]
"""The words of a command that writes to a place, and what is compared of the place."""


@contextmanager
def small_disk(folder: Path) -> Iterator[Callable[[int], None]]:
    """A file system at ``folder``; the function given changes its bytes."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1g", "tmpfs", str(folder)], check=True)
    try:
        yield lambda size: subprocess.run(["mount", "-o", f"remount,size={size}", str(folder)], check=True) and None
    finally:
        subprocess.run(["umount", str(folder)], check=False)


def empty(disk: Path) -> None:
    for path in disk.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def tried(name: str, disk: Path, resize: Callable[[int], None], own: Path, use: Use) -> dict:
    """One command at every share of the room that it needs."""
    (words, read), where, rows = use, disk / "out", []
    budgetft(*words(where), env=environment(own, OMP_NUM_THREADS="1")).checked()
    blocks = os.statvfs(disk)
    need, expected = (blocks.f_blocks - blocks.f_bfree) * blocks.f_frsize, read(where)
    for share in SHARES:
        empty(disk)
        resize(max(4096, int(share * need)))
        short = budgetft(*words(where), env=environment(own, OMP_NUM_THREADS="1"))
        sentence = next((line for line in short.err.splitlines() if line.startswith("error:")), "")
        resize(2 * need + 2**20)
        again = budgetft(*words(where), env=environment(own, OMP_NUM_THREADS="1"))
        same = again.code == 0 and read(where) == expected
        clean = "Traceback" not in short.err and bool(sentence) == (short.code != 0)
        said = sentence[:160].replace(str(disk), "DISK")
        rows.append({"share": share, "code": short.code, "said": said, "clean": clean, "same": same})
        if not (clean and same):
            print(short.err[-1500:], again.err[-1500:], flush=True)
    print(name, need, [(row["share"], row["code"], row["clean"], row["same"]) for row in rows], flush=True)
    resize(2**30)
    empty(disk)
    return {"command": name, "bytes": need, "rows": rows}


def uses_of(folder: Path, own: Path) -> dict[str, Use]:
    """Every command, with a plan, a run and data in ``folder`` to work on."""
    data, cpu = draw_examples(folder / "data", 12).folder, ["--device", "cpu", "--quiet"]
    fixed = ["--gpu", "v100-16g", "--model", TINY, "--rank", "4", "--effective-batch", "4", "--budget", "700MiB", "--quiet"]
    plan = ["plan", *fixed, "--data", str(data), "--probe", "never"]
    train = ["train", "--plan", str(folder / "plan.json"), "--steps", "6", "--save-every", "2", *cpu]
    budgetft(*plan, "--out", folder / "plan.json", env=environment(own, OMP_NUM_THREADS="1")).checked()
    base = save_random(TINY, folder / "base")
    budgetft(*train, "--weights", base, "--out", folder / "run", env=environment(own, OMP_NUM_THREADS="1")).checked()
    rows = [{"image": str(path), "caption": path.name} for path in sorted(data.rglob("*.png"))]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    predict = ["predict", "--run", str(folder / "run"), "--data", str(data), *cpu, "--max-new-tokens", "8"]
    cache = ["data", "cache", str(data), "--model", TINY, "--weights", "random", "--device", "cpu"]

    def to(words: list[str]) -> Callable[[Path], list[str]]:
        return lambda out: [*words, "--out", str(out)]

    return {
        "plan": (to(plan), lambda out: json.loads(out.read_text())["knobs"]),
        "train": (
            lambda out: [*to([*train, "--weights", "random"])(out), *resumed(out)],
            lambda out: (adapter(out).read_bytes(), losses(out)),
        ),
        "data convert": (to(["data", "convert", str(folder / "rows.jsonl")]), contents),
        # A second try may deal features out otherwise.
        "data cache": (to(cache), lambda out: sum(path.stat().st_size for path in out.glob("*.safetensors"))),
        "predict": (to(predict), texts),
        "merge": (to(["merge", str(folder / "run")]), contents),
    }


options = flag(parser(__doc__, out=...), "--commands", nargs="+", choices=COMMANDS, default=COMMANDS, help="some of them")


def main() -> None:
    asked = options.parse_args()
    with tempfile.TemporaryDirectory() as temporary, small_disk(Path(temporary) / "disk") as resize:
        folder = Path(temporary)
        uses = uses_of(folder, folder / "own")
        made = [tried(name, folder / "disk", resize, folder / "own", uses[name]) for name in asked.commands]
    write(asked.out, made, "predicted")
    bad = [
        f"{each['command']} at {row['share']}" for each in made for row in each["rows"] if not (row["clean"] and row["same"])
    ]
    count = sum(len(each["rows"]) for each in made)
    print("failed: " + ", ".join(bad) if bad else f"{count} full disks: all said in a sentence, nothing lost")
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
