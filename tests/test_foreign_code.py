"""Nothing that comes from others is run: no pickles, no code that comes with a model. Read from the source, and tried."""

import ast
import contextlib
import json
import shutil
from pathlib import Path

import pytest

import budgetft
from budgetft.data.processor import load_processor
from budgetft.errors import BudgetftError
from budgetft.model import load_model
from budgetft.profiles import profiles_folder
from budgetft.train.job import check_architecture

ROOT = Path(budgetft.__file__).resolve().parent
FORBIDDEN = {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}


def calls(path: Path):
    """(dotted name, keyword names and their values) of every call in the file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), {word.arg: ast.unparse(word.value) for word in node.keywords}


def test_no_module_unpickles_or_evaluates():
    wrong = []
    for path in sorted(ROOT.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
        names |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        wrong += [f"{path.name} imports {name}" for name in names if name.split(".")[0] in FORBIDDEN]
        wrong += [f"{path.name} calls {name}" for name, _ in calls(path) if name in ("torch.load", "eval", "exec", "np.load")]
    assert wrong == []


def test_every_loader_is_told_to_leave_remote_code_alone():
    loaders = [
        (path.name, words)
        for path in ROOT.rglob("*.py")
        for name, words in calls(path)
        if name.endswith("from_pretrained")
        and name != "LoraConfig.from_pretrained"  # peft reads a JSON file, and has no such word
    ]
    assert len(loaders) >= 3
    assert [name for name, words in loaders if words.get("trust_remote_code") != "False"] == []


@pytest.fixture
def hostile(tmp_path: Path) -> tuple[Path, Path]:
    """A model folder that names classes of its own in every file, and the file that its code would leave."""
    folder, trace = tmp_path / "hostile", tmp_path / "was-here"
    shutil.copytree(profiles_folder() / "models" / "tiny-qwen2.5-vl", folder)
    (folder / "evil.py").write_text(f"open({str(trace)!r}, 'w').close()\nclass Evil: pass\n")
    named = dict.fromkeys(("AutoConfig", "AutoProcessor", "AutoTokenizer", "AutoImageProcessor"), "evil.Evil")
    for path in folder.glob("*.json"):
        path.write_text(json.dumps({**json.loads(path.read_text()), "auto_map": named, "processor_class": "Evil"}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "Evil", "auto_map": named}))
    return folder, trace


def test_code_in_a_model_folder_is_not_run(hostile):
    folder, trace = hostile
    for act in (
        lambda: load_processor(load_model(str(folder))),
        lambda: check_architecture(str(folder), load_model(str(folder))),
    ):
        with contextlib.suppress(BudgetftError):
            act()
        assert not trace.exists()


def test_the_hostile_folder_is_one_that_would_be_run_if_it_were_trusted(hostile, monkeypatch, tmp_path):
    from transformers import AutoConfig, dynamic_module_utils

    folder, trace = hostile
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "unheard-of"}))
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    with contextlib.suppress(Exception):
        AutoConfig.from_pretrained(str(folder), trust_remote_code=True)
    assert trace.exists()
