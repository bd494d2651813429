"""What the environment says of torch's allocator: the user's own settings are kept, and a plan's come before them."""

import re

import pytest
import torch

from budgetft.allocator import NAME, OLDER_NAME, Own, read_settings, settings
from budgetft.errors import UsageError

ROUNDING = "roundup_power2_divisions:[256:1,512:2,1024:4,>:8]"
EXPANDABLE = {"expandable_segments": "True"}


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", {}),
        ("max_split_size_mb:128", {"max_split_size_mb": "128"}),
        (f"{ROUNDING}, pinned_use_background_threads:True", {"roundup_power2_divisions": "[256:1,512:2,1024:4,>:8]",
                                                              "pinned_use_background_threads": "True"}),
        (f"max_split_size_mb:64,{ROUNDING},", {"max_split_size_mb": "64",
                                               "roundup_power2_divisions": "[256:1,512:2,1024:4,>:8]"}),
        ("roundup_power2_divisions : 4 , garbage_collection_threshold:.8", {"roundup_power2_divisions": "4",
                                                                            "garbage_collection_threshold": ".8"}),
    ],
)  # fmt: skip
def test_lists_with_commas_and_spaces_are_read_as_torch_reads_them(text, found):
    assert read_settings({NAME: text}) == found


def test_what_is_written_is_read_again_by_torch_too():
    takes = getattr(torch._C, "_accelerator_setAllocatorSettings", None)
    if takes is None:
        pytest.skip("this torch reads its settings at its start alone")
    own = "roundup_power2_divisions:[256:1,512:1,>:1],pinned_use_background_threads:False"  # as without them
    made = settings(read_settings({NAME: own}), {"expandable_segments": "False"})
    assert made.text == f"{own},expandable_segments:False"
    takes(made.text)


def test_of_both_names_the_newer_comes_first_and_the_older_is_not_lost():
    both = {OLDER_NAME: "max_split_size_mb:64,release_lock_on_cudamalloc:True", NAME: "max_split_size_mb:128"}
    assert read_settings(both) == {"max_split_size_mb": "128", "release_lock_on_cudamalloc": "True"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("expandable_segments", "is not written as key:value,key:value: 'expandable_segments'"),
        ("max_split_size_mb:", "is not written as key:value,key:value"),
        ("roundup_power2_divisions:[256:1,512", "torch does not take"),
        ("roundup_power2_divisions:[256:1]]", "torch does not take"),
        ("max_split_size_mb:lots", "max_split_size_mb:lots, which torch does not take"),
        ("expandable_segments:true", "expandable_segments:true, which torch does not take"),
        ("max_split:128", "unknown setting in PYTORCH_ALLOC_CONF 'max_split'"),
    ],
)
def test_what_torch_would_not_take_is_refused_in_a_sentence(text, said):
    with pytest.raises(UsageError, match=re.escape(said)) as caught:
        read_settings({NAME: text})
    assert caught.value.hint


def test_an_allocator_without_a_cap_is_refused():
    with pytest.raises(UsageError, match="backend:cudaMallocAsync, which takes no cap"):
        settings(read_settings({OLDER_NAME: "backend:cudaMallocAsync"}), EXPANDABLE)
    assert settings({"backend": "native"}, EXPANDABLE).text == "backend:native,expandable_segments:True"


def test_a_setting_that_the_plan_decides_otherwise_is_told_and_one_that_it_decides_alike_is_not():
    made = settings({"expandable_segments": "False", "per_process_memory_fraction": "0.5"}, EXPANDABLE)
    assert made.text == "expandable_segments:True"
    (note,) = made.notes
    assert "expandable_segments:False, per_process_memory_fraction:0.5 of PYTORCH_ALLOC_CONF is not used" in note
    assert settings(EXPANDABLE, EXPANDABLE).notes == ()


def test_settings_that_change_what_is_reserved_are_kept_with_one_note():
    made = settings(read_settings({NAME: f"max_split_size_mb:64,{ROUNDING},pinned_use_background_threads:True"}), EXPANDABLE)
    (note,) = made.notes
    assert f"max_split_size_mb:64, {ROUNDING} of PYTORCH_ALLOC_CONF changes what is reserved" in note
    assert "pinned" not in note


def test_what_one_plan_decided_is_not_taken_for_the_user_s_own_by_the_next():
    own, environment = Own(), {OLDER_NAME: "max_split_size_mb:64"}
    own.replace(environment, NAME, {"expandable_segments": "False", "garbage_collection_threshold": "0.500"})
    assert environment == {NAME: "max_split_size_mb:64,expandable_segments:False,garbage_collection_threshold:0.500"}
    (note,) = own.replace(environment, NAME, EXPANDABLE)
    assert environment == {NAME: "max_split_size_mb:64,expandable_segments:True"}
    assert "max_split_size_mb" in note, "the user's; not a word of the first plan's"
    environment[NAME] = "pinned_use_background_threads:True"
    own.replace(environment, NAME, EXPANDABLE)
    assert environment == {NAME: "pinned_use_background_threads:True,expandable_segments:True"}
