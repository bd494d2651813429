"""A page of examples as a model is given them: pictures as it sees them beside the text, and what of that is learned."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby
from typing import TYPE_CHECKING

from budgetft.contract import Contract
from budgetft.data.preview import Piece, Preview, Shown, visible
from budgetft.data.survey import is_resized
from budgetft.data.visuals import resized_image
from budgetft.errors import UsageError
from budgetft.model import Model
from budgetft.report.html import document
from budgetft.report.pictures import data_uri

if TYPE_CHECKING:
    from budgetft.data.boxes import Outline

_MOST_PICTURES = 24
"""Of one example; the rest are counted."""
_SIDES = ((1, 960), (4, 640), (_MOST_PICTURES, 320))
"""Pixels of a picture's longer side on the page, at most, by how many there are."""
_FEW = 2
"""Images that stand one below the other; more stand side by side."""
_NUMBERS = {"visual": True, "text": True, "learned": False, "tokens": False}
"""Columns of the overview, and whether a phone has no room for them."""
_TURN, _ROLE_ENDS = "<|im_start|>", "\n"


@dataclass(frozen=True)
class Selection:
    """Which examples a page shows."""

    total: int
    """Examples of the dataset."""
    how: str
    """How they were chosen, in words."""
    longest: str | None = None
    """The id of the one with the most tokens of all."""


def examples_page(
    found: Sequence[Preview],
    name: str,
    selection: Selection,
    model: Model,
    contract: Contract,
    *,
    on_example: Callable[[], None] = lambda: None,
) -> str:
    """The page of ``found`` from the dataset ``name``. Every text is escaped; nothing is loaded and no script runs."""
    count = f"{len(found)} of {selection.total} example{'s' * (selection.total != 1)}"
    title = f"{visible(name)}: {count}"
    limits = f"images of at most {contract.max_pixels} pixels, {contract.max_length} tokens an example"
    learned, mark, medium = Piece("like this", True), Piece("<|im_end|>", False, "mark"), Piece("[image 1]", False, "medium")
    header = (
        f'<header><h1>{escape(title)}</h1>\n<p class="lead">As {_text(model.name)} is given them: {limits}.</p>\n'
        f"<p>Shown: {_text(selection.how)}. Text {_said([learned])} is learned. {_piece(mark)} is a mark of the model's own,"
        f" {_piece(medium)} the place of a picture. Unseen characters are written as \\u200b.</p></header>\n"
    )
    sections = []
    for number, one in enumerate(found, start=1):
        sections.append(_example(number, one, selection, model, contract))
        on_example()
    return document(title, "\n".join([header + _overview(found), *sections]), "style.css", "examples.css")


def _text(text: str) -> str:
    return escape(visible(text))


def _overview(found: Sequence[Preview]) -> str:
    head = "".join(f'<th class="number{" aside" * aside}">{name}</th>' for name, aside in _NUMBERS.items())
    rows = []
    for number, one in enumerate(found, start=1):
        numbers = (one.visual_tokens, one.text_tokens, one.learned_tokens, one.tokens)
        cells = "".join(
            f'<td class="number{" aside" * aside}">{"-" if one.refusal else value}</td>'
            for value, aside in zip(numbers, _NUMBERS.values(), strict=True)
        )
        flag = " !" if one.warnings or one.refusal else ""
        link = f'<a href="#example-{number}">{_text(one.example.id)}</a>'
        rows.append(f"<tr><td>{link}{flag}</td>{cells}</tr>")
    flagged = any(one.warnings or one.refusal for one in found)
    note = '<p class="note">! has something to look at.</p>' if flagged else ""
    table = f"<table><thead><tr><th>example</th>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    return f'<section id="overview">\n{table}{note}\n</section>'


def _example(number: int, one: Preview, selection: Selection, model: Model, contract: Contract) -> str:
    longest = ' <span class="label">the longest of all</span>' if one.example.id == selection.longest else ""
    top = f"<h2>{_text(one.example.id)}{longest}</h2>\n<p>{_counts(one)}</p>"
    top += "".join(f'<p class="warning">{_text(line)}</p>' for line in one.warnings)
    if one.refusal is not None:
        top += f'<p class="warning">cannot be encoded: {_text(one.refusal)}</p>'
    media = _media(one.shown, model, contract)
    alone = "" if media else ' class="alone"'
    turns = "\n".join(_turns(one))
    return (
        f'<section class="example" id="example-{number}">\n<div class="top">{top}</div>\n'
        f"{media}<div{alone}>{turns}</div>\n</section>"
    )


def _counts(one: Preview) -> str:
    if one.refusal is not None:
        return ""
    kinds = f"{one.visual_tokens} visual, {one.text_tokens} text"
    return f"<b>{one.tokens}</b> of {one.most_tokens} tokens ({kinds}), <b>{one.learned_tokens}</b> learned"


def _turns(one: Preview) -> Iterable[str]:
    """Each message with its role; a template that marks no turns makes one of all."""
    written = "system" not in [message.role for message in one.example.conversation]
    for pieces in _cut_at_turns(one.pieces):
        role, said = "", pieces
        if len(pieces) > 1 and pieces[0].text == _TURN and pieces[1].kind == "text" and not pieces[1].learned:
            role, _, rest = pieces[1].text.partition(_ROLE_ENDS)
            said = [Piece(rest, False), *pieces[2:]]
        learned = ' <span class="label">learned</span>' if any(piece.learned for piece in pieces) else ""
        template = " (the chat template's own)" if role == "system" and written else ""
        heading = f'<p class="role">{_piece(pieces[0])}<b>{_text(role)}</b>{template}{learned}</p>' if role else ""
        yield f'<div class="turn">{heading}<p class="said">{_said(said)}</p></div>'


def _cut_at_turns(pieces: Iterable[Piece]) -> Iterable[list[Piece]]:
    turn: list[Piece] = []
    for piece in pieces:
        if piece.text == _TURN and piece.kind == "mark" and turn:
            yield turn
            turn = []
        turn.append(piece)
    if turn:
        yield turn


def _said(pieces: Iterable[Piece]) -> str:
    parts = []
    for learned, run in groupby(pieces, key=lambda piece: piece.learned):
        text = "".join(_piece(piece) for piece in run)
        parts.append(f"<mark>{text}</mark>" if learned else text)
    return "".join(parts)


def _piece(piece: Piece) -> str:
    text = _text(piece.text)
    if piece.kind == "text":
        return text
    kind = piece.kind
    # A line may break beside it, so that no word of the text is broken.
    return f'<wbr><span class="{kind}">{text[1:-1] if kind == "medium" else text}</span><wbr>'


def _media(shown: Sequence[Shown], model: Model, contract: Contract) -> str:
    if not shown:
        return ""
    count = sum(len(one.medium.files) for one in shown)
    side = next((side for most, side in _SIDES if count <= most), _SIDES[-1][1])
    left, parts = _MOST_PICTURES, []
    for one in shown:
        if not left:
            break
        parts.append(_film(one, left, side, model, contract) if one.frames else _image(one, side, model, contract))
        left = max(0, left - len(one.medium.files))
    if count > _MOST_PICTURES:
        parts.append(f'<p class="note">{count - _MOST_PICTURES} more of {count} pictures are not shown.</p>')
    many = " many" if sum(not one.frames for one in shown) > _FEW else ""
    return f'<div class="media{many}">{"".join(parts)}</div>\n'


def _image(one: Shown, side: int, model: Model, contract: Contract) -> str:
    caption = f"<b>{one.name}</b>: {_sizes(one, model)}, {one.tokens} tokens{_told(one)}"
    return f"<figure>{_picture(one, 0, side, model, contract)}<figcaption>{caption}</figcaption></figure>"


def _film(one: Shown, most: int, side: int, model: Model, contract: Contract) -> str:
    seconds = one.medium.seconds or ()
    figures = [
        f"<figure>{_picture(one, place, side, model, contract)}<figcaption>{seconds[place]:.2f} s</figcaption></figure>"
        for place in range(min(most, one.frames))
    ]
    parts = len(one.medium.blocks(model))
    caption = f"<b>{one.name}</b>: {one.frames} frames in {parts} parts, {_sizes(one, model)}, {one.tokens} tokens{_told(one)}"
    return f'<figure class="film"><div class="frames">{"".join(figures)}</div><figcaption>{caption}</figcaption></figure>'


def _sizes(one: Shown, model: Model) -> str:
    seen, stored = ("{}x{}".format(*size) for size in (one.size, one.stored))
    return f"{seen}, from {stored}" if is_resized(one.stored, one.size, model) else seen


def _told(one: Shown) -> str:
    count = len(one.outlines)
    return f"; {count} box{'es' * (count > 1)} or point{'s' * (count > 1)} drawn on it" if count else ""


def _picture(one: Shown, place: int, side: int, model: Model, contract: Contract) -> str:
    try:
        image = resized_image(one.medium.files[place], model, contract).convert("RGB")
    except UsageError as error:
        return f'<p class="warning">{_text(error.message)}</p>'
    image.thumbnail((side, side))
    name = one.name if not one.frames else f"{one.name}, frame {place + 1}"
    size = f'width="{image.width}" height="{image.height}"'
    drawn = _drawn(one.outlines, one.size) if place == 0 else ""
    return f'<span class="picture"><img alt="{name}" {size} src="{data_uri(image)}">{drawn}</span>'


def _drawn(outlines: Sequence["Outline"], size: tuple[int, int]) -> str:
    """Lines over a picture; each twice, so that it is seen on any ground."""
    if not outlines:
        return ""
    width, height = size
    lines = []
    for outline in outlines:
        points = [(x * width, y * height) for x, y in outline]
        if len(points) == 2:
            (left, top), (right, bottom) = points
            points = [(left, top), (right, top), (right, bottom), (left, bottom)]
        path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points) + "Z"
        dot = "dot " if len(points) == 1 else ""
        lines += [f'<path class="{dot}{way}" d="{path}"/>' for way in ("under", "over")]
    return f'<svg viewBox="0 0 {width} {height}" preserveAspectRatio="none" aria-hidden="true">{"".join(lines)}</svg>'
