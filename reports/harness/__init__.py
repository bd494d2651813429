"""What the scripts of this folder share; they run from the repository root as ``python reports/FOLDER/SCRIPT.py``.

========== =====================================================================================
arguments  the command line: a script's docstring is its help, shared options have one meaning
tables     rows of Markdown, and how far predictions are off
evidence   JSON with the command, versions, date, GPU and kind of evidence that it is from
children   commands in processes of their own: what they print, take and leave behind; killing them
jobs       planning problems, and one probe or one replayed trace of a setting
small      plans made by hand, small models and data, and what a run left in its folder
========== =====================================================================================

A script adds ``reports/`` to ``sys.path`` in one line, has ``options()``, which builds its parser, and ``main()``.
"""

from pathlib import Path

REPORTS = Path(__file__).resolve().parents[1]
ROOT = REPORTS.parent
SPINE = REPORTS / "spine" / "plan-448.json"
"""A full-size plan with its probes, which many scripts begin with."""
