"""A workflow file is taken whole, or every problem in it is told at once."""

from pathlib import Path

import pytest

from budgetft.cli.workflow import command_options
from budgetft.errors import UsageError
from budgetft.workflow.file import Workflow, read_workflow

COMMANDS = command_options()


def read(folder: Path, text: str, **options) -> Workflow:
    path = folder / "workflow.toml"
    path.write_text(text)
    return read_workflow(path, COMMANDS, **options)


def problems(folder: Path, text: str) -> str:
    with pytest.raises(UsageError) as caught:
        read(folder, text)
    return f"{caught.value.message}\nhint: {caught.value.hint}"


def commands(workflow: Workflow) -> dict[str, str]:
    return {task.stage.name: " ".join(task.argv) for task in workflow.tasks}


def test_stages_take_from_each_other_what_the_file_leaves_out(tmp_path):
    text = """
        report = {}
        evaluate = {}
        predict = {}
        stats = {}
        [workflow]
        out = "o"
        [data]
        from = "sample"
        [plan]
        gpu = "t4"
        model = "tiny-qwen2.5-vl"
        [train]
        weights = "random"
    """
    assert commands(read(tmp_path, text)) == {
        "data": "data sample -- o/data",
        "stats": "data stats --model=tiny-qwen2.5-vl -- o/data",
        "plan": "plan --gpu=t4 --model=tiny-qwen2.5-vl --data=o/data --out=o/plan.json",
        "train": "train --weights=random --plan=o/plan.json --out=o/run",
        "predict": "predict --run=o/run --weights=random --data=o/data --out=o/predictions/predictions.jsonl",
        "evaluate": "evaluate --data=o/data -- o/predictions/predictions.jsonl",
        "report": "report --out=o/report/report.html -- o/run",
    }


def test_predictions_are_of_the_test_set_else_of_the_scenarios_held_out(tmp_path):
    text = """
        predict = {}
        evaluate = {}
        [workflow]
        out = "o"
        [data]
        from = "wts"
        root = "wts"
        split = "train"
        holdout = 0.2
        [plan]
        gpu = "t4"
        [train]
    """
    told = commands(read(tmp_path, text))
    assert "--data=o/data-holdout " in told["predict"]
    assert "--data=o/data-holdout " in told["evaluate"]
    assert "--data=o/data " in told["plan"]
    told = commands(read(tmp_path, text + '[test]\nfrom = "wts"\nroot = "wts"\nsplit = "val"\n'))
    assert "--data=o/test " in told["predict"]
    assert "--data=o/test " in told["evaluate"]


def test_what_the_file_says_wins_over_what_another_stage_makes(tmp_path):
    text = '[workflow]\nout = "o"\n[data]\nfrom = "sample"\n[plan]\ngpu = "t4"\ndata = "mine"\n'
    assert "--data=mine" in commands(read(tmp_path, text))["plan"]
    text = '[workflow]\nout = "o"\n[data]\nfrom = "sample"\n[plan]\ngpu = "t4"\nimage = "56x56"\n'
    assert "--data" not in commands(read(tmp_path, text))["plan"]


def test_lengths_are_counted_under_the_limits_of_the_plan(tmp_path):
    text = 'stats = {}\n[workflow]\nout = "o"\n[data]\nfrom = "sample"\n'
    text += '[plan]\ngpu = "t4"\nmax_pixels = "3136..50176"\nmax-length = 512\n'
    told = commands(read(tmp_path, text))
    assert "--max-pixels=3136 --max-length=512" in told["stats"]
    assert "--max-pixels=3136..50176" in told["plan"]


def test_another_output_folder_may_be_given(tmp_path):
    text = '[workflow]\nout = "o"\n[data]\nfrom = "sample"\n'
    assert commands(read(tmp_path, text, out=tmp_path / "p"))["data"] == "data sample -- p/data"
    outside = tmp_path.parent / "p"
    assert commands(read(tmp_path, text, out=outside))["data"] == f"data sample -- {outside / 'data'}"


def test_lists_and_switches_become_options(tmp_path):
    text = """
        [workflow]
        out = "o"
        [data]
        from = "wts"
        root = "wts"
        split = "val"
        external = false
        skip_bad = true
        [plan]
        gpu = "t4"
        allow-nf4 = false
        use-dora = true
        seed = 4294967295
        warmup_ratio = 0.1
        init-lora = "gaussian"
        [train]
        tracker = ["wandb", "mlflow"]
    """
    told = commands(read(tmp_path, text))
    assert "--no-external --skip-bad" in told["data"]
    assert "nf4" not in told["plan"]
    assert "--use-dora --seed=4294967295 --warmup-ratio=0.1 --init-lora=gaussian" in told["plan"]
    assert "--tracker=wandb --tracker=mlflow" in told["train"]


def test_all_problems_are_told_at_once_with_the_nearest_names(tmp_path):
    text = """
        [workflow]
        ot = "o"
        [dta]
        [data]
        from = "wst"
        [plan]
        max-pixel = 5
        out = "p.json"
        probe = "sometimes"
        allow-nf4 = 3
        max-probes = "x"
        [train]
        steps = 0
        [evaluate]
    """
    told = problems(tmp_path, text)
    for part in (
        "workflow.toml: 11 problems",
        "[workflow] ot: unknown key",
        "[workflow] out: must be a folder",
        "[dta]: unknown stage",
        "[data] from: 'wst' is unknown",
        "[plan] max-pixel: unknown option",
        "[plan] out: the workflow sets it",
        "[plan] probe: 'sometimes'",
        "[plan] allow-nf4: must be true or false",
        "[plan] max-probes:",
        "[train] steps:",
        "[evaluate] predictions: missing; it is taken from [predict]",
        "did you mean 'data' instead of 'dta'?",
        "did you mean 'wts' instead of 'wst'?",
        "did you mean 'max-pixels' instead of 'max-pixel'?",
    ):
        assert part in told


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[workflow\n", "is not TOML"),
        ("", "no stages"),
        ("workflow = 3\ndata = 4\n", "data: must be a table"),
        ('[workflow]\nout = "o"\n[data]\nfrom = "sample"\ncount = 0x' + "f" * 5000, "thousands of digits"),
        ('[workflow]\nout = "o"\n[plan]\ngpu = 2020-01-01\n', "[plan] gpu: must be a text or a number"),
        ('[workflow]\nout = "o"\n[plan]\ngpu = ""\n', "[plan] gpu: must be a text or a number, not ''"),
        ('[workflow]\nout = "o"\n[plan]\nmax_length = 1\nmax-length = 2\n', "max_length: given twice"),
        ('[workflow]\nout = "o"\n[plan]\ngpu = ["t4"]\n', "[plan] gpu: must be a text or a number"),
    ],
)
def test_a_broken_file_is_refused(tmp_path, text, told):
    assert told in problems(tmp_path, text)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(UsageError, match="cannot read"):
        read_workflow(tmp_path / "none.toml", COMMANDS)
