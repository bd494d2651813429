"""One example in any layout is one sequence of tokens, and what is learned of it is what its answers are."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from budgetft.contract import Contract
from budgetft.data.collate import encode
from budgetft.data.processor import load_processor
from budgetft.data.read.convert import convert
from budgetft.data.read.options import Options
from budgetft.errors import UsageError
from budgetft.model import load_model

CONTRACT = Contract()
FAMILIES = ("tiny-qwen2-vl", "tiny-qwen2.5-vl", "tiny-qwen3-vl")
NAMES = ("a.png", "b.png", "c.png")
START, END = 151_644, 151_645  # <|im_start|> and <|im_end|>

# No mark of an image, and none of a model, comes of these; white space at the ends and within stays as it is.
words = st.text(alphabet="ab9 .,\n\té€走\u0301{}[]'\"\\", min_size=1, max_size=12).filter(lambda text: text.strip() != "")


@st.composite
def conversations(draw):
    """``(system, [(user pieces, answer)])``: pieces are texts, and None for an image."""
    system = draw(st.none() | words)
    left = draw(st.integers(0, 3))
    turns = []
    for _ in range(draw(st.integers(1, 3))):
        pieces = draw(st.lists(words, min_size=1, max_size=2))
        for _ in range(min(left, draw(st.integers(0, 2)))):
            pieces.insert(draw(st.integers(0, len(pieces))), None)
            left -= 1
        turns.append((pieces, draw(words)))
    return system, turns


def marked(pieces):
    """As text with marks, where that says the same: a mark takes no white space that belongs to the text."""
    return "".join("<image>" if piece is None else piece for piece in pieces)


def set_off(pieces):
    """Whether a mark's neighbour could be read as part of how marks are written."""
    text = marked(pieces)
    return "<image>\n" in text.replace("\t", "").replace(" ", "") or "\n<image>" in text.replace("\t", "").replace(" ", "")


def parts(pieces, images, *, named):
    """As parts of a message."""
    found = []
    for piece in pieces:
        if piece is None:
            found.append({"type": "image", "image": next(images)} if named else {"type": "image"})
        else:
            found.append({"type": "text", "text": piece})
    return found


def layouts_of(system, turns):
    """The rows that say it, by layout."""
    count = sum(piece is None for pieces, _ in turns for piece in pieces)
    images = list(NAMES[:count])
    by_part, by_place = [], []
    left = iter(images)
    for pieces, answer in turns:
        by_part += [{"role": "user", "content": parts(pieces, left, named=True)}, {"role": "assistant", "content": answer}]
        by_place += [{"role": "user", "content": parts(pieces, left, named=False)}, {"role": "assistant", "content": answer}]
    said = [] if system is None else [{"role": "system", "content": system}]
    beside = {} if system is None else {"system": system}
    rows = {
        "parts": {"messages": said + by_part},
        "parts, system beside": {"messages": by_part, **beside},
        "parts in order": {"messages": said + by_place, "images": images},
    }
    if count and any(set_off(pieces) for pieces, _ in turns):
        return rows
    if not count and any("<image>" in marked(pieces) for pieces, _ in turns):
        return rows
    chat = [message for pieces, answer in turns for message in (("user", marked(pieces)), ("assistant", answer))]
    llava = [{"from": {"user": "human", "assistant": "gpt"}[role], "value": text} for role, text in chat]
    rows |= {
        "marks": {"messages": said + [{"role": role, "content": text} for role, text in chat], "images": images},
        "llava": {"conversations": llava, "image": images, **beside},
        "prompt and completion": {
            "prompt": said + [{"role": role, "content": text} for role, text in chat[:-1]],
            "completion": [{"role": "assistant", "content": chat[-1][1]}],
            "images": images,
        },
        "texts": {
            "texts": [{"user": chat[at][1], "assistant": chat[at + 1][1]} for at in range(0, len(chat), 2)],
            "images": images,
            **beside,
        },
        "alpaca": {
            "instruction": chat[-2][1],
            "output": chat[-1][1],
            "history": [[chat[at][1], chat[at + 1][1]] for at in range(0, len(chat) - 2, 2)],
            "images": images,
            **beside,
        },
    }
    if len(turns) == 1 and system is None:
        rows["canonical"] = {"prompt": chat[0][1], "answer": chat[1][1], "images": images}
    return rows


@pytest.fixture(scope="module")
def families():
    models = [load_model(name) for name in FAMILIES]
    return [(model, load_processor(model)) for model in models]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("rows")
    for number, name in enumerate(NAMES):
        Image.new("RGB", (56 + 28 * number, 84), (60 * number, 90, 30)).save(path / name)
    return path


def examples_of(rows, folder, **options):
    (folder / "rows.json").write_text(json.dumps([{"id": name, **row} for name, row in rows.items()]))
    written, _ = convert([folder / "rows.json"], folder / "out", Options(**options), overwrite=True)
    return list(written)


def check_same(said, families, folder):
    system, turns = said
    rows = layouts_of(system, turns)
    examples = examples_of(rows, folder, learn="last")
    assert [one.id for one in examples] == list(rows)
    for model, processor in families:
        first, *others = (encode(one, processor, model, CONTRACT) for one in examples)
        for example, one in zip(examples[1:], others, strict=True):
            assert one.input_ids.tolist() == first.input_ids.tolist(), (model.name, example.id)
            assert one.labels.tolist() == first.labels.tolist(), (model.name, example.id)
            assert one.image_grid_thw.tolist() == first.image_grid_thw.tolist(), (model.name, example.id)
        text = processor.tokenizer.decode([token for token in first.input_ids.tolist() if token != processor.image_token_id])
        place = 0
        for piece in (piece for pieces, answer in turns for piece in (*pieces, answer) if piece is not None):
            place = text.index(piece, place) + len(piece)


common = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


@settings(common, max_examples=15, derandomize=True)
@given(conversations())
def test_one_example_is_one_sequence_in_every_layout(families, folder, said):
    check_same(said, families, folder)


@pytest.mark.sweep
@settings(common, max_examples=400)
@given(conversations())
def test_many_examples_are_one_sequence_in_every_layout(families, folder, said):
    check_same(said, families, folder)


def answered_places(ids, learned):
    """Places of the tokens of assistant turns that are ``learned`` (by number), their ends included, from the ids alone."""
    found, turn = [], -1
    place = 0
    while place < len(ids):
        header = ids[place : place + 3]
        if len(header) == 3 and header[0] == START and header[1:] == ASSISTANT:
            turn += 1
            place += 3
            while True:
                if learned[turn]:
                    found.append(place)
                place += 1
                if ids[place - 1] == END:
                    break
        else:
            place += 1
    return found


ASSISTANT = [77_091, 198]  # "assistant" and a line break


@pytest.mark.parametrize("learned", [(True, True, True), (False, True, False), (True, False, True)])
@pytest.mark.parametrize("place", range(3), ids=FAMILIES)
def test_what_is_learned_is_what_an_independent_reading_of_the_tokens_says(families, folder, place, learned):
    model, processor = families[place]
    assert processor.tokenizer("assistant\n").input_ids == ASSISTANT
    answers = ("A GPU.\n", "  Two   GPUs", "Done <think>not a mark</think>")
    messages = []
    for number, answer in enumerate(answers):
        content = [{"type": "image", "image": NAMES[number]}, {"type": "text", "text": f"What is in {number}?\n"}]
        messages.append({"role": "user", "content": content})
        messages.append({"role": "assistant", "content": answer, "train": learned[number]})
    (example,) = examples_of({"row": {"messages": messages, "system": "Be brief."}}, folder)
    encoded = encode(example, processor, model, CONTRACT)
    ids, labels = encoded.input_ids.tolist(), encoded.labels.tolist()
    wanted = answered_places(ids, learned)
    assert [at for at, label in enumerate(labels) if label != -100] == wanted
    assert all(labels[at] == ids[at] for at in wanted)
    text = processor.tokenizer.decode([ids[at] for at in wanted])
    assert text == "".join(f"{answer}<|im_end|>" for answer, one in zip(answers, learned, strict=True) if one)
    assert ids[-1] == END


@pytest.mark.parametrize("place", range(2), ids=FAMILIES[:2])
def test_a_plain_example_is_token_for_token_what_it_was(families, folder, place):
    model, processor = families[place]
    (example,) = examples_of({"one": {"images": [NAMES[0]], "prompt": "What?", "answer": "A GPU."}}, folder)
    encoded = encode(example, processor, model, CONTRACT)
    tokens = int(encoded.image_grid_thw.prod()) // 4
    said = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<|vision_start|>"
    said += "<|image_pad|>" * tokens + "<|vision_end|>What?<|im_end|>\n<|im_start|>assistant\n"
    prompt = processor.tokenizer(said).input_ids
    answer = processor.tokenizer("A GPU.<|im_end|>").input_ids
    assert encoded.input_ids.tolist() == prompt + answer
    assert encoded.labels.tolist() == [-100] * len(prompt) + answer


def test_qwen3_has_no_system_text_of_its_own_and_its_marks_of_thought_are_one_token(families, folder):
    model, processor = families[2]
    (example,) = examples_of({"one": {"images": [NAMES[0]], "prompt": "What?", "answer": "<think>Hm</think>A GPU."}}, folder)
    ids = encode(example, processor, model, CONTRACT).input_ids.tolist()
    assert ids[:3] == [START, *processor.tokenizer("user\n").input_ids]
    assert {151_667, 151_668} <= set(ids)


def test_tools_are_written_by_the_template_that_knows_them_and_refused_elsewhere(families, folder):
    tool = {"name": "look", "description": "Looks.", "parameters": {"type": "object", "properties": {}}}
    turns = [
        {"role": "user", "content": "<image>Look."},
        {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "look", "arguments": {"at": 3}}}]},
        {"role": "tool", "content": "red"},
        {"role": "assistant", "content": "It is red."},
    ]
    (example,) = examples_of({"one": {"messages": turns, "tools": [tool], "images": [NAMES[0]]}}, folder)
    model, processor = families[2]
    encoded = encode(example, processor, model, CONTRACT)
    text = processor.tokenizer.decode(encoded.input_ids)
    assert text.startswith("<|im_start|>system\n# Tools\n")
    assert '{"type": "function", "function": {"name": "look"' in text
    learned = processor.tokenizer.decode(encoded.input_ids[encoded.labels != -100])
    assert learned == '<tool_call>\n{"name": "look", "arguments": {"at": 3}}\n</tool_call><|im_end|>It is red.<|im_end|>'
    assert "<|im_start|>user\n<tool_response>\nred\n</tool_response><|im_end|>" in text
    with pytest.raises(UsageError, match=r"example 'one': the model's chat template"):
        encode(example, families[1][1], families[1][0], CONTRACT)


PLAIN = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for p in m.content %}"
    "{% if p.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% elif p.type == 'text' %}{{ p.text }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEMPLATES = {
    "drops the system text": (
        PLAIN.replace("for m in messages", "for m in messages if m.role != 'system'"),
        "leaves out the system",
    ),
    "writes turns anew": (PLAIN.replace("{{ m.content }}", "{{ m.content if loop.last else 'hidden' }}"), "leaves out|anew"),
    "drops images": (PLAIN.replace("<|vision_start|><|image_pad|><|vision_end|>", ""), "leaves out an image"),
    "refuses": (
        PLAIN.replace("{% for m in messages %}", "{{ raise_exception('no such talk') }}{% for m in messages %}"),
        "no such talk",
    ),
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_that_loses_what_was_said_is_refused(folder, monkeypatch, name):
    model = load_model("tiny-qwen2.5-vl")
    processor = load_processor(model)
    template, told = TEMPLATES[name]
    processor.chat_template = template
    turns = [{"role": "system", "content": "Be brief."}]
    for number in range(2):
        turns += [{"role": "user", "content": f"<image>What {number}?"}, {"role": "assistant", "content": f"GPU {number}."}]
    (example,) = examples_of({"one": {"messages": turns, "images": list(NAMES[:2])}}, folder)
    with pytest.raises(UsageError, match=told):
        encode(example, processor, model, CONTRACT)


def test_the_template_of_a_folder_is_used_though_it_has_no_tokenizer(tmp_path, folder):
    model = load_model("tiny-qwen2.5-vl")
    (tmp_path / "chat_template.jinja").write_text(PLAIN)
    processor = load_processor(model.replace(weights=str(tmp_path)))
    (example,) = examples_of({"one": {"images": [NAMES[0]], "prompt": "What?", "answer": "A GPU."}}, folder)
    text = processor.tokenizer.decode(encode(example, processor, model, CONTRACT).input_ids)
    assert text.startswith("<|im_start|>user\n")  # no system text of the family's template
