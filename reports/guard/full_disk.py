"""A full disk at every place that a command writes to: one sentence, nothing whole is lost, and with room the work goes on.

    sudo PYTHONPATH=.:tests/train python reports/guard/full_disk.py --out reports/guard/full_disk.json     # mounts a tmpfs

Each command's output lies on a file system of a few MiB. It is given a part of what the command needs, then all of it, and the
command is run again (`--resume` for a run). Before it was run: with too little room every command ends with a sentence and no
traceback, and leaves nothing that looks whole and is not; with room the result is that of an undisturbed command, to the byte.
Evidence: predicted (the CPU; no GPU took part).
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from drawn import draw_examples
from kills import contents, losses, save_base, texts

SHARES = (0.02, 0.2, 0.45, 0.7, 0.95)
MODEL = "tiny-qwen2.5-vl"


@contextmanager
def small_disk(folder: Path) -> Iterator[Callable[[int], None]]:
    """A file system at ``folder``; the function given changes its bytes."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1g", "tmpfs", str(folder)], check=True)
    try:
        yield lambda size: subprocess.run(["mount", "-o", f"remount,size={size}", str(folder)], check=True) and None
    finally:
        subprocess.run(["umount", str(folder)], check=False)


def budgetft(arguments: list[str], cache: Path) -> tuple[int, str]:
    """Its exit code, and what it said on stderr."""
    environment = {**os.environ, "BUDGETFT_CACHE": str(cache), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "budgetft", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    return done.returncode, done.stderr


def used(folder: Path) -> int:
    """Bytes on the file system of ``folder``, in its blocks."""
    found = os.statvfs(folder)
    return (found.f_blocks - found.f_bfree) * found.f_frsize


def tried(
    name: str, disk: Path, resize: Callable[[int], None], own: Path, arguments: Callable[[Path], list[str]], read: Callable
) -> dict:
    """One command at every share of the room that it needs."""
    where = disk / "out"
    code, told = budgetft(arguments(where), own)
    if code:
        raise SystemExit(f"{name}: {told[-2000:]}")
    need, expected = used(disk), read(where)
    rows = []
    for share in SHARES:
        for path in disk.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        resize(max(4096, int(share * need)))
        code, told = budgetft(arguments(where), own)
        sentence = next((line for line in told.splitlines() if line.startswith("error:")), "")
        resize(2 * need + 2**20)
        again, later = budgetft(arguments(where), own)
        same = again == 0 and read(where) == expected
        clean = "Traceback" not in told and bool(sentence) == (code != 0)
        rows.append(
            {"share": share, "code": code, "said": sentence[:160].replace(str(disk), "DISK"), "clean": clean, "same": same}
        )
        if not (clean and same):
            print(told[-1500:], later[-1500:], flush=True)
    print(name, need, [(row["share"], row["code"], row["clean"], row["same"]) for row in rows], flush=True)
    resize(2**30)
    for path in disk.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return {"command": name, "bytes": need, "rows": rows}


def feature_bytes(cache: Path) -> int:
    """Of a cache's files, which a second try may deal otherwise."""
    return sum(path.stat().st_size for path in cache.glob("*.safetensors"))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--commands", nargs="+", help="some of them; all when left out")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary, small_disk(Path(temporary) / "disk") as resize:
        folder = Path(temporary)
        disk, own = folder / "disk", folder / "own"
        data = draw_examples(folder / "data", 12).folder
        fixed = [
            "--gpu",
            "v100-16g",
            "--model",
            MODEL,
            "--rank",
            "4",
            "--effective-batch",
            "4",
            "--budget",
            "700MiB",
            "--quiet",
        ]
        plan = ["plan", *fixed, "--data", str(data), "--probe", "never"]
        if budgetft([*plan, "--out", str(folder / "plan.json")], own)[0]:
            raise SystemExit("plan")
        base = save_base(folder / "base")
        train = [
            "train",
            "--plan",
            str(folder / "plan.json"),
            "--steps",
            "6",
            "--save-every",
            "2",
            "--device",
            "cpu",
            "--quiet",
        ]
        if budgetft([*train, "--weights", str(base), "--out", str(folder / "run")], own)[0]:
            raise SystemExit("train")
        rows = [{"image": str(path), "caption": path.name} for path in sorted(data.rglob("*.png"))]
        (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

        def trained(out: Path) -> list[str]:
            return [*train, "--weights", "random", "--out", str(out), *(["--resume"] if (out / "run.json").is_file() else [])]

        def run_of(out: Path) -> tuple[bytes, list[tuple[int, float]]]:
            return (out / "adapter" / "adapter_model.safetensors").read_bytes(), losses(out)

        predict = [
            "predict",
            "--run",
            str(folder / "run"),
            "--data",
            str(data),
            "--device",
            "cpu",
            "--quiet",
            "--max-new-tokens",
            "8",
        ]
        cache = ["data", "cache", str(data), "--model", MODEL, "--weights", "random", "--device", "cpu"]
        convert = ["data", "convert", str(folder / "rows.jsonl")]
        uses: dict[str, tuple[Callable[[Path], list[str]], Callable[[Path], object]]] = {
            "plan": (lambda out: [*plan, "--out", str(out)], lambda out: json.loads(out.read_text())["knobs"]),
            "train": (trained, run_of),
            "data convert": (lambda out: [*convert, "--out", str(out)], contents),
            "data cache": (lambda out: [*cache, "--out", str(out)], feature_bytes),
            "predict": (lambda out: [*predict, "--out", str(out)], texts),
            "merge": (lambda out: ["merge", str(folder / "run"), "--out", str(out)], contents),
        }
        made = [
            tried(name, disk, resize, own, arguments, read)
            for name, (arguments, read) in uses.items()
            if name in (chosen.commands or uses)
        ]
    chosen.out.write_text(json.dumps(made, indent=1) + "\n")
    bad = [
        f"{each['command']} at {row['share']}" for each in made for row in each["rows"] if not (row["clean"] and row["same"])
    ]
    print(
        "failed: " + ", ".join(bad)
        if bad
        else f"{sum(len(each['rows']) for each in made)} full disks: all said in a sentence, nothing lost"
    )
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
