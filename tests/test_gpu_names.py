"""What people type for a GPU, and what they are told."""

from pathlib import Path

import pytest

from budgetft.errors import UsageError
from budgetft.gpu import Gpu, all_gpus, find_gpu, gpu_names, load_gpu, look_up
from budgetft.gpu_size import CAPABILITIES
from budgetft.profiles import profiles_folder
from budgetft.units import GIB, MIB
from budgetft.value import read_toml


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("RTX 3060", "rtx3060-12g"),
        ("rtx3060", "rtx3060-12g"),
        ("3060", "rtx3060-12g"),
        ("geforce rtx 3060 12gb", "rtx3060-12g"),
        ("12 GB RTX-3060", "rtx3060-12g"),
        ("RTX 3060 8GB", "rtx3060-8g"),
        ("NVIDIA GeForce RTX 3060, 8192 MiB", "rtx3060-8g"),
        ("NVIDIA GeForce RTX 3060", "rtx3060-12g"),
        ("GeForce RTX\u2122 4090", "rtx4090"),
        ("Tesla V100-SXM2-16GB", "v100-16g"),
        ("V100 32", "v100-32g"),
        ("NVIDIA RTX A6000", "rtxa6000-48g"),
        ("5090 24 GB laptop", "rtx5090-laptop-24g"),
        ("NVIDIA A100-SXM4-80GB", "a100-80g"),
        ("a100 pcie 40gb", "a100-40g"),
        ("RTX 4070 Laptop", "rtx4070-laptop-8g"),
        ("4070 laptop", "rtx4070-laptop-8g"),
        ("4070m", "rtx4070-laptop-8g"),
        ("NVIDIA GeForce RTX 4070 Laptop GPU", "rtx4070-laptop-8g"),
        ("rtx3090-24g", "rtx3090"),
        ("rtx3090 24gb", "rtx3090"),
        ("rtx4060ti16gb", "rtx4060ti-16g"),
        ("4070 Ti Super", "rtx4070tisuper-16g"),
        ("h100", "h100-80g"),
        ("NVIDIA H100 80GB HBM3", "h100-80g"),
        ("H100 PCI-E", "h100-pcie-80g"),
        ("A10G", "a10g"),
        ("A10", "a10"),
        ("L40", "l40-48g"),
        ("rtx titan", "titanrtx-24g"),
        ("RTX 6000 Ada", "rtx6000ada-48g"),
        ("rtx pro 6000", "rtxpro6000-96g"),
        ("agx orin 64gb", "jetson-agx-orin-64g"),
        ("  T4 ", "t4"),
        ("b2", "b200-180g"),
    ],
)
def test_a_gpu_is_found_as_people_call_it(text, name):
    assert find_gpu(text).name == name
    assert load_gpu(text.upper()).name == load_gpu(text.lower()).name == name


@pytest.mark.parametrize("name", gpu_names())
def test_every_gpu_is_found_by_its_name_and_by_what_nvidia_smi_prints_of_it(name):
    gpu = find_gpu(name)
    assert gpu.name == name
    for device in gpu.device_names:
        assert find_gpu(f"{device}, {gpu.memory_mib} MiB").name == name


@pytest.mark.parametrize("name", gpu_names())
def test_no_name_of_a_driver_finds_another_gpu(name):
    """It finds its own, or names all of the same name; or the one that was sold most."""
    gpu = find_gpu(name)
    for device in gpu.device_names:
        same = {each.name for each in all_gpus() if device in each.device_names}
        common = {each for each in same if not find_gpu(each).seldom}
        if len(common) == 1:
            assert {find_gpu(device).name} == common
        else:
            assert all(f"--gpu {each}" in said_of(device) for each in same)


def test_the_one_that_was_sold_most_is_taken_and_the_other_is_named():
    gpu, said = look_up("RTX 3060")
    assert gpu.name == "rtx3060-12g"
    assert "rtx3060-8g" in said
    assert look_up("rtx 3060 12gb")[1] == ""


def said_of(text: str) -> str:
    with pytest.raises(UsageError) as caught:
        find_gpu(text)
    assert "\n" not in caught.value.message
    assert len(caught.value.message) < 250
    return f"{caught.value.message} {caught.value.hint}"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("v100", ["'v100' is sold with 16 or 32 GB", "--gpu v100-16g or --gpu v100-32g"]),
        ("RTX 4060 Ti", ["8 or 16 GB", "--gpu rtx4060ti-8g"]),
        ("40", ["GPUs", "rtx4090", "more of it", "40GiB"]),
        ("RTX 6000", ["quadrortx6000-24g, rtx6000ada-48g or rtxpro6000-96g"]),
        ("rtx3090-48g", ["has 24 GB", "--gpu rtx3090"]),
        ("rtx4090ti", ["unknown GPU 'rtx4090ti'", "did you mean 'rtx4090'?", "budgetft gpus"]),
        ("24", ["unknown GPU '24'", "--gpu 24GiB"]),
        ("", ["names no GPU"]),
        ("rtx 9999", ["unknown GPU", "budgetft gpus"]),
        ("x" * 5000, ["unknown GPU"]),
        ("RX 7900 XTX", ["AMD GPUs are not supported", "NVIDIA GPU with CUDA"]),
        ("MI300X", ["AMD"]),
        ("radeon", ["AMD"]),
        ("Arc A770", ["Intel"]),
        ("Gaudi 2", ["Intel"]),
        ("M3 Max", ["Apple"]),
        ("Apple M2", ["Apple"]),
        ("tpu v5e", ["Google TPUs"]),
        ("cpu", ["CPUs"]),
        ("K80", ["too old", "sm_37"]),
        ("Tesla M60", ["Maxwell", "no profile", "--gpu 8GiB:sm_52"]),
        ("GTX 970", ["--gpu 4GiB:sm_52"]),
        ("GTX 1080", ["--gpu 8GiB:sm_61"]),
        ("P4", ["--gpu 8GiB:sm_61"]),
    ],
)
def test_what_is_not_found_is_said_in_a_sentence_with_the_way_on(text, words):
    said = said_of(text)
    assert all(word in said for word in words), said


@pytest.mark.parametrize("text", ["24GiB", "24g", "24 gib", "24GiB:sm_86", "24gib:8.6", "24g 86", "24gib-sm86", "24GiB:ampere"])
def test_any_gpu_is_named_by_its_memory(text):
    gpu = find_gpu(text)
    assert (gpu.name, gpu.memory_mib, gpu.capability) == ("24gib-sm86", 24 * 1024, (8, 6))
    assert (gpu.native_bf16, gpu.flash_attention, gpu.efficient_attention) == (True, True, True)
    assert (gpu.fp16_tflops, gpu.memory_bandwidth_gb_per_s) == (None, None)
    assert Gpu.read_text(gpu.model_dump_json(), source="a plan") == gpu
    assert find_gpu(gpu.name).replace(title="", sources={}) == gpu.replace(title="", sources={})


def test_gigabytes_are_taken_at_their_word_and_what_is_assumed_is_said():
    gpu, said = look_up("16GB")
    assert gpu.memory_bytes == 16 * 10**9 // MIB * MIB
    assert "16GB is 14.90 GiB" in said
    assert "sm_86" in said
    assert "assumed" in gpu.title
    older, said = look_up("16GB:sm_75")
    assert "sm_86" not in said
    assert "assumed" not in older.title
    assert (older.native_bf16, older.flash_attention, older.efficient_attention) == (False, False, True)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("0GiB", "no NVIDIA GPU"),
        ("10TB", "no NVIDIA GPU"),
        ("-5GiB", "no NVIDIA GPU"),
        ("512MiB", "no NVIDIA GPU"),
        ("9" * 30 + "GiB", "more memory than there is"),
        ("24GiB:sm_999", "99.9 is none"),
        ("24GiB:sm_35", "too old"),
        ("24GiB:blue", "'blue' is no compute capability"),
    ],
)
def test_absurd_sizes_are_refused_by_what_is_wrong(text, word):
    assert word in said_of(text)


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_every_capability_is_written_with_and_without_its_point(capability):
    for written in (capability, f"sm_{capability.replace('.', '')}", f"sm{capability.replace('.', '')}"):
        assert find_gpu(f"24GiB:{written}").compute_capability == capability


def test_the_gpus_without_a_profile_are_not_those_with_one():
    unlisted = read_toml(profiles_folder() / "unlisted_gpus.toml")["gpu"]
    for name, (gigabytes, capability) in unlisted.items():
        said = said_of(name)
        if capability in CAPABILITIES:
            way = f"{gigabytes:g}GiB:sm_{capability.replace('.', '')}"
            assert way in said
            assert find_gpu(way).memory_bytes == gigabytes * GIB
        else:
            assert "too old" in said


def test_a_profile_of_ones_own_needs_a_title_memory_and_capability(tmp_path: Path):
    path = tmp_path / "mine.toml"
    path.write_text('title = "mine"\nmemory_mib = 20480\ncompute_capability = "7.5"\n', encoding="utf-8")
    gpu = find_gpu(str(path))
    assert (gpu.name, gpu.base_precision, gpu.flash_attention, gpu.efficient_attention) == ("mine", "fp16", False, True)
    path.write_text('title = "mine"\nmemory_mib = 20480\n', encoding="utf-8")
    with pytest.raises(UsageError, match=r"1 problem\n  compute_capability: field required"):
        find_gpu(str(path))


def test_what_a_file_says_of_kernels_stands(tmp_path: Path):
    path = tmp_path / "mine.toml"
    path.write_text(
        'title = "mine"\nmemory_mib = 20480\ncompute_capability = "8.6"\nflash_attention = false\n', encoding="utf-8"
    )
    assert find_gpu(str(path)).flash_attention is False
    assert find_gpu(str(path)).native_bf16 is True


def test_finding_one_gpu_reads_the_sources_of_no_other():
    from budgetft import gpu as module

    module._profile.cache_clear()
    find_gpu("rtx 4070 laptop")
    assert module._profile.cache_info().currsize == 1
