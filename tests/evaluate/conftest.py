"""Examples of traffic scenes in the official slots, and a scorer without WordNet: the same numbers on every machine."""

import json
from pathlib import Path

import pytest

from budgetft.data.examples import Example
from budgetft.evaluate.metrics import NoWordNet, Scorer


class SlotExample(Example):
    """An example with the fields of a converted traffic dataset, whatever order they came into the code in."""

    scenario: str | None = None
    phase: str | None = None
    actor: str | None = None
    view: str | None = None
    frame_rank: int | None = None


@pytest.fixture(scope="session")
def scorer() -> Scorer:
    return Scorer(NoWordNet())


@pytest.fixture(scope="session")
def pairs() -> list[dict[str, str]]:
    """Twenty invented predictions with their references."""
    return json.loads((Path(__file__).parent / "pairs.json").read_text())


@pytest.fixture(scope="session")
def make_example():
    """An example of a slot, or a plain one."""

    def make(name: str, answer: str = "A man waits.", **fields) -> SlotExample:
        return SlotExample(**{"id": name, "images": ("a.png",), "prompt": "Describe.", "answer": answer, **fields})

    return make
