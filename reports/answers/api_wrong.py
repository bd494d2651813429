"""Every argument of the Python API given every one of some forty wrong values: what ends otherwise than in a BudgetftError.

python reports/answers/api_wrong.py [FUNCTION ...]; some values are right after all, and are computed, on a tiny model.
"""

import resource
import sys
import tempfile
from collections import Counter
from pathlib import Path

from budgetft import api
from budgetft.api import BudgetftError, Contract, Knobs, Shape

GPU, MODEL = "v100-16g", "tiny-qwen2.5-vl"
PLAN = Path(__file__).parents[1] / "spine" / "plan-448.json"
WRONG = [
    *[None, 0, -1, 3, 2.5, float("nan"), float("inf"), True, 10**400, -(10**30), 1j, b"x", object(), int, len],
    *["", "two", "14GiB", "lots", "\0", "\ud800", "a" * 5000, "9" * 5000, "9" * 5000 + "x1", "0x0", "8..16"],
    *[[], [1], ["a"], (), (1, 2, 3), {}, {"rank": 8}, {1: 2}, {"foo": 1}, {"rank": "8"}, set()],
    *[Path("/nonexistent/x"), Path("."), Contract(), lambda: 1],
]
ONE = ("work", "data", "image", "images", "text_tokens", "label_tokens")
SETTINGS = (*Contract.model_fields, *Knobs.model_fields, "foo", "lora_alpha")
ARGUMENTS = {
    "estimate": ("gpu", "model", *ONE, "budget", "contract", "knobs", "qlora", "progress", *SETTINGS),
    "plan": ("gpu", "model", *ONE, "budget", "cards", "contract", "ranges", "qlora", "deterministic", "cache", "probe",
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


def usual(function: str, folder: str) -> dict:
    """Arguments that are right."""
    job = {"gpu": GPU, "model": MODEL, "work": Shape(images=((56, 56),), text_tokens=40, supervised_tokens=8)}
    return {
        "estimate": job,
        "plan": {**job, "probe": "never"},
        "sweep": {**job, "as_rows": True},
        "fit": {"gpu": "rtx3060-12g", "model": "qwen2.5-vl-3b"},
        "port": {"plan": PLAN, "gpu": GPU, "probe": "never"},
        "export": {"plan": PLAN, "to": "transformers"},
        "train": {"plan": PLAN, "out": f"{folder}/run"},
        "merge": {"run": folder, "out": f"{folder}/merged"},
        "figure": {"source": PLAN, "kind": "frontier"},
    }.get(function, {})


def main() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (12 * 2**30,) * 2)
    folder, count = tempfile.mkdtemp(), Counter[str]()
    for function in sys.argv[1:] or ARGUMENTS:
        for name in ARGUMENTS[function]:
            for value in WRONG:
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


if __name__ == "__main__":
    main()
