"""How budgetft got here decides which line installs what is missing; and the lock holds all that a plain installation needs."""

import json
import re
import tomllib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from budgetft import installed
from budgetft.doctor.examine import as_typed_here
from budgetft.profiles import profiles_folder

CHECKOUT = Path(installed.__file__).resolve().parent.parent


@pytest.fixture
def came_from(monkeypatch, tmp_path):
    """Makes budgetft one that was installed as ``record`` (its direct_url.json) says, from no checkout."""

    class Installed:
        def __init__(self, record):
            self.record = record

        def read_text(self, name):
            return None if self.record is None else json.dumps(self.record)

    def install(record):
        monkeypatch.setattr(installed, "distribution", lambda name: Installed(record))
        monkeypatch.setattr(installed, "__file__", str(tmp_path / "site-packages" / "budgetft" / "installed.py"))

    return install


def test_from_a_package_index_the_name_is_enough(came_from):
    came_from(None)
    assert installed.install_line() == 'pip install "budgetft"'
    assert installed.install_line("nf4") == 'pip install "budgetft[nf4]"'
    assert installed.own_package("nf4").startswith("budgetft[nf4]==")


def test_a_folder_is_named_and_stays_editable(came_from, tmp_path):
    folder = tmp_path / "my clone"
    folder.mkdir()
    url = folder.as_uri()
    came_from({"url": url, "dir_info": {"editable": True}})
    assert installed.install_line("nf4") == f'pip install -e "{folder}[nf4]"'
    assert installed.own_package("nf4") == f"{folder}[nf4]"
    came_from({"url": url, "dir_info": {}})
    assert installed.install_line() == f'pip install "{folder}"'
    assert installed.install_line(again=True) == f'pip install --force-reinstall --no-deps "{folder}"'


def test_a_folder_that_is_gone_is_not_named(came_from, tmp_path):
    came_from({"url": (tmp_path / "gone").as_uri(), "dir_info": {"editable": True}})
    assert installed.install_line("nf4") == 'pip install "budgetft[nf4]"'


def test_a_repository_is_named_at_the_commit_that_is_here(came_from):
    came_from({"url": "https://example.org/me/budgetft.git", "vcs_info": {"vcs": "git", "commit_id": "abc123"}})
    wanted = 'pip install "budgetft[nf4] @ git+https://example.org/me/budgetft.git@abc123"'
    assert installed.install_line("nf4") == wanted


def test_a_folder_whose_name_a_shell_would_change_is_quoted(came_from, tmp_path):
    folder = tmp_path / "a $HOME"
    folder.mkdir()
    came_from({"url": folder.as_uri(), "dir_info": {}})
    assert installed.install_line() == f"pip install '{folder}'"


def test_a_checkout_that_is_not_installed_names_itself(monkeypatch):
    def absent(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(installed, "distribution", absent)
    assert installed.install_line("nf4") == f'pip install -e "{CHECKOUT}[nf4]"'


def test_where_pipx_or_uv_keeps_budgetft_the_line_goes_through_them(came_from, tmp_path, monkeypatch):
    came_from(None)
    environment = tmp_path / "budgetft"
    environment.mkdir()
    assert installed.pip_command(environment) == "pip"
    (environment / "pipx_metadata.json").write_text("{}")
    monkeypatch.setattr(installed.sys, "prefix", str(environment))
    assert installed.install_line("nf4") == 'pipx runpip budgetft install "budgetft[nf4]"'
    (environment / "pipx_metadata.json").rename(environment / "uv-receipt.toml")
    assert installed.install_line("nf4") == f'VIRTUAL_ENV={environment} uv pip install "budgetft[nf4]"'
    assert as_typed_here(installed.install_line("nf4")) == installed.install_line("nf4")


def test_the_doctor_s_lines_go_through_pipx_too():
    fix = "pip uninstall -y pynvml && pip install --force-reinstall nvidia-ml-py"
    wanted = "pipx runpip budgetft uninstall -y pynvml && pipx runpip budgetft install --force-reinstall nvidia-ml-py"
    assert as_typed_here(fix, "pipx runpip budgetft") == wanted
    assert as_typed_here("unset PYTHONPATH", "pipx runpip budgetft") == "unset PYTHONPATH"


def test_every_hint_takes_its_line_from_the_one_place():
    typed = [
        str(path.relative_to(CHECKOUT))
        for path in sorted((CHECKOUT / "budgetft").rglob("*.py"))
        if re.search(r"pip install .{0,3}budgetft", path.read_text(encoding="utf-8")) and path.name != "installed.py"
    ]
    assert typed == []


def _name(text):
    return re.sub(r"[-_.]+", "-", text).lower()


def _needed_by(names):
    """``names`` and all that they need, as far as they are installed here."""
    seen, left = set(), [_name(name) for name in names]
    while left:
        name = left.pop()
        if name in seen:
            continue
        seen.add(name)
        try:
            requirements = distribution(name).requires or []
        except PackageNotFoundError:
            continue
        needs = map(Requirement, requirements)
        left += [_name(need.name) for need in needs if need.marker is None or need.marker.evaluate({"extra": ""})]
    return seen


def test_the_lock_pins_all_that_a_new_environment_gets_but_torch():
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [Requirement(text).name for text in [*project["dependencies"], *project["optional-dependencies"]["nf4"]]]
    lines = (profiles_folder() / "lock.txt").read_text(encoding="utf-8").splitlines()
    pinned = {_name(line.split("==")[0]) for line in lines if "==" in line}
    assert _needed_by(wanted) - _needed_by(["torch", "torchvision"]) - pinned == set()
