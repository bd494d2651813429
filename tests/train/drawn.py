"""Datasets of a few drawn images."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw

from budgetft.data.examples import Example, Examples, write_dataset

COLOURS = ("red", "green", "blue", "yellow", "white")


def draw_examples(
    folder: Path, count: int, *, answer: str = "a {colour} square", weights: Sequence[float] = (1.0,)
) -> Examples:
    """A dataset of ``count`` examples of different length, each with one or two small images; ``weights`` in turn."""
    drawings = folder.with_name(folder.name + "-drawings")
    drawings.mkdir(parents=True)
    examples = []
    for number in range(count):
        colour = COLOURS[number % len(COLOURS)]
        names = []
        for part in range(1 + number % 2):
            image = Image.new("RGB", (84 + 28 * (number % 3), 84), "black")
            ImageDraw.Draw(image).rectangle((10 + number, 10, 50, 50 + part), fill=colour)
            names.append(f"{number}-{part}.png")
            image.save(drawings / names[-1])
        text = answer.format(colour=colour) + " and nothing else" * (number % 3)
        weight = weights[number % len(weights)]
        name = f"example-{number}"
        examples.append(Example(id=name, images=tuple(names), prompt="What is it?", answer=text, weight=weight))
    return write_dataset(examples, folder, images_root=drawings)
