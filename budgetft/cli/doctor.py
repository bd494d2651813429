"""``budgetft doctor``: what is wrong with this environment, and the line that mends it."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from budgetft.doctor.builds import choose_build
from budgetft.doctor.children import look
from budgetft.doctor.examine import examine
from budgetft.doctor.finding import EXIT_CODES, Finding, exit_code
from budgetft.doctor.recipe import write_recipe
from budgetft.errors import UsageError
from budgetft.gpu import load_gpu
from budgetft.plan import write_text_atomically
from budgetft.predict.store import cache_folder

_SIGNS = {"ok": "ok", "note": "note", "warning": "WARN", "problem": "BAD"}


def doctor(
    gpu: Annotated[str | None, typer.Option("--gpu", help="A card to prepare for, here or not (budgetft gpus).")] = None,
    env: Annotated[
        Path | None, typer.Option("--env", help="Write a script here that makes an isolated, pinned environment for the card.")
    ] = None,
    package: Annotated[
        str | None, typer.Option("--package", help="With --env: what to install as budgetft, e.g. a folder or a wheel.")
    ] = None,
    json_output: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Look for what breaks runs: mixed packages, foreign libraries, a wrong torch build, a busy card, a full disk.

    Exit codes: 0 no problem, 10 packages, 11 libraries, 12 driver, 13 torch build, 14 card, 15 machine.
    """
    if env is not None:
        _write_environment(gpu, env, package)
        return
    card = None if gpu is None else load_gpu(gpu)
    findings = examine(card, budgetft_cache=cache_folder(), on_step=lambda step: print(f"{step} ...", file=sys.stderr))
    code = exit_code(findings)
    if json_output:
        print(json.dumps({"exit_code": code, "findings": [each.model_dump() for each in findings]}, indent=2))
    else:
        _show(findings, code)
    raise typer.Exit(code)


def _show(findings: list[Finding], code: int) -> None:
    for finding in findings:
        fix = f"; fix: {finding.fix}" if finding.fix else ""
        print(f"{_SIGNS[finding.level]:<5} {finding.kind:<10} {finding.text}{fix}")
    problems = sum(finding.level == "problem" for finding in findings)
    kind = next((kind for kind, number in EXIT_CODES.items() if number == code), None)
    print("no problems" if kind is None else f"{problems} problem(s); mend {kind} first")


def _write_environment(gpu: str | None, path: Path, package: str | None) -> None:
    facts = look("driver").first("driver") or {}
    cards, driver = facts.get("cards") or [], facts.get("driver")
    if gpu is not None:
        profile = load_gpu(gpu)
        name, capability = profile.name, profile.capability
        driver = None  # of this machine, not of the card's
    elif cards:
        weakest = min(cards, key=lambda card: card["capability"])
        name, capability = weakest["name"], (weakest["capability"][0], weakest["capability"][1])
    else:
        raise UsageError("no card here to write an environment for", hint="name one: budgetft doctor --gpu NAME --env FILE")
    build = choose_build(capability, driver)
    write_text_atomically(path, write_recipe(name, build, package))
    print(f"written to {path}: torch {build.torch} with CUDA {build.cuda} for {name}; next: bash {path}")
