import json
import re
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from budgetft.cli.gpus import gpus
from budgetft.errors import UsageError
from budgetft.gpu import Gpu, gpu_names, load_gpu
from budgetft.profiles import profiles_folder
from budgetft.units import GIB, MIB

app = typer.Typer()
app.command()(gpus)

FIGURES = [
    name
    for name in Gpu.model_fields
    if name not in ("name", "title", "seldom", "sources")  # words, not figures
]


def written(text: str, tmp_path: Path) -> str:
    path = tmp_path / "mine.toml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def v100_text() -> str:
    return (profiles_folder() / "gpus" / "v100-16g.toml").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", gpu_names())
def test_every_profile_loads_under_the_name_of_its_file(name):
    assert load_gpu(name).name == name


@pytest.mark.parametrize("name", gpu_names())
def test_every_known_figure_has_a_source_and_every_source_has_a_figure(name):
    gpu = load_gpu(name)
    known = {field for field in FIGURES if getattr(gpu, field) not in (None, ())}
    assert known == set(gpu.sources)
    assert all(source.strip() for source in gpu.sources.values())


@pytest.mark.parametrize("name", gpu_names())
def test_kernels_and_precision_agree_with_the_compute_capability(name):
    gpu = load_gpu(name)
    assert gpu.native_bf16 == gpu.flash_attention == (gpu.capability >= (8, 0))
    assert gpu.efficient_attention
    assert gpu.base_precision == ("bf16" if gpu.native_bf16 else "fp16")


@pytest.mark.parametrize("name", gpu_names())
def test_the_default_budget_leaves_some_of_the_memory_free(name):
    gpu = load_gpu(name)
    assert gpu.memory_bytes // 2 < gpu.budget_bytes < gpu.memory_bytes


def test_the_v100_may_use_14_gib_in_fp16_without_flash():
    gpu = load_gpu("v100-16g")
    assert gpu.budget_bytes == 14 * GIB
    assert gpu.memory_bytes == 16160 * MIB
    assert (gpu.base_precision, gpu.flash_attention, gpu.efficient_attention) == ("fp16", False, True)


def test_no_two_gpus_claim_the_same_device():
    claims = [(device, gpu.memory_mib) for name in gpu_names() for gpu in [load_gpu(name)] for device in gpu.device_names]
    assert len(claims) == len(set(claims))


def test_a_device_is_a_gpu_only_when_name_and_memory_agree():
    gpu = load_gpu("rtx4060ti-16g")
    assert gpu.is_gpu("NVIDIA GeForce RTX 4060 Ti", 16380 * MIB)
    assert not gpu.is_gpu("NVIDIA GeForce RTX 4060 Ti", 8188 * MIB)
    assert not gpu.is_gpu("NVIDIA GeForce RTX 4060", 16380 * MIB)


def test_a_v100_is_recognised_under_old_and_new_drivers():
    gpu = load_gpu("v100-16g")
    assert gpu.is_gpu("Tesla V100-SXM2-16GB", 16160 * MIB)
    assert gpu.is_gpu("Tesla V100-SXM2-16GB", 16384 * MIB)


def test_a_profile_of_ones_own_is_read_from_its_file(tmp_path):
    assert load_gpu(written(v100_text(), tmp_path)).name == "mine"


def test_a_missing_file_is_a_usage_error_that_names_it(tmp_path):
    with pytest.raises(UsageError, match=r"nowhere\.toml"):
        load_gpu(str(tmp_path / "nowhere.toml"))


def test_malformed_toml_is_a_usage_error_that_names_the_file(tmp_path):
    with pytest.raises(UsageError, match=r"mine\.toml is not TOML"):
        load_gpu(written("memory_mib = = 3", tmp_path))


def test_bytes_that_are_not_text_are_a_usage_error(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="is not TOML"):
        load_gpu(str(path))


def test_an_unknown_key_is_named_with_its_nearest(tmp_path):
    text = v100_text().replace("memory_mib = 16160", "memory_mb = 16160", 1)
    with pytest.raises(UsageError) as caught:
        load_gpu(written(text, tmp_path))
    assert "memory_mb: unknown key" in caught.value.message
    assert "memory_mib" in caught.value.message  # also missing: all problems at once
    assert caught.value.hint is not None
    assert "'memory_mib' instead of 'memory_mb'" in caught.value.hint


@pytest.mark.parametrize(
    ("old", "new", "key"),
    [
        ("memory_mib = 16160", "memory_mib = -1", "memory_mib"),
        ("memory_mib = 16160", 'memory_mib = "16160"', "memory_mib"),
        ('compute_capability = "7.0"', 'compute_capability = "sm_70"', "compute_capability"),
        ("fp16_tflops = 125.0", "fp16_tflops = inf", "fp16_tflops"),
    ],
)
def test_a_figure_that_makes_no_sense_is_refused_by_name(tmp_path, old, new, key):
    assert old in v100_text()
    with pytest.raises(UsageError, match=key):
        load_gpu(written(v100_text().replace(old, new, 1), tmp_path))


def test_the_command_lists_every_gpu():
    result = CliRunner().invoke(app, [], env={"COLUMNS": "200"})
    assert result.exit_code == 0
    assert all(name in result.stdout for name in gpu_names())
    assert re.search(r"v100-16g +15\.78 +14\.00 +7\.0 +900 +125 +fp16 +no", result.stdout)


def test_nothing_of_the_list_is_cut_or_wrapped_in_a_narrow_terminal():
    lines = CliRunner().invoke(app, [], env={"COLUMNS": "80"}).stdout.splitlines()
    assert all(any(line.split()[:1] == [name] and len(line.split()) == 8 for line in lines) for name in gpu_names())
    assert not any("\u2026" in line or len(line.rstrip()) > 80 for line in lines)


def test_the_command_gives_the_list_as_json():
    rows = json.loads(CliRunner().invoke(app, ["--json"]).stdout)["gpus"]
    assert [row["name"] for row in rows] == gpu_names()


def test_the_command_shows_one_gpu_with_its_sources_and_a_dash_for_what_is_unknown():
    result = CliRunner().invoke(app, ["v100-16g"], env={"COLUMNS": "250"})
    line = next(line for line in result.stdout.splitlines() if "context_mib" in line)
    assert "A100 whitepaper" in result.stdout
    assert line.replace(" ", "").replace("│", "|").startswith("|context_mib|-|-|")


def test_the_command_gives_one_gpu_as_json():
    gpu = json.loads(CliRunner().invoke(app, ["v100-16g", "--json"]).stdout)
    assert gpu["budget_bytes"] == 14 * GIB
    assert gpu["context_mib"] is None
    assert gpu["sources"]["memory_mib"]
