"""Do the numeric tests pass whatever kernels a processor takes, with one thread and with two?

    python reports/checks/kernels.py [--out FOLDER] [--only PART_OF_A_NAME]      # an hour of two cores, no GPU; measured

torch picks its vector kernels by the processor (``ATEN_CPU_CAPABILITY``), MKL its matrix products (``MKL_CBWR``,
``MKL_ENABLE_INSTRUCTIONS``), oneDNN too (``ONEDNN_MAX_CPU_ISA``), NumPy its OpenBLAS (``OPENBLAS_CORETYPE``). Each setting runs
the tests that compare numbers in processes of its own; beside it stands how far the gradient of one step is from that of the
first setting: they really round otherwise. Prints kernels.md, and writes it beside this script or into FOLDER. It ends with an
error when a test failed.
"""

import re
import sys
import tempfile
from itertools import product
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from harness import ROOT
from harness.arguments import parser
from harness.children import environment, run
from harness.evidence import tell
from harness.tables import head, row

from budgetft.outcome import processor

TESTS = (
    *("tests/step/test_step.py", "tests/step/test_tower.py", "tests/step/test_fp32_blocks.py", "tests/step/test_quantise.py"),
    *("tests/search/test_gaussian.py", "tests/search/test_sampler.py", "tests/evaluate/test_metrics.py"),
    *("tests/train/test_bucketing.py",),
)
"""All that compare gradients, and what else computes much; ``make test`` runs the others, with the processor's own kernels."""
KERNELS = {
    "as the processor has it": {},
    "ATen default": {"ATEN_CPU_CAPABILITY": "default"},
    "ATen AVX2": {"ATEN_CPU_CAPABILITY": "avx2"},
    "ATen AVX-512": {"ATEN_CPU_CAPABILITY": "avx512"},
    "MKL compatible, oneDNN SSE4.1": {"MKL_CBWR": "COMPATIBLE", "ONEDNN_MAX_CPU_ISA": "SSE41", "OPENBLAS_CORETYPE": "Nehalem"},
    "MKL and oneDNN AVX2, OpenBLAS Haswell": {
        "MKL_ENABLE_INSTRUCTIONS": "AVX2", "ONEDNN_MAX_CPU_ISA": "AVX2", "OPENBLAS_CORETYPE": "Haswell",
    },
}  # fmt: skip
THREADS = ("1", "2")
FIXED = {"OMP_DYNAMIC": "FALSE", "MKL_DYNAMIC": "FALSE"}
"""As many threads in every sum as said, also on a busy machine: equal to the bit needs equal sums."""
SHOW = """
import sys, torch
sys.path[:0] = ["tests", "tests/step"]
torch.set_num_threads(int(sys.argv[1]))
from test_step import Case
case = Case("tiny-qwen3-vl")
torch.save(case.gradients(case.stock.replace(attention="math"))[1], sys.argv[2])
"""

options = parser(__doc__, out=Path(__file__).resolve().parent, only="")


def apart(first: Path, second: Path) -> float:
    """Relative distance of two saved gradients."""
    import torch

    one, other = torch.load(first).double(), torch.load(second).double()
    return float((one - other).norm() / other.norm())


def tried(name: str, threads: str, folder: Path) -> dict[str, Any]:
    """Run the tests with one setting; what became of them."""
    counts = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), threads)
    how = {"cwd": ROOT, "env": environment(**KERNELS[name], **FIXED, **counts)}
    first, gradient = folder / "0.pt", folder / f"{len(list(folder.glob('*.pt')))}.pt"
    run([sys.executable, "-c", SHOW, threads, gradient], **how).checked()
    done = run([sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *TESTS], **how)
    told = re.findall(r"(\d+) (passed|failed|skipped|error)", done.out.splitlines()[-1])
    away = apart(gradient, first) if first != gradient else 0.0
    return {
        "kernels": name, "threads": threads, "gradient_apart": away, "seconds": round(done.seconds),
        **{what: int(count) for count, what in told}, "tests": re.findall(r"^FAILED (\S+)", done.out, re.MULTILINE),
    }  # fmt: skip


def table(rows: list[dict[str, Any]]) -> str:
    import torch

    lines = [f"Processor: {processor()}, {torch.backends.cpu.get_cpu_capability()}", ""]
    lines.append(head("kernels", "threads", "gradient apart from the first", "passed", "skipped", "failed"))
    for each in rows:
        counts = (each.get(what, 0) for what in ("passed", "skipped", "failed"))
        lines.append(row(each["kernels"], each["threads"], f"{each['gradient_apart']:.1e}", *counts))
    return "\n".join(lines) + "\n"


def main() -> None:
    asked, rows = options.parse_args(), []
    with tempfile.TemporaryDirectory() as made:
        for name, threads in product(KERNELS, THREADS):
            if asked.only in f"{name}, {threads}":
                rows.append(tried(name, threads, Path(made)))
                tell(rows[-1])
    (asked.out / "kernels.md").write_text(table(rows))
    print(table(rows))
    sys.exit(any(each.get("failed") or each.get("error") for each in rows))


if __name__ == "__main__":
    main()
