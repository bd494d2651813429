"""Rows of public bug reports, as they were reported: what the command line makes of them, and what the model is given."""

import json
import re
from fractions import Fraction

import numpy as np
import pytest
import torch
from clips import spoken_film
from PIL import Image
from typer.testing import CliRunner

from budgetft.cli.data import app
from budgetft.contract import Contract
from budgetft.data.collate import collate, encode
from budgetft.data.examples import read_dataset
from budgetft.data.processor import load_processor
from budgetft.data.stats import measure_shapes
from budgetft.data.visuals import resized_image
from budgetft.errors import UsageError
from budgetft.model import load_model
from budgetft.step.build import model_config
from budgetft.step.decoding import encode_prompt, pad_left
from budgetft.step.inputs import prepare
from budgetft.step.positions import rope_positions

CONTRACT = Contract()
FAMILIES = ("tiny-qwen2-vl", "tiny-qwen2.5-vl", "tiny-qwen3-vl")
CODE = "    if red:\n        return 1\n    return 0\n"


@pytest.fixture(scope="module")
def families():
    return {name: (load_model(name), load_processor(load_model(name))) for name in FAMILIES}


class Place:
    """A folder with pictures ``a.png`` and ``b.png``, and a command line in it."""

    def __init__(self, folder) -> None:
        self.folder = folder
        for name, size, colour in (("a.png", (112, 84), (200, 30, 40)), ("b.png", (84, 84), (20, 40, 200))):
            Image.new("RGB", size, colour).save(folder / name)

    def convert(self, *rows, options=()):
        """``data convert`` of ``rows``; its result, and the examples, by id."""
        (self.folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        out = self.folder / "out"
        command = ["convert", str(self.folder / "rows.jsonl"), "--out", str(out), "--force", *options]
        done = CliRunner().invoke(app, command)
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        assert done.exit_code == 0, done.output
        return done.output, {one.id: one for one in read_dataset(out)}


@pytest.fixture
def place(tmp_path):
    return Place(tmp_path)


def share(question, answer="Red.", **row):
    return {"conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": answer}], **row}


def chat(content, answer="Red.", **row):
    return {"messages": [{"role": "user", "content": content}, {"role": "assistant", "content": answer}], **row}


def shown(**part):
    return [part, {"type": "text", "text": "What is it?"}]


def given(example, family):
    """``(text, learned text, grid)``; a run of placeholders is one ``[image]`` or ``[video]``."""
    model, processor = family
    encoded = encode(example, processor, model, CONTRACT)
    text = processor.tokenizer.decode(encoded.input_ids)
    text = re.sub(r"<\|vision_start\|>(<\|(image|video)_pad\|>)+<\|vision_end\|>", r"[\2]", text)
    return text, processor.tokenizer.decode(encoded.input_ids[encoded.labels != -100]), encoded.image_grid_thw.tolist()


def question(text):
    return text.split("<|im_start|>user\n")[1].split("<|im_end|>")[0]


def seen(path, model=None):
    return np.asarray(resized_image(path, model or load_model("tiny-qwen2.5-vl"), CONTRACT).convert("RGB")).astype(int)


def test_exif_orientation(place, families):
    upright = np.full((56, 84, 3), 128, np.uint8)
    upright[:14], upright[-14:] = (255, 0, 0), (0, 0, 255)
    stored = Image.fromarray(np.rot90(upright).copy())  # a viewer turns it by a quarter, clockwise
    Image.fromarray(upright).save(place.folder / "upright.jpg", quality=95)
    exif = Image.Exif()
    exif[274] = 6
    for name in ("phone.jpg", "phone.png", "phone.tif"):
        stored.save(place.folder / name, exif=exif, **({"quality": 95} if name.endswith("jpg") else {}))
    names = ("upright.jpg", "phone.jpg", "phone.png", "phone.tif")
    _, examples = place.convert(*({"id": name, "image": name, "caption": "Bars."} for name in names))
    model, processor = families["tiny-qwen2.5-vl"]
    for name in names:
        assert given(examples[name], (model, processor))[2] == [[1, 4, 6]], name
        pixels = seen(examples[name].images[0])
        assert np.abs(pixels[2, 42] - (255, 0, 0)).max() < 12, name
        assert np.abs(pixels[-3, 42] - (0, 0, 255)).max() < 12, name
    shapes = measure_shapes(examples.values(), processor, model, CONTRACT)
    assert {shape.images for shape in shapes} == {((84, 56),)}


def test_alpha_png(place):
    square = np.zeros((84, 84), bool)
    square[28:56, 28:56] = True  # black; all else is transparent
    colour = np.where(square[..., None], np.uint8(0), np.array([250, 0, 250], np.uint8))
    grey, alpha = np.where(square, 0, 128).astype(np.uint8), np.where(square, 255, 0).astype(np.uint8)
    palette = Image.fromarray(square.astype(np.uint8) + 0, "L").convert("P")
    palette.putpalette([90, 10, 90, 0, 0, 0])
    pictures = {
        "rgba.png": (Image.fromarray(np.dstack([np.zeros_like(colour), alpha]), "RGBA"), {}),
        "la.png": (Image.merge("LA", [Image.new("L", (84, 84)), Image.fromarray(alpha)]), {}),
        "palette.png": (palette, {"transparency": 0}),
        "rgb_key.png": (Image.fromarray(colour), {"transparency": (250, 0, 250)}),
        "grey_key.png": (Image.fromarray(grey), {"transparency": 128}),
    }
    for name, (picture, options) in pictures.items():
        picture.save(place.folder / name, **options)
    _, examples = place.convert(*({"id": name, "image": name, "caption": "A black square."} for name in pictures))
    for name in pictures:
        pixels = seen(examples[name].images[0])
        assert (pixels[3, 42].tolist(), pixels[42, 42].tolist()) == ([255] * 3, [0] * 3), name


def test_animated_gif(place, families):
    frames = [Image.new("RGB", (56, 56), (shade,) * 3) for shade in (40, 140, 240)]
    for name in ("lights.gif", "lights.webp", "pages.tif"):
        frames[0].save(place.folder / name, save_all=True, append_images=frames[1:])
    with pytest.raises(UsageError) as failure:
        place.convert(*({"image": name, "caption": "It gets lighter."} for name in ("lights.gif", "lights.webp", "pages.tif")))
    for name in (r"lights\.gif holds 3 frames", r"lights\.webp holds 3 frames", r"pages\.tif holds 3 pages"):
        assert re.search(name, failure.value.message)
    row = {"id": "one", **share("<video>What happens?", video="lights.gif")}
    _, examples = place.convert(row, options=["--frames", "video:3"])
    assert [round(seen(path).mean(), -1) for path in examples["one"].images] == [40, 140, 240]
    assert question(given(examples["one"], families["tiny-qwen2.5-vl"])[0]) == "[video]What happens?"


def test_answer_indent(place, families):
    asked = "Continue the function."
    rows = {"code": share(f"<image>\n{asked}", CODE, image="a.png")}
    rows["canonical"] = {"images": ["a.png"], "prompt": asked, "answer": CODE}
    _, examples = place.convert(*({"id": name, **row} for name, row in rows.items()))
    assert {given(one, families["tiny-qwen2.5-vl"])[1] for one in examples.values()} == {f"{CODE}<|im_end|>"}


@pytest.mark.parametrize("name", FAMILIES)
def test_box_coordinates(place, families, name):
    """A red square is drawn where the box is: what is told is where the model sees it."""
    box = (1000, 500, 1200, 700)
    picture = np.full((728, 1288, 3), 255, np.uint8)
    picture[box[1] : box[3], box[0] : box[2]] = (255, 0, 0)
    Image.fromarray(picture).save(place.folder / "big.png")
    row = share("<image>\nLocate it.", json.dumps({"bbox_2d": list(box), "label": "square"}), image="big.png", id="box")
    output, examples = place.convert(row)
    assert re.search(r"1 examples? (have|has) boxes", output)
    assert "--boxes pixels" in output.replace("\n", " ")
    assert str(list(box)) in given(examples["box"], families[name])[1]
    output, examples = place.convert(row, options=["--boxes", "pixels"])
    assert "boxes" not in output
    told = json.loads(given(examples["box"], families[name])[1].removesuffix("<|im_end|>"))
    assert told["label"] == "square"
    model = families[name][0]
    pixels = seen(examples["box"].images[0], model)
    red_y, red_x = np.nonzero(pixels[..., 1] < 128)
    high, wide = pixels.shape[:2]
    edges = (red_x.min(), red_y.min(), red_x.max() + 1, red_y.max() + 1)
    if name == "tiny-qwen2.5-vl":
        assert (wide, high) == (588, 336)
        known = (456, 231, 547, 323)
        scales = (1, 1)
    else:
        known = (776, 687, 932, 962)  # thousandths
        scales = (1000 / wide, 1000 / high)
    for axis, (edge, told_edge, known_edge) in enumerate(zip(edges, told["bbox_2d"], known, strict=True)):
        assert abs(edge * scales[axis % 2] - told_edge) <= 1 + scales[axis % 2] / 2
        assert abs(told_edge - known_edge) <= 1


def test_box_tokens(place, families):
    asked, said = "Find <|object_ref_start|>the bar<|object_ref_end|>.", "<|box_start|>(0,0),(1000,238)<|box_end|>"
    _, examples = place.convert({"id": "box", **chat(f"<image>{asked}", said, images=["a.png"])})
    model, processor = families["tiny-qwen2-vl"]
    text, learned, _ = given(examples["box"], (model, processor))
    assert (question(text), learned) == (f"[image]{asked}", f"{said}<|im_end|>")
    ids = encode(examples["box"], processor, model, CONTRACT).input_ids.tolist()
    assert [ids.count(mark) for mark in (151_646, 151_647, 151_648, 151_649)] == [1, 1, 1, 1]
    with pytest.raises(UsageError, match=r"holds the control token <\|vision_end\|>"):
        place.convert(chat("<image>Find it.", "<|vision_end|>", images=["a.png"]))


def test_canonical_image_tag(place, families):
    row = {"id": "one", "images": ["a.png"], "prompt": "<image>\nWhat colour?", "answer": "Red."}
    _, examples = place.convert(row)
    assert question(given(examples["one"], families["tiny-qwen2.5-vl"])[0]) == "[image]What colour?"
    with pytest.raises(UsageError, match="2 <image> marks for 1 images"):
        place.convert({**row, "prompt": "<image><image>What colour?"})
    with pytest.raises(UsageError, match=re.escape("<|image_1|> in a text is another tool's mark")):
        place.convert(share("<|image_1|>\nWhat colour?", image="a.png"))
    for system, told in (("See <image>.", "<image> in the system text"), ("See <|image_1|>.", "another tool's mark")):
        with pytest.raises(UsageError, match=told):
            place.convert(share("What colour?", image="a.png", system=system))


def test_image_after_text(place, families):
    parts = [{"type": "text", "text": "Read it."}, {"type": "image", "image": "a.png"}]
    rows = {
        "end": share("Read it.\n<image>", image="a.png"),
        "middle": share("Does <image> show a bar?", image="a.png"),
        "parts": chat(parts),
    }
    _, examples = place.convert(*({"id": name, **row} for name, row in rows.items()))
    told = {name: question(given(one, families["tiny-qwen2.5-vl"])[0]) for name, one in examples.items()}
    assert told == {"end": "Read it.[image]", "middle": "Does [image] show a bar?", "parts": "Read it.[image]"}


def test_image_twice(place, families):
    with pytest.raises(UsageError, match="2 images beside the messages, and 1 image in them"):
        place.convert(chat(shown(type="image", image="a.png"), images=["a.png", "b.png"]))
    sized = chat(shown(type="image", image="a.png", resized_height=56, resized_width=56), id="sized")
    _, examples = place.convert(sized, {"id": "plain", **chat(shown(type="image", image="a.png"))})
    grids = {name: given(one, families["tiny-qwen2.5-vl"])[2] for name, one in examples.items()}
    assert grids == {"sized": [[1, 4, 4]], "plain": [[1, 6, 8]]}


def test_lone_surrogate(place, families):
    cut, whole = (
        {"id": name, "image": "a.png", "caption": text}
        for name, text in (("cut", "A bar \ud83d"), ("whole", "A bar \U0001f600"))
    )
    with pytest.raises(UsageError, match=r"row 1: caption: holds half of a character \(\\ud83d") as failure:
        place.convert(cut, whole)
    assert "row 2" not in failure.value.message
    _, examples = place.convert(cut, whole, options=["--skip-bad"])
    assert given(examples["whole"], families["tiny-qwen2.5-vl"])[1] == "A bar \U0001f600<|im_end|>"


def test_one_bad_image(place):
    Image.new("RGB", (84, 84), (9, 9, 9)).save(place.folder / "whole.jpg")
    (place.folder / "cut.jpg").write_bytes((place.folder / "whole.jpg").read_bytes()[:300])
    rows = [{"id": name, "image": name, "caption": "A bar."} for name in ("a.png", "cut.jpg", "b.png", "gone.jpg")]
    with pytest.raises(UsageError) as failure:
        place.convert(*rows)
    assert re.search(r"row 2: .*cut\.jpg(.|\n)*row 4: .*gone\.jpg", failure.value.message)
    assert not (place.folder / "out").exists()
    output, examples = place.convert(*rows, options=["--skip-bad"])
    assert list(examples) == ["a.png", "b.png"]
    left = (place.folder / "out" / "left-out.txt").read_text().splitlines()
    assert [re.match(r"row (\d): .*?(\w+\.jpg)", line).groups() for line in left] == [("2", "cut.jpg"), ("4", "gone.jpg")]
    assert "2" in output


def test_qwen3_template(place, families):
    _, examples = place.convert({"id": "one", "image": "a.png", "caption": "<think>Hm</think>A bar."})
    model, processor = families["tiny-qwen3-vl"]
    text, learned, _ = given(examples["one"], (model, processor))
    assert text == f"<|im_start|>user\n[image]Describe the image.<|im_end|>\n<|im_start|>assistant\n{learned}"
    ids = encode(examples["one"], processor, model, CONTRACT).input_ids.tolist()
    assert (ids.count(151_667), ids.count(151_668)) == (1, 1)


def test_row_system(place, families):
    said = "Answer in French only."
    rows = {
        "sharegpt": share("<image>What colour?", "Rouge.", system=said, tools="[]", images=["a.png"]),
        "messages": chat("<image>What colour?", "Rouge.", system=said, images=["a.png"]),
    }
    _, examples = place.convert(*({"id": name, **row} for name, row in rows.items()))
    for example in examples.values():
        for family in families.values():
            assert given(example, family)[0].startswith(f"<|im_start|>system\n{said}<|im_end|>\n<|im_start|>user\n[image]What")


def test_trl_messages(place, families):
    content = [{"type": "image"}, {"type": "text", "text": "or "}, {"type": "image"}, {"type": "text", "text": "?"}]
    answer = [{"type": "text", "text": "Red."}]
    _, examples = place.convert({"id": "trl", **chat(content, answer, images=["b.png", "a.png"])})
    text, learned, grids = given(examples["trl"], families["tiny-qwen2.5-vl"])
    assert (question(text), learned, grids) == ("[image]or [image]?", "Red.<|im_end|>", [[1, 6, 6], [1, 6, 8]])
    for images in (["a.png"], ["a.png"] * 3):
        with pytest.raises(UsageError, match=f"{len(images)} images beside the messages, 2 image parts in them"):
            place.convert(chat(content, answer, images=images))


def test_unlabelled(place, families):
    rows = [{"id": "photo", "image": "a.png"}, {"id": "question", "images": ["a.png"], "prompt": "What colour?", "answer": ""}]
    with pytest.raises(UsageError, match=r"row 1: keys image.*--unlabelled\)\n.*row 2: answer: empty .*--unlabelled\)"):
        place.convert(*rows)
    _, examples = place.convert(*rows, options=["--unlabelled"])
    model, processor = families["tiny-qwen2.5-vl"]
    for name, asked in (("photo", "Describe the image."), ("question", "What colour?")):
        prompt = encode_prompt(examples[name], processor, model, CONTRACT)
        assert processor.tokenizer.decode(prompt.input_ids).endswith(f"{asked}<|im_end|>\n<|im_start|>assistant\n")
        assert set(prompt.labels.tolist()) == {-100}
    with pytest.raises(UsageError, match=r"photo.*answer: empty(.|\n)*question.*answer: empty"):
        measure_shapes(examples.values(), processor, model, CONTRACT)


@pytest.fixture(scope="module")
def clock(tmp_path_factory):
    """A film of 16 s whose brightness is 15 times the second."""
    pytest.importorskip("av")
    return spoken_film(tmp_path_factory.mktemp("film") / "clock.mp4", seconds=16, fps=2, size=(96, 64))


@pytest.mark.parametrize("frames", [4, 32])
@pytest.mark.parametrize("name", FAMILIES)
def test_video_positions(place, families, clock, name, frames):
    """Text after a video stands one above all of it, in training and in prediction."""
    row = {"id": "clock", **share("<video>When is it half bright?", video=str(clock))}
    _, examples = place.convert(row, options=["--frames", f"video:{frames}"])
    model, processor = families[name]
    encoded = encode(examples["clock"], processor, model, CONTRACT)
    with torch.device("meta"):
        from transformers import AutoModelForImageTextToText

        net = AutoModelForImageTextToText.from_config(model_config(model))
    trained = prepare(collate([encoded], 0), net, vision="frozen").others["position_ids"][:, 0]
    asked = pad_left([encode_prompt(examples["clock"], processor, model, CONTRACT)], 0)
    seconds = asked.second_per_grid_I
    predicted = rope_positions(asked.mm_token_type_ids_BS, asked.image_grid_I3, seconds, asked.attention_mask_BS, net.config)[
        :, 0
    ]
    last = int(encoded.mm_token_type_ids.nonzero()[-1])
    for positions in (trained, predicted):
        assert positions[:, last + 1].tolist() == [int(positions[:, : last + 1].max()) + 1] * 3
    if (name, frames) == ("tiny-qwen2.5-vl", 4):  # 15 tokens before, and two slices 8 s apart, at two positions a second
        assert trained[:, last + 1].tolist() == [32] * 3
    assert torch.equal(trained[:, : predicted.shape[1]], predicted)


def test_video_segment(place, families, clock):
    def part(**options):
        return chat(shown(type="video", video=str(clock), **options))

    rows = {
        "whole": part(),
        "last": part(video_start=12.0, video_end=16.0),
        "two, small": part(nframes=2, max_pixels=3136),
    }
    _, examples = place.convert(*({"id": name, **row} for name, row in rows.items()), options=["--frames", "video:4"])
    seconds = {name: [seen(path).mean() / 15 for path in one.images] for name, one in examples.items()}
    assert seconds["whole"] == pytest.approx([2, 6, 10, 14], abs=0.25)
    assert seconds["last"] == pytest.approx([12.5, 13.5, 14.5, 15.5], abs=0.6)
    assert seconds["two, small"] == pytest.approx([4, 12], abs=0.25)
    grid = {name: given(one, families["tiny-qwen2.5-vl"])[2] for name, one in examples.items()}
    assert grid["whole"] == grid["last"] == [[2, 4, 6]]
    assert grid["two, small"][0][0] == 1
    assert np.prod(grid["two, small"]) * 14**2 <= 3136


def test_video_timestamps(place, families, clock):
    row = {"id": "clock", **share("<video>When is it half bright?", video=str(clock))}
    _, examples = place.convert(row, options=["--frames", "video:4"])
    greys = [seen(path).mean() for path in examples["clock"].images]
    wanted = [f"{(one + other) / 2 / 15:.0f}.0" for one, other in zip(greys[::2], greys[1::2], strict=True)]
    assert wanted == ["4.0", "12.0"]
    model, processor = families["tiny-qwen3-vl"]
    trained = given(examples["clock"], (model, processor))[0]
    asked = processor.tokenizer.decode(encode_prompt(examples["clock"], processor, model, CONTRACT).input_ids)
    for text in (trained, asked):
        assert re.findall(r"<([\d.]+) seconds>", text) == wanted


def test_webm_without_length(place, families):
    av = pytest.importorskip("av")
    path = place.folder / "recorder.webm"
    with av.open(str(path), "w", options={"live": "1"}) as file:
        stream = file.add_stream("libvpx", rate=Fraction(10))
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(20):
            file.mux(stream.encode(av.VideoFrame.from_image(Image.new("RGB", (64, 48), (12 * number,) * 3))))
        file.mux(stream.encode())
    with av.open(str(path)) as file:
        assert file.duration is None
    row = {"id": "film", **share("<video>What happens?", video="recorder.webm")}
    _, examples = place.convert(row, options=["--frames", "video:4"])
    numbers = [seen(path).mean() / 12 for path in examples["film"].images]  # 20 frames: the middles of four parts
    assert numbers == pytest.approx([2, 7, 12, 17], abs=1.0)
    assert question(given(examples["film"], families["tiny-qwen2.5-vl"])[0]) == "[video]What happens?"
