import hashlib
import json
import random
from dataclasses import replace

import pytest
from synthetic_sets import LEARNED, TESTED, make_synthetic, scenario_names

from budgetft.data.media.video import At, count_frames, pick_frames, probe
from budgetft.data.synthetic.captions import pedestrian_caption
from budgetft.data.synthetic.cast import cast_synthetic
from budgetft.data.synthetic.dataset import MARKER, render, write_synthetic
from budgetft.data.synthetic.drawing import STYLES
from budgetft.data.synthetic.scenes import COLOURS
from budgetft.data.synthetic.spec import SyntheticSpec, split_of
from budgetft.data.synthetic.story import tell_story
from budgetft.errors import UsageError
from budgetft.evaluate.official import read_annotated_captions, read_answers, read_captions
from budgetft.evaluate.submission import read_test_set

pytestmark = pytest.mark.usefixtures("synthetic")


def contents(root):
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in root.rglob("*") if path.is_file()
    }


def test_the_same_seed_gives_the_same_bytes(tmp_path, synthetic):
    assert contents(make_synthetic(tmp_path / "again", LEARNED)) == contents(synthetic)


def test_another_style_changes_the_pictures_and_not_the_truth(tmp_path, synthetic):
    dusk = make_synthetic(tmp_path / "dusk", LEARNED.replace(style="dusk"))
    first, second = contents(synthetic), contents(dusk)
    assert first.keys() >= {name for name in second if "bbox" not in name}
    texts = [name for name in first if "/caption/" in name or "/vqa/" in name]
    assert texts
    assert all(first[name] == second[name] for name in texts)
    videos = [name for name in first if name.endswith(".mp4")]
    assert all(first[name] != second[name] for name in videos)


def test_processes_give_the_same_bytes_as_one(tmp_path, synthetic):
    write_synthetic(tmp_path / "two", LEARNED, workers=2)
    assert contents(tmp_path / "two") == contents(synthetic)


def test_the_tree_is_the_official_one(synthetic):
    name, fast, normal = scenario_names(synthetic)
    assert "_normal_" in normal
    assert (synthetic / f"videos/train/normal_trimmed/{normal}/overhead_view/{normal}.mp4").is_file()
    assert (synthetic / f"videos/train/{name}/vehicle_view/{name}_vehicle_view.mp4").is_file()
    assert (synthetic / f"annotations/vqa/train/{name}/environment/{name}.json").is_file()
    assert list((synthetic / f"annotations/bbox_annotated/pedestrian/train/{fast}/overhead_view").glob("*_bbox.json"))
    assert (synthetic / "external/BDD_PC_5K/videos/train/video1000.mp4").is_file()
    assert (synthetic / "external/BDD_PC_5K/annotations/train/video1000_caption.json").is_file()


def test_schemas_have_the_official_keys_and_order(synthetic):
    name = scenario_names(synthetic)[0]
    overhead = json.loads((synthetic / f"annotations/caption/train/{name}/overhead_view/{name}_caption.json").read_text())
    vehicle = json.loads((synthetic / f"annotations/caption/train/{name}/vehicle_view/{name}_caption.json").read_text())
    labels = [int(one["labels"][0]) for one in overhead["event_phase"]]
    assert labels == sorted(labels, reverse=True)
    assert isinstance(overhead["overhead_videos"], list)
    assert isinstance(vehicle["vehicle_view"], str)
    assert "id" not in vehicle
    for one, other in zip(overhead["event_phase"], vehicle["event_phase"], strict=True):
        assert one["caption_pedestrian"] == other["caption_pedestrian"]
        assert isinstance(one["start_time"], str)
        assert float(one["end_time"]) > float(other["end_time"])  # the same moment, in another video's time
    (entry,) = json.loads((synthetic / f"annotations/vqa/train/{name}/overhead_view/{name}.json").read_text())
    assert entry["event_phase"][-1]["labels"] in (["prerecognition"], ["recognition"])


def test_captions_and_the_test_package_are_read_by_the_scorer_and_the_submission_writer(synthetic, test_package):
    assert len({slot.scenario for slot in read_annotated_captions(synthetic / "annotations/caption/train")}) == 3
    test = read_test_set(test_package)
    assert len(test.phases) == 4  # one of them BDD
    assert test.external_scenarios == {"video3000"}
    assert set(dict(read_answers(test_package / "test_truth/subtask2_vqa.json"))) == set(test.questions)
    truth = read_captions(test_package / "test_truth/subtask1_captioning.json")
    assert {(slot.scenario, slot.phase) for slot in truth} == {
        (name, phase) for name, phases in test.phases.items() for phase in phases
    }


def test_some_test_questions_have_no_phase(test_package):
    entries = json.loads((test_package / "SubTask2-VQA/WTS_VQA_PUBLIC_TEST.json").read_text())
    assert any("event_phase" not in entry for entry in entries)
    counts = {len([key for key in one if key in "abcd"]) for entry in entries for one in entry.get("conversations", ())}
    assert counts >= {2, 3, 4}


def test_some_events_lack_phases_and_some_phases_overlap():
    stories = [tell_story(random.Random(seed), "x", 4.0) for seed in range(60)]
    assert {len(story.phases) for story in stories} == {4, 5}
    overlaps = [
        story for story in stories if any(b.start < a.end for a, b in zip(story.phases, story.phases[1:], strict=False))
    ]
    assert 0 < len(overlaps) < 60


def test_a_caption_says_what_is_true_in_the_middle_of_its_phase():
    story = tell_story(random.Random(1), "x", 4.0)
    for phase in story.phases:
        scene = story.at(phase.middle)
        assert scene.phase == phase.digit
        assert f"about {round(scene.distance_m)} metres" in pedestrian_caption(scene)
    distances = [story.at(seconds).distance_m for seconds in (0.0, 1.0, 2.0, 3.0, 4.0)]
    assert distances == sorted(distances, reverse=True)


def test_boxes_lie_on_the_actors(tmp_path):
    for seed in range(3):
        (cast,) = cast_synthetic(
            tmp_path / str(seed), SyntheticSpec(scenarios=1, seed=seed, seconds=1.0, external=False, size=(640, 360))
        )
        film = cast.films["overhead_view"][0]
        clear = replace(film.story.scene, night=False, weather="clear", top="red", car="blue")
        film = replace(film, story=replace(film.story, scene=clear))
        boxes = render(film)
        assert film.frames == len(boxes) == count_frames(film.path)
        (picked,) = pick_frames(film.path, [At(index=3)])
        image = picked.frame.to_image()
        for actor, colour, part in (("pedestrian", "red", 0.35), ("vehicle", "blue", 0.6)):
            x, y, width, height = boxes[3][actor]
            found = image.getpixel((int(x + width / 2), int(y + height * part)))
            assert all(abs(a - b) < 60 for a, b in zip(found, COLOURS[colour], strict=True)), (seed, actor, found)


def test_boxes_at_60_fps_count_every_frame_twice(synthetic):
    fast = scenario_names(synthetic)[1]
    (video,) = (synthetic / f"videos/train/{fast}/vehicle_view").glob("*.mp4")
    assert probe(video).fps == 60
    path = synthetic / f"annotations/bbox_generated/pedestrian/train/{fast}/vehicle_view/{video.stem}_bbox.json"
    ids = [one["image_id"] for one in json.loads(path.read_text())["annotations"]]
    assert all(number % 2 == 0 for number in ids)
    assert max(ids) > 60 * probe(video).seconds  # as a plain index it would be past the end


def test_the_number_of_videos_is_kept(tmp_path):
    spec = SyntheticSpec(scenarios=3, videos=8, seconds=1.0, fps=5, size=(64, 36), external=False)
    assert write_synthetic(tmp_path / "out", spec, workers=1) == 8
    assert len(list((tmp_path / "out").rglob("*.mp4"))) == 8


@pytest.mark.parametrize(("count", "splits"), [(1, 1), (2, 2), (3, 3), (10, 3)])
def test_every_split_gets_a_scenario_when_there_are_enough(count, splits):
    found = split_of(TESTED.replace(scenarios=count, fractions=(0.8, 0.1, 0.1)))
    assert len(found) == count
    assert len(set(found)) == splits


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"style": "night"}, "style: must be one of day"),
        ({"fractions": (0.5, 0.2, 0.2)}, "fractions: must be three shares"),
        ({"size": (33, 40)}, "size: must be two even numbers"),
        ({"scenarios": 0}, "scenarios:"),
    ],
)
def test_a_wrong_spec_is_refused_by_field(fields, problem):
    with pytest.raises(UsageError, match=problem):
        SyntheticSpec.make(**{"scenarios": 2, **fields})


def test_an_interrupt_leaves_nothing_and_another_folder_is_never_replaced(tmp_path):
    def stop():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_synthetic(tmp_path / "out", LEARNED, workers=1, on_video=stop)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    with pytest.raises(UsageError, match="exists"):
        write_synthetic(tmp_path / "out", LEARNED, overwrite=True)
    assert (tmp_path / "out" / "thesis.txt").read_text() == "mine"


def test_styles_are_named_after_themselves():
    assert all(style.name == name for name, style in STYLES.items())


def test_a_synthetic_whose_replacement_was_killed_between_its_renames_is_there_again(tmp_path):
    old, new = (tmp_path / f".out.partial-0123456789ab{end}" for end in ("-old", ""))
    old.mkdir()
    (old / MARKER).write_text("{}")
    new.mkdir()  # without its marker it is not whole
    with pytest.raises(UsageError, match="exists"):
        write_synthetic(tmp_path / "out", LEARNED)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
