"""The plan file: what is written comes back, and whatever does not belong together is refused with every reason."""

import json
import resource
from pathlib import Path

import pytest

from budgetft.contract import Contract
from budgetft.errors import UsageError
from budgetft.gpu import load_gpu
from budgetft.knobs import Knobs, stock_knobs
from budgetft.model import load_model
from budgetft.outcome import CONNECTION, Estimate, Outcome, Stack, Term, in_former_names
from budgetft.plan import (
    Candidate,
    CostRow,
    Plan,
    Proof,
    StagePeak,
    Target,
    config_fingerprint,
    knob_problems,
    load_planned_model,
    read_plan,
    refer,
    write_plan,
    write_text_atomically,
)
from budgetft.profiles import profiles_folder
from budgetft.units import GIB
from budgetft.workload import Shape, Workload

MODEL = "tiny-qwen2.5-vl"


def estimate_of(peak: int, **changes) -> Estimate:
    terms = (Term(name="weights", memory_bytes=peak // 2), Term(name="the rest", memory_bytes=peak - peak // 2))
    fields = {
        "tensor_peak_bytes": peak // 2,
        "reserved_peak_bytes": peak - 1,
        "process_peak_bytes": peak,
        "step_seconds": 1.0 / 3.0,
        "samples_per_second": 96.0,
        "fits": True,
        "terms": terms,
        "evidence": "measured",
    }
    return Estimate(**{**fields, **changes})


@pytest.fixture
def plan() -> Plan:
    """A plan with every part filled in."""
    knobs = Knobs(micro_batch=4, grad_accum=8, checkpointed_layers=2)
    stack = Stack(gpu="a GPU", driver=None, torch="2.10", transformers="5.17", peft="0.19", python="3.12")
    outcome = Outcome(
        status="ok",
        knobs=knobs,
        evidence="measured",
        budget_bytes=14 * GIB,
        process_peak_bytes=13 * GIB,
        timed_seconds=(0.1, 0.2 + 0.1),
        stack=stack,
    )
    failed = Outcome(status="oom", phase="loss", detail="größer", knobs=knobs, evidence="measured", budget_bytes=14 * GIB)
    stock = stock_knobs(micro_batch=1, effective_batch=32, layers=2, base_precision="fp16")
    cost_of = CostRow(
        axis="rank", value="64", knobs=None, samples_per_second=None, process_peak_bytes=None, evidence="predicted"
    )
    shape = Shape(images=((448, 448), (28, 56)), text_tokens=40, supervised_tokens=8)
    return Plan(
        gpu=Target(name="v100-16g", budget_bytes=14 * GIB, profile=load_gpu("v100-16g")),
        model=refer(load_model(MODEL)),
        contract=Contract(),
        knobs=knobs,
        estimate=estimate_of(13 * GIB),
        evidence=Proof(kind="measured", outcomes=(failed, outcome), confirmed=outcome, statement="measured on a GPU"),
        baseline=Candidate(knobs=stock, estimate=estimate_of(12 * GIB)),
        price_list=(cost_of,),
        runners_up=(Candidate(knobs=knobs, estimate=estimate_of(12 * GIB), outcome=outcome),),
        workload=Workload(worst=(shape,), typical=(shape, shape), examples=2, fingerprint="f" * 64),
        data="/some/where",
        environment={"torch": "2.10"},
    )


@pytest.fixture
def edited(plan, tmp_path):
    """The path of the plan after ``edit`` changed its JSON by hand."""

    def write(edit) -> Path:
        path = tmp_path / "plan.json"
        write_plan(plan, path)
        data = json.loads(path.read_text(encoding="utf-8"))
        edit(data)
        path.write_text(json.dumps(data), encoding="utf-8")
        return path

    return write


def refusal(path: Path) -> UsageError:
    with pytest.raises(UsageError) as caught:
        read_plan(path)
    assert caught.value.exit_code == 2
    assert str(path) in caught.value.message
    return caught.value


def test_a_plan_comes_back_as_it_was_written(plan, tmp_path):
    path = tmp_path / "a new folder" / "plan.json"
    write_plan(plan, path)
    assert read_plan(path) == plan
    first = path.read_bytes()
    write_plan(read_plan(path), path)
    assert path.read_bytes() == first


def test_untouched_json_is_accepted_whatever_its_order_and_spacing(plan, edited):
    def reverse(data: dict) -> None:
        items = list(data.items())
        data.clear()
        data.update(reversed(items))

    assert read_plan(edited(reverse)) == plan


@pytest.mark.parametrize("version", [2, 99])
def test_a_newer_schema_is_refused_naming_both_versions_before_anything_else(edited, version):
    def from_the_future(data: dict) -> None:
        data.clear()
        data.update(schema_version=version, something="unheard of")

    error = refusal(edited(from_the_future))
    assert f"plan schema {version}; this budgetft reads up to 1" in error.message
    assert "upgrade budgetft" in error.hint


@pytest.mark.parametrize("version", [0, -1, "2", 1.5, None, [1]])
def test_a_schema_version_that_is_none_is_refused(edited, version):
    assert "schema_version" in refusal(edited(lambda data: data.update(schema_version=version))).message


# Edits by hand: (what was changed, what the refusal must say)
NONSENSE = {
    "the product is not the effective batch": (
        lambda d: d["knobs"].update(micro_batch=5),
        "micro_batch 5 x grad_accum 8 is not the effective batch 32",
    ),
    "flash attention on a V100": (lambda d: d["knobs"].update(attention="flash"), "'flash' needs compute capability 8.0"),
    "bf16 on a V100": (lambda d: d["knobs"].update(base_precision="bf16"), "'bf16' is emulated on v100-16g"),
    "lean LoRA with dropout": (lambda d: d["contract"].update(lora_dropout=0.1), "needs a LoRA dropout of 0"),
    "lean LoRA with DoRA": (lambda d: d["contract"].update(use_dora=True), "lora 'lean' has no DoRA"),
    "DoRA on four bits": (
        lambda d: (d["contract"].update(use_dora=True, allow_nf4=True), d["knobs"].update(base_precision="nf4", lora="stock")),
        "base_precision 'nf4' has no DoRA",
    ),
    "a start that changes the base": (
        lambda d: d["contract"].update(init_lora="pissa"),
        "contract.init_lora: init 'pissa' is refused: it takes a part out of the base weights",
    ),
    "efficient attention where it does not run": (
        lambda d: d["gpu"]["profile"].update(efficient_attention=False),
        "'efficient' does not run",
    ),
    "a negative micro-batch": (lambda d: d["knobs"].update(micro_batch=-4, grad_accum=-8), "knobs.micro_batch"),
    "a budget of nothing": (lambda d: d["gpu"].update(budget_bytes=0), "gpu.budget_bytes"),
    "a string for a number": (lambda d: d["knobs"].update(micro_batch="4"), "knobs.micro_batch"),
    "a fraction for a count": (lambda d: d["knobs"].update(micro_batch=4.5), "knobs.micro_batch"),
    "a truth value for a number": (lambda d: d["knobs"].update(micro_batch=True, grad_accum=32), "knobs.micro_batch"),
    "a number for a truth value": (lambda d: d["estimate"].update(fits=1), "estimate.fits"),
    "null for a number": (lambda d: d["estimate"].update(process_peak_bytes=None), "estimate.process_peak_bytes"),
    "not a number": (lambda d: d["estimate"].update(step_seconds=float("nan")), "step_seconds"),
    "an unknown kernel": (lambda d: d["knobs"].update(attention="flsh"), "knobs.attention"),
    "an estimate above the budget": (
        lambda d: d["gpu"].update(budget_bytes=12 * GIB),
        f"estimate.process_peak_bytes {13 * GIB} is above gpu.budget_bytes {12 * GIB}",
    ),
    "an estimate above the budget that says so": (
        lambda d: (d["gpu"].update(budget_bytes=12 * GIB), d["estimate"].update(fits=False)),
        "is above gpu.budget_bytes",
    ),
    "no knobs": (lambda d: d.pop("knobs"), "knobs: field required"),
    "an outcome without a status": (lambda d: d["evidence"]["outcomes"][0].pop("status"), "evidence.outcomes.0.status"),
    "a list for a workload": (lambda d: d.update(workload=[]), "workload"),
}


@pytest.mark.parametrize("name", NONSENSE)
def test_an_edit_that_makes_no_sense_is_refused(edited, name):
    edit, expected = NONSENSE[name]
    assert expected in refusal(edited(edit)).message


@pytest.mark.parametrize(
    ("edit", "wrong", "right"),
    [
        (lambda d: d["knobs"].update(micro_bacth=d["knobs"].pop("micro_batch")), "knobs.micro_bacth", "micro_batch"),
        (lambda d: d["contract"].update(efective_batch=32), "contract.efective_batch", "effective_batch"),
        (lambda d: d.update(price_lst=[]), "price_lst", "price_list"),
        (lambda d: d["evidence"]["outcomes"][0].update(phse="loss"), "evidence.outcomes.0.phse", "phase"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_one(edited, edit, wrong, right):
    error = refusal(edited(edit))
    assert f"{wrong}: unknown key" in error.message
    assert f"did you mean {right!r}" in error.hint


def test_all_problems_of_one_kind_are_named_at_once(edited):
    def break_types(data: dict) -> None:
        data["knobs"].update(micro_batch="4", loss="chunky", nonsense=1)
        data["gpu"].update(budget_bytes=-1)
        data["estimate"].pop("fits")

    message = refusal(edited(break_types)).message
    assert "5 problems" in message
    for where in ("knobs.micro_batch", "knobs.loss", "knobs.nonsense", "gpu.budget_bytes", "estimate.fits"):
        assert where in message

    def contradict(data: dict) -> None:
        data["knobs"].update(micro_batch=3, attention="flash", base_precision="bf16")
        data["contract"].update(lora_dropout=0.5)
        data["gpu"].update(budget_bytes=GIB)

    message = refusal(edited(contradict)).message
    for expected in ("effective batch", "'flash'", "'bf16'", "dropout", "above gpu.budget_bytes"):
        assert expected in message
    assert "schema_version" not in message, "the whole file is not repeated in the message"


@pytest.mark.parametrize("text", ["", "{", "[1]", "null", "nonsense", "\x00\x01", '{"schema_version": 1}', "[" * 100000])
def test_what_is_not_a_plan_is_refused(tmp_path, text):
    path = tmp_path / "plan.json"
    path.write_text(text)
    refusal(path)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
def test_a_truncated_file_is_refused(plan, tmp_path, share):
    path = tmp_path / "plan.json"
    write_plan(plan, path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    assert "is not JSON" in refusal(path).message


def test_a_missing_file_a_folder_and_bytes_that_are_no_text_are_refused(tmp_path):
    refusal(tmp_path / "nothing.json")
    refusal(tmp_path)
    (tmp_path / "plan.json").write_bytes(b"\xff\xfe\x00{}")
    refusal(tmp_path / "plan.json")


# The model that a plan is for


def test_the_planned_model_is_loaded_again(plan):
    assert load_planned_model(plan) == load_model(MODEL)


def test_a_model_with_another_configuration_is_refused(plan, tmp_path):
    folder = tmp_path / MODEL
    folder.mkdir()
    for path in (profiles_folder() / "models" / MODEL).iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    assert config_fingerprint(load_planned_model(plan, name=str(folder))) == plan.model.fingerprint

    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(dict(reversed(config.items())), indent=7))
    load_planned_model(plan, name=str(folder))

    config["text_config"]["num_hidden_layers"] += 1
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UsageError, match="another configuration") as caught:
        load_planned_model(plan, name=str(folder))
    assert "plan again" in caught.value.hint
    with pytest.raises(UsageError, match="another configuration"):
        load_planned_model(plan, name="tiny-qwen3-vl")


def test_more_checkpointed_layers_than_the_model_has_are_refused(plan):
    with pytest.raises(UsageError, match=r"checkpoints 3 layers; tiny-qwen2\.5-vl has 2"):
        load_planned_model(plan.replace(knobs=plan.knobs.replace(checkpointed_layers=3)))


def test_knobs_without_a_problem_have_none(plan):
    assert knob_problems(plan.knobs, plan.contract, plan.gpu.profile, plan.model.family) == []
    modern = load_gpu("l4")
    assert (
        knob_problems(plan.knobs.replace(attention="flash", base_precision="bf16"), plan.contract, modern, plan.model.family)
        == []
    )


# Writing


def test_a_write_that_fails_half_way_leaves_the_old_file_and_nothing_beside_it(plan, tmp_path):
    path = tmp_path / "plan.json"
    write_plan(plan, path)
    before = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, hard))  # as a full disk would
    try:
        with pytest.raises(UsageError, match="cannot write"):
            write_plan(plan.replace(data="/some/where/else"), path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_path_that_cannot_be_written_is_refused_by_name(tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder" / "inside").mkdir(parents=True)
    for path in (tmp_path / "file" / "plan.json", tmp_path / "folder", Path("/proc/none/plan.json")):
        with pytest.raises(UsageError) as caught:
            write_text_atomically(path, "text")
        assert f"cannot write {path}" in caught.value.message
    assert (tmp_path / "file").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "folder", "inside"]


def test_a_stage_that_needs_more_than_the_budget_says_so():
    stage = StagePeak(stage="evaluation", process_peak_bytes=2 * GIB, evidence="predicted")
    assert stage.describe(3 * GIB) == "evaluation 2.00 GiB (predicted)"
    assert "over the budget: it goes through fewer examples at a time" in stage.describe(GIB)
    merge = StagePeak(stage="merge", process_peak_bytes=0, host_peak_bytes=GIB // 2, evidence="predicted")
    assert merge.describe(GIB) == "merge no GPU, 0.50 GiB of host memory (predicted)"


def test_fingerprints_are_of_the_names_that_keys_had_before():
    stack = Stack(gpu='an "H100", "gpus": 2', driver="1", torch="2", transformers="5", peft="0", python="3")
    text = stack.key
    assert json.loads(text) == {("card" if key == "gpu" else key): value for key, value in stack.model_dump().items()}
    assert Stack.read(json.loads(text), source="a ledger of before") == stack
    whole = in_former_names('{"stack":' + stack.model_dump_json() + ',"gpus":4}')
    assert json.loads(whole) == {"stack": json.loads(text), "cards": 4}
    assert Term(name="connection to the other cards", memory_bytes=1).name == CONNECTION
