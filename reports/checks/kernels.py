"""Do the numeric tests pass whatever kernels a processor takes, with one thread and with two?

    python reports/checks/kernels.py [--out FOLDER] [--only PART_OF_A_NAME]

torch picks its vector kernels by the processor (``ATEN_CPU_CAPABILITY``), MKL its matrix products (``MKL_CBWR``,
``MKL_ENABLE_INSTRUCTIONS``), oneDNN too (``ONEDNN_MAX_CPU_ISA``), NumPy its OpenBLAS (``OPENBLAS_CORETYPE``). Each setting runs
the tests that compare numbers in processes of its own; beside it stands how far the gradient of one step is from that of the
first setting: they really round otherwise. Prints kernels.md, and writes it beside this script or into FOLDER. It ends with an
error when a test failed.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

from budgetft.outcome import processor

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
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
SHOW = """
import sys, torch
sys.path[:0] = ["tests", "tests/step"]
torch.set_num_threads(int(sys.argv[1]))
from test_step import Case
case = Case("tiny-qwen3-vl")
torch.save(case.gradients(case.stock.replace(attention="math"))[1], sys.argv[2])
"""


def _threads(number: str) -> dict[str, str]:
    """So many in every sum, also on a busy machine: equal to the bit needs equal sums."""
    fixed = {"OMP_DYNAMIC": "FALSE", "MKL_DYNAMIC": "FALSE"}
    return {**fixed, **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), number)}


def environment(variables: dict[str, str], threads: str) -> dict[str, str]:
    return {**os.environ, **variables, **_threads(threads), "HF_HUB_OFFLINE": "1"}


def apart(first: Path, second: Path) -> float:
    """Relative distance of two saved gradients."""
    import torch

    one, other = torch.load(first).double(), torch.load(second).double()
    return float((one - other).norm() / other.norm())


def run(name: str, threads: str, folder: Path, first: Path) -> dict[str, object]:
    """Run the tests with one setting; what became of them."""
    set_to = environment(KERNELS[name], threads)
    gradient = folder / f"{len(list(folder.glob('*.pt')))}.pt"
    subprocess.run([sys.executable, "-c", SHOW, threads, str(gradient)], cwd=ROOT, env=set_to, check=True)
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *TESTS]
    started = time.monotonic()
    done = subprocess.run(command, cwd=ROOT, env=set_to, capture_output=True, text=True)
    told = re.findall(r"(\d+) (passed|failed|skipped|error)", done.stdout.splitlines()[-1])
    failed = re.findall(r"^FAILED (\S+)", done.stdout, re.MULTILINE)
    away = apart(gradient, first) if first.exists() and first != gradient else 0.0
    return {
        "kernels": name, "threads": threads, "gradient_apart": away, "seconds": round(time.monotonic() - started),
        **{what: int(count) for count, what in told}, "tests": failed,
    }  # fmt: skip


def table(rows: list[dict[str, object]]) -> str:
    import torch

    lines = [
        f"Processor: {processor()}, {torch.backends.cpu.get_cpu_capability()}",
        "",
        "| kernels | threads | gradient apart from the first | passed | skipped | failed |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        counts = " | ".join(str(row.get(what, 0)) for what in ("passed", "skipped", "failed"))
        lines.append(f"| {row['kernels']} | {row['threads']} | {float(str(row['gradient_apart'])):.1e} | {counts} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=HERE)
    parser.add_argument("--only", default="")
    chosen = parser.parse_args()
    import tempfile

    rows = []
    with tempfile.TemporaryDirectory() as made:
        for name in KERNELS:
            for threads in THREADS:
                if chosen.only in f"{name}, {threads}":
                    rows.append(run(name, threads, Path(made), Path(made) / "0.pt"))
                    print(json.dumps(rows[-1]), flush=True)
    (chosen.out / "kernels.md").write_text(table(rows))
    print(table(rows))
    sys.exit(any(row.get("failed") or row.get("error") for row in rows))


if __name__ == "__main__":
    main()
