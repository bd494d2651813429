"""The terminal recording: what it shows is what the program prints, and a picture that every renderer reads."""

import re
import sys
import xml.etree.ElementTree as tree
from pathlib import Path

import pytest

from budgetft.cli import main

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "docs"))
import record

ROOT = record.HERE.parent

SVG = "{http://www.w3.org/2000/svg}"
RECORDED = dict(
    zip(record.COMMANDS, re.split(r"^\$ .*\n", (ROOT / "docs/terminal.txt").read_text(), flags=re.MULTILINE)[1:], strict=True)
)


def shown(picture: str) -> str:
    """The words of a picture without what is white."""
    return (
        "".join("".join(text.itertext()) for text in tree.fromstring(picture).iter(f"{SVG}text"))
        .replace("\xa0", "")
        .replace(" ", "")
    )


def test_fit_prints_what_was_recorded(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(record.COLUMNS))
    assert main(["fit", "--gpu", "RTX 3060"]) == 0
    assert capsys.readouterr().out.rstrip() == RECORDED[record.COMMANDS[0]].rstrip()


def test_the_picture_shows_both_commands_whole():
    text = shown((ROOT / "docs/terminal.svg").read_text()).replace("\n", "")
    for command, output in RECORDED.items():
        assert f"${command}{output}".replace(" ", "").replace("\n", "") in text


@pytest.mark.parametrize("name", ["terminal.svg", "way.svg"])
def test_a_picture_has_a_title_a_size_and_nothing_from_elsewhere(name):
    text = (ROOT / "docs" / name).read_text()
    root = tree.fromstring(text)
    assert root.find(f"{SVG}title") is not None
    assert root.get("viewBox")
    assert re.findall(r"https?://(?!www\.w3\.org/2000/svg)|<script|@import|@font-face", text) == []


def test_without_animation_the_first_command_alone_is_seen():
    made = record.picture(["one\n  two", "three"])
    assert "#scene0 { visibility: visible;" in made
    assert "#scene1 { visibility: hidden;" in made
    assert "prefers-reduced-motion" in made
    assert shown(made).split("$")[1:] == [
        'budgetftfit--gpu"RTX3060"\none\ntwo\n',
        'budgetftplan--gpu"RTX3060"--dataphotos.csv--epochs3\nthree\n',
    ]
