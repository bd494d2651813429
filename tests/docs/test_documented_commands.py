"""Every command in README, docs and CONTRIBUTING is one that the program takes; the cheap ones are run."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import typer
from pages import DOCS, REPORTS, ROOT, Command, code, commands, named

from budgetft.cli import build_app, main

USAGE_ERROR: Any = typer.BadParameter.__base__
LEFT_OUT = {
    "plan": "traces a full-size model: half a minute and more",
    "train": "needs base weights and a GPU",
    "predict": "needs a run",
    "evaluate": "needs predictions",
    "submit": "needs predictions",
    "merge": "needs base weights",
    "bench": "needs a GPU",
    "demo": "trains: minutes",
    "doctor": "looks at the machine: its tests are tests/doctor",
    "port": "traces the step of a full-size model",
    "export": "traces the step of another trainer",
    "data synthetic": "draws videos: its tests are tests/data",
    "data wts": "reads what data synthetic draws",
    "data cache": "needs base weights",
}
"""Commands that are parsed and not run here, and why."""


@pytest.fixture(scope="module")
def root() -> Any:
    return typer.main.get_command(build_app())


def refusal(root: Any, command: Command) -> str | None:
    """What the command line says of the words of ``command``; None where it takes them. Nothing is run."""
    words, here, context = list(command.words), root, root.make_context("budgetft", [], resilient_parsing=True)
    try:
        while words and hasattr(here, "commands"):
            name, words = words[0], words[1:]
            if name in ("-h", "--help", "--version", "--install-completion"):
                return None
            here = here.commands.get(name)
            if here is None:
                return f"no command {name}"
            if not hasattr(here, "commands"):
                here.make_context(name, words, parent=context)
    except typer.Exit:
        return None  # -h
    except USAGE_ERROR as error:
        missing = type(error).__name__ == "MissingParameter"
        return None if missing and not command.pasted else error.format_message()
    return None


@pytest.mark.parametrize("page", DOCS, ids=named)
def test_the_command_line_takes_every_command(page, root):
    assert {str(each): said for each in commands(page) if (said := refusal(root, each))} == {}


@pytest.mark.parametrize("page", REPORTS, ids=named)
def test_the_command_line_still_takes_the_commands_that_made_the_reports(page, root):
    shown = (each for each in commands(page) if each.pasted and "..." not in each.words)
    assert {str(each): said for each in shown if (said := refusal(root, each))} == {}


def test_an_unknown_option_or_command_and_a_wrong_value_are_seen(root):
    def said(*words: str, pasted: bool = True) -> str | None:
        return refusal(root, Command("page", words, pasted))

    assert said("fit", "--gpus", "3060")
    assert said("fits") == "no command fits"
    assert said("data", "converts", "x")
    assert said("plan", "--gpu", "3060", "--epochs", "three")
    assert said("export", "plan.json")
    assert said("export", "plan.json", pasted=False) is None
    assert said("plan", "--gpu", "3060", "--epochs", "3") is None


def test_readme_and_docs_have_commands_of_every_kind():
    """So that a change of how pages are read cannot leave the other tests with nothing."""
    found = {each.words[0] for page in DOCS for each in commands(page) if each.words}
    assert found >= {"fit", "estimate", "plan", "train", "report", "data", "export", "launch", "port", "doctor", "predict"}


def kind_of(command: Command) -> str:
    return " ".join(command.words[: 2 if command.words[0] == "data" else 1])


def is_left_out(command: Command) -> bool:
    words, kind = command.words, kind_of(command)
    if kind == "run":
        return "--dry-run" not in words
    if kind == "gpus":  # measures this machine's GPU
        return bool({"--detect", "--calibrate", "--add"} & set(words))
    if kind == "estimate":  # another trainer's step is traced
        return "--trainer" in words
    if kind == "fit":  # this machine's GPU, or every GPU
        return "--gpu" not in words
    if kind == "report":  # of a run
        return words[1] != "plan.json"
    return kind in LEFT_OUT


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    """The files that the commands of README and docs name: photos with captions, a video, a plan."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("inputs")
    (folder / "photos").mkdir()
    for number in range(4):
        Image.new("RGB", (64, 64), (60 * number, 90, 30)).save(folder / f"photos/{number}.png")
    rows = [f"photos/{number}.png,A mug." for number in range(4)]
    (folder / "photos.csv").write_text("\n".join(["image,caption", *rows]) + "\n")
    (folder / "products.csv").write_text("\n".join(["file,title", *rows]) + "\n")
    lines = [f'{{"image": "photos/{number}.png", "caption": "A mug."}}\n' for number in range(4)]
    (folder / "captions.jsonl").write_text("".join(lines))
    (workflow,) = code(next(page for page in DOCS if page.name == "workflow.md"), "toml")
    (folder / "workflow.toml").write_text(workflow)
    shutil.copy(ROOT / "reports/spine/plan-448.json", folder / "plan.json")
    write_video(folder / "clip.mp4")
    (folder / "clips.jsonl").write_text('{"video": "clip.mp4", "caption": "A light that goes on."}\n')
    return folder


def write_video(path: Path) -> None:
    """Sixteen grey frames."""
    import av
    import numpy

    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=8)
        stream.width, stream.height = 64, 64
        for shade in range(0, 256, 16):
            frame = av.VideoFrame.from_ndarray(numpy.full((64, 64, 3), shade, numpy.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


RUN = [page for page in DOCS if any(each.pasted and not is_left_out(each) for each in commands(page))]


@pytest.mark.parametrize("page", RUN, ids=named)
def test_cheap_commands_run_as_they_are_written(page, inputs, tmp_path, monkeypatch, capsys):
    shutil.copytree(inputs, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    for command in commands(page):
        if command.pasted and not is_left_out(command):
            assert main(command.words) == 0, f"{command}\n{capsys.readouterr().err}"


@pytest.mark.parametrize("page", [page for page in DOCS if code(page, "python")], ids=named)
def test_python_of_readme_and_docs_runs(page):
    for block in code(page, "python"):
        exec(compile(block, named(page), "exec"), {})
