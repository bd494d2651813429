"""A merged checkpoint is the base's files with peft's own merge in them."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from patience import HANG_SECONDS
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

from budgetft.cli import main
from budgetft.contract import Contract
from budgetft.errors import UsageError
from budgetft.export.merge import merge_adapter
from budgetft.model import load_model
from budgetft.step.build import build_model, model_config, trainable

MODELS = ("tiny-qwen2-vl", "tiny-qwen2.5-vl", "tiny-qwen3-vl")


def make_base(name: str, folder: Path, dtype: torch.dtype) -> Path:
    torch.manual_seed(1)
    AutoModelForImageTextToText.from_config(model_config(load_model(name)), dtype=dtype).save_pretrained(
        folder, max_shard_size="200KB"
    )
    (folder / "tokenizer.json").write_text("{}")
    return folder


def make_adapter(name: str, base: Path, folder: Path, precision: str, **contract) -> Path:
    agreed = Contract(rank=4, **contract)
    model = build_model(load_model(name), agreed, base_precision=precision, device=torch.device("cpu"), weights=str(base))
    for parameter in trainable(model):
        with torch.no_grad():
            parameter += torch.empty_like(parameter).normal_(std=0.1)
    model.save_pretrained(str(folder), save_embedding_layers=False)
    return folder


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for path in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(path).items()}


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("merge")
    base = make_base(MODELS[1], folder / "base", torch.bfloat16)
    make_adapter(MODELS[1], base, folder / "adapter", "bf16")
    return folder


@pytest.mark.parametrize("precision", ["fp16", "bf16", "fp32"])
@pytest.mark.parametrize("name", MODELS)
def test_it_equals_peft_s_merge_to_the_bit_under_the_base_s_names(tmp_path, name, precision):
    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}[precision]
    base = make_base(name, tmp_path / "base", dtype)
    adapter = make_adapter(name, base, tmp_path / "adapter", precision)
    merge_adapter(adapter, base, tmp_path / "merged")
    theirs = PeftModel.from_pretrained(AutoModelForImageTextToText.from_pretrained(base, dtype=dtype), str(adapter))
    expected = theirs.merge_and_unload().state_dict()
    ours = AutoModelForImageTextToText.from_pretrained(tmp_path / "merged", dtype=dtype).state_dict()
    assert ours.keys() == expected.keys()
    assert all(torch.equal(ours[key], expected[key]) for key in ours)
    before, after = tensors(base), tensors(tmp_path / "merged")
    assert [(n, t.shape, t.dtype) for n, t in before.items()] == [(n, t.shape, t.dtype) for n, t in after.items()]
    changed = {n for n in before if not torch.equal(before[n], after[n])}
    layers = load_model(name).layers
    assert len(changed) == 7 * layers
    assert not any("visual" in n for n in changed)


@pytest.mark.parametrize(
    "contract", [{"use_dora": True}, {"use_rslora": True}, {"use_dora": True, "use_rslora": True}], ids=str
)
def test_dora_and_rank_stabilised_adapters_are_merged_as_peft_merges_them(tmp_path, contract):
    base = make_base(MODELS[1], tmp_path / "base", torch.float16)
    adapter = make_adapter(MODELS[1], base, tmp_path / "adapter", "fp16", **contract)
    merge_adapter(adapter, base, tmp_path / "merged")
    theirs = PeftModel.from_pretrained(AutoModelForImageTextToText.from_pretrained(base, dtype=torch.float16), str(adapter))
    expected = theirs.merge_and_unload().state_dict()
    ours = AutoModelForImageTextToText.from_pretrained(tmp_path / "merged", dtype=torch.float16).state_dict()
    assert all(torch.equal(ours[key], expected[key]) for key in expected)
    plain = make_adapter(MODELS[1], base, tmp_path / "plain", "fp16")
    merge_adapter(plain, base, tmp_path / "merged-plain")
    before, after = tensors(tmp_path / "merged-plain"), tensors(tmp_path / "merged")
    assert sum(not torch.equal(before[n], after[n]) for n in before) == 7 * load_model(MODELS[1]).layers, (
        "others than a plain LoRA"
    )


def test_shards_index_and_descriptions_are_the_base_s(made, tmp_path):
    merge_adapter(made / "adapter", made / "base", tmp_path / "merged")
    names = [{path.name for path in folder.iterdir()} for folder in (made / "base", tmp_path / "merged")]
    assert names[0] | {"merged.json"} == names[1]
    assert len(list((tmp_path / "merged").glob("*.safetensors"))) > 2
    for name in ("config.json", "tokenizer.json", "model.safetensors.index.json"):
        assert (made / "base" / name).read_bytes() == (tmp_path / "merged" / name).read_bytes()


def test_checkpoints_with_the_names_of_the_hub_s_older_files_are_merged_too(made, tmp_path):
    older = tmp_path / "older"
    older.mkdir()
    renamed = {n.replace("model.language_model.", "model.").replace("model.visual.", "visual."): t
               for n, t in tensors(made / "base").items()}  # fmt: skip
    save_file(renamed, older / "model.safetensors", metadata={"format": "pt"})
    merge_adapter(made / "adapter", older, tmp_path / "a")
    merge_adapter(made / "adapter", made / "base", tmp_path / "b")
    plain = {n.replace("model.language_model.", "model.").replace("model.visual.", "visual."): t
             for n, t in tensors(tmp_path / "b").items()}  # fmt: skip
    assert all(torch.equal(tensor, plain[name]) for name, tensor in tensors(tmp_path / "a").items())


def test_memory_is_bounded_by_a_weight_not_by_the_model(warm_children, tmp_path):
    """Eight files of 64 MB, one weight of 1 MB adapted in each: far below the 512 MB that the model has."""
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    base.mkdir()
    adapter.mkdir()
    lora = {}
    for layer in range(8):
        name = f"model.layers.{layer}.self_attn.q_proj"
        save_file({f"{name}.weight": torch.zeros(512, 512), f"model.big.{layer}": torch.zeros(16, 2**20)},
                  base / f"model-{layer}.safetensors")  # fmt: skip
        lora[f"base_model.model.{name}.lora_A.weight"] = torch.ones(4, 512)
        lora[f"base_model.model.{name}.lora_B.weight"] = torch.ones(512, 4)
    save_file(lora, adapter / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    code = (
        "import sys; from pathlib import Path; import torch, peft, transformers\n"
        "from budgetft.export.merge import merge_adapter\n"
        "def highest(): return next(int(l.split()[1]) for l in open('/proc/self/status') if l.startswith('VmHWM'))\n"
        "before = highest()\n"
        "merge_adapter(*map(Path, sys.argv[1:4]))\n"
        "print(highest() - before)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(adapter), str(base), str(tmp_path / "out")],
        capture_output=True,
        text=True,
        timeout=HANG_SECONDS,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 150 * 1024
    assert float(load_file(tmp_path / "out" / "model-3.safetensors")["model.layers.3.self_attn.q_proj.weight"][0, 0]) == 8.0


@pytest.mark.parametrize("damage", ["cut", "quantised", "foreign", "dora", "dora without magnitudes"])
def test_what_cannot_be_merged_is_refused_and_nothing_is_left(made, tmp_path, damage):
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    shutil.copytree(made / "base", base)
    shutil.copytree(made / "adapter", adapter)
    shard = next(path for path in sorted(base.glob("*.safetensors")) if any("q_proj.weight" in n for n in load_file(path)))
    if damage == "cut":
        shard.write_bytes(shard.read_bytes()[:-10])
    elif damage == "quantised":
        save_file({n: t.to(torch.int8) for n, t in load_file(shard).items()}, shard)
    elif damage == "foreign":
        shard.unlink()
    elif damage == "dora without magnitudes":
        described = json.loads((adapter / "adapter_config.json").read_text())
        (adapter / "adapter_config.json").write_text(json.dumps({**described, "use_dora": True}))
    else:
        lora = load_file(adapter / "adapter_model.safetensors")
        save_file({**lora, "base_model.model.x.lora_magnitude_vector": torch.ones(2)}, adapter / "adapter_model.safetensors")
    with pytest.raises(UsageError):
        merge_adapter(adapter, base, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".out*"))


def test_the_command_merges_an_adapter_folder_and_says_what_it_wrote(made, tmp_path, capsys):
    arguments = ["merge", str(made / "adapter"), "--out", str(tmp_path / "out")]
    assert main(arguments) == 2
    assert "--weights" in capsys.readouterr().err
    assert main([*arguments, "--weights", str(made / "base"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["merged"] == 7 * load_model(MODELS[1]).layers
    assert main([*arguments, "--weights", str(made / "base")]) == 2
    assert "exists already" in capsys.readouterr().err
