"""Where the profile folder is: beside the package in a checkout or editable install, inside it in a wheel."""

from functools import cache
from pathlib import Path

from budgetft.errors import BudgetftError
from budgetft.installed import install_line


@cache
def profiles_folder() -> Path:
    """The folder that holds ``gpus``, ``models`` and ``calibrations``."""
    here = Path(__file__).resolve().parent
    for folder in (here / "_profiles", here.parent / "profiles"):
        if (folder / "gpus").is_dir():
            return folder
    raise BudgetftError(
        f"the profiles are missing from this installation ({here})",
        hint=f"install budgetft again: {install_line(again=True)}",
    )
