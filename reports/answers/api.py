"""The Python API as a notebook has it: what is printed, how long it is, how long it takes. python reports/answers/api.py

With a folder as argument, the HTML of the results goes there as one page, to be looked at in a light and in a dark browser.
"""

import sys
import time
from pathlib import Path

START = time.perf_counter(), time.process_time()

from budgetft.api import Contract, Shape, UsageError, estimate, figure, read_plan, report, sweep  # noqa: E402

PLAN = Path(__file__).parents[1] / "spine" / "plan-448.json"


def clock(start: tuple[float, float] = (0.0, 0.0)) -> str:
    """Seconds since ``start``; CPU seconds beside them, which a busy machine does not lengthen as much."""
    return f"{time.perf_counter() - start[0]:.2f} s ({time.process_time() - start[1]:.2f} s of CPU)"


def now() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


IMPORTED = clock(START)


def main() -> None:
    print(f"import {IMPORTED}; torch loaded: {'torch' in sys.modules}")
    start = now()
    found = estimate("rtx3060-12g")
    print(f"first estimate {clock(start)}\n")
    print('estimate("rtx3060-12g")', found, "", sep="\n")
    print("found.hours(2000, 3)       ", found.hours(2000, 3))
    print("found.peak_gib             ", round(found.peak_gib, 2))
    print("found.examples_per_second  ", round(found.examples_per_second or 0, 2), found.examples_per_second_range, "\n")
    plan = read_plan(PLAN)
    print(plan, "", sep="\n")
    print(f"repr: estimate {len(repr(found))} characters, plan {len(repr(plan))}")
    start = now()
    asked = {"rank": [8, 16, 32, 64], "image": ["448x448", "896x896"], "micro_batch": [1, 2, 4]}
    table = sweep("rtx4090", **asked, examples=2000, epochs=3)
    print(f"\nsweep of {len(table)} rows: {clock(start)}")
    columns = [*asked, "peak_gib", "fits", "examples_per_second", "hours", "checkpointed_layers"]
    print(table[columns].round(2).to_string(index=False), "\n")
    for call in (
        lambda: Contract(lora_alpha=32),
        lambda: estimate("v100-16g", micro_batch="two"),
        lambda: estimate("v100-16g", work=3),
        lambda: estimate("v100-16g", budget="lots"),
        lambda: estimate(None),
    ):
        try:
            call()
        except UsageError as error:
            print("UsageError:", error.message.replace("\n", " "), f"(hint: {error.hint})" if error.hint else "")
    same = estimate("rtx3060-12g", work=Shape(images=((448, 448),), text_tokens=256, supervised_tokens=160))
    print("\nthe defaults are the command's:", same == found)
    if len(sys.argv) > 1:
        write_page(Path(sys.argv[1]), found, plan)


def write_page(folder: Path, found, plan) -> None:
    """What a notebook shows, on a page in the colours of Jupyter's light and dark themes."""
    style = "body{margin:0;font:14px system-ui} div.cell{padding:10px 16px}"
    style += " .dark{background:#111;color:#e0e0e0} .light{background:#fff}"
    parts = [found._repr_html_(), plan._repr_html_(), figure(plan, "frontier")._repr_svg_()]
    cells = "".join(f'<div class="cell">{part}</div>' for part in parts)
    for theme in ("light", "dark"):
        frame = report(plan)._repr_html_() if theme == "light" else ""
        page = f'<!doctype html><meta charset="utf-8"><style>{style}</style><body class="{theme}">{cells}{frame}</body>'
        (folder / f"{theme}.html").write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
