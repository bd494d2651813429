"""The profiles must be found wherever the package lies: beside it in a checkout, inside it in a wheel."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from patience import HANG_SECONDS

import budgetft
from budgetft.gpu import gpu_names
from budgetft.model import model_names
from budgetft.profiles import profiles_folder

CHECKOUT = Path(budgetft.__file__).resolve().parent.parent

LOAD_ALL = """
import json, sys
from budgetft.gpu import gpu_names, load_gpu
from budgetft.model import load_model, model_names
from budgetft.profiles import profiles_folder
print(json.dumps({
    "folder": str(profiles_folder()),
    "gpus": [load_gpu(name).name for name in gpu_names()],
    "models": [load_model(name).name for name in model_names()],
    "torch": "torch" in sys.modules,
}))
"""


def load_all(python_path: Path, cwd: Path) -> dict:
    """What a fresh interpreter finds when ``python_path`` is the only place with a budgetft."""
    environment = {**os.environ, "PYTHONPATH": str(python_path), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", LOAD_ALL], cwd=cwd, env=environment, capture_output=True, text=True, timeout=HANG_SECONDS
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def unpacked_wheel(tmp_path_factory) -> Path:
    """A wheel, built from a copy of the tree without a network, and unpacked."""
    wheel_builder = pytest.importorskip("hatchling.builders.wheel", reason="hatchling builds the wheel")
    tree = tmp_path_factory.mktemp("tree")
    ignored = shutil.ignore_patterns("__pycache__")
    for folder in ("budgetft", "profiles"):
        shutil.copytree(CHECKOUT / folder, tree / folder, ignore=ignored)
    shutil.copy(CHECKOUT / "pyproject.toml", tree)
    (tree / "README.md").write_text("# budgetft\n")  # the project file names it
    built = list(wheel_builder.WheelBuilder(str(tree)).build(directory=str(tree / "dist"), versions=["standard"]))
    target = tmp_path_factory.mktemp("unpacked")
    with zipfile.ZipFile(built[0]) as archive:
        archive.extractall(target)
    return target


def test_every_profile_loads_from_the_wheel_alone(unpacked_wheel, tmp_path):
    found = load_all(unpacked_wheel, tmp_path)
    assert Path(found["folder"]) == unpacked_wheel / "budgetft" / "_profiles"
    assert found["gpus"] == gpu_names()
    assert found["models"] == model_names()


def test_the_wheel_holds_every_profile_file_once(unpacked_wheel):
    def files(folder: Path) -> list[str]:
        return sorted(
            str(path.relative_to(folder))
            for kind in ("gpus", "models")
            for path in (folder / kind).rglob("*")
            if path.is_file()
        )

    assert files(unpacked_wheel / "budgetft" / "_profiles") == files(profiles_folder())
    assert not (unpacked_wheel / "profiles").exists()
    assert not (unpacked_wheel / "tests").exists()


def test_the_wheel_holds_the_demo(unpacked_wheel):
    shipped = unpacked_wheel / "budgetft" / "workflow" / "demo.toml"
    assert shipped.read_bytes() == (CHECKOUT / "budgetft" / "workflow" / "demo.toml").read_bytes()


def test_every_profile_loads_from_a_checkout_and_from_any_folder(tmp_path):
    if not (CHECKOUT / "profiles").is_dir():
        pytest.skip("this budgetft is not a checkout")
    found = load_all(CHECKOUT, tmp_path)
    assert Path(found["folder"]) == CHECKOUT / "profiles"
    assert found["gpus"] == gpu_names()
    assert found["models"] == model_names()


def test_loading_profiles_does_not_load_torch(tmp_path):
    assert load_all(CHECKOUT, tmp_path)["torch"] is False
