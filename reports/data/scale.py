"""How fast and in how much memory `budgetft data convert` takes many images on disk, beside `datasets` decoding the same files.

    python reports/data/scale.py --rows 100000 > reports/data/scale.txt      # ten minutes on two cores, no GPU; measured

Draws the images, converts them with the command in a process of its own, kills a second conversion halfway and starts it
again, and has `datasets` alone decode every image with as many processes as there are cores.
"""

import json
import os
import random
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from harness.arguments import flag, parser
from harness.children import budgetft, run
from PIL import Image, ImageDraw

from budgetft.units import parse_size


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


DECODE = """
import json, sys, datasets; from pathlib import Path; datasets.disable_progress_bars()
rows = Path(sys.argv[1]); paths = [str(rows.parent / json.loads(line)["image"]) for line in rows.open()]
table = datasets.Dataset.from_dict({"image": paths}).cast_column("image", datasets.Image())
table.map(lambda row: {"width": row["image"].load() and row["image"].width}, remove_columns=["image"],
          num_proc=int(sys.argv[2]), load_from_cache_file=False)
"""

options = flag(parser(__doc__), "--rows", type=int, default=100_000)
flag(options, "--size", default="320x240")


def main() -> None:
    asked, cores = options.parse_args(), len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        rows = draw(root, asked.rows, parse_size(asked.size))
        alone = run([sys.executable, "-c", DECODE, rows, cores]).checked().seconds
        whole = budgetft("data", "convert", rows, "--out", root / "out", env=None)
        budgetft("data", "convert", rows, "--out", root / "again", env=None, kill_after=whole.seconds / 2)
        rest = budgetft("data", "convert", rows, "--out", root / "again", env=None)
    memory = whole.peak_bytes / 2**20
    print(f"{asked.rows} JPEG images of {asked.size} on disk, {cores} cores")
    print(f"datasets alone, every image decoded, {cores} processes: {asked.rows / alone:8.0f} rows/s")
    print(f"budgetft data convert, the whole command:       {asked.rows / whole.seconds:8.0f} rows/s, {memory:.0f} MiB at most")
    print(f"killed after half of the time, then started again:  {rest.seconds:.1f} s instead of {whole.seconds:.1f} s")


if __name__ == "__main__":
    main()
