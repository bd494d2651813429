"""Does the wheel work on the Pythons and packages that it declares, the lowest and the newest?

    pip install build uv
    python reports/checks/versions.py [--only PART_OF_A_ROW] [--python 3.12=PATH ...] [--folder FOLDER] [--out FOLDER]

Builds the wheel from the source archive. Each row is an environment of its own, made by uv and deleted again: a Python, and
packages as pyproject.toml declares them (``lowest``: every direct dependency at its lower bound), as profiles/lock.txt pins
them on a torch build of profiles/torch_builds.toml (``lock``), or as new as they are (``newest``). In it the wheel's own
commands run as a user would run them, without a GPU or a network, in an empty folder: version, doctor, fit, made-up data, a
plan, a few training steps, captions from the adapter, a report. A Python that uv does not find is named by
``--python``. Writes versions.json (rows that were not run now stay as they are) and versions.md. It ends with an error when a
row failed.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from budgetft import __version__
from budgetft.doctor.builds import Build, choose_build, load_builds
from budgetft.gpu import load_gpu
from budgetft.profiles import profiles_folder

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
SHOWN = ("torch", "transformers", "peft", "accelerate", "datasets", "optuna", "numpy")
"""Packages whose versions the table names; versions.json has them all."""
SMOKE: dict[str, str] = {
    "version": "--version",
    "doctor": "doctor --json",
    "fit": "fit --gpu rtx3060 --model qwen2.5-vl-3b --json",
    "data": "data sample photos --count 12",
    "plan": "plan --gpu v100-16g --model tiny-qwen2.5-vl --data photos --rank 4 --effective-batch 4 --max-pixels 50176"
    " --budget 1GiB --learning-rate 0.01 --epochs 2 --out plan.json --quiet",
    "train": "train --plan plan.json --out run --weights random --steps 6 --quiet --json",
    "predict": "predict --run run --data photos --out captions.jsonl --quiet",
    "report": "report run --out report.html --quiet",
}
"""The commands in their order; each has to end with 0."""
MINUTES = 15
"""No command may take longer."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One environment."""

    python: str
    packages: str
    """``lowest``, ``lock`` or ``newest``."""
    build: Build | None = None
    """With ``lock``: the torch build."""

    @property
    def name(self) -> str:
        return f"Python {self.python}, {self.packages}" + (f", {self.build.name}" if self.build else "")

    def install(self, uv: Sequence[str], python: Path, wheel: Path, folder: Path) -> None:
        """Install ``wheel`` with the row's packages for ``python``; what uv says goes to standard error."""
        command = [*uv, "pip", "install", "--quiet", "--python", str(python), f"budgetft[nf4] @ {wheel.as_uri()}"]
        if self.packages == "lowest":
            # The project file makes them direct: what only the wheel asks for would be as new as it is.
            command += ["--resolution", "lowest-direct", "--requirements", str(ROOT / "pyproject.toml"), "--extra", "nf4"]
        if self.build is not None:
            pins = folder / "pins.txt"
            lock = (profiles_folder() / "lock.txt").read_text(encoding="utf-8")
            pins.write_text("\n".join([*self.build.requirements, lock]), encoding="utf-8")
            command += ["--constraint", str(pins)]
        subprocess.run(command, check=True, env={**os.environ, "UV_PRERELEASE": "disallow"})


def rows() -> list[Row]:
    """The lowest and the newest of everything on old and new Pythons, and what doctor installs for a V100 and current GPUs."""
    old, new = choose_build(load_gpu("v100-16g").capability), load_builds()[0]
    return [
        Row(python="3.11", packages="lowest"),
        Row(python="3.13", packages="lowest"),
        Row(python="3.11", packages="lock", build=old),
        Row(python="3.11", packages="lock", build=new),
        Row(python="3.12", packages="newest"),
        Row(python="3.13", packages="newest"),
    ]


def build_wheel(folder: Path) -> Path:
    """The wheel of this tree, built by way of the source archive: what is missing there is missing here."""
    subprocess.run([sys.executable, "-m", "build", "--outdir", str(folder), str(ROOT)], check=True, stdout=subprocess.DEVNULL)
    (wheel,) = folder.glob("*.whl")
    return wheel


def smoke(environment: Path, folder: Path) -> Iterator[dict[str, Any]]:
    """Run the commands one after the other, until one fails: name, seconds, and what went wrong if something did."""
    variables = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    variables |= {"HF_HUB_OFFLINE": "1", "BUDGETFT_CACHE": str(folder / "cache"), "CUDA_VISIBLE_DEVICES": "", "COLUMNS": "80"}
    place = folder / "work"
    place.mkdir()
    for name, words in SMOKE.items():
        started = time.monotonic()
        command = [str(environment / "bin" / "budgetft"), *words.split()]
        try:
            done = subprocess.run(command, cwd=place, env=variables, capture_output=True, text=True, timeout=60 * MINUTES)
            failed = done.returncode != 0 and name != "doctor"  # a full disk is no fault of the packages
            problem = f"exit code {done.returncode}: {(done.stderr or done.stdout)[-2000:]}" if failed else None
            problem = problem or check(name, done.stdout, place)
        except subprocess.TimeoutExpired:
            problem = f"no end within {MINUTES} minutes"
        yield {"command": name, "seconds": round(time.monotonic() - started, 1), "problem": problem}
        if problem:
            return


def check(name: str, stdout: str, place: Path) -> str | None:
    """What is wrong with the result of a command that ended well, if something is."""
    if name == "version" and stdout.strip() != f"budgetft {__version__}":
        return f"printed {stdout.strip()!r}"
    if name == "doctor":
        found = json.loads(stdout)["findings"]
        bad = [
            each["text"] for each in found if each["level"] == "problem" and each["kind"] in ("packages", "libraries", "build")
        ]
        return "; ".join(bad) or None
    if name == "train":
        losses = [json.loads(line)["loss"] for line in (place / "run" / "log.jsonl").read_text(encoding="utf-8").splitlines()]
        if not losses[-1] < losses[0]:
            return f"the loss does not fall: {losses}"
    if name == "predict" and len((place / "captions.jsonl").read_text(encoding="utf-8").splitlines()) != 12:
        return "captions are missing"
    if name == "report" and "<svg" not in (place / "report.html").read_text(encoding="utf-8"):
        return "the page has no chart"
    return None


def figures(place: Path) -> dict[str, Any]:
    """What a row's plan and run say, where they got that far."""
    found: dict[str, Any] = {}
    if (place / "plan.json").exists():
        plan = json.loads((place / "plan.json").read_text(encoding="utf-8"))
        found["predicted_peak_bytes"] = plan["estimate"]["process_peak_bytes"]
    if (place / "run" / "summary.json").exists():
        found["cpu_peak_bytes"] = json.loads((place / "run" / "summary.json").read_text(encoding="utf-8"))["process_peak_bytes"]
        last = (place / "run" / "log.jsonl").read_text(encoding="utf-8").splitlines()[-1]
        found["last_loss"] = json.loads(last)["loss"]
    return found


def run(row: Row, wheel: Path, python: str, uv: Sequence[str], folder: Path) -> dict[str, Any]:
    """Make the row's environment, run the commands in it, and delete it."""
    with tempfile.TemporaryDirectory(dir=folder) as made:
        place, environment = Path(made), Path(made) / "environment"
        result: dict[str, Any] = {
            "row": row.name,
            "python": row.python,
            "on": date.today().isoformat(),
            "budgetft": __version__,
        }
        try:
            subprocess.run([*uv, "venv", "--quiet", "--python", python, str(environment)], check=True)
            row.install(uv, environment / "bin" / "python", wheel, place)
        except subprocess.CalledProcessError:
            return {
                **result,
                "packages": {},
                "commands": [{"command": "install", "seconds": None, "problem": "does not install"}],
            }
        listed = subprocess.run(
            [*uv, "pip", "list", "--python", str(environment), "--format", "json"], check=True, capture_output=True, text=True
        )
        packages = {each["name"].lower(): each["version"] for each in json.loads(listed.stdout)}
        version = subprocess.run([environment / "bin" / "python", "--version"], check=True, capture_output=True, text=True)
        commands = []
        for each in smoke(environment, place):
            print(f"{row.name}: {each['command']} {each['problem'] or 'ok'} ({each['seconds']} s)", file=sys.stderr, flush=True)
            commands.append(each)
        exact = version.stdout.split()[-1]
        return {**result, "python": exact, "packages": packages, "commands": commands, **figures(place / "work")}


def table(results: list[dict[str, Any]]) -> str:
    lines = [
        "# The wheel on other versions",
        "",
        "Written by `python reports/checks/versions.py`, which says what is run. No GPU took part. The peak is that of the",
        "tiny model's plan for a V100 (predicted), the loss that of the last of six training steps on the CPU.",
        "",
        f"| | Python | {' | '.join(SHOWN)} | result | predicted peak | last loss |",
        "|---" * (len(SHOWN) + 5) + "|",
    ]
    for each in results:
        failed = next((one["command"] for one in each["commands"] if one["problem"]), None)
        peak = f"{each['predicted_peak_bytes'] / 2**20:.1f} MiB" if "predicted_peak_bytes" in each else "-"
        loss = f"{each['last_loss']:.4f}" if "last_loss" in each else "-"
        versions = " | ".join(each["packages"].get(name, "-") for name in SHOWN)
        what = each["row"].split(", ")[1]
        result = f"fails in `{failed}`" if failed else f"all {len(each['commands'])} commands"
        lines.append(f"| {what} | {each['python']} | {versions} | {result} | {peak} | {loss} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="part of a row's name, such as 3.13 or lowest")
    parser.add_argument("--python", action="append", default=[], metavar="3.12=PATH")
    parser.add_argument(
        "--folder", type=Path, default=Path(tempfile.gettempdir()), help="where environments are made (8 GB each)"
    )
    parser.add_argument("--out", type=Path, default=HERE)
    chosen = parser.parse_args()
    pythons = dict(each.split("=", 1) for each in chosen.python)
    uv = [shutil.which("uv") or sys.exit("uv is missing: pip install uv")]
    kept = chosen.out / "versions.json"
    known = {each["row"]: each for each in json.loads(kept.read_text(encoding="utf-8"))} if kept.exists() else {}
    with tempfile.TemporaryDirectory(dir=chosen.folder) as made:
        asked = [row for row in rows() if chosen.only in row.name]
        wheel = build_wheel(Path(made)) if asked else Path()
        for row in [*asked, None]:  # at last, or with none at all, only the table is written
            if row is not None:
                known[row.name] = run(row, wheel, pythons.get(row.python, row.python), uv, chosen.folder)
            results = [known[each.name] for each in rows() if each.name in known]
            kept.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
            (chosen.out / "versions.md").write_text(table(results), encoding="utf-8")
    print((chosen.out / "versions.md").read_text(encoding="utf-8"))
    sys.exit(any(one["problem"] for each in results for one in each["commands"]))


if __name__ == "__main__":
    main()
