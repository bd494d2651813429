"""Porting plans of a tiny model, probed on the CPU's byte meter, to other budgets and GPUs."""

import json
from pathlib import Path

import pytest

pytest.importorskip("optuna", reason="optuna is not installed: a search is a study of it")

from warm import warm

from budgetft.cli import main
from budgetft.gpu import load_gpu
from budgetft.knobs import LOSS_CHUNK, VISION_GROUP
from budgetft.plan import read_plan
from budgetft.search.port import MOST_PROBES

pytestmark = pytest.mark.usefixtures("warm_children")
MODEL = "tiny-qwen2.5-vl"
WORK = [
    "--model",
    MODEL,
    "--image",
    "56x56",
    "--text-tokens",
    "40",
    "--supervised-tokens",
    "8",
]  # other files have its memory models
WORK += ["--rank", "4..8", "--effective-batch", "8", "--quiet"]
SMALL = "100MiB"


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def cache(new_cache) -> Path:
    return new_cache()


@pytest.fixture(scope="module")
def way(tmp_path_factory, cache) -> Path:
    """A probed plan, ported to a budget that it does not fit."""
    folder = tmp_path_factory.mktemp("port")
    with pytest.MonkeyPatch.context() as patch, warm():
        patch.setenv("BUDGETFT_CACHE", str(cache))
        probed = ["--probe", "always", "--max-probes", "5", "--out", folder / "old.json"]
        assert run("plan", "--gpu", "v100-16g", "--budget", "600MiB", *WORK, *probed) == 0
        port = ["port", "--plan", folder / "old.json", "--gpu", "t4", "--budget", SMALL, "--precision", "keep", "--quiet"]
        assert run(*port, "--probe", "always", "--out", folder / "new.json") == 0
    return folder


@pytest.fixture(autouse=True)
def _shared_cache(cache, monkeypatch):
    """What was probed and traced for the module is not paid for again."""
    monkeypatch.setenv("BUDGETFT_CACHE", str(cache))


@pytest.fixture
def ported(way, tmp_path, capsys):
    """The object that ``port --json`` prints, or its error."""

    def port(*arguments: str, code: int = 0):
        made = run("port", "--plan", way / "old.json", "--out", tmp_path / "new.json", "--quiet", "--json", *arguments)
        printed = capsys.readouterr()
        assert made == code, printed.err
        return json.loads(printed.out) if code == 0 else printed.err

    return port


def test_a_port_takes_a_few_probes_and_is_confirmed(way):
    old, new = read_plan(way / "old.json"), read_plan(way / "new.json")
    assert 1 <= len(new.evidence.outcomes) <= MOST_PROBES
    assert new.evidence.confirmed is not None
    assert new.estimate.process_peak_bytes <= new.gpu.budget_bytes < old.estimate.process_peak_bytes
    assert new.evidence.statement.startswith("ported from v100-16g (predicted)")


def test_the_contract_and_the_work_are_the_old_plan_s(way):
    old, new = read_plan(way / "old.json"), read_plan(way / "new.json")
    assert (new.contract, new.workload, new.model) == (old.contract, old.workload, old.model)
    assert [row.value for row in new.price_list] == [row.value for row in old.price_list] == ["4", "8"]


def test_the_peak_is_predicted_within_3_percent_before_any_probe_there(ported):
    told = ported("--gpu", "t4", "--budget", SMALL, "--probe", "always")
    confirmed = told["plan"]["evidence"]["confirmed"]
    assert told["predicted"]["process_peak_bytes"] == pytest.approx(confirmed["process_peak_bytes"], rel=0.03)
    assert "carry over" in told["carried"]


def test_every_changed_knob_has_a_reason_and_every_other_knob_stays(ported):
    told = ported("--gpu", "v100-16g", "--budget", "900MiB", "--probe", "never")
    old_plan_changes = {change["knob"]: change for change in told["changes"]}
    assert set(old_plan_changes) <= set(told["plan"]["knobs"])
    for knob, change in old_plan_changes.items():
        assert change["before"] != change["after"]
        assert change["after"] == str(told["plan"]["knobs"][knob])
        assert change["reason"]


def test_without_probes_the_plan_is_predicted_and_agrees_with_estimate(ported, capsys):
    told = ported("--gpu", "v100-16g", "--budget", "2GiB", "--probe", "never")
    assert told["plan"]["evidence"]["kind"] == "predicted"
    assert told["plan"]["evidence"]["outcomes"] == []
    knobs = told["plan"]["knobs"]
    pairs = [part for name, value in knobs.items() for part in ("--knob", f"{name}={value}")]
    work = [word.removesuffix("..8") for word in WORK if word != "--quiet"]
    assert run("estimate", "--gpu", "v100-16g", "--budget", "2GiB", *work, *pairs, "--json") == 0
    estimate = json.loads(capsys.readouterr().out)
    share = told["uncertainty_share"]
    assert estimate["process_peak_bytes"] == pytest.approx(told["plan"]["estimate"]["process_peak_bytes"], rel=share)


def test_where_nothing_fits_it_says_what_to_give_up(ported):
    error = ported("--gpu", "t4", "--budget", "40MiB", "--probe", "never", code=3)
    assert "the plan for v100-16g cannot be ported" in error
    assert "half the rank would free" in error
    assert "GPUs with a default budget that is enough" in error


@pytest.fixture
def without_cost(way):
    """The plan without its prices, its probes and its small chunks, for each of which memory models would be traced as well."""
    plan = read_plan(way / "old.json").replace(price_list=())
    plan = plan.replace(evidence=plan.evidence.replace(outcomes=(), confirmed=None))
    plan = plan.replace(knobs=plan.knobs.replace(loss_chunk=LOSS_CHUNK, vision_group=VISION_GROUP))
    assert plan.knobs.base_precision == "fp32"
    return plan


@pytest.mark.sweep
def test_a_port_to_the_native_type_of_a_newer_gpu_computes_in_it(without_cost, tmp_path):
    (tmp_path / "old.json").write_text(without_cost.model_dump_json())
    native = ["--gpu", "rtx3060-12g", "--precision", "native", "--probe", "never", "--quiet"]
    assert run("port", "--plan", tmp_path / "old.json", *native, "--out", tmp_path / "bf16.json") == 0
    assert read_plan(tmp_path / "bf16.json").knobs.base_precision == "bf16"


def test_a_type_that_the_gpu_only_emulates_is_not_replaced_in_silence(without_cost, tmp_path, capsys):
    """To the type of an older GPU; to that of a newer one in the sweep: both by the same few lines."""
    ampere = without_cost.gpu.replace(name="rtx3060-12g", profile=load_gpu("rtx3060-12g"))
    bf16 = without_cost.replace(gpu=ampere, knobs=without_cost.knobs.replace(base_precision="bf16"))
    (tmp_path / "bf16.json").write_text(bf16.model_dump_json())
    port = ["port", "--plan", tmp_path / "bf16.json", "--gpu", "t4", "--probe", "never", "--out", tmp_path / "t4.json"]
    assert run(*port) == 2
    error = capsys.readouterr().err
    assert "computes in bf16" in error
    assert "--precision native" in error
    assert not (tmp_path / "t4.json").exists()
    assert run(*port, "--precision", "native", "--quiet") == 0
    assert read_plan(tmp_path / "t4.json").knobs.base_precision == "fp16"
    assert "changes the numerics" in capsys.readouterr().out


def test_a_plan_has_every_setting_that_was_asked_for_and_its_port_has_them_too(tmp_path):
    settings = {
        "seed": 2**32 - 1, "alpha": 12, "lora_dropout": 0.1, "use_rslora": True, "use_dora": True, "init_lora": "orthogonal",
        "lr_schedule": "constant_with_warmup", "warmup_ratio": 0.2, "weight_decay": 0.05, "max_grad_norm": 0.5,
    }  # fmt: skip
    words = ["--lora-alpha", 12, "--use-rslora", "--use-dora"]
    for name, value in settings.items():
        words += [] if value is True or name == "alpha" else [f"--{name.replace('_', '-')}", value]
    old, new = tmp_path / "old.json", tmp_path / "new.json"
    assert run("plan", "--gpu", "v100-16g", *WORK, *words, "--probe", "never", "--out", old) == 0
    plan = read_plan(old)
    assert settings.items() <= plan.contract.model_dump().items()
    assert plan.knobs.lora == "stock", "the lean forward has neither"
    assert [row.value for row in plan.price_list] == ["4", "8"]
    assert run("port", "--plan", old, "--gpu", "t4", "--probe", "never", "--quiet", "--out", new) == 0
    assert read_plan(new).contract == plan.contract
