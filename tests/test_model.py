import json
import shutil
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from budgetft.cli.models import models
from budgetft.errors import UsageError
from budgetft.families import PACKED
from budgetft.model import load_model, model_names
from budgetft.profiles import profiles_folder

app = typer.Typer()
app.command()(models)

TINY = [name for name in model_names() if name.startswith("tiny-")]


def copied(name: str, to: Path) -> Path:
    """A folder that a user could have: config and processor, no origin."""
    folder = to / "my-model"
    shutil.copytree(profiles_folder() / "models" / name, folder)
    (folder / "origin.json").unlink()
    return folder


def edited(folder: Path, file: str, **changes: object) -> None:
    path = folder / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize("name", model_names())
def test_every_bundled_model_loads_with_its_origin(name):
    model = load_model(name)
    assert model.name == name
    assert model.weights is None
    assert model.parameters
    assert model.sources
    assert (model.hub_id is None) == (model.license_of_weights is None) == (name in TINY)


def test_there_is_a_tiny_model_of_every_family():
    assert sorted(load_model(name).family for name in TINY) == sorted(PACKED)


def test_the_first_job_s_model_has_the_sizes_of_its_config():
    model = load_model("qwen2.5-vl-3b")
    assert (model.layers, model.max_positions, model.pixel_step) == (36, 128000, 28)
    assert (model.min_pixels, model.max_pixels) == (4 * 28 * 28, 16384 * 28 * 28)


@pytest.mark.parametrize("name", model_names())
def test_the_processor_and_the_vision_tower_cut_the_same_patches(name):
    model = load_model(name)
    vision = model.config["vision_config"]
    assert vision["patch_size"] == model.patch_size
    assert vision["spatial_merge_size"] == model.merge_size
    assert vision["temporal_patch_size"] == model.temporal_patch_size


@pytest.mark.parametrize("name", model_names())
def test_every_bundled_model_has_exactly_the_parameters_it_says(name):
    torch = pytest.importorskip("torch")
    from transformers import AutoConfig, AutoModelForImageTextToText

    config = AutoConfig.from_pretrained(profiles_folder() / "models" / name)
    with torch.device("meta"):
        network = AutoModelForImageTextToText.from_config(config)
    assert sum(parameter.numel() for parameter in network.parameters()) == load_model(name).parameters


@pytest.mark.parametrize("name", TINY)
def test_every_tiny_model_reads_an_image(name):
    torch = pytest.importorskip("torch")
    from transformers import AutoConfig, AutoModelForImageTextToText

    model = load_model(name)
    torch.manual_seed(0)
    network = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(profiles_folder() / "models" / name)).eval()
    grid = torch.tensor([[1, 4, 6]])
    patches = torch.randn(24, 3 * model.temporal_patch_size * model.patch_size**2)
    image_id = model.config["image_token_id"]
    tokens = torch.tensor([[1, model.config["vision_start_token_id"], *[image_id] * 6, 2, 3]])
    with torch.no_grad():
        logits = network(
            input_ids=tokens,
            attention_mask=torch.ones_like(tokens),
            pixel_values=patches,
            image_grid_thw=grid,
            mm_token_type_ids=(tokens == image_id).int(),
        ).logits
    assert logits.shape == (1, 10, model.text["vocab_size"])
    assert torch.isfinite(logits).all()


def test_a_model_is_read_from_a_folder_and_remembers_where_its_weights_are(tmp_path):
    folder = copied("tiny-qwen2.5-vl", tmp_path)
    model = load_model(str(folder))
    assert model.name == "my-model"
    assert model.weights == str(folder)
    assert model.config == load_model("tiny-qwen2.5-vl").config
    assert (model.parameters, model.hub_id) == (None, None)


@pytest.mark.parametrize("name", TINY)
def test_a_folder_saved_by_transformers_itself_is_read_the_same(tmp_path, name):
    pytest.importorskip("torch")
    from transformers import AutoConfig, AutoImageProcessor

    bundled = profiles_folder() / "models" / name
    AutoConfig.from_pretrained(bundled).save_pretrained(tmp_path)
    AutoImageProcessor.from_pretrained(bundled).save_pretrained(tmp_path)
    saved, model = load_model(str(tmp_path)), load_model(name)
    facts = ("family", "layers", "max_positions", "pixel_step", "min_pixels", "max_pixels", "image_mean", "image_std")
    assert [getattr(saved, fact) for fact in facts] == [getattr(model, fact) for fact in facts]


def test_a_processor_nested_in_processor_config_is_found(tmp_path):
    folder = copied("tiny-qwen2.5-vl", tmp_path)
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    (folder / "preprocessor_config.json").unlink()
    (folder / "processor_config.json").write_text(json.dumps({"image_processor": {**settings, "max_pixels": 784000}}))
    assert load_model(str(folder)).max_pixels == 784000


def test_an_architecture_that_is_not_supported_is_refused_by_name(tmp_path):
    folder = copied("tiny-qwen2.5-vl", tmp_path)
    edited(folder, "config.json", model_type="llava")
    with pytest.raises(UsageError, match=r"config\.json: model_type 'llava' is not supported; supported: qwen2_vl"):
        load_model(str(folder))


@pytest.mark.parametrize("file", ["config.json", "preprocessor_config.json"])
def test_a_missing_file_is_refused_with_its_name(tmp_path, file):
    folder = copied("tiny-qwen2.5-vl", tmp_path)
    (folder / file).unlink()
    with pytest.raises(UsageError, match=f"cannot read .*{file}"):
        load_model(str(folder))


def test_a_truncated_config_is_refused_with_its_name(tmp_path):
    folder = copied("tiny-qwen2.5-vl", tmp_path)
    (folder / "config.json").write_text('{"model_type": "qwen2_5')
    with pytest.raises(UsageError, match=r"config\.json is not JSON"):
        load_model(str(folder))


def test_a_config_without_layers_is_refused_by_key(tmp_path):
    folder = copied("tiny-qwen2.5-vl", tmp_path)
    edited(folder, "config.json", text_config={"vocab_size": 10, "max_position_embeddings": 20})
    with pytest.raises(UsageError, match="missing num_hidden_layers"):
        load_model(str(folder))


def test_all_that_a_processor_lacks_is_named_at_once(tmp_path):
    folder = copied("tiny-qwen2.5-vl", tmp_path)
    (folder / "preprocessor_config.json").write_text("{}")
    with pytest.raises(UsageError) as caught:
        load_model(str(folder))
    assert all(key in caught.value.message for key in ("patch_size", "max_pixels", "image_mean"))


def test_an_unknown_model_names_the_nearest():
    with pytest.raises(UsageError) as caught:
        load_model("qwen2.5-vl-3B")
    assert caught.value.hint == "did you mean 'qwen2.5-vl-3b'?"


def test_the_command_lists_every_model():
    result = CliRunner().invoke(app, [], env={"COLUMNS": "250"})
    assert result.exit_code == 0
    assert all(name in result.stdout for name in model_names())
    assert "3.75 B" in result.stdout


def test_no_name_is_cut_in_a_narrow_terminal():
    result = CliRunner().invoke(app, [], env={"COLUMNS": "80"})
    assert all(name in result.stdout for name in model_names())


def test_the_command_gives_the_list_as_json():
    rows = json.loads(CliRunner().invoke(app, ["--json"]).stdout)["models"]
    assert [row["name"] for row in rows] == model_names()
    assert all("config" not in row for row in rows)


def test_the_command_shows_what_is_unknown_of_a_folder_as_a_dash(tmp_path):
    result = CliRunner().invoke(app, [str(copied("tiny-qwen2-vl", tmp_path))], env={"COLUMNS": "250"})
    line = next(line for line in result.stdout.splitlines() if "parameters" in line)
    assert line.replace(" ", "").replace("│", "|") == "|parameters|-|"


def test_the_command_shows_one_model_with_its_sources():
    result = CliRunner().invoke(app, ["qwen2.5-vl-3b"], env={"COLUMNS": "250"})
    assert "3,754,622,976" in result.stdout
    assert "preprocessor_config.json: " in result.stdout


def test_the_command_gives_one_model_as_json():
    model = json.loads(CliRunner().invoke(app, ["qwen3-vl-4b", "--json"]).stdout)
    assert (model["layers"], model["hidden_size"], model["vocab_size"]) == (36, 2560, 151936)
