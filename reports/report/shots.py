"""Pictures of pages: ``shots.py PAGE.html:WIDTH:light|dark:HEIGHT:OUT.png ...``, by the headless Chromium of the tests."""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "tests" / "report"), str(ROOT / "tests")]

from browser import Browser, find_browser  # noqa: E402

COLOURS = 256
"""Of a picture: the most that a palette holds."""


def main() -> None:
    """Take each picture from the top of its page."""
    from PIL import Image

    path = find_browser()
    if path is None:
        sys.exit("no Chromium here: put one on the PATH or name it in $BUDGETFT_CHROMIUM")
    browser = Browser(path)
    try:
        browser.call("Emulation.setScrollbarsHidden", hidden=True)
        for job in sys.argv[1:]:
            page, width, scheme, height, out = job.split(":")
            browser.open(Path(page), width=int(width), scheme=scheme)
            browser.screenshot(Path(out), height=int(height))
            with Image.open(out) as image:
                image.convert("RGB").quantize(COLOURS).save(out, optimize=True)
    finally:
        browser.close()


if __name__ == "__main__":
    main()
