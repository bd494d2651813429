"""What is learned of a conversation, token by token, as a reading of the token ids alone says it."""

import itertools
import json
import math

import pytest
import torch
from chatml import ASSISTANT, BREAK, DEFAULT_SYSTEM, END, START, answers_in, call_text
from PIL import Image

from budgetft.contract import Contract
from budgetft.data.collate import encode
from budgetft.data.processor import load_processor
from budgetft.data.read.convert import Conversion
from budgetft.data.read.options import Options
from budgetft.data.templates import TEMPLATES
from budgetft.errors import UsageError
from budgetft.model import load_model

FAMILIES = ("tiny-qwen2-vl", "tiny-qwen2.5-vl", "tiny-qwen3-vl")
CONTRACT = Contract()
SAID = (
    ("<image>\nWhat is this?", "A GPU.\n"),
    ("And <image> this?\n", "  An indented\n\n  answer"),
    ("Sure?", "assistant\nYes, user\n"),
)
"""Questions and answers; one answer says what the header of a turn says."""


@pytest.fixture(scope="module")
def families():
    return {name: (load_model(name), load_processor(load_model(name))) for name in FAMILIES}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("rows")
    Image.new("RGB", (112, 56), (90, 30, 60)).save(path / "a.png")
    Image.new("RGB", (56, 84), (10, 200, 60)).save(path / "b.png")
    return path


def read(folder, *rows, **options):
    (folder / "rows.json").write_text(json.dumps(rows))
    return Conversion([folder / "rows.json"], folder / "work", Options(**options)).examples()


def talk(flags=(), key="learn", pairs=SAID):
    """Messages of ``pairs``; ``flags`` (None: none) say what is learned."""
    messages = []
    for (question, answer), flag in itertools.zip_longest(pairs, flags):
        messages.append({"role": "user", "content": question})
        messages.append({"role": "assistant", "content": answer, **({} if flag is None else {key: flag})})
    return {"messages": messages, "images": ["a.png", "b.png"]}


def check(example, family, learned):
    """That the tokens of the ``learned`` answers (by number) are the labels, and nothing else is; the ids and labels."""
    model, processor = family
    encoded = encode(example, processor, model, CONTRACT)
    ids, labels = encoded.input_ids.tolist(), encoded.labels.tolist()
    turns = answers_in(ids)
    wanted = {place for number in learned for place in turns[number]}
    assert {place for place, label in enumerate(labels) if label != -100} == wanted
    assert all(labels[place] == ids[place] for place in wanted)
    assert len(ids) == len(labels)
    for number in learned:
        first, last = turns[number][0], turns[number][-1]
        assert ids[first - 3 : first] == [START, ASSISTANT, BREAK]
        assert ids[last] == END
    return ids, labels


FLAGS = [flags for flags in itertools.product((True, False, None), repeat=3) if True in flags or None in flags]


@pytest.mark.parametrize("name", FAMILIES)
def test_a_turn_says_itself_whether_it_is_learned(families, folder, name):
    """Every way to flag three turns, under both defaults."""
    processor = families[name][1]
    rows = [talk(flags) for flags in FLAGS]
    for learn, default in (("all", (True, True, True)), ("last", (False, False, True))):
        wanted = [
            [number for number, flag in enumerate(flags) if (default[number] if flag is None else flag)] for flags in FLAGS
        ]
        kept = [place for place, learned in enumerate(wanted) if learned]
        examples = read(folder, *(rows[place] for place in kept), learn=learn)
        assert len(examples) == len(kept)
        for example, place in zip(examples, kept, strict=True):
            ids, labels = check(example, families[name], wanted[place])
            told = processor.tokenizer.decode([label for label in labels if label != -100])
            assert told == "".join(f"{SAID[number][1]}<|im_end|>" for number in wanted[place])
            assert processor.tokenizer.decode(ids).count("<|im_start|>assistant\n") == 3  # nothing is cut


@pytest.mark.parametrize(
    ("key", "yes", "no"),
    [("learn", True, False), ("train", True, False), ("weight", 1, 0), ("loss", True, False), ("weight", 1.0, 0.0)],
)
def test_every_key_of_a_turn_means_the_same(families, folder, key, yes, no):
    shares = [{"from": "human", "value": "<image>A?"}, {"from": "gpt", "value": "B.", key: no}]
    shares += [{"from": "human", "value": "C?"}, {"from": "gpt", "value": "D.", key: yes}]
    first, second = read(folder, talk((no, yes, no), key), {"conversations": shares, "image": "a.png"})
    check(first, families["tiny-qwen2.5-vl"], [1])
    check(second, families["tiny-qwen2.5-vl"], [1])


@pytest.mark.parametrize(
    ("row", "told"),
    [
        (talk((False, False, False)), "no answer is learned"),
        (talk((0.5,), "weight"), "weight must be true or false"),
        (talk(("yes",), "train"), "train must be true or false"),
        (
            {"messages": [{"role": "user", "content": "A?", "learn": True}, {"role": "assistant", "content": "B."}]},
            "only an assistant",
        ),
        (
            {"messages": [{"role": "user", "content": "A?"}, {"role": "assistant", "content": "B.", "learn": 1, "weight": 0}]},
            "contradict",
        ),
    ],
)
def test_what_cannot_be_learned_so_is_refused(folder, row, told):
    with pytest.raises(UsageError, match=told):
        read(folder, row)


def test_the_parts_that_a_question_is_answered_from_are_never_learned(families, folder):
    """Tools: what is called is learned, what they say is not, though it stands in a turn of the user's."""
    row = {
        "tools": [{"name": "look", "description": "assistant\n", "parameters": {}}],
        "images": ["a.png"],
        "messages": [
            {"role": "user", "content": "<image>Look twice."},
            {
                "role": "assistant",
                "content": "Well.",
                "tool_calls": [{"function": {"name": "look", "arguments": {"at": [1, "é"]}}}],
            },
            {"role": "tool", "content": "It is red."},
            {"role": "tool", "content": [{"type": "text", "text": "It is  blue."}]},
            {"role": "assistant", "content": "Both.", "learn": False},
            {"role": "user", "content": "Which?"},
            {"role": "assistant", "content": "Red and blue."},
        ],
    }
    (example,) = read(folder, row)
    model, processor = families["tiny-qwen3-vl"]
    ids, labels = check(example, (model, processor), [0, 2])
    told = processor.tokenizer.decode([label for label in labels if label != -100])
    assert told == f"Well.\n{call_text('look', {'at': [1, 'é']})}<|im_end|>Red and blue.<|im_end|>"
    said = "".join(f"\n<tool_response>\n{one}\n</tool_response>" for one in ("It is red.", "It is  blue."))
    assert (
        f"<|im_start|>user{said}<|im_end|>\n<|im_start|>assistant\nBoth.<|im_end|>\n<|im_start|>user\nWhich?"
        in processor.tokenizer.decode(ids)
    )


@pytest.mark.parametrize("name", FAMILIES)
def test_over_the_limit_is_refused_and_at_it_nothing_is_cut(families, folder, name):
    model, processor = families[name]
    (example,) = read(folder, talk(pairs=(*SAID, ("Long?", "word " * 300 + "end"))))
    length = len(encode(example, processor, model, CONTRACT).input_ids)
    whole = encode(example, processor, model, Contract(max_length=length))
    assert processor.tokenizer.decode(whole.input_ids[-2:]) == " end<|im_end|>"
    with pytest.raises(UsageError, match=f"has {length} tokens"):
        encode(example, processor, model, Contract(max_length=length - 1))


PLAIN = [
    ("What?", "A GPU."),
    ("What is there?\nBe brief.", "A red GPU,\nand <b>no</b> more."),
    ("  What?\n", "    if red:\n        return 1\n"),
    ("走\u00e9?", "\U0001f44d \u05d0"),
]


@pytest.mark.parametrize("images", [("a.png",), ("a.png", "b.png")], ids=["one image", "two images"])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_plain_example_has_the_tokens_that_it_always_had(families, folder, name, images):
    """System text, images, prompt; then the answer and its end, tokenized apart. Qwen3-VL has no system text of its own."""
    model, processor = families[name]
    tokenizer = processor.tokenizer
    for example in read(folder, *({"images": images, "prompt": prompt, "answer": answer} for prompt, answer in PLAIN)):
        encoded = encode(example, processor, model, CONTRACT)
        assert example.messages is None
        system = "" if name == "tiny-qwen3-vl" else DEFAULT_SYSTEM
        counts = [math.prod(grid) // 4 for grid in encoded.image_grid_thw.tolist()]
        shown = "".join(f"<|vision_start|>{'<|image_pad|>' * count}<|vision_end|>" for count in counts)
        asked = f"{system}<|im_start|>user\n{shown}{example.prompt}<|im_end|>\n<|im_start|>assistant\n"
        prompt, answer = (tokenizer(text).input_ids for text in (asked, f"{example.answer}<|im_end|>"))
        assert encoded.input_ids.tolist() == prompt + answer
        assert encoded.labels.tolist() == [-100] * len(prompt) + answer


@pytest.mark.parametrize("name", FAMILIES)
def test_a_prompt_ends_where_what_is_learned_starts(families, folder, name):
    """What is predicted from is what was learned after: the same tokens up to the last answer."""
    model, processor = families[name]
    (example,) = read(folder, talk(), learn="last")
    trained = encode(example, processor, model, CONTRACT)
    asked = encode(example, processor, model, CONTRACT, answered=False)
    first = int((trained.labels != -100).nonzero()[0])
    assert asked.input_ids.tolist() == trained.input_ids[:first].tolist()
    assert torch.equal(asked.pixel_values, trained.pixel_values)


CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for p in m.content %}"
    "{% if p.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% elif p.type == 'text' %}{{ p.text }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""A template of no family's: no system text but one that is given."""
LAST = "loop.index0 == messages | length - 1"
OTHERS = {
    "the system text": (
        CHATML.replace("for m in messages", "for m in messages if m.role != 'system'"),
        "leaves out the system message 1",
    ),
    "earlier answers": (
        CHATML.replace(
            "<|im_start|>{{ m.role }}\n", "{% if m.role != 'assistant' or " + LAST + " %}<|im_start|>{{ m.role }}\n"
        ).replace("<|im_end|>\n{% endfor %}{% if add", "<|im_end|>\n{% endif %}{% endfor %}{% if add"),
        "leaves out the assistant message",
    ),
    "thoughts of earlier answers": (
        CHATML.replace("{{ m.content }}", "{{ m.content if " + LAST + " else m.content.split('</think>')[-1] }}"),
        r"leaves out the assistant message 3|writes message 3 anew",
    ),
    "thoughts before an answer": (
        CHATML.replace(
            "{{ m.role }}\n", "{{ m.role }}\n{% if m.role == 'assistant' and " + LAST + " %}<think>\n\n</think>\n\n{% endif %}"
        ),
        "writes message 3 anew",
    ),
    "a second image": (
        CHATML.replace(
            "<|vision_start|><|image_pad|><|vision_end|>",
            "{% if loop.first and m == messages[1] %}<|vision_start|><|image_pad|><|vision_end|>{% endif %}",
        ),
        "leaves out an image",
    ),
    "the end of a question": (CHATML.replace("{{ p.text }}", "{{ p.text[:4] }}"), "leaves out the user message"),
    "the order of messages": (CHATML.replace("in messages %}", "in messages | reverse %}", 1), "leaves out|anew|another order"),
}
"""Templates, each of which leaves something out or writes it anew, and how that is told."""


@pytest.mark.parametrize("name", OTHERS)
def test_a_template_that_loses_what_is_said_is_refused_by_name(folder, name):
    template, told = OTHERS[name]
    model = load_model("tiny-qwen2.5-vl")
    processor = load_processor(model)
    turns = [{"role": "system", "content": "Be brief."}]
    for number in range(2):
        turns.append({"role": "user", "content": f"What about <image> {number}?"})
        turns.append({"role": "assistant", "content": f"<think>Hm {number}.</think>A GPU."})
    (example,) = read(folder, {"id": "one", "messages": turns, "images": ["a.png", "b.png"]})
    processor.chat_template = CHATML
    encode(example, processor, model, CONTRACT)
    processor.chat_template = template
    with pytest.raises(UsageError, match=told) as failure:
        encode(example, processor, model, CONTRACT)
    assert "example 'one'" in failure.value.message


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("file", ["chat_template.jinja", "chat_template.json", "tokenizer_config.json"])
def test_a_folders_own_template_is_used(tmp_path, folder, name, file):
    """In a folder without a tokenizer, by each name that a template may have."""
    mine = CHATML.replace("<|im_end|>\n{% endfor", "<|im_end|>\n\n{% endfor")
    assert mine not in TEMPLATES.values()
    (tmp_path / file).write_text(mine if file.endswith("jinja") else json.dumps({"chat_template": mine}))
    model = load_model(name).replace(weights=str(tmp_path))
    (example,) = read(folder, talk())
    if file == "tokenizer_config.json":  # such a folder says that it has a tokenizer, and has none
        with pytest.raises(Exception, match="cannot load the processor"):
            load_processor(model)
        return
    processor = load_processor(model)
    ids, _ = check(example, (model, processor), [0, 1, 2])
    text = processor.tokenizer.decode(ids)
    assert text.startswith("<|im_start|>user\n<|vision_start|>")
    assert text.count("<|im_end|>\n\n<|im_start|>user\n") == 2


@pytest.mark.parametrize("name", FAMILIES)
def test_a_folder_with_a_tokenizer_keeps_its_own_template(tmp_path, folder, families, name):
    model, processor = families[name]
    processor.save_pretrained(tmp_path)
    for file in tmp_path.glob("chat_template*"):
        file.unlink()
    (tmp_path / "chat_template.jinja").write_text(CHATML)
    own = load_processor(model.replace(weights=str(tmp_path)))
    (example,) = read(folder, talk())
    text = own.tokenizer.decode(encode(example, own, model, CONTRACT).input_ids)
    assert text.startswith("<|im_start|>user\n<|vision_start|>")


def test_thoughts_of_qwen3_are_single_tokens_and_a_conversation_starts_with_the_user(families, folder):
    model, processor = families["tiny-qwen3-vl"]
    pairs = (("<image>A <think> mark?\n<image>", "<think>\nHm\n</think>\n\nYes."),)
    (example,) = read(folder, talk(pairs=pairs))
    ids, _ = check(example, (model, processor), [0])
    assert ids[0] == START
    assert processor.tokenizer.decode(ids[:3]) == "<|im_start|>user\n"
    assert (ids.count(151_667), ids.count(151_668)) == (2, 1)
    for one in FAMILIES[:2]:
        assert not {151_667, 151_668} & set(encode(example, families[one][1], families[one][0], CONTRACT).input_ids.tolist())
