"""How fast and in how much memory `budgetft data convert` takes many images on disk, beside `datasets` decoding the same files.

    PYTHONPATH=. python reports/data/scale.py --rows 100000 > reports/data/scale.txt

Draws the images, converts them with the command in a process of its own, kills a second conversion halfway and starts it
again, and has `datasets` alone decode every image with as many processes as there are cores.
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
from pathlib import Path

from PIL import Image, ImageDraw


def draw(root: Path, count: int, size: tuple[int, int]) -> Path:
    """``count`` JPEG files and ``rows.jsonl`` of conversations about them."""
    (root / "images").mkdir()
    random_ = random.Random(0)
    with (root / "rows.jsonl").open("w") as file:
        for number in range(count):
            image = Image.new("RGB", size, tuple(random_.randrange(256) for _ in range(3)))
            pen = ImageDraw.Draw(image)
            for _ in range(6):
                x, y = random_.randrange(size[0]), random_.randrange(size[1])
                pen.rectangle((x, y, x + random_.randrange(90), y + random_.randrange(90)), fill=(random_.randrange(256),) * 3)
            pen.text((5, 5), str(number))
            name = f"images/{number:06d}.jpg"
            image.save(root / name, quality=85)
            turns = [
                {"from": "human", "value": "<image>\nWhat is drawn here?"},
                {"from": "gpt", "value": f"Picture {number}: a few grey boxes on a coloured ground."},
            ]
            file.write(json.dumps({"id": f"p{number}", "image": name, "conversations": turns}) + "\n")
    return root / "rows.jsonl"


def converted(rows: Path, out: Path, *, stop_after: float | None = None) -> tuple[float, float]:
    """Seconds, and the largest resident memory in MiB, of the command; killed after ``stop_after`` seconds."""
    began = time.perf_counter()
    command = [sys.executable, "-m", "budgetft", "data", "convert", str(rows), "--out", str(out)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    if stop_after is not None:
        time.sleep(stop_after)
        process.send_signal(signal.SIGKILL)
    _, _, used = os.wait4(process.pid, 0)
    return time.perf_counter() - began, used.ru_maxrss / 1024


def decoded(rows: Path, processes: int) -> float:
    """Seconds of `datasets` alone to decode every image."""
    code = (
        "import json, sys, datasets; from pathlib import Path; datasets.disable_progress_bars()\n"
        "rows = Path(sys.argv[1]); paths = [str(rows.parent / json.loads(line)['image']) for line in rows.open()]\n"
        "table = datasets.Dataset.from_dict({'image': paths}).cast_column('image', datasets.Image())\n"
        "table.map(lambda row: {'width': row['image'].load() and row['image'].width}, remove_columns=['image'],\n"
        "          num_proc=int(sys.argv[2]), load_from_cache_file=False)\n"
    )
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", code, str(rows), str(processes)], check=True, stderr=subprocess.DEVNULL)
    return time.perf_counter() - began


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--rows", type=int, default=100_000)
    arguments.add_argument("--size", default="320x240")
    given = arguments.parse_args()
    width, height = map(int, given.size.split("x"))
    cores = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        rows = draw(root, given.rows, (width, height))
        alone = decoded(rows, cores)
        seconds, memory = converted(rows, root / "out")
        converted(rows, root / "again", stop_after=seconds / 2)
        rest, _ = converted(rows, root / "again")
    print(f"{given.rows} JPEG images of {given.size} on disk, {cores} cores")
    print(f"datasets alone, every image decoded, {cores} processes: {given.rows / alone:8.0f} rows/s")
    print(f"budgetft data convert, the whole command:       {given.rows / seconds:8.0f} rows/s, {memory:.0f} MiB at most")
    print(f"killed after half of the time, then started again:  {rest:.1f} s instead of {seconds:.1f} s")


if __name__ == "__main__":
    main()
