"""What runs, what is skipped, and what happens to what was there. The stages are small functions that write files."""

import shutil
from pathlib import Path

import pytest

from budgetft.cli.workflow import command_options
from budgetft.errors import BudgetftError, UsageError
from budgetft.workflow.file import read_workflow
from budgetft.workflow.run import run_workflow

COMMANDS = command_options()
TEXT = """
    stats = {}
    predict = {}
    evaluate = {}
    report = {}
    [workflow]
    out = "o"
    [data]
    from = "convert"
    file = "rows.jsonl"
    [plan]
    gpu = "t4"
    rank = 8
    [train]
    steps = 4
"""
ALL = ["data", "stats", "plan", "train", "predict", "evaluate", "report"]


class Bench:
    """A folder with a workflow, and commands that write what they were asked."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ran: list[tuple[str, ...]] = []
        self.failing: str | None = None
        (folder / "one.png").write_bytes(b"one")
        (folder / "rows.jsonl").write_text('{"id": "1", "images": ["one.png"], "prompt": "What?", "answer": "A car."}\n')
        self.write(TEXT)

    def write(self, text: str) -> None:
        (self.folder / "w.toml").write_text(text)

    def command(self, argv: tuple[str, ...]) -> str:
        self.ran.append(argv)
        name = argv[0]
        target = next((Path(one.removeprefix("--out=")) for one in argv if one.startswith("--out=")), None)
        if target is not None and name in ("data", "train"):
            target.mkdir()
            (target / "run.json").write_text("{}")
        if name == self.failing:
            raise BudgetftError("it broke", hint="mend it")
        if target is not None:
            path = target / "made" if target.is_dir() else target
            path.write_text("the same" if name == "data" else " ".join(argv))
        return f"printed by {name}"

    def go(self, **options) -> dict[str, str]:
        """The reason of each stage that ran, or would."""
        self.ran = []
        workflow = read_workflow(self.folder / "w.toml", COMMANDS)
        done = run_workflow(workflow, self.command, say=lambda text: None, **options)
        assert [one.stage for one in done] == ALL
        return {one.stage: one.reason for one in done if one.status != "skipped"}


@pytest.fixture
def bench(tmp_path) -> Bench:
    return Bench(tmp_path)


def test_a_second_run_skips_everything(bench):
    assert list(bench.go()) == ALL
    assert bench.go() == {}
    assert bench.ran == []


def test_paths_start_at_the_folder_of_the_file_wherever_the_command_is_typed(bench, monkeypatch):
    monkeypatch.chdir(bench.folder.parent)
    workflow = read_workflow(Path(bench.folder.name) / "w.toml", COMMANDS)
    run_workflow(workflow, bench.command, say=lambda text: None)
    assert (bench.folder / "o" / "scores.txt").is_file()
    assert Path.cwd() == bench.folder.parent


def test_an_input_folder_may_hold_the_output_folder(bench):
    bench.write(TEXT.replace('gpu = "t4"', 'gpu = "t4"\n    data = "."'))
    bench.go()
    assert bench.go() == {}
    (bench.folder / "more").write_text("x")
    assert bench.go()["plan"] == ". changed"


def test_what_a_stage_prints_is_kept(bench):
    bench.go()
    assert (bench.folder / "o" / "scores.txt").read_text() == "printed by evaluate"
    assert (bench.folder / "o" / "stages" / "plan.txt").read_text() == "printed by plan"


def test_an_edited_option_runs_its_stage_and_those_whose_inputs_changed_by_it(bench):
    bench.go()
    bench.write(TEXT.replace("rank = 8", "rank = 16"))
    reasons = bench.go()
    assert reasons["plan"] == "option rank changed"
    assert reasons["train"] == "o/plan.json changed"
    assert list(reasons) == ["plan", "train"], "the run came out the same, so nothing after it has anything new"


def test_a_changed_file_runs_what_reads_it_and_no_more_when_the_result_is_the_same(bench):
    bench.go()
    with (bench.folder / "rows.jsonl").open("a") as file:
        file.write("\n")
    assert bench.go() == {"data": "rows.jsonl changed"}


def test_a_changed_image_that_the_file_names_counts(bench):
    bench.go()
    (bench.folder / "one.png").write_bytes(b"two")
    assert bench.go() == {"data": "rows.jsonl: images changed"}


def test_an_output_that_is_gone_or_changed_is_made_again_and_the_changed_one_is_kept(bench):
    bench.go()
    shutil.rmtree(bench.folder / "o" / "data")
    (bench.folder / "o" / "plan.json").write_text("by hand")
    assert bench.go() == {"data": "o/data is gone", "plan": "o/plan.json was changed"}
    assert (bench.folder / "o" / "old" / "plan-1.json").read_text() == "by hand"


def test_an_outdated_training_run_is_set_aside(bench):
    bench.go()
    bench.write(TEXT.replace("steps = 4", "steps = 5"))
    bench.go()
    assert "--steps=4" in (bench.folder / "o" / "old" / "run-1" / "made").read_text()
    assert "--steps=5" in (bench.folder / "o" / "run" / "made").read_text()


def test_a_failed_stage_leaves_the_earlier_ones_and_the_same_command_goes_on(bench):
    bench.failing = "train"
    with pytest.raises(BudgetftError) as caught:
        bench.go()
    assert caught.value.message == "[train] it broke"
    assert caught.value.hint is not None
    assert "mend it; earlier stages are kept" in caught.value.hint
    bench.failing = None
    bench.command = lambda argv, whole=bench.command: (
        "" if "--resume" in argv and bench.ran.append(argv) is None else whole(argv)
    )
    assert list(bench.go()) == ["train", "predict", "evaluate", "report"]
    assert bench.ran[0][:2] == ("train", "--resume")


def test_a_failed_stage_whose_options_were_mended_starts_anew(bench):
    bench.failing = "train"
    with pytest.raises(BudgetftError):
        bench.go()
    bench.failing = None
    bench.write(TEXT.replace("steps = 4", "steps = 3"))
    assert bench.go()["train"] == "option steps changed"
    assert "--resume" not in bench.ran[0]


def test_a_dry_run_says_what_would_run_and_writes_nothing(bench):
    assert set(bench.go(dry_run=True).values()) == {"never run"}
    assert not (bench.folder / "o").exists()
    bench.go()
    bench.write(TEXT.replace("rank = 8", "rank = 16"))
    assert bench.go(dry_run=True) == {
        "plan": "option rank changed",
        "train": "after plan",
        "predict": "after train",
        "evaluate": "after predict",
        "report": "after train",
    }
    assert bench.ran == []


def test_what_no_record_accounts_for_is_not_overwritten(bench):
    (bench.folder / "o" / "data").mkdir(parents=True)
    (bench.folder / "o" / "data" / "precious").write_text("x")
    with pytest.raises(UsageError, match="o/data is there"):
        bench.go()
    assert (bench.folder / "o" / "data" / "precious").read_text() == "x"


def test_two_runs_of_one_workflow_at_once_are_refused(bench):
    def inside(argv: tuple[str, ...]) -> str:
        bench.go()
        return ""

    workflow = read_workflow(bench.folder / "w.toml", COMMANDS)
    with pytest.raises(UsageError, match="in use by another"):
        run_workflow(workflow, inside, say=lambda text: None)
