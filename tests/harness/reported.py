"""Finds the scripts of the reports and what they share."""

import sys
from importlib import import_module
from types import ModuleType

from budgetft.profiles import profiles_folder

REPORTS = profiles_folder().parent / "reports"


def harness(name: str) -> ModuleType:
    """A module of ``reports/harness``."""
    if str(REPORTS) not in sys.path:
        sys.path.append(str(REPORTS))
    return import_module(f"harness.{name}")
