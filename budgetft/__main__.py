"""``python -m budgetft``."""

from budgetft.cli import run

run()
