"""The Python API as a notebook has it: what is printed, how long it is, how long it takes; and what wrong arguments end in.

    python reports/answers/api.py [--pages FOLDER]         # printed: api.md; seconds of one core, no GPU
    python reports/answers/api.py --wrong [FUNCTION ...]   # every argument given forty wrong values; minutes

``--pages`` writes the HTML of the results, to be looked at in a light and in a dark browser. Of ``--wrong`` some values are
right after all, and are computed, on a tiny model; it prints what ends otherwise than in a BudgetftError. All is predicted.
"""

import resource
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from harness import SPINE
from harness.arguments import flag, parser

GPU, MODEL = "v100-16g", "tiny-qwen2.5-vl"
ASKED = {"rank": [8, 16, 32, 64], "image": ["448x448", "896x896"], "micro_batch": [1, 2, 4]}
ONE = ("work", "data", "image", "images", "text_tokens", "label_tokens")
ARGUMENTS = {
    "estimate": ("gpu", "model", *ONE, "budget", "contract", "knobs", "qlora", "progress", "SETTINGS"),
    "plan": ("gpu", "model", *ONE, "budget", "gpus", "contract", "ranges", "qlora", "deterministic", "cache", "probe",
             "storage", "max_probes", "ledger", "progress", "hours", "prefer", "sure", "examples", "rank", "micro_batch"),
    "sweep": ("gpu", "model", "examples", "epochs", "rank", "image", "micro_batch", "foo", "knobs"),
    "fit": ("gpu", "model", "budget", "images", "text_tokens", "label_tokens", "rank", "examples", "epochs", "foo"),
    "port": ("plan", "gpu", "budget", "precision", "probe"),
    "export": ("plan", "to", "model", "output", "dataset"),
    "train": ("plan", "steps", "resume", "save_every", "heldout", "heldout_every", "keep_best", "early_stopping", "weights",
              "data", "sample_captions", "deterministic", "device", "trackers", "progress"),
    "merge": ("run", "weights", "on_file"),
    "report": ("source",), "figure": ("source", "kind"), "load_gpu": ("name",), "load_model": ("name",), "read_plan": ("path",),
}  # fmt: skip


def now() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def clock(start: tuple[float, float]) -> str:
    """Seconds since ``start``; CPU seconds beside them, which a busy machine does not lengthen as much."""
    return f"{time.perf_counter() - start[0]:.2f} s ({time.process_time() - start[1]:.2f} s of CPU)"


def notebook(pages: Path | None) -> None:
    """What the cells of a notebook print."""
    start = now()
    from budgetft.api import Contract, Shape, UsageError, estimate, read_plan, sweep

    print(f"import {clock(start)}; torch loaded: {'torch' in sys.modules}")
    start = now()
    found = estimate("rtx3060-12g")
    print(f"first estimate {clock(start)}\n")
    print('estimate("rtx3060-12g")', found, "", sep="\n")
    print("found.hours(2000, 3)       ", found.hours(2000, 3))
    print("found.peak_gib             ", round(found.peak_gib, 2))
    print("found.examples_per_second  ", round(found.examples_per_second or 0, 2), found.examples_per_second_range, "\n")
    plan = read_plan(SPINE)
    print(plan, "", sep="\n")
    print(f"repr: estimate {len(repr(found))} characters, plan {len(repr(plan))}")
    start = now()
    table = sweep("rtx4090", **ASKED, examples=2000, epochs=3)
    print(f"\nsweep of {len(table)} rows: {clock(start)}")
    columns = [*ASKED, "peak_gib", "fits", "examples_per_second", "hours", "checkpointed_layers"]
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
    if pages:
        write_pages(pages, found, plan)


def write_pages(folder: Path, found, plan) -> None:
    """What a notebook shows, on a page in the colours of Jupyter's light and dark themes."""
    from budgetft.api import figure, report

    style = "body{margin:0;font:14px system-ui} div.cell{padding:10px 16px}"
    style += " .dark{background:#111;color:#e0e0e0} .light{background:#fff}"
    parts = [found._repr_html_(), plan._repr_html_(), figure(plan, "frontier")._repr_svg_()]
    cells = "".join(f'<div class="cell">{part}</div>' for part in parts)
    for theme in ("light", "dark"):
        frame = report(plan)._repr_html_() if theme == "light" else ""
        page = f'<!doctype html><meta charset="utf-8"><style>{style}</style><body class="{theme}">{cells}{frame}</body>'
        (folder / f"{theme}.html").write_text(page, encoding="utf-8")


def usual(function: str, folder: str) -> dict[str, Any]:
    """Arguments that are right."""
    from budgetft.api import Shape

    job = {"gpu": GPU, "model": MODEL, "work": Shape(images=((56, 56),), text_tokens=40, supervised_tokens=8)}
    return {
        "estimate": job,
        "plan": {**job, "probe": "never"},
        "sweep": {**job, "as_rows": True},
        "fit": {"gpu": "rtx3060-12g", "model": "qwen2.5-vl-3b"},
        "port": {"plan": SPINE, "gpu": GPU, "probe": "never"},
        "export": {"plan": SPINE, "to": "transformers"},
        "train": {"plan": SPINE, "out": f"{folder}/run"},
        "merge": {"run": folder, "out": f"{folder}/merged"},
        "figure": {"source": SPINE, "kind": "frontier"},
    }.get(function, {})


def wrong(functions: list[str]) -> None:
    """Print each call that ends in another error than the package's own, then how many ended how."""
    from budgetft import api
    from budgetft.api import BudgetftError, Contract, Knobs

    values = [
        *[None, 0, -1, 3, 2.5, float("nan"), float("inf"), True, 10**400, -(10**30), 1j, b"x", object(), int, len],
        *["", "two", "14GiB", "lots", "\0", "\ud800", "a" * 5000, "9" * 5000, "9" * 5000 + "x1", "0x0", "8..16"],
        *[[], [1], ["a"], (), (1, 2, 3), {}, {"rank": 8}, {1: 2}, {"foo": 1}, {"rank": "8"}, set()],
        *[Path("/nonexistent/x"), Path("."), Contract(), lambda: 1],
    ]
    settings = (*Contract.model_fields, *Knobs.model_fields, "foo", "lora_alpha")
    resource.setrlimit(resource.RLIMIT_AS, (12 * 2**30,) * 2)
    folder, count = tempfile.mkdtemp(), Counter[str]()
    for function in functions or ARGUMENTS:
        names = [each for name in ARGUMENTS[function] for each in (settings if name == "SETTINGS" else (name,))]
        for name, value in ((name, value) for name in names for value in values):
            arguments = {**usual(function, folder), name: value}
            if name in ONE[1:]:
                arguments.pop("work", None)
            try:
                getattr(api, function)(**arguments)
                ended = "done"
            except BudgetftError:
                ended = "BudgetftError"
            except Exception as error:
                ended = "otherwise"
                print(f"{function}({name}={str(value)[:40]!r}): {type(error).__name__}: {str(error)[:80]}", flush=True)
            count[ended] += 1
    print(", ".join(f"{ended} {number}" for ended, number in sorted(count.items())))


options = flag(parser(__doc__), "--pages", type=Path, metavar="FOLDER", help="for the HTML of the results")
flag(options, "--wrong", nargs="*", choices=ARGUMENTS, metavar="FUNCTION", help="wrong values, of all functions or of these")


def main() -> None:
    asked = options.parse_args()
    if asked.wrong is None:
        notebook(asked.pages)
    else:
        wrong(asked.wrong)


if __name__ == "__main__":
    main()
