import json
import re
from pathlib import Path

import pytest
from PIL import Image
from rounding import arithmetic
from synthetic_sets import caption_file, change, question_file, scenario_names, spoilt

from budgetft.data.examples import read_dataset
from budgetft.data.media.video import At, VideoFacts, pick_frames
from budgetft.data.synthetic.spec import SyntheticSpec
from budgetft.data.wts.convert import Request, convert_wts, split_scenarios
from budgetft.data.wts.reformat import Format
from budgetft.errors import UsageError
from budgetft.evaluate.judge import truth_of_examples

CAPTIONS = Request(split="train", tasks="captions")


def converted(root, out, request=CAPTIONS, **changes):
    convert_wts(root, out / "data", request.replace(**changes))
    return list(read_dataset(out / "data"))


@pytest.fixture(scope="module")
def plain(synthetic, tmp_path_factory):
    """The whole train split, one frame an example."""
    return converted(synthetic, tmp_path_factory.mktemp("plain"), tasks="both")


def test_every_caption_becomes_one_example_in_each_view(synthetic, plain):
    wanted = {}
    for path in (synthetic / "annotations/caption/train").rglob("*_caption.json"):
        for one in json.loads(path.read_text())["event_phase"]:
            for actor in ("pedestrian", "vehicle"):
                name = path.name.removesuffix("_caption.json")
                wanted[f"{name}|{one['labels'][0]}|{actor}|{path.parent.name}"] = one[f"caption_{actor}"]
    found = {one.id: one.answer for one in plain if one.actor and not one.scenario.startswith("video")}
    assert found == wanted


def test_an_example_says_where_it_is_from(plain):
    one = next(one for one in plain if one.actor == "pedestrian" and one.view == "vehicle_view" and one.phase == "2")
    assert one.id == f"{one.scenario}|2|pedestrian|vehicle_view"
    assert (one.source_id, one.weight, one.frame_rank) == (one.id, 1.0, 0)
    assert one.time_seconds is not None
    assert "the camera of the vehicle in phase 2 (judgement)" in one.prompt
    assert "Describe the pedestrian" in one.prompt


def test_normal_traffic_is_a_scenario_and_its_folder_is_none(synthetic, plain):
    names = {one.scenario for one in plain}
    assert scenario_names(synthetic)[2] in names
    assert "normal_trimmed" not in names


def test_bdd_videos_are_scenarios_named_by_their_files(synthetic, plain, tmp_path):
    assert {one.view for one in plain if one.scenario == "video1000"} == {"vehicle_view"}
    without = converted(synthetic, tmp_path, external=False)
    assert {one.scenario for one in without} == set(scenario_names(synthetic))


def test_a_scenario_name_that_ends_in_letters_of_the_suffix_is_kept_whole(synthetic, tmp_path):
    root = spoilt(synthetic, tmp_path)
    # strip("_caption.json") would make "vide" of it
    for path in root.rglob("video1000*"):
        path.rename(path.with_name(path.name.replace("video1000", "videoction")))
    assert "videoction" in {one.scenario for one in converted(root, tmp_path)}


def test_phases_are_digits_for_captions_and_words_for_questions(plain):
    questions = [one for one in plain if one.actor is None]
    assert {one.phase for one in questions} == {"0", "1", "2", "3", "4", None}
    assert all(one.answer in "abcd" for one in questions)
    assert all("Answer with the letter" in one.prompt for one in questions)


@pytest.mark.parametrize("word", ["judgment", "Judgement", "pre-recognition", 2])
def test_other_spellings_of_phases_are_read(synthetic, tmp_path, word):
    root = spoilt(synthetic, tmp_path)
    path = caption_file(root)

    def edit(data):
        data["event_phase"] = [{**data["event_phase"][2], "labels": [word]}]

    change(path, edit)
    found = {one.phase for one in converted(root, tmp_path) if one.scenario == scenario_names(root)[0] and "overhead" in one.id}
    assert found == {"0" if word == "pre-recognition" else "2"}


def test_phases_may_overlap_and_be_fewer_than_five(synthetic, tmp_path):
    root = spoilt(synthetic, tmp_path)

    def edit(data):
        data["event_phase"] = data["event_phase"][:3]
        data["event_phase"][1]["end_time"] = str(float(data["event_phase"][0]["start_time"]) + 0.12)

    change(caption_file(root), edit)
    found = [one for one in converted(root, tmp_path, view="overhead") if one.scenario == scenario_names(root)[0]]
    assert len(found) == 6


def test_times_are_those_of_each_view_and_the_frame_is_the_middle_one(synthetic, plain):
    name = scenario_names(synthetic)[0]
    for view in ("overhead_view", "vehicle_view"):
        for segment in json.loads(caption_file(synthetic, 0, view).read_text())["event_phase"]:
            one = next(x for x in plain if x.id == f"{name}|{segment['labels'][0]}|vehicle|{view}")
            middle = (float(segment["start_time"]) + float(segment["end_time"])) / 2
            assert abs(one.time_seconds - middle) <= 0.051  # half a frame at 10 fps


def test_environment_questions_are_shown_by_one_view_with_no_phase(synthetic, plain):
    name = scenario_names(synthetic)[0]
    asked = json.loads(question_file(synthetic, "environment").read_text())[0]["environment"]
    found = [one for one in plain if one.scenario == name and one.actor is None and one.phase is None]
    assert [one.answer for one in found] == [question["correct"] for question in asked]
    assert {one.view for one in found} == {"overhead_view"}


def test_questions_have_two_to_four_options(plain):
    counts = {
        one.prompt.count("\na. ") + sum(one.prompt.count(f"\n{letter}. ") for letter in "bcd") for one in plain if not one.actor
    }
    assert counts == {2, 3, 4}


def test_a_question_file_without_its_list_is_read_too(synthetic, tmp_path, plain):
    root = spoilt(synthetic, tmp_path)
    change(question_file(root, "overhead_view"), lambda data: data[0])
    assert len(converted(root, tmp_path, tasks="both")) == len(plain)


def test_test_questions_are_all_found_with_and_without_a_phase(test_package, tmp_path):
    examples = converted(test_package, tmp_path, split="test", tasks="both")
    entries = json.loads((test_package / "SubTask2-VQA/WTS_VQA_PUBLIC_TEST.json").read_text())
    ids = [q["id"] for e in entries for part in (e, *e.get("event_phase", ())) for q in part.get("conversations", ())]
    assert sorted(one.id for one in examples if one.actor is None) == sorted(ids)
    assert all(one.answer == "" for one in examples)
    slots = {(one.scenario, one.phase, one.actor) for one in examples if one.actor}
    truth = json.loads((test_package / "test_truth/subtask1_captioning.json").read_text())
    assert slots == {(name, s["labels"][0], a) for name, rows in truth.items() for s in rows for a in ("pedestrian", "vehicle")}
    assert any("_normal_" in one.scenario for one in examples)
    assert any(one.scenario.startswith("video") for one in examples)


def test_the_test_set_may_be_read_without_bdd(test_package, tmp_path):
    examples = converted(test_package, tmp_path, split="test", tasks="both", external=False)
    entries = json.loads((test_package / "SubTask2-VQA/WTS_VQA_PUBLIC_TEST.json").read_text())
    scored = [e for e in entries if not e["videos"][0].startswith("video")]
    ids = [q["id"] for e in scored for part in (e, *e.get("event_phase", ())) for q in part.get("conversations", ())]
    assert len(scored) < len(entries)
    assert sorted(one.id for one in examples if one.actor is None) == sorted(ids)
    assert not any(one.scenario.startswith("video") for one in examples)


def test_the_package_alone_is_enough_for_its_captions(test_package, tmp_path):
    package = test_package / "WTS_DATASET_PUBLIC_TEST"
    assert converted(package, tmp_path, split="test", form=Format(policy="boxes"))


def test_a_view_filter_never_loses_a_scenario_of_the_test_set(test_package, tmp_path):
    examples = converted(test_package, tmp_path, split="test", view="vehicle")
    truth = json.loads((test_package / "test_truth/subtask1_captioning.json").read_text())
    assert {one.scenario for one in examples} == set(truth)
    assert {one.view for one in examples if "_normal_" in one.scenario} == {"overhead_view"}


def test_boxes_of_60_fps_videos_are_found_in_the_frame_they_were_drawn_for(synthetic, tmp_path):
    examples = converted(synthetic, tmp_path, form=Format(policy="boxes"), view="overhead")
    name = scenario_names(synthetic)[1]
    folder = synthetic / f"annotations/bbox_generated/pedestrian/train/{name}/overhead_view"
    cameras = [
        {row["image_id"]: row["bbox"] for row in json.loads(path.read_text())["annotations"]} for path in folder.glob("*.json")
    ]
    for one in (one for one in examples if one.scenario == name and one.actor == "pedestrian"):
        assert "The pedestrian is in the green box." in one.prompt
        frame = round(one.time_seconds * 60)
        with Image.open(one.images[0]) as image:
            drawn = [_left_edge_is_green(image, rows[2 * frame]) for rows in cameras if 2 * frame in rows]
        assert any(drawn)


def _left_edge_is_green(image, box):
    x, y, _, height = box
    column = [image.getpixel((int(x), int(y) + step)) for step in range(int(height))]
    return sum(green > red + 40 for red, green, _ in column) > len(column) / 2


def test_the_actor_comes_before_the_split_in_box_folders(synthetic, tmp_path):
    root = spoilt(synthetic, tmp_path)
    for kind in ("annotated", "generated"):
        folder = root / f"annotations/bbox_{kind}"
        wrong = root / f"annotations/bbox_{kind}_swapped"
        wrong.mkdir()
        (folder / "pedestrian/train").rename(wrong / "train-pedestrian")
    prompts = [one.prompt for one in converted(root, tmp_path, form=Format(policy="boxes"))]
    assert any("red box" in prompt for prompt in prompts)
    assert not any("green box" in prompt for prompt in prompts)


def test_expanded_rows_share_source_and_answer_and_weigh_one_together(synthetic, tmp_path):
    examples = converted(synthetic, tmp_path, form=Format(policy="expand", per_row=4), cameras="all")
    rows = {}
    for one in examples:
        rows.setdefault(one.source_id, []).append(one)
    assert {len(group) for group in rows.values()} >= {4}
    for group in rows.values():
        assert sum(one.weight for one in group) == arithmetic(1.0, operations=len(group))
        assert len({(one.answer, one.scenario, one.phase, one.actor, one.view) for one in group}) == 1
        assert sorted({one.frame_rank for one in group}) == [0, 1, 2, 3]
    assert len(truth_of_examples(examples).captions) == len({(one.scenario, one.phase, one.actor) for one in examples})


def test_all_cameras_give_an_example_each(synthetic, tmp_path):
    counted = {}
    for one in converted(synthetic, tmp_path, cameras="all", view="overhead"):
        counted.setdefault(one.source_id, []).append(one.weight)
    cameras = {
        path.name: len(list((path / "overhead_view").glob("*.mp4")))
        for path in (synthetic / "videos/train").iterdir()
        if path.is_dir()
    }
    for source, weights in counted.items():
        count = cameras.get(source.split("|")[0], 1)
        assert weights == [arithmetic(1 / count)] * count


def test_the_official_table_chooses_the_main_camera(test_package, tmp_path):
    table = (test_package / "view_used_as_main_reference_for_multiview_scenario.csv").read_text().splitlines()[1:]
    assert table
    examples = converted(test_package, tmp_path, split="test", view="overhead")
    scenario, video = table[0].split(",")
    one = next(one for one in examples if one.scenario == scenario)
    path = test_package / f"WTS_DATASET_PUBLIC_TEST/videos/test/public/{scenario}/overhead_view/{video}"
    (picked,) = pick_frames(path, [At(seconds=one.time_seconds)])
    with Image.open(one.images[0]) as image:
        pairs = zip(image.tobytes(), picked.frame.to_image().tobytes(), strict=True)
        assert sum(abs(a - b) for a, b in pairs) / (image.width * image.height * 3) < 4


@pytest.mark.parametrize(("frames", "images"), [("sheet", 1), ("crop", 2), (3, 3)])
def test_other_formats_have_their_number_of_images(synthetic, tmp_path, frames, images):
    examples = converted(synthetic, tmp_path, form=Format(frames=frames), external=False, view="overhead")
    assert {len(one.images) for one in examples} == {images}
    one = next(one for one in examples if one.actor == "pedestrian")
    with Image.open(one.images[0]) as first, Image.open(one.images[-1]) as last:
        assert (last.width < first.width) is (frames == "crop")


def test_frames_stay_a_video_of_their_rate(synthetic, tmp_path):
    form = Format(frames=4, video=True)
    videos = converted(synthetic, tmp_path, form=form, external=False, view="overhead")
    (tmp_path / "images").mkdir()
    images = converted(synthetic, tmp_path / "images", form=Format(frames=4), external=False, view="overhead")
    assert [[Path(path).name for path in one.images] for one in videos] == [
        [Path(path).name for path in one.images] for one in images
    ]
    assert {one.video_fps for one in images} == {None}
    one = next(one for one in videos if one.phase)
    lasts = float(re.search(r"which lasts ([\d.]+) s", one.prompt)[1])
    assert one.prompt.startswith("This video of a traffic scenario was taken by a fixed overhead camera in phase")
    assert 4 / one.video_fps == pytest.approx(lasts, abs=0.05 + 1e-3 * 0.1)  # it is told to a tenth


def test_pictures_are_shrunk_when_asked(synthetic, tmp_path):
    for one in converted(synthetic, tmp_path, max_side=100, view="overhead"):
        with Image.open(one.images[0]) as image:
            assert max(image.size) == 100


def test_scenarios_are_held_out_whole_before_rows_are_expanded(synthetic, tmp_path):
    request = CAPTIONS.replace(holdout=0.3, form=Format(policy="expand", per_row=2))
    convert_wts(synthetic, tmp_path / "data", request)
    learned, held = read_dataset(tmp_path / "data"), read_dataset(tmp_path / "data-holdout")
    assert not {one.scenario for one in learned} & {one.scenario for one in held}
    assert len({one.scenario for one in held}) == 1
    assert len({one.scenario for one in learned}) == 3


def test_a_split_of_scenarios_does_not_depend_on_their_order():
    names = [f"s{i}" for i in range(10)]
    assert split_scenarios(names, 0.2, 1) == split_scenarios(reversed(names), 0.2, 1)
    assert split_scenarios(names, 0.2, 1) != split_scenarios(names, 0.2, 2)
    with pytest.raises(UsageError, match="there is only 1"):
        split_scenarios(["a", "a"], 0.5, 0)


def test_synwts_keeps_its_tree_in_a_folder_named_data(synthetic, tmp_path):
    (tmp_path / "synwts").mkdir()
    (tmp_path / "synwts" / "data").symlink_to(synthetic)
    assert converted(tmp_path / "synwts", tmp_path, view="vehicle", external=False)


def test_a_format_that_makes_no_sense_is_refused():
    with pytest.raises(UsageError, match="the policy expand is for frames=single"):
        Format.make(frames="sheet", policy="expand")
    with pytest.raises(UsageError, match="a video is of a number of frames, not of frames=sheet"):
        Format.make(frames="sheet", video=True)
    with pytest.raises(UsageError, match="number from 1 to 64"):
        Format.make(frames=0)
    with pytest.raises(UsageError, match="split"):
        Request.make(split="training")
    assert SyntheticSpec.make(scenarios=1).style == "day"


@pytest.mark.parametrize(
    ("fps", "frames"), [(25.0, [0, 1, 2, 3]), (30.0, [0, 1, 2, 3]), (59.94, [0, 0, 1, 1]), (60.0, [0, 0, 1, 1])]
)
def test_an_annotated_frame_is_found_by_its_number_from_0_and_at_60_fps_by_half_of_it(fps, frames):
    facts = VideoFacts(width=64, height=64, fps=fps, seconds=1.0)
    assert [facts.frame_of(number) for number in range(4)] == frames
