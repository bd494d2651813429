"""``budgetft doctor``: what is wrong with this environment, and the command that fixes it."""

import json
import platform
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from budgetft import __version__
from budgetft.cache import cache_folder
from budgetft.cli import names
from budgetft.cli.lines import put
from budgetft.doctor.builds import Capability, choose_build, numbers, other_builds
from budgetft.doctor.children import look
from budgetft.doctor.dockerfile import split_package, write_dockerfile
from budgetft.doctor.examine import examine
from budgetft.doctor.finding import EXIT_CODES, Finding, exit_code
from budgetft.doctor.gpu import NO_DRIVER
from budgetft.doctor.packages import installed_versions
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
    dockerfile: Annotated[
        Path | None,
        typer.Option(
            "--dockerfile",
            metavar="FILE",
            show_default="none",
            help="Write a Dockerfile with the torch build and pinned packages for the GPU.",
        ),
    ] = None,
    driver: Annotated[
        str | None,
        typer.Option(
            "--driver",
            metavar="VERSION",
            show_default="new enough",
            help="With --env or --dockerfile and --gpu: the NVIDIA driver of that GPU's machine, such as 550.54.",
        ),
    ] = None,
    package: Annotated[
        str | None,
        typer.Option(
            "--package",
            metavar="PATH",
            show_default="where this one came from",
            help="With --env or --dockerfile: what to install as budgetft, such as a folder or a wheel.",
        ),
    ] = None,
    json_output: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Look for what breaks runs: mixed packages, foreign libraries, a wrong torch build, a busy GPU, a full disk.

    Exit codes: 0 no problem, 10 packages, 11 libraries, 12 driver, 13 torch build, 14 GPU, 15 machine.
    """
    if env is not None or dockerfile is not None:
        _write_recipes(gpu, driver, package, env, dockerfile)
        return
    if driver is not None or package is not None:
        raise UsageError("--driver and --package go with --env or --dockerfile", hint="budgetft doctor --gpu NAME --env FILE")
    profile = None if gpu is None else load_gpu(gpu)
    findings = examine(profile, budgetft_cache=cache_folder(), on_step=lambda step: print(f"{step} ...", file=sys.stderr))
    code = exit_code(findings)
    if json_output:
        told = {
            "budgetft": __version__,
            "python": platform.python_version(),
            "platform": platform.platform(),
            "packages": installed_versions(),
            "exit_code": code,
            "findings": [finding.model_dump() for finding in findings],
        }
        print(json.dumps(told, indent=2))
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


def _write_recipes(gpu: str | None, driver: str | None, package: str | None, env: Path | None, dockerfile: Path | None) -> None:
    """The script and the Dockerfile that were asked for."""
    if package is not None and "://" not in package and "/" in package and not split_package(package)[0].exists():
        raise UsageError(
            f"--package {package} does not exist", hint="a folder with budgetft's sources, a wheel, or what pip takes"
        )
    name, capability, driver = _target(gpu, driver)
    build = choose_build(capability, driver)
    others = other_builds(capability, build)
    if env is not None:
        write_text_atomically(env, write_recipe(name, build, package, others[:1]))
        put(f"written to {env}: {build.name} for {name}; next: bash {env}")
    if dockerfile is not None:
        asked = f" --driver {driver}" if gpu and driver else ""
        made_by = f"budgetft doctor --gpu {name}{asked} --dockerfile {dockerfile.name}"
        text, context = write_dockerfile(name, build, package, others, command=made_by, name=dockerfile.name)
        write_text_atomically(dockerfile, text)
        place = "." if context.resolve() == Path.cwd() else str(context)
        file = "" if dockerfile.resolve() == (context / "Dockerfile").resolve() else f"-f {shlex.quote(str(dockerfile))} "
        put(f"written to {dockerfile}: {build.name} for {name}; next: docker build {file}-t budgetft {shlex.quote(place)}")


def _target(gpu: str | None, driver: str | None) -> tuple[str, Capability, str | None]:
    """Name, compute capability and driver of the GPU that is prepared for: the named one, else the weakest that is here."""
    if driver is not None and not numbers(driver):
        raise UsageError(
            f"--driver {driver} is not the version of a driver", hint="nvidia-smi shows it; for example --driver 550.54"
        )
    if gpu is not None:
        profile = load_gpu(gpu)
        return profile.name, profile.capability, driver  # this machine's driver says nothing about that GPU's
    facts = look("driver").first("driver") or {}
    gpus = facts.get("gpus") or []
    if not gpus:
        raise UsageError(
            "no GPU here to prepare for", hint="name one: budgetft doctor --gpu NAME --env FILE, or --dockerfile FILE"
        )
    weakest = min(gpus, key=lambda profile: profile["capability"])
    return weakest["name"], (weakest["capability"][0], weakest["capability"][1]), driver or facts.get("driver")
