"""What the fuzz test damages, a reader of files with a good example of them, and ways to damage bytes and JSON; all seeded."""

import json
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

WORDS = [
    "",
    "\0",
    "a\0b",
    "../../../etc/passwd",
    "/etc/passwd",
    "~",
    "file:///etc/passwd",
    "é" * 300,
    "\ud800",
    "NaN",
    "1e999",
    "-",
]
NUMBERS = [0, -1, 1, 2**31, 2**63, -(2**63), 2**64, 10**30, 0.5, -0.0, 1e308, -1e308, 1e-320, True, False]
RAW = [
    *(
        "NaN",
        "Infinity",
        "-Infinity",
        "1e999",
        "9" * 5000,
        "-0",
        '"\\ud800"',
        "[" * 50_000,
        '{"a":' * 20_000,
        "nul",
        "0x10",
        "'a'",
    ),
]
_MARK = "@raw@"


@dataclass(frozen=True)
class Reader:
    """``make`` fills a folder with good files, ``read`` reads it as the tool does."""

    name: str
    make: Callable[[Path], Any]
    read: Callable[[Path], Any]
    files: str = "*"
    """Patterns of what is damaged, separated by spaces."""
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


def damage_any(reader: Reader, folder: Path, rng: random.Random) -> None:
    """One file of the reader's, or by the reader's own way."""
    if reader.damage is not None and rng.random() < 0.6:
        reader.damage(folder, rng)
        return
    path = rng.choice([path for pattern in reader.files.split() for path in sorted(folder.glob(pattern))])
    content = path.read_bytes()
    if path.suffix == ".json" and rng.random() < 0.6:
        content = mutate_json(content.decode(), rng).encode(errors="surrogatepass")
    elif path.suffix == ".jsonl" and rng.random() < 0.6:
        lines = content.decode().splitlines()
        place = rng.randrange(len(lines))
        lines[place] = mutate_json(lines[place], rng)
        content = "\n".join(lines).encode(errors="surrogatepass") + b"\n"
    else:
        content = mutate_bytes(content, rng)
    path.write_bytes(content)


def mutate_bytes(content: bytes, rng: random.Random) -> bytes:
    """``content`` with some bytes flipped, cut, doubled, or in another encoding."""
    if not content:
        return rng.randbytes(20)
    place, kind = rng.randrange(len(content)), rng.randrange(11)
    end = min(len(content), place + rng.choice([1, 4, 64, 1024]))
    if kind <= 2:
        flipped = bytearray(content)
        for _ in range(rng.choice([1, 1, 3, 30])):
            flipped[rng.randrange(len(flipped))] ^= 1 << rng.randrange(8)
        return bytes(flipped)
    if kind == 9:
        return content.decode("latin-1").encode(rng.choice(["utf-16", "utf-32", "utf-8-sig", "utf-7"]))
    return {
        3: content[:place],
        4: content[:place] + content[end:],
        5: content[:end] + content[place:],
        6: content[:place] + b"\0" * rng.choice([1, 100]) + content[place:],
        7: content[:place] + rng.randbytes(end - place) + content[end:],
        8: content[:place] + rng.choice(RAW).encode() + content[end:],
        10: rng.choice([b"", b"\n", b"null", b"[]", b"{}", b"\xff\xfe", b"\0" * 64, content * 2]),
    }[kind]


def mutate_json(text: str, rng: random.Random) -> str:
    """``text`` (JSON) with one or two values replaced, removed, renamed or moved; the result need not be JSON."""
    data = json.loads(text)
    raw = []
    for _ in range(rng.choice([1, 1, 2])):
        data = _mutate_value(data, rng, raw)
    changed = json.dumps(data)
    for number, insert in enumerate(raw):
        changed = changed.replace(f'"{_MARK}{number}"', insert)
    return changed


def _mutate_value(data: Any, rng: random.Random, raw: list[str]) -> Any:
    holder: list[Any] = [data]
    node, key = holder, 0
    while isinstance(node[key], dict | list) and node[key] and rng.random() < 0.85:
        node = node[key]
        key = rng.choice(list(node)) if isinstance(node, dict) else rng.randrange(len(node))
    kind = rng.randrange(8)
    if kind == 0 and node is not holder:
        del node[key]
    elif kind == 1 and isinstance(node, dict):
        node[rng.choice([str(key) + "x", *WORDS])] = node.pop(key)
    elif kind == 2 and isinstance(node, list) and node is not holder:
        node += node[:3]
    else:
        node[key] = _strange(node[key], rng, raw)
    return holder[0]


def _strange(value: Any, rng: random.Random, raw: list[str]) -> Any:
    kind = rng.randrange(7)
    if kind == 0:
        raw.append(rng.choice(RAW))
        return f"{_MARK}{len(raw) - 1}"
    if kind == 1:
        return rng.choice(NUMBERS)
    if kind == 2:
        return rng.choice(WORDS)
    if kind == 3:
        return rng.choice([None, [], {}, [value], {"value": value}, [[]] * 3, {"": None}])
    if isinstance(value, int | float) and not isinstance(value, bool):
        return rng.choice([value + 1, -value, value * 10**6, str(value), float(value), value * 10**20])
    if isinstance(value, str):
        return rng.choice([value + "\0", value * 100, value[:-1], [value], value.upper(), "../" + value])
    return rng.choice([None, 7, "word", [value]])
