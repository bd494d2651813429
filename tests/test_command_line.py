"""Commands as a user types them: exit codes, what is said where, and the JSON that others may rely on."""

import contextlib
import io
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path

import pytest
from fresh import COMPUTING, LIGHT, fresh_python, seen_by, strangers
from rounding import arithmetic

from budgetft.cli import main
from budgetft.errors import NothingFits
from budgetft.gpu import gpu_names
from budgetft.host_gpus import first_visible
from budgetft.model import model_names
from budgetft.plan import Plan, read_plan
from budgetft.profiles import profiles_folder
from budgetft.units import GIB, MIB

JOB = ["--gpu", "v100-16g", "--model", "tiny-qwen2.5-vl", "--image", "56x56", "--text-tokens", "40"]
JOB += ["--supervised-tokens", "8", "--effective-batch", "4"]
ESTIMATE_KEYS = {
    "tensor_peak_bytes",
    "reserved_peak_bytes",
    "process_peak_bytes",
    "step_seconds",
    "samples_per_second",
    "fits",
    "terms",
}


@pytest.fixture(scope="module")
def cache(new_cache) -> Path:
    """One cache for the tests of this file, with its ledger."""
    return new_cache()


@pytest.fixture(autouse=True)
def _shared_cache(cache, monkeypatch):
    monkeypatch.setenv("BUDGETFT_CACHE", str(cache))


@dataclass(frozen=True, kw_only=True)
class Said:
    """What a command left behind."""

    code: int
    out: str
    err: str


@pytest.fixture
def said(capsys):
    """Run one command in this process."""

    def run(*words: str) -> Said:
        capsys.readouterr()
        code = main(list(words))
        captured = capsys.readouterr()
        return Said(code=code, out=captured.out, err=captured.err)

    return run


@pytest.fixture(scope="module")
def planned(cache, tmp_path_factory) -> tuple[Said, Path]:
    """A predicted plan with a price list, made once; the first command of the file that traces."""
    path = tmp_path_factory.mktemp("plan") / "new" / "plan.json"
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        patch.setenv("BUDGETFT_CACHE", str(cache))
        learnt = ["--rank", "4..8", "--frames-per-example", "1..2", "--learning-rate", "3e-4", "--epochs", "2"]
        code = main(["plan", *JOB, *learnt, "--probe", "never", "--out", str(path)])
    return Said(code=code, out=out.getvalue(), err=err.getvalue()), path


# What every command has in common


def test_help_names_the_commands_and_reads_no_profile(cache):
    seen = seen_by(["--help"], cache)
    for command in ("plan", "train", "estimate", "gpus", "models", "data"):
        assert re.search(rf"\b{command}\b", seen.out)
    assert not [path for path in seen.opened if path.endswith((".json", ".toml"))]


@pytest.mark.parametrize(
    "words",
    [
        ["gpus"],
        ["gpus", "v100-16g"],
        ["gpus", "--json"],
        ["models"],
        ["models", "qwen2.5-vl-3b"],
        ["--help"],
        ["plan", "--help"],
        ["train", "--help"],
        ["data", "--help"],
        ["--version"],
    ],
    ids=" ".join,
)
def test_a_look_loads_nothing_heavy_starts_nothing_and_reads_no_profile_twice(words, cache):
    seen = seen_by(words, cache)
    assert strangers(seen) <= LIGHT
    assert not {name.split(".")[1] for name in seen.modules if name.startswith("budgetft.")} & COMPUTING
    assert seen.started == []
    profiles = {path: times for path, times in seen.opened.items() if Path(path).is_relative_to(profiles_folder())}
    assert set(profiles.values()) <= {1}


def test_an_estimate_from_stored_memory_models_reads_each_once_and_neither_it_nor_reading_a_plan_loads_torch(planned, cache):
    seen = seen_by(["estimate", *JOB, "--rank", "4"], cache)
    light = LIGHT | {"numpy", "pynvml"}  # the time model is arithmetic on arrays; NVML says whether the GPU is at hand
    assert strangers(seen) <= light, "without torch nothing is traced, and without optuna nothing is searched"
    assert seen.started == []
    assert {times for path, times in seen.opened.items() if "/memory_models/" in path} == {1}, "each memory model is read once"
    read = f"import sys; from pathlib import Path; from budgetft.plan import read_plan; read_plan(Path({str(planned[1])!r}))"
    assert fresh_python(read + "\nprint('torch' in sys.modules)", cache).stdout == "False\n"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["estimate", *JOB, "--gpu", "v100-16x"], ["unknown GPU 'v100-16x'", "hint: did you mean 'v100-16g'?"]),
        (["plan", *JOB, "--gpu", "V100"], ["'V100' is sold with 16 or 32 GB", "--gpu v100-16g or --gpu v100-32g"]),
        (["gpus", "rtx4090ti"], ["unknown GPU", "did you mean 'rtx4090'?"]),
        (["estimate", *JOB, "--model", "qwen2.5-vl-3"], ["unknown model", "did you mean 'qwen2.5-vl-3b'?"]),
        (["models", "tiny-qwen3vl"], ["unknown model", "did you mean 'tiny-qwen3-vl'?"]),
        (["estimate", *JOB, "--knob", "micro_bach=2"], ["unknown setting 'micro_bach'", "did you mean 'micro_batch'?"]),
        (["estimate", *JOB, "--knob", "loss=chunk"], ["unknown value for setting loss", "did you mean 'chunked'?"]),
        (["estimate", *JOB, "--knob", "attention=flash"], ["'flash' needs compute capability 8.0", "v100-16g"]),
        (["estimate", *JOB, "--knob", "base_precision=bf16"], ["'bf16' is emulated on v100-16g"]),
        (["estimate", *JOB, "--knob", "micro_batch=3"], ["micro_batch 3 does not divide the effective batch 4: 1, 2, 4 do"]),
        (["estimate", *JOB, "--knob", "grad_accum=3"], ["grad_accum 3 does not divide the effective batch 4"]),
        (
            ["estimate", *JOB, "--knob", "micro_batch=64"],
            ["micro_batch 64 is above the effective batch 4", "--effective-batch 64"],
        ),
        (["estimate", *JOB, "--knob", "micro_batch=0"], ["micro_batch", "greater than or equal to 1", "got '0'"]),
        (["estimate", *JOB, "--knob", "checkpointed_layers=9"], ["checkpointed_layers is 0 to 2 for tiny-qwen2.5-vl, not 9"]),
        (["estimate", *JOB, "--budget", "14"], ["cannot read '14'", "14GiB"]),
        (["estimate", *JOB, "--budget", "0GiB"], ["a budget of 0GiB is 0.00 GiB"]),
        (["plan", *JOB, "--budget", "17GiB"], ["budget of 17GiB is 17.00 GiB; v100-16g has 15.78 GiB"]),
        (["plan", *JOB, "--rank", "8..4"], ["--rank 8..4", "must rise"]),
        (["plan", *JOB, "--rank", "many"], ["--rank must be a number or LOW..HIGH, not 'many'"]),
        (["plan", *JOB, "--rank", "0"], ["--rank 0"]),
        (["plan", *JOB, "--effective-batch", "0"], ["effective_batch"]),
        (["plan", *JOB, "--learning-rate", "0"], ["learning_rate"]),
        (["plan", *JOB, "--epochs", "0"], ["epochs"]),
        (["plan", *JOB, "--seed", "-1"], ["--seed", "greater than or equal to 0"]),
        (["plan", *JOB, "--seed", "4294967296"], ["--seed", "4294967295"]),
        (["plan", *JOB, "--lora-alpha", "0"], ["--lora-alpha"]),
        (["plan", *JOB, "--lora-dropout", "1"], ["--lora-dropout", "1 is not a number from 0 to below 1"]),
        (["plan", *JOB, "--warmup-ratio", "nan"], ["--warmup-ratio", "nan is not a number from 0 to 1"]),
        (["plan", *JOB, "--weight-decay", "some"], ["--weight-decay", "some is not a number of at least 0"]),
        (["plan", *JOB, "--max-grad-norm", "inf"], ["--max-grad-norm", "inf is not a number above 0"]),
        (["plan", *JOB, "--lr-schedule", "cos"], ["--lr-schedule", "constant_with_warmup"]),
        (["plan", *JOB, "--init-lora", "pissa"], ["--init-lora", "out of the base weights", "take one of default"]),
        (["plan", *JOB, "--init-lora", "orthogonal", "--rank", "4..9"], ["--init-lora orthogonal needs an even --rank, not 9"]),
        (["plan", *JOB, "--rank", "8..2000"], ["rank", "1024"]),
        (["estimate", *JOB, "--use-dora", "--knob", "lora=lean"], ["lora 'lean' has no DoRA"]),
        (["plan", *JOB, "--targets", "q_prj"], ["targets must be some of q_proj", "q_prj"]),
        (["plan", *JOB, "--image", "56"], ["'56'", "WIDTHxHEIGHT"]),
        (["plan", *JOB, "--text-tokens", "5000"], ["5004 tokens (4 of them visual)", "the limit is 4096"]),
        (["plan", *JOB, "--supervised-tokens", "40"], ["40 label tokens must be fewer than the 40 text tokens"]),
        (["plan", *JOB, "--probe", "sometimes"], ["sometimes", "always"]),
        (["plan", *JOB, "--budgt", "14GiB"], ["--budgt", "--budget"]),
        (["plan"], ["--gpu"]),
        (["plan", *JOB, "--batch", "4"], ["no option --batch", "did you mean --effective-batch?", "budgetft plan -h"]),
        (["train", "--lr", "1"], ["no option --lr", "budgetft train -h"]),
        (["pln"], ["no command 'pln'; did you mean 'plan'?"]),
        (["eval"], ["did you mean 'evaluate'?"]),
        (["data", "conver"], ["no command 'conver'; did you mean 'convert'?"]),
        (["price"], ["no command 'price'; commands: fit, estimate,"]),
        (["help", "pln"], ["did you mean 'plan'?"]),
    ],
    ids=lambda value: " ".join(w for w in value if w not in JOB or len(value) < 3) if isinstance(value, list) else value,
)
def test_a_wrong_request_is_refused_by_name_on_stderr_with_exit_code_2(said, tmp_path, monkeypatch, words, expected):
    monkeypatch.chdir(tmp_path)
    answer = said(*words)
    assert answer.code == 2
    assert answer.out == ""
    for text in expected:
        assert text in answer.err
    assert "Traceback" not in answer.err
    assert list(tmp_path.iterdir()) == []


def test_the_lists_name_every_profile(said):
    gpus, models = said("gpus"), said("models")
    assert (gpus.code, models.code) == (0, 0)
    assert all(name in gpus.out for name in gpu_names())
    assert all(name in models.out for name in model_names())
    assert said("--version").out.startswith("budgetft ")


# estimate


def test_an_estimate_as_json_has_the_promised_keys_and_terms_that_sum_to_it(planned, said):
    answer = said("estimate", *JOB, "--rank", "4", "--json")
    assert answer.code == 0
    estimate = json.loads(answer.out)
    assert set(estimate) >= ESTIMATE_KEYS
    assert sum(term["memory_bytes"] for term in estimate["terms"]) == estimate["process_peak_bytes"]
    assert estimate["tensor_peak_bytes"] <= estimate["reserved_peak_bytes"] <= estimate["process_peak_bytes"]
    assert estimate["samples_per_second"] == arithmetic(4 / estimate["step_seconds"])
    assert estimate["evidence"] == "predicted"
    assert all(isinstance(term["memory_bytes"], int) for term in estimate["terms"])
    again = said(
        "estimate", *JOB, "--rank", "4", "--json", *(f"--knob={name}={value}" for name, value in estimate["knobs"].items())
    )
    assert json.loads(again.out) == estimate


def test_an_estimate_answers_for_the_knobs_that_were_asked(planned, said):
    def peak(*knobs: str, budget: str = "14GiB") -> dict:
        words = [word for knob in knobs for word in ("--knob", knob)]
        return json.loads(said("estimate", *JOB, "--rank", "4", "--json", "--budget", budget, *words).out)

    small, large = peak("micro_batch=1"), peak("micro_batch=4")
    assert small["tensor_peak_bytes"] < large["tensor_peak_bytes"]
    assert small["samples_per_second"] < large["samples_per_second"]
    recomputed, kept = peak("checkpointed_layers=2"), peak("checkpointed_layers=0")
    assert recomputed["samples_per_second"] < kept["samples_per_second"]
    assert peak("micro_batch=4", budget="0.5GiB")["fits"] is False


def test_what_does_not_fit_ends_with_the_exit_code_of_nothing_fits(planned, said):
    for form in ([], ["--json"]):
        answer = said("estimate", *JOB, "--rank", "4", "--budget", "0.5GiB", *form)
        assert answer.code == NothingFits.exit_code == 3
        assert answer.out, "the estimate is printed all the same"
        progress = [line for line in answer.err.splitlines() if not line.startswith(("tracing ", "replaying "))]
        assert progress == [], "in words it looks for what would fit, and may trace that"
        assert form or "Instead" in answer.out


def test_a_knob_that_cannot_be_is_told_of_alone(said):
    answer = said("estimate", *JOB, "--knob", "attention=flash")
    assert answer.err == "error: attention 'flash' needs compute capability 8.0; v100-16g has 7.0\n"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["plan", *JOB], "interrupted; finished trials are kept: run the same command again"),
        (["estimate", *JOB], "interrupted; nothing was lost: run the same command again"),
        (["gpus"], "interrupted"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else None,
)
def test_an_interrupt_says_what_is_kept_and_ends_with_130(words, told, said, monkeypatch):
    def interrupt(name):
        raise KeyboardInterrupt

    monkeypatch.setattr("budgetft.cli.options.look_up", interrupt)
    monkeypatch.setattr("budgetft.cli.gpus.all_gpus", lambda: interrupt(None))
    answer = said(*words)
    assert (answer.code, answer.out, answer.err) == (130, "", f"\n{told}\n")


def test_an_estimate_in_words_says_that_nothing_was_run(planned, said):
    answer = said("estimate", *JOB, "--rank", "4", "--knob", "micro_batch=2")
    assert answer.code == 0
    assert "tiny-qwen2.5-vl · LoRA rank 4 · Tesla V100 16 GB" in answer.out
    assert "predicted, nothing was run; budget 14.00 GiB" in answer.out
    assert "micro-batch 2 x 2 accumulation steps" in answer.out
    assert "  Fits " in answer.out


# plan


def test_a_plan_without_probes_is_predicted_and_has_the_promised_keys(planned):
    answer, path = planned
    assert answer.code == 0
    plan = json.loads(path.read_text())
    assert plan["schema_version"] == 1
    assert plan["gpu"]["name"] == "v100-16g"
    assert plan["gpu"]["budget_bytes"] == 14 * GIB
    assert plan["model"]["name"] == "tiny-qwen2.5-vl"
    assert plan["contract"]["effective_batch"] == 4
    assert plan["contract"]["rank"] == 4
    assert plan["contract"]["alpha"] == 8
    assert plan["contract"]["learning_rate"] == 3e-4
    assert plan["contract"]["epochs"] == 2
    assert plan["knobs"]["micro_batch"] * plan["knobs"]["grad_accum"] == 4
    assert set(plan["estimate"]) >= ESTIMATE_KEYS
    assert plan["estimate"]["fits"] is True
    assert sum(term["memory_bytes"] for term in plan["estimate"]["terms"]) == plan["estimate"]["process_peak_bytes"]
    assert plan["evidence"]["kind"] == "predicted"
    assert plan["evidence"]["outcomes"] == []
    assert plan["evidence"]["confirmed"] is None
    assert "no GPU was used" in plan["evidence"]["statement"]
    assert plan["baseline"]["knobs"]["loss"] == "full"
    assert plan["baseline"]["estimate"]["samples_per_second"] < plan["estimate"]["samples_per_second"]
    assert {"budgetft", "python", "torch", "transformers"} <= set(plan["environment"])


def test_the_price_list_has_the_floor_and_every_doubling(planned):
    rows = read_plan(planned[1]).price_list
    assert [(row.axis, row.value) for row in rows if row.axis == "rank"] == [("rank", "4"), ("rank", "8")]
    least, above = (row for row in rows if row.axis == "rank")
    assert least.knobs == read_plan(planned[1]).knobs
    assert above.process_peak_bytes != least.process_peak_bytes  # of its own: so small a model's blocks may round either way
    # Four ranks more of two layers' seven linears, with gradients and Adam's two states; and a block of the allocator's.
    sides = (64 + 64) + 2 * (64 + 32) + (64 + 64) + 3 * (64 + 128)
    assert abs(above.process_peak_bytes - least.process_peak_bytes) <= 4 * 2 * sides * 4 * 4 + 2 * MIB
    assert {row.evidence for row in rows} == {"predicted"}


def test_the_price_list_has_every_number_of_frames_beside_that_of_the_data(planned):
    rows = [row for row in read_plan(planned[1]).price_list if row.axis == "frames_per_example"]
    assert [row.value for row in rows] == ["1", "2"]
    assert rows[0].knobs == read_plan(planned[1]).knobs
    assert rows[1].samples_per_second <= rows[0].samples_per_second, "so small a model only waits for launches"
    assert f"2 frames an example: {rows[1].speed_text()}" in planned[0].out


def test_results_are_on_stdout_and_progress_on_stderr(planned, said, tmp_path):
    answer, path = planned
    assert "[trace]" in answer.err
    assert "[trace]" not in answer.out
    assert f"written to {path}" in answer.out
    assert "predicted: traced on fake tensors" in answer.out
    quiet = said("plan", *JOB, "--rank", "4", "--probe", "never", "--quiet", "--json", "--out", str(tmp_path / "plan.json"))
    assert quiet.code == 0
    assert quiet.err == ""
    assert Plan.model_validate_json(quiet.out) == read_plan(tmp_path / "plan.json")


def test_a_budget_below_the_weights_names_the_floor_and_a_budget_that_works(planned, said, tmp_path):
    path = tmp_path / "plan.json"
    words = ["plan", *JOB, "--rank", "4", "--probe", "never", "--out", str(path)]
    answer = said(*words, "--budget", "10MiB")
    assert answer.code == 3
    assert answer.out == ""
    assert not path.exists()
    assert "nothing fits 0.01 GiB on v100-16g" in answer.err
    assert "needs at least" in answer.err
    assert "weights" in answer.err
    assert "its weights alone exceed the budget" in answer.err
    (needed,) = re.findall(r"smallest budget that would work is about (\d+\.\d\d) GiB", answer.err)
    assert said(*words, "--budget", f"{float(needed) - 0.02:.2f}GiB").code == 3
    assert not path.exists()
    assert said(*words, "--budget", f"{float(needed) + 0.01:.2f}GiB").code == 0
    assert read_plan(path).estimate.process_peak_bytes <= read_plan(path).gpu.budget_bytes


def test_a_plan_that_cannot_be_written_is_refused_by_name(planned, said, tmp_path):
    (tmp_path / "file").write_text("mine")
    answer = said("plan", *JOB, "--rank", "4", "--probe", "never", "--out", str(tmp_path / "file" / "plan.json"))
    assert answer.code == 2
    assert "cannot write" in answer.err
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.skipif(first_visible(os.environ) is not None, reason="with a GPU, probes run on the GPU")
def test_a_plan_probed_on_the_cpu_is_made_of_real_steps_and_goes_on_from_its_ledger(said, warm_children, tmp_path, cache):
    path = tmp_path / "plan.json"
    words = ["plan", *JOB, "--rank", "4", "--probe", "always", "--max-probes", "5", "--out", str(path)]
    answer = said(*words, "--budget", "96MiB")
    assert answer.code == 0, answer.err
    plan = read_plan(path)
    assert plan.evidence.kind == "predicted", "no GPU was used, whatever the CPU did"
    assert "real steps on the CPU" in plan.evidence.statement
    assert plan.evidence.confirmed.fits
    assert plan.evidence.confirmed == plan.evidence.outcomes[-1]
    assert plan.estimate.process_peak_bytes == plan.evidence.confirmed.process_peak_bytes <= 96 * MIB
    assert sum(term.memory_bytes for term in plan.estimate.terms) == plan.estimate.process_peak_bytes
    assert plan.estimate.step_seconds == plan.evidence.confirmed.step_seconds
    assert plan.environment["gpu"] == plan.evidence.confirmed.stack.gpu
    assert {"ledger.sqlite3", "studies.sqlite3", "memory_models"} <= {entry.name for entry in cache.iterdir()}

    again = said(*words, "--budget", "96MiB")
    assert again.code == 0
    assert again.err.count(": known, ") == len({outcome.knobs for outcome in plan.evidence.outcomes})


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["plan", "--gpu", "v100-16g", "--data", ".", "--image", "448x448"], "--image is instead of --data"),
        (["plan", "--gpu", "v100-16g", "--image", "448x448", "--out", "."], "is a folder"),
        (["estimate", "--gpu", "v100-16g", "--rank", "8..64"], "an estimate is of one setting"),
        (["plan", "--gpu", "v100-16g", "--data", "README.md"], "is of no kind that is known"),
    ],
    ids=["data and image", "a folder for a plan", "a range in an estimate", "a file for a dataset"],
)
def test_options_that_do_not_go_together_are_refused_before_anything_is_done(words, told, monkeypatch, capsys):
    monkeypatch.chdir(Path(__file__).parents[1])
    assert main(words) == 2
    assert told in capsys.readouterr().err


@pytest.mark.parametrize(
    ("before", "now"),
    [
        ("--knob", "--setting"),
        ("--probe", "--trials"),
        ("--max-probes", "--max-trials"),
        ("--supervised-tokens", "--label-tokens"),
        ("--ledger", "--trial-database"),
        ("--cards", "--gpus"),
    ],
)
def test_an_option_that_was_renamed_has_both_names_wherever_it_is(before, now):
    import typer

    from budgetft.cli import build_app

    def options(command) -> list[list[str]]:
        inner = getattr(command, "commands", {}).values()
        return [param.opts for param in command.params] + [opts for each in inner for opts in options(each)]

    held = [opts for opts in options(typer.main.get_command(build_app())) if before in opts or now in opts]
    assert held
    assert all(opts == [now, before] for opts in held), held
