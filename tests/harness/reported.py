"""Finds the scripts of the reports and what they share."""

import importlib.util
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

from budgetft.profiles import profiles_folder

REPORTS = profiles_folder().parent / "reports"


def harness(name: str) -> ModuleType:
    """A module of ``reports/harness``."""
    if str(REPORTS) not in sys.path:
        sys.path.append(str(REPORTS))
    return import_module(f"harness.{name}")


def load_script(path: Path, monkeypatch) -> ModuleType:
    """A script as a module, as ``python reports/FOLDER/SCRIPT.py`` would find what lies beside it, until the test's end."""
    monkeypatch.setattr(sys, "path", [str(path.parent), *sys.path])
    spec = importlib.util.spec_from_file_location(f"reports_{path.parent.name}_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module
