"""One example in any layout is one sequence of tokens: that which ChatML, written by itself, says."""

import json
import re

import pytest
from chatml import call_text, question_turn, system_turn, tokens_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from budgetft.contract import Contract
from budgetft.data.collate import encode
from budgetft.data.processor import load_processor
from budgetft.data.read.convert import Conversion
from budgetft.data.read.options import Options
from budgetft.model import load_model

FAMILIES = ("tiny-qwen2-vl", "tiny-qwen2.5-vl", "tiny-qwen3-vl")
CONTRACT = Contract(max_pixels=12 * 28**2)
PICTURES = {
    "wide.png": ((168, 56), (200, 20, 40)),
    "even.png": ((84, 84), (10, 220, 90)),
    "high.png": ((56, 168), (30, 60, 250)),
}
common = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])

blank = st.text(alphabet=" \t\n\r", min_size=1, max_size=3)
words = st.one_of(
    st.text(alphabet="ab9 .,\n\t\ré€走\u0301{}[]()'\"\\<>|/%#", min_size=1, max_size=14),
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8),
    st.sampled_from(
        [
            "    if red:\n        return 1\n    return 0\n",
            "\n\nTwo lines above, two below.\n\n",
            "\r\nWindows\r\n",
            " \t indented, and not at the end  ",
            "\ufeffA mark\u2028of\u0085order \U0001f44d\U0001f3fd שלום\u200f",
            "{{ messages }} {% raw %} {# no #}",
            "<b>bold</b> <images> <img> </tool_call>",
            "- one\n- two\n```\ncode\n```",
        ]
    ),
).filter(lambda text: text.strip() and not re.search(r"<\||\|>|<(image|video|audio)|\[IMG\]|<img>[^<\n]*</img>", text))


@st.composite
def conversations(draw):
    """``(system, [(pieces of a question, answer)])``: a piece is text, or None for an image."""
    left = draw(st.integers(0, 3))
    found = []
    for _ in range(draw(st.integers(1, 4))):
        pieces = draw(st.lists(words | (words | blank), min_size=1, max_size=3))
        for _ in range(min(left, draw(st.integers(0, 3)))):
            pieces.insert(draw(st.integers(0, len(pieces))), None)
            left -= 1
        if not any(piece and piece.strip() for piece in pieces):
            pieces.append(draw(words))
        found.append((pieces, draw(words)))
    return draw(st.none() | words), found


def joined(pieces):
    """``pieces``, texts that follow each other as one."""
    found = []
    for piece in pieces:
        if piece is not None and found and found[-1] is not None:
            found[-1] += piece
        else:
            found.append(piece)
    return found


def marked(pieces, *, spare):
    """``pieces`` as text with marks; None where that cannot say it: white space alone beside a mark at an edge is lost.

    The marks at the start and at the end are on lines of their own, unless ``spare`` and the text allows it.
    """
    pieces = joined(pieces)
    texts = [place for place, piece in enumerate(pieces) if piece is not None and piece.strip()]
    if any(piece is not None and not texts[0] <= place <= texts[-1] for place, piece in enumerate(pieces)):
        return None
    told = ["<image>" if piece is None else piece for piece in pieces]
    first, last = pieces[texts[0]], pieces[texts[-1]]
    if texts[0] > 0 and not (spare and not re.match(r"[ \t]*\r?\n", first)):
        told[texts[0]] = "\n" + told[texts[0]]
    if texts[-1] < len(pieces) - 1 and not (spare and not re.search(r"\n[ \t]*\Z", last)):
        told[texts[-1]] += "\r\n" if last.endswith("\r") else "\n"
    return "".join(told)


def parts(pieces, images, kind):
    found = []
    for piece in pieces:
        if piece is not None:
            found.append(piece if kind == "bare text" else {"type": "text", "text": piece})
        elif kind == "openai":
            found.append({"type": "image_url", "image_url": {"url": next(images)}})
        else:
            found.append({"type": "image"} if kind == "beside" else {"type": "image", "image": next(images)})
    return found


def part_layouts(system, turns, images):
    """Messages made of parts."""
    before = [] if system is None else [{"role": "system", "content": system}]
    beside = {} if system is None else {"system": system}

    def messages(kind):
        left = iter(images)
        return [
            message
            for pieces, answer in turns
            for message in (
                {"role": "user", "content": parts(pieces, left, kind)},
                {"role": "assistant", "content": [{"type": "text", "text": answer}] if kind == "openai" else answer},
            )
        ]

    return {
        "parts": {"messages": before + messages("named")},
        "parts, their images named again": {"messages": before + messages("named"), "images": images},
        "parts of OpenAI": {"messages": messages("openai"), **beside},
        "parts, some of them text alone": {"messages": before + messages("bare text")},
        "parts of TRL": {"messages": before + messages("beside"), "images": images},
        "parts as JSON text": {"messages": json.dumps(messages("named")), **beside},
    }


def mark_layouts(system, asked, answers, images, learn):
    """Whatever writes a question as one text, ``asked``."""
    before = [] if system is None else [{"role": "system", "content": system}]
    beside = {} if system is None else {"system": system}
    talk = [
        (role, text)
        for pair in zip(asked, answers, strict=True)
        for role, text in zip(("user", "assistant"), pair, strict=True)
    ]
    messages = [{"role": role, "content": text} for role, text in talk]
    names = {"user": "human", "assistant": "gpt", "system": "system"}
    shares = [{"from": names[one["role"]], "value": one["content"]} for one in before + messages]
    history = [list(pair) for pair in zip(asked[:-1], answers[:-1], strict=True)]
    rows = {
        "messages": {"messages": before + messages, "images": images},
        "messages, null beside": {"messages": messages, "images": images, "tools": None, "videos": None, **beside},
        "conversations": {"conversations": shares, "images": images},
        "conversations, system beside": {
            "conversations": shares[len(before) :],
            "image": images[0] if len(images) == 1 else images,
            **beside,
        },
        "texts": {
            "texts": [{"user": question, "assistant": answer} for question, answer in zip(asked, answers, strict=True)],
            "images": images,
            **beside,
        },
        "Alpaca": {
            "instruction": asked[-1],
            "input": "",
            "output": answers[-1],
            "history": history,
            "images": images,
            **beside,
        },
        "query and response": {"query": asked[-1], "response": answers[-1], "history": history, "images": images, **beside},
    }
    head, _, rest = asked[-1].partition("\n")
    if head.strip() and rest.strip():
        rows["Alpaca, its input apart"] = {**rows["Alpaca"], "instruction": head, "input": rest}
    if len(asked) == 1 or learn == "last":  # else a prompt's own answers are not learned
        rows["prompt and completion"] = {"prompt": before + messages[:-1], "completion": messages[-1:], "images": images}
        rows["prompt, completion as text"] = {"prompt": messages[:-1], "completion": answers[-1], "images": images, **beside}
    if len(asked) == 1:
        rows["canonical"] = {"prompt": asked[0], "answer": answers[0], "images": images, **beside}
        rows["prompt and completion of one turn"] = {"prompt": asked[0], "completion": answers[0], "images": images, **beside}
    return rows


def layouts_of(system, turns, learn):
    """The rows that say it, by layout."""
    images = list(PICTURES)[: sum(piece is None for pieces, _ in turns for piece in pieces)]
    answers = [answer for _, answer in turns]
    rows = part_layouts(system, turns, images)
    for spare in (False, True):
        asked = [marked(pieces, spare=spare) for pieces, _ in turns]
        if None not in asked:
            found = mark_layouts(system, asked, answers, images, learn)
            rows |= {f"{name}{', marks spared' if spare else ''}": row for name, row in found.items()}
    first = turns[0][0]
    if images and not any(piece is None for pieces, _ in [(first[len(images) :], ""), *turns[1:]] for piece in pieces):
        asked = ["".join(piece for piece in pieces if piece is not None) for pieces, _ in turns]
        rows |= {f"{name}, no marks": row for name, row in mark_layouts(system, asked, answers, images, learn).items()}
        if len(turns) == 1 and system is None:
            rows["caption"] = (
                {"file_name": images[0], "text": answers[0]} if len(images) == 1 else {"images": images, "caption": answers[0]}
            )
    return rows


@pytest.fixture(scope="module")
def families():
    return [(model, load_processor(model)) for model in map(load_model, FAMILIES)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("rows")
    for name, (size, colour) in PICTURES.items():
        Image.new("RGB", size, colour).save(path / name)
    return path


def examples_of(rows, folder, *, escaped=False, **options):
    text = json.dumps([{"id": name, **row} for name, row in rows.items()], ensure_ascii=escaped)
    (folder / "rows.json").write_text(text, encoding="utf-8", newline="")
    examples = Conversion([folder / "rows.json"], folder / "work", Options(**options)).examples()
    assert [one.id for one in examples] == list(rows)
    return examples


def check_pictures(encoded, count, model):
    """The first ``count`` of the pictures, each in its shape and its colour."""
    assert len(encoded.image_grid_thw) == count
    place = 0
    for (_, rows, columns), (size, colour) in zip(encoded.image_grid_thw.tolist(), PICTURES.values(), strict=False):
        assert (columns > rows) - (columns < rows) == (size[0] > size[1]) - (size[0] < size[1])
        patches = encoded.pixel_values[place : place + rows * columns].reshape(rows * columns, 3, -1)
        place += rows * columns
        for channel, value in enumerate(colour):
            shade = patches[:, channel] * model.image_std[channel] + model.image_mean[channel]
            assert (shade * 255 - value).abs().max() < 1
    assert place == len(encoded.pixel_values)


def check(examples, families, expected, count):
    """Every one of ``examples`` has the ``expected(family, visual tokens)`` pieces of text, and ``count`` pictures."""
    for model, processor in families:
        known = {}
        for example in examples:
            alike = example.replace(id="same").model_dump_json()
            if alike in known:  # equal but for its name
                continue
            encoded = known[alike] = encode(example, processor, model, CONTRACT)
            check_pictures(encoded, count, model)
            sizes = (rows * columns // 4 for _, rows, columns in encoded.image_grid_thw.tolist())
            ids, labels = tokens_of(expected(model.family, sizes), processor.tokenizer)
            assert encoded.input_ids.tolist() == ids, (model.name, example.id)
            assert encoded.labels.tolist() == labels, (model.name, example.id)


def check_conversation(said, learn, escaped, families, folder):
    system, turns = said
    count = sum(piece is None for pieces, _ in turns for piece in pieces)

    def expected(family, sizes):
        found = [(system_turn(family, system), False)]
        for number, (pieces, answer) in enumerate(turns):
            learned = learn == "all" or number == len(turns) - 1
            found += [(question_turn(pieces, sizes) + "<|im_start|>assistant\n", False), (f"{answer}<|im_end|>", learned)]
            found += [("\n", False)] if number < len(turns) - 1 else []
        return found

    prompt = "".join(piece for piece in turns[0][0] if piece is not None)  # of captions
    rows = layouts_of(system, turns, learn)
    check(examples_of(rows, folder, escaped=escaped, learn=learn, prompt=prompt), families, expected, count)


@settings(common, max_examples=12, derandomize=True)
@given(conversations(), st.sampled_from(["all", "last"]), st.booleans())
def test_every_layout_gives_the_tokens_of_the_conversation(families, folder, said, learn, escaped):
    check_conversation(said, learn, escaped, families, folder)


@pytest.mark.sweep
@settings(common, max_examples=500)
@given(conversations(), st.sampled_from(["all", "last"]), st.booleans())
def test_every_layout_gives_the_tokens_of_many_conversations(families, folder, said, learn, escaped):
    check_conversation(said, learn, escaped, families, folder)


@st.composite
def uses_of_tools(draw):
    """``(system, tools, question, [(arguments, what the tool says)], answer)``."""
    values = st.integers(-9, 99) | words | st.booleans() | st.lists(st.integers(0, 9), max_size=2)
    names = st.text(alphabet="abc_", min_size=1, max_size=4)
    tools = [
        {"name": f"look_{number}", "description": draw(words), "parameters": {"type": "object", "properties": {}}}
        for number in range(draw(st.integers(1, 2)))
    ]
    uses = draw(st.lists(st.tuples(st.dictionaries(names, values, max_size=2), words), min_size=1, max_size=2))
    return draw(st.none() | words), tools, draw(words), uses, draw(words)


def tool_layouts(system, tools, question, uses, answer):
    before = [] if system is None else [{"role": "system", "content": system}]
    beside = {} if system is None else {"system": system}
    wrapped = [{"type": "function", "function": tool} for tool in tools]
    shown = [{"type": "image", "image": "wide.png"}, {"type": "text", "text": question}]
    marked_question = "<image>\n" + question

    def called(arguments, style):
        function = {"name": "look_0", "arguments": json.dumps(arguments) if style == "text" else arguments}
        return {"role": "assistant", "content": None, "tool_calls": [{"id": "c1", "type": "function", "function": function}]}

    def messages(style, user):
        talk = [{"role": "user", "content": user}]
        for arguments, said in uses:
            talk += [called(arguments, style), {"role": "tool", "content": said, "tool_call_id": "c1"}]
        return [*talk, {"role": "assistant", "content": answer}]

    shares = [{"from": "human", "value": marked_question}]
    for arguments, said in uses:
        call = json.dumps({"name": "look_0", "arguments": arguments})
        shares += [{"from": "function_call", "value": call}, {"from": "observation", "value": said}]
    shares.append({"from": "gpt", "value": answer})
    return {
        "OpenAI": {"messages": before + messages("text", shown), "tools": wrapped},
        "objects": {"messages": messages("object", shown), "tools": tools, **beside},
        "marks": {"messages": before + messages("object", marked_question), "images": ["wide.png"], "tools": wrapped},
        "ShareGPT": {"conversations": shares, "images": ["wide.png"], "tools": json.dumps(tools), **beside},
    }


def check_tools(said, families, folder):
    system, tools, question, uses, answer = said
    wrapped = [{"type": "function", "function": tool} for tool in tools]

    def expected(family, sizes):
        found = [(system_turn(family, system, wrapped), False), (question_turn([None, question], sizes), False)]
        for arguments, told in uses:
            found += [("<|im_start|>assistant\n", False), (f"{call_text('look_0', arguments)}<|im_end|>", True)]
            found.append((f"\n<|im_start|>user\n<tool_response>\n{told}\n</tool_response><|im_end|>\n", False))
        return [*found, ("<|im_start|>assistant\n", False), (f"{answer}<|im_end|>", True)]

    taught = [(model, processor) for model, processor in families if model.family == "qwen3_vl"]
    check(examples_of(tool_layouts(*said), folder), taught, expected, 1)


@settings(common, max_examples=8, derandomize=True)
@given(uses_of_tools())
def test_every_layout_gives_the_tokens_of_a_use_of_tools(families, folder, said):
    check_tools(said, families, folder)


@pytest.mark.sweep
@settings(common, max_examples=300)
@given(uses_of_tools())
def test_every_layout_gives_the_tokens_of_many_uses_of_tools(families, folder, said):
    check_tools(said, families, folder)
