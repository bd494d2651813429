"""Inputs of public bug reports: what the model is given of them."""

import json
import re
import zipfile

import numpy as np
import pytest
import torch
from clips import spoken_film
from PIL import Image
from positions import positions_of
from typer.testing import CliRunner

from budgetft.cli.data import app
from budgetft.contract import Contract
from budgetft.data.collate import collate, encode
from budgetft.data.examples import read_dataset
from budgetft.data.processor import load_processor
from budgetft.data.read.convert import convert
from budgetft.data.read.opening import dataset_folder
from budgetft.data.read.options import Options
from budgetft.data.visuals import media_of, resized_image
from budgetft.errors import UsageError
from budgetft.model import load_model
from budgetft.step.build import model_config
from budgetft.step.inputs import prepare

CONTRACT = Contract()
FAMILIES = ("tiny-qwen2-vl", "tiny-qwen2.5-vl", "tiny-qwen3-vl")


@pytest.fixture(scope="module")
def families():
    return {name: (load_model(name), load_processor(load_model(name))) for name in FAMILIES}


def made(folder, *rows, **options):
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    written, report = convert([folder / "rows.jsonl"], folder / "out", Options(**options), overwrite=True)
    return list(written), report


def shade_of(path):
    """The mean brightness of a picture, 0 to 255."""
    return np.asarray(Image.open(path).convert("L")).mean()


def asked(text, answer="Yes.", **row):
    return {"conversations": [{"from": "human", "value": text}, {"from": "gpt", "value": answer}], **row}


def text_of(example, family):
    model, processor = family
    encoded = encode(example, processor, model, CONTRACT)
    return processor.tokenizer.decode(encoded.input_ids), encoded


@pytest.mark.parametrize("frames", [4, 5, 32])
@pytest.mark.parametrize("name", FAMILIES)
def test_text_after_a_video_stands_after_all_of_it(families, tmp_path, name, frames):
    """Of a film of 16 s, against the papers' rule, token by token."""
    spoken_film(tmp_path / "clock.mp4", seconds=16, fps=4)
    row = asked("<video>When is it half bright?", video="clock.mp4")
    ((example,), _) = made(tmp_path, row, frames=frames, video=True)
    model, processor = families[name]
    encoded = encode(example, processor, model, CONTRACT)
    with torch.device("meta"):
        from transformers import AutoModelForImageTextToText

        net = AutoModelForImageTextToText.from_config(model_config(model))
    found = prepare(collate([encoded], 0), net, vision="frozen").others["position_ids"][:, 0].T.tolist()
    times = [round(shade_of(path) / 3.75) / 4 for path in example.images]  # 3.75 brighter with each of 4 frames a second
    slices, rows, columns = encoded.image_grid_thw[0].tolist()
    between = (times[-1] - times[0]) / (frames - 1)
    wanted = positions_of(encoded.mm_token_type_ids.tolist(), [(slices, rows, columns, 2 * between)], family=model.family)
    assert found == [list(one) for one in wanted]
    visual = [max(one) for one, kind in zip(found, encoded.mm_token_type_ids.tolist(), strict=True) if kind]
    last = int(encoded.mm_token_type_ids.nonzero()[-1])
    assert found[last + 1] == [max(visual) + 1] * 3


@pytest.mark.parametrize(("frames", "told"), [(4, ("4.0", "12.0")), (8, ("2.0", "6.0", "10.0", "14.0")), (3, ("5.3", "13.3"))])
def test_seconds_are_those_of_the_frames(families, tmp_path, frames, told):
    """The brightness of each frame is its time: what is told is the mean of the two that a slice is made of."""
    spoken_film(tmp_path / "clock.mp4", seconds=16, fps=12)
    ((example,), _) = made(tmp_path, asked("<video>When?", video="clock.mp4"), frames=frames, video=True)
    # A video keeps 219 shades, and JPEG errs by two more.
    assert list(example.frame_seconds) == pytest.approx([shade_of(path) / 15 for path in example.images], abs=(1.2 + 2) / 15)
    text, _ = text_of(example, families["tiny-qwen3-vl"])
    assert [part.split(" seconds>")[0] for part in text.split("<") if "seconds>" in part] == list(told)


def test_a_part_says_its_clip_its_frames_and_their_size(families, tmp_path):
    spoken_film(tmp_path / "film.mp4", seconds=4, fps=10, size=(96, 64))

    def part(**options):
        content = [{"type": "video", "video": "film.mp4", **options}, {"type": "text", "text": "How bright?"}]
        return {"messages": [{"role": "user", "content": content}, {"role": "assistant", "content": "Bright."}]}

    rows = (
        part(),
        part(video_start=3.0, video_end=4.0),
        part(nframes=2, max_pixels=3136),
        part(fps=2.0),
        part(nframes=2, resized_height=56, resized_width=84),
    )
    (whole, clip, small, rate, sized), _ = made(tmp_path, *rows, frames=4, video=True)
    assert list(whole.frame_seconds) == pytest.approx([0.5, 1.5, 2.5, 3.5], abs=0.051)
    assert all(3.0 <= at <= 4.0 for at in clip.frame_seconds)
    assert min(shade_of(path) / 15 for path in clip.images) > 3.0 - (1.2 + 2) / 15
    model, _ = families["tiny-qwen2.5-vl"]
    for one in (small, sized):
        sizes = {resized_image(path, model, CONTRACT).size for path in one.images}
        assert len(one.images) == 2
        assert sizes == ({(56, 28)} if one is small else {(84, 56)})
    assert len(rate.images) == 8
    with pytest.raises(UsageError, match="the clip from 5 s to 6 s is not in it"):
        made(tmp_path, part(video_start=5.0, video_end=6.0), frames=2, video=True)


def test_an_image_part_says_its_own_size(families, tmp_path):
    Image.new("RGB", (200, 200), (9, 9, 9)).save(tmp_path / "a.png")
    content = [
        {"type": "image", "image": "a.png", "resized_height": 56, "resized_width": 84},
        {"type": "text", "text": "What?"},
    ]
    row = {"messages": [{"role": "user", "content": content}, {"role": "assistant", "content": "A GPU."}]}
    ((example,), _) = made(tmp_path, row)
    assert text_of(example, families["tiny-qwen2.5-vl"])[1].image_grid_thw.tolist() == [[1, 4, 6]]


@pytest.mark.parametrize(
    ("name", "box"),
    [
        ("tiny-qwen2-vl", [776, 687, 932, 962]),
        ("tiny-qwen2.5-vl", [457, 231, 548, 323]),
        ("tiny-qwen3-vl", [776, 687, 932, 962]),
    ],
)
def test_boxes_in_pixels_are_told_in_the_scale_of_the_model(families, tmp_path, name, box):
    Image.new("RGB", (1288, 728)).save(tmp_path / "big.png")
    row = asked("<image>\nLocate it.", '{"bbox_2d": [1000, 500, 1200, 700], "label": "GPU"}', image="big.png")
    ((example,), report) = made(tmp_path, row)
    assert any("--boxes pixels" in note for note in report.notes)
    assert '"bbox_2d": [1000, 500, 1200, 700]' in text_of(example, families[name])[0]
    ((example,), report) = made(tmp_path, row, boxes="pixels")
    assert not report.notes
    text, encoded = text_of(example, families[name])
    found = json.loads(text.split("assistant\n")[-1].removesuffix("<|im_end|>"))["bbox_2d"]
    full = (1000, 1000)
    if name == "tiny-qwen2.5-vl":
        full = (int(encoded.image_grid_thw[0, 2]) * 14, int(encoded.image_grid_thw[0, 1]) * 14)
    expected = [round(at * full[axis % 2] / (1288, 728)[axis % 2]) for axis, at in enumerate((1000, 500, 1200, 700))]
    assert found == expected == box


def test_lists_that_nothing_names_as_boxes_are_counted(tmp_path):
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    answers = ("At [1, 2, 3, 4].", "[1, 2, 3, 4]", "It holds [1].")
    rows = [asked("<image>Where?", answer, image="a.png", id=answer) for answer in answers]
    assert [note[:40] for note in made(tmp_path, *rows, boxes="pixels")[1].notes] == [
        "1 examples have lists of four numbers th"
    ]
    assert [note[:30] for note in made(tmp_path, *rows)[1].notes] == ["1 examples have boxes or point"]


def test_marks_of_boxes_are_text_and_others_are_refused(families, tmp_path):
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    said = "<|object_ref_start|>the bar<|object_ref_end|><|box_start|>(0,0),(9,9)<|box_end|><|quad_start|><|quad_end|>"
    ((example,), _) = made(tmp_path, asked("<image>Find it.", said, image="a.png"))
    assert said in text_of(example, families["tiny-qwen2-vl"])[0]
    for mark in ("<|im_end|>", "<|image_pad|>", "<|vision_start|>", "<|endoftext|>"):
        with pytest.raises(UsageError, match=r"holds the control token|another tool's mark"):
            made(tmp_path, asked(f"<image>Find {mark}.", image="a.png"))


def test_bad_images_are_left_out_by_name_where_that_is_wished(tmp_path):
    Image.new("RGB", (64, 64)).save(tmp_path / "a.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "a.jpg").read_bytes()[:200])
    rows = [{"id": name, "image": name, "caption": "A GPU."} for name in ("a.jpg", "cut.jpg", "A.png", "a.JPG")]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["convert", str(tmp_path / "rows.jsonl"), "--out", str(tmp_path / "out")]
    refused = CliRunner().invoke(app, command)
    assert "row 2: cannot read image" in refused.exception.message
    assert re.search(r"A\.png does not exist; did you mean \S*a\.jpg\?", refused.exception.message)
    assert not (tmp_path / "out").exists()
    done = CliRunner().invoke(app, [*command, "--skip-bad"])
    assert done.exit_code == 0, done.output
    assert [one.id for one in read_dataset(tmp_path / "out")] == ["a.jpg"]
    left = (tmp_path / "out" / "left-out.txt").read_text().splitlines()
    assert [line.split(":")[0] for line in left] == ["row 2", "row 3", "row 4"]


def test_all_of_many_problems_are_in_a_file(tmp_path):
    rows = [{"id": str(number), "image": f"{number}.jpg", "caption": "A GPU."} for number in range(25)]
    with pytest.raises(UsageError, match=r"25 problems(.|\n)*and 5 more(.|\n)*out-problems\.txt"):
        made(tmp_path, *rows)
    assert len((tmp_path / "out-problems.txt").read_text().splitlines()) == 25


def test_rows_without_answers_are_predicted_for_and_not_trained_on(families, tmp_path):
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    (example,), _ = made(tmp_path, {"image": "a.png"}, unlabelled=True)
    model, processor = families["tiny-qwen2.5-vl"]
    with pytest.raises(UsageError, match="answer: empty"):
        encode(example, processor, model, CONTRACT)
    encoded = encode(example, processor, model, CONTRACT, answered=False)
    assert processor.tokenizer.decode(encoded.input_ids).endswith("Describe the image.<|im_end|>\n<|im_start|>assistant\n")
    assert set(encoded.labels.tolist()) == {-100}


def test_several_frames_are_no_image_and_can_be_a_video(tmp_path):
    frames = [Image.new("RGB", (64, 48), (shade, shade, shade)) for shade in (20, 120, 220)]
    frames[0].save(tmp_path / "lights.gif", save_all=True, append_images=frames[1:], duration=500)
    with pytest.raises(UsageError, match=r"lights\.gif holds 3 frames \(give it as a video"):
        made(tmp_path, {"image": "lights.gif", "caption": "It gets lighter."})
    ((example,), _) = made(tmp_path, asked("<video>What happens?", video="lights.gif"), frames=3, video=True)
    assert [round(shade_of(path), -1) for path in example.images] == [20, 120, 220]
    assert media_of(example)[0].is_video


def test_data_in_an_archive_are_converted_once_and_leave_nothing_else(tmp_path):
    Image.new("RGB", (64, 48), (9, 9, 9)).save(tmp_path / "a.png")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.write(tmp_path / "a.png", "photos/a.png")
        archive.writestr("photos/metadata.csv", "file_name,text\na.png,A GPU.\n")
    converted: list[object] = []
    first, second = (
        dataset_folder(tmp_path / "a.zip", cache=tmp_path / "cache", on_convert=converted.append) for _ in range(2)
    )
    assert first == second
    assert len(converted) == 1
    assert [path.name for path in (tmp_path / "cache" / "datasets").iterdir()] == [first.name]


def test_a_film_that_cannot_be_read_is_told_for_each_of_its_rows_and_costs_no_other(tmp_path):
    spoken_film(tmp_path / "good.mp4", seconds=2, fps=4)
    (tmp_path / "bad.mp4").write_text("text")
    films = ("bad.mp4", "good.mp4", "bad.mp4", "good.mp4")
    rows = [{"id": str(number), **asked("<video>When?", video=film)} for number, film in enumerate(films)]
    examples, report = made(tmp_path, *rows, frames=2, skip_bad=True)
    assert [one.id for one in examples] == ["1", "3"]
    assert [line.split(":")[0] for line in report.left_out] == ["row 1", "row 3"]
