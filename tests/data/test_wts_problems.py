import json
import shutil

import pytest
from PIL import Image
from synthetic_sets import caption_file, change, question_file, scenario_names, spoilt
from typer.testing import CliRunner

from budgetft.cli.data import app
from budgetft.data.conversation import Message, Part
from budgetft.data.examples import read_dataset
from budgetft.data.media.shots import Shot, take_shots
from budgetft.data.media.video import At, count_frames, pick_frames, probe
from budgetft.data.visuals import media_of
from budgetft.data.wts.convert import Request, convert_wts
from budgetft.data.wts.tree import find_tree
from budgetft.errors import UsageError

REQUEST = Request(split="train")


def refusal(root, out, request=REQUEST):
    """The message; and nothing was left that could be taken for a dataset."""
    with pytest.raises(UsageError) as failure:
        convert_wts(root, out / "data", request)
    assert not (out / "data").exists()
    return failure.value.message


def phase(number, **fields):
    def edit(data):
        segment = data["event_phase"][number]
        for key, value in fields.items():
            if value is None:
                segment.pop(key)
            else:
                segment[key] = value

    return edit


@pytest.mark.parametrize(
    ("edit", "problem"),
    [
        (phase(1, labels=["4"]), "event_phase[1].labels: phase 4 is already given by event_phase[0]"),
        (phase(1, labels=[]), "event_phase[1].labels: missing"),
        (phase(1, labels=["7"]), "event_phase[1].labels: ['7'] is not a phase"),
        (phase(0, start_time="9.9", end_time="9.8"), "event_phase[0].end_time: 9.8 s is not after the start at 9.9 s"),
        (phase(0, end_time="99"), "event_phase[0].end_time: 99 s is past the end of"),
        (phase(0, start_time="0.001"), "event_phase[0].start_time: phase 4 (0.001 to"),
        (phase(2, start_time="soon"), "event_phase[2].start_time: 'soon' is not a time in seconds"),
        (phase(2, end_time=None), "event_phase[2].end_time: missing"),
        (phase(2, start_time="-1"), "event_phase[2].start_time: '-1' is not a time in seconds"),
        (phase(2, start_time="nan"), "event_phase[2].start_time: 'nan' is not a time"),
        (phase(3, caption_vehicle="  "), "event_phase[3].caption_vehicle: empty"),
        (phase(3, caption_pedestrian=None), "event_phase[3].caption_pedestrian: missing"),
        (lambda data: data.update(event_phase=[]), "event_phase: empty"),
        (lambda data: data.pop("event_phase") and None, "event_phase: missing"),
        (lambda data: data.update(overhead_videos=["../../secret.mp4"]), "overhead_videos: '../../secret.mp4' is a path"),
        (lambda data: data.update(overhead_videos=["..\\x.mp4"]), "is a path, not the name of a video"),
        (lambda data: data.update(overhead_videos=["gone.mp4"]), "videos: 'gone.mp4' is not among the videos of"),
        (lambda data: data.update(overhead_videos=7), "overhead_videos: 7 is not a list of video names"),
        (lambda data: [data], "file: holds a JSON list, not an object"),
    ],
)
def test_a_bad_caption_file_is_named_with_its_field(synthetic, tmp_path, edit, problem):
    root = spoilt(synthetic, tmp_path)
    path = caption_file(root)
    change(path, edit)
    assert f"{path.relative_to(root)}: {problem}" in refusal(root, tmp_path) or problem in refusal(root, tmp_path)
    assert str(path.relative_to(root)) in refusal(root, tmp_path)


def question(**fields):
    def edit(data):
        asked = data[0]["event_phase"][1]["conversations"][0]
        for key, value in fields.items():
            if value is None:
                asked.pop(key, None)
            else:
                asked[key] = value

    return edit


@pytest.mark.parametrize(
    ("edit", "problem"),
    [
        (question(correct="d", d=None), "[0].event_phase[1].conversations[0].correct: 'd' is not one of the options"),
        (question(correct=None), "conversations[0].correct: None is not one"),
        (question(question=""), "conversations[0].question: empty"),
        (question(a=5), "conversations[0].a: needs two to four options"),
        (question(b=None, c=None, d=None), "needs two to four options"),
        (lambda data: data[0].pop("event_phase") and None, "[0]: has none of event_phase, environment and conversations"),
    ],
)
def test_a_bad_question_is_named_with_its_field(synthetic, tmp_path, edit, problem):
    root = spoilt(synthetic, tmp_path)
    path = question_file(root, "overhead_view")
    change(path, edit)
    message = refusal(root, tmp_path)
    assert problem in message
    assert str(path.relative_to(root)) in message


@pytest.mark.parametrize(
    ("content", "problem"),
    [(b'{"event_phase": [', "file: is not JSON"), (b"\xff\xfe{}", "file: is not UTF-8 text"), (b"", "file: is not JSON")],
)
def test_a_truncated_or_foreign_file_is_named(synthetic, tmp_path, content, problem):
    root = spoilt(synthetic, tmp_path)
    caption_file(root).write_bytes(content)
    assert f"{caption_file(root).relative_to(root)}: {problem}" in refusal(root, tmp_path)


def test_all_problems_of_all_files_come_at_once(synthetic, tmp_path):
    root = spoilt(synthetic, tmp_path)
    change(caption_file(root), phase(0, labels=["9"], end_time="x"))
    change(caption_file(root), phase(1, caption_vehicle=""))
    change(question_file(root, "environment", 1), lambda data: data[0]["environment"][0].update(correct="z"))
    next((root / "external").rglob("video1000.mp4")).write_text("not a video")
    message = refusal(root, tmp_path)
    assert "5 problems" in message
    for part in ("[0].labels", "[0].end_time", "[1].caption_vehicle", "environment[0].correct", "video1000.mp4"):
        assert part in message


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"bbox": [5000, 1, 10, 10]}, "annotations[0].bbox: [5000.0, 1.0, 10.0, 10.0] is not inside the frame of"),
        ({"bbox": [1, 1, 0, 10]}, "annotations[0].bbox: [1, 1, 0, 10] is not x, y, width and height"),
        ({"bbox": "all"}, "annotations[0].bbox: all is not"),
        ({"image_id": 100_000}, "annotations[0].image_id: 100000 is past the end"),
        ({"image_id": -1}, "annotations[0].image_id: -1 is not the number of a frame"),
    ],
)
def test_a_bad_box_is_named_with_its_field(synthetic, tmp_path, fields, problem):
    root = spoilt(synthetic, tmp_path)
    path = sorted((root / "annotations/bbox_annotated/pedestrian/train").rglob("*_bbox.json"))[0]
    change(path, lambda data: data["annotations"][0].update(fields))
    assert f"{path.relative_to(root)}: {problem}" in refusal(root, tmp_path)


def test_a_view_with_captions_and_no_video_is_named(synthetic, tmp_path):
    root = spoilt(synthetic, tmp_path)
    name = scenario_names(root)[0]
    shutil.rmtree(root / "videos/train" / name / "vehicle_view")
    message = refusal(root, tmp_path)
    assert f"vehicle_view/{name}_caption.json: file: there is no video of {name} in videos/vehicle_view" in message
    report = convert_wts(root, tmp_path / "data", REQUEST.replace(skip_bad=True))
    assert len(report.skipped) >= 1


def test_repeated_and_missing_question_ids_of_the_test_set_are_named(test_package, tmp_path):
    root = spoilt(test_package, tmp_path)
    path = root / "SubTask2-VQA/WTS_VQA_PUBLIC_TEST.json"

    def edit(data):
        asked = next(entry["conversations"] for entry in data if "conversations" in entry)
        asked[1]["id"] = asked[0]["id"]
        del asked[2]["id"]
        data[0]["videos"] = ["gone.mp4"]

    change(path, edit)
    message = refusal(root, tmp_path, REQUEST.replace(split="test"))
    assert "is already used by" in message
    assert "conversations[2].id: None is not an id" in message
    assert "[0].videos: 'gone.mp4' is not a video of this split" in message


def test_bad_videos_are_named_together_and_left_out_only_when_asked(synthetic, tmp_path):
    root = spoilt(synthetic, tmp_path)
    first, second = sorted((root / "videos/train").rglob("*_vehicle_view.mp4"))[:2]
    first.write_text("not a video")
    second.write_bytes(b"")
    message = refusal(root, tmp_path)
    assert f"{first.relative_to(root)}: {first.name} is not a video that can be read" in message
    assert str(second.relative_to(root)) in message
    report = convert_wts(root, tmp_path / "data", REQUEST.replace(skip_bad=True))
    assert [line.split(": ")[0] for line in report.skipped] == [str(one.relative_to(root)) for one in (first, second)]
    views = {(one.scenario, one.view) for one in read_dataset(tmp_path / "data")}
    assert (first.parent.parent.name, "vehicle_view") not in views
    assert (first.parent.parent.name, "overhead_view") in views


def test_a_video_that_breaks_off_is_found_when_it_is_decoded(synthetic, tmp_path):
    root = spoilt(synthetic, tmp_path)
    video = next((root / "external").rglob("video1000.mp4"))
    content = video.read_bytes()
    start = content.index(b"mdat")
    # The header says that all is there; most pictures are not.
    video.write_bytes(
        content[: start + 2000] + bytes(len(content) - start - 2000) if content.index(b"moov") < start else content
    )
    header_last = content.index(b"moov") > start
    if header_last:
        moov = content.index(b"moov") - 4
        video.write_bytes(content[: start + 1000] + bytes(moov - start - 1000) + content[moov:])
    probe(video)
    with pytest.raises(UsageError, match=r"video1000\.mp4"):
        convert_wts(root, tmp_path / "data", REQUEST)
    report = convert_wts(root, tmp_path / "data", REQUEST.replace(skip_bad=True))
    assert report.videos == 0  # all good ones were kept from the refused run
    assert report.videos_kept > 0
    assert "video1000" not in {one.scenario for one in read_dataset(tmp_path / "data")}


def test_a_rerun_goes_on_after_an_interrupt_and_gives_the_same_data(synthetic, tmp_path):
    seen = []

    def stop():
        seen.append(1)
        if len(seen) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert_wts(synthetic, tmp_path / "data", REQUEST, workers=1, on_video=stop)
    assert not (tmp_path / "data").exists()
    report = convert_wts(synthetic, tmp_path / "data", REQUEST, workers=1)
    assert report.videos_kept >= 3
    assert report.videos > 0
    whole = convert_wts(synthetic, tmp_path / "whole", REQUEST)
    assert list(report.fingerprints.values()) == list(whole.fingerprints.values())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "whole"]  # the kept frames are gone


def test_kept_frames_are_not_used_for_a_changed_video(synthetic, tmp_path):
    video = tmp_path / "a.mp4"
    source, other = sorted(synthetic.rglob("*_vehicle_view.mp4"))[:2]
    shot = Shot(video=video, moments=(At(seconds=0.5),))
    shutil.copy(source, video)
    first = take_shots({video: [shot]}, tmp_path / "work")
    assert take_shots({video: [shot]}, tmp_path / "work").kept == 1
    shutil.copy(other, video)
    again = take_shots({video: [shot]}, tmp_path / "work")
    assert again.kept == 0
    assert again.taken != first.taken


def test_frames_are_picked_by_index_and_by_time_in_one_pass(synthetic):
    video = sorted(synthetic.rglob("*_vehicle_view.mp4"))[0]
    facts = probe(video)
    wanted = [At(index=5), At(seconds=2 / facts.fps), At(index=0), At(seconds=facts.seconds + 0.4)]
    decoded = []
    found = {picked.wanted: picked for picked in pick_frames(video, wanted, on_frame=lambda: decoded.append(1))}
    total = count_frames(video)
    assert [found[place].index for place in range(4)] == [5, 2, 0, total - 1]
    assert len(decoded) == total
    early = list(pick_frames(video, wanted[:3], on_frame=lambda: decoded.append(1)))
    assert len(early) == 3
    assert len(decoded) == total + 6  # no further than needed
    with pytest.raises(UsageError, match=r"ends at frame .*; frame 9999 is wanted"):
        list(pick_frames(video, [At(index=9999)]))


def test_an_empty_or_missing_root_is_refused(tmp_path):
    with pytest.raises(UsageError, match="does not exist"):
        find_tree(tmp_path / "gone", "train")
    with pytest.raises(UsageError, match="holds no train data"):
        find_tree(tmp_path, "train")


def test_frames_must_be_a_number_or_a_video_of_a_number(tmp_path):
    command = ("convert", str(tmp_path / "rows.json"), "--out", str(tmp_path / "data"), "--frames")
    for wrong in ("video:", "video", "sheet", "-1", "4.5"):
        refused = CliRunner().invoke(app, [*command, wrong])
        assert f"--frames must be a number or video:N, not {wrong!r}" in str(refused.exception)


def test_several_videos_and_images_stand_where_they_are_named(synthetic, tmp_path):
    for name, video in zip("ab", sorted(synthetic.rglob("*_vehicle_view.mp4")), strict=False):
        shutil.copy(video, tmp_path / f"{name}.mp4")
    Image.new("RGB", (64, 64), (200, 30, 30)).save(tmp_path / "c.png")
    said = "First <video> then <video>\nand <image> last."
    turns = [{"from": "human", "value": said}, {"from": "gpt", "value": "A car stops."}]
    row = {"id": "both", "videos": ["a.mp4", "b.mp4"], "image": "c.png", "conversations": turns}
    (tmp_path / "rows.json").write_text(json.dumps([row]))
    command = ("convert", str(tmp_path / "rows.json"), "--out", str(tmp_path / "data"), "--frames")
    done = CliRunner().invoke(app, [*command, "video:4"])
    assert done.exit_code == 0, done.output
    (example,) = read_dataset(tmp_path / "data")
    video, image = Part(type="video", frames=4), Part(type="image")
    assert example.messages[0] == Message.of("user", "First ", video, " then ", video, "\nand ", image, " last.")
    assert [medium.is_video for medium in media_of(example)] == [True, True, False]
    assert len(set(example.images)) == 9


def test_the_commands_make_and_convert_a_synthetic(tmp_path):
    def ran(*arguments):
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        assert result.exit_code == 0, result.output
        return result.stdout

    made = ran("synthetic", tmp_path / "wts", "--scenarios", 2, "--seconds", 1, "--size", "96x64", "--split-fractions", "1,0,0")
    assert "2 scenarios" in made
    common = ("wts", tmp_path / "wts", "--split", "train", "--out", tmp_path / "data")
    found = json.loads(ran(*common, "--frames", "sheet", "--json"))
    assert found["examples"][str(tmp_path / "data")] == len(read_dataset(tmp_path / "data"))
    ran(*common, "--frames", "video:2", "--force")
    assert all(len(one.images) == 2 and one.video_fps for one in read_dataset(tmp_path / "data"))
    assert "examples" in ran(*common, "--policy", "expand", "--per-row", 2, "--force")
    refused = CliRunner().invoke(app, [str(argument) for argument in common])
    assert isinstance(refused.exception, UsageError)


def test_videos_in_a_conversations_file_become_frames(synthetic, tmp_path):
    video = sorted(synthetic.rglob("*_vehicle_view.mp4"))[0]
    shutil.copy(video, tmp_path / "a.mp4")
    turns = [{"from": "human", "value": "<video>\nWhat happens?"}, {"from": "gpt", "value": "A car stops."}]
    part = [{"type": "video", "video": "a.mp4"}, {"type": "text", "text": "What happens?"}]
    messages = [{"role": "user", "content": part}, {"role": "assistant", "content": "A car stops."}]
    rows = [{"id": "a", "video": "a.mp4", "conversations": turns}, {"id": "b", "videos": ["a.mp4"], "conversations": turns}]
    (tmp_path / "rows.json").write_text(json.dumps([*rows, {"id": "c", "messages": messages}]))
    command = ("convert", str(tmp_path / "rows.json"), "--out", str(tmp_path / "data"))
    refused = CliRunner().invoke(app, command)
    assert "--frames 8" in refused.exception.message
    done = CliRunner().invoke(app, [*command, "--frames", "4"])
    assert done.exit_code == 0, done.output
    examples = list(read_dataset(tmp_path / "data"))
    assert [(len(one.images), one.prompt) for one in examples] == [(4, "What happens?")] * 3
    assert len(set(examples[0].images)) == 4
    assert {one.video_fps for one in examples} == {None}
    done = CliRunner().invoke(app, [*command, "--frames", "video:4", "--force"])
    assert done.exit_code == 0, done.output
    videos = list(read_dataset(tmp_path / "data"))
    assert [one.images for one in videos] == [one.images for one in examples]
    facts = probe(tmp_path / "a.mp4")
    wanted = [(part + 0.5) * facts.seconds / 4 for part in range(4)]
    for one in videos:
        assert list(one.frame_seconds) == pytest.approx(wanted, abs=0.51 / facts.fps)  # the frame nearest to each
        assert one.video_fps == pytest.approx(3 / (one.frame_seconds[-1] - one.frame_seconds[0]), abs=5e-7)
    (tmp_path / "a.mp4").write_text("text")
    refused = CliRunner().invoke(app, [*command, "--frames", "4", "--force"])
    assert "a.mp4 is not a video that can be read" in refused.exception.message
    assert len(read_dataset(tmp_path / "data")) == 3


@pytest.mark.parametrize("shots", [{"0": [[], [], []]}, {"0": ["a.jpg", 0.5]}, {"0": [7, 0.5, [0.5]]}, [], {"0": None}])
def test_a_record_of_shots_that_is_none_is_made_again(synthetic, tmp_path, shots):
    video = tmp_path / "a.mp4"
    shutil.copy(sorted(synthetic.rglob("*_vehicle_view.mp4"))[0], video)
    shot = Shot(video=video, moments=(At(seconds=0.5),))
    first = take_shots({video: [shot]}, tmp_path / "work")
    (record,) = (tmp_path / "work" / "done").glob("*.json")
    record.write_text(json.dumps({**json.loads(record.read_text()), "shots": shots}))
    again = take_shots({video: [shot]}, tmp_path / "work")
    assert (again.kept, again.taken) == (0, first.taken)
