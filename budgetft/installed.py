"""How budgetft got onto this machine, and so the line that adds to it what is missing."""

import json
import shlex
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

from budgetft import __version__

NAME = "budgetft"


def install_line(extra: str | None = None, *, again: bool = False) -> str:
    """The ``pip install`` line that installs what budgetft needs, and the packages of ``extra``; ``again``: only budgetft anew.

    It names the folder, wheel or repository that this budgetft came from (PEP 610, ``direct_url.json``), and keeps an editable
    installation editable; only a budgetft from a package index is named by its name.
    """
    editable, source = _origin()
    where = _with_extra(source or NAME, extra)
    quoted = shlex.quote(where) if set('"$`\\') & set(where) else f'"{where}"'
    return f"{pip_command()} install {'--force-reinstall --no-deps ' if again else ''}{'-e ' if editable else ''}{quoted}"


def pip_command(prefix: Path | None = None) -> str:
    """What is typed for ``pip`` to change the environment at ``prefix`` (this one), which pipx or uv may keep."""
    prefix = prefix or Path(sys.prefix)
    if (prefix / "pipx_metadata.json").is_file():
        return f"pipx runpip {prefix.name}"
    if (prefix / "uv-receipt.toml").is_file():
        return f"VIRTUAL_ENV={shlex.quote(str(prefix))} uv pip"
    return "pip"


def own_package(extra: str | None = None) -> str:
    """What pip installs to get this budgetft once more, elsewhere: the folder, wheel or repository, else name and version."""
    _, source = _origin()
    return _with_extra(source, extra) if source else f"{_with_extra(NAME, extra)}=={__version__}"


def _origin() -> tuple[bool, str | None]:
    """Whether it is editable, and where it came from; None: a package index, or a place that is gone."""
    try:
        record = json.loads(distribution(NAME).read_text("direct_url.json") or "{}")
    except (PackageNotFoundError, ValueError):
        record = {}
    editable, source = source_in(record)
    checkout = Path(__file__).resolve().parent.parent
    if source is None and (checkout / "pyproject.toml").is_file():  # run from its folder, without an installation
        return True, str(checkout)
    return editable, source


def source_in(record: Mapping[str, Any]) -> tuple[bool, str | None]:
    """What a ``direct_url.json`` says: whether the installation is editable, and what pip can install again."""
    address = str(record.get("url", ""))
    if address.startswith("file:"):
        path = unquote(urlparse(address).path)
        editable = bool(record.get("dir_info", {}).get("editable"))
        return (editable, path) if Path(path).exists() else (False, None)
    repository = record.get("vcs_info")
    if repository:
        return False, f"{repository['vcs']}+{address}@{repository.get('commit_id', 'HEAD')}"
    return False, address or None


def _with_extra(source: str, extra: str | None) -> str:
    remote = "://" in source
    named = f"[{extra}]" if extra else ""
    return f"{NAME}{named} @ {source}" if remote else f"{source}{named}"
