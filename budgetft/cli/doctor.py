"""``budgetft doctor``: what is wrong with this environment, and the command that fixes it."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from budgetft.cache import cache_folder
from budgetft.cli import names
from budgetft.cli.lines import put
from budgetft.doctor.builds import choose_build, other_builds
from budgetft.doctor.children import look
from budgetft.doctor.examine import examine
from budgetft.doctor.finding import EXIT_CODES, Finding, exit_code
from budgetft.doctor.gpu import NO_DRIVER
from budgetft.doctor.recipe import write_recipe
from budgetft.errors import UsageError
from budgetft.gpu import load_gpu
from budgetft.plan import write_text_atomically

_SIGNS = {"ok": "ok", "note": "note", "warning": "WARN", "problem": "BAD"}


def doctor(
    gpu: Annotated[
        str | None,
        typer.Option(
            "--gpu",
            metavar="NAME",
            show_default="the one that is here",
            help="A GPU to prepare for, here or not (budgetft gpus).",
            autocompletion=names.gpus,
        ),
    ] = None,
    env: Annotated[
        Path | None,
        typer.Option(
            "--env",
            metavar="FILE",
            show_default="none",
            help="Write a script that makes an isolated, pinned environment for the GPU.",
        ),
    ] = None,
    package: Annotated[
        str | None,
        typer.Option(
            "--package",
            metavar="PATH",
            show_default="where this one came from",
            help="With --env: what to install as budgetft, such as a folder or a wheel.",
        ),
    ] = None,
    json_output: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Look for what breaks runs: mixed packages, foreign libraries, a wrong torch build, a busy GPU, a full disk.

    Exit codes: 0 no problem, 10 packages, 11 libraries, 12 driver, 13 torch build, 14 GPU, 15 machine.
    """
    if env is not None:
        _write_environment(gpu, env, package)
        return
    profile = None if gpu is None else load_gpu(gpu)
    findings = examine(profile, budgetft_cache=cache_folder(), on_step=lambda step: print(f"{step} ...", file=sys.stderr))
    code = exit_code(findings)
    if json_output:
        print(json.dumps({"exit_code": code, "findings": [each.model_dump() for each in findings]}, indent=2))
    else:
        _show(findings, code)
    raise typer.Exit(code)


def _show(findings: list[Finding], code: int) -> None:
    for finding in findings:
        fix = f"; fix: {finding.fix}" if finding.fix else ""
        put(f"{_SIGNS[finding.level]:<5} {finding.kind:<10}  {finding.text}{fix}", hang=18)
    problems = sum(finding.level == "problem" for finding in findings)
    kind = next((kind for kind, number in EXIT_CODES.items() if number == code), None)
    if kind is not None:
        put(f"{problems} problem{'s' * (problems > 1)}; begin with {kind}")
    elif any(finding.text.startswith(NO_DRIVER) for finding in findings):
        put(
            "no problems in what could be checked; not checked, for want of an NVIDIA driver: driver, GPU and its kernels. On a"
            " cluster's login node that is as it should be; next: srun --gres=gpu:1 budgetft doctor"
        )
    else:
        put("no problems")


def _write_environment(gpu: str | None, path: Path, package: str | None) -> None:
    facts = look("driver").first("driver") or {}
    gpus, driver = facts.get("gpus") or [], facts.get("driver")
    if gpu is not None:
        profile = load_gpu(gpu)
        name, capability = profile.name, profile.capability
        driver = None  # of this machine, not of the GPU's
    elif gpus:
        weakest = min(gpus, key=lambda profile: profile["capability"])
        name, capability = weakest["name"], (weakest["capability"][0], weakest["capability"][1])
    else:
        raise UsageError("no GPU here to write an environment for", hint="name one: budgetft doctor --gpu NAME --env FILE")
    build = choose_build(capability, driver)
    write_text_atomically(path, write_recipe(name, build, package, other_builds(capability, build)[:1]))
    put(f"written to {path}: {build.name} for {name}; next: bash {path}")
