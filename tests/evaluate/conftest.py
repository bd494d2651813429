"""Examples of traffic scenes in the official slots, and a scorer without WordNet: the same numbers on every machine."""

import json
from pathlib import Path

import pytest

from budgetft.data.examples import Example
from budgetft.evaluate.metrics import NoWordNet, Scorer


@pytest.fixture(autouse=True)
def _read_once(one_tokenizer):
    """See there."""


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

    def make(name: str, answer: str = "A man waits.", **fields) -> Example:
        return Example(**{"id": name, "images": ("a.png",), "prompt": "Describe.", "answer": answer, **fields})

    return make
