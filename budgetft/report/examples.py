"""A page of examples as a model is given them: pictures in their size, the text with its marks, what is learned."""

import base64
import re
from collections.abc import Sequence
from html import escape
from io import BytesIO
from pathlib import Path

from budgetft.contract import Contract
from budgetft.data.preview import Preview
from budgetft.data.visuals import media_of, resized_image
from budgetft.model import Model
from budgetft.report.page import POLICY

_MOST_PICTURES = 12
"""Of one example; the rest are counted."""
_SIDE = 480
"""Pixels of a picture on the page, at most."""
_STYLE = """
.example { display: grid; grid-template-columns: minmax(0, 1fr) minmax(0, 1.3fr); gap: 12px 20px; }
.example h2, .example .note { grid-column: 1 / -1; margin: 0; overflow-wrap: anywhere; }
.pictures { display: flex; flex-wrap: wrap; gap: 8px; align-content: flex-start; }
.pictures figure { margin: 0; max-width: 100%; }
.pictures img { display: block; max-width: 100%; height: auto; border: 1px solid var(--rule); }
.pictures figcaption { color: var(--soft); font-size: 13px; }
.said {
  white-space: pre-wrap; overflow-wrap: anywhere; margin: 0;
  font: 14px/1.5 ui-monospace, Menlo, "Liberation Mono", monospace;
}
.said mark { background: none; color: inherit; border-bottom: 3px solid var(--plan); font-weight: 600; }
.said .token { color: var(--soft); }
@media (max-width: 640px) { .example { grid-template-columns: minmax(0, 1fr); } }
"""
_TOKEN = re.compile(r"<\|[a-z_]+\|>|\[(?:image|frames) [^\]]*\]")


def examples_page(previews: Sequence[Preview], total: int, model: Model, contract: Contract) -> str:
    """The page of ``previews`` out of ``total`` examples. Every text is escaped; nothing is loaded and no script runs."""
    style = Path(__file__).with_name("style.css").read_text(encoding="utf-8") + _STYLE
    title = f"{len(previews)} of {total} examples, as {model.name} is given them"
    lead = f"Images of at most {contract.max_pixels} pixels, {contract.max_length} tokens an example."
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n<link rel="icon" href="data:,">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        f"<title>{escape(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n<main>\n"
        f'<header><h1>{escape(title)}</h1>\n<p class="lead">{escape(lead)} Text that is <b>bold and underlined</b> is learned;'
        " grey marks stand for tokens of the model.</p></header>\n"
        + "\n".join(_example(one, model, contract) for one in previews)
        + "\n</main>\n</body>\n</html>\n"
    )


def _example(one: Preview, model: Model, contract: Contract) -> str:
    total = one.visual_tokens + one.text_tokens
    kinds = f"{one.visual_tokens} visual, {one.text_tokens} text, {one.learned_tokens} learned"
    counts = f"{total} of {contract.max_length} tokens: {kinds}"
    over = ' <span class="failed">too long</span>' if total > contract.max_length else ""
    text = "".join(_text(segment.text, segment.learned) for segment in one.segments)
    return (
        f'<section class="example">\n<h2>{escape(one.example.id)}</h2>\n<p class="note">{escape(counts)}{over}</p>\n'
        f'<div class="pictures">{_pictures(one, model, contract)}</div>\n<p class="said">{text}</p>\n</section>'
    )


def _text(text: str, learned: bool) -> str:
    """``text`` with the marks of the model told apart, and what is learned marked by more than a colour."""
    parts, place = [], 0
    for found in _TOKEN.finditer(text):
        parts += [escape(_visible(text[place : found.start()])), f'<span class="token">{escape(found[0])}</span>']
        place = found.end()
    parts.append(escape(_visible(text[place:])))
    shown = "".join(parts)
    return f"<mark>{shown}</mark>" if learned else shown


def _visible(text: str) -> str:
    """Control characters as they are written in Python, which a page would swallow."""
    return "".join(repr(char)[1:-1] if not char.isprintable() and char != "\n" else char for char in text)


def _pictures(one: Preview, model: Model, contract: Contract) -> str:
    found, left = [], 0
    for number, medium in enumerate(media_of(one.example), start=1):
        for place, path in enumerate(medium.files):
            if len(found) >= _MOST_PICTURES:
                left += 1
                continue
            image = resized_image(path, model, contract).convert("RGB")
            size = f"{image.width}x{image.height}"
            at = "" if medium.seconds is None else f", {medium.seconds[place]:.2f} s"
            name = f"image {number}" if medium.seconds is None else f"video {number}, frame {place + 1}"
            image.thumbnail((_SIDE, _SIDE))
            buffer = BytesIO()
            image.save(buffer, "JPEG", quality=88)
            source = f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
            found.append(
                f'<figure><img alt="{name}" width="{image.width}" height="{image.height}" src="{source}">'
                f"<figcaption>{name}, {size}{at}</figcaption></figure>"
            )
    if left:
        found.append(f'<p class="note">and {left} more</p>')
    return "".join(found) or '<p class="note">no image</p>'
