"""Rows of Arrow tables and of sets of the hub, as the library that wrote them has them."""

from pathlib import Path

import pytest
from source_files import BLUE, RED, arrow, refused, rows, save_arrow, written

from budgetft.data.read.sources import (
    open_source,
)


@pytest.mark.parametrize("name", ["a.parquet", "a.feather", "a.arrow"])
def test_tables_of_arrow_give_their_rows_and_write_their_pictures_once(tmp_path, name):
    path = save_arrow(tmp_path / name, arrow(large=3))
    found = rows(tmp_path, path)
    assert [row["caption"] for row in found] == ["one", None, "three"] * 3
    assert [Path(row["image"]).read_bytes() for row in found[:2]] == [RED, BLUE]
    assert Path(found[0]["image"]).suffix == ".png"
    assert Path(found[1]["image"]).suffix == ".jpg"
    assert found[2]["image"] == "x/c.jpg"
    assert len([one for one in (tmp_path / "work").rglob("*") if one.is_file()]) == 2
    source = open_source(path, work=tmp_path / "work")
    assert source.columns == ("image", "caption", "score")
    assert source.count in (None, 9)


def test_shards_and_globs_are_one_source_in_the_order_of_their_numbers(tmp_path):
    for number in (2, 10, 1):
        save_arrow(tmp_path / f"part-{number}.parquet", arrow().slice(0, 1).append_column("n", [[number]]))
    for what in (str(tmp_path / "part-*.parquet"), tmp_path, [tmp_path / f"part-{number}.parquet" for number in (1, 2, 10)]):
        work = tmp_path.parent / f"{tmp_path.name}-work"
        source = open_source(what, work=work)
        assert [(row.where, row.values["n"]) for row in source] == [(f"part-{n}.parquet row 1", n) for n in (1, 2, 10)]
        assert source.count == 3
    assert "no file matches" in refused(tmp_path, str(tmp_path / "*.csv")).message


def test_files_with_other_columns_are_refused_together(tmp_path):
    first, second = written(tmp_path, "a.csv", "image,caption\n"), written(tmp_path, "b.csv", "image,text\n")
    assert "b.csv has other columns than a.csv" in refused(tmp_path, [first, second]).message


@pytest.mark.parametrize("name", ["a.parquet", "a.feather", "a.arrow"])
@pytest.mark.parametrize("part", [0.0, 0.3, 0.7])
def test_a_cut_table_is_refused_in_one_sentence(tmp_path, name, part):
    path = save_arrow(tmp_path / name, arrow(large=50))
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * part)])
    assert str(path) in refused(tmp_path, path).message


def test_what_datasets_saved_is_read_undecoded_and_classes_have_their_names(tmp_path):
    import datasets

    features = datasets.Features(
        {"image": datasets.Image(), "kind": datasets.ClassLabel(names=["cat", "dog"]), "text": datasets.Value("string")}
    )
    made = datasets.Dataset.from_dict(
        {"image": [{"bytes": RED, "path": None}] * 3, "kind": [1, 0, -1], "text": ["a", "b", "c"]}, features=features
    )
    made.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict({"train": made, "test": made.select([1])}).save_to_disk(str(tmp_path / "dict"))
    made.to_parquet(str(tmp_path / "a.parquet"))
    for what, split in ((tmp_path / "one", None), (tmp_path / "dict", "train"), (tmp_path / "a.parquet", None)):
        found = rows(tmp_path, what, split=split)
        assert [(row["kind"], row["text"]) for row in found] == [("dog", "a"), ("cat", "b"), (None, "c")]
        assert Path(found[0]["image"]).read_bytes() == RED
    assert len(rows(tmp_path, tmp_path / "dict", split="test")) == 1
    assert "several splits: train, test" in refused(tmp_path, tmp_path / "dict").message
    assert "has no splits" in refused(tmp_path, tmp_path / "one", split="train").message
    (tmp_path / "one" / "data-00000-of-00001.arrow").write_bytes(b"damaged")
    assert "cannot read" in refused(tmp_path, tmp_path / "one").message


@pytest.mark.parametrize("said", ["offline", "network"])
def test_a_set_of_the_hub_without_network_names_the_way_on(tmp_path, monkeypatch, said):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1" if said == "offline" else "0")

    def load(*_, **__):
        raise ConnectionError("Couldn't reach 'some/set' on the Hub")

    monkeypatch.setattr("datasets.load_dataset", load)
    error = refused(tmp_path, "some/set")
    assert ("HF_HUB_OFFLINE is set" if said == "offline" else "there is no network") in error.message
    assert "hf download some/set --repo-type dataset" in (error.hint or "")


def test_a_set_of_the_hub_is_loaded_with_its_config_and_split(tmp_path, monkeypatch):
    import datasets

    asked = {}

    def load(path, **options):
        asked.update(options, id=path)
        return datasets.Dataset.from_dict({"image": ["a.jpg"], "text": ["x"]})

    monkeypatch.setattr("datasets.load_dataset", load)
    assert rows(tmp_path, "some/set", split="train", config="de") == [{"image": "a.jpg", "text": "x"}]
    assert asked == {"id": "some/set", "name": "de", "split": "train"}


def test_a_part_of_a_set_has_its_own_fingerprint(tmp_path, monkeypatch):
    import datasets

    made = datasets.Dataset.from_dict({"image": ["a.jpg", "b.jpg"], "text": ["x", "y"]})
    made.save_to_disk(str(tmp_path / "one"))
    whole = datasets.Dataset.load_from_disk(str(tmp_path / "one"))
    prints = []
    for part in (whole, whole.select([0]), whole.select([1]), whole.select([0, 1])):
        monkeypatch.setattr("datasets.load_dataset", lambda *_, part=part, **__: part)
        prints.append(open_source("some/set", work=tmp_path / "work").fingerprint)
    assert len(set(prints)) == 3
    assert prints[0] == prints[3] == open_source(tmp_path / "one", work=tmp_path / "work").fingerprint
