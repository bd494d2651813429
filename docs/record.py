"""The terminal recording of the README: python docs/record.py runs its commands and writes docs/terminal.svg and terminal.txt.

The commands are the real ones, in a pseudo-terminal of 80 columns, on photos that are drawn here. What they print is rendered
by rich; the picture shows one command after the other, and all of it is in the text. Nothing needs a GPU or a network.
"""

import argparse
import io
import os
import pty
import random
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import SVG_EXPORT_THEME
from rich.text import Text

HERE = Path(__file__).resolve().parent
COLUMNS = 80
COMMANDS = ('budgetft fit --gpu "RTX 3060"', 'budgetft plan --gpu "RTX 3060" --data photos.csv --epochs 3')
PHOTOS = 2000
SECONDS_EACH = 14
"""How long one command is shown, before the other takes its turn."""
SCENE = "{styles}\x00{backgrounds}\x00{matrix}\x00{lines}\x00{terminal_width}\x00{terminal_height}"
"""Rich's own parts of a picture, to be put together anew."""
PICTURE = """\
<svg class="rich-terminal" viewBox="0 0 {width:.0f} {height:.0f}" xmlns="http://www.w3.org/2000/svg" role="img">
<title>{title}</title>
<style>
.window {{ fill: #1f2328; stroke: #8b949e; stroke-opacity: 0.5; }}
text {{ font: 20px ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace; white-space: pre; }}
{styles}
@media (prefers-reduced-motion: reduce) {{ * {{ animation: none !important; }} }}
</style>
<rect class="window" x="1" y="1" width="{inner_width:.0f}" height="{inner_height:.0f}" rx="8"/>
<circle cx="26" cy="22" r="7" fill="#ff5f57"/>
<circle cx="48" cy="22" r="7" fill="#febc2e"/>
<circle cx="70" cy="22" r="7" fill="#28c840"/>
{scenes}
</svg>
"""


def draw_photos(folder: Path) -> None:
    """``photos.csv`` with a caption for each of 2,000 drawn product photos of one megapixel; the same ones every time."""
    from PIL import Image, ImageDraw

    chance = random.Random(0)
    (folder / "photos").mkdir()
    rows = ["image,caption"]
    for number in range(PHOTOS):
        paper, thing = (tuple(chance.randrange(256) for _ in range(3)) for _ in range(2))
        width, height = chance.choice([(1024, 768), (768, 1024), (1024, 1024)])
        photo = Image.new("RGB", (width, height), paper)
        ImageDraw.Draw(photo).ellipse((width // 4, height // 4, 3 * width // 4, 3 * height // 4), fill=thing)
        photo.save(folder / f"photos/{number:04}.jpg", quality=80)
        what = f"{chance.choice(['red', 'blue', 'green', 'white'])} {chance.choice(['mug', 'lamp', 'chair', 'vase', 'bowl'])}"
        light = ", seen from the side with soft light and a small shadow" * chance.randrange(3)
        rows.append(f'photos/{number:04}.jpg,"A {what} on a plain background{light}."')
    (folder / "photos.csv").write_text("\n".join(rows) + "\n")


def printed(command: str, folder: Path) -> str:
    """What ``command`` prints on a terminal, colours included; its progress is not recorded."""
    words = [sys.executable, "-m", *shlex.split(command)]
    ours, theirs = pty.openpty()
    cache = str(folder / "cache")  # as on a new machine
    environment = {
        **os.environ,
        "COLUMNS": str(COLUMNS),
        "TERM": "xterm-256color",
        "BUDGETFT_CACHE": cache,
        "HF_HUB_OFFLINE": "1",
    }
    environment.pop("NO_COLOR", None)
    process = subprocess.Popen(
        words, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=theirs, stderr=subprocess.DEVNULL
    )
    os.close(theirs)
    pieces = []
    while True:
        try:
            piece = os.read(ours, 1 << 16)
        except OSError:  # Linux says so that the other end is closed
            break
        if not piece:
            break
        pieces.append(piece)
    os.close(ours)
    if process.wait() != 0:
        raise SystemExit(f"{command} ended with {process.returncode}")
    return b"".join(pieces).decode().replace("\r\n", "\n").rstrip()


def scene(number: int, command: str, output: str) -> dict[str, str]:
    """Rich's parts of the picture of one command and its output."""
    width = max(COLUMNS, *map(len, Text.from_ansi(output).plain.splitlines()))  # commands are not broken
    console = Console(record=True, width=width, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    console.print(Text(f"$ {command}", style="bold #7ee787"), soft_wrap=True)
    console.print(Text.from_ansi(output), soft_wrap=True)
    names = ("styles", "backgrounds", "matrix", "lines", "width", "height")
    parts = console.export_svg(theme=SVG_EXPORT_THEME, code_format=SCENE, unique_id=f"scene{number}").split("\x00")
    return dict(zip(names, parts, strict=True))


def picture(outputs: list[str]) -> str:
    """All commands in one picture, each shown for a while; without animation, the first."""
    scenes = [scene(number, *each) for number, each in enumerate(zip(COMMANDS, outputs, strict=True))]
    width = max(float(each["width"]) for each in scenes) + 24
    height = max(float(each["height"]) for each in scenes) + 60
    styles, groups = [], []
    for number, each in enumerate(scenes):
        styles += [each["styles"], *_turn(number, len(scenes))]
        groups.append(
            f'<g id="scene{number}" class="scene"><defs>{each["lines"]}</defs>'
            f'<g transform="translate(12, 40)">{each["backgrounds"]}{each["matrix"]}</g></g>'
        )
    return PICTURE.format(
        width=width,
        height=height,
        inner_width=width - 2,
        inner_height=height - 2,
        title="; then ".join(COMMANDS).replace('"', "&quot;"),
        styles="\n".join(styles),
        scenes="\n".join(groups),
    )


def _turn(number: int, scenes: int) -> list[str]:
    """Styles that show one scene in its turn."""
    ends = [f"{100 * place / scenes:g}%" for place in range(scenes + 1)]
    hidden = dict.fromkeys(ends[:number] + ends[number + 1 :], "hidden")
    steps = " ".join(f"{end} {{ visibility: {hidden.get(end, 'visible')} }}" for end in ends)
    first = "hidden" if number else "visible"
    return [
        f"#scene{number} {{ visibility: {first}; animation: turn{number} {SECONDS_EACH * scenes}s step-end infinite; }}",
        f"@keyframes turn{number} {{ {steps} }}",
    ]


def main() -> None:
    """Run the commands and write the picture and the text."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    with tempfile.TemporaryDirectory() as name:
        draw_photos(Path(name))
        outputs = [printed(command, Path(name)) for command in COMMANDS]
    (HERE / "terminal.svg").write_text(picture(outputs))
    plain = [f"$ {command}\n{Text.from_ansi(output).plain}\n" for command, output in zip(COMMANDS, outputs, strict=True)]
    (HERE / "terminal.txt").write_text("\n".join(plain))


if __name__ == "__main__":
    main()
