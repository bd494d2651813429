"""The profiles must be found wherever the package lies: beside it in a checkout, inside it in a wheel."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import distributions
from pathlib import Path

import pytest
from patience import HANG_SECONDS

import budgetft
from budgetft import __version__
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
    """A wheel, built by way of the source archive from a copy of the tree, without a network, and unpacked."""
    builders = pytest.importorskip("hatchling.builders.wheel", reason="hatchling builds the wheel")
    from hatchling.builders.sdist import SdistBuilder

    tree, source = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("source")
    ignored = shutil.ignore_patterns("__pycache__")
    for folder in ("budgetft", "profiles"):
        shutil.copytree(CHECKOUT / folder, tree / folder, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(CHECKOUT / name, tree)
    (archive,) = SdistBuilder(str(tree)).build(directory=str(tree / "dist"), versions=["standard"])
    shutil.unpack_archive(archive, source, filter="data")
    (root,) = source.iterdir()
    (wheel,) = builders.WheelBuilder(str(root)).build(directory=str(source), versions=["standard"])
    target = tmp_path_factory.mktemp("unpacked")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(target)
    return target


def test_the_wheel_says_its_version_licence_and_command(unpacked_wheel, tmp_path):
    (facts,) = distributions(path=[str(unpacked_wheel)])
    assert facts.version == __version__
    assert facts.metadata["License-Expression"] == "Apache-2.0"
    assert any(path.name == "LICENSE" for path in facts.files or ())
    assert [(each.name, each.value) for each in facts.entry_points] == [("budgetft", "budgetft.cli:run")]
    environment = {**os.environ, "PYTHONPATH": str(unpacked_wheel)}
    command = [sys.executable, "-m", "budgetft", "--version"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=HANG_SECONDS)
    assert done.stdout == f"budgetft {__version__}\n"


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
