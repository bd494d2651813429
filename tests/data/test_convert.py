import json

import pytest

from budgetft.data.conversation import Message, Part
from budgetft.data.examples import Example
from budgetft.data.media.images import check_image
from budgetft.data.read.convert import Conversion, Options
from budgetft.errors import UsageError

IMAGE = Part(type="image")
LLAVA = {
    "id": 7,
    "image": "a.jpg",
    "conversations": [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A car."}],
}


def read(path, **options):
    """The examples of the rows in ``path``, their files as they are named there."""
    conversion = Conversion([path], path.parent / "work", Options(**options))
    drafts = conversion.drafts()
    return [one.example(lambda medium: (medium.files, None), learn=conversion.options.learn) for one in drafts]


def converted(tmp_path, rows, name="rows.jsonl", **options):
    path = tmp_path / name
    path.write_text(json.dumps(rows) if name.endswith(".json") else "\n".join(json.dumps(row) for row in rows))
    return read(path, **options)


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
    assert read(path, prompt="What is there?")[0].prompt == "What is there?"


@pytest.mark.parametrize("row", [{"caption": "A car."}, {"image": "a.jpg", "caption": 3}])
def test_a_caption_without_its_image_or_text_is_refused(tmp_path, row):
    with pytest.raises(UsageError, match="row 1"):
        converted(tmp_path, [row])


def test_the_mark_of_a_single_image_may_stand_at_the_end(tmp_path):
    (example,) = converted(tmp_path, [llava("What?\n<image>", image="a.jpg")])
    assert (example.prompt, example.messages[0]) == ("What?", Message.of("user", "What?", IMAGE))


def test_one_object_a_line_is_read_under_the_name_json(tmp_path):
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(LLAVA) + "\n" + json.dumps({**LLAVA, "id": 8}))
    assert [example.id for example in read(path)] == ["7", "8"]


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        (llava("<image>\nWhat?", image=["a.jpg", "b.jpg"]), "1 <image> marks for 2 images"),
        (llava("<image>What?", "See <image>", image="a.jpg"), "<image> in the answer"),
        ({"conversations": LLAVA["conversations"][:1], "image": "a"}, "the last message is of the user"),
        ({"conversations": 7, "image": "a"}, "keys conversations, image; a row needs"),
        ({"conversations": "hello", "image": "a"}, "conversations: text that is not JSON"),
        (llava("What?", image="https://host/a.jpg"), "https://host/a.jpg"),
        (llava("What?", image=7), "image: a int is not a picture or film"),
        (chat([{"type": "audio", "audio": "a.wav"}], "b"), "a part of type 'audio'; known: text, image, video"),
        (chat([{"type": "video", "video": "a.jpg"}], "b"), "messages 1: 'a.jpg' is not the name of a video"),
        (llava("<image>What?", image="a.mp4"), "image: 'a.mp4' is not the name of an image"),
        (llava("<video>What?", video="a.jpg"), "video: 'a.jpg' is not the name of a video"),
        (llava("<video>What?", videos=["a.mp4", "b.mp4"]), "1 <video> marks for 2 videos"),
        (llava("What?", image="a.jpg", images=["a.jpg"]), "image and images: only one of them is supported"),
        ({"id": "a", "images": ["a.jpg"], "prompt": 5, "answer": "q"}, "prompt:"),
        ({"id": "a", "images": ["a.jpg"], "prompt": "p"}, "answer:"),
        ({"id": "a", "images": ["a.jpg"], "prompt": "p", "answer": "q", "wieght": 2}, "wieght: a key that is not known"),
        ({"id": 1.5, "images": ["a.jpg"], "prompt": "p", "answer": "q"}, "id:"),
        (chat("What?", "A car.", images=["a.jpg"], rejected="A bus."), "rejected: answers to choose between"),
        ({"image": "a.jpg", "caption": "Loud.", "audio": "a.wav"}, "audio: sound"),
        ({"img": "a.jpg", "caption": "A car."}, "image: none; found caption, img"),
        ({"img": "a.jpg", "prompt": "What?", "answer": "A car."}, "img: the row has no image by a known key"),
        ({"url": "https://host/a.jpg", "prompt": "What?", "answer": "A car."}, "url: the row has no image by a known key"),
        (chat("What?", [7], images=["a.jpg"]), "messages 2: a part that is neither text nor an object"),
        ({"messages": [{"role": "owner", "content": "x"}]}, "messages 1: role 'owner' is not known"),
        (
            {"messages": [{"role": "user", "content": "x", "mood": "sad"}, *chat("y", "z")["messages"]]},
            "messages 1: mood: a key",
        ),
        (chat([{"type": "text", "text": "x", "bold": True}], "y"), "messages 1: text part: bold: a key"),
        (chat([{"type": "image", "image": "a", "zoom": 2}], "y"), "messages 1: image part: zoom: a key"),
        (chat([{"type": "image", "image": "a", "nframes": 2}], "y"), "nframes of an image"),
        (chat([{"type": "image", "image": "a", "resized_width": 56}], "y"), "resized_width and resized_height"),
        (chat([{"type": "image"}, "x"], "y", images=["a", "b"]), "2 images beside the messages, 1 image parts in them"),
        (
            chat([{"type": "image", "image": "a"}, "x"], "y", images=["a", "b"]),
            "2 images beside the messages, and 1 image in them",
        ),
        (llava("<|image_1|>\nWhat?", image="a.jpg"), "<|image_1|> in a text is another tool's mark"),
        (chat("Where is <ref-object>?", "<bbox>", images=["a"]), "another tool's mark"),
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
    path.write_text(json.dumps(LLAVA) + '\n\n{"id": \n' + json.dumps({"conversations": LLAVA["conversations"][:1]}) + "\n")
    with pytest.raises(UsageError) as failure:
        read(path)
    assert "2 problems" in failure.value.message
    assert "row 3: not JSON" in failure.value.message
    assert "row 4: 1 <image> marks for 0 images" in failure.value.message


@pytest.mark.parametrize(
    ("name", "text"), [("rows.json", ""), ("rows.json", "\n \n"), ("rows.json", "[]"), ("rows.jsonl", "\n \n")]
)
def test_an_empty_file_is_refused(tmp_path, name, text):
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(UsageError, match="holds no rows"):
        read(path)


def test_truncated_json_is_refused(tmp_path):
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([LLAVA, LLAVA])[:-30])
    with pytest.raises(UsageError, match=r"rows\.json"):
        read(path)


def test_a_binary_and_a_missing_file_are_refused(tmp_path):
    (tmp_path / "rows.jsonl").write_bytes(b"\xff\xd8\xff\xe0")
    with pytest.raises(UsageError, match="rows"):
        read(tmp_path / "rows.jsonl")
    with pytest.raises(UsageError, match="gone"):
        read(tmp_path / "gone.jsonl")


def test_a_byte_order_mark_is_ignored(tmp_path):
    (tmp_path / "rows.json").write_text(json.dumps([LLAVA]), encoding="utf-8-sig")
    assert len(read(tmp_path / "rows.json")) == 1


def test_an_image_of_sixteen_bits_is_refused_for_a_processor_would_make_it_white(tmp_path):
    import numpy as np
    from PIL import Image

    Image.fromarray(np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(UsageError, match=r"deep\.png has more than 8 bits a channel"):
        check_image((tmp_path / "deep.png").read_bytes(), "deep.png")


SAID = "Read: "
LAYOUTS = {
    "marks": llava("Read:\n<image>\nand <image>.", "Stop.", image=["a.jpg", "b.jpg"]),
    "message marks": chat("Read:\n<image>\nand <image>.", "Stop.", images=["a.jpg", "b.jpg"]),
    "canonical": {"images": ["a.jpg", "b.jpg"], "prompt": "Read:\n<image>\nand <image>.", "answer": "Stop."},
    "parts": chat(["Read:\n", {"type": "image", "image": "a.jpg"}, "\nand ", {"image": "b.jpg"}, {"text": "."}], "Stop."),
    "parts and images": chat(
        [{"text": "Read:\n"}, {"type": "image"}, {"text": "\nand "}, {"type": "image"}, {"text": "."}],
        [{"type": "text", "text": "Stop."}],
        images=["a.jpg", "b.jpg"],
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_images_stay_where_they_stand_in_every_layout(tmp_path, layout):
    (example,) = converted(tmp_path, [LAYOUTS[layout]])
    assert example.images == ("a.jpg", "b.jpg")
    asked = Message.of("user", "Read:\n", IMAGE, "\nand ", IMAGE, ".")
    assert example.conversation == (asked, Message.of("assistant", "Stop.", learn=True))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<image>\nWhat?", (IMAGE, "What?")),
        ("<image>What?", (IMAGE, "What?")),
        ("<image> What?", (IMAGE, " What?")),
        ("<image>\n\nWhat?", (IMAGE, "\nWhat?")),
        ("What is it?\n<image>", ("What is it?", IMAGE)),
        ("Is <image> red?", ("Is ", IMAGE, " red?")),
        ("A:\n<image>\nB", ("A:\n", IMAGE, "\nB")),
        ("  What?  ", (IMAGE, "  What?  ")),
    ],
)
def test_text_stays_as_it_is_written_around_a_mark(tmp_path, text, expected):
    (example,) = converted(tmp_path, [llava(text, "    if x:\n", image="a.jpg")])
    assert example.conversation[0] == Message.of("user", *expected)
    assert example.answer == "    if x:\n"


def test_a_conversation_keeps_its_system_text_its_turns_and_what_is_learned(tmp_path):
    turns = chat(
        "Be brief.", "<image>What?", "A car.", "And here: <image>?", "A bus.", roles=("system", *["user", "assistant"] * 2)
    )
    (example,) = converted(tmp_path, [{**turns, "images": ["a.jpg", "b.jpg"]}])
    expected = (
        Message.of("system", "Be brief."),
        Message.of("user", IMAGE, "What?"),
        Message.of("assistant", "A car.", learn=True),
        Message.of("user", "And here: ", IMAGE, "?"),
        Message.of("assistant", "A bus.", learn=True),
    )
    assert example.messages == expected
    assert (example.prompt, example.answer) == ("And here: ?", "A bus.")
    (last,) = converted(tmp_path, [{**turns, "images": ["a.jpg", "b.jpg"]}], learn="last")
    assert [one.learn for one in last.messages] == [False, False, False, False, True]


@pytest.mark.parametrize(
    ("key", "values"), [("train", (False, True)), ("weight", (0, 1)), ("loss", (0.0, 1.0)), ("learn", (False, None))]
)
def test_a_message_says_itself_whether_it_is_learned(tmp_path, key, values):
    row = chat("What?", "A car.", "And?", "A bus.", images=["a.jpg"])
    for message, value in zip(row["messages"][1::2], values, strict=True):
        message[key] = value
    for learn in ("all", "last"):
        (example,) = converted(tmp_path, [row], learn=learn)
        assert [one.learn for one in example.messages] == [False, False, False, True]


def test_a_message_that_is_learned_in_part_is_refused(tmp_path):
    row = chat("What?", "A car.", images=["a.jpg"])
    row["messages"][1]["weight"] = 0.5
    with pytest.raises(UsageError, match="weight must be true or false"):
        converted(tmp_path, [row])


@pytest.mark.parametrize("where", ["row", "message"])
def test_a_system_text_is_kept_wherever_it_stands(tmp_path, where):
    row = llava("<image>What?", image="a.jpg")
    if where == "row":
        row["system"] = "In French."
    else:
        row["conversations"].insert(0, {"from": "system", "value": "In French."})
    (example,) = converted(tmp_path, [row])
    assert example.conversation[0] == Message.of("system", "In French.")


def test_two_system_texts_that_differ_are_refused(tmp_path):
    row = llava("<image>What?", image="a.jpg", system="In French.")
    row["conversations"].insert(0, {"from": "system", "value": "In German."})
    with pytest.raises(UsageError, match="another system text"):
        converted(tmp_path, [row])


def test_null_is_absent_at_every_level(tmp_path):
    parts = [{"type": "image", "image": "a.jpg", "text": None, "video": None}, {"type": "text", "text": "What?", "image": None}]
    row = {
        "id": None,
        "system": None,
        "tools": None,
        "rejected": None,
        "messages": [
            {"role": "user", "content": parts, "weight": None},
            {"role": "assistant", "content": "A car.", "tool_calls": None},
        ],
    }
    (example,) = converted(tmp_path, [row])
    assert example == Example(id="row-000001", images=("a.jpg",), prompt="What?", answer="A car.")


def test_keys_that_mean_nothing_are_passed_over_and_counted_and_others_can_be_named(tmp_path):
    rows = [llava("What?", image="a.jpg", source="web", score=3), llava("What?", image="a.jpg", source="web", mood="sad")]
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(rows))
    conversion = Conversion([path], tmp_path / "work", Options(ignore=("mood",)))
    conversion.drafts()
    assert conversion.reader.ignored == {"source": 2, "score": 1, "mood": 1}
    with pytest.raises(UsageError, match=r"--ignore mood"):
        read(path)


def test_rows_without_an_image_are_conversations_too(tmp_path):
    (example,) = converted(tmp_path, [llava("Two and two?", "Four.")])
    assert (example.images, example.prompt, example.answer) == ((), "Two and two?", "Four.")


def test_tools_and_their_calls_are_kept(tmp_path):
    tool = {"name": "look", "description": "Looks.", "parameters": {"type": "object", "properties": {}}}
    turns = [
        {"from": "human", "value": "<image>Look."},
        {"from": "function_call", "value": '{"name": "look", "arguments": {"at": 3}}'},
        {"from": "observation", "value": "red"},
        {"from": "gpt", "value": "It is red."},
    ]
    (example,) = converted(tmp_path, [{"conversations": turns, "tools": json.dumps([tool]), "images": ["a.jpg"]}])
    call = {"type": "function", "function": {"name": "look", "arguments": {"at": 3}}}
    assert example.messages[1] == Message(role="assistant", tool_calls=(call,), learn=True)
    assert example.messages[2] == Message.of("tool", "red")
    assert json.loads(example.tools) == [{"type": "function", "function": tool}]


def test_history_may_be_messages(tmp_path):
    history = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    rows = [{"query": "Bye", "response": "Bye.", "history": kind} for kind in (history, [["Hi", "Hello"]])]
    messages, pairs = converted(tmp_path, rows)
    assert messages.conversation == pairs.conversation


def test_a_picture_may_be_an_object_with_a_path_alone(tmp_path):
    (example,) = converted(tmp_path, [llava("<image>What?", image={"path": "a.jpg"})])
    assert example.images == ("a.jpg",)


def test_a_part_may_say_that_it_is_cached_and_a_function_answers(tmp_path):
    asked = [{"type": "image", "image": "a.jpg", "cache_control": {"type": "ephemeral"}}, {"type": "text", "text": "What?"}]
    called = [{"type": "function", "function": {"name": "look", "arguments": {}}}]
    messages = [
        {"role": "user", "content": asked},
        {"role": "assistant", "tool_calls": called},
        {"role": "function", "content": "red"},
        {"role": "assistant", "content": "A red car."},
    ]
    (example,) = converted(tmp_path, [{"messages": messages}])
    assert [one.role for one in example.conversation] == ["user", "assistant", "tool", "assistant"]


@pytest.mark.parametrize("mark", ["</image>", "<Image>", "<IMAGE>", "{image}", "{{image}}", "<Video>"])
def test_what_is_like_a_mark_is_one_where_something_is_shown(tmp_path, mark):
    with pytest.raises(UsageError, match="another tool's mark"):
        converted(tmp_path, [llava(f"{mark} What?", image="a.jpg")])
    (example,) = converted(tmp_path, [llava(f"{mark} What is this in a template?")])
    assert example.prompt == f"{mark} What is this in a template?"


@pytest.mark.parametrize("mark", ["<image>", "<video>"])
def test_an_answer_holds_no_marks(tmp_path, mark):
    with pytest.raises(UsageError, match=f"{mark} in the answer"):
        converted(tmp_path, [llava("<image>What?", f"{mark} A car.", image="a.jpg")])


def test_alpaca_history_and_pairs_are_read(tmp_path):
    alpaca = {"instruction": "Translate.", "input": "Auto", "output": "Car", "history": [["Hi", "Hello"]], "images": ["a.jpg"]}
    pairs = {
        "images": ["a.jpg"],
        "texts": [{"user": "Hi", "assistant": "Hello", "source": "x"}, {"user": "Translate.\nAuto", "assistant": "Car"}],
    }
    first, second = converted(tmp_path, [alpaca, pairs])
    assert first.conversation == second.conversation
    assert [one.text for one in first.conversation] == ["Hi", "Hello", "Translate.\nAuto", "Car"]


def test_a_prompt_of_messages_is_not_learned_and_its_completion_is(tmp_path):
    row = {
        "prompt": [
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "Hello"},
            {"role": "user", "content": "What?"},
        ],
        "completion": [{"role": "assistant", "content": "A car."}],
        "images": ["a.jpg"],
    }
    (example,) = converted(tmp_path, [row])
    assert [one.learn for one in example.messages] == [False, False, False, True]


def test_rows_without_answers_are_for_prediction(tmp_path):
    rows = [{"image": "a.jpg"}, {"images": ["a.jpg"], "prompt": "What?", "answer": ""}, llava("What?", image="a.jpg")]
    rows[2]["conversations"].pop()
    found = converted(tmp_path, rows, unlabelled=True)
    assert [(one.prompt, one.answer) for one in found] == [("Describe the image.", ""), ("What?", ""), ("What?", "")]
    with pytest.raises(UsageError, match="--unlabelled"):
        converted(tmp_path, rows)


def test_bad_rows_can_be_left_out(tmp_path):
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([LLAVA, {"note": 1}, {**LLAVA, "id": 8}]))
    conversion = Conversion([path], tmp_path / "work", Options(skip_bad=True))
    assert len(conversion.drafts()) == 2
    assert conversion.report.left_out[0].startswith("row 2: keys note")


def test_half_of_a_character_is_told_by_its_field(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(
        '{"image": "a.jpg", "caption": "A red bar \\ud83d"}\n{"image": "a.jpg", "caption": "A red bar \\ud83d\\ude00"}\n'
    )
    with pytest.raises(UsageError, match=r"1 problem\n  row 1: caption: holds half of a character \(\\ud83d"):
        read(path)


def test_objects_of_ms_swift_are_written_where_they_stand(tmp_path):
    row = chat("<image>Find <ref-object>.", "<bbox> and <bbox>", images=["a.jpg"])
    row["objects"] = {"ref": ["the bar"], "bbox": [[10, 20, 30, 40], [1.5, 2]], "bbox_type": "real"}
    (example,) = converted(tmp_path, [row])
    assert example.prompt == "Find <|object_ref_start|>the bar<|object_ref_end|>."
    assert example.answer == "<|box_start|>(10,20),(30,40)<|box_end|> and <|box_start|>(1.5,2)<|box_end|>"
    assert example.box_scale == "pixels"


@pytest.mark.parametrize(
    ("objects", "problem"),
    [
        ({"bbox": []}, "1 <bbox> marks for 0 values"),
        ({"bbox": [[1, 2, 3]]}, "[1, 2, 3] is neither"),
        ({"bbox": [[1, 2, 3, 4]], "bbox_type": "polar"}, "bbox_type must be real or norm1"),
        ({"bbox": [[1, 2, 3, 4]], "image_id": [1]}, "image_id"),
        ({"bbox": [[1, 2, 3, 4]], "masks": []}, "objects: masks: a key"),
    ],
)
def test_objects_that_cannot_be_written_are_refused(tmp_path, objects, problem):
    row = {**chat("<image>Where?", "<bbox>", images=["a.jpg"]), "objects": objects}
    with pytest.raises(UsageError) as failure:
        converted(tmp_path, [row])
    assert problem in failure.value.message


@pytest.mark.parametrize(
    ("name", "scale", "told"),
    [
        ("tiny-qwen2-vl", "pixels", "<|box_start|>(500,250),(1000,1000)<|box_end|>"),
        ("tiny-qwen2.5-vl", "pixels", "[56, 14, 112, 56]"),
        ("tiny-qwen3-vl", "fractions", "[500, 250, 1000, 1000]"),
    ],
)
def test_boxes_are_told_as_each_family_was_taught(name, scale, told):
    from budgetft.data.boxes import rescaled
    from budgetft.model import load_model

    box = "(0.5,0.25),(1.0,1.0)" if scale == "fractions" else "(100,25),(200,100)"
    messages = (Message.of("user", IMAGE, "Where?"), Message.of("assistant", f"<|box_start|>{box}<|box_end|>"))
    (_, answer) = rescaled(messages, scale, [(200, 100)], [(112, 56)], load_model(name))
    assert answer.text == told


@pytest.mark.parametrize(
    ("written", "told"),
    [
        ("[100, 25, 200, 100]", "[56, 14, 112, 56]"),
        ("[[100, 25, 200, 100], [0, 0, 100, 50]].", "[[56, 14, 112, 56], [0, 0, 56, 28]]."),
        ("[100, 25, 200, 100], [0, 0, 100, 50]", "[56, 14, 112, 56], [0, 0, 56, 28]"),
        ("{'bbox_2d': [100, 25, 200, 100], 'label': 'car'}", "{'bbox_2d': [56, 14, 112, 56], 'label': 'car'}"),
        ("Weights [100, 25, 200, 100] of four.", "Weights [100, 25, 200, 100] of four."),
        ("[100, 25, 200]", "[100, 25, 200]"),
        ("100, 25, 200, 100", "100, 25, 200, 100"),
    ],
)
def test_a_text_that_is_a_box_is_told_and_numbers_within_a_text_are_not(written, told):
    from budgetft.data.boxes import rescaled
    from budgetft.model import load_model

    messages = (Message.of("user", IMAGE, "Where?"), Message.of("assistant", written))
    (_, answer) = rescaled(messages, "pixels", [(200, 100)], [(112, 56)], load_model("tiny-qwen2.5-vl"))
    assert answer.text == told


@pytest.mark.parametrize("write", [json.dumps, repr], ids=["JSON", "Python"])
def test_messages_may_be_text_of_a_cell(tmp_path, write):
    row = llava("<image>What?", image="a.jpg")
    (example,) = converted(tmp_path, [{**row, "conversations": write(row["conversations"])}])
    assert (example.images, example.prompt, example.answer) == (("a.jpg",), "What?", "A car.")


@pytest.mark.parametrize("extra", [{}, {"image_id": [0]}])
def test_objects_of_a_row_with_several_images_are_refused(tmp_path, extra):
    row = {**chat("<image><image>Where?", "<bbox>", images=["a.jpg", "b.jpg"]), "objects": {"bbox": [[1, 2, 3, 4]], **extra}}
    with pytest.raises(UsageError, match="objects: of a row with several images"):
        converted(tmp_path, [row])
