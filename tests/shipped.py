"""Tests of the recordings that ship need the software that these were traced on; with other versions a plan traces anew."""

import pytest

from budgetft.predict.store import software
from budgetft.profiles import profiles_folder

SOFTWARE = {
    path.name.partition("_")[2].removesuffix(".gz").removesuffix(".json")
    for path in (profiles_folder() / "memory_models").iterdir()
}
"""Of the recordings that ship, as in their names."""
OTHER_SOFTWARE = f"the recordings that ship are of {' and '.join(sorted(SOFTWARE))}; here is {software()}"
needs_shipped_recordings = pytest.mark.skipif(software() not in SOFTWARE, reason=OTHER_SOFTWARE)
