import json
import shutil
import subprocess
import sys

import pytest
from PIL import Image

from budgetft.data.examples import Example, read_dataset, write_dataset
from budgetft.errors import UsageError


def write(tmp_path, examples, picture, **options):
    return write_dataset(examples, tmp_path / "out", images_root=picture.parent, **options)


def left_behind(tmp_path):
    return sorted(path.name for path in tmp_path.iterdir() if path.name != "pictures")


def test_what_is_written_is_read_back_with_absolute_image_paths(tmp_path, example, picture):
    second = example.replace(id="two", source_id="scene", weight=0.5)
    written = write(tmp_path, [example, second], picture)
    read = read_dataset(tmp_path / "out")
    assert [one.id for one in read] == ["one", "two"]
    assert read[1] == second.replace(images=read[1].images)
    assert read[-1] == read[1] == read[0:2][1]
    with Image.open(read[0].images[0]) as image:
        assert image.size == (100, 60)
    assert read[0].images[0].startswith(str(tmp_path.resolve() / "out" / "images"))
    assert read.fingerprint == written.fingerprint


def test_an_image_used_twice_is_stored_once(tmp_path, example, picture):
    shutil.copy(picture, picture.with_name("same.jpg"))
    write(tmp_path, [example, example.replace(id="two"), example.replace(id="three", images=("same.jpg",))], picture)
    assert len(list((tmp_path / "out" / "images").iterdir())) == 1


def test_the_fingerprint_changes_with_a_caption_and_with_an_image(tmp_path, example, picture):
    def fingerprint(name, one):
        return write_dataset([one], tmp_path / name, images_root=picture.parent).fingerprint

    first = fingerprint("a", example)
    assert fingerprint("b", example) == first
    assert fingerprint("c", example.replace(answer="It is blue.")) != first
    Image.new("RGB", (100, 60), (0, 0, 200)).save(picture)
    assert fingerprint("d", example) != first


def test_images_with_absolute_paths_are_copied_in(tmp_path, example, picture):
    dataset = write(tmp_path, [example.replace(images=(str(picture),))], picture)
    picture.unlink()
    with Image.open(dataset[0].images[0]) as image:
        image.load()


def test_a_text_file_called_jpg_is_named(tmp_path, example, picture):
    picture.with_name("notes.jpg").write_text("not a picture")
    with pytest.raises(UsageError, match=r"row 1 \('one'\).*notes\.jpg is not an image"):
        write(tmp_path, [example.replace(images=("notes.jpg",))], picture)
    assert left_behind(tmp_path) == []


def test_a_truncated_jpeg_is_named(tmp_path, example, picture):
    Image.effect_noise((300, 200), 80).save(picture)
    picture.write_bytes(picture.read_bytes()[:-4000])
    with pytest.raises(UsageError, match=r"cannot read image .*red\.jpg: .*truncated"):
        write(tmp_path, [example], picture)


def test_a_missing_image_and_an_empty_file_are_named(tmp_path, example, picture):
    picture.with_name("empty.png").touch()
    with pytest.raises(UsageError, match=r"gone\.jpg does not exist(.|\n)*empty\.png is empty"):
        write(tmp_path, [example.replace(images=("gone.jpg", "empty.png"))], picture)


def test_all_problems_are_reported_at_once(tmp_path, example, picture):
    bad = [
        example,
        example.replace(prompt=" "),
        example.replace(id="two", answer="", images=("gone.jpg",)),
        example.replace(id="three", answer="Red.<|im_end|>"),
    ]
    with pytest.raises(UsageError) as failure:
        write(tmp_path, bad, picture)
    text = failure.value.message
    assert "5 problems" in text
    for line in (
        "row 2 ('one'): prompt: empty",
        "row 2 ('one'): id: already used by row 1",
        "row 3 ('two'): answer: empty",
        "gone.jpg does not exist",
        "row 4 ('three'): answer: holds the control token <|im_end|>",
    ):
        assert line in text


def test_a_long_list_of_problems_is_cut_and_counted(tmp_path, example, picture):
    with pytest.raises(UsageError, match=r"50 problems(.|\n)*and 30 more"):
        write(tmp_path, [example.replace(id=str(i), answer="") for i in range(50)], picture)


@pytest.mark.parametrize("path", ["../secret.jpg", "a/../../secret.jpg", "/tmp/../secret.jpg"])
def test_a_path_that_leaves_the_folder_is_refused(tmp_path, example, picture, path):
    shutil.copy(picture, tmp_path / "secret.jpg")
    with pytest.raises(UsageError, match="leaves the folder"):
        write(tmp_path, [example.replace(images=(path,))], picture)


def test_no_examples_are_refused(tmp_path, picture):
    with pytest.raises(UsageError, match="there are no examples"):
        write(tmp_path, [], picture)
    assert left_behind(tmp_path) == []


def test_ctrl_c_leaves_nothing_behind(tmp_path, example, picture):
    def interrupted():
        yield example
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(tmp_path, interrupted(), picture)
    assert left_behind(tmp_path) == []


def test_an_existing_dataset_is_replaced_only_when_asked(tmp_path, example, picture):
    write(tmp_path, [example], picture)
    with pytest.raises(UsageError, match="already exists") as failure:
        write(tmp_path, [example], picture)
    assert "--force" in str(failure.value.hint)
    replaced = write(tmp_path, [example.replace(id="new")], picture, overwrite=True)
    assert [one.id for one in replaced] == ["new"]
    assert left_behind(tmp_path) == ["out"]


def test_a_failed_replacement_keeps_the_old_dataset(tmp_path, example, picture):
    write(tmp_path, [example], picture)
    with pytest.raises(UsageError):
        write(tmp_path, [example.replace(answer="")], picture, overwrite=True)
    assert [one.id for one in read_dataset(tmp_path / "out")] == ["one"]


def test_a_folder_of_something_else_is_never_replaced(tmp_path, example, picture):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    with pytest.raises(UsageError, match="is not a dataset folder"):
        write(tmp_path, [example], picture, overwrite=True)
    assert (tmp_path / "out" / "thesis.txt").read_text() == "mine"


def test_a_missing_folder_and_a_folder_of_something_else_are_told_apart(tmp_path):
    with pytest.raises(UsageError, match="does not exist"):
        read_dataset(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="is not a dataset") as failure:
        read_dataset(tmp_path)
    assert "budgetft data" in str(failure.value.hint)


def test_a_damaged_table_is_a_usage_error(tmp_path, example, picture):
    write(tmp_path, [example], picture)
    (tmp_path / "out" / "state.json").write_text("{")
    with pytest.raises(UsageError, match=r"state\.json is not JSON"):
        read_dataset(tmp_path / "out")


def test_a_truncated_arrow_file_is_a_usage_error(tmp_path, example, picture):
    write(tmp_path, [example], picture)
    (arrow,) = (tmp_path / "out").glob("*.arrow")
    arrow.write_bytes(arrow.read_bytes()[:100])
    with pytest.raises(UsageError, match="cannot read the dataset"):
        read_dataset(tmp_path / "out")


def test_a_table_with_other_columns_or_no_rows_is_refused(tmp_path):
    import datasets

    datasets.Dataset.from_dict({"text": ["hello"]}).save_to_disk(str(tmp_path / "text"))
    with pytest.raises(UsageError, match="lacks the columns id, images, prompt"):
        read_dataset(tmp_path / "text")
    columns = {name: [] for name in ("id", "images", "prompt", "answer", "source_id", "weight")}
    datasets.Dataset.from_dict(columns).save_to_disk(str(tmp_path / "empty"))
    with pytest.raises(UsageError, match="has no rows"):
        read_dataset(tmp_path / "empty")


def test_lost_and_foreign_images_are_found_when_the_dataset_is_read(tmp_path, example, picture):
    import datasets

    row = {"id": "x", "prompt": "p", "answer": "a", "source_id": "s", "weight": 1.0}
    rows = [{**row, "images": [path]} for path in ("images/gone.jpg", "../out.jpg", str(picture))]
    datasets.Dataset.from_list(rows).save_to_disk(str(tmp_path / "bad"))
    with pytest.raises(UsageError) as failure:
        read_dataset(tmp_path / "bad")
    assert "3 problems" in failure.value.message
    assert "'images/gone.jpg' is missing" in failure.value.message
    assert failure.value.message.count("outside the dataset folder") == 2


def test_a_weight_must_be_positive(example):
    with pytest.raises(UsageError, match="weight"):
        Example.make(**{**example.model_dump(), "weight": 0.0})


def test_importing_the_package_loads_no_heavy_library():
    names = ["examples", "read.convert", "tokens", "processor", "collate", "stats", "synthetic.sample"]
    heavy = {"torch", "torchvision", "transformers", "datasets", "qwen_vl_utils", "PIL", "numpy"}
    code = (
        f"import sys, importlib; [importlib.import_module('budgetft.data.' + name) for name in {names}];"
        f"import budgetft.cli.data; print({heavy} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


CHANGES = {
    "id": "two",
    "prompt": "Which?",
    "answer": "Red.",
    "source_id": "row",
    "weight": 0.5,
    "scenario": "s",
    "video_fps": 2.0,
}


@pytest.mark.parametrize(("field", "value"), CHANGES.items(), ids=CHANGES)
def test_the_fingerprint_changes_with_every_field_of_an_example(tmp_path, example, picture, field, value):
    def fingerprint(name: str, one: Example) -> str:
        return write_dataset([one], tmp_path / name, images_root=picture.parent).fingerprint

    assert fingerprint("changed", example.replace(**{field: value})) != fingerprint("as it was", example)


@pytest.mark.parametrize("shown_as", [{"_format_columns": []}, {"_format_columns": ["id"]}, {"_format_type": "numpy"}])
def test_a_dataset_is_read_whatever_it_was_saved_to_be_shown_as(tmp_path, example, picture, shown_as):
    written = write(tmp_path, [example], picture)
    before = list(written)
    state = written.folder / "state.json"
    state.write_text(json.dumps({**json.loads(state.read_text()), **shown_as}))
    again = read_dataset(written.folder)
    assert list(again) == before
    assert again.fingerprint == written.fingerprint
