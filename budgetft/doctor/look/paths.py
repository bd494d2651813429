"""Where Python looks, and every copy of every package there. Standard library only; nothing is imported from what is found."""

import json
import re
import site
import sys
import sysconfig
from importlib.metadata import distributions
from pathlib import Path


def copies() -> dict[str, list[dict[str, object]]]:
    """Of each distribution all copies, in the order in which Python would find them."""
    found: dict[str, list[dict[str, object]]] = {}
    for entry in dict.fromkeys(sys.path):
        for distribution in distributions(path=[entry]):
            name = distribution.metadata["Name"]
            if name:
                key = re.sub(r"[-_.]+", "-", name).lower()
                row = {"version": distribution.version, "folder": entry, "requires": distribution.requires or []}
                found.setdefault(key, []).append(row)
    return found


def modules(names: list[str]) -> dict[str, list[str]]:
    """Of each module all folders of ``sys.path`` that hold one, whether installed or only lying there."""
    entries = [Path(entry) for entry in dict.fromkeys(sys.path) if entry]
    return {
        name: [str(entry) for entry in entries if (entry / name / "__init__.py").is_file() or (entry / f"{name}.py").is_file()]
        for name in names
    }


answer = {
    "executable": sys.executable,
    "python": sys.version.split()[0],
    "prefix": sys.prefix,
    "base_prefix": sys.base_prefix,
    "site": [sysconfig.get_path("purelib"), sysconfig.get_path("platlib")],
    "user_site": site.getusersitepackages() if site.ENABLE_USER_SITE else None,
    "copies": copies(),
    "modules": modules(sys.argv[1:]),
}
print("@@" + json.dumps({"paths": answer}), flush=True)
