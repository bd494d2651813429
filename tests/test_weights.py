"""Base weights are known by what is in them: whatever the files are called, however they are dealt, wherever they lie."""

import json
import shutil
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from budgetft.errors import UsageError
from budgetft.model import load_model
from budgetft.profiles import profiles_folder
from budgetft.weights import (
    SAMPLE_BYTES,
    BaseWeights,
    base_here,
    fingerprint,
    open_checkpoint,
    refuse_other,
    split_revision,
    with_revision,
)

COMMITS = ("a" * 40, "b" * 40)


def tensors(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {f"layer.{i}.weight": torch.randn(16, 8, generator=generator) for i in range(4)}


def checkpoint(folder: Path, found, parts=1) -> Path:
    """The tensors in ``parts`` files, with an index where there are several."""
    folder.mkdir(parents=True)
    names = sorted(found)
    if parts == 1:
        save_file(found, folder / "model.safetensors")
        return folder
    where = {name: f"model-{number % parts + 1:05d}.safetensors" for number, name in enumerate(names)}
    for file in set(where.values()):
        save_file({name: found[name] for name in names if where[name] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    return folder


def test_how_tensors_are_dealt_to_files_does_not_matter_and_their_numbers_do(tmp_path):
    whole = fingerprint(checkpoint(tmp_path / "one", tensors()))
    assert fingerprint(checkpoint(tmp_path / "three", tensors(), parts=3)) == whole
    assert fingerprint(checkpoint(tmp_path / "other", tensors(1))) != whole


@pytest.mark.parametrize("place", [(0, 0), (7, 3), (15, 7)])
def test_a_single_changed_number_of_a_small_checkpoint_is_seen(tmp_path, place):
    changed = tensors()
    changed["layer.2.weight"][place] += 1e-6
    assert fingerprint(checkpoint(tmp_path / "a", tensors())) != fingerprint(checkpoint(tmp_path / "b", changed))


def test_another_type_shape_or_name_of_the_same_bytes_is_another_checkpoint(tmp_path):
    base = {"w": torch.zeros(4, 4)}
    others = [{"v": torch.zeros(4, 4)}, {"w": torch.zeros(2, 8)}, {"w": torch.zeros(4, 4, dtype=torch.int32)}]
    found = {fingerprint(checkpoint(tmp_path / str(i), each)) for i, each in enumerate([base, *others])}
    assert len(found) == 4


def test_of_a_large_checkpoint_every_tensor_is_sampled_at_both_ends_and_between(tmp_path, monkeypatch):
    monkeypatch.setattr("budgetft.weights.WHOLE_BYTES", 0)
    size = 40 * SAMPLE_BYTES // 4
    base = {"w": torch.zeros(size), "v": torch.zeros(size)}
    expected = fingerprint(checkpoint(tmp_path / "base", base))
    for number, place in enumerate((0, size - 1, size // 3)):
        changed = {**base, "v": base["v"].clone()}
        changed["v"][place] = 1
        assert fingerprint(checkpoint(tmp_path / f"changed-{number}", changed)) != expected


def test_files_that_transformers_would_not_read_do_not_count(tmp_path):
    folder = checkpoint(tmp_path / "w", tensors())
    before = fingerprint(folder)
    save_file(tensors(5), folder / "consolidated.safetensors")
    assert fingerprint(folder) == before


def cut(path):
    path.write_bytes(path.read_bytes()[:-40])


def no_header(path):
    path.write_bytes(struct.pack("<Q", 2**60) + b"{}")


def no_json(path):
    path.write_bytes(struct.pack("<Q", 4) + b"nope")


def empty(path):
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [cut, no_header, no_json, empty, Path.unlink])
@pytest.mark.parametrize("parts", [1, 3])
def test_a_damaged_checkpoint_is_refused_in_one_sentence(tmp_path, damage, parts):
    folder = checkpoint(tmp_path / "w", tensors(), parts)
    damage(sorted(folder.glob("*.safetensors"))[0])
    with pytest.raises(UsageError) as caught:
        fingerprint(folder)
    assert str(folder) in caught.value.message
    assert "\n" not in caught.value.message


def test_an_index_that_names_files_elsewhere_is_refused(tmp_path):
    folder = checkpoint(tmp_path / "w", tensors(), 3)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": "../model.safetensors"}}))
    with pytest.raises(UsageError, match="no index"):
        fingerprint(folder)


def test_what_is_known_decides_whether_two_are_the_same():
    here = BaseWeights(name="a/b", revision=COMMITS[0], fingerprint="x")
    assert not here.is_other(BaseWeights(name="/elsewhere", fingerprint="x"))
    assert here.is_other(BaseWeights(name="a/b", revision=COMMITS[0], fingerprint="y"))
    assert here.is_other(BaseWeights(name="a/b", revision=COMMITS[1]))
    assert not here.is_other(BaseWeights(name="a/b"))
    refuse_other(None, here, "what", hint="")
    with pytest.raises(UsageError) as caught:
        refuse_other(here, BaseWeights(name="/c", fingerprint="y" * 64), "the plan was made for", hint="")
    assert "a/b@aaaaaaaaaaaa" in caught.value.message
    assert "/c" in caught.value.message


def test_a_revision_is_of_a_hub_id_alone(tmp_path):
    assert split_revision("org/name@v1") == ("org/name", "v1")
    assert split_revision("org/name") == ("org/name", None)
    assert with_revision("org/name", "v1") == with_revision("org/name@v1", "v1") == "org/name@v1"
    assert split_revision(str(tmp_path)) == (str(tmp_path), None)
    for name, revision in (("org/name@v1", "v2"), (str(tmp_path), "v1"), ("bundled", "v1"), ("org/name", "a b;c")):
        with pytest.raises(UsageError, match="--revision"):
            with_revision(name, revision)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The hub's cache as its client lays it out, with two commits of one model; ``move`` lets ``main`` be one of them."""
    home = tmp_path / "hub" / "models--org--tiny"
    for number, commit in enumerate(COMMITS):
        folder = checkpoint(home / "snapshots" / commit, tensors(number))
        for file in (profiles_folder() / "models" / "tiny-qwen2.5-vl").iterdir():
            shutil.copyfile(file, folder / file.name)
    (home / "refs").mkdir()

    def move(commit):
        (home / "refs" / "main").write_text(commit)

    move(COMMITS[0])
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return move


def test_a_model_of_the_hub_is_the_commit_that_it_was_also_when_its_branch_moves(hub):
    model = load_model("org/tiny")
    assert (model.name, model.weights) == ("org/tiny", f"org/tiny@{COMMITS[0]}")
    before = open_checkpoint(model.weights).base
    assert before.revision == COMMITS[0]
    hub(COMMITS[1])
    assert open_checkpoint(model.weights).base == before
    moved = open_checkpoint("org/tiny").base
    assert before.is_other(moved)
    assert base_here("org/tiny").base == moved
    assert open_checkpoint(f"org/tiny@{COMMITS[0]}").base == before
    with pytest.raises(UsageError, match="cannot fetch 'org/tiny@v9'"):
        open_checkpoint("org/tiny@v9")
    assert base_here("org/absent") is None
