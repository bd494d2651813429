"""The Python packages: whose copies win, whether they go together, and whether they load."""

import re
import shlex
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from budgetft.doctor.causes import DISTRIBUTIONS, cause_of
from budgetft.doctor.children import Reply, isolated, look
from budgetft.doctor.finding import Finding
from budgetft.installed import install_line

STACK = ("numpy", "torch", "torchvision", "transformers", "peft", "accelerate", "datasets", "PIL", "safetensors", "optuna")
"""What is imported, in this order: a failure is told of the lowest one."""
OPTIONAL = ("triton", "bitsandbytes", "flash_attn", "xformers", "liger_kernel")
"""Imported when installed: built for another torch, they break a run or spoil its numbers."""
_KNOWN_BAD = (("2.4.1", "11.8", "losses are NaN", "huggingface/nanoVLM#165"),)


def installed_versions() -> dict[str, str]:
    """The installed ones of the packages above, by their distributions' names; none of them is imported."""
    found = {}
    for name in (*STACK, *OPTIONAL):
        with suppress(PackageNotFoundError):
            found[DISTRIBUTIONS.get(name, name)] = version(DISTRIBUTIONS.get(name, name))
    return found


def check_paths(paths: Mapping[str, Any], environment: Mapping[str, str]) -> list[Finding]:
    """Findings on where packages come from; ``paths`` is what ``look/paths.py`` said."""
    inside = set(paths["site"])
    findings = []
    for name, folders in paths["modules"].items():
        if not folders:
            continue
        if folders[0] not in inside and any(folder in inside for folder in folders[1:]):
            text = f"{name} is taken from {folders[0]}, not from this environment ({paths['prefix']})"
            findings.append(_outside("problem", text, folders[0], paths))
        elif folders[0] not in inside and _entered(folders[0], paths, environment):
            text = f"{name} comes from {folders[0]}, outside this environment"
            findings.append(_outside("warning", text, folders[0], paths))
        elif len(folders) > 1:
            text = f"a second {name} lies in {', '.join(folders[1:])}; {folders[0]} wins today"
            findings.append(_outside("warning", text, folders[1], paths))
    python_path = environment.get("PYTHONPATH", "").strip(":")
    if python_path and not any("PYTHONPATH" in (finding.fix or "") for finding in findings):
        text = f"PYTHONPATH is set ({python_path}): what lies there comes before this environment's packages"
        findings.append(Finding(kind="packages", level="note", text=text, fix="unset PYTHONPATH unless you need it"))
    if not findings:
        findings.append(
            Finding(kind="packages", level="ok", text=f"Python {paths['python']}, all packages from {paths['prefix']}")
        )
    return findings


def _entered(folder: str, paths: Mapping[str, Any], environment: Mapping[str, str]) -> bool:
    """Whether ``folder`` is on the path because of the user's site or PYTHONPATH."""
    entries = {str(Path(entry).absolute()) for entry in environment.get("PYTHONPATH", "").split(":") if entry}
    return folder == paths["user_site"] or folder in entries


def _outside(level: Any, text: str, folder: str, paths: Mapping[str, Any]) -> Finding:
    fix = "export PYTHONNOUSERSITE=1" if folder == paths["user_site"] else "unset PYTHONPATH"
    return Finding(kind="packages", level=level, text=text, fix=fix)


def check_versions(paths: Mapping[str, Any], root: str = "budgetft") -> list[Finding]:
    """What ``root`` needs, and what that needs in turn, against the copies that win."""
    try:
        from packaging.requirements import InvalidRequirement, Requirement
    except ImportError:
        return [_missing("packaging", "transformers")]
    copies = paths["copies"]
    if root in copies:
        needs = [(root, text) for text in copies[root][0]["requires"]]
    else:
        text = f"{root} is not installed, only found: its requirements are not known"
        return [Finding(kind="packages", level="warning", text=text, fix=install_line())]
    findings, seen = [], set()
    while needs:
        asker, text = needs.pop()
        try:
            need = Requirement(text)
        except InvalidRequirement:
            continue
        key = re.sub(r"[-_.]+", "-", need.name).lower()
        if (asker, key) in seen or (need.marker is not None and not need.marker.evaluate({"extra": ""})):
            continue
        seen.add((asker, key))
        if key not in copies:
            findings.append(_missing(str(need).split(";")[0].strip(), asker))
            continue
        found = copies[key][0]
        if not need.specifier.contains(found["version"], prereleases=True):
            wanted = f"{need.name}{need.specifier}"
            message = f"{asker} needs {wanted}; {found['version']} is installed in {found['folder']}"
            findings.append(Finding(kind="packages", level="problem", text=message, fix=f"pip install {shlex.quote(wanted)}"))
        needs += [(key, each) for each in found["requires"] if not any(asked == key for asked, _ in seen)]
    findings += _wrong_positions(copies)
    if "pynvml" in copies:
        text = "the distribution pynvml stands beside nvidia-ml-py and makes every import of torch warn"
        fix = "pip uninstall -y pynvml && pip install --force-reinstall nvidia-ml-py"
        findings.append(Finding(kind="packages", level="warning", text=text, fix=fix))
    if all(finding.level == "note" for finding in findings):
        findings.append(Finding(kind="packages", level="ok", text=f"{len(seen)} requirements are met"))
    return findings


def _wrong_positions(copies: Mapping[str, Any]) -> list[Finding]:
    """A note where the transformers at hand is known to place the text after a video wrongly (its issue 45381)."""
    version = str(copies.get("transformers", [{}])[0].get("version", ""))
    numbers = re.match(r"(\d+)\.(\d+)", version)
    if not numbers or not (5, 3) <= (int(numbers[1]), int(numbers[2])) <= (5, 23):
        return []
    text = (
        f"transformers {version} places the text after a video of Qwen2-VL and Qwen2.5-VL too early; budgetft computes"
        " positions itself, in training and in predict, and so do other servers"
    )
    fix = "generate with budgetft predict or vLLM where videos matter, not with this transformers"
    return [Finding(kind="packages", level="note", text=text, fix=fix)]


def _missing(wanted: str, asker: str) -> Finding:
    text = f"{wanted} is missing; {asker} needs it"
    return Finding(kind="packages", level="problem", text=text, fix=f"pip install {shlex.quote(wanted)}")


def import_stack(names: Sequence[str], environment: Mapping[str, str]) -> Reply:
    """What importing ``names`` says; after one that kills the child or hangs, the rest are imported in another."""
    said: list[dict[str, Any]] = []
    left = list(names)
    while left:
        reply = look("stack", left, environment=environment)
        said += reply.said
        if reply.ended is None:
            break
        begun = [each["begin"] for each in reply.all("begin")]
        if not begun:
            return Reply(said=said, ended=reply.ended, stderr=reply.stderr)
        why = f"the process died of it: {reply.ended}; {(reply.stderr.strip().splitlines() or [''])[-1][:300]}"
        said.append({"failed": begun[-1], "error": why})
        left = left[left.index(begun[-1]) + 1 :]
    return Reply(said=said)


def check_imports(reply: Reply, environment: Mapping[str, str]) -> list[Finding]:
    """Findings on the imports that failed, each with its cause; whether isolation heals it is tried, not guessed."""
    findings = []
    if reply.ended is not None:
        findings.append(Finding(kind="packages", level="problem", text=f"Python does not start: {reply.ended}"))
    failed = list(reply.all("failed"))
    for each in failed:
        name, error = each["failed"], each["error"]
        kind, fix = cause_of(error, name)
        again = look("stack", [name], environment=isolated(environment))
        if again.ended is None and not list(again.all("failed")):
            fix = f"it loads without PYTHONPATH, user site and LD_LIBRARY_PATH; {fix}"
        level = "problem" if name in STACK else "warning"
        findings.append(Finding(kind=kind, level=level, text=f"{name} does not load: {error}", fix=fix))
    torch = reply.first("torch")
    if torch is not None:
        if "numpy_bridge" in torch:
            text = f"torch {torch['version']} cannot use the installed numpy: {torch['numpy_bridge']}"
            findings.append(Finding(kind="packages", level="problem", text=text, fix='pip install "numpy<2"'))
        if "cudnn_error" in torch:
            kind, fix = cause_of(torch["cudnn_error"], "torch")
            findings.append(Finding(kind=kind, level="problem", text=f"cuDNN: {torch['cudnn_error']}", fix=fix))
        for version, cuda, what, source in _KNOWN_BAD:
            if torch["version"].split("+")[0] == version and torch["cuda"] == cuda:
                text = f"torch {version} with CUDA {cuda} is known to be wrong: {what} ({source})"
                findings.append(Finding(kind="build", level="problem", text=text, fix='pip install "torch>=2.7"'))
    if not failed and reply.ended is None:
        names = ", ".join(each["imported"] for each in reply.all("imported"))
        findings.append(Finding(kind="packages", level="ok", text=f"load: {names}"))
    return findings
