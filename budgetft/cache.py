"""Where studies, ledgers, memory models and converted data are kept between commands."""

import os
from collections.abc import Mapping
from pathlib import Path

EVIDENCE = ("ledger.sqlite3", "studies.sqlite3")
"""What was measured, and cost minutes on a GPU: a folder that holds one of these is not left behind."""


def cache_folder(environment: Mapping[str, str] | None = None) -> Path:
    """``$BUDGETFT_CACHE``, else ``$XDG_CACHE_HOME/budgetft``, else ``~/.cache/budgetft``.

    A ``~/.cache/budgetft`` with measurements from before XDG_CACHE_HOME was looked at stays in use until it is moved:
    see :func:`left_behind`.
    """
    environment = os.environ if environment is None else environment
    if chosen := environment.get("BUDGETFT_CACHE"):
        return Path(chosen)
    new, old = _by_xdg(environment), _at_home(environment)
    return old if new is None or _is_older(old, new) else new


def left_behind(environment: Mapping[str, str] | None = None) -> tuple[Path, Path] | None:
    """The folder in the home that is still in use although XDG_CACHE_HOME is set, and where it belongs; None: all is well."""
    environment = os.environ if environment is None else environment
    new, old = _by_xdg(environment), _at_home(environment)
    if environment.get("BUDGETFT_CACHE") or new is None or not _is_older(old, new):
        return None
    return old, new


def folder_bytes(folder: Path) -> int:
    """What the files below ``folder`` take; those that cannot be looked at count nothing."""
    total = 0
    for path, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(path, name)).st_size
            except OSError:
                continue
    return total


def _is_older(old: Path, new: Path) -> bool:
    """Whether measurements are in ``old`` and none in ``new``."""
    return old != new and _has_evidence(old) and not _has_evidence(new)


def _has_evidence(folder: Path) -> bool:
    return any((folder / name).is_file() for name in EVIDENCE)


def _by_xdg(environment: Mapping[str, str]) -> Path | None:
    """A relative path is no cache home (XDG Base Directory Specification)."""
    home = environment.get("XDG_CACHE_HOME", "")
    return Path(home) / "budgetft" if os.path.isabs(home) else None


def _at_home(environment: Mapping[str, str]) -> Path:
    return Path(environment.get("HOME") or Path.home()) / ".cache" / "budgetft"
