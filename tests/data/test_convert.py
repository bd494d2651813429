import json

import pytest

from budgetft.data.convert import convert_file
from budgetft.data.examples import Example
from budgetft.data.images import check_image
from budgetft.errors import UsageError

LLAVA = {
    "id": 7,
    "image": "a.jpg",
    "conversations": [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A car."}],
}


def converted(tmp_path, rows, name="rows.jsonl"):
    path = tmp_path / name
    path.write_text(json.dumps(rows) if name.endswith(".json") else "\n".join(json.dumps(row) for row in rows))
    return convert_file(path)


def chat(*contents, roles=("user", "assistant", "user", "assistant"), **row):
    return {"messages": [{"role": role, "content": text} for role, text in zip(roles, contents, strict=False)], **row}


def llava(question, answer="A car.", **row):
    return {"conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": answer}], **row}


def test_canonical_rows_keep_every_field(tmp_path):
    row = {"id": "a", "images": ["x.jpg"], "prompt": "p", "answer": "q", "source_id": "s", "weight": 0.25}
    assert converted(tmp_path, [row]) == [Example.read(row, source="")]
    assert converted(tmp_path, [row], "rows.json") == [Example.read(row, source="")]


def test_llava_conversations_lose_the_image_mark(tmp_path):
    (example,) = converted(tmp_path, [LLAVA])
    assert example == Example(id="7", images=("a.jpg",), prompt="What?", answer="A car.")


def test_chat_messages_give_their_images_and_text(tmp_path):
    parts = [{"type": "image", "image": "file:///d/a.jpg"}, {"type": "image_url", "image_url": {"url": "b.jpg"}}]
    row = chat([*parts, {"type": "text", "text": "What?"}], [{"type": "text", "text": "A car."}])
    (example,) = converted(tmp_path, [row])
    assert example == Example(id="row-000001", images=("/d/a.jpg", "b.jpg"), prompt="What?", answer="A car.")


def test_chat_messages_may_name_their_images_beside_the_text(tmp_path):
    (example,) = converted(tmp_path, [chat("<image><image>\nWhat?", "A car.", images=["a.jpg", "b.jpg"])])
    assert (example.images, example.prompt) == (("a.jpg", "b.jpg"), "What?")


@pytest.mark.parametrize("row", [{"image": "a.jpg", "caption": "A car."}, {"file_name": "a.jpg", "text": "A car.", "size": 3}])
def test_an_image_and_its_caption_are_enough(tmp_path, row):
    assert converted(tmp_path, [row]) == [
        Example(id="row-000001", images=("a.jpg",), prompt="Describe the image.", answer="A car.")
    ]
    path = tmp_path / "rows.jsonl"
    assert convert_file(path, prompt="What is there?")[0].prompt == "What is there?"


@pytest.mark.parametrize("row", [{"caption": "A car."}, {"image": "a.jpg", "caption": 3}, {"image": "a.jpg", "caption": " "}])
def test_a_caption_without_its_image_or_text_is_refused(tmp_path, row):
    with pytest.raises(UsageError, match="row 1"):
        converted(tmp_path, [row])


def test_the_mark_of_a_single_image_may_stand_at_the_end(tmp_path):
    assert converted(tmp_path, [llava("What?\n<image>", image="a.jpg")])[0].prompt == "What?"


def test_one_object_a_line_is_read_under_the_name_json(tmp_path):
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(LLAVA) + "\n" + json.dumps({**LLAVA, "id": 8}))
    assert [example.id for example in convert_file(path)] == ["7", "8"]


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        (llava("<image>\nWhat?", image=["a.jpg", "b.jpg"]), "conversations: 1 <image> marks for 2 images"),
        (llava("<image> and <image>", image=["a", "b"]), "conversations: text between <image> marks"),
        (llava("<image>What?", "See <image>", image="a.jpg"), "conversations: <image> in the answer"),
        ({"conversations": LLAVA["conversations"] * 2, "image": "a"}, "conversations: 4 messages; only a single"),
        ({"conversations": LLAVA["conversations"][:1], "image": "a"}, "needs one human and one gpt message"),
        ({"conversations": "hello", "image": "a"}, "conversations: must be a list"),
        (llava("What?"), "images: none"),
        (llava("What?", "  ", image="a.jpg"), "answer: empty"),
        (llava("What?", image="https://host/a.jpg"), "is not a file; download images first"),
        (llava("What?", image=7), "image: must be a path"),
        (chat("Be brief.", "What?", "A car.", roles=("system", "user", "assistant")), "system messages are not"),
        (chat("a", "b", "c", "d", images=["a"]), "messages: 4 messages; only a single"),
        (chat([{"type": "audio", "audio": "a.wav"}], "b"), "a part of type 'audio'; known: text, image, video"),
        (chat([{"type": "video", "video": "a.jpg"}], "b"), "messages: 'a.jpg' in a part of type video"),
        (llava("<image>What?", image="a.mp4"), "image: 'a.mp4' is not the name of an image"),
        (llava("<video>What?", video="a.jpg"), "video: 'a.jpg' is not the name of a video"),
        (llava("<video>What?", video="a.mp4", image="b.jpg"), "image and video: only one of them is supported"),
        (llava("<video>What?", videos=["a.mp4", "b.mp4"]), "conversations: 1 <video> marks for 2 videos"),
        (chat([{"type": "text", "text": "x"}, {"type": "image", "image": "a"}], "b"), "images must come first"),
        ({"id": "a", "images": "a.jpg", "prompt": "p", "answer": "q"}, "images: must be a list"),
        ({"id": "a", "images": ["a.jpg"], "prompt": 5, "answer": "q"}, "prompt:"),
        ({"id": "a", "images": ["a.jpg"], "prompt": "p"}, "answer:"),
        ({"id": "a", "images": ["a.jpg"], "prompt": "p", "answer": "q", "wieght": 2}, "wieght: unknown key"),
        ({"id": None, "images": ["a.jpg"], "prompt": "p", "answer": "q"}, "id:"),
        ({"note": "hello"}, "keys note; a row needs"),
        (["a"], "a JSON list, not an object"),
    ],
)
def test_a_row_that_cannot_be_used_is_named_with_its_field(tmp_path, row, problem):
    with pytest.raises(UsageError) as failure:
        converted(tmp_path, [LLAVA, row])
    assert "row 2: " in failure.value.message
    assert problem in failure.value.message


def test_all_bad_rows_are_reported_at_once_by_line_number(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(LLAVA) + '\n\n{"id": \n' + json.dumps(llava("What?", "")) + "\n")
    with pytest.raises(UsageError) as failure:
        convert_file(path)
    assert "3 problems" in failure.value.message
    assert "row 3: not JSON" in failure.value.message
    assert "row 4: answer: empty" in failure.value.message


@pytest.mark.parametrize(
    ("name", "text"), [("rows.json", ""), ("rows.json", "\n \n"), ("rows.json", "[]"), ("rows.jsonl", "\n \n")]
)
def test_an_empty_file_is_refused(tmp_path, name, text):
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(UsageError, match="holds no rows"):
        convert_file(path)


def test_truncated_json_is_refused(tmp_path):
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([LLAVA, LLAVA])[:-30])
    with pytest.raises(UsageError, match=r"rows\.json is not JSON"):
        convert_file(path)


def test_a_binary_and_a_missing_file_are_refused(tmp_path):
    (tmp_path / "rows.jsonl").write_bytes(b"\xff\xd8\xff\xe0")
    with pytest.raises(UsageError, match="is not UTF-8 text"):
        convert_file(tmp_path / "rows.jsonl")
    with pytest.raises(UsageError, match="cannot read"):
        convert_file(tmp_path / "gone.jsonl")


def test_a_byte_order_mark_is_ignored(tmp_path):
    (tmp_path / "rows.json").write_text(json.dumps([LLAVA]), encoding="utf-8-sig")
    assert len(convert_file(tmp_path / "rows.json")) == 1


def test_an_image_of_sixteen_bits_is_refused_for_a_processor_would_make_it_white(tmp_path):
    import numpy as np
    from PIL import Image

    Image.fromarray(np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(UsageError, match=r"deep\.png has more than 8 bits a channel"):
        check_image((tmp_path / "deep.png").read_bytes(), "deep.png")
