"""Rows that were taken before conversations in full: their fingerprints, tokens and labels are what they were.

The fingerprints and tokens below were recorded with commit fdc0624, the last one that knew plain examples alone. In these rows
the media come first and no text has white space at its ends, but where that was kept: in canonical rows and captions.
"""

import base64
import hashlib
import json

import pytest
from chatml import DEFAULT_SYSTEM

from budgetft.contract import Contract
from budgetft.data.collate import encode
from budgetft.data.processor import load_processor
from budgetft.data.read.convert import convert
from budgetft.data.read.options import Options
from budgetft.errors import UsageError
from budgetft.model import load_model

FAMILIES = ("tiny-qwen2-vl", "tiny-qwen2.5-vl", "tiny-qwen3-vl")


def llava(question, answer="A car.", **row):
    return {"conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": answer}], **row}


def chat(question, answer="A car.", **row):
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}], **row}


def shown(path, key="image"):
    return {"type": "image", key: path}


def text(said):
    return {"type": "text", "text": said}


PICTURES = {
    "a.png": (
        "iVBORw0KGgoAAAANSUhEUgAAAHAAAAA4CAIAAACqiesdAAAAZElEQVR42u3QMQ0AMAgAsDEh3PhXgSxMcJFWQqOzHnu+AqFChSJU"
        "qFCEChWKUKFChSJUqFCEChWKUKFCESpUqFCEChWKUKFCESpUKEKFChWKUKFCESpUKEKFCkWoUKFCESr0qgEuDgF+xN7piAAAAABJ"
        "RU5ErkJggg=="
    ),
    "b.png": (
        "iVBORw0KGgoAAAANSUhEUgAAADgAAABUCAIAAABY0mNoAAAAWElEQVR42u3OAQ0AMAgDMEDD1V07YtCxpFXQfn8rwVQIUVFRUVFR"
        "UVFRUVFRUVFRUVFRUVFRUVFRUVFRUVFRUVFRUVFRUVFRUVFRUVFRUVFRUVFRUdHU6AHm5wHyN6rHewAAAABJRU5ErkJggg=="
    ),
    "c.png": (
        "iVBORw0KGgoAAAANSUhEUgAAAEAAAAAwCAAAAACEICPDAAAAJ0lEQVR42u3MMREAAAgEoNfUxjeEmwcBqMlNRyAQCAQCgUAgEDwN"
        "FguwANgSLJapAAAAAElFTkSuQmCC"
    ),
}
"""Content of PNG files: what writes them now may write other bytes."""
ROWS = {
    "canonical": [
        {"id": "a", "images": ["a.png"], "prompt": "p", "answer": "q", "source_id": "s", "weight": 0.25},
        {
            "id": "whole",
            "images": ["a.png", "b.png"],
            "prompt": "What?\n  Be brief.",
            "answer": "  A card,\n\tred.\n",
            "source_id": "s",
            "weight": 0.5,
            "scenario": "one",
            "phase": "2",
            "actor": "pedestrian",
            "view": "overhead_view",
            "time_seconds": 1.5,
            "frame_rank": 3,
        },
        {"images": ["c.png", "c.png"], "prompt": "Equal?", "answer": "是的 é \U0001f44d"},
        {"id": 9, "images": ["a.png"], "prompt": " p ", "answer": " q "},
        {"id": "film", "images": ["a.png"] * 4, "prompt": "What happens?", "answer": "Nothing.", "video_fps": 2.0},
        {
            "id": "film of one",
            "images": ["c.png"],
            "prompt": "What happens?",
            "answer": "Nothing.",
            "video_fps": 0.5,
            "time_seconds": 3.0,
            "source_id": None,
            "scenario": None,
        },
    ],
    "captions": [
        {"image": "a.png", "caption": "A car."},
        {"file_name": "b.png", "text": "A car.\nAnd no more. ", "size": 3},
        {
            "id": "three",
            "images": ["a.png", "b.png", "c.png"],
            "caption": " Three.",
            "weight": 0.5,
            "source_id": "x",
            "license": 1,
        },
    ],
    "conversations": [
        llava("<image>\nWhat?", image="a.png", id=7),
        llava("<image>What?", image="a.png"),
        llava("What is <b>this</b>?\nSay it.", "A car,\n\n  red <i>and</i> old.", image=["b.png"]),
        llava("<image>\n<image>\nWhich?", "The first.", images=["a.png", "b.png"], weight=0.5, scenario="s"),
        llava("<image><image>\nWhich?", "The first.", images=["b.png", "a.png"]),
        llava("<image>\n\u00a7 2?", "走", file_name="c.png"),
        {
            "id": "user",
            "image": "a.png",
            "conversations": [{"from": "user", "value": "What?"}, {"from": "assistant", "value": "A car."}],
        },
    ],
    "messages": [
        chat([shown("a.png"), {"type": "image_url", "image_url": {"url": "b.png"}}, text("What?")], [text("A car.")]),
        chat("<image><image>\nWhat?", images=["a.png", "b.png"]),
        chat("What?\nNow.", "A car,\nred.", images=["a.png"], id="t"),
        chat([shown("c.png", "path"), text("Grey?")], "Yes."),
        chat([shown("file://c.png", "url"), text("Grey?")], "Yes.", weight=2.0),
        chat([text("Grey?")], "Yes.", image="c.png"),
        chat([shown("a.png"), text("Plain?")], "Yes.", source_id="w", frame_rank=0),
    ],
}
KNOWN = {
    "canonical": (
        "b92dc62f71f54caeb2183768f26c38d0",
        "124205cd2695 bf431fe0a2fb c463460c920c e1185a3b5801 385a29e7f2ef d72e878286fe",
        "25f802a1469e d7365a752922 17f380439417 383fbd225d3c 641c46219962 c64abcbab884",
    ),
    "captions": (
        "da2bd038776021cc22b67983cf09e18e",
        "a334ffd0b1c5 69525e8725be 31aecdca90e4",
        "10dd56b644af a61e73be5337 bc20c917f7f1",
    ),
    "conversations": (
        "106f1fa1ec2d507fd04acb419c2ed135",
        "3360b8b5a872 3360b8b5a872 9bd50893a2fe 2be4c86e85a2 320d523bf171 b09082cad415 3360b8b5a872",
        "e59f84581674 e59f84581674 d342e8a034b2 de100712dc7e a44478f189fd b1c489714680 e59f84581674",
    ),
    "messages": (
        "403fa2611a7ee89e7587865b99e9e5a4",
        "53ffe04dc8c8 53ffe04dc8c8 5ae9546bf540 d2b30a1bd5fc d2b30a1bd5fc d2b30a1bd5fc 6c35834909b2",
        "c609b1f4859a c609b1f4859a 3d1e8aef0b35 ceaf4310293a ceaf4310293a ceaf4310293a 715390c10cde",
    ),
}
"""By layout: the fingerprint, and hashes of the tokens and labels of each row, of Qwen2-VL and Qwen2.5-VL, and of Qwen3-VL."""
CHANGED = [
    (llava("<image> What?", image="a.png"), "What?", "A car.", [None, " What?"], "A car."),
    (llava("<image>\nWhat?\n", "    A car.\n", image="a.png"), "What?", "A car.", [None, "What?\n"], "    A car.\n"),
    (llava("What?\n<image>", image="a.png"), "What?", "A car.", ["What?", None], "A car."),
    (llava("Is <image> red?", image="a.png"), "Is  red?", "A car.", ["Is ", None, " red?"], "A car."),
    (chat([shown("a.png"), text("a"), text("b")], [text("c"), text("d")]), "a\nb", "c\nd", [None, "ab"], "cd"),
    ({"images": ["a.png"], "prompt": "<image>p", "answer": "q"}, "<image>p", "q", [None, "p"], "q"),
]
"""Rows that were read otherwise: prompt and answer before, and the question's pieces (None: the image) and the answer now."""
REFUSED = [
    (llava("<image>What?", image="a.png", mood="sad"), "mood: a key that is not known"),
    (chat([shown("a.png"), text("What?")], images=["a.png", "b.png"]), "2 images beside the messages, and 1 image in them"),
    (chat([{**shown("a.png"), "zoom": 2}, text("What?")]), "zoom: a key that is not known"),
    ({"images": ["a.png"], "prompt": "p", "answer": "An <image>."}, "<image> in the answer"),
    ({"images": ["a.png"], "prompt": "See <|image_1|>.", "answer": "q"}, "another tool's mark"),
]
"""Rows of which a part was dropped, or a mark left in the text, without a word."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("rows")
    for name, content in PICTURES.items():
        (path / name).write_bytes(base64.b64decode(content))
    return path


@pytest.fixture(scope="module")
def families():
    return [(model, load_processor(model)) for model in map(load_model, FAMILIES)]


def read(folder, *rows):
    (folder / "rows.json").write_text(json.dumps(rows))
    return convert([folder / "rows.json"], folder / "out", Options(), overwrite=True)[0]


def hashed(ids, labels):
    return hashlib.sha256(json.dumps([ids, labels]).encode()).hexdigest()[:12]


@pytest.mark.parametrize("layout", ROWS)
def test_rows_of_before_have_their_fingerprint_their_tokens_and_their_labels(folder, families, layout):
    fingerprint, plain, of_qwen3 = KNOWN[layout]
    written = read(folder, *ROWS[layout])
    assert written.fingerprint == fingerprint
    assert all(example.messages is None for example in written)
    for model, processor in families:
        known = (of_qwen3 if model.family == "qwen3_vl" else plain).split()
        # A default system text stood in Qwen3-VL's text: its template has none.
        before = processor.tokenizer(DEFAULT_SYSTEM).input_ids if model.family == "qwen3_vl" else []
        for example, one in zip(written, known, strict=True):
            encoded = encode(example, processor, model, Contract())
            ids, labels = before + encoded.input_ids.tolist(), [-100] * len(before) + encoded.labels.tolist()
            timed = model.family == "qwen3_vl" and example.video_fps is not None  # it is told other seconds
            assert (hashed(ids, labels) == one) is not timed, (model.name, example.id)


@pytest.mark.parametrize(("row", "prompt", "answer", "pieces", "answer_now"), CHANGED)
def test_what_was_read_otherwise_is_read_as_it_is_written(folder, row, prompt, answer, pieces, answer_now):
    (example,) = read(folder, row)
    question, said = example.conversation
    assert [part.text for part in question.content] == pieces
    assert said.text == example.answer == answer_now
    assert (prompt, answer, [None, prompt]) != (example.prompt, example.answer, pieces)


@pytest.mark.parametrize(("row", "told"), REFUSED)
def test_what_was_dropped_without_a_word_is_refused(folder, row, told):
    with pytest.raises(UsageError) as failure:
        read(folder, row)
    assert told in failure.value.message
