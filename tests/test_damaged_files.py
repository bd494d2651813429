"""A short run of ``reports/guard/fuzz.py``: whatever is in a file, it is taken or refused with a clear error."""

import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parent.parent / "reports" / "guard"
sys.path.insert(0, str(FOLDER))

from fuzz import fuzz  # noqa: E402
from readers import READERS  # noqa: E402


@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.name)
def test_a_damaged_file_never_gives_a_traceback(reader):
    count, told = fuzz(reader, inputs=25, seed=1)
    assert told == {}
    assert count.refused + count.accepted == 25
    assert count.refused > 0, "nothing was damaged"
