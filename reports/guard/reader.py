"""What the fuzz test damages: a reader of files, and a good example of them."""

import json
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Reader:
    """``make`` fills a folder with good files, ``read`` reads it as the tool does."""

    name: str
    make: Callable[[Path], Any]
    read: Callable[[Path], Any]
    files: tuple[str, ...]
    """Patterns of what is damaged."""
    damage: Callable[[Path, random.Random], None] | None = None
    """A way of damaging that knows the format, used for some of the inputs."""


def copied(source: Path, name: str) -> Callable[[Path], Any]:
    """Fills a folder with a copy of ``source``."""
    return lambda folder: shutil.copyfile(source, folder / name)


def written(folder: Path, name: str, *rows: Any) -> None:
    """Each of ``rows`` as JSON on a line."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    texts = [json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("\n".join(texts) + "\n", encoding="utf-8")
