"""A place that cannot be written ends every command that writes in one sentence, whoever meets it first."""

import json
import os
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

import budgetft
from budgetft.cli import main
from budgetft.errors import refused_by_system

sys.path.insert(0, str(Path(__file__).parent / "export"))
from test_merge import make_adapter, make_base

MODEL = "tiny-qwen2.5-vl"
PLAN = str(Path(budgetft.__file__).parents[1] / "reports" / "spine" / "plan-448.json")
JOB = f"--gpu v100-16g --model {MODEL} --image 56x56 --text-tokens 40 --supervised-tokens 8 --effective-batch 2 --rank 4"
JOB += " --quiet"
PROBED = f"{JOB} --budget 600MiB --probe always --max-probes 5"  # a job whose memory models other files have
COMMANDS = {
    "plan": f"plan {JOB} --probe never --out PLACE/plan.json",
    "plan, ledger": f"plan {PROBED} --out HERE/made.json --ledger PLACE/ledger.sqlite3",
    "plan, storage": f"plan {PROBED} --out HERE/made.json --storage sqlite:///PLACE/study.sqlite3",
    "plan, journal": f"plan {PROBED} --out HERE/made.json --storage journal://PLACE/study.log",
    "port": f"port --plan {PLAN} --gpu rtx3060-12g --probe never --quiet --out PLACE/ported.json",
    "bench": f"bench {PROBED} --out PLACE/bench",
    "bench, ledger": f"bench {PROBED} --out HERE/bench --ledger PLACE/ledger.sqlite3",
    "train": f"train --plan {PLAN} --data HERE/data --weights random --quiet --out PLACE/run",
    "fit": "fit --gpu rtx3060-12g --model qwen2.5-vl-3b --image 448x448 --html PLACE/fit.html",
    "report": f"report {PLAN} -o PLACE/report.html",
    "merge": "merge HERE/adapter --weights HERE/base --out PLACE/merged",
    "export, llamafactory": f"export {PLAN} --to llamafactory --out PLACE/run.yaml",
    "export, transformers": f"export {PLAN} --to transformers --out PLACE/run.py",
    "launch": f"launch --plan {PLAN} --out HERE/run --slurm PLACE/job.sh",
    "doctor": "doctor --gpu v100-16g --env PLACE/env.sh",
    "data sample": "data sample PLACE/made",
    "data sample, again": "data sample PLACE/made --force",
    "data convert": "data convert HERE/rows.json --out PLACE/made",
    "data convert, videos": "data convert HERE/videos.json --frames 2 --out PLACE/made",
    "data wts": "data wts HERE/synthetic --split train --out PLACE/made",
    "data wts, two": "data wts HERE/synthetic --split train --holdout 0.5 --out PLACE/made",
    "data synthetic": "data synthetic PLACE/made --scenarios 3 --seconds 1 --size 64x48",
    "data cache": f"data cache HERE/data --model {MODEL} --weights random --max-pixels 3136 --out PLACE/features",
    "predict": f"predict --model {MODEL} --data HERE/data --weights random --max-new-tokens 2 --quiet --out PLACE/texts.jsonl",
    "submit": "submit --test HERE/synthetic --captions HERE/texts.jsonl --fill all --out PLACE/files",
    "demo": "demo --out PLACE/demo",
}


@pytest.fixture(scope="module")
def here(tmp_path_factory) -> Path:
    """What the commands read."""
    folder = tmp_path_factory.mktemp("here")
    assert main(["data", "sample", str(folder / "data"), "--count", "2"]) == 0
    assert main(["data", "synthetic", str(folder / "synthetic"), "--scenarios", "3", "--seconds", "1", "--size", "64x48"]) == 0
    Image.new("RGB", (56, 56)).save(folder / "a.png")
    asked = {"prompt": "What is there?", "answer": "Nothing."}
    (folder / "rows.json").write_text(json.dumps([{"id": "a", "images": ["a.png"], **asked}]))
    video = str(next((folder / "synthetic" / "videos").rglob("*.mp4")))
    turns = [{"from": "human", "value": "<video>What is there?"}, {"from": "gpt", "value": "Nothing."}]
    (folder / "videos.json").write_text(json.dumps([{"id": "a", "video": video, "conversations": turns}]))
    (folder / "texts.jsonl").write_text("")
    make_adapter(MODEL, make_base(MODEL, folder / "base", torch.bfloat16), folder / "adapter", "bf16")
    return folder


@pytest.fixture(params=["below a file", "without permission"])
def place(request, tmp_path) -> Path:
    """Where nothing can be written."""
    if request.param == "below a file":
        (tmp_path / "file").touch()
        return tmp_path / "file" / "sub"
    locked = tmp_path / "locked"
    locked.mkdir()
    locked.chmod(0o555)
    if os.access(locked, os.W_OK):
        pytest.skip("this user may write anywhere")
    return locked


def ends_in_a_sentence(capsys, words: list[str]) -> str:
    """Run the command; its one line of error."""
    capsys.readouterr()
    assert main(words) in (1, 2)
    said = capsys.readouterr().err
    assert "Traceback" not in said
    (line,) = [line for line in said.splitlines() if line.startswith("error: ")]
    return line


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_that_writes_says_in_a_line_that_it_cannot(command, here, place, capsys):
    words = [word.replace("PLACE", str(place)).replace("HERE", str(here)) for word in COMMANDS[command].split()]
    assert str(place) in ends_in_a_sentence(capsys, words)


@pytest.mark.parametrize("options", [JOB.replace("--image 56x56", ""), PROBED])
def test_a_cache_that_cannot_be_written_is_told_too(options, place, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("BUDGETFT_CACHE", str(place))
    assert str(place) in ends_in_a_sentence(capsys, ["plan", *options.split(), "--out", str(tmp_path / "plan.json")])


def test_what_the_system_refuses_is_told_with_its_path():
    assert refused_by_system(PermissionError(13, "Permission denied", "/a/b")).message == "cannot use /a/b: Permission denied"
    assert refused_by_system(OSError(18, "Invalid link", "/a", None, "/b")).message == "cannot use /b: Invalid link"
    assert refused_by_system(OSError(28, "No space left on device")).message == "No space left on device"
    assert refused_by_system(OSError("the server is gone")).message == "the server is gone"
