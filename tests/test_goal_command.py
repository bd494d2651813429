"""``plan --hours`` as a user types it: what it prints, what it writes, what it refuses."""

import contextlib
import io
import json

import pytest

pytest.importorskip("optuna", reason="optuna is not installed: planning is a search")

from budgetft.cli import main
from budgetft.duration import HOUR
from budgetft.plan import read_plan
from budgetft.report.gather import gather
from budgetft.report.page import html_page
from budgetft.units import MIB

JOB = ["--gpu", "v100-16g", "--model", "tiny-qwen2.5-vl", "--image", "112x112", "--text-tokens", "64"]
JOB += ["--supervised-tokens", "16", "--effective-batch", "4"]
RANGES = ["--max-pixels", "3136..12544", "--rank", "4..8"]


@pytest.fixture(scope="module")
def made(tmp_path_factory, new_cache):
    """A predicted plan of the largest contract that ends in an hour, and what was printed."""
    path, out, err = tmp_path_factory.mktemp("goal") / "plan.json", io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        patch.setenv("BUDGETFT_CACHE", str(new_cache()))
        words = ["plan", *JOB, *RANGES, "--hours", "1", "--examples", "100000", "--epochs", "2", "--probe", "never"]
        code = main([*words, "--out", str(path)])
    assert code == 0, err.getvalue()
    return path, out.getvalue(), err.getvalue()


def test_the_plan_is_of_the_chosen_contract_and_keeps_its_time_and_the_others(made):
    plan = read_plan(made[0])
    goal = plan.goal
    assert goal is not None
    assert (goal.hours, goal.prefer) == (1, ("max_pixels", "rank"))
    assert goal.values == {"max_pixels": plan.contract.max_pixels, "rank": plan.contract.rank}
    assert goal.run.seconds == pytest.approx(2 * 100_000 / plan.estimate.samples_per_second)
    assert goal.seconds <= HOUR
    assert goal.is_chosen(goal.rows[0])
    assert plan.price_list == ()
    assert plan.contract.max_pixels in (3136, 6272, 12544)


def test_a_terminal_of_80_columns_has_the_choice_and_the_table(made):
    lines = made[1].splitlines()
    start = next(place for place, line in enumerate(lines) if line.startswith("  Goal"))
    told = lines[start : lines.index("", start)]
    assert max(map(len, told)) <= 80
    assert "within 60 min: the largest max pixels, then rank" in told[0]
    assert any(line.endswith("chosen") for line in told)
    assert any("2 epochs = 50,000 steps" in line for line in told)


def test_every_contract_that_is_looked_at_is_told_while_it_lasts(made):
    assert "[trace] max pixels 12544, rank 4:" in made[2]


def test_the_report_of_such_a_plan_has_it(made):
    assert '<section id="goal">' in html_page(gather(made[0], ledger=made[0].with_name("none")))


def test_a_plan_of_before_goals_reads_and_is_written_without_one(made, tmp_path):
    data = json.loads(made[0].read_text())
    del data["goal"]
    (tmp_path / "old.json").write_text(json.dumps(data))
    old = read_plan(tmp_path / "old.json")
    assert old.goal is None
    assert "goal" not in json.loads(old.model_dump_json())


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--hours", "-5", "--examples", "9"], "cannot read '-5' as a time"),
        (["--hours", "1e9", "--examples", "9"], "cannot read '1e9' as a time"),
        (["--hours", "soon", "--examples", "9"], "cannot read 'soon' as a time"),
        (["--hours", "10"], "how many examples an epoch has is not known of a typed shape"),
        (["--prefer", "rank"], "--prefer goes with --hours"),
        (["--sure"], "--sure goes with --hours"),
        (["--hours", "1", "--examples", "9", "--rank", "64..8"], "the range must rise"),
        (["--hours", "1", "--examples", "9", "--rank", "4..8", "--prefer", "size"], "'size' is none of pixels, rank, frames"),
        (["--hours", "1", "--examples", "9", "--rank", "4..8", "--prefer", "pixels"], "those with a range are rank"),
        (["--hours", "1", "--examples", "9", "--prefer", "pixels"], "nothing was given as a range"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_is_traced(words, told, capsys, tmp_path):
    assert main(["plan", *JOB, *words, "--probe", "never", "--out", str(tmp_path / "plan.json")]) == 2
    error = capsys.readouterr().err
    assert told in error
    assert "[trace]" not in error
    assert not (tmp_path / "plan.json").exists()


def test_hours_that_nothing_meets_have_the_exit_code_of_what_does_not_fit(made, capsys, tmp_path):
    words = ["--hours", "1min", "--examples", "100000", "--rank", "4..8", "--max-pixels", "3136", "--probe", "never"]
    assert main(["plan", *JOB, *words, "--out", str(tmp_path / "plan.json")]) == 3
    assert "nothing ends within 60 s on v100-16g: even rank 4, the fastest of these ranges" in capsys.readouterr().err
    assert not (tmp_path / "plan.json").exists()


@pytest.mark.usefixtures("warm_children")
def test_probes_on_the_cpu_say_whether_the_chosen_contract_fits(capsys, tmp_path):
    path = tmp_path / "plan.json"
    words = ["--hours", "4", "--examples", "100000", "--rank", "4..8", "--max-pixels", "3136", "--budget", "96MiB"]
    assert main(["plan", *JOB, *words, "--probe", "always", "--max-probes", "5", "--out", str(path)]) == 0
    plan, told = read_plan(path), capsys.readouterr().err
    goal = plan.goal
    assert goal is not None
    assert goal.values == {"rank": 8}
    assert goal.probes >= 1
    assert goal.probes + len({outcome.knobs for outcome in plan.evidence.outcomes}) <= 5 + 1
    assert "probing rank 8: predicted" in told
    assert plan.evidence.confirmed is not None
    assert plan.estimate.process_peak_bytes <= 96 * MIB
    assert goal.run.evidence == "predicted", "seconds of the CPU are not the GPU's"
